//! The transport as the agent has it: start, send, look, change members and identity.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quinn::{ClientConfig, Endpoint, EndpointConfig, TokioRuntime};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::dial::BREAKER;
use super::notice::Pace;
use super::peer::Peer;
use super::send::{self, Lane, REQUESTS_MAX};
use super::{Channel, Counters, Identity, Inboxes, Incoming, RequestError, StartError, accept, code, dial, tls};
use crate::breaker::Breakers;
use crate::config::Cluster;
use crate::pki::NodeName;

/// Messages that may wait in an inbox. More wait with their senders.
const INBOX: usize = 64;

/// Streams that a peer may have open for requests: those of all channels, and as many again whose asker has given up
/// and which the other end has not noticed yet.
const REQUEST_STREAMS: u32 = (2 * 3 * REQUESTS_MAX) as u32;

/// What all tasks share.
pub(super) struct Shared {
    pub(super) own: NodeName,
    pub(super) endpoint: Endpoint,
    pub(super) runtime: Handle,
    address: SocketAddr,
    client: RwLock<ClientConfig>,
    peers: RwLock<BTreeMap<u8, Arc<Peer>>>,
    breakers: Breakers,
    inboxes: [mpsc::Sender<Incoming>; 3],
    pub(super) strangers: AtomicU64,
    pub(super) crowded: AtomicU64,
    /// Lines about connections of nobody who is known.
    pub(super) pace: Pace,
}

impl Shared {
    /// A member other than this node.
    pub(super) fn peer(&self, id: u8) -> Option<Arc<Peer>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub(super) fn client(&self) -> ClientConfig {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn inbox(&self, channel: Channel) -> &mpsc::Sender<Incoming> {
        &self.inboxes[usize::from(channel.byte())]
    }

    fn end(&self) {
        let peers = std::mem::take(&mut *self.peers.write().unwrap_or_else(PoisonError::into_inner));
        peers.into_values().for_each(|peer| peer.retire(code::ENDED, b"the agent ends"));
        self.endpoint.close(code::ENDED, b"the agent ends");
    }
}

/// The agents' side of the network. A clone is the same transport; with the last one all connections end.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
    _end: Arc<End>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transport({} at {})", self.shared.own, self.shared.address)
    }
}

/// Ends everything when the last handle goes.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Begins to listen and to dial, each peer behind a breaker. The socket is opened in the calling thread, and so in its
/// network namespace.
///
/// # Errors
/// [`StartError`].
pub fn start(
    identity: Identity,
    own: u8,
    listen: SocketAddr,
    members: Vec<(u8, SocketAddr)>,
    breakers: &Breakers,
) -> Result<(Transport, Inboxes), StartError> {
    if identity.name.node != own {
        return Err(StartError::NotMine { certificate: identity.name.node, own });
    }
    identity.tell_of_validity();
    let runtime = Handle::try_current().map_err(|_| StartError::Runtime)?;
    let configs = tls::configs(&identity, REQUEST_STREAMS)?;
    let failed = |source| StartError::Socket { address: listen, source };
    let socket = UdpSocket::bind(listen).map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    let quic = EndpointConfig::default();
    let endpoint = Endpoint::new(quic, Some(configs.server), socket, Arc::new(TokioRuntime)).map_err(failed)?;
    let (consensus, flows, control) = (mpsc::channel(INBOX), mpsc::channel(INBOX), mpsc::channel(INBOX));
    let shared = Arc::new(Shared {
        own: identity.name,
        endpoint,
        runtime,
        address,
        client: RwLock::new(configs.client),
        peers: RwLock::default(),
        breakers: breakers.clone(),
        inboxes: [consensus.0, flows.0, control.0],
        strangers: AtomicU64::new(0),
        crowded: AtomicU64::new(0),
        pace: Pace::default(),
    });
    drop(shared.runtime.spawn(accept::accept(shared.clone())));
    let transport = Transport { _end: Arc::new(End(shared.clone())), shared };
    transport.set_members(members);
    Ok((transport, Inboxes { consensus: consensus.1, flows: flows.1, control: control.1 }))
}

impl Transport {
    /// Sends without an answer; what cannot be sent (peer away, queue full) is dropped and counted. Order within one
    /// (peer, channel) holds while the connection lives.
    pub fn tell(&self, to: u8, channel: Channel, payload: Vec<u8>) {
        match self.shared.peer(to) {
            Some(peer) => send::tell(&peer, channel, payload),
            None => tracing::debug!(to, ?channel, "nothing is told to who is no member"),
        }
    }

