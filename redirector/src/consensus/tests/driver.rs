//! Three nodes with real sockets, threads and files. Waits have bounds that only a fault reaches.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::timeout;

use super::net::{genesis, text};
use crate::breaker::{Breakers, Policy};
use crate::config::IdentityFiles;
use crate::consensus::driver::{self, Handle, ProposeError, Settings};
use crate::consensus::machine::{Config, NotTaken, RecoverError, Role};
use crate::consensus::planner::{Patience, Report};
use crate::consensus::state::{Command, MemberState, Refusal};
use crate::pki;
use crate::transport::{self, Identity, Transport};

const PATIENCE: Duration = Duration::from_secs(90);

struct Cluster {
    scratch: PathBuf,
    nodes: BTreeMap<u8, (Handle, Transport)>,
    starts: u128,
    /// Who is a witness.
    witness: Option<u8>,
}

impl Cluster {
    async fn of(nodes: u8, witness: Option<u8>) -> Self {
        let name = format!("redirector-consensus-{}-{}", std::process::id(), witness.unwrap_or(0));
        let scratch = std::env::temp_dir().join(name);
        std::fs::create_dir_all(scratch.join("ca")).unwrap();
        pki::init(&scratch.join("ca"), 7, false).unwrap();
        let mut cluster = Self { scratch, nodes: BTreeMap::new(), starts: 0, witness };
        for id in 1..=nodes {
            cluster.start(id, nodes).await;
        }
        cluster.nodes[&1].0.bootstrap(Box::new(|disk| genesis(1, disk))).await.unwrap();
        cluster
    }

    async fn start(&mut self, id: u8, nodes: u8) {
        self.starts += 1;
        let out = self.scratch.join(format!("start{}", self.starts));
        std::fs::create_dir_all(&out).unwrap();
        let issued = pki::issue(&self.scratch.join("ca"), id.into(), &out, 30).unwrap();
        let ca = self.scratch.join("ca/ca.crt");
        let files = IdentityFiles { ca, certificate: issued.certificate, private_key: issued.key };
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let identity = Identity::read(&files).unwrap();
        let breakers = Breakers::default();
        let time = Duration::from_secs(1);
        let policy = Policy { failures: 3, window: time, timeout: time, patience: time };
        let (transport, inboxes) = transport::start(identity, id, listen, Vec::new(), &breakers).unwrap();
        let peers: Vec<u8> = (1..=nodes).filter(|&peer| peer != id).collect();
        let machine = Config {
            cluster: 7,
            node: id,
            peers: peers.clone(),
            address: transport.local_address().to_string(),
            weight: 1,
            witness: self.witness == Some(id),
            incarnation: 1,
            seed: self.starts << 64 | u128::from(std::process::id()),
            snapshot_every: 100,
        };
        let file = self.scratch.join(format!("node{id}.redb"));
        let welcome = peers.into_iter().collect();
        let breaker = breakers.breaker("disk", policy);
        let settings = Settings { machine, file, breaker, patience: Patience::default(), welcome, alone: None };
        let handle = driver::start(settings, transport.clone(), inboxes.consensus).unwrap();
        self.nodes.insert(id, (handle, transport));
        let members: Vec<_> = self.nodes.iter().map(|(&id, (_, transport))| (id, transport.local_address())).collect();
        for (&own, (_, transport)) in &self.nodes {
            transport.set_members(members.iter().copied().filter(|member| member.0 != own).collect());
        }
    }

    async fn end(&mut self, id: u8) {
        let (handle, transport) = self.nodes.remove(&id).unwrap();
        handle.end().await;
        transport.close().await;
    }

