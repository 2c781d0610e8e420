//! Connections that stay: each exchanges checked lines until told to stop, and notices any break.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::client::{connect, request, status};
use super::http::{ECHO_LINES, Head};
use crate::lab::client_addresses;

const STACK_BYTES: usize = 128 << 10;

/// Open connections, busy in the background.
#[derive(Debug)]
pub struct LongConnections {
    stop: Arc<AtomicBool>,
    lines: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Outcome>>,
}

/// What became of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LongReport {
    /// Connections that were opened.
    pub opened: u64,
    /// Those that ended before they were told to, or got no answer in time, or a wrong one.
    pub broken: u64,
    /// Of the broken, those that got wrong bytes or another backend's.
    pub wrong: u64,
    /// Lines exchanged, and right.
    pub lines: u64,
    /// The longest wait for an answer.
    pub wait_max_us: u64,
    /// Connections per backend.
    pub backends: BTreeMap<String, u64>,
    /// What happened to the broken, in words.
    pub errors: Vec<String>,
}

#[derive(Debug, Default)]
struct Outcome {
    backend: String,
    wait_max: Duration,
    error: Option<anyhow::Error>,
    wrong: bool,
}

impl LongConnections {
    /// Opens `count` connections to the targets in turn, from the client's addresses in turn, and sends a line on each
    /// every `interval`. A wait longer than `timeout` counts as a break. All must open, or it is an error.
    pub fn open(targets: &[SocketAddr], count: usize, interval: Duration, timeout: Duration) -> Result<Self> {
        ensure!(!targets.is_empty(), "no targets to connect to");
        let mut open = Self { stop: Arc::default(), lines: Arc::default(), threads: Vec::new() };
        for number in 0..count {
            let target = targets[number % targets.len()];
            let sources = client_addresses(target.ip());
            let source = sources[number / targets.len() % sources.len()];
            let stream = connect(target, Some(source), timeout)?;
            let line = Line {
                number,
                ends: (stream.local_addr()?, target),
                input: upgrade(stream, target)?,
                backend: String::new(),
            };
            let (stop, lines) = (open.stop.clone(), open.lines.clone());
            let thread = thread::Builder::new().stack_size(STACK_BYTES);
            open.threads.push(thread.spawn(move || line.exchange(interval, &stop, &lines))?);
        }
        Ok(open)
    }

    /// Lines exchanged so far.
    pub fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }

    /// Ends all and says what became of them.
    pub fn finish(mut self) -> LongReport {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = LongReport { opened: self.threads.len() as u64, ..LongReport::default() };
        for thread in self.threads.drain(..) {
            let outcome = thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
            report.wait_max_us = report.wait_max_us.max(outcome.wait_max.as_micros() as u64);
            if !outcome.backend.is_empty() {
                *report.backends.entry(outcome.backend).or_default() += 1;
            }
            if let Some(error) = outcome.error {
                report.broken += 1;
                report.wrong += u64::from(outcome.wrong);
                report.errors.push(format!("{error:#}"));
            }
        }
        report.lines = self.lines();
        report
    }
}

impl Drop for LongConnections {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn upgrade(stream: TcpStream, target: SocketAddr) -> Result<BufReader<TcpStream>> {
    request(&stream, target, "/echo-stream", &format!("Connection: Upgrade\r\nUpgrade: {ECHO_LINES}"))?;
    let mut input = BufReader::new(stream);
    let head = Head::read(&mut input)?.with_context(|| format!("{target} closed without an answer"))?;
    ensure!(status(&head)? == 101, "{target} does not upgrade: {}", head.first);
    Ok(input)
}

/// One connection's conversation.
struct Line {
    number: usize,
    ends: (SocketAddr, SocketAddr),
    input: BufReader<TcpStream>,
    backend: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, ends: (source, target), backend, .. } = self;
        write!(f, "{number} from {source} to {target} on {backend}")
    }
}

impl Line {
    fn exchange(mut self, interval: Duration, stop: &AtomicBool, lines: &AtomicU64) -> Outcome {
        let mut outcome = Outcome::default();
        for sequence in 0_u64.. {
            let begun = Instant::now();
            match self.once(sequence) {
                Ok(true) => {}
                Ok(false) => {
                    outcome.wrong = true;
                    outcome.error = Some(anyhow::anyhow!("connection {self} got wrong bytes at line {sequence}"));
                }
                Err(error) => {
                    outcome.error = Some(error.context(format!("connection {self} broke at line {sequence}")));
                }
            }
            outcome.wait_max = outcome.wait_max.max(begun.elapsed());
            if outcome.error.is_some() || stop.load(Ordering::Relaxed) {
                break;
            }
            lines.fetch_add(1, Ordering::Relaxed);
            thread::sleep(interval.saturating_sub(begun.elapsed()));
        }
        outcome.backend = self.backend;
        outcome
    }

    /// Sends a line; whether the right one came back, from the backend that answered before.
    fn once(&mut self, sequence: u64) -> Result<bool> {
        // Bytes that differ from line to line and between connections, so that no other's can pass for them.
        let mark = (sequence ^ (self.number as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let line = format!("{} {sequence} {mark:016x}\n", self.number);
        self.input.get_mut().write_all(line.as_bytes())?;
        let mut answer = String::new();
        ensure!(self.input.read_line(&mut answer)? > 0, "the other end closed");
        let Some((backend, echoed)) = answer.split_once(' ') else { return Ok(false) };
        if self.backend.is_empty() {
            backend.clone_into(&mut self.backend);
        }
        Ok(backend == self.backend && echoed == line)
    }
}