    /// Sends and awaits the answer of the peer's handler.
    ///
    /// # Errors
    /// [`RequestError`], within the timeout; at once if the peer is away.
    pub async fn request(
        &self,
        to: u8,
        channel: Channel,
        payload: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, RequestError> {
        let peer = self.shared.peer(to).ok_or(RequestError::Unknown(to))?;
        send::request(&peer, channel, payload, timeout).await
    }

    /// Peers to which a connection stands at present, in order.
    pub fn connected(&self) -> Vec<u8> {
        let peers = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.values().filter(|peer| peer.connection().is_some()).map(|peer| peer.id).collect()
    }

    /// Changes who the members are while running: connections to those that are gone end, new ones are dialled, and one
    /// whose address changed is dialled there next time. This node's own entry is passed over.
    pub fn set_members(&self, members: Vec<(u8, SocketAddr)>) {
        let mut members: BTreeMap<u8, SocketAddr> = members.into_iter().collect();
        members.remove(&self.shared.own.node);
        let mut peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|id, peer| match members.remove(id) {
            Some(address) => {
                peer.set_address(address);
                true
            }
            None => {
                peer.retire(code::NOT_A_MEMBER, b"no member any more");
                false
            }
        });
        peers.extend(members.into_iter().map(|(id, address)| (id, self.begin(id, address))));
    }

    /// Makes a peer and what works for it.
    fn begin(&self, id: u8, address: SocketAddr) -> Arc<Peer> {
        let shared = &self.shared;
        let [consensus, flows, control] = Channel::ALL.map(|_| Lane::new());
        let breaker = shared.breakers.breaker(format!("node {id}'s agent"), BREAKER);
        let peer = Peer::new(shared.own.node, id, address, [consensus.0, flows.0, control.0], breaker);
        let drains = Channel::ALL.into_iter().zip([consensus.1, flows.1, control.1]);
        let drains = drains.map(|(channel, waiting)| send::drain(peer.clone(), channel, waiting));
        let drains: Vec<_> = drains.map(|drain| shared.runtime.spawn(drain).abort_handle()).collect();
        let dial = shared.runtime.spawn(dial::keep(shared.clone(), peer.clone())).abort_handle();
        peer.own_tasks(drains.into_iter().chain([dial]));
        peer
    }

    /// Takes a renewed certificate, or other authorities, from the next connection on; those that stand live on.
    ///
    /// # Errors
    /// The identity is another node's or cluster's, or cannot be used; the one in use stays.
    pub fn set_identity(&self, identity: Identity) -> Result<(), StartError> {
        let own = self.shared.own;
        if identity.name.node != own.node {
            return Err(StartError::NotMine { certificate: identity.name.node, own: own.node });
        }
        if identity.name.cluster != own.cluster {
            return Err(StartError::Cluster { certificate: identity.name.cluster, own: own.cluster });
        }
        identity.tell_of_validity();
        let configs = tls::configs(&identity, REQUEST_STREAMS)?;
        self.shared.endpoint.set_server_config(Some(configs.server));
        *self.shared.client.write().unwrap_or_else(PoisonError::into_inner) = configs.client;
        Ok(())
    }

    /// Reads the files of certificates anew and takes what they hold, as [`Self::set_identity`] does. What comes of it is
    /// logged: an agent whose files are spoilt goes on by what it had.
    pub fn renew(&self, cluster: &Cluster) {
        let renewed = match Identity::load(cluster) {
            Ok(Some(identity)) => self.set_identity(identity).map_err(anyhow::Error::new),
            Ok(None) => return,
            Err(error) => Err(error.into()),
        };
        match renewed {
            Ok(()) => tracing::info!("certificate reread"),
            Err(error) => tracing::error!("the certificate is not taken; what was in use stays: {error:#}"),
        }
    }

    /// Ends all connections and waits until the peers were told, so that they need not find out by silence. The
    /// transport is of no use after that. Call it in a timeout: a peer that is dead is waited for a little.
    pub async fn close(&self) {
        self.shared.end();
        self.shared.endpoint.wait_idle().await;
    }

    /// The address that is listened at.
    pub fn local_address(&self) -> SocketAddr {
        self.shared.address
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        let peers = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        Counters {
            peers: peers.iter().map(|(&id, peer)| (id, peer.counters())).collect(),
            strangers: self.shared.strangers.load(Relaxed),
            crowded: self.shared.crowded.load(Relaxed),
        }
    }
}
