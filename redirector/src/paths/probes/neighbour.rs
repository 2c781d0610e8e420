//! ARP probes (RFC 5227) and neighbour solicitations for a path's next hop, as they are sent for VIPs.

use std::time::Duration;

use super::Target;
use super::connect::{Deadline, Failure};
use crate::vip::Segment;

/// How often it is looked whether an answer has come.
const LOOK: Duration = Duration::from_millis(5);

/// Asks who has the next hop's address.
pub(super) async fn ask(target: &Target, deadline: Deadline) -> Result<(), Failure> {
    let failed = |error| Failure::new(format!("on {}: {error}", target.interface));
    if target.is_tagged {
        return Err(Failure::new("a next hop in a VLAN cannot be asked for: probe it otherwise"));
    }
    let mut segment = Segment::open(&target.interface, target.mac).map_err(failed)?;
    segment.probe(target.next_hop).map_err(failed)?;
    let answered = async {
        while !segment.told().contains(&target.next_hop) {
            tokio::time::sleep(LOOK).await;
        }
    };
    deadline.within(&format!("an answer of {}", target.next_hop), answered).await
}
