//! In namespaces of their own: a veth `near`, whose other end `far` is another host's.

use std::net::IpAddr;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::*;

const FAR4: &str = "10.0.0.2";
const FAR6: &str = "fd00::2";
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test in a namespace, with the number of a thread that stands for the host at the other end.
fn with_veth<F: Future<Output = ()>>(test: impl FnOnce(Far) -> F + Send) {
    // SAFETY: takes nothing and cannot fail.
    let user = unsafe { libc::geteuid() };
    assert_eq!(user, 0, "needs root: sudo -E env \"PATH=$PATH\" cargo test -p redirector netlink");
    let (stop, stopped) = mpsc::channel::<()>();
    let (number, far) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            enter_new_namespace();
            // SAFETY: takes nothing and cannot fail.
            number.send(unsafe { libc::gettid() }).expect("the test waits for it");
            let _ = stopped.recv();
        });
        let near = scope.spawn(move || {
            let _stop = stop;
            enter_new_namespace();
            let far = Far(far.recv().expect("the other thread is alive"));
            ip(&format!("link add near type veth peer name far netns {}", far.0));
            for line in
                ["link set near up", "address add 10.0.0.1/24 dev near", "address add fd00::1/64 dev near nodad"]
            {
                ip(line);
            }
            for line in ["link set far up", "address add 10.0.0.2/24 dev far", "address add fd00::2/64 dev far nodad"] {
                far.ip(line);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(test(far));
        });
        near.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn enter_new_namespace() {
    // SAFETY: changes this thread's namespace alone.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
}

fn run(command: &mut Command) {
    let output = command.output().expect("iproute2 and util-linux are installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ip(line: &str) {
    run(Command::new("ip").args(line.split(' ')));
}

/// The host at the other end.
struct Far(i32);

impl Far {
    fn ip(&self, line: &str) {
        let namespace = format!("--net=/proc/{}/task/{}/ns/net", std::process::id(), self.0);
        run(Command::new("nsenter").args([&namespace, "ip"]).args(line.split(' ')));
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Waits until an entry is as wanted.
async fn wait_for(what: &str, wanted: impl Fn(&Neighbour) -> bool) -> Neighbour {
    let begin = Instant::now();
    loop {
        let all = neighbours().await.expect("neighbours");
        match all.iter().find(|neighbour| wanted(neighbour)) {
            Some(found) => return found.clone(),
            None if begin.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(50)).await,
            None => panic!("no entry {what} in {PATIENCE:?}: {all:?}"),
        }
    }
}

#[test]
fn interfaces_are_described() {
    with_veth(|_| async {
        let near = interface("near").await.expect("it was just made");
        assert_eq!(near.kind.as_deref(), Some("veth"));
        assert!(near.up && near.carrier && near.mtu == 1500 && near.mac != [0; 6] && near.xdp.is_empty(), "{near:?}");
        assert!(near.addresses.contains(&(address("10.0.0.1"), 24)), "{near:?}");
        assert!(near.addresses.contains(&(address("fd00::1"), 64)), "{near:?}");
        let names: Vec<_> = interfaces().await.expect("a list").into_iter().map(|interface| interface.name).collect();
        assert_eq!(names, ["lo", "near"]);
    });
}

#[test]
fn a_wrong_name_is_answered_with_the_right_one() {
    with_veth(|_| async {
        let says = |error: Error| error.to_string();
        let typing_error = interface("naer").await.map_err(says);
        assert_eq!(typing_error.unwrap_err(), "there is no interface `naer`; did you mean near?");
        let another = interface("ens1f0np0").await.map_err(says);
        assert_eq!(another.unwrap_err(), "there is no interface `ens1f0np0`; there are lo, near");
    });
}

#[test]
fn kept_neighbours_resolve_and_follow_the_neighbour_while_nobody_asks() {
    with_veth(|far| async move {
        // Everything that takes half a minute by default.
        for family in ["ipv4", "ipv6"] {
            let settings = [
                ("base_reachable_time_ms", "1000"),
                ("delay_first_probe_time", "1"),
                ("interval_probe_time_ms", "500"),
            ];
            for (key, value) in settings {
                let path = format!("/proc/sys/net/{family}/neigh/near/{key}");
                std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
            }
        }
        let index = interface("near").await.expect("it was just made").index;
        for far in [address(FAR4), address(FAR6)] {
            assert_eq!(keep_neighbour(index, far).await.expect("asked"), Kept::ByKernel);
            let entry = wait_for("resolved", |entry| entry.address == far && entry.mac.is_some()).await;
            assert!(entry.managed && entry.state.is_usable() && entry.index == index, "{entry:?}");
            assert_eq!(keep_neighbour(index, far).await.expect("asked again"), Kept::ByKernel);
        }
        let moved = [2, 0, 0, 0, 0, 0x77];
        far.ip("link set far address 02:00:00:00:00:77");
        for far in [address(FAR4), address(FAR6)] {
            wait_for("that followed", |entry| entry.address == far && entry.mac == Some(moved)).await;
            drop_neighbour(index, far).await.expect("dropped");
            drop_neighbour(index, far).await.expect("dropped, though not there");
            let left = neighbours().await.expect("neighbours");
            // The kernel keeps a dropped entry that something still refers to, as failed.
            let left = left.iter().find(|entry| entry.address == far);
            assert!(left.is_none_or(|entry| entry.mac.is_none() && !entry.managed), "{left:?}");
        }
    });
}

#[test]
fn what_the_operator_has_set_is_left_alone() {
    with_veth(|_| async {
        ip("neighbour add 10.0.0.9 lladdr 02:00:00:00:00:09 dev near nud permanent");
        let index = interface("near").await.expect("it was just made").index;
        assert_eq!(keep_neighbour(index, address("10.0.0.9")).await.expect("asked"), Kept::ByOperator);
        wait_for("left alone", |entry| entry.state == NeighbourState::Permanent).await;
    });
}

#[test]
fn a_refusal_says_what_was_refused() {
    with_veth(|_| async {
        let error = keep_neighbour(4_000_000, address(FAR4)).await.expect_err("there is no such interface");
        assert!(error.to_string().starts_with("the kernel refuses to look up a neighbour"), "{error}");
    });
}

#[test]
fn changes_are_seen() {
    with_veth(|far| async move {
        let mut watch = watch().expect("a watch");
        let index = interface("near").await.expect("it was just made").index;
        keep_neighbour(index, address(FAR4)).await.expect("asked");
        let wait = async |watch: &mut Watch, wanted: &dyn Fn(&Event) -> bool| {
            let event = async {
                loop {
                    let event = watch.next().await.expect("it goes on");
                    if wanted(&event) {
                        return;
                    }
                }
            };
            tokio::time::timeout(PATIENCE, event).await.expect("the event came");
        };
        wait(&mut watch, &|event| {
            matches!(event, Event::Neighbour(Neighbour { address, mac: Some(_), .. }) if address.to_string() == FAR4)
        })
        .await;
        far.ip("link set far down");
        wait(&mut watch, &|event| matches!(event, Event::Link { index: at, carrier: false, .. } if *at == index)).await;
        ip("link set near mtu 1400");
        wait(&mut watch, &|event| matches!(event, Event::Link { mtu: 1400, .. })).await;
        ip("link del near");
        wait(&mut watch, &|event| *event == Event::LinkGone { index }).await;
    });
}

#[test]
fn a_watch_that_missed_something_says_so_and_goes_on() {
    with_veth(|_| async {
        let mut watch = watch().expect("a watch");
        let lines: String = (0..8000)
            .map(|n| {
                format!("neighbour add 10.1.{}.{} lladdr 02:00:00:00:00:01 dev near nud permanent\n", n / 250, n % 250)
            })
            .collect();
        let file = std::env::temp_dir().join(format!("neighbours-{}", std::process::id()));
        std::fs::write(&file, lines).expect("a file");
        run(Command::new("ip").arg("-batch").arg(&file));
        std::fs::remove_file(&file).expect("it was just written");
        let mut events = 0;
        while watch.next().await != Some(Event::Missed) {
            events += 1;
            assert!(events < 8000, "none was missed");
        }
        let all = neighbours().await.expect("a list");
        assert_eq!(all.iter().filter(|entry| entry.state == NeighbourState::Permanent).count(), 8000);
        ip("link set near mtu 1400");
        let event = async { while !matches!(watch.next().await, Some(Event::Link { mtu: 1400, .. })) {} };
        tokio::time::timeout(PATIENCE, event).await.expect("the event came");
    });
}

#[test]
fn routes_and_features_are_read() {
    with_veth(|_| async {
        ip("link set lo up");
        ip("address add 203.0.113.16/28 dev lo");
        ip("route add default via 10.0.0.2 advmss 1400");
        let index = interface("near").await.expect("it was just made").index;
        let routes = routes().await.expect("routes");
        assert!(routes.local.contains(&(address("203.0.113.16"), 28)), "{routes:?}");
        assert!(routes.local.contains(&(address("fd00::1"), 128)), "{routes:?}");
        assert_eq!(routes.default, [DefaultRoute { v6: false, interface: index, advmss: Some(1400) }]);
        // A kernel before 6.3 does not tell.
        if let Some(features) = xdp_features(index).await.expect("features") {
            assert!(features.native && features.redirect, "{features:?}");
        }
        let lo = interface("lo").await.expect("it is always there").index;
        assert!(xdp_features(lo).await.expect("features").is_none_or(|features| !features.native));
    });
}

#[test]
fn own_routes_come_and_go_and_others_stay() {
    with_veth(|_| async {
        let own = [(address("192.0.2.1"), 32), (address("2001:db8::1"), 128), (address("198.51.100.0"), 28)];
        assert_eq!(owned_routes(201, 201).await.expect("a table that is not there is empty"), []);
        ip("route add 192.0.2.9/32 dev near table 201");
        for _ in 0..2 {
            for prefix in own {
                put_route(prefix, 201, 201).await.expect("put in");
            }
        }
        let mut found = owned_routes(201, 201).await.expect("a list");
        found.sort();
        let mut expected = own.to_vec();
        expected.sort();
        assert_eq!(found, expected);
        for prefix in own.into_iter().chain(own) {
            drop_route(prefix, 201, 201).await.expect("taken out, or gone already");
        }
        assert_eq!(owned_routes(201, 201).await.expect("a list"), []);
        let others =
            Command::new("ip").args(["route", "show", "table", "201"]).output().expect("iproute2 is installed");
        assert!(String::from_utf8_lossy(&others.stdout).contains("192.0.2.9"), "{others:?}");
    });
}

#[test]
fn packets_that_came_and_those_that_were_dropped_are_counted() {
    with_veth(|_| async {
        ip("link add here type veth peer name there");
        ip("link set here up");
        ip("link set there up");
        let (here, there) =
            (interface("here").await.expect("it is there").index, interface("there").await.expect("so is this").index);
        let before = received(&[there]).await.expect("counts");
        // An experimental protocol (IEEE 802), which no kernel understands.
        let frame = [[0xff; 6], [2, 0, 0, 0, 0, 1], [0x88, 0xb5, 0, 0, 0, 0]].concat();
        (0..50).for_each(|_| send(here, &frame));
        let begin = Instant::now();
        loop {
            // Not one that is not there.
            let after = received(&[there, 4_000_000]).await.expect("counts");
            let ([(_, before), ..], [(index, after)]) = (&before[..], &after[..]) else { panic!("{after:?}") };
            assert_eq!(*index, there);
            if after.dropped >= before.dropped + 50 && after.packets >= before.packets + 50 {
                assert_eq!((after.missed, after.overruns), (0, 0), "a veth has no ring");
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{after:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

/// Sends a frame out of an interface.
fn send(index: u32, frame: &[u8]) {
    // SAFETY: all zero is a valid address; the socket is closed before anybody else could close it; the frame and the
    // address outlive the call that reads them.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        assert!(socket >= 0, "{}", std::io::Error::last_os_error());
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        (to.sll_family, to.sll_ifindex) = (libc::AF_PACKET as u16, index as i32);
        let (address, length) = ((&raw const to).cast(), size_of_val(&to) as u32);
        let sent = libc::sendto(socket, frame.as_ptr().cast(), frame.len(), 0, address, length);
        assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
        libc::close(socket);
    }
}

#[test]
fn a_next_hop_that_does_not_answer_is_found_out() {
    with_veth(|_| async {
        const SILENT: &str = "10.0.0.77";
        let index = interface("near").await.expect("it was just made").index;
        let mut watch = watch().expect("a watch");
        let begin = Instant::now();
        let mut next_hops = crate::health::Neighbours::default();
        let hop = |address: &str, is_peer| crate::health::Hop {
            interface: index,
            name: "near".into(),
            address: address.parse().expect("an address"),
            is_peer,
        };
        let hops = [hop(SILENT, false), hop(FAR4, true)];
        let keys = hops.iter().map(|hop| (hop.interface, hop.address));
        next_hops.read(keys, neighbours().await.expect("entries").iter(), begin.elapsed());
        for hop in &hops {
            keep_neighbour(index, hop.address).await.expect("asked");
        }
        // The kernel asks for three seconds, and until then nothing is said of it.
        let told = async {
            loop {
                let Some(Event::Neighbour(entry)) = watch.next().await else { continue };
                next_hops.observe(entry.index, entry.address, Some(entry.state), begin.elapsed());
                let found = next_hops.judge(&hops, begin.elapsed());
                if !found.words.is_empty() {
                    return (entry, found);
                }
            }
        };
        let (entry, found) = tokio::time::timeout(PATIENCE, told).await.expect("the kernel gives it up");
        assert_eq!((entry.address, entry.state), (address(SILENT), NeighbourState::Failed));
        assert_eq!((found.own, found.of), (0, 1), "the peer answers by that interface");
        assert_eq!(next_hops.judge(&hops[..1], begin.elapsed()).own, 1, "without it nothing does");
    });
}