    /// Waits until something holds of every node, each of which reports that it is done with everything.
    async fn until(&self, what: &str, holds: impl Fn(&Handle) -> bool) {
        let waited = timeout(PATIENCE, async {
            while !self.nodes.values().all(|(handle, _)| holds(handle)) {
                for (handle, _) in self.nodes.values() {
                    let version = handle.state().borrow().version;
                    let report = Report { incarnation: 1, installed: version, resynced: version, ..Report::default() };
                    handle.report(report);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let shown = || self.nodes.values().map(|(handle, _)| handle.overview().borrow().clone()).collect::<Vec<_>>();
        assert!(waited.await.is_ok(), "{what}: {:#?}", shown());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_join_agree_lose_one_and_take_it_back() {
    let mut cluster = Cluster::of(3, None).await;
    cluster
        .until("everyone votes, serves and owns slots", |handle| {
            let state = handle.state().borrow().clone();
            let overview = handle.overview().borrow().clone();
            let is_done = |id: &u8| state.members.get(id).is_some_and(|one| one.state() == MemberState::Up);
            overview.status.peers.iter().filter(|peer| peer.votes).count() == 3
                && [1, 2, 3].iter().all(is_done)
                && state.has_two_owners_each()
        })
        .await;
    for (id, (handle, _)) in &cluster.nodes {
        let done = handle.propose(text(&format!("from node {id}"))).await.unwrap();
        assert!(done.durable_on >= 2 && done.of == 3, "{done:?}");
    }
    let version = cluster.nodes[&1].0.state().borrow().specification.version;
    let stale = Command::Apply { text: "stale".to_owned(), expect: Some(1), pools: BTreeMap::new() };
    let refused = cluster.nodes[&2].0.propose(stale).await;
    assert!(matches!(refused, Err(ProposeError::Refused(Refusal::Version { expected: 1, .. }))), "{refused:?}");

    let leader = cluster.nodes[&1].0.overview().borrow().status.leader.unwrap();
    cluster.end(leader).await;
    let other = *cluster.nodes.keys().next().unwrap();
    let after = cluster.nodes[&other].0.propose(text("without the old leader")).await.unwrap();
    assert!(after.version > version && (after.durable_on, after.of) == (2, 3));
    cluster.start(leader, 3).await;
    cluster.until("the old leader follows", |handle| handle.state().borrow().version >= after.index).await;
    assert_eq!(cluster.nodes[&leader].0.overview().borrow().counters.reborn, 0);

    let last = *cluster.nodes.keys().next().unwrap();
    for id in cluster.nodes.keys().copied().filter(|&id| id != last).collect::<Vec<_>>() {
        cluster.end(id).await;
    }
    let (handle, _) = &cluster.nodes[&last];
    let mut overview = handle.overview();
    timeout(PATIENCE, overview.wait_for(|overview| overview.status.role != Role::Leader)).await.unwrap().unwrap();
    let refused = handle.propose(text("alone")).await;
    assert_eq!(refused, Err(ProposeError::NotTaken(NotTaken::NoQuorum)));
    cluster.end(last).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_makes_a_majority_and_a_lost_one_is_recovered_from() {
    let mut cluster = Cluster::of(3, Some(3)).await;
    let is_whole = |handle: &Handle| {
        let state = handle.state().borrow().clone();
        let member = |id, is: MemberState| {
            let votes = |one: &crate::consensus::state::Member| one.seat.is_some_and(|seat| seat.votes);
            state.members.get(&id).is_some_and(|one| one.state() == is && votes(one))
        };
        let leader = handle.overview().borrow().status.leader;
        member(1, MemberState::Up)
            && member(2, MemberState::Up)
            && member(3, MemberState::Witness)
            && state.has_two_owners_each()
            && leader.is_some_and(|leader| leader != 3)
    };
    cluster.until("two nodes and a witness, and a node leads", is_whole).await;
    cluster.end(2).await;
    let handle = |cluster: &Cluster| cluster.nodes[&1].0.clone();
    let mut overview = handle(&cluster).overview();
    let leads_on = |overview: &driver::Overview| overview.status.leader.is_some_and(|leader| leader != 2);
    timeout(PATIENCE, overview.wait_for(leads_on)).await.unwrap().unwrap();
    let done = cluster.nodes[&1].0.propose(text("with the witness")).await.unwrap();
    assert_eq!((done.durable_on, done.of), (2, 3));
    // On a busy machine the witness may answer late, and is then said to be silent.
    let refused = timeout(PATIENCE, async {
        while !matches!(handle(&cluster).recover([2].into()).await, Err(RecoverError::Majority(there)) if there == [1, 3])
        {
        }
    });
    assert!(refused.await.is_ok(), "it was never refused for the majority that is there");

    cluster.end(3).await;
    let (handle, _) = &cluster.nodes[&1];
    let mut overview = handle.overview();
    timeout(PATIENCE, overview.wait_for(|overview| !overview.status.has_quorum)).await.unwrap().unwrap();
    handle.recover([2, 3].into()).await.unwrap();
    let done = handle.propose(text("alone")).await.unwrap();
    assert_eq!((done.durable_on, done.of), (1, 1));
    let before = handle.state().borrow().specification.version;

    // Both come back with the files of before.
    cluster.start(2, 3).await;
    cluster.start(3, 3).await;
    cluster.until("both are members again", is_whole).await;
    for id in [2, 3] {
        let (handle, _) = &cluster.nodes[&id];
        assert_eq!(handle.overview().borrow().counters.given_up, 1);
        assert_eq!(handle.state().borrow().specification.version, before);
    }
    let done = cluster.nodes[&2].0.propose(text("together")).await.unwrap();
    assert_eq!(done.of, 3);
}
