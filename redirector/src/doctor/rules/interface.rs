//! What is good or bad of one interface.

use super::{INNER_MTU, TUNNEL_BYTES, sysctl_name};
use crate::doctor::{Finding, Interface, Level, Program};

/// What a page holds beside a packet where a driver gives each packet a page: headroom, Ethernet and VLAN, the
/// kernel's own.
const PAGE_OVERHEAD: u32 = 598;

const STRICT: i64 = 1;

/// Judges an interface of a host with so many CPUs.
pub(in crate::doctor) fn interface(interface: &Interface, cpus: usize) -> Vec<Finding> {
    let mut findings = vec![native(interface)];
    findings.extend(link(interface));
    findings.extend(programs(interface));
    findings.extend(controller(interface));
    findings.extend(mtu(interface));
    findings.extend(queues(interface, cpus));
    findings.extend(offloads(interface));
    findings.extend(stack(interface));
    findings
}

/// Whether a program is sure not to run in the driver.
fn is_generic(interface: &Interface) -> bool {
    match (&interface.trial, interface.features) {
        (Some(trial), _) => trial.is_err(),
        (None, Some(features)) => !features.native,
        (None, None) => false,
    }
}

fn native(interface: &Interface) -> Finding {
    let name = &interface.name;
    let driver = format!("driver `{}`", interface.driver.as_deref().unwrap_or("unknown"));
    let warning = |says: String, mend: &str| Finding::warning(name, says).mend(mend);
    match (&interface.trial, interface.features) {
        (Some(Err(error)), _) => warning(
            format!("the {driver} refused a native XDP program: {error}"),
            "see the kernel's reason (dmesg | tail), or use mode = \"generic\", several times slower",
        ),
        (None, Some(features)) if !features.native => warning(
            format!("the {driver} has no native XDP: the kernel's stack redirects instead, several times slower"),
            "use a driver that has it, such as mlx5, ice, i40e, ixgbe, bnxt, ena or virtio_net",
        ),
        (_, Some(features)) if !features.redirect => warning(
            format!("the {driver} has native XDP, but cannot redirect to other interfaces"),
            "let packets leave over the interface that they came in by",
        ),
        (Some(Ok(())), _) => Finding::ok(name, format!("native XDP works ({driver}, tried)")),
        (None, Some(features)) if !features.transmit => {
            let says = "it takes what other interfaces redirect to it only once a program is attached";
            Finding::note(name, format!("native XDP ({driver}); {says}")).mend(format!(
                "list {name} in the configuration; at the other end of a veth, attach a program that passes"
            ))
        }
        (None, Some(_)) => Finding::ok(name, format!("native XDP ({driver})")),
        (None, None) => Finding::note(name, format!("this kernel does not tell whether the {driver} has native XDP"))
            .mend(format!("redirector doctor --try {name} (interrupts its traffic for a moment)")),
    }
}

/// Whether packets can come in at all.
pub(in crate::doctor) fn link(interface: &Interface) -> Option<Finding> {
    let name = &interface.name;
    if !interface.up {
        return Some(Finding::error(name, "is switched off").mend(format!("ip link set dev {name} up")));
    }
    (!interface.carrier).then(|| {
        Finding::warning(name, "has no carrier: nothing is at the other end")
            .mend("check cable, switch port, or the veth's other end")
    })
}

fn programs(interface: &Interface) -> Vec<Finding> {
    let ours = interface.programs.iter().filter(|program| program.is_ours());
    let attached = |program: &Program| format!("our program {program} is attached");
    ours.map(|program| Finding::ok(&interface.name, attached(program))).chain(others_programs(interface)).collect()
}

/// Programs that are in the way of ours.
pub(in crate::doctor) fn others_programs(interface: &Interface) -> impl Iterator<Item = Finding> {
    let name = &interface.name;
    let others = interface.programs.iter().filter(|program| !program.is_ours());
    others.map(move |program| {
        let stop = format!("stop what attached it (bpftool prog show id {})", program.id);
        Finding::error(name, format!("another XDP program, {program}, is attached; there is room for one"))
            .mend(format!("{stop}, or: ip link set dev {name} xdp off"))
    })
}

fn controller(interface: &Interface) -> Option<Finding> {
    let name = &interface.name;
    if let Some(controller) = &interface.controller {
        let (above, kind) = (&controller.name, controller.kind.as_deref().unwrap_or("controller"));
        return Some(match kind {
            "bridge" | "openvswitch" => {
                let why = format!("the node's addresses are on {above}, and packets for its MAC address are not taken");
                Finding::warning(name, format!("is a port of the {kind} {above}: {why}"))
                    .mend(format!("give the node an interface that is no port: ip link set dev {name} nomaster"))
            }
            _ => Finding::error(name, format!("is a member of the {kind} {above}: XDP belongs on {above}"))
                .mend(format!("name {above} in the configuration instead of {name}")),
        });
    }
    match interface.kind.as_deref() {
        Some("bond") => {
            let needs = "that all its members' drivers have it, and a mode other than broadcast, tlb and alb";
            Some(Finding::note(name, format!("is a bond: native XDP needs {needs}")))
        }
        Some(kind @ ("vlan" | "macvlan" | "ipvlan")) => {
            let finding = Finding::warning(name, format!("is a {kind}: XDP on it is generic"));
            Some(finding.mend("attach to the interface below it; VLAN tags are understood there"))
        }
        _ => None,
    }
}

