//! The thread that speaks with all peers: real-time priority, as beats have it, and nothing shared that it waits for.
//!
//! Whatever waits at its sockets is taken before a verdict is passed, so that its own stall looks like nobody's death. It
//! takes so many datagrams a turn at most and then rests a moment: who floods it does not take the CPU.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::auth::Numbers;
use super::packet::{Discard, Packet, State, diagnostic};
use super::session::{Session, Timers};
use super::socket::{Ear, Mouth, TTL, interface_index, wait};
use crate::config::Bfd;
use crate::dataplane::flows::now;
use crate::journal::{Journal, Kind};
use crate::liveness::be_real_time;
use crate::paths::health::Sign;

/// Datagrams that are taken from a socket in a turn.
const TURN: usize = 64;
/// How long it rests after a turn that took so many.
const REST: u64 = 1_000_000;
/// How often sockets that could not be opened are tried again, and interfaces looked for that were made anew.
const REOPEN: u64 = 1_000_000_000;
/// How often it looks whether it is to end.
const LOOK: u64 = 100_000_000;

/// The speaker could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No thread.
    #[error("the thread that speaks BFD could not be started")]
    Thread(#[source] io::Error),
    /// No random numbers.
    #[error("no random number for the discriminators of BFD: {0}")]
    Random(getrandom::Error),
}

/// A session, as the agent tells of it. Times in milliseconds unless named otherwise.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The peer.
    pub peer: IpAddr,
    /// The interface, over a single hop.
    pub interface: Option<String>,
    /// What it is.
    pub state: State,
    /// How long it has been that.
    pub for_ms: u64,
    /// Why it left its state last, in the RFC's words.
    pub diagnostic: String,
    /// What the peer says it is.
    pub remote_state: State,
    /// Why the peer's left its state last.
    pub remote_diagnostic: String,
    /// This side's discriminator.
    pub discriminator: u32,
    /// The peer's; 0: not known.
    pub remote_discriminator: u32,
    /// Time between two packets, as negotiated, microseconds; none where the peer takes none.
    pub interval_us: Option<u64>,
    /// After so long without a packet the peer is dead, as negotiated, microseconds; none while it is not heard.
    pub detection_us: Option<u64>,
    /// What it says of paths to the peer.
    pub sign: Sign,
    /// How often it came up.
    pub ups: u64,
    /// How often it went down from that.
    pub downs: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets that counted.
    pub received: u64,
    /// Packets from the peer that were thrown away, by reason.
    pub discarded: BTreeMap<Discard, u64>,
    /// Why packets cannot be sent or heard, where they cannot.
    pub trouble: Option<String>,
}

/// A speaker that runs. It ends when it is dropped, and tells the peers so.
pub struct Speaker {
    shared: Arc<Shared>,
    signs: watch::Receiver<Vec<Sign>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    statuses: Mutex<Vec<Status>>,
    stop: AtomicBool,
}

impl Speaker {
    /// Starts the thread, in the network namespace of this one.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(peers: &[Bfd], journal: Journal) -> Result<Self, StartError> {
        let shared = Arc::new(Shared::default());
        let (told, signs) = watch::channel(vec![Sign::None; peers.len()]);
        let peers = peers.iter().enumerate().map(|(at, settings)| Peer::new(at, settings)).collect::<Result<_, _>>();
        let mut work = Work {
            shared: shared.clone(),
            told,
            journal,
            peers: peers.map_err(StartError::Random)?,
            ears: Vec::new(),
            deaf: BTreeMap::new(),
            reopen: 0,
        };
        let thread = thread::Builder::new().name("bfd".to_owned()).spawn(move || work.run());
        Ok(Self { shared, signs, thread: Some(thread.map_err(StartError::Thread)?) })
    }

    /// What each session says of paths, in the order of the configuration; changes when one does.
    pub fn signs(&self) -> watch::Receiver<Vec<Sign>> {
        self.signs.clone()
    }

    /// What there is to tell of the sessions.
    pub fn statuses(&self) -> Vec<Status> {
        self.shared.statuses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends within a look; that it panicked was said where it did.
            let _ = thread.join();
        }
    }
}

struct Peer {
    settings: Bfd,
    session: Session,
    mouth: Option<Mouth>,
    choice: u32,
    /// The number of the next packet that is authentic.
    number: u32,
    numbers: Numbers,
    trouble: Option<String>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    ups: u64,
    downs: u64,
    sent: u64,
    received: u64,
    discarded: BTreeMap<Discard, u64>,
}

