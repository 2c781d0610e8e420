//! Real sockets on the loopback interface, real certificates. Waits have bounds that only a fault reaches.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::breaker::Breakers;
use crate::config::IdentityFiles;
use crate::pki;

mod codec;
mod conversation;
mod identities;
mod refusal;

/// Longer than anything takes that comes at all.
const PATIENCE: Duration = Duration::from_secs(90);

/// Port 0: any that is free.
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("redirector-transport-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Makes a directory inside.
    fn directory(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left behind does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A cluster's authority in a directory of its own.
struct Authority {
    scratch: Scratch,
    ca: PathBuf,
}

impl Authority {
    fn of(cluster: u32) -> Self {
        let scratch = Scratch::new();
        let ca = scratch.directory("ca");
        pki::init(&ca, cluster, false).unwrap();
        Self { scratch, ca }
    }

    /// Issues a certificate; the node believes the authorities in `believes`.
    fn files(&self, node: u8, believes: &Path) -> IdentityFiles {
        let out = self.scratch.directory("nodes");
        let issued = pki::issue(&self.ca, node.into(), &out, 30).unwrap();
        IdentityFiles { ca: believes.to_owned(), certificate: issued.certificate, private_key: issued.key }
    }

    fn identity(&self, node: u8) -> Identity {
        Identity::read(&self.files(node, &self.ca.join("ca.crt"))).unwrap()
    }

    fn node(&self, id: u8) -> TestNode {
        TestNode::of(self.identity(id))
    }
}

/// A node that listens and knows nobody yet.
struct TestNode {
    id: u8,
    transport: Transport,
    inboxes: Inboxes,
}

impl TestNode {
    fn of(identity: Identity) -> Self {
        let id = identity.name().node;
        let (transport, inboxes) = start(identity, id, ANY, Vec::new(), &Breakers::default()).unwrap();
        Self { id, transport, inboxes }
    }

    fn place(&self) -> (u8, SocketAddr) {
        (self.id, self.transport.local_address())
    }

    fn counts(&self, peer: u8) -> PeerCounters {
        self.transport.counters().peers.remove(&peer).unwrap_or_default()
    }

    fn strangers(&self) -> u64 {
        self.transport.counters().strangers
    }

    async fn knows(&self, peer: u8) {
        until("a connection", || self.transport.connected().contains(&peer)).await;
    }
}

/// Introduces all to each other and awaits their connections.
async fn introduce(nodes: &[&TestNode]) {
    let places: Vec<_> = nodes.iter().map(|node| node.place()).collect();
    nodes.iter().for_each(|node| node.transport.set_members(places.clone()));
    for node in nodes {
        for peer in nodes.iter().filter(|peer| peer.id != node.id) {
            node.knows(peer.id).await;
        }
    }
}

/// Two nodes of a new cluster that are connected.
async fn pair() -> (Authority, TestNode, TestNode) {
    let authority = Authority::of(7);
    let (one, two) = (authority.node(1), authority.node(2));
    introduce(&[&one, &two]).await;
    (authority, one, two)
}

async fn until(what: &str, mut come: impl FnMut() -> bool) {
    let start = Instant::now();
    while !come() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn next(inbox: &mut mpsc::Receiver<Incoming>) -> Incoming {
    timeout(PATIENCE, inbox.recv()).await.expect("waited in vain for a message").expect("the inbox is closed")
}

/// Counts by peer, for messages of tests.
fn shown(node: &TestNode) -> BTreeMap<u8, PeerCounters> {
    node.transport.counters().peers
}
