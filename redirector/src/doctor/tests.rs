//! Every finding has a fact that triggers it; and a host without faults triggers none.

use std::time::Duration;

use super::backend;
use super::wakeups::CpuTime;
use super::*;
use crate::config::Decap;
use crate::netlink::{AttachedMode, DefaultRoute, Routes, XdpFeatures};

fn good_host() -> Host {
    Host {
        kernel: "6.12.3-amd64".into(),
        root: true,
        cpus: 4,
        jit: Some(1),
        bpffs: vec!["/sys/fs/bpf".into()],
        memlock: None,
        realtime_us: Some(950_000),
        wakeups: Some(Wakeups { p50_us: 20, p99_us: 90, max_us: 200, realtime: true, steal_percent: 0.0 }),
    }
}

fn good_interface() -> Interface {
    Interface {
        name: "eth0".into(),
        kind: None,
        driver: Some("ice".into()),
        up: true,
        carrier: true,
        mtu: 1600,
        page: 4096,
        controller: None,
        programs: Vec::new(),
        features: Some(ALL),
        trial: None,
        queues: Some(4),
        lro: Some(false),
        gro: Some(true),
        rx_checksum: Some(true),
        tx_checksum: Some(true),
        vlan_stripping: Some(false),
        rp_filter: Some(2),
        forwarding4: Some(true),
        forwarding6: Some(true),
    }
}

const ALL: XdpFeatures =
    XdpFeatures { native: true, redirect: true, transmit: true, receive_frags: true, transmit_frags: true };

fn program(name: &str, mode: AttachedMode) -> Program {
    Program { id: 7, name: Some(name.into()), mode }
}

/// Asserts that one finding has this level and these words, and a mend unless it is good.
fn expect(findings: &[Finding], level: Level, words: &str) {
    let found: Vec<_> = findings.iter().filter(|finding| finding.says.contains(words)).collect();
    assert!(matches!(found[..], [finding] if finding.level == level), "{level:?} of {words:?}: {findings:#?}");
    assert!(level < Level::Warning || found[0].mend.is_some(), "no mend: {found:?}");
}

#[test]
fn a_good_host_is_found_good() {
    let facts = Facts { host: good_host(), interfaces: vec![good_interface()] };
    let findings = judge(&facts);
    let worst = findings.iter().map(|finding| finding.level).max();
    assert_eq!(worst, Some(Level::Note), "{findings:#?}");
    expect(&findings, Level::Note, "itself sends to a VIP are not seen");
    expect(&findings, Level::Ok, "fit for the liveness profile `extreme`");
    expect(&findings, Level::Ok, "native XDP (driver `ice`)");
}

#[test]
fn each_fault_of_the_host_is_found() {
    use Level::{Error, Note, Ok, Warning};
    let slow = Wakeups { p50_us: 60, p99_us: 40_000, max_us: 90_000, realtime: true, steal_percent: 0.1 };
    type Spoil = fn(&mut Host);
    let cases: [(Spoil, Level, &str); 17] = [
        (|host| host.root = false, Error, "not root"),
        (|host| host.kernel = "5.10.0-28".into(), Error, "timers in BPF"),
        (|host| host.kernel = "6.0.9".into(), Error, "6.0.9 is too old"),
        (|host| host.kernel = "6.1.0-18-amd64".into(), Ok, "new enough"),
        (|host| host.kernel = "mainline".into(), Note, "not understood"),
        (|host| host.jit = Some(0), Warning, "interpreted"),
        (|host| host.bpffs.clear(), Error, "not mounted"),
        (|host| (host.root, host.memlock) = (false, Some(8 << 20)), Warning, "only 8192 KiB"),
        (|host| host.memlock = Some(8 << 20), Ok, "as much as is needed"),
        (|host| host.realtime_us = Some(0), Warning, "real-time priority is refused"),
        (|host| host.wakeups.as_mut().unwrap().realtime = false, Warning, "real-time priority is refused"),
        (|host| host.wakeups = None, Note, "could not be tried"),
        (|host| host.wakeups.as_mut().unwrap().p99_us = 3_000, Ok, "liveness profile `fast`"),
        (|host| host.wakeups.as_mut().unwrap().max_us = 5_000, Ok, "liveness profile `fast`"),
        (|host| host.wakeups.as_mut().unwrap().p99_us = 20_000, Warning, "`standard` alone"),
        (|host| host.wakeups.as_mut().unwrap().max_us = 200_000, Warning, "suspected without cause"),
        (|host| host.wakeups.as_mut().unwrap().steal_percent = 9.0, Warning, "9.0 % stolen"),
    ];
    for (spoil, level, words) in cases {
        let mut host = good_host();
        spoil(&mut host);
        expect(&judge(&Facts { host, interfaces: vec![good_interface()] }), level, words);
    }
    assert!(slow.fits(Duration::from_millis(100), 3) && !slow.fits(Duration::from_millis(10), 3));
    expect(&judge(&Facts { host: good_host(), interfaces: Vec::new() }), Error, "none is up");
}

