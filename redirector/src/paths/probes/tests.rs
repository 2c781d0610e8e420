//! Probes of servers on the loopback interface that answer well, badly, or never.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes as Body;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::breaker::{self, Breakers};
use crate::config::{Bytes, Statuses};
use crate::paths::health::Sign;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const OK: Statuses = Statuses { first: 200, last: 299 };

fn target(question: Question, timeout: Duration) -> Target {
    let probe = Probe { question, interval: Duration::from_millis(50), timeout, jitter: 10, rise: 2, fall: 3 };
    Target { probe, address: LOCAL, next_hop: LOCAL, interface: "lo".into(), is_tagged: false, mac: [0; 6] }
}

/// Asks with a time that is enough for anything that ends at all.
async fn asked(question: Question) -> Result<(), String> {
    ask(&target(question, Duration::from_secs(10))).await.map_err(|failure| failure.0)
}

/// The same, of whom an answer never comes.
async fn in_vain(question: Question) -> String {
    let began = Instant::now();
    let why = ask(&target(question, Duration::from_millis(300))).await.expect_err("nobody answers").0;
    assert!(began.elapsed() < Duration::from_secs(5), "{why} after {:?}", began.elapsed());
    why
}

fn http(port: u16, body: Option<&str>) -> Question {
    Question::Http { port, path: "/health".into(), host: None, status: OK, body: body.map(Into::into) }
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A server that, whatever is asked, says this, then `more` again and again, if there is anything, and else closes or stays.
async fn says(text: &'static [u8], more: &'static [u8], pause: Duration, stays: bool) -> u16 {
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let mut sent = stream.write_all(text).await;
                while sent.is_ok() && !more.is_empty() {
                    tokio::time::sleep(pause).await;
                    sent = stream.write_all(more).await;
                }
                if stays {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    port
}

/// However many hang, the others are asked as often as before.
#[tokio::test]
async fn targets_that_hang_do_not_slow_the_others_down() {
    const HANG: u32 = 600;
    let sound = says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", NOW, false).await;
    let (_nobody_answers, port) = {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
        let listener = socket.listen(4096).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    };
    let hang = |number| {
        let address = Ipv4Addr::from_bits(0x7f01_0000 + number).into();
        Target { address, next_hop: address, ..target(http(port, None), Duration::from_secs(60)) }
    };
    let hanging = (1..=HANG).map(|number| (number as u16, hang(number))).collect();
    let (breakers, mut prober) = (Breakers::default(), Prober::new());
    let hanging = prober.configure(hanging, &breakers).unwrap();
    // All of them wait, where they may, before another target comes.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut all: BTreeMap<u16, Target> = (1..=HANG).map(|number| (number as u16, hang(number))).collect();
    all.insert(0, target(http(sound, None), Duration::from_secs(5)));
    let asked = prober.configure(all, &breakers).unwrap();
    while asked[&0].status().succeeded < 5 {
        let failed = hanging.values().map(|probed| probed.status().failed).sum::<u64>();
        assert_eq!(failed, 0, "it was not asked until those that hang had given up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const NOW: Duration = Duration::ZERO;

#[tokio::test]
async fn a_connection_or_none() {
    let (listener, port) = listen().await;
    assert_eq!(asked(Question::Tcp { port }).await, Ok(()));
    drop(listener);
    assert!(asked(Question::Tcp { port }).await.unwrap_err().contains("refused"));
}

#[tokio::test]
async fn http_by_status_and_body() {
    let sound = says(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nI am healthy", b"", NOW, true).await;
    assert_eq!(asked(http(sound, None)).await, Ok(()));
    assert_eq!(asked(http(sound, Some("healthy"))).await, Ok(()));
    let why = asked(http(sound, Some("ready"))).await.unwrap_err();
    assert_eq!(why, "the body, 12 bytes, does not hold what it should");
    let failing = says(b"HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n", b"", NOW, true).await;
    assert_eq!(asked(http(failing, None)).await.unwrap_err(), "status 503 is not 200-299");
}

#[tokio::test]
async fn http_that_is_truncated_huge_slow_or_hostile() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort";
    let truncated = says(head, b"", NOW, false).await;
    assert!(asked(http(truncated, Some("healthy"))).await.unwrap_err().starts_with("no sound HTTP:"));
    let closes = says(b"", b"", NOW, false).await;
    assert!(asked(http(closes, None)).await.unwrap_err().starts_with("no sound HTTP:"));
    let garbage = says(b"SSH-2.0-OpenSSH_9.2\r\n", b"", NOW, true).await;
    assert!(asked(http(garbage, None)).await.unwrap_err().starts_with("no sound HTTP:"));
    let header = says(b"HTTP/1.1 200 OK\r\n", b"X-Endless: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", NOW, true).await;
    assert!(asked(http(header, None)).await.unwrap_err().starts_with("no sound HTTP:"));
    let endless = says(b"HTTP/1.1 200 OK\r\n\r\n", &[b'a'; 4096], NOW, true).await;
    let why = asked(http(endless, Some("healthy"))).await.unwrap_err();
    assert_eq!(why, "the first 65536 bytes of the body do not hold what they should");
    assert_eq!(asked(http(endless, None)).await, Ok(()), "a body that nobody asks for is not read");
    let found = says(b"HTTP/1.1 200 OK\r\n\r\nheal", b"thy", Duration::from_millis(20), true).await;
    assert_eq!(asked(http(found, Some("healthy"))).await, Ok(()), "it comes in parts");
    let slow = says(b"HTTP/1.1 200 OK\r\n\r\n", b"a", Duration::from_millis(20), true).await;
    assert_eq!(in_vain(http(slow, Some("healthy"))).await, "the answer's body took longer than 300ms");
    let silent = says(b"", b"", NOW, true).await;
    assert_eq!(in_vain(http(silent, None)).await, "the answer's status took longer than 300ms");
}

/// A server for one host's name, and the file of its certificate.
async fn with_tls(text: &'static [u8]) -> (u16, std::path::PathBuf) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["backend.example".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let private = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], private).unwrap();
    let (listener, port) = listen().await;
    let file = std::env::temp_dir().join(format!("redirector-probe-{}-{port}.crt", std::process::id()));
    std::fs::write(&file, certificate.pem()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(text).await;
            let _ = stream.shutdown().await;
        }
    });
    (port, file)
}

#[tokio::test]
async fn https_of_anybody_or_of_whom_an_authority_knows() {
    let (port, file) = with_tls(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nhealthy").await;
    let https = |host: Option<&str>, ca: Option<&std::path::PathBuf>| Question::Https {
        port,
        path: "/".into(),
        host: host.map(Into::into),
        status: OK,
        body: Some("healthy".into()),
        ca: ca.cloned(),
    };
    assert_eq!(asked(https(None, None)).await, Ok(()));
    assert_eq!(asked(https(Some("backend.example"), Some(&file))).await, Ok(()));
    let other = asked(https(Some("other.example"), Some(&file))).await.unwrap_err();
    assert!(other.starts_with("the TLS handshake failed:"), "{other}");
    std::fs::write(&file, "no certificate").unwrap();
    assert!(asked(https(None, Some(&file))).await.is_err());
    std::fs::remove_file(&file).unwrap();
    assert!(asked(https(None, Some(&file))).await.unwrap_err().contains(&*file.to_string_lossy()));
    let plain = says(b"no TLS here", b"", NOW, true).await;
    let question = Question::Https { port: plain, path: "/".into(), host: None, status: OK, body: None, ca: None };
    assert!(asked(question).await.unwrap_err().starts_with("the TLS handshake failed:"));
}

/// A gRPC server whose every answer is these bytes and this status.
async fn grpc(answer: &'static [u8], status: &'static str) -> Question {
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serve = service_fn(move |request: hyper::Request<_>| async move {
                let known = request.uri().path() == "/grpc.health.v1.Health/Check";
                let _: hyper::body::Incoming = request.into_body();
                let response = hyper::Response::builder().header("grpc-status", if known { status } else { "12" });
                Ok::<_, Infallible>(response.body(Full::new(Body::from_static(answer))).unwrap())
            });
            let serve = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), serve);
            tokio::spawn(serve);
        }
    });
    Question::Grpc { port, service: "echo.v1.Echo".into() }
}

