//! The thread that does what the machine says: maps, packet sockets, time.
//!
//! It sleeps until a view is handed over, a neighbour says something, or a time has come; nothing is polled for. A thread
//! and no task, so that the first announcement waits for nothing else that the agent does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redirector_ebpf::packet::Address;

use super::announce::Schedule;
use super::machine::{Action, Machine, Timing, View};
use super::plan::{self, Plan};
use super::segment::{self, Segment};
use crate::config::{Config, Ingress};
use crate::dataplane::address::{address, ip, mac_bytes};
use crate::dataplane::load;
use crate::dataplane::maps::{Maps, MapsError, read, written};
use crate::journal::{Journal, Kind};
use crate::liveness::be_real_time;

/// What the thread must know of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This node.
    pub me: u8,
    /// Where the data plane's maps are pinned.
    pub pins: PathBuf,
    /// Who holds what.
    pub plan: Plan,
    /// The interface of each VIP.
    pub interfaces: BTreeMap<IpAddr, String>,
    /// How patient the machine is.
    pub timing: Timing,
}

impl Settings {
    /// The settings of a configuration, where this plan is committed.
    pub fn of(config: &Config, committed: &BTreeMap<String, Vec<u8>>) -> Self {
        let first = config.interfaces.first().map_or("", |interface| &interface.name);
        let held = config.vips.iter().filter(|vip| vip.ingress == Ingress::Arp);
        let interface = |vip: &crate::config::Vip| vip.interface.as_deref().unwrap_or(first).to_owned();
        Self {
            me: config.node.id,
            pins: load::directory(&config.node.pins),
            plan: plan::committed(config, committed),
            interfaces: held.map(|vip| (vip.address.address(), interface(vip))).collect(),
            timing: Timing::default(),
        }
    }
}

enum Input {
    View(View),
    Settings(Settings),
}

/// A way to the thread, cheap to clone. When the last one is dropped, the thread ends; what is held stays held, as the
/// data plane goes on.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

struct Inner {
    inputs: Option<Sender<Input>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Tells what this node knows of the cluster now. Returns at once.
    pub fn view(&self, view: View) {
        self.inner.hand_over(Input::View(view));
    }

    /// Changes the plan and the interfaces.
    pub fn change(&self, settings: Settings) {
        self.inner.hand_over(Input::Settings(settings));
    }
}

impl Inner {
    fn hand_over(&self, input: Input) {
        if self.inputs.as_ref().is_none_or(|inputs| inputs.send(input).is_err()) {
            tracing::error!("the thread that holds VIPs has ended: restart the agent");
        }
        self.ring();
    }

    fn ring(&self) {
        let one = 1u64;
        // SAFETY: eight bytes, as an event counter takes. It cannot be full: each reading empties it.
        unsafe { libc::write(self.wake.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.inputs = None;
        self.ring();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that holds VIPs panicked");
        }
    }
}

/// Starts the thread, in the network namespace of the caller. Until the first view comes, what is held stays held.
///
/// # Errors
/// Where the maps cannot be opened, or the system has no thread to give.
pub(super) fn start(settings: Settings, journal: Journal) -> anyhow::Result<Handle> {
    let maps = Maps::open(&settings.pins)?;
    // SAFETY: integers in; the descriptor is checked and owned from here on.
    let wake = unsafe {
        match libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) {
            -1 => return Err(io::Error::last_os_error().into()),
            fd => Arc::new(OwnedFd::from_raw_fd(fd)),
        }
    };
    let (sender, inputs) = channel();
    let mut shell = Shell::new(settings, maps, journal)?;
    let woken = wake.clone();
    let thread = std::thread::Builder::new().name("vip".into()).spawn(move || shell.run(&inputs, &woken))?;
    Ok(Handle { inner: Arc::new(Inner { inputs: Some(sender), wake, thread: Some(thread) }) })
}

struct Shell {
    settings: Settings,
    maps: Maps,
    machine: Machine,
    segments: BTreeMap<String, Segment>,
    announced: BTreeMap<IpAddr, Schedule>,
    journal: Journal,
}