impl Peer {
    fn new(at: usize, settings: &Bfd) -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        // Unique among this host's sessions: the number is a part of it.
        let discriminator = word(0) & 0xffff_0000 | (at as u32 + 1) & 0xffff;
        let timers = Timers { min_tx: settings.min_tx, min_rx: settings.min_rx, multiplier: settings.multiplier };
        let seed = u64::from(word(4)) << 32 | u64::from(word(8));
        Ok(Self {
            settings: settings.clone(),
            session: Session::new(timers, discriminator, seed, Duration::from_nanos(now())),
            mouth: None,
            choice: word(8),
            number: word(12),
            numbers: Numbers::default(),
            trouble: None,
            counts: Counts::default(),
        })
    }

    fn is_multihop(&self) -> bool {
        self.settings.interface.is_none()
    }

    /// Opens its socket where there is none, or its interface is another one meanwhile.
    fn open(&mut self) {
        let Bfd { peer, interface, local, .. } = &self.settings;
        let index = interface.as_deref().map_or(Some(0), interface_index);
        if self.mouth.as_ref().is_some_and(|mouth| Some(mouth.interface) == index) {
            return;
        }
        self.mouth = match Mouth::open(*peer, interface.as_deref(), *local, self.choice) {
            Ok(mouth) => Some(mouth),
            Err(error) => {
                self.trouble = Some(match interface {
                    Some(name) if index.is_none() => format!("there is no interface {name}"),
                    _ => format!("nothing can be sent: {error}"),
                });
                None
            }
        };
    }

    /// A packet that is this session's.
    fn take(&mut self, packet: &Packet, bytes: &[u8], at: Duration) -> Result<(), Discard> {
        let admitted = match &self.settings.key {
            None => !packet.authenticated,
            Some(key) => packet.authenticated && key.admits(bytes, self.session.remote().multiplier, &mut self.numbers),
        };
        if !admitted {
            return Err(Discard::Authentication);
        }
        self.session.handle_packet(packet, at)?;
        if let Some(detection) = self.session.detection() {
            self.numbers.heard(at, detection);
        }
        Ok(())
    }

    fn send(&mut self, at: Duration) {
        while let Some(mut packet) = self.session.poll_packet(at) {
            packet.authenticated = self.settings.key.is_some();
            let mut bytes = packet.write().to_vec();
            if let Some(key) = &self.settings.key {
                key.append(&mut bytes, self.number);
                self.number = self.number.wrapping_add(1);
            }
            let Some(mouth) = &self.mouth else { continue };
            match mouth.say(&bytes) {
                Ok(()) => {
                    self.counts.sent += 1;
                    self.trouble = None;
                }
                Err(error) => self.trouble = Some(format!("nothing can be sent: {error}")),
            }
        }
    }

    fn status(&self, at: Duration, deaf: Option<&String>) -> Status {
        let (session, counts) = (&self.session, &self.counts);
        let remote = session.remote();
        Status {
            peer: self.settings.peer,
            interface: self.settings.interface.clone(),
            state: session.state(),
            for_ms: at.saturating_sub(session.since()).as_millis() as u64,
            diagnostic: diagnostic::name(session.diagnostic()).to_owned(),
            remote_state: remote.state,
            remote_diagnostic: diagnostic::name(remote.diagnostic).to_owned(),
            discriminator: session.discriminator(),
            remote_discriminator: remote.discriminator,
            interval_us: session.interval().map(|time| time.as_micros() as u64),
            detection_us: session.detection().map(|time| time.as_micros() as u64),
            sign: session.sign(),
            ups: counts.ups,
            downs: counts.downs,
            sent: counts.sent,
            received: counts.received,
            discarded: counts.discarded.clone(),
            trouble: deaf.or(self.trouble.as_ref()).cloned(),
        }
    }
}

struct Work {
    shared: Arc<Shared>,
    told: watch::Sender<Vec<Sign>>,
    journal: Journal,
    peers: Vec<Peer>,
    ears: Vec<Ear>,
    /// Why nothing is heard of peers of a family (IPv6?) and kind (several hops?).
    deaf: BTreeMap<(bool, bool), String>,
    reopen: u64,
}

