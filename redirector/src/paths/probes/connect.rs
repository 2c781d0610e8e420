//! Sockets that leave by a path's interface, TLS on top of them, and the time that all of a try has.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Target;

/// Why a try failed, in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure(pub(super) String);

/// The longest reason that is kept: parts of it come from outside.
const REASON_MAX: usize = 200;

impl Failure {
    pub(super) fn new(why: impl Display) -> Self {
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        Self(why.to_string().chars().map(printable).take(REASON_MAX).collect())
    }
}

/// When a try must be over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    at: Instant,
    whole: Duration,
}

impl Deadline {
    pub(super) fn after(whole: Duration) -> Self {
        Self { at: Instant::now() + whole, whole }
    }

    /// Awaits a step of the try; `what` is named where it takes too long.
    pub(super) async fn within<T>(self, what: &str, step: impl Future<Output = T>) -> Result<T, Failure> {
        let whole = humantime::format_duration(self.whole);
        tokio::time::timeout_at(self.at, step)
            .await
            .map_err(|_| Failure::new(format!("{what} took longer than {whole}")))
    }
}

fn domain(address: IpAddr) -> Domain {
    if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 }
}

/// A socket that leaves by the path's interface and waits for nothing.
pub(super) fn socket(target: &Target, kind: Type, protocol: Option<Protocol>) -> Result<Socket, Failure> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(domain(target.address), kind, protocol)?;
        if !target.is_tagged {
            socket.bind_device(Some(target.interface.as_bytes()))?;
        }
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    open().map_err(|error| Failure::new(format!("no socket on {}: {error}", target.interface)))
}

/// Connects. The socket is reset when it is dropped, so that probes leave no sockets behind that wait.
pub(super) async fn tcp(target: &Target, port: u16, deadline: Deadline) -> Result<TcpStream, Failure> {
    let socket = socket(target, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_linger(Some(Duration::ZERO)).map_err(Failure::new)?;
    let socket = TcpSocket::from_std_stream(socket.into());
    let to = SocketAddr::new(target.address, port);
    let connected = deadline.within(&format!("connecting to {to}"), socket.connect(to)).await?;
    connected.map_err(|error| Failure::new(format!("connecting to {to}: {error}")))
}

/// Speaks TLS. With `ca` the certificate must be for `host`, or else the address, and of those authorities.
pub(super) async fn tls(
    stream: TcpStream,
    address: IpAddr,
    host: Option<&str>,
    ca: Option<&Path>,
    deadline: Deadline,
) -> Result<TlsStream<TcpStream>, Failure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let config = config.map_err(Failure::new)?;
    let config = match ca {
        None => config.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))).with_no_client_auth(),
        Some(file) => {
            let wrong = |error: &dyn Display| Failure::new(format!("{}: {error}", file.display()));
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))? {
                roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
            }
            config.with_root_certificates(roots).with_no_client_auth()
        }
    };
    let name = match host {
        Some(host) => ServerName::try_from(host.to_owned()).map_err(Failure::new)?,
        None => ServerName::from(address),
    };
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = deadline.within("the TLS handshake", handshake).await?;
    stream.map_err(|error| Failure::new(format!("the TLS handshake failed: {error}")))
}

/// Takes any certificate, as a probe without `ca` does: it asks whether a backend serves, not who it is. Signatures are
/// checked all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
