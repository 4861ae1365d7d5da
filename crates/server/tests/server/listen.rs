//! Listeners: both protocols, TLS, a port in use, draining.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use evergrant_config::TlsFiles;
use evergrant_server::{BindError, ListenSettings, Server};
use http::{Request, Version, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hubspot_sim::{Fault, FaultKind};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::harness::{House, bare, loopback, send_h2, send_to};

#[tokio::test]
async fn both_versions_of_http_are_spoken_on_one_port() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let request = |path: &str| {
        Request::get(format!("http://localhost{path}"))
            .version(Version::HTTP_2)
            .header(header::AUTHORIZATION, format!("Bearer {}", house.admin))
            .body(Full::default())
            .unwrap()
    };
    send_h2(house.address, request("/healthz")).await.expect(200);
    send_h2(house.address, request("/v1/connections/c1/token"))
        .await
        .expect(200);
    send_h2(house.address, request("/gateway/c1/crm/v3/objects/contacts"))
        .await
        .expect(200);
    send_h2(
        house.address,
        Request::get("http://evil.test/healthz")
            .body(Full::default())
            .unwrap(),
    )
    .await
    .refused(421, "host_not_allowed");
    house.send(bare("GET", "/healthz")).await.expect(200);
}

#[tokio::test]
async fn localhost_is_served_on_both_of_its_addresses() {
    let house = House::build().await;
    let other = std::net::SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), house.address.port());
    // A machine without ::1 goes without; then there is nothing to be seen here.
    if tokio::net::TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, 0))
        .await
        .is_ok()
    {
        send_to(other, bare("GET", "/healthz")).await.expect(200);
    }
}

#[tokio::test]
async fn a_port_in_use_is_said_with_its_address_and_a_way_out() {
    let house = House::build().await;
    let settings = ListenSettings {
        address: house.address,
        ..loopback()
    };
    let Err(error) = Server::bind(house.service.clone(), settings).await else {
        panic!("bound twice")
    };
    assert!(matches!(error, BindError::InUse { .. }));
    let message = error.to_string();
    assert!(
        message.contains(&house.address.to_string()) && message.contains("listen"),
        "{message}"
    );
}

#[tokio::test]
async fn calls_in_flight_finish_when_it_is_told_to_stop_and_no_new_ones_begin() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house.sim.arm(Fault::api(FaultKind::HoldBeforeIssue));
    let stream = TcpStream::connect(house.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::get("/gateway/c1/crm/v3/objects/contacts")
        .header(header::HOST, "localhost")
        .header(header::AUTHORIZATION, format!("Bearer {}", house.admin));
    let call = tokio::spawn(sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()));
    house.sim.wait_for_held(1).await;
    house.begin_to_stop();
    // The listener goes as soon as it is told.
    while TcpStream::connect(house.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    house.sim.release_held();
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    answer.into_body().collect().await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), house.stop())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_guarded_write_that_hangs_holds_a_stop_no_longer_than_drain_timeout() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house
        .sim
        .arm(Fault::api(FaultKind::HoldBeforeIssue).method("POST"));
    let settings = ListenSettings {
        drain_timeout: Duration::from_millis(100),
        ..loopback()
    };
    let server = Server::bind(house.service.clone(), settings).await.unwrap();
    let address = server.address();
    let stop = CancellationToken::new();
    let running = tokio::spawn(server.run(stop.clone()));
    let request = Request::post("/gateway/c1/crm/v3/objects/contacts")
        .header(header::AUTHORIZATION, format!("Bearer {}", house.admin))
        .header(header::CONTENT_TYPE, "application/json")
        .header("idempotency-key", "k1")
        .body(Full::new(Bytes::from_static(
            b"{\"properties\":{\"firstname\":\"Ada\"}}",
        )));
    let call = tokio::spawn(send_to(address, request.unwrap()));
    house.sim.wait_for_held(1).await;
    call.abort();
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(20), running)
        .await
        .expect("it is cut off")
        .unwrap();
    house.sim.release_held();
}

#[tokio::test]
async fn a_connection_that_never_says_what_it_speaks_does_not_stop_others() {
    let house = House::build().await;
    let mut silent = Vec::new();
    for greeting in [&b""[..], b"PRI * HTT", b"GET / HT", b"\x16\x03\x01"] {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream.write_all(greeting).await.unwrap();
        silent.push(stream);
    }
    house.send(bare("GET", "/healthz")).await.expect(200);
}

#[tokio::test]
async fn who_is_refused_while_still_sending_can_read_why() {
    /// More than lies in the buffers between the two.
    const LENGTH: usize = 24 * 1024 * 1024;
    let house = House::build().await;
    for (key, expected) in [("evg_made-up", "HTTP/1.1 401"), (&house.admin, "HTTP/1.1 424")] {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        let head = format!(
            "POST /gateway/nobody/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Length: {LENGTH}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'x'; LENGTH]).await.unwrap();
        let mut status = vec![0; expected.len()];
        stream.read_exact(&mut status).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&status), expected);
    }
}

/// How long the connection lives after one answer and half of another request.
async fn patience(house: &House, key: &str, rest: &[u8]) -> Duration {
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let request = format!("GET /v1/apps HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while answer.last() != Some(&b'}') {
        stream.read_buf(&mut answer).await.unwrap();
    }
    stream.write_all(rest).await.unwrap();
    tokio::time::pause();
    let begin = tokio::time::Instant::now();
    stream.read_to_end(&mut answer).await.unwrap();
    tokio::time::resume();
    begin.elapsed()
}

