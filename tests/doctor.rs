//! The doctor on real hosts: a lab's nodes and backends, with faults and without.

use std::fs;

use anyhow::{Context, Result, ensure};
use redirector::config::Decap;
use redirector::doctor::{self, Facts, Finding, Interface, Level, Manner, backend};
use xtask::lab::{Config, Lab, Topology};

fn facts_of(lab: &Lab, host: &str, manner: Manner) -> Result<Facts> {
    Ok(lab.host(host)?.run(|| doctor::gather(Some("eth0"), manner))??)
}

fn only_interface(facts: &Facts) -> Result<&Interface> {
    let [interface] = &facts.interfaces[..] else { anyhow::bail!("not one interface: {facts:?}") };
    Ok(interface)
}

fn says(findings: &[Finding], level: Level, words: &str) -> bool {
    findings.iter().any(|finding| finding.level == level && finding.says.contains(words))
}

#[test]
fn a_node_of_a_lab_is_looked_at() -> Result<()> {
    let lab = Lab::up(&Topology { nodes: 1, backends: 0, ..Topology::for_test("doctor") })?;
    let facts = facts_of(&lab, "n1", Manner::Try)?;
    let veth = only_interface(&facts)?;
    ensure!(veth.name == "eth0" && veth.up && veth.carrier && veth.mtu == u32::from(lab.topology().mtu), "{veth:?}");
    ensure!(veth.driver.as_deref() == Some("veth") && veth.kind.as_deref() == Some("veth"), "{veth:?}");
    ensure!(veth.features.is_none_or(|features| features.native && features.redirect), "{veth:?}");
    ensure!(veth.queues.is_some() && veth.lro == Some(false) && veth.rp_filter.is_some(), "{veth:?}");
    ensure!(
        veth.tx_checksum == Some(false) && veth.vlan_stripping == Some(false),
        "the lab switches them off: {veth:?}"
    );
    ensure!(veth.programs.is_empty() == veth.trial.is_some(), "tried beside a program, or not tried: {veth:?}");
    if let Some(trial) = &veth.trial {
        ensure!(trial.is_ok(), "{trial:?}");
        let after = facts_of(&lab, "n1", Manner::Look)?;
        ensure!(only_interface(&after)?.programs.is_empty(), "the tried program is still there: {after:?}");
    }
    let host = &facts.host;
    ensure!(host.root && host.cpus > 0 && host.memlock.is_none_or(|bytes| bytes > 0), "{host:?}");
    let wakeups = host.wakeups.context("wake-ups were not measured")?;
    ensure!(wakeups.p50_us <= wakeups.p99_us && wakeups.p99_us <= wakeups.max_us && wakeups.max_us > 0, "{wakeups:?}");
    let findings = doctor::judge(&facts);
    ensure!(says(&findings, Level::Ok, "native XDP"), "{findings:#?}");
    ensure!(says(&findings, Level::Note, "itself sends to a VIP are not seen"), "{findings:#?}");
    Ok(())
}

#[test]
fn faults_are_found_where_they_are() -> Result<()> {
    let lab = Lab::up(&Topology { nodes: 1, backends: 0, ..Topology::for_test("faulty") })?;
    let node = lab.host("n1")?;
    node.ip(&["link set dev eth0 mtu 1400"])?;
    node.run(|| -> Result<()> {
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/forwarding", "0")?;
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1")?;
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/rp_filter", "0")?;
        Ok(())
    })??;
    let findings = doctor::judge(&facts_of(&lab, "n1", Manner::Look)?);
    for words in ["IPv4 forwarding is off", "rp_filter is strict"] {
        ensure!(says(&findings, Level::Warning, words), "not found: {words}: {findings:#?}");
    }
    ensure!(says(&findings, Level::Note, "MTU 1400"), "{findings:#?}");
    let error = node.run(|| doctor::gather(Some("eth1"), Manner::Look))?.err().context("found an interface `eth1`")?;
    ensure!(error.to_string().contains("did you mean eth0?"), "{error}");
    Ok(())
}

#[test]
fn a_backend_lacks_what_is_taken_from_it() -> Result<()> {
    let lab = Lab::up(&Topology { nodes: 0, backends: 1, ..Topology::for_test("lacks") })?;
    let vip = "198.51.100.0/29";
    let decap = Decap {
        interfaces: vec!["eth0".into()],
        sources: vec!["10.77.1.0/24".parse()?],
        vips: vec![vip.parse()?, "2001:db8::7".parse()?],
        gue_port: 6080,
        cluster: 1,
        path_key: None,
    };
    let host = lab.host("b1")?;
    let check = || -> Result<Vec<Finding>> { Ok(backend::judge(&decap, &host.run(|| backend::gather("eth0"))??)) };
    let own = |findings: &[Finding], vip: &str| {
        findings.iter().any(|finding| finding.subject == vip && finding.level == Level::Ok)
    };
    let bare = check()?;
    ensure!(!own(&bare, vip) && !own(&bare, "2001:db8::7"), "{bare:#?}");
    ensure!(says(&bare, Level::Warning, "the decap program is not attached"), "{bare:#?}");

    host.ip(&["address add 198.51.100.1/32 dev lo"])?;
    ensure!(says(&check()?, Level::Error, "some of its addresses are not"));
    // Each finding's mend is a command that mends it.
    for finding in check()?.iter().filter(|finding| finding.level == Level::Error) {
        let mend = finding.mend.as_deref().context("an error without a mend")?;
        host.ip(&[mend.strip_prefix("ip ").context("not a command")?])?;
    }
    let mended = check()?;
    ensure!(own(&mended, vip) && own(&mended, "2001:db8::7"), "{mended:#?}");

    host.ip(&["link set dev eth0 mtu 1500"])?;
    host.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1"))??;
    let narrow = check()?;
    ensure!(says(&narrow, Level::Warning, "IPv4 packets of 1500 bytes do not fit"), "{narrow:#?}");
    ensure!(says(&narrow, Level::Warning, "rp_filter is strict"), "{narrow:#?}");
    Ok(())
}

#[test]
fn extreme_beats_are_refused_until_the_host_was_measured() -> Result<()> {
    let topology = Topology { nodes: 1, backends: 1, ..Topology::for_test("unmeasured") };
    let lab = Lab::up(&topology)?;
    lab.configure(&Config { beats: Some("extreme".into()), ..Config::standard(&topology) })?;
    let file = lab.config_file("n1");
    let text = fs::read_to_string(&file)?;
    ensure!(text.contains("beats_anyway = true"), "{text}");
    fs::write(&file, text.replace("beats_anyway = true", "beats_anyway = false"))?;
    let says = |args: &[&str]| -> Result<(bool, String)> {
        let output = lab.redirector("n1", args)?.output()?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    for command in ["run", "load"] {
        let (done, words) = says(&[command])?;
        ensure!(!done && words.contains("was not measured") && words.contains("redirector doctor --config"), "{words}");
    }
    // Whatever it finds.
    says(&["doctor"])?;
    let (done, words) = says(&["load"])?;
    ensure!(done != words.contains("threads wake up here by"), "{words}");
    ensure!(!words.contains("was not measured"), "{words}");
    Ok(())
}
