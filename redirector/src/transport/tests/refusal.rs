//! Peers with good certificates that send what nobody should.

use std::net::UdpSocket;
use std::sync::Arc;

use quinn::{ApplicationClose, Connection, ConnectionError, Endpoint, EndpointConfig, TokioRuntime};

use super::super::frame::{HEADER, Kind, VERSION, header};
use super::super::tls;
use super::*;

/// A node that speaks QUIC and says whatever the test wants.
pub(super) struct Rogue {
    endpoint: Endpoint,
    configs: tls::Configs,
}

impl Rogue {
    pub(super) fn new(identity: &Identity) -> Self {
        let configs = tls::configs(identity, 8).unwrap();
        let socket = UdpSocket::bind(ANY).unwrap();
        let server = Some(configs.server.clone());
        let endpoint = Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(TokioRuntime)).unwrap();
        Self { endpoint, configs }
    }

    /// Connects, whether or not it is welcome.
    async fn knock(&self, node: u8, address: SocketAddr) -> Connection {
        let name = pki::NodeName { node, cluster: 7 }.to_string();
        let connecting = self.endpoint.connect_with(self.configs.client.clone(), address, &name).unwrap();
        timeout(PATIENCE, connecting).await.unwrap().unwrap()
    }

    async fn dial(&self, node: &TestNode) -> Connection {
        self.dial_at(node.id, node.transport.local_address()).await
    }

    pub(super) async fn dial_at(&self, node: u8, address: SocketAddr) -> Connection {
        let connection = self.knock(node, address).await;
        let mut welcome = timeout(PATIENCE, connection.accept_uni()).await.unwrap().unwrap();
        let bytes = timeout(PATIENCE, welcome.read_to_end(100)).await.unwrap().unwrap();
        assert_eq!(bytes, header(Channel::Control, Kind::Welcome, b"").unwrap());
        connection
    }
}

/// A node, and a rogue that is a member as node 2.
async fn setting() -> (TestNode, Rogue, Connection) {
    let authority = Authority::of(7);
    let node = authority.node(1);
    let rogue = Rogue::new(&authority.identity(2));
    // Nobody is reached where the rogue is said to be, so that only the rogue dials.
    node.transport.set_members(vec![(2, SocketAddr::from((Ipv4Addr::LOCALHOST, 9)))]);
    let connection = rogue.dial(&node).await;
    node.knows(2).await;
    (node, rogue, connection)
}

fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    [header(Channel::Flows, kind, payload).unwrap().as_slice(), payload].concat()
}

/// Sends a stream's whole content.
async fn send(connection: &Connection, bytes: &[u8]) {
    let mut stream = connection.open_uni().await.unwrap();
    // The other end may stop it at once.
    let _ = stream.write_all(bytes).await;
    let _ = stream.finish();
}

/// A certificate that the authority signed, with names of the test's choice.
fn certified(authority: &Authority, names: &[&str]) -> Identity {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    signed(authority, rcgen::CertificateParams::new(names).unwrap())
}