fn mtu(interface: &Interface) -> Option<Finding> {
    let Interface { name, mtu, page, .. } = interface;
    let most = page.saturating_sub(PAGE_OVERHEAD);
    if *mtu > most && !is_generic(interface) {
        let frags = interface.features.map(|features| (features.receive_frags, features.transmit_frags));
        let (level, says) = match frags {
            Some((true, true)) => (Level::Ok, "larger than a page holds, and the driver's XDP copes"),
            Some((true, false)) => {
                (Level::Warning, "packets larger than a page come in, but cannot be redirected to it")
            }
            Some((false, _)) => (Level::Error, "with native XDP the driver takes no more than a page holds"),
            None => (Level::Warning, "many drivers' native XDP takes no more than a page holds"),
        };
        let finding = Finding::new(level, name, format!("MTU {mtu}: {says}"));
        let good = level == Level::Ok;
        return Some(if good { finding } else { finding.mend(format!("ip link set dev {name} mtu {most}")) });
    }
    let needed = INNER_MTU + TUNNEL_BYTES;
    (*mtu < needed).then(|| {
        let says = format!("packets of {INNER_MTU} bytes do not fit into a tunnel, and are answered by ICMP");
        Finding::note(name, format!("MTU {mtu}: {says}"))
            .mend(format!("if tunnels go over it: ip link set dev {name} mtu {needed}, on switches and backends too"))
    })
}

fn queues(interface: &Interface, cpus: usize) -> Option<Finding> {
    let (name, queues) = (&interface.name, interface.queues?);
    if queues as usize >= cpus {
        return None;
    }
    let says =
        format!("{queues} receive queue{} for {cpus} CPUs: the others do not help", if queues == 1 { "" } else { "s" });
    let mend = format!("ethtool -L {name} combined {cpus}, if the card has as many");
    // A virtual interface has no interrupts to spread.
    let level = if queues <= 1 && interface.kind.is_none() { Level::Warning } else { Level::Note };
    Some(Finding::new(level, name, says).mend(mend))
}

fn offloads(interface: &Interface) -> Vec<Finding> {
    let name = &interface.name;
    let is_veth = interface.kind.as_deref() == Some("veth");
    let off = |what| format!("ethtool -K {name} {what} off");
    let faults = [
        (
            interface.lro == Some(true),
            Finding::warning(name, "LRO is on: segments are merged before XDP sees them, or native XDP is refused")
                .mend(off("lro")),
        ),
        (
            interface.gro == Some(true) && is_generic(interface),
            Finding::warning(name, "GRO is on, and generic XDP comes after it: merged segments may fit nowhere")
                .mend(off("gro")),
        ),
        (
            interface.rx_checksum == Some(false),
            Finding::note(name, "received checksums are checked by the CPU, for packets that are passed to this host")
                .mend(format!("ethtool -K {name} rx on")),
        ),
        (
            interface.tx_checksum == Some(true) && is_veth,
            Finding::warning(name, "checksums are left unfinished, and a redirector at the other end sends them on so")
                .mend(format!("{} (and at its other end)", off("tx"))),
        ),
        (
            interface.vlan_stripping == Some(true),
            Finding::warning(name, "VLAN tags are taken out before XDP sees a packet, which then counts as untagged")
                .mend(off("rxvlan")),
        ),
    ];
    faults.into_iter().filter_map(|(there, finding)| there.then_some(finding)).collect()
}

/// What the kernel's own stack makes of packets that are passed to it.
fn stack(interface: &Interface) -> Vec<Finding> {
    let name = &interface.name;
    let key = sysctl_name(name);
    let mut findings = Vec::new();
    if interface.rp_filter == Some(STRICT) {
        let says = "rp_filter is strict: packets whose answers would leave by another interface are dropped";
        findings.push(
            Finding::warning(name, says)
                .mend(format!("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{key}.rp_filter=2")),
        );
    }
    // The kernel is asked for the way of such an answer, and tells it only where it would forward packets itself.
    let dropped = "off: packets that come in here over another node of the cluster get no answer (packet too big, \
                   unreachable, reset): the kernel drops what is counted as `reply-handed-over`";
    if interface.forwarding4 == Some(false) {
        findings.push(
            Finding::warning(name, format!("IPv4 forwarding is {dropped}"))
                .mend(format!("sysctl -w net.ipv4.conf.{key}.forwarding=1")),
        );
    }
    if interface.forwarding6 == Some(false) {
        let keep = format!("if it learns routes from routers, net.ipv6.conf.{key}.accept_ra=2 too");
        findings.push(
            Finding::warning(name, format!("IPv6 forwarding is {dropped}"))
                .mend(format!("sysctl -w net.ipv6.conf.all.forwarding=1 ({keep})")),
        );
    }
    findings
}
