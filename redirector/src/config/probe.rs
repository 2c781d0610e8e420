//! How the far ends of a pool's paths are asked where nothing of ours runs there.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::reader::Reader;
use super::text::{self, Wrong, serialize_duration as duration};

/// What is configured as `[pool.probe]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Probe {
    /// What is asked.
    #[serde(flatten)]
    pub question: Question,
    /// Time from one try to the next.
    #[serde(serialize_with = "duration")]
    pub interval: Duration,
    /// How long a try may take in all.
    #[serde(serialize_with = "duration")]
    pub timeout: Duration,
    /// By how much of the interval tries are moved at random, in per cent.
    pub jitter: u8,
    /// Successes in a row after which a path that failed is good.
    pub rise: u32,
    /// Failures in a row after which it is bad.
    pub fall: u32,
}

/// A kind of question, and what its answer must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[expect(missing_docs, reason = "the fields are those of the file, which `example.toml` explains")]
pub enum Question {
    /// A connection is accepted.
    Tcp { port: u16 },
    /// A request is answered with this status, and with a body that holds a text.
    Http { port: u16, path: String, host: Option<String>, status: Statuses, body: Option<String> },
    /// The same inside of TLS; without `ca` anybody's certificate is taken.
    Https { port: u16, path: String, host: Option<String>, status: Statuses, body: Option<String>, ca: Option<PathBuf> },
    /// `grpc.health.v1.Health/Check` says `SERVING`.
    Grpc { port: u16, service: String },
    /// An echo request is answered.
    Icmp,
    /// A datagram is answered by one that begins with these bytes.
    Udp { port: u16, send: Bytes, receive: Bytes },
    /// A name's address is known, by UDP.
    Dns { port: u16, name: String },
    /// `OPTIONS` is answered, by UDP.
    Sip { port: u16, status: Statuses },
    /// The next hop answers ARP or neighbour discovery.
    Neighbour,
    /// A program ends with status 0.
    Command { command: Vec<String> },
}

/// Statuses that are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Statuses {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl Statuses {
    /// Whether a status is one of them.
    pub fn contains(&self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { first, last } if first == last => write!(f, "{first}"),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

impl Serialize for Statuses {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Bytes, written in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }
}

/// What a kind of question is called in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Tcp,
    Http,
    Https,
    Grpc,
    Icmp,
    Udp,
    Dns,
    Sip,
    Neighbour,
    Command,
}

impl Question {
    /// The port that it is put to, where it has one.
    pub fn port(&self) -> Option<u16> {
        match *self {
            Self::Tcp { port }
            | Self::Http { port, .. }
            | Self::Https { port, .. }
            | Self::Grpc { port, .. }
            | Self::Udp { port, .. }
            | Self::Dns { port, .. }
            | Self::Sip { port, .. } => Some(port),
            Self::Icmp | Self::Neighbour | Self::Command { .. } => None,
        }
    }

    /// What it is called in the file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp { .. } => "tcp",
            Self::Http { .. } => "http",
            Self::Https { .. } => "https",
            Self::Grpc { .. } => "grpc",
            Self::Icmp => "icmp",
            Self::Udp { .. } => "udp",
            Self::Dns { .. } => "dns",
            Self::Sip { .. } => "sip",
            Self::Neighbour => "neighbour",
            Self::Command { .. } => "command",
        }
    }
}

/// Faster than that a probe is a load of its own: beats are for speed.
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(3600);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
/// The longest that is sent, or looked for in an answer.
const TEXT_MAX: usize = 1024;

/// Reads `[pool.probe]`.
pub(super) fn probe(mut r: Reader<'_>) -> Option<Probe> {
    let kind = r.choice("kind");
    let mend = "add kind = \"tcp\", \"http\", \"https\", \"grpc\", \"icmp\", \"udp\", \"dns\", \"sip\", \"neighbour\" or \"command\"";
    if kind.is_none() {
        r.must("kind", None, (), mend);
    }
    let interval = r.duration("interval", INTERVAL).unwrap_or(Duration::from_secs(2));
    let timeout = r.duration("timeout", TIMEOUT).unwrap_or(interval.min(Duration::from_secs(1)));
    if timeout > interval {
        let (timeout, interval) = (humantime::format_duration(timeout), humantime::format_duration(interval));
        let message = format!("a try that may take {timeout} is not over when the next one begins, after {interval}");
        r.wrong(
            "timeout",
            Wrong::new(message, format!("write a timeout of \"{interval}\" at most, or a longer interval")),
        );
    }
    let jitter = r.number("jitter", 0..=50).unwrap_or(10);
    let (rise, fall) = (r.number("rise", 1..=100).unwrap_or(2), r.number("fall", 1..=100).unwrap_or(3));
    let question = kind.map(|kind| question(&mut r, kind));
    r.done();
    Some(Probe { question: question?, interval, timeout, jitter, rise, fall })
}