/// A node's certificate that the authority signed, good for another time than now.
fn certified_for(authority: &Authority, from: i32, to: i32) -> Identity {
    let mut wanted = rcgen::CertificateParams::new(["node-2.cluster-7.redirector".to_owned()]).unwrap();
    (wanted.not_before, wanted.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
    signed(authority, wanted)
}

fn signed(authority: &Authority, wanted: rcgen::CertificateParams) -> Identity {
    let mut files = authority.files(2, &authority.ca.join("ca.crt"));
    let mut identity = Identity::read(&files).unwrap();
    let ca_key = rcgen::KeyPair::from_pem(&fs::read_to_string(authority.ca.join("ca.key")).unwrap()).unwrap();
    let ca = fs::read_to_string(&files.ca).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&ca, ca_key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = wanted.signed_by(&key, &issuer).unwrap();
    files.certificate.set_extension("odd.crt");
    files.private_key.set_extension("odd.key");
    fs::write(&files.certificate, certificate.pem()).unwrap();
    fs::write(&files.private_key, key.serialize_pem()).unwrap();
    let chain = pki::pem(&files.certificate).unwrap();
    let der = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = rustls::sign::CertifiedKey::from_der(chain, der, &tls::provider()).unwrap();
    identity.key = Arc::new(key);
    identity
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_does_not_name_one_other_member_is_refused() {
    let authority = Authority::of(7);
    let node = authority.node(1);
    node.transport.set_members(vec![(2, SocketAddr::from((Ipv4Addr::LOCALHOST, 9)))]);
    let two = "node-2.cluster-7.redirector";
    let identities = [
        (authority.identity(1), "is the name of the node that was dialled"),
        (authority.identity(3), "is no member"),
        (certified(&authority, &[two, "node-3.cluster-7.redirector"]), "names no node"),
        (certified(&authority, &["node-02.cluster-7.redirector"]), "names no node"),
        (certified(&authority, &["cluster-7.redirector"]), "names no node"),
        (certified(&authority, &[]), "names no node"),
        // What the authority may not sign is refused by TLS already.
        (certified(&authority, &["node-2.cluster-8.redirector"]), "error"),
        (certified_for(&authority, 2001, 2002), "error"),
        (certified_for(&authority, 4000, 4001), "error"),
    ];
    for (count, (identity, words)) in identities.iter().enumerate() {
        let connection = Rogue::new(identity).knock(1, node.transport.local_address()).await;
        let reason = timeout(PATIENCE, connection.closed()).await.unwrap().to_string();
        assert!(reason.contains(words), "{reason:?} does not say {words:?}");
        until("the count", || node.strangers() == count as u64 + 1).await;
    }
    assert!(node.transport.connected().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_are_counted_and_the_connection_goes_on() {
    let (mut node, _rogue, connection) = setting().await;
    let good = frame(Kind::Tell, b"good");
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let oversized = {
        let mut bytes = good.clone();
        bytes[8..12].copy_from_slice(&(PAYLOAD_MAX as u32 + 1).to_be_bytes());
        bytes
    };
    let bad = [
        b"GET / HTTP/1.1\r\nHost: node-1\r\n\r\n".to_vec(),
        oversized,
        good[..HEADER - 1].to_vec(),
        good[..HEADER + 2].to_vec(),
        changed(HEADER, b'x'),
        changed(12, good[12] ^ 1),
        changed(5, 7),
        frame(Kind::Request, b"a request without a way back"),
        [good.clone(), b"rubbish after a good frame".to_vec()].concat(),
    ];
    for (count, bytes) in bad.iter().enumerate() {
        send(&connection, bytes).await;
        until("the refusal", || node.counts(2).damaged_frames == count as u64 + 1).await;
        send(&connection, &frame(Kind::Tell, &[count as u8])).await;
        let mut payload = next(&mut node.inboxes.flows).await.payload;
        if payload == b"good" {
            payload = next(&mut node.inboxes.flows).await.payload;
        }
        assert_eq!(payload, [count as u8]);
    }
    // A request that is damaged has no answer and reaches nobody.
    let (mut stream, mut answer) = connection.open_bi().await.unwrap();
    let mut damaged = frame(Kind::Request, b"what");
    damaged[HEADER] ^= 1;
    stream.write_all(&damaged).await.unwrap();
    let _ = stream.finish();
    assert!(timeout(PATIENCE, answer.read_to_end(100)).await.unwrap().is_err());
    assert_eq!(node.counts(2).damaged_frames, bad.len() as u64 + 1);
    assert!(node.inboxes.flows.try_recv().is_err());
    assert!(connection.close_reason().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_nothing_but_bad_frames_loses_its_connection() {
    let (node, rogue, connection) = setting().await;
    for _ in 0..receive::STRIKES {
        let Ok(Ok(mut stream)) = timeout(PATIENCE, connection.open_uni()).await else { break };
        let _ = stream.write_all(b"anything of sixteen bytes or more").await;
        let _ = stream.finish();
    }
    let reason = timeout(PATIENCE, connection.closed()).await.unwrap();
    let ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason }) = reason else {
        panic!("{reason}")
    };
    assert_eq!(error_code, code::DAMAGED);
    assert!(String::from_utf8_lossy(&reason).contains("16 bad frames"), "{reason:?}");
    assert_eq!(node.counts(2).damaged_frames, u64::from(receive::STRIKES));
    // It may come back: what is wrong with it may have been mended.
    rogue.dial(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_version_is_told_to_both_ends() {
    let (node, _rogue, connection) = setting().await;
    let mut bytes = frame(Kind::Tell, b"from the future");
    bytes[4] = VERSION + 1;
    send(&connection, &bytes).await;
    let reason = timeout(PATIENCE, connection.closed()).await.unwrap();
    let ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason }) = reason else {
        panic!("{reason}")
    };
    assert_eq!(error_code, code::VERSION);
    let reason = String::from_utf8_lossy(&reason);
    assert!(reason.contains("version 2") && reason.contains("version 1"), "{reason}");
    assert_eq!(node.counts(2).damaged_frames, 1);
    until("the end of the connection", || node.transport.connected().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dialled_node_of_an_unknown_version_is_refused() {
    let authority = Authority::of(7);
    let node = authority.node(1);
    let rogue = Rogue::new(&authority.identity(2));
    node.transport.set_members(vec![(2, rogue.endpoint.local_addr().unwrap())]);
    let connection = timeout(PATIENCE, rogue.endpoint.accept()).await.unwrap().unwrap().await.unwrap();
    let mut welcome = header(Channel::Control, Kind::Welcome, b"").unwrap();
    welcome[4] = VERSION + 1;
    send(&connection, &welcome).await;
    let reason = timeout(PATIENCE, connection.closed()).await.unwrap();
    assert!(reason.to_string().contains("version 2") && reason.to_string().contains("version 1"), "{reason}");
    until("the count", || node.counts(2).damaged_frames > 0).await;
    assert_eq!(node.counts(2).connections, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_answer_is_an_error_and_no_answer() {
    let (node, _rogue, connection) = setting().await;
    let answers = tokio::spawn({
        let connection = connection.clone();
        async move {
            let mut answer = frame(Kind::Answer, b"answer");
            for at in [HEADER, 0, 5] {
                let (mut stream, mut request) = connection.accept_bi().await.unwrap();
                request.read_to_end(100).await.unwrap();
                answer[at] ^= 1;
                stream.write_all(&answer).await.unwrap();
                answer[at] ^= 1;
                let _ = stream.finish();
            }
            // One that ends in the middle, and one that is lost with its connection.
            let (mut stream, _request) = connection.accept_bi().await.unwrap();
            stream.write_all(&answer[..HEADER + 1]).await.unwrap();
            let _ = stream.finish();
            let _lost = connection.accept_bi().await.unwrap();
            connection.close(code::ENDED, b"");
        }
    });
    for count in 1..=4 {
        let answer = node.transport.request(2, Channel::Flows, b"?".to_vec(), PATIENCE).await;
        assert!(matches!(answer, Err(RequestError::Damaged { peer: 2, .. })), "{answer:?}");
        assert_eq!(node.counts(2).damaged_frames, count);
    }
    let answer = node.transport.request(2, Channel::Flows, b"?".to_vec(), PATIENCE).await;
    assert_eq!(answer, Err(RequestError::Lost(2)));
    answers.await.unwrap();
}
