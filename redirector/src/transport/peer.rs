//! One peer: the connections to it, what waits to be sent, and what was counted.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Connection, VarInt};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::counters::{PeerCounters, Tally};
use super::frame::{self, Kind};
use super::notice::Pace;
use super::send::{Lane, Whole};
use super::{Channel, code};
use crate::breaker::Breaker;

/// How long a connection that has a successor is read from.
const GRACE: Duration = Duration::from_secs(5);

/// A peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: u8,
    own: u8,
    address: Mutex<SocketAddr>,
    links: Mutex<Links>,
    /// The connection that is sent over.
    current: watch::Sender<Option<Connection>>,
    pub(super) lanes: [Lane; 3],
    pub(super) tally: Tally,
    /// Stands before dialling it.
    pub(super) breaker: Arc<Breaker>,
    /// Lines about connections that were not made, were lost, or brought bad frames.
    pub(super) pace: Pace,
}

/// What stands between the two.
#[derive(Debug, Default)]
struct Links {
    /// The last one is sent over, all are read from.
    standing: Vec<Connection>,
    tasks: Vec<AbortHandle>,
    retired: bool,
}

impl Peer {
    pub(super) fn new(own: u8, id: u8, address: SocketAddr, lanes: [Lane; 3], breaker: Arc<Breaker>) -> Arc<Self> {
        Arc::new(Self {
            id,
            own,
            address: Mutex::new(address),
            links: Mutex::default(),
            current: watch::Sender::new(None),
            lanes,
            tally: Tally::default(),
            breaker,
            pace: Pace::default(),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Dials go there from now on.
    pub(super) fn set_address(&self, address: SocketAddr) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }

    pub(super) fn lane(&self, channel: Channel) -> &Lane {
        &self.lanes[usize::from(channel.byte())]
    }

    /// Whether this node dials at once and the peer a little later, so that seldom both do.
    pub(super) fn goes_first(&self) -> bool {
        self.own < self.id
    }

    /// The connection to send over.
    pub(super) fn connection(&self) -> Option<Connection> {
        self.current.borrow().clone()
    }

    /// Tells whenever that is another one.
    pub(super) fn watch(&self) -> watch::Receiver<Option<Connection>> {
        self.current.subscribe()
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new connection; none if the peer is no member any more. What it gives back are connections to which
    /// [`farewell`] is to be said.
    ///
    /// A peer that restarted leaves a connection behind which only time shows to be dead, so the newest is sent over.
    /// When both ends dialled at once, each may hold another one for the newest: the node of the lower id then ends all
    /// but its own choice, and nobody else ends any.
    pub(super) fn adopt(&self, connection: &Connection) -> Option<Vec<Connection>> {
        let mut links = self.links();
        if links.retired {
            connection.close(code::NOT_A_MEMBER, b"no member any more");
            return None;
        }
        let superseded = if self.goes_first() { links.standing.clone() } else { Vec::new() };
        links.standing.push(connection.clone());
        Tally::one(&self.tally.connections);
        self.current.send_replace(Some(connection.clone()));
        Some(superseded)
    }

    /// Sends over any other connection rather than this one.
    pub(super) fn avoid(&self, connection: &Connection) {
        let mut links = self.links();
        let of = |standing: &Connection| standing.stable_id() == connection.stable_id();
        if let Some(place) = links.standing.iter().position(of) {
            links.standing[..=place].rotate_right(1);
            self.choose(&links);
        }
    }

    /// Forgets a connection that has ended.
    pub(super) fn leave(&self, connection: &Connection) {
        let mut links = self.links();
        links.standing.retain(|standing| standing.stable_id() != connection.stable_id());
        self.choose(&links);
    }

    /// The last one that stands is sent over.
    fn choose(&self, links: &Links) {
        let id = |connection: Option<&Connection>| connection.map(Connection::stable_id);
        let last = links.standing.last();
        let same = id(self.current.borrow().as_ref()) == id(last);
        if !same {
            self.current.send_replace(last.cloned());
        }
    }

    /// Has tasks end with the peer.
    pub(super) fn own_tasks(&self, tasks: impl IntoIterator<Item = AbortHandle>) {
        let mut links = self.links();
        match links.retired {
            true => tasks.into_iter().for_each(|task| task.abort()),
            false => links.tasks.extend(tasks),
        }
    }

    /// Ends everything with the peer, for good.
    pub(super) fn retire(&self, code: VarInt, reason: &[u8]) {
        let mut links = self.links();
        links.retired = true;
        links.tasks.drain(..).for_each(|task| task.abort());
        links.standing.drain(..).for_each(|connection| connection.close(code, reason));
        self.current.send_replace(None);
    }

    pub(super) fn counters(&self) -> PeerCounters {
        self.tally.read(self.connection().map(|connection| connection.rtt()))
    }
}

/// Ends a connection that has a successor, so that nothing is lost which is under way on it: the peer is asked to send
/// over the other, and given time.
pub(super) async fn farewell(connection: Connection) {
    if let (Ok(header), Ok(stream)) =
        (frame::header(Channel::Control, Kind::Farewell, &[]), connection.open_uni().await)
    {
        // Where this fails the connection has ended already.
        let _ = Whole::new(stream).write(&header, &[]).await;
    }
    tokio::time::sleep(GRACE).await;
    connection.close(code::SUPERSEDED, b"there is a newer connection");
}
