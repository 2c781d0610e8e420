//! Datagrams at a fixed rate, each of which must come back: nothing sends a lost one again, so every loss is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::client::any_port;
use super::http::timed_out;

/// How long the last answers may take.
const LINGER: Duration = Duration::from_secs(2);
const NOTICE: Duration = Duration::from_millis(100);

/// Streams of datagrams, busy in the background.
#[derive(Debug)]
pub struct Datagrams {
    stop: Arc<AtomicBool>,
    sent_all: Arc<AtomicBool>,
    streams: Vec<(Arc<AtomicU64>, JoinHandle<()>, JoinHandle<Echoed>)>,
}

/// What became of them.
#[derive(Clone, Debug, Default)]
pub struct DatagramReport {
    /// Datagrams sent.
    pub sent: u64,
    /// Those that came back, each counted once.
    pub echoed: u64,
    /// Answers that nobody asked for.
    pub wrong: u64,
    /// Streams that more than one backend answered.
    pub moved: u64,
    /// Streams by the backends that answered them.
    pub backends: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct Echoed {
    numbers: BTreeSet<u64>,
    wrong: u64,
    backends: BTreeSet<String>,
}

impl Datagrams {
    /// Starts `streams` sockets, to the targets in turn, each of which sends a datagram every `interval`.
    pub fn start(targets: &[SocketAddr], streams: usize, interval: Duration) -> Result<Self> {
        ensure!(!targets.is_empty(), "no targets to send to");
        let mut all = Self { stop: Arc::default(), sent_all: Arc::default(), streams: Vec::new() };
        for number in 0..streams {
            let target = targets[number % targets.len()];
            let socket = Arc::new(UdpSocket::bind(any_port(target)).context("binding a UDP socket")?);
            socket.set_read_timeout(Some(NOTICE))?;
            socket.connect(target).with_context(|| format!("no way to {target}"))?;
            let (stop, sent) = (all.stop.clone(), Arc::new(AtomicU64::new(0)));
            let sender = {
                let (socket, stop, sent) = (socket.clone(), stop.clone(), sent.clone());
                thread::spawn(move || send(&socket, interval, &stop, &sent))
            };
            let receiver = {
                let (sent, sent_all) = (sent.clone(), all.sent_all.clone());
                thread::spawn(move || receive(&socket, &sent_all, &sent))
            };
            all.streams.push((sent, sender, receiver));
        }
        Ok(all)
    }

    /// Ends all and says what became of them.
    pub fn finish(mut self) -> DatagramReport {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = DatagramReport::default();
        let mut receivers = Vec::new();
        for (sent, sender, receiver) in self.streams.drain(..) {
            sender.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
            receivers.push((sent, receiver));
        }
        self.sent_all.store(true, Ordering::Relaxed);
        for (sent, receiver) in receivers {
            let echoed = receiver.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
            report.sent += sent.load(Ordering::Relaxed);
            report.echoed += echoed.numbers.len() as u64;
            report.wrong += echoed.wrong;
            report.moved += u64::from(echoed.backends.len() > 1);
            for backend in echoed.backends {
                *report.backends.entry(backend).or_default() += 1;
            }
        }
        report
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.sent_all.store(true, Ordering::Relaxed);
    }
}

fn send(socket: &UdpSocket, interval: Duration, stop: &AtomicBool, sent: &AtomicU64) {
    let begun = Instant::now();
    for number in 0_u32.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // Counted before it is sent, so that no answer comes too early; one that cannot be sent counts as lost.
        sent.fetch_add(1, Ordering::Relaxed);
        let _ = socket.send(number.to_string().as_bytes());
        thread::sleep((begun + interval * (number + 1)).saturating_duration_since(Instant::now()));
    }
}

fn receive(socket: &UdpSocket, sent_all: &AtomicBool, sent: &AtomicU64) -> Echoed {
    let mut echoed = Echoed::default();
    let mut buffer = [0; 256];
    let mut end = None;
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => echoed.count(&buffer[..length], sent.load(Ordering::Relaxed)),
            Err(error) if timed_out(&error) => {}
            Err(_) => echoed.wrong += 1,
        }
        if sent_all.load(Ordering::Relaxed) {
            let end = *end.get_or_insert_with(|| Instant::now() + LINGER);
            if echoed.numbers.len() as u64 == sent.load(Ordering::Relaxed) || Instant::now() > end {
                return echoed;
            }
        }
    }
}

impl Echoed {
    fn count(&mut self, answer: &[u8], sent: u64) {
        let answer = std::str::from_utf8(answer).unwrap_or_default();
        match answer.split_once(' ').and_then(|(backend, number)| Some((backend, number.parse().ok()?))) {
            Some((backend, number)) if number < sent && self.numbers.insert(number) => {
                self.backends.insert(backend.to_owned());
            }
            _ => self.wrong += 1,
        }
    }
}
