//! The gateway's door; what goes on behind it is tested with the gateway itself.

use std::net::Ipv4Addr;

use bytes::Bytes;
use evergrant_config::{Limits, LogCalls};
use evergrant_server::{Peer, Reach, ServiceSettings};
use http::{Request, header};
use http_body_util::Full;
use hubspot_sim::{Fault, FaultKind, RateLimits, Switch};
use serde_json::{Value, json};

use crate::harness::{House, LOG};

#[tokio::test]
async fn a_call_by_path_or_by_header_reaches_the_provider_and_comes_back_as_it_is() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let key = house.key(json!({"name": "n", "role": "gateway"})).await;
    let answer = house
        .get(&key, "/gateway/c1/crm/v3/objects/contacts?limit=1")
        .await
        .expect(200);
    assert_eq!(answer.header("evergrant-error"), "");
    assert!(answer.json()["results"].is_array());
    let request = Request::get("/gateway/-/crm/v3/objects/contacts")
        .header(header::AUTHORIZATION, format!("Bearer {key}"))
        .header("Evergrant-Connection", "c1");
    house
        .send(request.body(Full::default()).unwrap())
        .await
        .expect(200);
    let missing = house
        .get(&key, "/gateway/c1/crm/v3/objects/contacts/404404")
        .await;
    assert_eq!(
        (missing.status.as_u16(), missing.header("evergrant-error")),
        (404, "")
    );
    let refused = house.sim.ledger().unauthorized;
    assert_eq!((refused.expired, refused.garbage, refused.missing), (0, 0, 0));
}

#[tokio::test]
async fn a_call_for_which_no_budget_is_left_is_answered_as_hubspot_would_and_named_as_ours() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house.sim.set_rate_limits(RateLimits {
        calls_max: 5,
        ..RateLimits::default()
    });
    house.sim.turn_on(Switch::EnforceRateLimits);
    let hurried = json!({"name": "n", "role": "gateway", "lane": "interactive", "max_wait": 0});
    let key = house.key(hurried).await;
    let path = "/gateway/c1/crm/v3/objects/contacts";
    let mut refused = None;
    for _ in 0..8 {
        let answer = house.get(&key, path).await;
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
        answer.expect(200);
    }
    // The key's longest wait counts, without a header.
    let refused = refused.unwrap().refused(429, "budget_exhausted");
    assert_eq!(refused.header("evergrant-error"), "budget_exhausted");
    assert_eq!(refused.header("x-should-retry"), "true");
    assert_eq!(refused.header("evergrant-class"), "rate_limited");
    let seconds: u32 = refused.header("retry-after").parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    let problem = refused.json();
    assert_eq!(problem["errorType"], "RATE_LIMIT");
    assert_eq!(problem["policyName"], "TEN_SECONDLY_ROLLING");
    assert_eq!(house.sim.ledger().rate_limited.total(), 0);
}

#[tokio::test]
async fn what_evergrant_itself_says_there_is_never_taken_for_the_providers_word() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let key = house.key(json!({"name": "n", "role": "gateway"})).await;
    for (path, status, code) in [
        ("/gateway/none/crm/v3/objects/contacts", 424, "unknown_connection"),
        ("/gateway/a%2fb/crm/v3/objects/contacts", 400, "bad_request"),
        ("/gateway/c1@evil.test/x", 400, "bad_request"),
        ("/gateway/c1", 400, "bad_request"),
        ("/gateway/-/crm/v3/objects/contacts", 400, "bad_request"),
        ("/gateway/c1/oauth/v1/token", 424, "use_evergrant"),
        ("/gateway/c1/../../x", 400, "bad_request"),
    ] {
        let answer = house.get(&key, path).await.refused(status, code);
        assert_eq!(answer.header("evergrant-error"), code);
        assert_eq!(answer.header("x-should-retry"), "false");
    }
}

