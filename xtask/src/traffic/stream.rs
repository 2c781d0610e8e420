//! A paced stream of numbered datagrams that backends echo: what was lost on either way, and for how long nothing came.
//!
//! Gaps are as fine as a flow's own pace, so few flows show more. Sender and receiver run at real-time priority where the
//! machine lets them; how late the sender was, and what the hypervisor took, is told beside what was measured.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::account::{Account, FlowReport};
use super::realtime::{CpuTime, now, sleep_until, take_priority};
use crate::lab::client_addresses;

/// How long the last answers may take.
const LINGER: Duration = Duration::from_secs(1);
const NOTICE_MS: libc::c_int = 50;
const DATAGRAM_BYTES: usize = 256;

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Datagrams a second, of all flows together.
    pub per_second: u32,
    /// Source and destination of each flow, which send in turn. A source's port may be 0: any.
    pub flows: Vec<(SocketAddr, SocketAddr)>,
}

/// A stream that goes on in the background.
#[derive(Debug)]
pub struct Streaming {
    begun: Duration,
    cpu: CpuTime,
    shared: Arc<Shared>,
    sender: Option<JoinHandle<Sent>>,
    receiver: Option<JoinHandle<Vec<Account>>>,
}

/// What became of it. Times are in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct StreamReport {
    /// Datagrams sent.
    pub sent: u64,
    /// Those that came back, each counted once.
    pub answered: u64,
    /// Those that did not.
    pub lost: u64,
    /// Answers that came again.
    pub duplicated: u64,
    /// Answers that came after a later one of their flow.
    pub reordered: u64,
    /// Answers that nobody asked for, and errors that sockets were told.
    pub wrong: u64,
    /// Flows that more than one backend answered.
    pub moved: u64,
    /// The longest time between two answers to one flow, or from the last one to the last question.
    pub gap_max_us: u64,
    /// How late the latest datagram was sent: gaps of this size are the machine's.
    pub lateness_max_us: u64,
    /// Whether sender and receiver ran at real-time priority.
    pub realtime: bool,
    /// The share of CPU time that the hypervisor gave to others meanwhile.
    pub steal_pct: f64,
    /// Each flow's part.
    pub flows: Vec<FlowReport>,
}

#[derive(Debug)]
struct Shared {
    sockets: Vec<UdpSocket>,
    stop: AtomicBool,
    sent_all: AtomicBool,
    /// Per flow, datagrams sent, and when the last answer came, in nanoseconds of the monotonic clock.
    sent: Vec<AtomicU64>,
    heard: Vec<AtomicU64>,
}

#[derive(Debug)]
struct Sent {
    last: Duration,
    lateness: Duration,
    realtime: bool,
}

impl Stream {
    /// As many flows to the targets in turn, from the client's addresses in turn and any ports.
    pub fn new(per_second: u32, targets: &[SocketAddr], flows: usize) -> Self {
        let flow = |number: usize| {
            let target = targets[number % targets.len()];
            let sources = client_addresses(target.ip());
            (SocketAddr::new(sources[number / targets.len() % sources.len()], 0), target)
        };
        Self { per_second, flows: if targets.is_empty() { Vec::new() } else { (0..flows).map(flow).collect() } }
    }

    /// Starts to send, from the network namespace of this thread.
    pub fn start(&self) -> Result<Streaming> {
        ensure!(!self.flows.is_empty() && self.per_second > 0, "a stream needs a flow and a pace");
        let mut sockets = Vec::new();
        for &(source, target) in &self.flows {
            let socket = UdpSocket::bind(source).with_context(|| format!("cannot bind {source}"))?;
            socket.connect(target).with_context(|| format!("no way to {target}"))?;
            socket.set_nonblocking(true)?;
            sockets.push(socket);
        }
        let begun = now();
        let zeros = || sockets.iter().map(|_| AtomicU64::new(0)).collect();
        let heard = sockets.iter().map(|_| AtomicU64::new(begun.as_nanos() as u64)).collect();
        let (stop, sent_all) = Default::default();
        let shared = Arc::new(Shared { sent: zeros(), heard, sockets, stop, sent_all });
        let interval = Duration::from_secs(1) / self.per_second;
        let sender = {
            let shared = shared.clone();
            thread::spawn(move || shared.send(begun, interval))
        };
        let receiver = {
            let shared = shared.clone();
            thread::spawn(move || shared.receive())
        };
        let cpu = CpuTime::now().context("cannot read /proc/stat")?;
        Ok(Streaming { begun, cpu, shared, sender: Some(sender), receiver: Some(receiver) })
    }
}

