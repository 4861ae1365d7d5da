//! What a process counts, as Prometheus reads it.

use evergrant_server::MetricsServer;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::{Answer, House, bare, send_to};

/// The names of all that is counted, each with its labels.
fn series(answer: &Answer) -> Vec<String> {
    let text = answer.text();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
        .collect()
}

#[tokio::test]
async fn metrics_are_read_with_a_key_of_their_role_and_name_no_connection() {
    let house = House::build().await;
    house.import("canary-connection", "canary-customer", 1001).await;
    let gateway = house.key(json!({"name": "n", "role": "gateway"})).await;
    let metrics = house.key(json!({"name": "n", "role": "metrics"})).await;
    house
        .get(&gateway, "/gateway/canary-connection/crm/v3/objects/contacts")
        .await
        .expect(200);
    house.get("", "/metrics").await.refused(401, "invalid_api_key");
    house.get(&gateway, "/metrics").await.refused(403, "forbidden");
    let answer = house.get(&metrics, "/metrics").await.expect(200);
    assert_eq!(
        answer.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let series = series(&answer);
    for expected in [
        "evergrant_build_info{version=\"0.1.0\"}",
        "evergrant_calls_in_flight",
        "evergrant_calls_total{app=\"crm\",class=\"ok\",code_class=\"2xx\"}",
        "evergrant_call_duration_seconds_bucket{app=\"crm\",le=\"+Inf\"}",
        "evergrant_redemptions_total{app=\"other\",outcome=\"issued\"}",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        assert!(
            series.iter().any(|name| name == expected),
            "{expected}: {series:?}"
        );
    }
    let mut once = series.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), series.len(), "each series is there once");
    assert!(!answer.text().contains("canary"), "{}", answer.text());
}

#[tokio::test]
async fn a_listener_of_their_own_needs_no_key_and_answers_nothing_else() {
    let house = House::build().await;
    let server = MetricsServer::bind(house.service.clone(), ([127, 0, 0, 1], 0).into())
        .await
        .unwrap();
    let address = server.address();
    let stop = CancellationToken::new();
    let running = tokio::spawn(server.run(stop.clone()));
    let answer = send_to(address, bare("GET", "/metrics")).await.expect(200);
    assert!(series(&answer).contains(&"evergrant_calls_in_flight".to_owned()));
    let head = send_to(address, bare("HEAD", "/metrics")).await.expect(200);
    assert!(head.body.is_empty());
    for (method, path, status, code) in [
        ("GET", "/healthz", 404, "not_found"),
        ("GET", "/v1/connections", 404, "not_found"),
        ("GET", "/gateway/c1/x", 404, "not_found"),
        ("POST", "/metrics", 405, "method_not_allowed"),
    ] {
        send_to(address, bare(method, path)).await.refused(status, code);
    }
    // A page in a browser may reach it under a name of its own.
    let mut elsewhere = bare("GET", "/metrics");
    elsewhere
        .headers_mut()
        .insert("host", "evil.test".parse().unwrap());
    send_to(address, elsewhere).await.refused(421, "host_not_allowed");
    let taken = MetricsServer::bind(house.service.clone(), address).await;
    let error = taken.err().unwrap().to_string();
    assert!(error.contains("[metrics] listen"), "{error}");
    stop.cancel();
    running.await.unwrap();
}
