//! VIPs whose routes a real BIRD announces: a router with ECMP sends flows to the nodes that are ready, and no others.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use redirector::vip::route::TABLE;
use serde_json::Value;
use xtask::lab::{Config, Fabric, Host, Role, Topology, VIPS4, VIPS6, vip4, vip6};
use xtask::traffic::{HTTP_PORT, Load};

use crate::holders::configure;
use crate::scene::{PATIENCE, Scene, all_answered, targets, wait_until, words};

pub(crate) const ROUTER: Role = Role::Fabric;

#[test]
fn a_router_sends_to_the_nodes_whose_routes_are_announced() -> Result<()> {
    let topology = Topology { fabric: Fabric::Routed, ..Topology::for_test("announced") };
    let mut config = Config::standard(&topology);
    config.vip.retain(|vip| [vip4(1).to_string(), vip6(1).to_string()].contains(&vip.address));
    config.service.retain(|service| config.vip.iter().any(|vip| vip.address == service.vip));
    config.more = "[health]\ndwell = \"500ms\"\n[shedding]\nsoftirq = false\n".into();
    let scene = Scene::without_agents(&topology, config)?;
    scene.lab.give_disk("n2")?;
    configure(&scene, "route", &[])?;
    // From here on the router knows of VIPs only what it is told by BGP.
    scene.lab.host("r1")?.ip(&[VIPS4, VIPS6].map(|vips| format!("route del {vips}")))?;
    scene.lab.start_agents()?;
    start_birds(&scene)?;
    sends_to(&scene, &[1, 2, 3])?;

    let client = scene.lab.client();
    let load = Load::new(targets(&scene.config, HTTP_PORT), 200, Duration::from_secs(4));
    let load = thread::scope(|scope| -> Result<_> {
        let running = scope.spawn(|| client.run(|| load.run()));
        scene.done("n1", &["drain", "n2"])?;
        sends_to(&scene, &[1, 3])?;
        running.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
    })?;
    all_answered(&load)?;
    ensure!(owned(&scene, "n2")?.is_empty() && owned(&scene, "n1")?.len() == 2, "{:?}", owned(&scene, "n2")?);

    scene.lab.process("n3-agent")?.stop()?;
    sends_to(&scene, &[1])?;
    // Killed, it leaves what is there: its data plane goes on.
    scene.lab.process("n1-agent")?.kill()?;
    ensure!(owned(&scene, "n1")?.len() == 2, "the killed agent's routes are gone: {:?}", owned(&scene, "n1")?);

    for node in ["n1", "n3"] {
        scene.lab.start_agent(node)?;
    }
    scene.done("n3", &["undrain", "n2"])?;
    sends_to(&scene, &[1, 2, 3])?;
    a_node_that_ails_withdraws(&scene)
}

/// Node 2, whose disk is full, is sent nothing more while it can serve yet, and again when it is well.
fn a_node_that_ails_withdraws(scene: &Scene) -> Result<()> {
    let client = scene.lab.client();
    let (load, stop) = (Load::new(targets(&scene.config, HTTP_PORT), 100, 2 * PATIENCE), AtomicBool::new(false));
    let load = thread::scope(|scope| -> Result<_> {
        let running = scope.spawn(|| client.run(|| load.run_until(&stop, |_, _| ())));
        let withdrawn = wait_until("node 2 has withdrawn its routes", || {
            // Also what has become free since.
            scene.lab.fill("n2")?;
            Ok(owned(scene, "n2")?.is_empty())
        });
        let done = withdrawn.and_then(|()| sends_to(scene, &[1, 3]));
        stop.store(true, Ordering::Relaxed);
        let load = running.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        done.and(load)
    })?;
    all_answered(&load)?;
    let health = scene.done("n2", &["get", "health"])?;
    ensure!(health.contains("storage fails"), "{health}");
    scene.lab.empty("n2")?;
    sends_to(scene, &[1, 2, 3])
}

/// Without its data plane a node announces nothing.
#[test]
fn a_node_without_its_data_plane_withdraws() -> Result<()> {
    let topology = Topology { fabric: Fabric::Routed, nodes: 1, backends: 1, ..Topology::for_test("withdrawn") };
    let scene = Scene::without_agents(&topology, Config::standard(&topology))?;
    configure(&scene, "route", &[])?;
    scene.lab.start_agent("n1")?;
    wait_until("the routes are there", || Ok(owned(&scene, "n1")?.len() == 4))?;
    fs::remove_file(redirector::dataplane::load::directory(&scene.pins("n1")?).join("link-eth0"))?;
    wait_until("the routes are gone", || Ok(owned(&scene, "n1")?.is_empty()))
}

/// Waits until the router's routes to all VIPs lead to these nodes.
pub(crate) fn sends_to(scene: &Scene, nodes: &[u8]) -> Result<()> {
    let router = scene.lab.host("r1")?;
    for vip in scene.config.vip.iter().map(|vip| vip.address.parse::<IpAddr>()) {
        let vip = vip?;
        let family = usize::from(vip.is_ipv6());
        let expected: BTreeSet<IpAddr> = nodes.iter().map(|node| Role::Node(*node).addresses()[family]).collect();
        wait_until(&format!("the router sends {vip} to {nodes:?}"), || Ok(hops(&router, vip)? == expected))?;
    }
    Ok(())
}

