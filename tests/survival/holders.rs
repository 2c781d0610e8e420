//! VIPs that one node holds: found by ARP and neighbour discovery, and handed over within a connection.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use redirector::config;
use redirector::vip::announce::{group_mac, solicited_node};
use redirector::vip::held;
use redirector::vip::plan::{self, Plan};
use redirector_ebpf::reason::Reason;
use toml::{Table, Value};
use xtask::lab::{Config, Role, Topology, VIPS4, VIPS6};
use xtask::traffic::{HTTP_PORT, Load, LongConnections};

use crate::scene::{PATIENCE, Scene, all_answered, targets, wait_until, words};

#[test]
fn a_vip_is_found_where_it_is_held_and_follows_its_holder() -> Result<()> {
    let topology = Topology::for_test("holders");
    let scene = Scene::without_agents(&topology, Config::standard(&topology))?;
    configure(&scene, "arp", &[])?;
    on_link(&scene)?;
    scene.lab.start_agents()?;
    let plan = plan_of(&scene)?;
    let vips: Vec<IpAddr> = plan.keys().copied().collect();
    ensure!(vips.len() == 4 && plan.values().all(|ranks| ranks.len() == 3), "{plan:?}");
    wait_until("each VIP is with the first of its list", || Ok(holders(&scene)? == by_rank(&plan, 0)))?;

    for node in scene.lab.nodes() {
        wait_until(&format!("{node} knows the plan for committed"), || Ok(committed(&scene, &node)? == plan))?;
    }

    let client = scene.lab.client();
    let web = targets(&scene.config, HTTP_PORT);
    let load = Load::new(web.clone(), 200, Duration::from_secs(2));
    all_answered(&client.run(|| load.run())?)?;
    for (vip, ranks) in &plan {
        let first = format!("n{}", ranks[0]);
        ensure!(neighbour(&scene, *vip)? == Some(Role::Node(ranks[0]).mac()), "{vip} is not found at {first}");
        let reason = if vip.is_ipv4() { Reason::ArpAnswered } else { Reason::NdAnswered };
        ensure!(scene.count(&first, reason)? > 0, "{first} did not answer for {vip} by itself");
    }

    groups_are_joined(&scene, &vips)?;
    let (vip, holder) = (vips[0].to_string(), format!("n{}", plan[&vips[0]][0]));
    let dump = scene.done(&holder, &["maps", "dump", "HELD4"])?;
    ensure!(dump.contains(&vip) && dump.contains("eth0"), "{dump}");
    let table = scene.done(&holder, &["get", "vips"])?;
    let line = table.lines().find(|line| line.contains(&vip)).unwrap_or_default();
    ensure!(line.contains("here") && line.contains(&format!("{holder},n")), "{table}");

    let long = client.run(|| LongConnections::open(&web, 24, Duration::from_millis(20), PATIENCE))??;
    let gone = plan[&vips[0]][0];
    configure(&scene, "arp", &[gone])?;
    apply(&scene)?;
    let next: BTreeMap<IpAddr, BTreeSet<u8>> = plan
        .iter()
        .map(|(vip, ranks)| (*vip, BTreeSet::from([*ranks.iter().find(|node| **node != gone).unwrap_or(&0)])))
        .collect();
    wait_until("the successors hold what the drained node held", || Ok(holders(&scene)? == next))?;
    for (vip, nodes) in &next {
        let mac = nodes.first().map(|node| Role::Node(*node).mac());
        wait_until(&format!("the client sends what is for {vip} to its successor"), || {
            Ok(neighbour(&scene, *vip)? == mac)
        })?;
    }
    let drained = format!("n{gone}");
    let table = scene.done(&drained, &["get", "vips"])?;
    ensure!(!table.contains("here"), "{drained} holds on:\n{table}");
    all_answered(&client.run(|| load.run())?)?;

    configure(&scene, "arp", &[])?;
    apply(&scene)?;
    wait_until("each VIP is back with the first of its list", || Ok(holders(&scene)? == by_rank(&plan, 0)))?;
    all_answered(&client.run(|| load.run())?)?;
    an_agent_s_death_is_not_noticed(&scene, &plan)?;
    let long = long.finish();
    ensure!(long.broken == 0 && long.lines > long.opened, "{long:#?}");
    scene.nothing_was_dropped()
}

/// XDP answers on without the agent, and the next agent holds what it finds held.
fn an_agent_s_death_is_not_noticed(scene: &Scene, plan: &Plan) -> Result<()> {
    for node in scene.lab.nodes() {
        scene.lab.process(&format!("{node}-agent"))?.kill()?;
    }
    let client = scene.lab.client();
    for vip in plan.keys() {
        client.ip(&[format!("neighbour del {vip} dev eth0")])?;
    }
    let load = Load::new(targets(&scene.config, HTTP_PORT), 100, Duration::from_secs(1));
    all_answered(&client.run(|| load.run())?)?;
    scene.lab.start_agents()?;
    ensure!(holders(scene)? == by_rank(plan, 0), "agents that came back hold {:?}", holders(scene)?);
    all_answered(&client.run(|| load.run())?)
}

