//! What is said on the wire when VIPs' holder has died: at once, and then again and again, in the words that the standards
//! have for it, and by nobody but who holds them now.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use redirector::vip::announce::{Mac, announcement, told};

use crate::raw::Tap;
use crate::scene::{Scene, wait_until};

/// Announcements that come in a burst.
const BURST: usize = 5;
/// Of those that follow, so many are awaited.
const REPEATS: usize = 2;
/// Nobody has this MAC address, so every frame is somebody else's.
const NOBODY: Mac = [0; 6];

/// Listens at the client for whoever tells everybody where an address is.
pub(crate) fn listen(scene: &Scene) -> Result<Tap> {
    let is_for_all = |frame: &[u8]| frame.first().is_some_and(|byte| byte & 1 == 1);
    scene.lab.client().run(|| Tap::open("eth0", move |frame| is_for_all(frame) && told(frame, NOBODY).is_some()))?
}

/// By each frame that says of a VIP where it is, when it was said.
fn said(tap: &Tap, of: IpAddr, since: Instant) -> BTreeMap<Vec<u8>, Vec<Instant>> {
    let mut said: BTreeMap<Vec<u8>, Vec<Instant>> = BTreeMap::new();
    for (at, frame) in tap.frames().into_iter().filter(|(at, frame)| *at > since && told(frame, NOBODY) == Some(of)) {
        said.entry(frame).or_default().push(at);
    }
    said
}

/// Waits until all that a dead node held has been announced by its successors as it should be.
pub(crate) fn is_announced(scene: &Scene, tap: &Tap, left: &[IpAddr], died: Instant) -> Result<()> {
    for &vip in left {
        let holder = scene.lab.holder(vip)?;
        let role = scene.lab.topology().find(&holder).with_context(|| format!("{holder} is no host"))?;
        let expected = announcement(vip, role.mac_bytes());
        wait_until(&format!("{holder} announces {vip} in a burst, and then again"), || {
            let said = said(tap, vip, died);
            Ok(expected.iter().all(|frame| said.get(frame).is_some_and(|times| times.len() >= BURST + REPEATS)))
        })?;
        let said = said(tap, vip, died);
        for frame in &expected {
            let times = &said[frame];
            let (burst, repeats) = (times[BURST - 1] - times[0], times[BURST + REPEATS - 1] - times[BURST - 1]);
            println!("{vip}: {BURST} announcements within {burst:?}, {REPEATS} more within {repeats:?}");
            ensure!(burst < repeats, "{vip} was not announced in a burst: {times:?}");
        }
        // Neither at another MAC address, nor in other words.
        let others: Vec<_> = said.keys().filter(|frame| !expected.contains(frame)).collect();
        ensure!(others.is_empty(), "besides {expected:02x?} it was said of {vip}: {others:02x?}");
    }
    Ok(())
}
