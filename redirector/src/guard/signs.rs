//! Signs of life, at two Unix sockets: datagrams, as systemd has them, and lines of a stream, for who has no more than a pipe
//! into `nc -U`. Whatever they say, they say that somebody is alive.
//!
//! Whoever may write to the sockets may write anything, and is bounded: in what is read at a time, in the length of a line, and
//! in connections, of which the one that has been silent the longest goes when there are too many. So an application that can
//! still connect is heard.

use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Datagrams that are read at a time; the rest is there the next time.
const DATAGRAMS: usize = 1024;

/// Connections at a time.
const CONNECTIONS: usize = 16;

/// The longest line, in bytes; whoever sends a longer one is not asked on.
const LINE: usize = 512;

/// As much of a connection is read at a time.
const BYTES: usize = 4096;

/// A socket's file, which goes with it.
#[derive(Debug)]
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        // The next guard replaces what is left.
        let _ = fs::remove_file(&self.0);
    }
}

/// Where it is listened for them.
#[derive(Debug)]
pub struct Signs {
    datagrams: (UnixDatagram, Place),
    connections: (UnixListener, Place),
    /// Those who were silent the longest first.
    talkers: Vec<Talker>,
}

/// Who sends lines.
#[derive(Debug)]
struct Talker {
    stream: UnixStream,
    /// Bytes of a line that has not ended.
    part: usize,
}

/// What came of listening to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Something,
    /// It is not to be asked on; whether there was a line.
    Last(bool),
}

impl Signs {
    /// Listens for datagrams and lines at these places. What a guard before has left there is replaced.
    ///
    /// # Errors
    /// Where a socket cannot be made; the error names it.
    pub fn listen(datagrams: &Path, lines: &Path) -> io::Result<Self> {
        let at = |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        for path in [datagrams, lines] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(at(path, error)),
                _ => {}
            }
        }
        let socket = UnixDatagram::bind(datagrams).map_err(|error| at(datagrams, error))?;
        let datagrams = (socket, Place(datagrams.to_owned()));
        let listener = UnixListener::bind(lines).map_err(|error| at(lines, error))?;
        let connections = (listener, Place(lines.to_owned()));
        datagrams.0.set_nonblocking(true)?;
        connections.0.set_nonblocking(true)?;
        Ok(Self { datagrams, connections, talkers: Vec::new() })
    }

    /// Whether there was one since it was last asked. Never waits.
    pub fn heard(&mut self) -> bool {
        let by_datagram = self.read_datagrams();
        self.accept();
        let mut silent = Vec::with_capacity(self.talkers.len());
        let (mut heard, mut talked) = (by_datagram, Vec::new());
        for mut talker in self.talkers.drain(..) {
            match talker.listen() {
                Told::Nothing => silent.push(talker),
                Told::Something => {
                    heard = true;
                    talked.push(talker);
                }
                Told::Last(was_line) => heard |= was_line,
            }
        }
        silent.extend(talked);
        self.talkers = silent;
        heard
    }

    fn read_datagrams(&self) -> bool {
        let (mut datagram, mut heard) = ([0; LINE], false);
        for _ in 0..DATAGRAMS {
            match self.datagrams.0.recv(&mut datagram) {
                Ok(_) => heard = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::warn!(%error, "a sign of life could not be read");
                    break;
                }
            }
        }
        heard
    }

    /// Lets in who waits, and in the place of who has been silent the longest.
    fn accept(&mut self) {
        for _ in 0..CONNECTIONS {
            let accepted = self.connections.0.accept();
            let stream = match accepted.and_then(|(stream, _)| stream.set_nonblocking(true).map(|()| stream)) {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, "a connection for signs of life could not be taken");
                    return;
                }
            };
            if self.talkers.len() >= CONNECTIONS {
                tracing::warn!("more than {CONNECTIONS} connections for signs of life: the most silent one is closed");
                self.talkers.remove(0);
            }
            self.talkers.push(Talker { stream, part: 0 });
        }
    }
}