impl Shell {
    fn new(settings: Settings, maps: Maps, journal: Journal) -> Result<Self, MapsError> {
        let held = held(&maps)?;
        let machine = Machine::new(settings.me, settings.timing, &settings.plan, &held);
        let mut shell =
            Self { settings, maps, machine, segments: BTreeMap::new(), announced: BTreeMap::new(), journal };
        let not_planned = |vip: &IpAddr| !shell.settings.plan.contains_key(vip);
        for vip in held.into_iter().filter(not_planned).collect::<Vec<_>>() {
            shell.release(vip)?;
        }
        shell.open_segments();
        Ok(shell)
    }

    fn run(&mut self, inputs: &Receiver<Input>, wake: &OwnedFd) {
        // A holder's successor is awaited by every client.
        if let Err(error) = be_real_time() {
            tracing::warn!(%error, "VIPs are looked after without real-time priority: takeovers may take longer");
        }
        loop {
            loop {
                let now = Instant::now();
                let actions = match inputs.try_recv() {
                    Ok(Input::View(view)) => self.machine.handle_view(view, now),
                    Ok(Input::Settings(settings)) => self.change(settings, now),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                };
                self.act(actions);
            }
            self.listen();
            let actions = self.machine.handle_time(Instant::now());
            self.act(actions);
            self.announce();
            self.sleep(wake);
        }
    }