#[test]
fn each_fault_of_an_interface_is_found() {
    use Level::{Error, Note, Ok, Warning};
    const NONE: XdpFeatures =
        XdpFeatures { native: false, redirect: false, transmit: false, receive_frags: false, transmit_frags: false };
    const NO_FRAGS: XdpFeatures = XdpFeatures { receive_frags: false, transmit_frags: false, ..ALL };
    type Spoil = fn(&mut Interface);
    let cases: [(Spoil, Level, &str); 36] = [
        (|it| it.features = Some(NONE), Warning, "has no native XDP"),
        (|it| it.features = Some(XdpFeatures { redirect: false, ..ALL }), Warning, "cannot redirect"),
        (|it| it.features = Some(XdpFeatures { transmit: false, ..ALL }), Note, "only once a program is attached"),
        (|it| it.features = None, Note, "does not tell"),
        (|it| it.trial = Some(Err("Invalid argument".into())), Warning, "refused a native XDP program: Invalid"),
        (|it| (it.features, it.trial) = (None, Some(Result::Ok(()))), Ok, "native XDP works"),
        (|it| it.up = false, Error, "is switched off"),
        (|it| it.carrier = false, Warning, "no carrier"),
        (|it| it.programs = vec![program("xdp_dispatcher", AttachedMode::Native)], Error, "another XDP program"),
        (|it| it.programs = vec![program("redirector", AttachedMode::Native)], Ok, "our program"),
        (
            |it| it.controller = Some(Controller { name: "bond0".into(), kind: Some("bond".into()) }),
            Error,
            "member of the bond bond0",
        ),
        (
            |it| it.controller = Some(Controller { name: "br0".into(), kind: Some("bridge".into()) }),
            Warning,
            "port of the bridge br0",
        ),
        (|it| it.kind = Some("bond".into()), Note, "is a bond"),
        (|it| it.kind = Some("vlan".into()), Warning, "is a vlan"),
        (|it| (it.mtu, it.features) = (9000, Some(NO_FRAGS)), Error, "no more than a page holds"),
        (|it| (it.mtu, it.features) = (9000, None), Warning, "many drivers"),
        (
            |it| (it.mtu, it.features) = (9000, Some(XdpFeatures { transmit_frags: false, ..ALL })),
            Warning,
            "cannot be redirected to it",
        ),
        (|it| it.mtu = 9000, Ok, "copes"),
        (|it| (it.mtu, it.page, it.features) = (9000, 65_536, Some(NO_FRAGS)), Ok, "native XDP"),
        (|it| it.mtu = 1500, Note, "do not fit into a tunnel"),
        (|it| it.queues = Some(1), Warning, "1 receive queue for 4 CPUs"),
        (|it| it.queues = Some(2), Note, "2 receive queues for 4 CPUs"),
        (|it| (it.queues, it.kind) = (Some(1), Some("veth".into())), Note, "1 receive queue for"),
        (|it| it.queues = None, Ok, "native XDP"),
        (|it| it.lro = Some(true), Warning, "LRO is on"),
        (|it| it.features = Some(NONE), Warning, "GRO is on"),
        (|it| it.rx_checksum = Some(false), Note, "checked by the CPU"),
        (|it| it.kind = Some("veth".into()), Warning, "checksums are left unfinished"),
        (|it| it.vlan_stripping = Some(true), Warning, "VLAN tags are taken out"),
        (|it| it.rp_filter = Some(1), Warning, "rp_filter is strict"),
        (|it| it.rp_filter = Some(0), Ok, "native XDP"),
        (|it| it.forwarding4 = Some(false), Warning, "IPv4 forwarding is off"),
        (|it| it.forwarding6 = Some(false), Warning, "IPv6 forwarding is off"),
        (|it| it.forwarding6 = None, Ok, "native XDP"),
        (|it| it.driver = None, Ok, "driver `unknown`"),
        (
            |it| it.programs = vec![Program { name: None, ..program("", AttachedMode::Generic) }],
            Error,
            "`?` (generic, id 7)",
        ),
    ];
    for (spoil, level, words) in cases {
        let mut interface = good_interface();
        spoil(&mut interface);
        expect(&judge(&Facts { host: good_host(), interfaces: vec![interface] }), level, words);
    }
}

#[test]
fn mends_name_interfaces_as_sysctl_wants_them() {
    let interface = Interface { name: "eth0.7".into(), forwarding4: Some(false), ..good_interface() };
    let findings = judge(&Facts { host: good_host(), interfaces: vec![interface] });
    let mend = findings.iter().find(|finding| finding.says.contains("IPv4 forwarding")).and_then(|it| it.mend.clone());
    assert_eq!(mend.as_deref(), Some("sysctl -w net.ipv4.conf.eth0/7.forwarding=1"));
    assert!(
        findings.iter().any(|finding| finding.says.contains("`reply-handed-over`")),
        "what to look for in `get stats`"
    );
}