impl Work {
    fn run(&mut self) {
        if let Err(error) = be_real_time() {
            tracing::warn!(%error, "BFD is spoken without real-time priority: short detection times may be missed");
        }
        let mut publish = 0;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let time = now();
            if time >= self.reopen {
                self.reopen = time + REOPEN;
                self.open();
            }
            let rests = self.hear();
            let at = Duration::from_nanos(now());
            for peer in &mut self.peers {
                peer.session.handle_timeout(at);
                peer.numbers.pass(at);
                peer.send(at);
            }
            if self.tell() || time >= publish {
                publish = time + LOOK;
                self.publish(at);
            }
            if rests {
                thread::sleep(Duration::from_nanos(REST));
                continue;
            }
            let due = self.peers.iter().filter_map(|peer| peer.session.poll_timeout()).min();
            let due = due.map_or(u64::MAX, |due| due.as_nanos() as u64);
            wait(&self.ears, due.saturating_sub(now()).min(LOOK));
        }
        let at = Duration::from_nanos(now());
        for peer in &mut self.peers {
            peer.session.end(at);
            peer.send(at);
        }
    }

    fn open(&mut self) {
        for peer in &mut self.peers {
            peer.open();
            let kind = (peer.settings.peer.is_ipv6(), peer.is_multihop());
            if self.ears.iter().any(|ear| (ear.v6, ear.multihop) == kind) {
                continue;
            }
            match Ear::open(kind.0, kind.1) {
                Ok(ear) => {
                    self.ears.push(ear);
                    self.deaf.remove(&kind);
                }
                Err(error) => {
                    let port = if kind.1 { super::socket::MULTIHOP } else { super::socket::SINGLE_HOP };
                    let why = format!(
                        "UDP port {port} cannot be listened at ({error}): does a routing daemon speak BFD here?"
                    );
                    if self.deaf.insert(kind, why.clone()).is_none() {
                        tracing::error!("{why}");
                    }
                }
            }
        }
    }

    /// Takes what waits; says whether there may be more.
    fn hear(&mut self) -> bool {
        let mut more = false;
        for ear in 0..self.ears.len() {
            let mut taken = 0;
            while taken < TURN
                && let Some(datagram) = self.ears[ear].hear()
            {
                taken += 1;
                let multihop = self.ears[ear].multihop;
                // Whoever is no peer is not worth a count.
                let is_from = |peer: &&mut Peer| {
                    let settings = &peer.settings;
                    let over = peer.mouth.as_ref().map_or(0, |mouth| mouth.interface);
                    settings.peer == datagram.source
                        && peer.is_multihop() == multihop
                        && (multihop || over == datagram.interface)
                };
                let Some(peer) = self.peers.iter_mut().find(is_from) else { continue };
                let bytes = &datagram.bytes[..datagram.length];
                let at = Duration::from_nanos(now());
                let taken = match Packet::read(bytes) {
                    Err(why) => Err(why),
                    Ok(_) if !multihop && datagram.ttl != TTL => Err(Discard::Ttl),
                    Ok((packet, _)) if ![0, peer.session.discriminator()].contains(&packet.yours) => {
                        Err(Discard::Stranger)
                    }
                    Ok((packet, length)) => peer.take(&packet, &bytes[..length], at),
                };
                match taken {
                    Ok(()) => peer.counts.received += 1,
                    Err(why) => *peer.counts.discarded.entry(why).or_default() += 1,
                }
            }
            more |= taken == TURN;
        }
        more
    }

    /// Tells of changes; says whether there were any.
    fn tell(&mut self) -> bool {
        let mut any = false;
        for peer in &mut self.peers {
            while let Some(change) = peer.session.poll_change() {
                any = true;
                peer.counts.ups += u64::from(change.to == State::Up);
                peer.counts.downs += u64::from(change.from == State::Up);
                let (who, why) = (peer.settings.peer, diagnostic::name(change.diagnostic));
                tracing::info!(peer = %who, from = ?change.from, to = ?change.to, why, "a BFD session changed");
                if State::Up == change.to {
                    self.journal.note(Kind::Session, None, format!("the BFD session with {who} is up"));
                } else if State::Up == change.from {
                    self.journal.note(Kind::Session, None, format!("the BFD session with {who} is down: {why}"));
                }
            }
        }
        let signs: Vec<Sign> = self.peers.iter().map(|peer| peer.session.sign()).collect();
        self.told.send_if_modified(|told| {
            let differs = *told != signs;
            *told = signs;
            differs
        });
        any
    }

    fn publish(&self, at: Duration) {
        let status = |peer: &Peer| peer.status(at, self.deaf.get(&(peer.settings.peer.is_ipv6(), peer.is_multihop())));
        let statuses = self.peers.iter().map(status).collect();
        if let Ok(mut place) = self.shared.statuses.try_lock() {
            *place = statuses;
        }
    }
}