impl Streaming {
    /// The flows' own addresses, in their order.
    pub fn sources(&self) -> Result<Vec<SocketAddr>> {
        self.shared.sockets.iter().map(|socket| Ok(socket.local_addr()?)).collect()
    }

    /// For how long it has run; the times of gaps begin with it.
    pub fn elapsed(&self) -> Duration {
        now().saturating_sub(self.begun)
    }

    /// For how long the flow that is silent the longest has had no answer.
    pub fn silence(&self) -> Duration {
        let heard = self.shared.heard.iter().map(|heard| heard.load(Ordering::Relaxed)).min().unwrap_or_default();
        now().saturating_sub(Duration::from_nanos(heard))
    }

    /// Ends it and says what became of it.
    pub fn finish(mut self) -> Result<StreamReport> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let Sent { last, lateness, realtime } = join(self.sender.take()).context("the stream has ended before")?;
        let steal_pct = CpuTime::now().context("cannot read /proc/stat")?.stolen_since(self.cpu);
        self.shared.sent_all.store(true, Ordering::Relaxed);
        let accounts = join(self.receiver.take()).context("the stream has ended before")?;
        let mut flows = Vec::new();
        for ((account, socket), sent) in accounts.iter().zip(&self.shared.sockets).zip(&self.shared.sent) {
            let ends = (socket.local_addr()?, socket.peer_addr()?);
            flows.push(account.report(ends, sent.load(Ordering::Relaxed), self.begun, last));
        }
        let sum = |of: fn(&FlowReport) -> u64| flows.iter().map(of).sum();
        Ok(StreamReport {
            sent: sum(|flow| flow.sent),
            answered: sum(|flow| flow.answered),
            lost: sum(|flow| flow.lost),
            duplicated: sum(|flow| flow.duplicated),
            reordered: sum(|flow| flow.reordered),
            wrong: sum(|flow| flow.wrong),
            moved: sum(|flow| u64::from(flow.backends.len() > 1)),
            gap_max_us: flows.iter().map(|flow| flow.gap_max_us).max().unwrap_or_default(),
            lateness_max_us: lateness.as_micros() as u64,
            realtime,
            steal_pct,
            flows,
        })
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.sent_all.store(true, Ordering::Relaxed);
    }
}

fn join<T>(thread: Option<JoinHandle<T>>) -> Option<T> {
    Some(thread?.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload)))
}

impl Shared {
    fn send(&self, begun: Duration, interval: Duration) -> Sent {
        let mut done = Sent { last: begun, lateness: Duration::ZERO, realtime: take_priority() };
        for number in 0_u32.. {
            let due = begun + interval * number;
            sleep_until(due);
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            done.last = now();
            done.lateness = done.lateness.max(done.last.saturating_sub(due));
            let flow = number as usize % self.sockets.len();
            // Counted before it is sent, so that no answer comes too early; one that cannot be sent counts as lost.
            let sequence = self.sent[flow].fetch_add(1, Ordering::Relaxed).to_string();
            // A socket tells of an ICMP error at the next call, whatever that was to do, and then goes on.
            let sent = self.sockets[flow].send(sequence.as_bytes());
            if sent.is_err() {
                let _ = self.sockets[flow].send(sequence.as_bytes());
            }
        }
        done
    }

    fn receive(&self) -> Vec<Account> {
        take_priority();
        let mut accounts: Vec<Account> = self.sockets.iter().map(|_| Account::default()).collect();
        let event = |socket: &UdpSocket| libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut events: Vec<libc::pollfd> = self.sockets.iter().map(event).collect();
        let mut end = None;
        loop {
            // SAFETY: pointer and length are of one vector.
            unsafe { libc::poll(events.as_mut_ptr(), events.len() as libc::nfds_t, NOTICE_MS) };
            for (flow, _) in events.iter().enumerate().filter(|(_, event)| event.revents != 0) {
                self.read(flow, &mut accounts[flow]);
            }
            if self.sent_all.load(Ordering::Relaxed) {
                let all = accounts
                    .iter()
                    .zip(&self.sent)
                    .all(|(account, sent)| account.answered() >= sent.load(Ordering::Relaxed));
                if all || now() > *end.get_or_insert_with(|| now() + LINGER) {
                    return accounts;
                }
            }
        }
    }

    /// Takes what there is for a flow.
    fn read(&self, flow: usize, account: &mut Account) {
        let mut buffer = [0; DATAGRAM_BYTES];
        loop {
            match self.sockets[flow].recv(&mut buffer) {
                Ok(length) => {
                    let (at, sent) = (now(), self.sent[flow].load(Ordering::Relaxed));
                    if account.count(&buffer[..length], at, sent) {
                        self.heard[flow].store(at.as_nanos() as u64, Ordering::Relaxed);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => account.error(),
            }
        }
    }
}
