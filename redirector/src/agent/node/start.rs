//! How a node starts: with which configuration, key and data plane.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::Node;
use crate::agent::agreement::Agreement;
use crate::agent::audit::Audit;
use crate::agent::backends::Backends;
use crate::agent::change::ApplyError;
use crate::agent::committed::{self, Committed};
use crate::agent::condition::Condition;
use crate::agent::drains::Drains;
use crate::agent::health::SelfHealth;
use crate::agent::incidents::Incidents;
use crate::agent::liveness::Liveness;
use crate::agent::record::Record;
use crate::agent::talk::Talk;
use crate::agent::{control, follower, next_hops};
use crate::breaker::{Breakers, Policy};
use crate::config::{self, Config, XdpMode};
use crate::dataplane::flows::now;
use crate::dataplane::image::{self, Image, Link, Links, NextHop};
use crate::dataplane::install::{self, Sweep};
use crate::dataplane::load;
use crate::dataplane::maps::Maps;
use crate::doctor::fitness;
use crate::journal::Journal;
use crate::netlink;

/// Stands before the data directory. Who waits for the disk asks again with each tick. A disk that answers no more has but
/// one or two callers, and opens it by the time that it takes.
pub(in crate::agent) const DISK: Policy = Policy {
    failures: 3,
    window: Duration::from_secs(60),
    timeout: Duration::from_secs(2),
    patience: Duration::from_secs(5),
};

async fn links() -> Result<Links, netlink::Error> {
    let link = |interface: netlink::Interface| {
        let addresses = interface.addresses.iter().map(|(address, _)| *address).collect();
        (interface.name, Link { index: interface.index, mac: interface.mac, mtu: interface.mtu, addresses })
    };
    Ok(netlink::interfaces().await?.into_iter().map(link).collect())
}

fn key_of(config: &Config) -> Result<[u8; 16]> {
    match config.cluster.key {
        Some(key) => Ok(key.0),
        None => committed::own_key(&config.node.data).with_context(|| {
            format!("no cluster key is configured and none can be kept in {}", config.node.data.display())
        }),
    }
}

/// What the maps should hold for a configuration, and for flows that are older than it.
pub(in crate::agent) async fn compile(config: &Config, key: [u8; 16], maps: &Maps) -> Result<Image, ApplyError> {
    let mut image = image::compile(config, key, &links().await?, maps.registry()?)?;
    install::keep_old_hops(&mut image);
    install::room(&image)?;
    Ok(image)
}

/// Has XDP attached in one way, whatever the file says.
pub(in crate::agent) fn override_mode(config: &mut Config, mode: Option<XdpMode>) {
    if let Some(mode) = mode {
        config.interfaces.iter_mut().for_each(|interface| interface.mode = mode);
    }
}

/// Loads or adopts the data plane of a configuration and attaches it. Where slots and rows are `agreed` on, those that are
/// there stay until this node knows better.
async fn bring_up(config: &Config, key: [u8; 16], agreed: bool) -> Result<(Maps, Image, Vec<NextHop>)> {
    let directory = load::directory(&config.node.pins);
    // Makes the maps, or finds them; each port then gets an instance of the program of its own.
    drop(load::open(&directory, config, 0)?);
    let mut maps = Maps::open(&directory)?;
    let mut image = compile(config, key, &maps).await?;
    follower::adopt(agreed, &mut image, &maps, &maps.liveness)?;
    let kept_by_agent = next_hops::learn(&mut maps, &image).await;
    install::install(&mut maps, &image)?;
    for interface in &config.interfaces {
        let number = image.port_number(&interface.name);
        let number = number.with_context(|| format!("interface {} has no port", interface.name))?;
        let mut ebpf = load::open(&directory, config, u32::from(number))?;
        let program = load::data_plane(&mut ebpf, u32::from(number))?;
        let attached = load::attach(program, &directory, &interface.name, interface.mode)?;
        tracing::info!(interface = interface.name, mode = %attached, "attached");
    }
    load::detach_others(&directory, config)?;
    Ok((maps, image, kept_by_agent))
}

