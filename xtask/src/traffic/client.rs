//! One request over a fresh connection.

use std::io::{BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};

use super::http::{Head, digest};

const RETRY: Duration = Duration::from_millis(20);

/// A checked answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// The backend that answered, by its own word.
    pub backend: String,
    /// This end of the connection, as the backend saw it.
    pub client: SocketAddr,
    /// The backend's end; through a VIP it is the VIP's address.
    pub server: SocketAddr,
    /// From connecting to the last byte.
    pub took: Duration,
}

/// GETs a path and checks that the answer is to this question: path, source and destination must come back as they were sent.
pub fn fetch(server: SocketAddr, path: &str, source: Option<IpAddr>, timeout: Duration) -> Result<Response> {
    let begun = Instant::now();
    let stream = connect(server, source, timeout)?;
    let client = stream.local_addr()?;
    request(&stream, server, path, "Connection: close")?;
    let mut input = BufReader::new(&stream);
    let head = Head::read(&mut input).with_context(|| format!("reading the answer of {server}"))?;
    let head = head.with_context(|| format!("{server} closed without an answer"))?;
    let status = status(&head)?;
    let body = head.read_body(&mut input)?;
    ensure!(status == 200, "{server} answered {}: {}", head.first, body.trim());
    let said = |key: &str| {
        let line = body.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        line.with_context(|| format!("{server} did not say its {key}: {body:?}"))
    };
    ensure!(said("path")? == path, "{server} was asked for {path} and answered for {}", said("path")?);
    let response = Response {
        status,
        backend: said("backend")?.to_owned(),
        client: plain(said("client")?.parse().context("the client's address")?),
        server: plain(said("server")?.parse().context("the server's address")?),
        took: begun.elapsed(),
    };
    ensure!(response.server == server, "{server} was asked, and the backend took it for {}", response.server);
    ensure!(response.client == client, "{client} asked, and the backend took it for {}", response.client);
    Ok(response)
}

/// POSTs a body and returns the name of the backend that got all of it, unchanged.
pub fn upload(server: SocketAddr, body: &str, timeout: Duration) -> Result<String> {
    let mut stream = connect(server, None, timeout)?;
    let head = format!("POST / HTTP/1.1\r\nHost: {server}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).context("sending the body")?;
    let mut input = BufReader::new(&stream);
    let head = Head::read(&mut input)?.with_context(|| format!("{server} closed without an answer"))?;
    ensure!(status(&head)? == 200, "{server} answered {}", head.first);
    let answer = head.read_body(&mut input)?;
    let (backend, got) = answer.trim().split_once(' ').context("an answer that names no backend")?;
    ensure!(got == digest(body).to_string(), "{server} got something else than it was sent");
    Ok(backend.to_owned())
}

/// As [`fetch`], for a server that may be about to start.
pub fn fetch_when_ready(server: SocketAddr, patience: Duration) -> Result<Response> {
    let deadline = Instant::now() + patience;
    loop {
        match fetch(server, "/ready", None, patience) {
            Err(_) if Instant::now() < deadline => thread::sleep(RETRY),
            other => return other,
        }
    }
}

/// Connects, from a given source address where there is one.
pub(super) fn connect(server: SocketAddr, source: Option<IpAddr>, timeout: Duration) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    if let Some(source) = source {
        let on: libc::c_int = 1;
        // Without it bind() would choose a port that is free for all destinations, and so run out of them early.
        // SAFETY: the option's value outlives the call, and its size is given.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_BIND_ADDRESS_NO_PORT,
                (&raw const on).cast(),
                size_of_val(&on) as u32,
            )
        };
        socket
            .bind(&SocketAddr::from((source, 0)).into())
            .with_context(|| format!("cannot use the source {source}"))?;
    }
    socket.connect_timeout(&server.into(), timeout).with_context(|| format!("connecting to {server}"))?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    Ok(stream)
}

pub(super) fn request(mut stream: &TcpStream, server: SocketAddr, path: &str, fields: &str) -> Result<()> {
    let text = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\n{fields}\r\n\r\n");
    stream.write_all(text.as_bytes()).with_context(|| format!("asking {server}"))
}

pub(super) fn status(head: &Head) -> Result<u16> {
    let status = head.first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    status.with_context(|| format!("no HTTP status line: {:?}", head.first))
}

/// The wildcard address of the server's family.
pub(super) fn any_port(server: SocketAddr) -> SocketAddr {
    match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// A server that listens for both families at once sees IPv4 addresses mapped into IPv6.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
