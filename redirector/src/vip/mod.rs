//! VIPs: which node answers for each, and how the world is told.
//!
//! ```text
//!                    committed members and VIPs ─► plan
//!                                                    │
//! liveness: views ─► Handle::view ─► thread: machine ┴─► HELD4, HELD6 (XDP answers ARP and ND)
//!                                       ▲    │
//!                       answers to probes    └─► announcements, probes (packet sockets)
//!            fitness ─► Vips::view ─► routes, for BIRD or FRR
//! ```
//!
//! To be used so: [`Vips::start`] once the data plane is attached; [`Vips::view`] with each change of who is alive, in
//! whose eyes, or of this node's fitness, *before* that fitness is told to the peers; [`Vips::configure`] with each
//! configuration that takes effect; [`Vips::end`] when the agent ends by its own will. Who measures liveness on a thread
//! of its own gives its views to a [`Handle`] directly, and spares a detour. An agent that is killed leaves everything as
//! it is.
//!
//! This room never decides who is alive.

pub mod announce;
pub mod machine;
pub mod plan;
pub mod route;
mod segment;
mod shell;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};

pub use machine::{Fitness, View};
pub(crate) use segment::Segment;
pub use shell::{Handle, Settings, held};

use crate::breaker::{Breaker, Breakers, Policy};
use crate::config::{Config, Prefix, XdpMode};
use crate::journal::Journal;
use crate::netlink::{self, AttachedMode};

/// Stands before the kernel's routes. They are looked at every few seconds, and with each change of who is alive.
const ROUTING: Policy = Policy {
    failures: 3,
    window: Duration::from_secs(60),
    timeout: Duration::from_secs(4),
    patience: Duration::from_secs(10),
};

/// All VIPs of a node.
pub struct Vips {
    handle: Handle,
    routed: BTreeSet<Prefix>,
    fitness: Fitness,
    view: View,
    routing: Arc<Breaker>,
    /// Whether routes may be there.
    announces: bool,
}

impl Vips {
    /// Starts with a configuration whose data plane is attached. Needs a tokio runtime.
    ///
    /// # Errors
    /// Where the maps cannot be opened.
    pub fn start(config: &Config, breakers: &Breakers, journal: Journal) -> Result<Self> {
        let handle = shell::start(Settings::of(config, &BTreeMap::new()), journal).context("cannot look after VIPs")?;
        let routing = breakers.breaker("routing", ROUTING);
        let routed = route::announced(config);
        Ok(Self { handle, routed, fitness: Fitness::Unfit, view: View::default(), routing, announces: true })
    }

    /// A way to the thread that holds VIPs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Whether a view differs from the last one.
    pub fn is_news(&self, view: &View) -> bool {
        self.view != *view
    }

    /// Tells what this node knows of the cluster now. A node that drains withdraws its routes at once: nobody needs to
    /// take them over.
    pub async fn view(&mut self, view: View) {
        self.fitness = view.fitness;
        self.view.clone_from(&view);
        self.handle.view(view);
        self.route().await;
    }

    /// Takes over another configuration, and what is committed of who holds what.
    pub async fn configure(&mut self, config: &Config, committed: &BTreeMap<String, Vec<u8>>) {
        self.handle.change(Settings::of(config, committed));
        self.routed = route::announced(config);
        self.route().await;
    }

    /// Ends: routes are taken out; what is held stays held, since the data plane goes on answering.
    pub async fn end(mut self) {
        self.fitness = Fitness::Unfit;
        self.route().await;
    }

    /// Whether routes to VIPs may be there.
    pub fn announces(&self) -> bool {
        self.announces
    }

    async fn route(&mut self) {
        let none = BTreeSet::new();
        let wanted = if self.fitness == Fitness::Ready { &self.routed } else { &none };
        let any = !wanted.is_empty();
        self.announces |= any;
        let permit = match self.routing.ask() {
            Ok(permit) => permit,
            Err(open) => return tracing::debug!(%open, "routes to VIPs"),
        };
        let held = route::hold(wanted).await;
        permit.told(&held);
        match held {
            Ok((0, 0)) => {}
            Ok((put, dropped)) => tracing::info!(put, dropped, "routes to VIPs"),
            Err(error) => return tracing::error!("routes to VIPs: {:#}", anyhow::Error::new(error)),
        }
        self.announces = any;
    }
}

/// A configuration's interfaces, as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    /// Those with a carrier.
    pub carried: usize,
    /// Those with XDP in the mode that is configured.
    pub attached: usize,
    /// Whether all have XDP, in any mode.
    pub is_attached: bool,
}

/// How many of a configuration's interfaces have a carrier, and how many have XDP attached, in the mode that is configured;
/// none where it cannot be found out.
pub async fn links(config: &Config) -> Option<Links> {
    let all = match netlink::interfaces().await {
        Ok(all) => all,
        Err(error) => {
            tracing::warn!(%error, "whether XDP is attached is not known");
            return None;
        }
    };
    let mut links = Links { carried: 0, attached: 0, is_attached: true };
    for interface in &config.interfaces {
        let found = all.iter().find(|found| found.name == interface.name);
        let fits = |mode| match interface.mode {
            XdpMode::Auto => true,
            XdpMode::Native => mode != AttachedMode::Generic,
            XdpMode::Generic => mode == AttachedMode::Generic,
        };
        links.carried += usize::from(found.is_some_and(|found| found.carrier));
        links.attached += usize::from(found.is_some_and(|found| found.xdp.iter().any(|xdp| fits(xdp.mode))));
        links.is_attached &= found.is_some_and(|found| !found.xdp.is_empty());
    }
    Some(links)
}