#[tokio::test]
async fn grpc_says_that_it_serves_or_not() {
    assert_eq!(asked(grpc(&[0, 0, 0, 0, 2, 8, 1], "0").await).await, Ok(()));
    for (answer, status, why) in [
        (&[0, 0, 0, 0, 2, 8, 2][..], "0", "it says NOT_SERVING"),
        (&[0, 0, 0, 0, 0], "0", "it says UNKNOWN"),
        (&[0, 0, 0], "0", "the answer is truncated: 3 bytes"),
        (&[0, 0, 0, 1, 0, 8, 1], "0", "the answer is not one message of its length"),
        (&[0; 2000], "0", "an answer of more than 1024 bytes is no health check's"),
        (&[], "5", "it does not know this service (gRPC status 5)"),
        (&[], "12", "it has no health check (gRPC status 12)"),
    ] {
        assert_eq!(asked(grpc(answer, status).await).await.unwrap_err(), why);
    }
    let port = says(b"HTTP/1.1 200 OK\r\n\r\n", b"", NOW, true).await;
    assert!(asked(Question::Grpc { port, service: String::new() }).await.unwrap_err().starts_with("no sound HTTP:"));
}

/// A server that answers each datagram by what is made of it, in turn.
async fn datagrams(answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> u16 {
    let socket = UdpSocket::bind((LOCAL, 0)).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut question = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut question).await {
            for answer in answers(&question[..len]) {
                let _ = socket.send_to(&answer, from).await;
            }
        }
    });
    port
}

