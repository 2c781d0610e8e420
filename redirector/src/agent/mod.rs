//! The agent: one task that owns a node's state. Events come in, maps are written; no packet waits for it.
//!
//! ```text
//! netlink (next hops, links) ─┐
//! control socket (apply) ─────┼─► agent ─► maps
//! ticks (peers, settle) ───────┘
//! ```
//!
//! When it ends, by whatever signal, the data plane stays as it is and forwards on; the next agent adopts it.

mod agreement;
pub mod audit;
mod backends;
pub mod backup;
mod change;
mod committed;
mod condition;
pub mod control;
pub mod copies;
mod counts;
mod drains;
mod follow;
pub mod follower;
mod health;
mod incidents;
mod liveness;
pub mod lookout;
mod next_hops;
mod node;
mod paths;
pub mod pulse;
mod record;
mod refused;
mod signals;
mod talk;
mod tally;
pub mod terms;
mod verify;
pub mod witness;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

pub use agreement::{AgreementStatus, Durable, LogStatus, MemberStatus};
pub use backends::BackendStatus;
pub use change::{Applied, ApplyError};
pub use condition::LoadStatus;
pub use drains::DrainStatus;
pub use health::HealthStatus;
pub(crate) use liveness::boot_id;
pub use liveness::{LinkStatus, LivenessStatus, PeerStatus};
pub use node::{Node, load_alone};
pub use paths::PathStatus;
pub use refused::RefusedStatus;
pub use signals::FlowSigns;

use follow::Change;

use crate::config::XdpMode;
use crate::journal::Kind;
use crate::netlink::{self, Event};
use crate::vip::{self, Vips};

/// How often disputes are looked at and numbers are given back.
const TIDY: Duration = Duration::from_secs(5);

/// How often the agent gives a sign of life and looks at its peers, besides whenever a peer's bit or incarnation changes; and
/// how often it sweeps a part of the flow tables, which it is through in 5 s.
const PULSE: Duration = Duration::from_millis(40);

/// How often what was counted is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How long the agent takes to say farewell at most.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often next hops are asked for again that the kernel does not keep by itself.
const REFRESH: Duration = Duration::from_secs(20);