#[tokio::test]
async fn who_has_shown_no_valid_key_may_hold_a_connection_for_seconds_only() {
    let house = House::build().await;
    let (brief, patient) = (Duration::from_secs(20), Duration::from_secs(70));
    for rest in [&b""[..], b"GET / HT"] {
        assert!(patience(&house, "evg_made-up", rest).await < brief);
        assert!(patience(&house, &house.admin, rest).await > patient);
    }
}

#[tokio::test]
async fn requests_that_could_be_read_in_two_ways_are_refused() {
    let house = House::build().await;
    for head in [
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.test\r\n\r\n",
        "GET /healthz HTTP/1.1\r\n\r\n",
        "POST /v1/explain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        "POST /v1/explain HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n",
        "GET  /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost : localhost\r\n\r\n",
        "GET http://evil.test/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream
            .write_all(
                head.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
                    .as_bytes(),
            )
            .await
            .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 4"), "{head:?}: {answer}");
    }
}

#[tokio::test]
async fn tls_is_spoken_with_the_configured_certificate() {
    let house = House::build().await;
    let folder = tempfile::TempDir::new().unwrap();
    let files = TlsFiles {
        cert_file: folder.path().join("cert.pem"),
        key_file: folder.path().join("key.pem"),
    };
    let write = || {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&files.cert_file, pem("CERTIFICATE", made.cert.der())).unwrap();
        std::fs::write(
            &files.key_file,
            pem("PRIVATE KEY", &made.signing_key.serialize_der()),
        )
        .unwrap();
        made.cert.der().clone()
    };
    let settings = ListenSettings {
        tls: Some(files.clone()),
        ..loopback()
    };
    let Err(missing) = Server::bind(house.service.clone(), settings.clone()).await else {
        panic!("no certificate")
    };
    assert!(missing.to_string().contains("cert.pem"), "{missing}");
    let first = write();
    let server = Server::bind(house.service.clone(), settings).await.unwrap();
    let address = server.address();
    let stop = CancellationToken::new();
    let running = tokio::spawn(server.run(stop.clone()));
    assert_eq!(hello(address, &first, b"h2").await, "h2");
    assert_eq!(hello(address, &first, b"http/1.1").await, "http/1.1");
    // Plain requests and others, each answered before the next is sent.
    let mut stream = shake_hands(address, &first, b"http/1.1").await;
    for more in [
        "",
        "",
        "Transfer-Encoding: chunked\r\n",
        "",
        "Connection: close\r\n",
    ] {
        let body = if more.starts_with('T') { "0\r\n\r\n" } else { "" };
        let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{more}\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "{more}");
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{more}");
    }
    assert_eq!(
        stream.read(&mut [0]).await.unwrap(),
        0,
        "it is closed, and says so"
    );
    stop.cancel();
    running.await.unwrap();
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// Says which protocol was agreed on.
async fn hello(address: std::net::SocketAddr, trusted: &CertificateDer<'static>, protocol: &[u8]) -> String {
    let stream = shake_hands(address, trusted, protocol).await;
    String::from_utf8(stream.get_ref().1.alpn_protocol().unwrap().to_vec()).unwrap()
}

/// Shakes hands, trusting this certificate only.
async fn shake_hands(
    address: std::net::SocketAddr,
    trusted: &CertificateDer<'static>,
    protocol: &[u8],
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(address).await.unwrap();
    connector
        .connect(ServerName::try_from("localhost").unwrap(), stream)
        .await
        .unwrap()
}

#[tokio::test]
async fn readiness_ends_when_draining_begins() {
    let house = House::build().await;
    let operate = async || house.operate("GET", "/readyz", None).await;
    operate().await.expect(200);
    house.begin_to_stop();
    while TcpStream::connect(house.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let draining = operate().await.expect(503);
    assert_eq!(draining.json()["status"], json!("draining"));
}

#[tokio::test]
async fn a_connection_that_never_asked_for_anything_does_not_hold_up_a_stop() {
    let house = House::build().await;
    let silent = TcpStream::connect(house.address).await.unwrap();
    // Connections are taken in their order, so the silent one is known by the time this is answered.
    let request = Request::get("/healthz").body(Full::default()).unwrap();
    send_to(house.address, request).await.expect(200);
    // Far less than a client may take to greet.
    let stopped = tokio::time::timeout(Duration::from_secs(5), house.stop()).await;
    assert!(stopped.is_ok(), "it is not waited for");
    drop(silent);
}

#[tokio::test]
async fn connections_are_served_on_threads_of_the_listener_and_the_engine_works_elsewhere() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let server = Server::bind(house.service.clone(), loopback()).await.unwrap();
    let (address, stop) = (server.address(), CancellationToken::new());
    let running = tokio::spawn(server.on_threads(2).run(stop.clone()));
    let request = || {
        Request::get("/gateway/c1/crm/v3/objects/contacts")
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, format!("Bearer {}", house.admin))
    };
    for _ in 0..4 {
        send_to(address, request().body(Full::default()).unwrap())
            .await
            .expect(200);
    }
    // A caller that leaves in the middle of a redemption, and a service that is told to stop in it.
    house.sim.arm(Fault::token(FaultKind::HoldBeforeIssue));
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let refresh = Request::post("/v1/connections/c1/refresh")
        .header(header::HOST, "localhost")
        .header(header::AUTHORIZATION, format!("Bearer {}", house.admin))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(bytes::Bytes::from_static(b"{\"force\":true}")));
    let call = tokio::spawn(sender.send_request(refresh.unwrap()));
    house.sim.wait_for_held(1).await;
    call.abort();
    connection.abort();
    stop.cancel();
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    house.sim.release_held();
    tokio::time::timeout(Duration::from_secs(30), running)
        .await
        .unwrap()
        .unwrap();
    let connection = house.operate("GET", "/v1/connections/c1", None).await.expect(200);
    assert_eq!(connection.json()["version"], json!(2), "it is saved");
}