    fn change(&mut self, settings: Settings, now: Instant) -> Vec<Action> {
        if self.settings == settings {
            return Vec::new();
        }
        self.settings = settings;
        self.open_segments();
        // A VIP may have moved to another interface.
        for (vip, state) in self.machine.states().collect::<Vec<_>>() {
            if state.holds() && self.settings.plan.contains_key(&vip) {
                self.told("held", vip, Self::hold);
            }
        }
        self.machine.handle_plan(&self.settings.plan, now)
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Hold(vip) => {
                    tracing::info!(%vip, "held here from now on");
                    self.journal.note(Kind::Takeover, None, format!("{vip} is held here from now on"));
                    self.told("held", vip, Self::hold);
                }
                Action::Release(vip) => {
                    tracing::info!(%vip, "held here no more");
                    self.journal.note(Kind::Takeover, None, format!("{vip} is held here no more"));
                    self.announced.remove(&vip);
                    self.told("released", vip, Self::release);
                }
                Action::Probe(vip) => self.on_segment("asked for", vip, |segment| segment.probe(vip)),
                Action::Announce(vip) => {
                    let mut schedule = Schedule::new(Instant::now());
                    schedule.take(schedule.due());
                    self.on_segment("announced", vip, |segment| segment.announce(vip));
                    self.announced.insert(vip, schedule);
                }
            }
        }
    }

    fn told(&mut self, what: &str, vip: IpAddr, act: fn(&mut Self, IpAddr) -> Result<(), MapsError>) {
        if let Err(error) = act(self, vip) {
            tracing::error!("{vip} could not be {what}: {:#}", anyhow::Error::new(error));
        }
    }

    fn hold(&mut self, vip: IpAddr) -> Result<(), MapsError> {
        let interface = self.settings.interfaces.get(&vip).map_or("", String::as_str);
        let index = segment::index(interface).map_err(|source| MapsError::System {
            name: "HELD4 or HELD6",
            doing: "written",
            source,
        })?;
        match vip {
            IpAddr::V4(_) => self.maps.held4.insert(address(vip).words[0], index, 0).map_err(written("HELD4")),
            IpAddr::V6(_) => self.maps.held6.insert(address(vip), index, 0).map_err(written("HELD6")),
        }
    }

    fn release(&mut self, vip: IpAddr) -> Result<(), MapsError> {
        match vip {
            IpAddr::V4(_) => self.maps.held4.remove(&address(vip).words[0]).map_err(written("HELD4")),
            IpAddr::V6(_) => self.maps.held6.remove(&address(vip)).map_err(written("HELD6")),
        }
    }

    fn listen(&mut self) {
        let told: BTreeSet<IpAddr> = self.segments.values().flat_map(Segment::told).collect();
        for vip in told {
            let actions = self.machine.handle_answer(vip, Instant::now());
            self.act(actions);
        }
    }

    fn announce(&mut self) {
        let now = Instant::now();
        let due: Vec<IpAddr> =
            self.announced.iter_mut().filter_map(|(vip, schedule)| schedule.take(now).then_some(*vip)).collect();
        for vip in due {
            self.on_segment("announced", vip, |segment| segment.announce(vip));
        }
    }

    /// Does something on a VIP's segment; one that fails is opened anew the next time.
    fn on_segment(&mut self, what: &str, vip: IpAddr, act: impl FnOnce(&mut Segment) -> io::Result<()>) {
        let Some(name) = self.settings.interfaces.get(&vip).cloned() else { return };
        let result = match self.segments.contains_key(&name) {
            true => Ok(()),
            false => self.open_segment(&name),
        };
        let result = result.and_then(|()| self.segments.get_mut(&name).map_or(Ok(()), act));
        if let Err(error) = result {
            tracing::warn!(%vip, interface = name, %error, "cannot be {what}");
            self.segments.remove(&name);
        }
    }

    fn open_segments(&mut self) {
        let names: BTreeSet<String> = self.settings.interfaces.values().cloned().collect();
        self.segments.clear();
        for name in names {
            if let Err(error) = self.open_segment(&name) {
                tracing::warn!(interface = name, %error, "VIPs cannot be announced here yet");
            }
        }
    }

    fn open_segment(&mut self, name: &str) -> io::Result<()> {
        let index = segment::index(name)?;
        let port = self.maps.ports.iter().filter_map(Result::ok).find(|port| port.ifindex == index);
        let port = port.ok_or_else(|| io::Error::other("the data plane is not attached to it"))?;
        let segment = Segment::open(name, mac_bytes(port.mac))?;
        for (vip, _) in self.settings.interfaces.iter().filter(|(_, interface)| *interface == name) {
            if let IpAddr::V6(vip) = vip
                && let Err(error) = segment.join(*vip)
            {
                tracing::warn!(%vip, interface = name, %error, "its group cannot be joined; neighbours may not find it");
            }
        }
        self.segments.insert(name.to_owned(), segment);
        Ok(())
    }

    fn sleep(&self, wake: &OwnedFd) {
        let due = self.announced.values().map(Schedule::due).chain(self.machine.due()).min();
        let left = due.map(|at| at.saturating_duration_since(Instant::now()));
        let sockets = self.segments.values().flat_map(Segment::descriptors);
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut all: Vec<libc::pollfd> = std::iter::once(wake.as_raw_fd()).chain(sockets).map(poll).collect();
        let timeout = left.map(|left: Duration| libc::timespec {
            tv_sec: left.as_secs() as libc::time_t,
            tv_nsec: left.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), |timeout| timeout as *const libc::timespec);
        let mut rung = [0u8; 8];
        // SAFETY: as many descriptors as are told, all of them open; a time that outlives the call; eight bytes for the
        // counter, which reading empties. An interrupted or failed call is as good as one that has woken up.
        unsafe {
            libc::ppoll(all.as_mut_ptr(), all.len() as libc::nfds_t, timeout, std::ptr::null());
            libc::read(wake.as_raw_fd(), rung.as_mut_ptr().cast(), rung.len());
        }
    }
}

/// The VIPs that this node's data plane answers for.
///
/// # Errors
/// [`MapsError::Use`].
pub fn held(maps: &Maps) -> Result<BTreeSet<IpAddr>, MapsError> {
    let v4 = maps.held4.keys().map(|key| key.map(|word| ip(&Address::v4(word), false)).map_err(read("HELD4")));
    let v6 = maps.held6.keys().map(|key| key.map(|words| ip(&words, true)).map_err(read("HELD6")));
    v4.chain(v6).collect()
}
