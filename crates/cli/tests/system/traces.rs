//! Traces of `serve`, as a collector gets them.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hubspot_sim::{Fault, FaultKind, SimConfig};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use prost::Message as _;
use rustix::process::Signal;
use tokio::net::TcpListener;

use crate::installation::{Installation, Service, free_port};

const PORTAL: u64 = 1001;
const CONTACT: &str = "/gateway/acme/crm/v3/objects/contacts/canary-4242?email=canary-query";

/// Takes what is sent to it, and keeps it as it came.
struct Collector {
    address: String,
    taken: Arc<Mutex<Vec<Bytes>>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let taken = Arc::<Mutex<Vec<Bytes>>>::default();
        let batches = taken.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let batches = batches.clone();
                let take = service_fn(move |request: Request<Incoming>| {
                    let batches = batches.clone();
                    async move {
                        assert_eq!(request.uri().path(), "/v1/traces");
                        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                        let batch = request.into_body().collect().await.unwrap().to_bytes();
                        batches.lock().unwrap().push(batch);
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), take),
                );
            }
        });
        Self { address, taken }
    }

    fn spans(&self) -> Vec<Span> {
        let taken = self.taken.lock().unwrap();
        let requests = taken
            .iter()
            .map(|batch| ExportTraceServiceRequest::decode(batch.clone()).unwrap());
        let resources = requests.flat_map(|request| request.resource_spans);
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }

    /// The spans of one trace, in the order in which they began.
    fn trace(&self, id: &str) -> Vec<Span> {
        let mut spans = self.spans();
        spans.retain(|span| hex(&span.trace_id) == id);
        spans.sort_by_key(|span| span.start_time_unix_nano);
        spans
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

/// An attribute as text; empty where it is not there.
fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

fn has_failed(span: &Span) -> bool {
    span.status
        .as_ref()
        .is_some_and(|status| status.code() == SpanStatus::Error)
}

/// A trace of a caller's.
fn trace(number: u8) -> String {
    format!("{number:032x}")
}

fn serve(installation: &Installation, endpoint: &str) -> Service {
    let port = free_port();
    let mut command = installation.evergrant();
    command
        .env("EVERGRANT_SERVER__LISTEN", format!("127.0.0.1:{port}"))
        .env("EVERGRANT_TRACING__OTLP_ENDPOINT", endpoint)
        // What is there at the end was sent at the end.
        .env("OTEL_BSP_SCHEDULE_DELAY", "600000");
    installation.try_serve(&mut command, port).unwrap()
}

async fn call(installation: &Installation, service: &Service, key: &str, trace: Option<(&str, u8)>) {
    let parent = trace.map(|(id, flags)| format!("00-{id}-00f067aa0ba902b7-{flags:02x}"));
    let headers: Vec<(&str, &str)> = parent
        .iter()
        .map(|parent| ("traceparent", parent.as_str()))
        .collect();
    let answer = installation
        .ask_with(&service.address, Method::GET, CONTACT, key, &headers, None)
        .await
        .unwrap();
    assert_eq!(answer.status, StatusCode::NOT_FOUND, "{answer:?}");
}

/// Stops it, and waits until everything that it printed is here.
async fn stop(installation: &Installation, service: Service) {
    service.signal(Signal::TERM);
    let ended = tokio::task::spawn_blocking(move || service.ended())
        .await
        .unwrap();
    assert!(ended.success());
    while !installation.printed().contains(r#""event":"stopped""#) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_with_a_401_is_one_trace_from_call_to_refresh_to_repeat() {
    let installation = Installation::new(SimConfig {
        seed: 5,
        ..SimConfig::default()
    })
    .await;
    let collector = Collector::start().await;
    let service = serve(&installation, &collector.address);
    installation.connected(&service, "acme", PORTAL).await;
    let key = installation.key(&service, "gateway").await;
    // Its own trace: nobody sent one.
    call(&installation, &service, &key, None).await;
    installation.hubspot.expire_access_tokens(PORTAL);
    call(&installation, &service, &key, Some((&trace(1), 1))).await;
    // The caller does not keep its trace, so nobody keeps a part of it.
    call(&installation, &service, &key, Some((&trace(2), 0))).await;
    stop(&installation, service).await;

    let spans = collector.trace(&trace(1));
    let shown: Vec<_> = spans
        .iter()
        .map(|span| (span.name.as_str(), span.kind()))
        .collect();
    assert_eq!(
        shown,
        [
            ("GET /gateway/{connection_id}/{path}", SpanKind::Server),
            ("GET /crm/v3/objects/contacts/{id}", SpanKind::Client),
            ("refresh", SpanKind::Internal),
            ("lease", SpanKind::Internal),
            ("POST /oauth/2026-09/token", SpanKind::Client),
            ("store", SpanKind::Internal),
            ("GET /crm/v3/objects/contacts/{id}", SpanKind::Client),
        ],
        "{spans:#?}"
    );
    let [call, first, refresh, lease, redemption, store, second] = spans.as_slice() else {
        unreachable!("as they were compared")
    };
    assert_eq!(hex(&call.parent_span_id), "00f067aa0ba902b7");
    for child in [first, refresh, second] {
        assert_eq!(child.parent_span_id, call.span_id, "{child:?}");
    }
    for child in [lease, redemption, store] {
        assert_eq!(child.parent_span_id, refresh.span_id, "{child:?}");
    }
    for (span, key, expected) in [
        (call, "http.request.method", "GET"),
        (call, "http.route", "/gateway/{connection_id}/{path}"),
        (call, "http.response.status_code", "404"),
        (call, "evergrant.connection_id", "acme"),
        (call, "evergrant.app", "crm"),
        (call, "evergrant.attempts", "2"),
        (call, "evergrant.endpoint", "/crm/v3/objects/contacts/{id}"),
        (first, "http.response.status_code", "401"),
        (first, "error.type", "401"),
        (first, "url.template", "/crm/v3/objects/contacts/{id}"),
        (first, "server.address", "127.0.0.1"),
        (refresh, "evergrant.reason", "rejected"),
        (refresh, "evergrant.outcome", "refreshed"),
        (refresh, "evergrant.redemption", "issued"),
        (redemption, "http.response.status_code", "200"),
        (second, "http.request.resend_count", "1"),
        (second, "http.response.status_code", "404"),
    ] {
        assert_eq!(attribute(span, key), expected, "{key}: {span:#?}");
    }
    assert!(has_failed(first) && !has_failed(call) && !has_failed(refresh));
    assert!(collector.trace(&trace(2)).is_empty());

    // Each call's log line names the trace that it is in.
    let printed = installation.printed();
    let lines = printed.lines().filter(|line| line.contains(r#""event":"call""#));
    let traces: Vec<String> = lines
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| line["trace_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(traces[1..], [trace(1), trace(2)], "{printed}");
    let own = collector.trace(&traces[0]);
    assert!(
        own.iter()
            .any(|span| span.kind() == SpanKind::Server && span.parent_span_id.is_empty())
    );

    // No id but the connection's, no query, no secret.
    let taken = collector.taken.lock().unwrap().concat();
    let taken = String::from_utf8_lossy(&taken);
    assert!(taken.contains("acme"));
    for secret in [
        "canary",
        &key,
        &installation.admin_key,
        "sim-secret",
        "earer",
        "refresh_token",
    ] {
        assert!(!taken.contains(secret), "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waits_for_anothers_refresh_is_linked_to_it() {
    let installation = Installation::new(SimConfig {
        seed: 6,
        ..SimConfig::default()
    })
    .await;
    let collector = Collector::start().await;
    let service = serve(&installation, &collector.address);
    installation.connected(&service, "acme", PORTAL).await;
    let key = installation.key(&service, "gateway").await;
    let key_of_metrics = installation.key(&service, "metrics").await;
    installation
        .hubspot
        .arm(Fault::token(FaultKind::HoldAfterIssue).times(1));
    let calls = (1..=6).map(|number| {
        let trace = trace(number);
        let (installation, service, key) = (&installation, &service, &key);
        async move { call(installation, service, key, Some((&trace, 1))).await }
    });
    let released = async {
        installation.hubspot.wait_for_held(1).await;
        loop {
            let metrics = installation
                .send(&service, Method::GET, "/metrics", &key_of_metrics, None)
                .await;
            if metrics.text.contains("evergrant_calls_in_flight 6\n") {
                break;
            }
        }
        installation.hubspot.release_held();
    };
    futures_util::future::join(futures_util::future::join_all(calls), released).await;
    stop(&installation, service).await;
    let spans = collector.spans();
    let refreshes: Vec<_> = spans.iter().filter(|span| span.name == "refresh").collect();
    let [refresh] = refreshes.as_slice() else {
        panic!("one for all: {refreshes:#?}")
    };
    let linked: Vec<_> = spans
        .iter()
        .filter(|span| span.links.iter().any(|link| link.span_id == refresh.span_id))
        .collect();
    // Whoever was in flight and had not got so far yet found the token.
    assert!(!linked.is_empty(), "{spans:#?}");
    for call in linked {
        assert_eq!(call.kind(), SpanKind::Server);
        assert_ne!(call.trace_id, refresh.trace_id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_its_spans_and_one_line() {
    let installation = Installation::new(SimConfig {
        seed: 7,
        ..SimConfig::default()
    })
    .await;
    let port = free_port();
    let mut command = installation.evergrant();
    command
        .env("EVERGRANT_SERVER__LISTEN", format!("127.0.0.1:{port}"))
        .env(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            format!("http://127.0.0.1:{}", free_port()),
        )
        .env("OTEL_BSP_SCHEDULE_DELAY", "1");
    let service = installation.try_serve(&mut command, port).unwrap();
    installation.connected(&service, "acme", PORTAL).await;
    let key = installation.key(&service, "gateway").await;
    for _ in 0..20 {
        call(&installation, &service, &key, None).await;
    }
    stop(&installation, service).await;
    let printed = installation.printed();
    assert_eq!(printed.matches("traces_lost").count(), 1, "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_keeps_no_call_waiting() {
    let installation = Installation::new(SimConfig {
        seed: 8,
        ..SimConfig::default()
    })
    .await;
    // It takes connections and never answers.
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free_port();
    let mut command = installation.evergrant();
    command
        .env("EVERGRANT_SERVER__LISTEN", format!("127.0.0.1:{port}"))
        .env(
            "EVERGRANT_TRACING__OTLP_ENDPOINT",
            format!("http://{}/v1/traces", hanging.local_addr().unwrap()),
        )
        .env("OTEL_BSP_SCHEDULE_DELAY", "1")
        // More spans than are kept for it.
        .env("OTEL_BSP_MAX_QUEUE_SIZE", "8")
        .env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4");
    let service = installation.try_serve(&mut command, port).unwrap();
    installation.connected(&service, "acme", PORTAL).await;
    let key = installation.key(&service, "gateway").await;
    let (_collecting, _) = hanging.accept().await.unwrap();
    let calls = async {
        for _ in 0..40 {
            call(&installation, &service, &key, None).await;
        }
    };
    // Sooner than a single batch is given up.
    tokio::time::timeout(std::time::Duration::from_secs(8), calls)
        .await
        .expect("no call waits for it");
    // Who is dropped is killed: nobody waits for the last spans here.
}