#[tokio::test]
async fn the_log_holds_the_calls_that_it_was_told_to_hold() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let deals = Fault::api(FaultKind::Forbidden).path("/crm/v3/objects/deals");
    house.sim.arm(deals.times(3));
    let lines = async |calls: LogCalls, name: &str| {
        let service = house.neighbour(calls).await.operator();
        for (path, id) in [
            ("/gateway/c1/crm/v3/objects/contacts", "well"),
            ("/gateway/c1/crm/v3/objects/contacts/404404", "missing"),
            ("/gateway/c1/crm/v3/objects/deals/7", "forbidden"),
            ("/v1/connections/c1", "record"),
        ] {
            let request = Request::get(path).header("x-request-id", format!("{name}-{id}"));
            service.call(request.body(Full::default()).unwrap()).await;
        }
        let log = LOG.text();
        let logged = |id: &str| {
            log.lines()
                .filter(|line| line.contains(&format!("\"request_id\":\"{name}-{id}\"")))
                .count()
        };
        [
            logged("well"),
            logged("missing"),
            logged("forbidden"),
            logged("record"),
        ]
    };
    assert_eq!(lines(LogCalls::All, "all").await, [1, 1, 1, 1]);
    assert_eq!(lines(LogCalls::Failures, "failures").await, [0, 0, 1, 0]);
    let lost = house.neighbour(LogCalls::Failures).await.operator();
    let cut = Fault::api(FaultKind::AnswerLostAfterIssue).path("/crm/v3/objects/contacts");
    house.sim.arm(cut.times(1));
    let request = Request::post("/gateway/c1/crm/v3/objects/contacts").header("x-request-id", "lost-write");
    lost.call(request.body(Full::default()).unwrap()).await;
    assert!(LOG.text().contains("\"request_id\":\"lost-write\""));
    assert_eq!(lines(LogCalls::Off, "off").await, [0, 0, 0, 0]);
    let log = LOG.text();
    let line = log
        .lines()
        .find(|line| line.contains("\"request_id\":\"failures-forbidden\""))
        .unwrap();
    let fields = serde_json::from_str::<Value>(line).unwrap()["fields"].clone();
    assert_eq!(fields["event"], "call");
    assert_eq!(fields["connection_id"], "c1");
    assert_eq!(fields["app"], "crm");
    assert_eq!(fields["endpoint"], "/crm/v3/objects/deals/{id}");
    assert_eq!(fields["class"], "permission_denied");
    assert_eq!(fields["status_code"], 403);
    assert!(fields["seconds_remaining"].is_i64() && fields["expires_at"].is_string());
}

#[tokio::test]
async fn an_answer_of_its_own_says_what_was_done_before_it() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let cut = Fault::api(FaultKind::AnswerLostAfterIssue).path("/crm/v3/objects/contacts");
    house.sim.arm(cut.times(1));
    let lost = house
        .post(
            &house.admin,
            "/gateway/c1/crm/v3/objects/contacts",
            json!({"properties": {}}),
        )
        .await
        .refused(424, "outcome_unknown");
    assert_eq!(lost.header("evergrant-class"), "timeout");
    assert_eq!(lost.header("evergrant-attempts"), "1");
    assert_eq!(lost.header("evergrant-token-version"), "1");
    assert!(lost.header("evergrant-token-ttl").parse::<i64>().unwrap() > 1700);
    let unsent = house
        .get(&house.admin, "/gateway/none/x")
        .await
        .refused(424, "unknown_connection");
    assert_eq!(
        (
            unsent.header("evergrant-class"),
            unsent.header("evergrant-attempts")
        ),
        ("client_error", "")
    );
}

/// A body in whose handling something goes wrong that nobody thought of.
struct Faulty;

impl http_body::Body for Faulty {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        panic!("a fault")
    }
}