impl Node {
    /// Starts a node from the text of its configuration file: what was committed last counts, unless the file was edited
    /// since it was last read. `mode` overrides how XDP is attached.
    ///
    /// # Errors
    /// Whatever keeps the data plane from being loaded.
    pub async fn start(name: &str, text: &str, mode: Option<XdpMode>) -> Result<Self> {
        let file = config::parse(name, text)?;
        if file.is_witness() {
            let id = file.node.id;
            bail!("node {id} is a [[witness]] in {name}, which has no data plane: `redirector witness` runs it");
        }
        fitness::judge(&file).map_err(|unfit| anyhow::anyhow!("{unfit}; {}", fitness::mend(&file, name)))?;
        let digest = committed::digest(text);
        let breakers = Breakers::default();
        let disk = breakers.breaker("data directory", DISK);
        let incidents = Incidents::new(Journal::start(&file.node.data, breakers.breaker("journal", DISK)));
        let known = committed::read(&file.node.data, incidents.journal())
            .with_context(|| format!("cannot read what is committed in {}", file.node.data.display()))?;
        let agrees = Agreement::is_for(&file);
        let on_disk = known.clone();
        let (config, committed) = match known {
            Some(known) if known.agreed && agrees => {
                match config::merge(&format!("{name}, as agreed"), &known.text, &file) {
                    Ok(config) => (config, known),
                    Err(mistakes) => {
                        tracing::error!(%mistakes, "what was agreed on does not fit this node; the file is taken meanwhile");
                        (file, known)
                    }
                }
            }
            Some(known) if known.file == digest && !known.agreed => {
                match config::parse(&format!("{name}, as committed"), &known.text) {
                    Ok(config) => (config, known),
                    Err(mistakes) => {
                        tracing::error!(%mistakes, "what is committed is not understood; the file is taken");
                        (
                            file,
                            Committed {
                                version: known.version + 1,
                                file: digest,
                                text: text.to_owned(),
                                agreed: false,
                            },
                        )
                    }
                }
            }
            known => {
                let version = known.map_or(1, |known| known.version + 1);
                (file, Committed { version, file: digest, text: text.to_owned(), agreed: false })
            }
        };
        let key = key_of(&config)?;
        let _held = control::hold(&load::prepare(&config.node.pins)?)?;
        let mut config = config;
        override_mode(&mut config, mode);
        let agreed = agrees && committed.agreed;
        let edited = (agreed && committed.file != digest).then(|| text.to_owned());
        let (maps, image, kept_by_agent) = bring_up(&config, key, agreed).await?;
        let mut record = Record::new(&config.node.data, disk.clone());
        if on_disk.as_ref() != Some(&committed)
            && let Err(error) = record.commit(&committed).await
        {
            // Packets do not wait for the disk; the next start comes to the same.
            tracing::error!(data = %config.node.data.display(), %error, "what is in force cannot be kept on disk: make room");
        }
        let began = Duration::from_nanos(now());
        let health = SelfHealth::start(&config.node.data, &breakers)?;
        let mut condition = Condition::new(&config);
        condition.was_written(config.limits.shed_level);
        Ok(Self {
            config,
            mode,
            key,
            committed,
            image,
            maps,
            sweep: Sweep::default(),
            kept_by_agent,
            liveness: None,
            talk: None,
            agreement: None,
            file: PathBuf::from(name),
            edited,
            asking: None,
            waiting: false,
            backends: Backends::default(),
            drains: Drains::default(),
            attached: true,
            announces: true,
            began,
            breakers,
            disk,
            record,
            incidents,
            audit: Audit::default(),
            audits: 0,
            audited: 0,
            condition,
            health,
            speaker: None,
            _held,
        })
    }

    /// Starts the timer of the alive bits, and asks the peers from now on.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub(in crate::agent) fn start_liveness(&mut self) -> Result<()> {
        let directory = load::directory(&self.config.node.pins);
        let journal = self.incidents.journal();
        let liveness = Liveness::start(&directory, &self.config, self.key, &self.image, &self.breakers, journal)?;
        self.liveness = Some(liveness);
        load::start_timer(&mut load::open(&directory, &self.config, 0)?)?;
        self.talk = Talk::start(&self.config, &directory, &self.breakers);
        self.start_agreement();
        Ok(())
    }
}

/// Loads the data plane of a configuration without an agent.
///
/// # Errors
/// Whatever keeps it from being loaded.
pub async fn load_alone(name: &str, text: &str, mode: Option<XdpMode>) -> Result<()> {
    Node::start(name, text, mode).await.map(drop)
}
