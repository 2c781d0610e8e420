//! Facts of one interface.

use std::fmt;

use serde::Serialize;

use super::ethtool::{Ethtool, Flag, Switch};
use super::{Manner, net_setting, trial};
use crate::netlink::{self, AttachedMode, XdpFeatures};

/// The data plane's programs, as the kernel shows their names: cut after 15 characters.
const OUR_PROGRAMS: [&str; 3] = ["redirector", "redirector_deca", "redirector_pass"];

/// Facts of one interface; `None` is what could not be found out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// What it is if it is a virtual one: `veth`, `bond`, `vlan`.
    pub kind: Option<String>,
    /// Its driver.
    pub driver: Option<String>,
    /// Whether it is switched on.
    pub up: bool,
    /// Whether something is at the other end.
    pub carrier: bool,
    /// The largest IP packet that it carries.
    pub mtu: u32,
    /// Size of a memory page, which limits the MTU of some drivers.
    pub page: u32,
    /// The bond or bridge that it is a member of.
    pub controller: Option<Controller>,
    /// XDP programs that are attached to it.
    pub programs: Vec<Program>,
    /// What its driver says of its XDP.
    pub features: Option<XdpFeatures>,
    /// What came of attaching a program natively: nothing, or the error; `None` where that was not tried.
    pub trial: Option<Result<(), String>>,
    /// Receive queues.
    pub queues: Option<u32>,
    /// Whether the card merges segments as it receives them.
    pub lro: Option<bool>,
    /// Whether the kernel does.
    pub gro: Option<bool>,
    /// Whether the card checks received checksums.
    pub rx_checksum: Option<bool>,
    /// Whether checksums are left to the card when sending.
    pub tx_checksum: Option<bool>,
    /// Whether the card takes VLAN tags out of received packets.
    pub vlan_stripping: Option<bool>,
    /// The stricter of `net.ipv4.conf.all.rp_filter` and the interface's.
    pub rp_filter: Option<i64>,
    /// `net.ipv4.conf.X.forwarding`.
    pub forwarding4: Option<bool>,
    /// `net.ipv6.conf.all.forwarding`, by which the kernel goes for IPv6, whatever an interface's own setting is.
    pub forwarding6: Option<bool>,
}

/// What an interface is a member of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Controller {
    /// Its name.
    pub name: String,
    /// What it is: `bond`, `bridge`, `team`.
    pub kind: Option<String>,
}

/// An XDP program that is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Program {
    /// The kernel's id of it.
    pub id: u32,
    /// Its name, as far as the kernel keeps it.
    pub name: Option<String>,
    /// Where it runs.
    pub mode: AttachedMode,
}

impl Program {
    /// Whether it is one of this project's.
    pub fn is_ours(&self) -> bool {
        self.name.as_deref().is_some_and(|name| OUR_PROGRAMS.contains(&name))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            AttachedMode::Native => "native",
            AttachedMode::Generic => "generic",
            AttachedMode::Hardware => "on the card",
        };
        write!(f, "`{}` ({mode}, id {})", self.name.as_deref().unwrap_or("?"), self.id)
    }
}

pub(super) async fn gather(
    interface: netlink::Interface,
    all: &[netlink::Interface],
    manner: Manner,
) -> Result<Interface, netlink::Error> {
    let netlink::Interface { name, index, mtu, up, carrier, kind, controller, xdp, mac: _, addresses: _ } = interface;
    let controller = controller.map(|index| match all.iter().find(|other| other.index == index) {
        Some(found) => Controller { name: found.name.clone(), kind: found.kind.clone() },
        None => Controller { name: format!("number {index}"), kind: None },
    });
    // Attaching beside another program would only show that there is one.
    let trial =
        (manner == Manner::Try && xdp.is_empty()).then(|| trial::attach(index).map_err(|error| error.to_string()));
    let ethtool = Ethtool::open(&name).ok();
    let ethtool = ethtool.as_ref();
    let switch = |switch| ethtool?.switch(switch);
    let flag = |flag| ethtool?.flag(flag);
    Ok(Interface {
        driver: ethtool.and_then(Ethtool::driver),
        page: page(),
        programs: programs(&xdp),
        features: netlink::xdp_features(index).await?,
        trial,
        queues: ethtool.and_then(Ethtool::queues),
        lro: flag(Flag::Lro),
        gro: switch(Switch::Gro),
        rx_checksum: switch(Switch::RxChecksum),
        tx_checksum: switch(Switch::TxChecksum),
        vlan_stripping: flag(Flag::RxVlan),
        rp_filter: stricter(&name, "rp_filter"),
        forwarding4: net_setting(&format!("ipv4/conf/{name}/forwarding")).map(|value| value != 0),
        forwarding6: net_setting("ipv6/conf/all/forwarding").map(|value| value != 0),
        name,
        kind,
        up,
        carrier,
        mtu,
        controller,
    })
}

/// The attached programs with their names, which only root is told.
pub(super) fn programs(attached: &[netlink::Attached]) -> Vec<Program> {
    let name = |id| {
        let infos = || aya::programs::loaded_programs().filter_map(Result::ok);
        infos().find(|info| info.id() == id)?.name_as_str().map(str::to_owned)
    };
    attached.iter().map(|at| Program { id: at.program, name: name(at.program), mode: at.mode }).collect()
}

/// A setting of which the kernel takes the greater of the interface's and that of all.
pub(super) fn stricter(interface: &str, setting: &str) -> Option<i64> {
    let of = |name: &str| net_setting(&format!("ipv4/conf/{name}/{setting}"));
    Some(of("all")?.max(of(interface)?))
}

fn page() -> u32 {
    // SAFETY: takes a number; the size of a page is always known.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u32 }
}
