//! A node: the compiled program, its pinned maps, and an agent's transport and replication beside them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::Ebpf;
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use redirector::breaker::Breakers;
use redirector::config::{Config, IdentityFiles, PortRange};
use redirector::dataplane::maps::Maps;
use redirector::dataplane::memory::MemoryTables;
use redirector::dataplane::{batch, install, load};
use redirector::replication::{self, Replication, Settings, View};
use redirector::transport::{self, Identity, Incoming, Transport};
use redirector_ebpf::tables::names::kind;
use redirector_ebpf::tables::path::RESOLVED;
use redirector_ebpf::tables::{Pool, Row};
use suite::cluster::{self, Between};
use suite::node;
use tokio::sync::mpsc;

/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Gives this thread, and those that it starts, a network with the two ports that the configuration names, a loopback
/// interface, and a BPF file system. All go with the thread.
pub(crate) fn namespaces() -> Result<()> {
    let failed = || std::io::Error::last_os_error();
    // SAFETY: the calls touch this thread's namespaces only, and the strings are ended by zeros.
    unsafe {
        ensure!(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) == 0, "unshare: {}", failed());
        let none = c"none".as_ptr();
        let private = libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, std::ptr::null());
        ensure!(private == 0, "make mounts private: {}", failed());
        let mounted = libc::mount(c"bpf".as_ptr(), c"/sys/fs/bpf".as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null());
        ensure!(mounted == 0, "mount a BPF file system: {}", failed());
    }
    let pair = ["link", "add", "eth0", "index", "2", "type", "veth", "peer", "name", "eth1", "index", "3"];
    for arguments in [&pair[..], &["link", "set", "lo", "up"]] {
        let made = Command::new("ip").args(arguments).status().context("`ip` of iproute2 is needed")?;
        ensure!(made.success(), "ip {arguments:?}");
    }
    Ok(())
}

/// The configuration of a node of so many. Node 2 has more to name and gives other numbers to the same things.
fn configuration(id: u8, nodes: u8) -> Config {
    let mut config = cluster::configuration(id, nodes, Between::Mac);
    config.tables.flows4 = 1 << 17;
    if id == 2 {
        let mut pool = config.pools[0].clone();
        pool.name = "before".to_owned();
        config.pools.insert(0, pool);
        let mut service = config.services[0].clone();
        (service.name, service.ports) = ("before".to_owned(), vec![PortRange { first: 1, last: 1 }]);
        config.services.insert(0, service);
    }
    config
}

pub(crate) struct Node {
    id: u8,
    nodes: u8,
    ebpf: Ebpf,
    pub(crate) maps: Maps,
    directory: PathBuf,
    host: MemoryTables,
    pub(crate) transport: Transport,
    pub(crate) replication: Replication,
}

impl Node {
    /// A node of two whose maps, if it had any, are lost. Batches to it pass through a tap that damages as many as are told.
    pub(crate) fn start(id: u8, identity: Identity, damages: &Arc<AtomicUsize>) -> Result<Self> {
        Self::start_of(2, id, identity, damages)
    }

    /// The same of more nodes, all of which are to have all flows; node 1 owns every slot.
    pub(crate) fn start_of(nodes: u8, id: u8, identity: Identity, damages: &Arc<AtomicUsize>) -> Result<Self> {
        let pins = Path::new("/sys/fs/bpf").join(format!("n{id}"));
        load::unload(&pins)?;
        let directory = load::prepare(&pins)?;
        let config = configuration(id, nodes);
        let mut ebpf = load::open(&directory, &config, 0)?;
        load::data_plane(&mut ebpf, 0)?;
        let mut host = node::tables(&config);
        for slot in &mut host.image.slots {
            let ranks = std::array::from_fn(|rank| if rank < usize::from(nodes) { rank as u8 + 1 } else { 0 });
            (slot.ranks, slot.version) = (ranks, 1);
        }
        let mut maps = Maps::open(&directory)?;
        install::install(&mut maps, &host.image)?;
        for (&id, &word) in host.neighbours.borrow().iter() {
            install::set_neighbour(&mut maps, id, word & !RESOLVED, host.image.neighbours[&id].peer)?;
        }
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (transport, inboxes) = transport::start(identity, id, listen, Vec::new(), &Breakers::default())?;
        let inbox = tap(inboxes.flows, damages.clone());
        let settings = Settings { flush: Duration::from_millis(50), pace: 50_000 };
        let replication = replication::start(settings, &directory, transport.clone(), inbox)?;
        let node = Self { id, nodes, ebpf, maps, directory, host, transport, replication };
        node.put_view_in_force();
        Ok(node)
    }