fn decap() -> Decap {
    Decap {
        interfaces: vec!["eth0".into()],
        sources: vec!["10.77.1.0/24".parse().unwrap()],
        vips: ["10.77.100.1", "203.0.113.0/28", "2001:db8:100::1"].map(|text| text.parse().unwrap()).into(),
        gue_port: 6080,
        cluster: 1,
        path_key: None,
    }
}

fn good_backend() -> backend::Facts {
    let local = [("10.77.100.1", 32), ("203.0.113.0", 24), ("2001:db8:100::1", 128)];
    backend::Facts {
        name: "eth0".into(),
        interface: Ok(Interface {
            programs: vec![program("redirector_deca", AttachedMode::Native)],
            ..good_interface()
        }),
        addresses: vec![("10.77.2.1".parse().unwrap(), 16)],
        routes: Routes {
            local: local.map(|(address, length)| (address.parse().unwrap(), length)).into(),
            default: Vec::new(),
        },
        arp_ignore: Some(1),
        arp_announce: Some(2),
    }
}

#[test]
fn a_good_backend_is_found_good() {
    let findings = backend::judge(&decap(), &good_backend());
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:#?}");
    assert_eq!(findings.iter().filter(|finding| finding.says == "is this host's own address").count(), 3);
}

#[test]
fn each_fault_of_a_backend_is_found() {
    use Level::{Error, Note, Ok, Warning};
    fn interface(facts: &mut backend::Facts) -> &mut Interface {
        facts.interface.as_mut().unwrap()
    }
    fn announces(facts: &mut backend::Facts, v4: u32, v6: u32) {
        interface(facts).mtu = 1500;
        let route = |v6, mss| DefaultRoute { v6, interface: 2, advmss: Some(mss) };
        facts.routes.default = vec![route(false, v4), route(true, v6)];
    }
    type Spoil = fn(&mut Decap, &mut backend::Facts);
    let cases: [(Spoil, Level, &str); 18] = [
        (|decap, _| decap.sources.clear(), Error, "every tunnel packet is dropped"),
        (|decap, _| decap.sources.push("0.0.0.0/0".parse().unwrap()), Warning, "0.0.0.0/0: anyone"),
        (|_, facts| facts.routes.local.retain(|(_, length)| *length != 32), Error, "is not this host's own"),
        (|_, facts| facts.routes.local.retain(|(_, length)| *length != 128), Error, "is not this host's own"),
        (|_, facts| facts.routes.local[1].1 = 30, Error, "some of its addresses are not"),
        (|_, facts| facts.interface = Err("there is no interface `eth0`".into()), Error, "there is no interface"),
        (|_, facts| interface(facts).up = false, Error, "switched off"),
        (|_, facts| interface(facts).programs.clear(), Warning, "not attached"),
        (|_, facts| interface(facts).programs[0].mode = AttachedMode::Generic, Warning, "several times slower"),
        (|_, facts| interface(facts).programs[0].name = Some("other".into()), Error, "another XDP program"),
        (|_, facts| interface(facts).mtu = 1500, Warning, "IPv4 packets of 1500 bytes do not fit"),
        (|_, facts| interface(facts).mtu = 1500, Warning, "IPv6 packets of 1500 bytes do not fit"),
        (|_, facts| announces(facts, 1408, 1388), Ok, "TCP announces segments that fit"),
        (|_, facts| announces(facts, 1409, 1388), Warning, "IPv4 packets of 1500 bytes do not fit"),
        (|_, facts| interface(facts).rp_filter = Some(1), Warning, "rp_filter is strict"),
        (|_, facts| facts.arp_ignore = Some(0), Warning, "answers ARP"),
        (|_, facts| facts.arp_announce = Some(1), Warning, "asks by ARP"),
        (|_, facts| (facts.arp_ignore, facts.addresses) = (Some(0), Vec::new()), Note, "answers ARP"),
    ];
    for (spoil, level, words) in cases {
        let (mut decap, mut facts) = (decap(), good_backend());
        spoil(&mut decap, &mut facts);
        expect(&backend::judge(&decap, &facts), level, words);
    }
}

#[test]
fn proc_is_read() {
    let mounts = "proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw,nosuid,mode=700 0 0\nnone /x tmpfs rw 0 0\n";
    assert_eq!(host::bpffs(mounts), ["/sys/fs/bpf"]);
    let before = CpuTime::parse("cpu  100 0 100 800 0 0 0 10 0 0\ncpu0 1 2\n").unwrap();
    let after = CpuTime::parse("cpu  150 0 150 890 0 0 0 20 0 0\n").unwrap();
    assert_eq!(after.steal_percent_since(before), 5.0);
    assert!(CpuTime::parse("cpu  1 2 3\n").is_none() && CpuTime::parse("").is_none());
}