/// The next hops of a host's route to an address.
pub(crate) fn hops(host: &Host, address: IpAddr) -> Result<BTreeSet<IpAddr>> {
    let routes = routes(host, &["show", &address.to_string()])?;
    let nested = routes.iter().filter_map(|route| route["nexthops"].as_array()).flatten();
    let gateways = routes.iter().chain(nested).filter_map(|hop| hop["gateway"].as_str());
    gateways.map(|hop| hop.parse().with_context(|| format!("{hop} is no address"))).collect()
}

/// The destinations of this program's routes on a node.
fn owned(scene: &Scene, node: &str) -> Result<BTreeSet<String>> {
    let all = routes(&scene.lab.host(node)?, &["show", "table", &TABLE.to_string()])?;
    Ok(all.iter().filter_map(|route| route["dst"].as_str().map(str::to_owned)).collect())
}

/// Routes of both families. A table that does not exist has none.
fn routes(host: &Host, args: &[&str]) -> Result<Vec<Value>> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        if args
            .get(1)
            .is_some_and(|address| address.contains('.') && family == "-6" || address.contains(':') && family == "-4")
        {
            continue;
        }
        let output = host.command("ip").args(["-j", family, "route"]).args(args).output()?;
        let missing = words(&output).contains("FIB table does not exist");
        ensure!(output.status.success() || missing, "{}", words(&output));
        if !missing && !output.stdout.is_empty() {
            routes.extend(serde_json::from_slice::<Vec<Value>>(&output.stdout)?);
        }
    }
    Ok(routes)
}

/// Starts a BIRD on every node and on the router, which all nodes peer with.
fn start_birds(scene: &Scene) -> Result<()> {
    let nodes: Vec<Role> = (1..=scene.lab.topology().nodes).map(Role::Node).collect();
    for node in &nodes {
        start_bird(scene, *node, &announces(*node))?;
    }
    start_bird(scene, ROUTER, &receives(&nodes))
}

pub(crate) fn start_bird(scene: &Scene, role: Role, text: &str) -> Result<()> {
    let name = role.name(Fabric::Routed);
    let file = scene.lab.directory().join(format!("{name}.bird.conf"));
    fs::write(&file, format!("router id {};\nprotocol device {{}}\n{text}", role.v4()))?;
    let mut command = scene.lab.host(&name)?.command("bird");
    command.arg("-f").arg("-c").arg(&file).arg("-s").arg(file.with_extension("ctl"));
    let bird = scene.lab.spawn(&name, "bird", command).context("`cargo xtask setup test` installs bird2")?;
    ensure!(bird.alive(), "{}", bird.log_tail());
    Ok(())
}

/// What the README tells operators to write: the routes of this program are learnt from their table, and announced.
pub(crate) fn announces(node: Role) -> String {
    let protocols =
        [("4", node.addresses()[0], ROUTER.addresses()[0]), ("6", node.addresses()[1], ROUTER.addresses()[1])];
    let text = |(version, own, router): &(&str, IpAddr, IpAddr)| {
        format!(
            "protocol kernel vips{version} {{\n  kernel table {TABLE}; learn;\n  \
             ipv{version} {{ import where krt_source = {TABLE}; export none; }};\n}}\n\
             protocol bgp router{version} {{\n  local {own} as 65100; neighbor {router} as 65000; multihop 2;\n  \
             connect delay time 1; connect retry time 1; error wait time 1, 2;\n  \
             ipv{version} {{ import none; export where source = RTS_INHERIT; next hop self; }};\n}}\n"
        )
    };
    protocols.iter().map(text).collect()
}

pub(crate) fn receives(nodes: &[Role]) -> String {
    let mut text = String::new();
    for (family, version) in ["4", "6"].into_iter().enumerate() {
        let own = ROUTER.addresses()[family];
        let bits = if family == 0 { 32 } else { 128 };
        text += &format!(
            "protocol kernel main{version} {{\n  merge paths on;\n  \
             ipv{version} {{ import none; export where source = RTS_BGP; }};\n}}\nprotocol static links{version} {{\n  ipv{version};\n"
        );
        for node in nodes {
            let (address, link) = (node.addresses()[family], node.name(Fabric::Routed));
            text += &format!("  route {address}/{bits} via \"{link}\";\n");
        }
        text += "}\n";
        for node in nodes {
            let (address, name) = (node.addresses()[family], node.name(Fabric::Routed));
            text += &format!(
                "protocol bgp {name}v{version} {{\n  local {own} as 65000; neighbor {address} as 65100; multihop 2;\n  \
                 connect delay time 1; connect retry time 1; error wait time 1, 2;\n  \
                 ipv{version} {{ import all; export none; }};\n}}\n"
            );
        }
    }
    text
}