/// As much as fits into a datagram besides a little.
static HUGE: [u8; 60_000] = [b'x'; 60_000];

#[tokio::test]
async fn datagrams_bring_what_they_should() {
    let port = datagrams(|question| vec![b"no".to_vec(), [b"pong ", question].concat()]).await;
    let bytes = |receive: &[u8]| Question::Udp { port, send: Bytes(b"ping".into()), receive: Bytes(receive.into()) };
    assert_eq!(asked(bytes(b"pong p")).await, Ok(()), "the first answer is another's");
    assert_eq!(asked(bytes(b"")).await, Ok(()));
    let why = in_vain(bytes(b"pang")).await;
    assert_eq!(why, "an answer of 9 bytes does not begin as it should");
    let huge = datagrams(|_| vec![[&b"pong"[..], &HUGE].concat()]).await;
    let bytes = |receive: &[u8]| Question::Udp { port: huge, send: Bytes(vec![1]), receive: Bytes(receive.into()) };
    assert_eq!(asked(bytes(b"pong")).await, Ok(()), "its beginning is enough");
    assert_eq!(in_vain(bytes(b"pang")).await, "an answer of 2048 bytes does not begin as it should");
    let silent = datagrams(|_| Vec::new()).await;
    let question = Question::Udp { port: silent, send: Bytes(vec![1]), receive: Bytes(vec![]) };
    assert_eq!(in_vain(question).await, "an answer took longer than 300ms");
    let nobody = UdpSocket::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap().port();
    let question = Question::Udp { port: nobody, send: Bytes(vec![1]), receive: Bytes(vec![]) };
    assert!(asked(question).await.unwrap_err().contains("refused"));
}

#[tokio::test]
async fn dns_knows_a_name_or_says_why_not() {
    let dns = |code: u8, answers: u8, id: u8, len: usize| async move {
        let port = datagrams(move |question| {
            let mut answer = question.to_vec();
            (answer[0], answer[2], answer[3], answer[7]) = (answer[0] ^ id, 0x80, code, answers);
            answer.resize(if len < HUGE.len() { answer.len().min(len) } else { len }, b'x');
            vec![answer]
        });
        Question::Dns { port: port.await, name: "example.org".into() }
    };
    assert_eq!(asked(dns(0, 1, 0, 512).await).await, Ok(()));
    assert_eq!(asked(dns(0, 1, 0, HUGE.len()).await).await, Ok(()), "what follows the head is not looked at");
    for (code, answers, id, len, why) in [
        (0, 0, 0, 512, "the answer holds no address"),
        (2, 0, 0, 512, "it says SERVFAIL"),
        (3, 0, 0, 512, "it says NXDOMAIN"),
        (0, 1, 1, 512, "the answer is to another question"),
        (0, 1, 1, HUGE.len(), "the answer is to another question"),
        (0, 1, 0, 11, "the answer is truncated: 11 bytes"),
    ] {
        assert_eq!(in_vain(dns(code, answers, id, len).await).await, why);
    }
}