#[tokio::test]
async fn every_answer_of_its_own_on_gateway_paths_says_whose_it_is() {
    let house = House::build().await;
    for (id, hub_id) in [("c1", 1001), ("gone", 1002), ("dead", 1003)] {
        house.import(id, id, hub_id).await;
    }
    house
        .operate("DELETE", "/v1/connections/gone?revoke=never", None)
        .await;
    house
        .sim
        .arm(Fault::api(FaultKind::AnswerLostAfterIssue).path("/cut").times(9));
    let metrics = house.key(json!({"name": "m", "role": "metrics"})).await;
    let large = "a".repeat(70_000);
    let call = |method: &str, path: &str, key: &str, headers: &[(&str, &str)]| {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {key}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::default()).unwrap()
    };
    let admin = house.admin.as_str();
    for (request, status, code) in [
        (
            call("GET", "/gateway/c1/x", "evg_none", &[]),
            401,
            "invalid_api_key",
        ),
        (call("GET", "/gateway/c1/x", &metrics, &[]), 403, "forbidden"),
        (
            call("GET", "/gateway/c1/x", admin, &[("host", "evil.test")]),
            421,
            "host_not_allowed",
        ),
        (
            call("GET", "/gateway/c1/x", admin, &[("x-large", &large)]),
            431,
            "headers_too_large",
        ),
        (call("GET", "/gateway", admin, &[]), 400, "bad_request"),
        (call("TRACK", "/gateway/c1/x", admin, &[]), 400, "bad_request"),
        (
            call("GET", "/gateway/none/x", admin, &[]),
            424,
            "unknown_connection",
        ),
        (call("GET", "/gateway/gone/x", admin, &[]), 424, "disconnected"),
        (
            call("POST", "/gateway/c1/oauth/v1/token", admin, &[]),
            424,
            "use_evergrant",
        ),
        (
            call("POST", "/gateway/c1/cut", admin, &[]),
            424,
            "outcome_unknown",
        ),
        (
            call("GET", "/gateway/c1/cut", admin, &[]),
            504,
            "upstream_timeout",
        ),
    ] {
        let shown = format!("{} {}", request.method(), request.uri());
        let answer = house.send(request).await.refused(status, code);
        assert_eq!(answer.header("evergrant-error"), code, "{shown}");
        let retry = answer.json()["retryable"].to_string();
        assert_eq!(answer.header("x-should-retry"), retry, "{shown}");
    }
    let peer = evergrant_server::Peer {
        address: [127, 0, 0, 1].into(),
        reach: evergrant_server::Reach::Loopback,
    };
    let request = call("POST", "/gateway/c1/x", admin, &[("host", "localhost")]).map(|_| Faulty);
    let answer = house.service.answer(request, peer).await;
    assert_eq!(answer.status(), 500);
    assert_eq!(answer.headers()["evergrant-error"], "internal");
}

#[tokio::test]
async fn a_guarded_write_whose_caller_hung_up_is_in_flight_until_it_has_ended() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let key = house.key(json!({"name": "n", "role": "gateway"})).await;
    house.service.change(ServiceSettings {
        calls: LogCalls::All,
        trusted_proxies: vec![],
        limits: Limits {
            in_flight_per_key: 1,
            ..Limits::default()
        },
    });
    house
        .sim
        .arm(Fault::api(FaultKind::HoldBeforeIssue).method("POST"));
    let path = "/gateway/c1/crm/v3/objects/contacts";
    let write = Request::post(path)
        .header(header::HOST, "localhost")
        .header(header::AUTHORIZATION, format!("Bearer {key}"))
        .header(header::CONTENT_TYPE, "application/json")
        .header("idempotency-key", "k1")
        .body(Full::new(Bytes::from_static(
            b"{\"properties\":{\"firstname\":\"Ada\"}}",
        )))
        .unwrap();
    let service = house.service.clone();
    let peer = Peer {
        address: Ipv4Addr::LOCALHOST.into(),
        reach: Reach::Loopback,
    };
    let call = tokio::spawn(async move { service.answer(write, peer).await });
    house.sim.wait_for_held(1).await;
    call.abort();
    call.await.unwrap_err();
    house.get(&key, path).await.refused(503, "overloaded");
    house.sim.release_held();
    while house.get(&key, path).await.status == 503 {
        tokio::task::yield_now().await;
    }
    assert_eq!(house.sim.ledger().creates_executed, 1);
}