/// Runs the agent of a configuration file until a signal ends it. `mode` overrides how the file has XDP attached.
///
/// # Errors
/// What keeps it from starting; once started, it goes on.
pub async fn run(path: &Path, mode: Option<XdpMode>) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut watch = netlink::watch()?;
    let mut node = Node::start(&path.display().to_string(), &text, mode).await?;
    node.start_liveness()?;
    // What happened while no agent ran was told to nobody.
    node.read_carriers().await;
    node.read_next_hops().await;
    let mut sessions = node.start_bfd()?;
    node.follow().await;
    let (mut seen, mut decisions) = (node.changes(), node.decisions());
    let mut vips = Vips::start(node.config(), node.breakers(), node.incidents.journal().clone())?;
    look_after_vips(&mut vips, &mut node).await;
    let (requests, mut requested) = mpsc::channel(16);
    let _socket = control::listen(node.config(), requests)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut reload = signal(SignalKind::hangup())?;
    let (mut tidy, mut refresh, mut pulse) = (interval(TIDY), interval(REFRESH), interval(PULSE));
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tidy.set_missed_tick_behavior(MissedTickBehavior::Delay);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tracing::info!(node = node.config().node.name, version = node.version(), "redirecting");
    node.incidents.journal().note(Kind::Agent, None, "the agent redirects");

    loop {
        tokio::select! {
            event = watch.next() => match event {
                Some(event) => heard(&mut node, event).await,
                None => {
                    tracing::warn!("the netlink socket failed; opened again");
                    watch = netlink::watch()?;
                    heard(&mut node, Event::Missed).await;
                }
            },
            Some((request, answer)) = requested.recv() => {
                control::answer(&mut node, request, answer).await;
                look_after_vips(&mut vips, &mut node).await;
            }
            Ok(()) = sessions.changed() => {
                let signs = sessions.borrow_and_update().clone();
                node.set_sessions(signs);
            }
            Ok(()) = decisions.changed() => {
                let before = (node.version(), node.planned_vips());
                node.follow().await;
                if (node.version(), node.planned_vips()) != before {
                    look_after_vips(&mut vips, &mut node).await;
                }
            }
            _ = tidy.tick() => {
                node.follow().await;
                node.read_next_hops().await;
                node.tidy();
                node.look_after_agreement();
                look_after_vips(&mut vips, &mut node).await;
            }
            _ = pulse.tick() => {
                look_at_peers(&mut vips, &mut node).await;
                node.sweep();
            }
            _ = look.tick() => {
                node.breakers().look();
                node.audit();
                node.look_at_drains();
                node.note_incidents(true);
            }
            Ok(()) = seen.changed() => look_at_peers(&mut vips, &mut node).await,
            _ = refresh.tick() => node.refresh_next_hops().await,
            _ = reload.recv() => {
                reread(&mut node, path).await;
                look_after_vips(&mut vips, &mut node).await;
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    vips.end().await;
    // Peers notice by themselves, a little later, where this takes too long.
    let _ = tokio::time::timeout(FAREWELL, node.end()).await;
    node.incidents.journal().note(Kind::Agent, None, "the agent ends; the data plane goes on");
    node.incidents.journal().flush();
    tracing::info!("the agent ends; the data plane stays and goes on");
    Ok(())
}

/// Gives a sign of life, lets peers be alive that may be, and tells who holds VIPs of it.
async fn look_at_peers(vips: &mut Vips, node: &mut Node) {
    node.look_at_peers();
    if node.is_waiting() {
        node.follow().await;
    }
    node.note_incidents(false);
    let view = node.view();
    if vips.is_news(&view) {
        node.tell_at_once(vips.handle());
        vips.view(view).await;
    }
    node.set_announces(vips.announces());
}

/// Which VIPs there are follows from the configuration, and whether this node may hold any from whether packets can be
/// served at all.
async fn look_after_vips(vips: &mut Vips, node: &mut Node) {
    node.set_links(vip::links(node.config()).await);
    vips.configure(node.config(), &node.planned_vips()).await;
    look_at_peers(vips, node).await;
}

async fn heard(node: &mut Node, event: Event) {
    match event {
        Event::Neighbour(neighbour) => node.neighbour(&neighbour),
        Event::NeighbourGone { index, address } => node.neighbour_gone(index, address),
        Event::Link { index, carrier: false, .. } => node.carrier(index, false),
        // The kernel drops the entries that it kept when a link goes down, and does not take them up again.
        Event::Link { .. } | Event::Missed => {
            match event {
                Event::Link { index, .. } => node.carrier(index, true),
                _ => node.read_carriers().await,
            }
            node.keep_next_hops().await;
            node.read_next_hops().await;
        }
        other => tracing::debug!(?other, "not acted upon"),
    }
}

/// `SIGHUP`: certificates are read anew, and the file is applied as by `apply`.
async fn reread(node: &mut Node, path: &Path) {
    if let Some(talk) = &node.talk {
        talk.renew(&node.config);
    }
    let name = path.display().to_string();
    let change = match std::fs::read_to_string(path) {
        Ok(text) => node.apply(&name, &text, None).await.map_err(anyhow::Error::new),
        Err(error) => Err(error.into()),
    };
    let tell = move |result: Result<Applied>| match result {
        Ok(applied) => {
            tracing::info!(version = applied.version, changes = applied.changes.len(), "configuration reread")
        }
        Err(error) => tracing::error!(file = name, "the file is not applied; what was in force stays: {error:#}"),
    };
    match change {
        Ok(Change::Done(applied)) => tell(Ok(applied)),
        Ok(Change::Asked(asked)) => {
            tokio::spawn(async move { tell(asked.decide().await.map_err(anyhow::Error::new)) });
        }
        Err(error) => tell(Err(error)),
    }
}
