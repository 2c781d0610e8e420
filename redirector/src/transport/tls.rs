//! TLS 1.3 in both directions: each end shows a certificate that an authority of the cluster issued.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{IdleTimeout, TransportConfig, VarInt};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;

use super::clock::Clock;
use super::{Identity, StartError};

/// What is spoken inside, for TLS's own negotiation (RFC 7301). Versions are in the frames.
const PROTOCOL: &[u8] = b"redirector";

/// How often a connection without other traffic shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A connection that nothing came over for this long is dead.
const IDLE: u32 = 5_000;

/// What is assumed of the network before the first answer: nodes are near each other.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(50);

/// Streams of each peer without an answer: one for each channel, as many again that are just being replaced.
const TELLS: u32 = 6;

/// Bytes that may wait in a stream whose channel is not read from. Connections have no bound of their own, so that such
/// a stream takes nothing from the others.
const WINDOW: u32 = 1 << 20;

/// Bytes to a peer that are sent and not acknowledged.
const SEND_WINDOW: u64 = 8 << 20;

/// The cryptography in use.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The two halves of a node's configuration.
#[derive(Clone)]
pub(super) struct Configs {
    pub(super) server: quinn::ServerConfig,
    pub(super) client: quinn::ClientConfig,
}

/// Makes both from an identity. Sessions are not resumed: every connection shows its certificates anew, so that one
/// that was renewed or that has run out counts from the next connection on.
pub(super) fn configs(identity: &Identity, requests: u32) -> Result<Configs, StartError> {
    let tls = |error: &dyn std::fmt::Display| StartError::Tls(error.to_string());
    let shown = Arc::new(SingleCertAndKey::from(identity.key.clone()));
    let clock = Arc::new(Clock::new(identity.validity()));

    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots.clone(), provider())
        .build()
        .map_err(|error| tls(&error))?;
    let mut server = rustls::ServerConfig::builder_with_details(provider(), clock.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| tls(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown.clone());
    server.alpn_protocols = vec![PROTOCOL.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;

    let mut client = rustls::ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| tls(&error))?
        .with_root_certificates(identity.roots.clone())
        .with_client_cert_resolver(shown);
    client.alpn_protocols = vec![PROTOCOL.to_vec()];
    client.resumption = Resumption::disabled();

    let server = QuicServerConfig::try_from(server).map_err(|error| tls(&error))?;
    let client = QuicClientConfig::try_from(client).map_err(|error| tls(&error))?;
    let transport = Arc::new(transport(requests));
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
    server.transport_config(transport.clone());
    let mut client = quinn::ClientConfig::new(Arc::new(client));
    client.transport_config(transport);
    Ok(Configs { server, client })
}

fn transport(requests: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE))))
        .initial_rtt(FIRST_ROUND_TRIP)
        .max_concurrent_uni_streams(VarInt::from_u32(TELLS))
        .max_concurrent_bidi_streams(VarInt::from_u32(requests))
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::MAX)
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None);
    transport
}
