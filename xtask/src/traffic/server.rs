//! What a backend runs: HTTP and a stream of echoed lines over TCP, an echo over UDP; IPv4 and IPv6 on one socket each.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};

use super::http::{ECHO_LINES, Head, digest, timed_out};
use super::realtime::take_priority;
use super::{ECHO_PORT, HTTP_PORT, udp};

/// More are refused: a lab must not be able to exhaust its machine.
const CONNECTIONS_MAX: usize = 8192;
const BACKLOG: i32 = 4096;
const STACK_BYTES: usize = 128 << 10;
/// A connection on which nothing is asked for so long is closed.
const IDLE: Duration = Duration::from_secs(120);
/// How soon a waiting thread notices that the server stops.
pub(super) const NOTICE: Duration = Duration::from_millis(200);
const LINE_BYTES_MAX: u64 = 4096;

/// A running server; dropping it ends its threads.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    listener: Arc<TcpListener>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens on all addresses of the current network namespace.
    pub fn start(name: &str) -> Result<Self> {
        Self::start_with(name, false)
    }

    /// As [`Server::start`], with the echo of datagrams at real-time priority where the machine allows it.
    pub fn start_prompt(name: &str) -> Result<Self> {
        Self::start_with(name, true)
    }

    fn start_with(name: &str, prompt: bool) -> Result<Self> {
        let listener = Arc::new(listen(HTTP_PORT).with_context(|| format!("cannot listen on TCP port {HTTP_PORT}"))?);
        let echo = udp::Echo::bind(ECHO_PORT).with_context(|| format!("cannot listen on UDP port {ECHO_PORT}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (name, connections): (Arc<str>, _) = (name.into(), Arc::new(AtomicUsize::new(0)));
        let accepting = {
            let (listener, stop, name) = (listener.clone(), stop.clone(), name.clone());
            thread::spawn(move || accept(&listener, &name, &stop, &connections))
        };
        let echoing = {
            let stop = stop.clone();
            thread::spawn(move || {
                if prompt {
                    take_priority();
                }
                echo.serve(&name, &stop);
            })
        };
        Ok(Self { stop, listener, threads: vec![accepting, echoing] })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // SAFETY: an open descriptor; on a listening socket this wakes the thread that waits in accept().
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, name: &Arc<str>, stop: &Arc<AtomicBool>, connections: &Arc<AtomicUsize>) {
    while !stop.load(Ordering::Relaxed) {
        // Fails for a while when descriptors run out, and for good when the server stops.
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        if connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (name, stop, counted) = (name.clone(), stop.clone(), connections.clone());
        let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            // What goes wrong on a connection is its client's to notice.
            let _ = Connection::serve(stream, &name, &stop);
            counted.fetch_sub(1, Ordering::Relaxed);
        });
        if thread.is_err() {
            connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Reads with patience, but notices a stop.
struct Connection<'a> {
    stream: &'a TcpStream,
    stop: &'a AtomicBool,
}

impl Read for Connection<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let deadline = Instant::now() + IDLE;
        loop {
            match (&*self.stream).read(buffer) {
                Err(error) if timed_out(&error) => {
                    if self.stop.load(Ordering::Relaxed) || Instant::now() > deadline {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }
}

impl Connection<'_> {
    fn serve(stream: TcpStream, name: &str, stop: &AtomicBool) -> Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(NOTICE))?;
        stream.set_write_timeout(Some(IDLE))?;
        let mut input = BufReader::new(Connection { stream: &stream, stop });
        while let Some(head) = Head::read(&mut input)? {
            let mut words = head.first.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
            if method == "POST" {
                let body = head.read_body(&mut input)?;
                answer(&stream, "200 OK", &format!("{name} {}\n", digest(&body)), false)?;
                continue;
            }
            if method != "GET" {
                answer(&stream, "405 Method Not Allowed", "only GET and POST are served here\n", true)?;
                return Ok(());
            }
            if head.field("upgrade") == Some(ECHO_LINES) {
                return echo_lines(&stream, input, name);
            }
            let (client, server) = (stream.peer_addr()?, stream.local_addr()?);
            let body = format!("backend: {name}\npath: {path}\nclient: {client}\nserver: {server}\n");
            let close = head.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
            answer(&stream, "200 OK", &body, close)?;
            if close {
                // The client closes first, so that it is the one to remember the connection for a while.
                let _ = input.read(&mut [0]);
                return Ok(());
            }
        }
        Ok(())
    }
}

fn answer(mut stream: &TcpStream, status: &str, body: &str, close: bool) -> std::io::Result<()> {
    let connection = if close { "close" } else { "keep-alive" };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes())
}

fn echo_lines(mut stream: &TcpStream, mut input: BufReader<Connection>, name: &str) -> Result<()> {
    let switch = format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {ECHO_LINES}\r\n\r\n");
    stream.write_all(switch.as_bytes())?;
    let mut line = String::new();
    while (&mut input).take(LINE_BYTES_MAX).read_line(&mut line)? > 0 && line.ends_with('\n') {
        stream.write_all(format!("{name} {line}").as_bytes())?;
        line.clear();
    }
    Ok(())
}
