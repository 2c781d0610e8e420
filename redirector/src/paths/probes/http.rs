//! HTTP, and gRPC's health check (`grpc.health.v1`) in HTTP/2. Of a body no more is read than decides.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;

use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::connect::{Deadline, Failure};
use crate::config::Statuses;

/// Bytes of headers that are read at most.
const HEADERS_MAX: usize = 16 << 10;
/// Bytes of a body that are looked at at most.
const BODY_MAX: usize = 64 << 10;
/// The answer of a health check is two bytes behind a header of five.
const GRPC_MAX: usize = 1 << 10;
/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u8 = 1;

const AGENT: &str = concat!("redirector/", env!("CARGO_PKG_VERSION"), " (health probe)");

/// A request, and what its answer must be.
pub(super) struct Request<'a> {
    pub(super) path: &'a str,
    pub(super) host: Option<&'a str>,
    pub(super) status: &'a Statuses,
    pub(super) body: Option<&'a str>,
}

/// Asks by HTTP/1.1.
pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    address: IpAddr,
    port: u16,
    asked: &Request<'_>,
    deadline: Deadline,
) -> Result<(), Failure> {
    let host = asked.host.map_or_else(|| SocketAddr::new(address, port).to_string(), str::to_owned);
    let builder = hyper::Request::get(asked.path).header(HOST, host).header(USER_AGENT, AGENT);
    let request = builder.body(Empty::<Bytes>::new()).map_err(Failure::new)?;
    let handshake = http1::Builder::new().max_buf_size(HEADERS_MAX).handshake(TokioIo::new(stream));
    let (mut sender, connection) = deadline.within("HTTP", handshake).await?.map_err(broken)?;
    let talk = async {
        let response = deadline.within("the answer's status", sender.send_request(request)).await?.map_err(broken)?;
        let status = response.status().as_u16();
        if !asked.status.contains(status) {
            return Err(Failure::new(format!("status {status} is not {}", asked.status)));
        }
        match asked.body {
            Some(wanted) => body_holds(response, wanted.as_bytes(), deadline).await,
            None => Ok(()),
        }
    };
    beside(connection, talk).await
}

/// Whether a body holds some bytes, within as much of it as is looked at.
async fn body_holds(response: Response<Incoming>, wanted: &[u8], deadline: Deadline) -> Result<(), Failure> {
    let mut body = response.into_body();
    let mut read: Vec<u8> = Vec::new();
    while let Some(frame) = deadline.within("the answer's body", body.frame()).await? {
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        // What was searched already may hold the beginning.
        let from = read.len().saturating_sub(wanted.len());
        read.extend_from_slice(&data[..data.len().min(BODY_MAX - read.len())]);
        if read[from..].windows(wanted.len()).any(|part| part == wanted) {
            return Ok(());
        }
        if read.len() == BODY_MAX {
            return Err(Failure::new(format!("the first {BODY_MAX} bytes of the body do not hold what they should")));
        }
    }
    Err(Failure::new(format!("the body, {} bytes, does not hold what it should", read.len())))
}

/// Asks by gRPC.
pub(super) async fn grpc<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    address: IpAddr,
    port: u16,
    service: &str,
    deadline: Deadline,
) -> Result<(), Failure> {
    let uri = format!("http://{}/grpc.health.v1.Health/Check", SocketAddr::new(address, port));
    let builder = hyper::Request::builder().method(Method::POST).uri(uri);
    let builder = builder.header(CONTENT_TYPE, "application/grpc").header("te", "trailers").header(USER_AGENT, AGENT);
    let request = builder.body(Full::new(Bytes::from(check(service)))).map_err(Failure::new)?;
    let handshake = http2::Builder::new(TokioExecutor::new())
        .max_header_list_size(HEADERS_MAX as u32)
        .handshake(TokioIo::new(stream));
    let (mut sender, connection) = deadline.within("HTTP/2", handshake).await?.map_err(broken)?;
    let talk = async {
        let response = deadline.within("the answer", sender.send_request(request)).await?.map_err(broken)?;
        if response.status().as_u16() != 200 {
            return Err(Failure::new(format!("status {}", response.status().as_u16())));
        }
        refusal(response.headers())?;
        let mut body = response.into_body();
        let mut read = Vec::new();
        while let Some(frame) = deadline.within("the answer's message", body.frame()).await? {
            match frame.map_err(broken)?.into_data() {
                Ok(data) if read.len() + data.len() > GRPC_MAX => {
                    return Err(Failure::new(format!("an answer of more than {GRPC_MAX} bytes is no health check's")));
                }
                Ok(data) => read.extend_from_slice(&data),
                Err(frame) => frame.trailers_ref().map_or(Ok(()), refusal)?,
            }
            if body.is_end_stream() {
                break;
            }
        }
        serving(&read)
    };
    beside(connection, talk).await
}

/// `HealthCheckRequest { service }` (field 1) as protobuf has it, behind gRPC's header: not compressed, length.
fn check(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed
}

/// gRPC tells of errors in headers or trailers.
fn refusal(headers: &hyper::HeaderMap) -> Result<(), Failure> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some("5") => Err(Failure::new("it does not know this service (gRPC status 5)")),
        Some("12") => Err(Failure::new("it has no health check (gRPC status 12)")),
        Some(status) => {
            Err(Failure::new(format!("gRPC status {status}: {}", text("grpc-message").unwrap_or_default())))
        }
    }
}

/// Whether `HealthCheckResponse { status }` (field 1, an enumeration) says that it serves.
fn serving(framed: &[u8]) -> Result<(), Failure> {
    let Some((&[compressed, a, b, c, d], message)) = framed.split_first_chunk::<5>() else {
        return Err(Failure::new(format!("the answer is truncated: {} bytes", framed.len())));
    };
    if compressed != 0 || u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return Err(Failure::new("the answer is not one message of its length"));
    }
    match *message {
        [] => Err(Failure::new("it says UNKNOWN")),
        [0x08, SERVING] => Ok(()),
        [0x08, 2] => Err(Failure::new("it says NOT_SERVING")),
        [0x08, 3] => Err(Failure::new("it says SERVICE_UNKNOWN")),
        _ => Err(Failure::new("the answer is no health check's")),
    }
}

/// Has a connection go on as long as somebody talks over it, and no longer.
async fn beside<T>(
    connection: impl Future<Output = Result<(), hyper::Error>>,
    talk: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let (mut connection, mut talk) = (pin!(connection), pin!(talk));
    tokio::select! {
        biased;
        told = &mut talk => told,
        ended = &mut connection => match ended {
            // What was received is there yet.
            Ok(()) => talk.await,
            Err(error) => talk.await.map_err(|_| broken(error)),
        },
    }
}

fn broken(error: hyper::Error) -> Failure {
    let mut why = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        why = format!("{why}: {error}");
        source = error.source();
    }
    Failure::new(format!("no sound HTTP: {why}"))
}
