//! Connections that this node makes: one attempt after the other, paced, while there is none. A peer that fails again and
//! again is left to its breaker.

use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectError, Connection, ConnectionError};
use tokio::time::{Instant, sleep, timeout};

use super::code;
use super::counters::Tally;
use super::endpoint::Shared;
use super::frame::{FrameError, Kind};
use super::notice::is_refusal;
use super::peer::Peer;
use super::receive::{self, Refused};
use crate::breaker::Policy;
use crate::pki::NodeName;

/// How long an attempt, or a handshake from outside, may take.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);

/// What the node of the higher id waits longer, so that seldom both dial.
const HEAD_START: Duration = Duration::from_millis(100);

/// A connection that stood this long was a good one: after it, dialling starts anew.
const STEADY: Duration = Duration::from_secs(10);

/// Stands before dialling a peer. It stays open for no longer than attempts are apart anyway, so that a peer that is back
/// waits no longer for it.
pub(super) const BREAKER: Policy = Policy {
    failures: 3,
    window: Duration::from_secs(60),
    timeout: Duration::from_secs(1),
    patience: Duration::from_secs(10),
};

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Welcome(FrameError),
    #[error("no answer within {HANDSHAKE:?}")]
    Late,
}

/// Sees to it that there is a connection, until the peer is retired.
pub(super) async fn keep(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut current = peer.watch();
    let mut backoff = Backoff::default();
    loop {
        if peer.connection().is_some() {
            peer.breaker.recovered();
            let since = Instant::now();
            if current.wait_for(Option::is_none).await.is_err() {
                return;
            }
            if since.elapsed() >= STEADY {
                backoff = Backoff::default();
            }
        }
        let head_start = if peer.goes_first() { Duration::ZERO } else { HEAD_START };
        tokio::select! {
            () = sleep(head_start + backoff.next(random())) => {}
            _ = current.wait_for(Option::is_some) => continue,
        }
        let permit = match peer.breaker.ask() {
            Ok(permit) => permit,
            Err(open) => {
                tokio::select! {
                    () = sleep(open.again) => {}
                    _ = current.wait_for(Option::is_some) => {}
                }
                continue;
            }
        };
        let attempt = timeout(HANDSHAKE, dial(&shared, &peer)).await.unwrap_or(Err(DialError::Late));
        permit.told(&attempt);
        match attempt {
            // Read from by a task of its own, which ends with the connection.
            Ok(connection) => {
                let attended = receive::attend(shared.clone(), peer.clone(), connection.clone());
                drop(shared.runtime.spawn(attended));
                // Until it is adopted, or was closed before that.
                tokio::select! {
                    _ = current.wait_for(Option::is_some) => {}
                    _ = connection.closed() => {}
                }
            }
            Err(error) => failed(&peer, &error),
        }
    }
}

async fn dial(shared: &Shared, peer: &Peer) -> Result<Connection, DialError> {
    let name = NodeName { node: peer.id, cluster: shared.own.cluster };
    let connecting = shared.endpoint.connect_with(shared.client(), peer.address(), &name.to_string())?;
    let connection = connecting.await?;
    // With TLS 1.3 the dialled end judges this node's certificate later than this end the other's.
    let mut stream = connection.accept_uni().await?;
    match receive::only(&mut stream, Kind::Welcome, None).await {
        Ok(_) => Ok(connection),
        Err(Refused::Frame(error)) => {
            let code = if matches!(error, FrameError::Version { .. }) { code::VERSION } else { code::DAMAGED };
            connection.close(code, error.to_string().as_bytes());
            Tally::one(&peer.tally.damaged_frames);
            Err(DialError::Welcome(error))
        }
        Err(Refused::Reset(_) | Refused::Lost) => Err(connection.closed().await.into()),
    }
}

/// Counts and tells what is more than a peer being away.
fn failed(peer: &Peer, error: &DialError) {
    let refused = match error {
        DialError::Connection(ConnectionError::ApplicationClosed(close)) => close.error_code == code::NOT_A_MEMBER,
        DialError::Connection(error) => is_refusal(error),
        DialError::Connect(_) | DialError::Welcome(_) | DialError::Late => false,
    };
    if refused {
        Tally::one(&peer.tally.refused_certificates);
    }
    let (peer_id, address) = (peer.id, peer.address());
    match error {
        DialError::Late | DialError::Connection(ConnectionError::TimedOut) => {
            tracing::debug!(peer = peer_id, %address, "no answer")
        }
        error => {
            if let Some(unsaid) = peer.pace.due() {
                tracing::warn!(peer = peer_id, %address, %error, unsaid, "cannot connect");
            }
        }
    }
}

/// Delays that double up to a bound, each half as long to half as long again, so that nodes that lost each other at the
/// same moment do not dial at the same moment.
#[derive(Debug)]
struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const MOST: Duration = Duration::from_secs(2);

    fn next(&mut self, random: u32) -> Duration {
        let base = self.0;
        self.0 = (base * 2).min(Self::MOST);
        base / 2 + base.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

/// Where the system has no randomness, delays are equal.
fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delays_grow_to_a_bound(randoms in proptest::collection::vec(any::<u32>(), 1..40)) {
            let mut backoff = Backoff::default();
            for (round, random) in randoms.into_iter().enumerate() {
                let base = (Backoff::FIRST * 2u32.pow(round.min(20) as u32)).min(Backoff::MOST);
                let delay = backoff.next(random);
                prop_assert!(delay >= base / 2 && delay <= base * 3 / 2, "{delay:?} in round {round}");
            }
        }
    }
}
