//! The compiled program with the maps of a host's tables, in namespaces of its own that go with the test.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use redirector::config::Config;
use redirector::dataplane::address::{address, mapped};
use redirector::dataplane::flows::read_event;
use redirector::dataplane::image::Image;
use redirector::dataplane::install::{Settled, Sweep};
use redirector::dataplane::liveness::{LivenessMaps, LivenessTables as _};
use redirector::dataplane::memory::MemoryTables;
use redirector::dataplane::paths::PathMaps;
use redirector::dataplane::registry::Registry;
use redirector::dataplane::{batch, install, load, maps::Maps};
use redirector::paths::signals::Counts;
use redirector_ebpf::abi::PORTS;
use redirector_ebpf::decap::Settings;
use redirector_ebpf::hash::HashKey;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::event::FlowEvent;
use redirector_ebpf::tables::liveness::link;
use redirector_ebpf::tables::path::RESOLVED;
use redirector_ebpf::tables::{Pool, Refusal};

/// A loaded program and its maps.
pub(crate) struct Kernel {
    ebpf: Ebpf,
    maps: Maps,
    liveness: LivenessMaps,
    paths: PathMaps,
    hash_key: HashKey,
}

/// Where maps are pinned: a file system of this thread's mount namespace, so that nothing is left, however it ends.
const PINS: &str = "/sys/fs/bpf";

/// Gives this thread a network with the two ports that the configuration names, and a BPF file system.
fn namespaces() {
    // SAFETY: both calls touch this thread's namespaces only, and the strings are ended by zeros.
    unsafe {
        assert_eq!(
            libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS),
            0,
            "unshare: {}",
            std::io::Error::last_os_error()
        );
        let none = c"none".as_ptr();
        let private = libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, std::ptr::null());
        assert_eq!(private, 0, "make mounts private: {}", std::io::Error::last_os_error());
        let mounted = libc::mount(c"bpf".as_ptr(), c"/sys/fs/bpf".as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null());
        assert_eq!(mounted, 0, "mount a BPF file system: {}", std::io::Error::last_os_error());
    }
    let pair = ["link", "add", "eth0", "index", "2", "type", "veth", "peer", "name", "eth1", "index", "3"];
    let made = Command::new("ip").args(pair).status().expect("`ip` of iproute2 is needed");
    assert!(made.success(), "make the two ports");
}

/// A new directory of pins, and the one in it for this version's maps, in this thread's own namespaces.
fn pins() -> (PathBuf, PathBuf) {
    thread_local! {
        static NAMESPACES: () = namespaces();
    }
    NAMESPACES.with(|()| ());
    let pins = Path::new(PINS).join("differential");
    let directory = load::prepare(&pins).unwrap_or_else(|error| panic!("{error}"));
    (pins, directory)
}

/// Sends a frame through a program: what it returns, and the frame afterwards.
fn run(ebpf: &Ebpf, name: &str, frame: &[u8]) -> (u32, Vec<u8>) {
    let program: &Xdp = ebpf.program(name).expect("it was loaded").try_into().expect("it is an XDP program");
    let mut output = vec![0; 8_192];
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut output), ..TestRunOptions::default() };
    let result = program.test_run(options).unwrap_or_else(|error| panic!("run {} bytes: {error:?}", frame.len()));
    output.truncate(result.data_size_out as usize);
    (result.return_value, output)
}

impl Kernel {
    /// Loads the program for port 0 and makes its maps hold what the host's tables hold.
    pub(crate) fn load(config: &Config, host: &MemoryTables) -> Self {
        let (pins, directory) = pins();
        let mut ebpf = load::open(&directory, config, 0).unwrap_or_else(|error| panic!("{error:?}"));
        load::data_plane(&mut ebpf, 0).unwrap_or_else(|error| panic!("{error:?}"));
        let mut maps = Maps::open(&directory).unwrap_or_else(|error| panic!("{error:?}"));
        let liveness = LivenessMaps::open(&directory).unwrap_or_else(|error| panic!("{error:?}"));
        let paths = PathMaps::open(&directory).unwrap_or_else(|error| panic!("{error:?}"));
        std::fs::remove_dir_all(&pins).expect("the maps live on without their pins");
        install::install(&mut maps, &host.image).unwrap_or_else(|error| panic!("{error:?}"));
        let mut kernel = Self { ebpf, maps, liveness, paths, hash_key: host.image.node.hash_key };
        kernel.bend(host);
        kernel
    }

    /// What a test changed in the host's tables besides the image.
    fn bend(&mut self, host: &MemoryTables) {
        let maps = &mut self.maps;
        for (&id, &word) in host.neighbours.borrow().iter() {
            let peer = host.image.neighbours[&id].peer;
            install::set_neighbour(maps, id, word & !RESOLVED, peer).expect("set a neighbour");
        }
        for (mac, mark) in &host.peer_macs {
            maps.peer_macs.insert(mac, mark.0, 0).expect("set a mark");
        }
        for (vip, interface) in &host.held {
            let set = match vip {
                IpAddr::V4(_) => maps.held4.insert(address(*vip).words[0], interface, 0),
                IpAddr::V6(_) => maps.held6.insert(address(*vip), interface, 0),
            };
            set.expect("hold a VIP");
        }
        for (path, word) in &host.paths_off {
            maps.path_alive.set(u32::from(*path), word, 0).expect("clear a path's alive bit");
        }
        for (&id, pool) in &host.pools {
            let rows = batch::new_array(&host.tables[&pool.table], "POOL_TABLES").expect("make a table");
            let table = maps.pools.get(&u32::from(id), 0).expect("the pool was installed").table;
            maps.pool_tables.set(table.into(), &rows, 0).expect("put a table in place");
            maps.pools.set(u32::from(id), Pool { table, ..*pool }, 0).expect("set a pool");
        }
        self.paths.set_rules(&host.leg_rules).expect("set the rules of paths");
        self.watch(host);
    }