/// The nodes' files: every VIP's packets come in this way, and these members are not alive.
pub(crate) fn configure(scene: &Scene, ingress: &str, away: &[u8]) -> Result<()> {
    scene.lab.configure(&scene.config)?;
    for node in scene.lab.nodes() {
        let file = scene.lab.config_file(&node);
        let mut text: Table = fs::read_to_string(&file)?.parse()?;
        for vip in list(&mut text, "vip")? {
            vip.insert("ingress".into(), ingress.into());
        }
        for member in list(&mut text, "member")? {
            let id = member.get("id").and_then(Value::as_integer).context("a member without id")?;
            member.insert("alive".into(), (!away.iter().any(|away| i64::from(*away) == id)).into());
        }
        fs::write(&file, toml::to_string(&text)?)?;
    }
    Ok(())
}

fn list<'a>(text: &'a mut Table, name: &str) -> Result<impl Iterator<Item = &'a mut Table>> {
    let list = text.get_mut(name).and_then(Value::as_array_mut).with_context(|| format!("no [[{name}]]"))?;
    Ok(list.iter_mut().filter_map(Value::as_table_mut))
}

pub(crate) fn apply(scene: &Scene) -> Result<()> {
    for node in scene.lab.nodes() {
        let file = scene.lab.config_file(&node);
        scene.done(&node, &["apply", &file.display().to_string()])?;
    }
    Ok(())
}

/// Has the client look for VIPs on its own segment, and not behind the nodes.
fn on_link(scene: &Scene) -> Result<()> {
    scene.lab.client().ip(&[VIPS4, VIPS6].map(|vips| format!("route replace {vips} dev eth0")))
}

/// Every node's card lets in what asks for IPv6 VIPs, whoever holds them at present.
fn groups_are_joined(scene: &Scene, vips: &[IpAddr]) -> Result<()> {
    for node in scene.lab.nodes() {
        let output = scene.lab.host(&node)?.command("ip").args(["maddress", "show", "dev", "eth0"]).output()?;
        for vip in vips {
            let IpAddr::V6(vip) = vip else { continue };
            let mac = group_mac(solicited_node(*vip)).map(|byte| format!("{byte:02x}")).join(":");
            ensure!(words(&output).contains(&mac), "{node} is not in {vip}'s group {mac}: {}", words(&output));
        }
    }
    Ok(())
}

fn plan_of(scene: &Scene) -> Result<Plan> {
    let plans = scene.lab.nodes().into_iter().map(|node| Ok(plan::of(&config::load(&scene.lab.config_file(&node))?)));
    let plans: Vec<Plan> = plans.collect::<Result<_>>()?;
    ensure!(plans.windows(2).all(|pair| pair[0] == pair[1]), "nodes plan differently: {plans:?}");
    plans.into_iter().next().context("no nodes")
}

/// The plan that the cluster has agreed on, by the word of a node.
fn committed(scene: &Scene, node: &str) -> Result<Plan> {
    let nodes: Vec<serde_json::Value> = serde_json::from_str(&scene.done(node, &["get", "nodes", "-o", "json"])?)?;
    let own = nodes.iter().find(|node| node["self"] == true).context("it does not know itself")?;
    Ok(serde_json::from_value(own["agreement"]["vips"].clone())?)
}

fn by_rank(plan: &Plan, rank: usize) -> BTreeMap<IpAddr, BTreeSet<u8>> {
    plan.iter().map(|(vip, ranks)| (*vip, BTreeSet::from([ranks[rank]]))).collect()
}

/// Who holds each VIP, as the nodes' maps say.
fn holders(scene: &Scene) -> Result<BTreeMap<IpAddr, BTreeSet<u8>>> {
    let mut holders: BTreeMap<IpAddr, BTreeSet<u8>> = BTreeMap::new();
    for (id, node) in (1..).zip(scene.lab.nodes()) {
        for vip in held(&scene.maps(&node)?)? {
            holders.entry(vip).or_default().insert(id);
        }
    }
    Ok(holders)
}

/// The MAC address to which the client sends what is for an address.
pub(crate) fn neighbour(scene: &Scene, address: IpAddr) -> Result<Option<String>> {
    let mut command: Command = scene.lab.client().command("ip");
    let output = command.args(["neighbour", "show", "to", &address.to_string(), "dev", "eth0"]).output()?;
    ensure!(output.status.success(), "{}", words(&output));
    Ok(words(&output).split_once("lladdr ").map(|(_, rest)| rest.split(' ').next().unwrap_or_default().to_owned()))
}
