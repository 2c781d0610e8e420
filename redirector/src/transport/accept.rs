//! Connections that peers make.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use quinn::{Connection, ConnectionError};
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::code;
use super::dial::HANDSHAKE;
use super::endpoint::Shared;
use super::frame::{self, Kind};
use super::notice::is_refusal;
use super::peer::Peer;
use super::send::Whole;
use super::{Channel, receive};
use crate::pki::{Certificate, NodeName};

/// Handshakes that may be under way at once: a member needs one, and each costs computation.
const HANDSHAKES_MAX: usize = 64;

/// With fewer places than this left, who dials must first show that it receives what is sent to its address (RFC 9000,
/// section 8.1).
const HANDSHAKES_SPARE: usize = 48;

/// Accepts connections until the endpoint is closed.
pub(super) async fn accept(shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = shared.endpoint.accept().await {
        if places.available_permits() < HANDSHAKES_SPARE && !incoming.remote_address_validated() {
            // It fails only for addresses that were validated.
            let _ = incoming.retry();
            continue;
        }
        match places.clone().try_acquire_owned() {
            Ok(place) => drop(shared.runtime.spawn(admit(shared.clone(), incoming, place))),
            Err(_) => {
                shared.crowded.fetch_add(1, Relaxed);
                incoming.refuse();
            }
        }
    }
}

/// Completes a handshake, learns who it is, and reads from them.
async fn admit(shared: Arc<Shared>, incoming: quinn::Incoming, place: OwnedSemaphorePermit) {
    let address = incoming.remote_address();
    let welcomed = tokio::time::timeout(HANDSHAKE, welcome(&shared, incoming)).await;
    drop(place);
    match welcomed {
        Ok(Ok((peer, connection))) => receive::attend(shared, peer, connection).await,
        Ok(Err(Stranger::Refused(why))) => {
            shared.strangers.fetch_add(1, Relaxed);
            if let Some(unsaid) = shared.pace.due() {
                tracing::warn!(%address, %why, unsaid, "a connection is refused");
            }
        }
        Ok(Err(Stranger::Failed(error))) => tracing::debug!(%address, %error, "a connection did not come about"),
        Err(_) => tracing::debug!(%address, "a handshake took too long"),
    }
}

/// Why somebody was not let in.
enum Stranger {
    /// For who it is.
    Refused(String),
    /// The network or the other end failed.
    Failed(ConnectionError),
}

impl From<ConnectionError> for Stranger {
    fn from(error: ConnectionError) -> Self {
        if is_refusal(&error) { Self::Refused(error.to_string()) } else { Self::Failed(error) }
    }
}

async fn welcome(shared: &Shared, incoming: quinn::Incoming) -> Result<(Arc<Peer>, Connection), Stranger> {
    let connection = incoming.accept()?.await?;
    let refuse = |why: String| {
        connection.close(code::NOT_A_MEMBER, why.as_bytes());
        Stranger::Refused(why)
    };
    let name = claimed(&connection).map_err(refuse)?;
    if name.cluster != shared.own.cluster {
        return Err(refuse(format!("{name} is of another cluster than {}", shared.own)));
    }
    let Some(peer) = shared.peer(name.node) else {
        return Err(refuse(match name.node == shared.own.node {
            true => format!("{name} is the name of the node that was dialled"),
            false => format!("{name} is no member"),
        }));
    };
    if let Ok(header) = frame::header(Channel::Control, Kind::Welcome, &[]) {
        let mut stream = Whole::new(connection.open_uni().await?);
        // Where this fails the connection has, and whoever reads from it learns of that.
        let _ = stream.write(&header, &[]).await;
    }
    Ok((peer, connection))
}

/// Who the certificate says it is. TLS has checked whose signature it bears.
fn claimed(connection: &Connection) -> Result<NodeName, String> {
    let chain = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let leaf = chain.as_ref().and_then(|chain| chain.first()).ok_or("no certificate")?;
    let said = Certificate::from_der(leaf)?;
    said.node.ok_or_else(|| format!("the certificate of {} names no node", said.subject))
}