    /// What beats go by.
    fn watch(&mut self, host: &MemoryTables) {
        self.liveness.set_watch(&host.watch).expect("set the rules");
        let (said, told) = (&host.condition, self.liveness.condition());
        told.vitals.store(said.vitals.load());
        told.applied.store(said.applied.load());
        told.slots.store(said.slots.load());
        told.pools.store(said.pools.load());
        for (node, port) in (0..=u8::MAX).flat_map(|node| (0..PORTS as u8).map(move |port| (node, port))) {
            let (sent, kept) = (&host.sent[link(node, port) as usize], self.liveness.sent(node, port));
            kept.nonce_base.store(sent.nonce_base.load());
            kept.sequence.store(sent.sequence.load());
        }
    }

    /// The maps of liveness.
    pub(crate) fn liveness(&self) -> &LivenessMaps {
        &self.liveness
    }

    /// Sends a frame through the program: what it returns, and the frame afterwards.
    pub(crate) fn run(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        run(&self.ebpf, "redirector", frame)
    }

    /// Makes the maps hold another image.
    pub(crate) fn install(&mut self, image: &Image) {
        install::install(&mut self.maps, image).unwrap_or_else(|error| panic!("{error:?}"));
    }

    /// What is named.
    pub(crate) fn registry(&self) -> Registry {
        self.maps.registry().unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// Tidies up behind changes, as the agent does now and then.
    pub(crate) fn settle(&mut self, image: &mut Image) -> Settled {
        let mut sweep = Sweep::default();
        (0..Sweep::PARTS).for_each(|_| sweep.step(&self.maps, image));
        install::settle(&mut self.maps, image, &mut sweep).unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// How often a reason was counted, on all CPUs.
    pub(crate) fn counted(&self, reason: Reason) -> u64 {
        self.maps.reasons.get(&(reason as u32), 0).expect("read a counter").iter().sum()
    }

    /// Refused packets by service, class and reason.
    pub(crate) fn refused(&self) -> Vec<((u16, u8, Refusal), u64)> {
        let refused = self.maps.refused().expect("read the counters").into_iter();
        let mut refused: Vec<_> = refused.map(|(key, count)| (key.parts(), count)).collect();
        refused.sort_unstable_by_key(|(key, _)| (key.0, key.1, key.2 as u8));
        refused
    }

    /// What flows have said of the path of this rank to a backend.
    pub(crate) fn signals(&self, backend: u16, rank: u8) -> Counts {
        self.paths.signals(backend, rank)
    }

    /// What was told of flows since it was last asked.
    pub(crate) fn told(&mut self) -> Vec<FlowEvent> {
        let map = self.ebpf.map_mut("FLOW_EVENTS").expect("a map");
        let mut ring = RingBuf::try_from(map).expect("a ring");
        std::iter::from_fn(|| ring.next().and_then(|bytes| read_event(&bytes))).collect()
    }

    /// The recorded flows: what of their entries does not depend on the clock.
    pub(crate) fn flows(&self) -> Vec<(bool, u32, u16, bool)> {
        let flows = self.maps.flows.iter(&self.hash_key);
        let mut flows: Vec<_> = flows.map(|flow| super::fields((flow.v6, flow.entry))).collect();
        flows.sort_unstable();
        flows
    }
}

/// The compiled decap program.
pub(crate) struct Decap {
    ebpf: Ebpf,
    reasons: PerCpuArray<MapData, u64>,
}

impl Decap {
    /// Loads the program for a backend that is this, with these sources of tunnels and these VIPs.
    pub(crate) fn load(settings: &Settings, sources: &[IpAddr], vips: &[IpAddr]) -> Self {
        let (pins, directory) = pins();
        let mut ebpf = load::open_decap(&directory).unwrap_or_else(|error| panic!("{error:?}"));
        std::fs::remove_dir_all(&pins).expect("the maps live on without their pins");
        load::program(&mut ebpf, "redirector_decap").unwrap_or_else(|error| panic!("{error:?}"));
        for (name, addresses) in [("DECAP_SOURCES", sources), ("DECAP_VIPS", vips)] {
            let mut map = LpmTrie::<_, [u32; 4], u32>::try_from(ebpf.map_mut(name).expect("a map")).expect("a trie");
            for ip in addresses {
                map.insert(&Key::new(128, mapped(*ip).words), 1, 0).expect("insert an address");
            }
        }
        let mut map = Array::<_, Settings>::try_from(ebpf.map_mut("DECAP").expect("a map")).expect("an array");
        map.set(0, settings, 0).expect("say who it is");
        let reasons = ebpf.take_map("REASONS").expect("a map").try_into().expect("a per-CPU array");
        Self { ebpf, reasons }
    }

    /// Sends a frame through the program: what it returns, and the frame afterwards.
    pub(crate) fn run(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        run(&self.ebpf, "redirector_decap", frame)
    }

    /// How often a reason was counted, on all CPUs.
    pub(crate) fn counted(&self, reason: Reason) -> u64 {
        self.reasons.get(&(reason as u32), 0).expect("read a counter").iter().sum()
    }
}