fn question(r: &mut Reader<'_>, kind: Kind) -> Question {
    match kind {
        Kind::Tcp => Question::Tcp { port: port(r, None) },
        Kind::Http => {
            let port = port(r, Some(80));
            let (path, host, status, body) = http(r);
            Question::Http { port, path, host, status, body }
        }
        Kind::Https => {
            let port = port(r, Some(443));
            let (path, host, status, body) = http(r);
            Question::Https { port, path, host, status, body, ca: r.parsed("ca", absolute) }
        }
        Kind::Grpc => {
            let port = port(r, None);
            Question::Grpc { port, service: r.parsed("service", plain).unwrap_or_default() }
        }
        Kind::Icmp => Question::Icmp,
        Kind::Udp => {
            let (send, receive) = (r.parsed("send", bytes), r.parsed("receive", bytes));
            let send =
                r.must("send", send, Bytes(Vec::new()), "add the datagram in hexadecimal, as in send = \"70696e67\"");
            Question::Udp { port: port(r, None), send, receive: receive.unwrap_or(Bytes(Vec::new())) }
        }
        Kind::Dns => {
            let name = r.parsed("name", domain);
            let name =
                r.must("name", name, String::new(), "add a name that it must know, as in name = \"example.org\"");
            Question::Dns { port: port(r, Some(53)), name }
        }
        Kind::Sip => {
            Question::Sip { port: port(r, Some(5060)), status: statuses_of(r, Statuses { first: 200, last: 299 }) }
        }
        Kind::Neighbour => Question::Neighbour,
        Kind::Command => {
            let mend = "write a program's absolute path and its arguments, as in command = [\"/usr/local/bin/check\", \"web\"]";
            let words = r.item("command").and_then(|item| item.elements(mend));
            let words: Vec<String> = words.iter().flatten().filter_map(|word| word.parsed(plain)).collect();
            if !words.first().is_some_and(|first| first.starts_with('/')) {
                match r.has("command") {
                    true => r.wrong("command", Wrong::new("it does not begin with a program's absolute path", mend)),
                    false => r.must("command", None, (), mend),
                }
            }
            Question::Command { command: words }
        }
    }
}

type Http = (String, Option<String>, Statuses, Option<String>);

fn http(r: &mut Reader<'_>) -> Http {
    let path = r.parsed("path", |text| match text.starts_with('/') && text.chars().all(|c| c.is_ascii_graphic()) {
        true => plain(text),
        false => Err(Wrong::new(format!("{text:?} is no path of a request"), "write a path as in \"/health\"")),
    });
    let host = r.parsed("host", domain);
    let status = statuses_of(r, Statuses { first: 200, last: 399 });
    (path.unwrap_or_else(|| "/".to_owned()), host, status, r.parsed("body", plain))
}

fn port(r: &mut Reader<'_>, default: Option<u16>) -> u16 {
    let port = r.number("port", 1..=u16::MAX);
    match default {
        Some(default) => port.unwrap_or(default),
        None => r.must("port", port, 0, "add the port that it answers at"),
    }
}

fn statuses_of(r: &mut Reader<'_>, default: Statuses) -> Statuses {
    r.parsed("status", statuses).unwrap_or(default)
}

fn statuses(text: &str) -> Result<Statuses, Wrong> {
    let mend = "write a status or a range of them from 100 to 699, as in \"200\" or \"200-299\"";
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.trim().parse().ok().filter(|status| (100..=699).contains(status));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok(Statuses { first, last }),
        (Some(first), Some(last)) => {
            Err(Wrong::new(format!("{text:?} runs backwards"), format!("write \"{last}-{first}\"")))
        }
        _ => Err(Wrong::new(format!("{text:?} is no status and no range of them"), mend)),
    }
}

fn plain(text: &str) -> Result<String, Wrong> {
    match (1..=TEXT_MAX).contains(&text.len()) && !text.contains('\0') {
        true => Ok(text.to_owned()),
        false => Err(Wrong::new("it is empty, too long or holds a NUL", format!("write 1 to {TEXT_MAX} bytes"))),
    }
}

fn absolute(text: &str) -> Result<PathBuf, Wrong> {
    match text.starts_with('/') {
        true => text::file(text),
        false => Err(Wrong::new(
            format!("{text:?} is not an absolute path"),
            "write a path that starts with /: the cluster shares it",
        )),
    }
}

/// A name as DNS has it (RFC 1035, section 2.3.4): labels of 1 to 63 bytes, 253 in all.
fn domain(text: &str) -> Result<String, Wrong> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let fits = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    match name.len() <= 253 && name.split('.').all(fits) {
        true => Ok(name.to_owned()),
        false => Err(Wrong::new(format!("{text:?} is not a host's name"), "write a name as in \"example.org\"")),
    }
}

fn bytes(text: &str) -> Result<Bytes, Wrong> {
    let mend = format!("write 1 to {TEXT_MAX} bytes in hexadecimal, two digits each, as in \"70696e67\"");
    let wrong = || Wrong::new(format!("{text:?} is not made of bytes in hexadecimal"), &mend);
    let fits = text.is_ascii() && text.len().is_multiple_of(2) && (2..=2 * TEXT_MAX).contains(&text.len());
    let bytes = fits.then(|| (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16)).collect());
    bytes.and_then(|bytes: Result<Vec<u8>, _>| bytes.ok()).map(Bytes).ok_or_else(wrong)
}