impl Talker {
    /// Reads what there is, up to a limit.
    fn listen(&mut self) -> Told {
        let mut bytes = [0; BYTES];
        let read = match self.stream.read(&mut bytes) {
            // What has not ended with a line's end has ended now.
            Ok(0) => return Told::Last(self.part > 0),
            Ok(read) => &bytes[..read],
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => {
                return Told::Nothing;
            }
            Err(_) => return Told::Last(false),
        };
        let (mut is_line, mut parts) = (false, read.split(|byte| *byte == b'\n').peekable());
        while let Some(part) = parts.next() {
            self.part += part.len();
            if self.part > LINE {
                tracing::warn!(
                    "a sign of life is longer than {LINE} bytes: write short lines; its connection is closed"
                );
                return Told::Last(is_line);
            }
            if parts.peek().is_some() {
                (is_line, self.part) = (true, 0);
            }
        }
        if is_line { Told::Something } else { Told::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::{Duration, Instant};

    use super::*;

    fn places(test: &str) -> (PathBuf, PathBuf) {
        let path = |kind: &str| std::env::temp_dir().join(format!("signs-{test}-{}.{kind}", std::process::id()));
        (path("sock"), path("lines"))
    }

    #[test]
    fn datagrams_and_lines_are_signs_and_half_lines_are_none_yet() {
        let (sock, lines) = places("both");
        fs::write(&lines, "left by one that was killed").unwrap();
        let mut signs = Signs::listen(&sock, &lines).unwrap();
        assert!(!signs.heard(), "nobody has said anything");
        let sender = UnixDatagram::unbound().unwrap();
        for says in [&b"WATCHDOG=1"[..], b"", &[0xff; 4000]] {
            sender.send_to(says, &sock).unwrap();
            assert!(signs.heard() && !signs.heard(), "{} bytes", says.len());
        }
        let mut talker = UnixStream::connect(&lines).unwrap();
        assert!(!signs.heard(), "who only connects says nothing");
        for (says, is_line) in [
            (&b"still he"[..], false),
            (b"re\n", true),
            (b"\n", true),
            (b"one\ntwo\nthree", true),
            (b"", false),
            (&[b'x'; LINE - 6][..], false),
            (b"\r\n", true),
            (b"\xff\x00\n", true),
        ] {
            talker.write_all(says).unwrap();
            assert_eq!((signs.heard(), signs.heard()), (is_line, false), "{:?}", String::from_utf8_lossy(says));
        }
        talker.write_all(b"the last words").unwrap();
        assert!(!signs.heard());
        drop(talker);
        assert!(signs.heard(), "they have ended with the connection");
        assert!(!signs.heard() && signs.talkers.is_empty());
        drop(signs);
        assert!(!sock.exists() && !lines.exists(), "the sockets go with the guard");
        let nowhere = Signs::listen(&sock, Path::new("/proc/none/lines")).unwrap_err();
        assert!(nowhere.to_string().starts_with("/proc/none/lines: "), "{nowhere}");
        assert!(!sock.exists(), "and half of it leaves nothing");
    }

    #[test]
    fn a_line_without_end_closes_its_connection_alone() {
        let (sock, lines) = places("long");
        let mut signs = Signs::listen(&sock, &lines).unwrap();
        let (mut well, mut endless) = (UnixStream::connect(&lines).unwrap(), UnixStream::connect(&lines).unwrap());
        endless.write_all(&[b'x'; LINE]).unwrap();
        assert!(!signs.heard());
        assert_eq!(signs.talkers.len(), 2, "it may still end");
        endless.write_all(b"x").unwrap();
        assert!(!signs.heard());
        assert_eq!(signs.talkers.len(), 1, "it is too long");
        assert!(endless.write_all(b"\n").is_err(), "and is told so");
        well.write_all(b"well\n").unwrap();
        assert!(signs.heard());
        // A line, and then one that is too long.
        well.write_all(&[&b"well\n"[..], &[b'x'; LINE + 1]].concat()).unwrap();
        assert!(signs.heard(), "the line counts");
        assert!(signs.talkers.is_empty());
    }

    #[test]
    fn who_connects_and_says_nothing_keeps_nobody_out() {
        let (sock, lines) = places("many");
        let mut signs = Signs::listen(&sock, &lines).unwrap();
        let mut well = UnixStream::connect(&lines).unwrap();
        assert!(!signs.heard());
        let mut idle = Vec::new();
        for round in 0..3 * CONNECTIONS {
            idle.push(UnixStream::connect(&lines).unwrap());
            well.write_all(b"well\n").unwrap();
            assert!(signs.heard(), "after {round} that say nothing");
            assert!(signs.talkers.len() <= CONNECTIONS);
        }
        let mut newcomer = UnixStream::connect(&lines).unwrap();
        newcomer.write_all(b"well\n").unwrap();
        assert!(signs.heard(), "one that comes when all places are taken");
    }

    #[test]
    fn a_flood_is_read_in_parts() {
        let (sock, lines) = places("flood");
        let mut signs = Signs::listen(&sock, &lines).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (stop, lines) = (&stop, &lines);
            scope.spawn(move || {
                let mut flood = UnixStream::connect(lines).unwrap();
                // In the end nobody reads any more.
                while !stop.load(std::sync::atomic::Ordering::Relaxed) && flood.write_all(&[b'\n'; 1 << 16]).is_ok() {}
            });
            let until = Instant::now() + Duration::from_secs(30);
            let mut heard = 0;
            while heard < 100 {
                assert!(Instant::now() < until, "heard {heard} times");
                heard += usize::from(signs.heard());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            signs.talkers.clear();
        });
    }
}