#[tokio::test]
async fn sip_answers_options() {
    let sip = |status: &'static str, echoes: bool, padding: &'static [u8]| async move {
        let padding = String::from_utf8_lossy(padding);
        let port = datagrams(move |question| {
            let text = String::from_utf8(question.to_vec()).unwrap();
            assert!(text.starts_with("OPTIONS sip:") && text.ends_with("Content-Length: 0\r\n\r\n"), "{text}");
            let call = text.lines().find(|line| line.starts_with("Call-ID:")).unwrap();
            let call = if echoes { call } else { "Call-ID: another" };
            vec![format!("SIP/2.0 {status}\r\n{padding}\r\n{call}\r\nContent-Length: 0\r\n\r\n").into_bytes()]
        });
        Question::Sip { port: port.await, status: OK }
    };
    assert_eq!(asked(sip("200 OK", true, b"Server: s").await).await, Ok(()));
    assert_eq!(in_vain(sip("503 Service Unavailable", true, b"Server: s").await).await, "status 503 is not 200-299");
    assert_eq!(in_vain(sip("100 Trying", true, b"Server: s").await).await, "no final answer followed status 100");
    assert_eq!(in_vain(sip("200 OK", false, b"Server: s").await).await, "the answer is to another call");
    assert_eq!(in_vain(sip("x", true, b"Server: s").await).await, "the answer is not SIP/2.0");
    let huge = in_vain(sip("200 OK", true, &HUGE).await).await;
    assert_eq!(huge, "the answer is to another call", "what says so is beyond what is read");
}

#[tokio::test]
async fn echoes_come_back_in_both_families() {
    let mut target = target(Question::Icmp, Duration::from_secs(10));
    assert_eq!(ask(&target).await, Ok(()));
    target.address = Ipv6Addr::LOCALHOST.into();
    assert_eq!(ask(&target).await, Ok(()));
}

#[tokio::test]
async fn commands_end_well_badly_or_never() {
    let command = |script: &str| Question::Command { command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec() };
    assert_eq!(asked(command("test $REDIRECTOR_ADDRESS = 127.0.0.1")).await, Ok(()));
    assert_eq!(asked(command("exit 3")).await.unwrap_err(), "/bin/sh ended with exit status: 3");
    let nothing = Question::Command { command: vec!["/does/not/exist".into()] };
    assert!(asked(nothing).await.unwrap_err().starts_with("/does/not/exist cannot be started:"));
    let file = std::env::temp_dir().join(format!("redirector-probe-{}.pid", std::process::id()));
    let script = format!("sleep 600 & echo $! > {}; wait", file.display());
    assert_eq!(in_vain(command(&script)).await, "/bin/sh took longer than 300ms");
    // What it has started is gone too.
    let child: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let runs = || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    while runs() {
        assert!(Instant::now() < deadline, "process {child} runs yet");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    std::fs::remove_file(&file).unwrap();
}

/// Waits until a probe says something.
async fn until(probed: &Probed, sign: Sign) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while probed.sign() != sign {
        assert!(Instant::now() < deadline, "in vain waited for {sign:?}: {:?}", probed.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_prober_follows_what_answers_and_its_breaker_too() {
    let (listener, port) = listen().await;
    let (breakers, mut prober) = (Breakers::default(), Prober::new());
    let target = target(Question::Tcp { port }, Duration::from_millis(40));
    let targets = BTreeMap::from([(1, target.clone()), (2, target)]);
    let probed = prober.configure(targets.clone(), &breakers).unwrap();
    assert!(Arc::ptr_eq(&probed[&1], &probed[&2]), "paths that end alike share a probe");
    until(&probed[&1], Sign::Good).await;
    drop(listener);
    until(&probed[&1], Sign::Bad).await;
    assert!(probed[&1].why().unwrap().contains("refused"));
    let state = || breakers.statuses()[0].state;
    assert_ne!(state(), breaker::State::Closed);
    let again = prober.configure(targets, &breakers).unwrap();
    assert!(Arc::ptr_eq(&probed[&1], &again[&1]), "what is configured as before goes on");
    let listener = TcpListener::bind((LOCAL, port)).await.unwrap();
    until(&probed[&1], Sign::Good).await;
    assert_eq!(state(), breaker::State::Closed);
    prober.configure(BTreeMap::new(), &breakers).unwrap();
    drop((probed, again));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !breakers.statuses().is_empty() {
        assert!(Instant::now() < deadline, "its breaker stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(listener);
}
