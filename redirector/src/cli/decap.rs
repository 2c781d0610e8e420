//! `decap`: the backend's side.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, LpmTrie};
use redirector_ebpf::decap::Settings as Own;

use super::plane::{log, runtime};
use super::target::{CONFIG, require_root};
use crate::agent::{boot_id, control};
use crate::config::{self, Decap as Settings, Prefix, XdpMode};
use crate::dataplane::address::{mac_word, mapped};
use crate::dataplane::{install, load};
use crate::netlink;

/// Arguments of `decap`.
#[derive(Debug, clap::Args)]
pub(super) struct Decap {
    /// A configuration with a `[decap]` table.
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Look for what this host lacks as a backend, and load nothing.
    #[arg(long)]
    check: bool,
    /// How XDP is attached.
    #[arg(long, value_enum, default_value = "auto")]
    mode: XdpMode,
}

impl Decap {
    pub(super) fn run(self) -> Result<()> {
        require_root()?;
        let settings = config::load_decap(&self.config)?;
        if self.check {
            return super::doctor::check_backend(&settings);
        }
        log();
        runtime()?.block_on(serve(&settings, self.mode))
    }
}

/// Attaches the program, or takes over the one that a killed process left, and waits for a signal. Then it goes: a backend
/// whose operator has ended it should get no packets, and its paths' beats should fall silent.
async fn serve(settings: &Settings, mode: XdpMode) -> Result<()> {
    // Named by namespace and interface, so that several hosts' programs on one machine do not meet.
    let namespace = std::fs::metadata("/proc/self/ns/net").context("cannot tell the network namespace")?.ino();
    let (mut held, mut all) = (Vec::new(), Vec::new());
    let mut result = Ok(());
    for name in &settings.interfaces {
        let interface = netlink::interface(name).await?;
        let pins = PathBuf::from(format!("/sys/fs/bpf/redirector-decap-{namespace}-{name}"));
        let directory = load::prepare(&pins)?;
        held.push(control::hold(&directory)?);
        all.push(pins);
        match attach(settings, &interface, &directory, mode) {
            Ok(attached) => tracing::info!(interface = name, mode = %attached, "taking tunnels apart"),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    if result.is_ok() {
        result = wait().await;
    }
    for pins in all {
        load::unload(&pins)?;
    }
    result
}

fn attach(
    settings: &Settings,
    interface: &netlink::Interface,
    directory: &std::path::Path,
    mode: XdpMode,
) -> Result<load::Attached> {
    let mut ebpf = load::open_decap(directory)?;
    let (key, key_id) = settings.path_key.map_or(([0; 2], 0), |key| (key.words(), key.number()));
    let own = Own {
        mac: mac_word(interface.mac),
        key,
        boot_id: boot_id(),
        cluster: settings.cluster,
        gue_port: settings.gue_port.to_be(),
        key_id,
        pad: 0,
    };
    let map = ebpf.map_mut("DECAP").context("the object has no map DECAP")?;
    Array::<_, Own>::try_from(map)?.set(0, own, 0)?;
    for (name, prefixes) in [("DECAP_SOURCES", &settings.sources), ("DECAP_VIPS", &settings.vips)] {
        let map = ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
        install::update_trie(&mut LpmTrie::try_from(map)?, &keys(prefixes), name)?;
    }
    Ok(load::attach(load::program(&mut ebpf, "redirector_decap")?, directory, &interface.name, mode)?)
}

fn keys(prefixes: &[Prefix]) -> HashMap<(u32, [u32; 4]), u32> {
    let bits = |prefix: &Prefix| u32::from(prefix.length()) + if prefix.address().is_ipv4() { 96 } else { 0 };
    prefixes.iter().map(|prefix| ((bits(prefix), mapped(prefix.address()).words), 1)).collect()
}

async fn wait() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Where findings are errors, the command fails.
pub(super) fn fail_on(errors: usize) -> Result<()> {
    match errors {
        0 => Ok(()),
        1 => bail!("1 finding keeps this host from working"),
        many => bail!("{many} findings keep this host from working"),
    }
}