    fn put_view_in_force(&self) {
        let image = &self.host.image;
        let to_all_ranks = self.nodes > 2;
        self.replication.set_view(View { slots: image.slots.clone(), alive: image.alive, to_all_ranks });
    }

    /// Introduces two nodes to each other.
    pub(crate) fn meet(&self, other: &Self) {
        Self::all_meet(&[self, other]);
    }

    /// Introduces nodes to each other.
    pub(crate) fn all_meet(nodes: &[&Self]) {
        let places: Vec<_> = nodes.iter().map(|node| (node.id, node.transport.local_address())).collect();
        nodes.iter().for_each(|node| node.transport.set_members(places.clone()));
    }

    /// Ends the agent and takes the maps away.
    pub(crate) fn lose_everything(self) -> Result<()> {
        self.replication.stop();
        drop(self.transport);
        let pins = self.directory.parent().context("pins are in a directory")?;
        load::unload(pins)?;
        Ok(())
    }

    /// Sends a frame through the program: what it returns, and the frame afterwards.
    pub(crate) fn run(&self, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let program: &Xdp = self.ebpf.program("redirector").context("it was loaded")?.try_into()?;
        let mut output = vec![0; 2_048];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut output), ..TestRunOptions::default() };
        let result = program.test_run(options)?;
        output.truncate(result.data_size_out as usize);
        Ok((result.return_value, output))
    }

    /// Makes all new flows of the pool go to one backend.
    pub(crate) fn send_new_flows_to(&mut self, backend: &str) -> Result<()> {
        let backend = node::backend(&self.host, backend);
        let id = node::pool(&self.host, "pool");
        let pool = self.maps.pools.get(&u32::from(id), 0)?;
        let rows = vec![Row::new(backend, backend, false); pool.rows as usize];
        self.maps.pool_tables.set(pool.table.into(), &batch::new_array(&rows, "POOL_TABLES")?, 0)?;
        self.maps.pools.set(u32::from(id), Pool { old_until: 0, ..pool }, 0)?;
        Ok(())
    }

    /// Another node is dead.
    pub(crate) fn bury(&mut self, other: u8) -> Result<()> {
        self.host.image.alive.set(other, false);
        self.maps.alive.set(0, self.host.image.alive, 0)?;
        self.put_view_in_force();
        Ok(())
    }

    /// The proven flows: the client's address and port, and what they are on and doing.
    pub(crate) fn flows(&self) -> Result<BTreeMap<SocketAddr, (String, String, u8)>> {
        let registry = self.maps.registry()?;
        let key = self.host.image.node.hash_key;
        let proven = self.maps.flows.iter(&key).filter(|flow| flow.entry.proven());
        let name = |kind, id: u16| registry.name(kind, u32::from(id)).unwrap_or("unknown").to_owned();
        let flow = |flow: redirector::dataplane::flows::Flow| {
            let backend = name(kind::BACKEND, flow.entry.backend());
            let service = name(kind::SERVICE, flow.record.service);
            (flow.source(), (service, backend, flow.entry.state_bits()))
        };
        Ok(proven.map(flow).collect())
    }
}

/// Passes on what comes in, with a byte changed in as many batches that hold flows as are told.
fn tap(mut from: mpsc::Receiver<Incoming>, damages: Arc<AtomicUsize>) -> mpsc::Receiver<Incoming> {
    let (to, tapped) = mpsc::channel(16);
    drop(tokio::spawn(async move {
        while let Some(mut incoming) = from.recv().await {
            let due = |left: usize| left.checked_sub(1);
            if incoming.payload.len() > 500 && damages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_ok() {
                let middle = incoming.payload.len() / 2;
                incoming.payload[middle] ^= 0x10;
            }
            if to.send(incoming).await.is_err() {
                return;
            }
        }
    }));
    tapped
}

/// The certificates of a cluster, in a directory that goes with the test.
pub(crate) struct Authority(PathBuf);

impl Authority {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("redirector-replication-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        redirector::pki::init(&directory, 7, false)?;
        Ok(Self(directory))
    }

    pub(crate) fn identity(&self, node: u8) -> Result<Identity> {
        let out = self.0.join(format!("n{node}"));
        std::fs::create_dir_all(&out)?;
        let issued = redirector::pki::issue(&self.0, node.into(), &out, 30)?;
        let ca = self.0.join("ca.crt");
        Ok(Identity::read(&IdentityFiles { ca, certificate: issued.certificate, private_key: issued.key })?)
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        // What is left behind does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Waits until something holds; what is awaited is named in case it never does.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        if Instant::now() > deadline {
            bail!("in vain waited {PATIENCE:?} until {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
