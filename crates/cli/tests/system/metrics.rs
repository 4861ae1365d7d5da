//! What `serve` counts, read by Prometheus's own client.

use std::process::Command;

use http::{Method, StatusCode};
use serde_json::Value;

use crate::installation::{Installation, free_port};
use crate::prepared::{client_script, prepared, short_lived};

/// What the Python client makes of what this address shows.
async fn read(url: String, key: Option<String>) -> Value {
    let mut python = Command::new(prepared("EVERGRANT_TEST_PYTHON"));
    python.arg(client_script("python/metrics.py")).env("METRICS", url);
    if let Some(key) = key {
        python.env("API_KEY", key);
    }
    let output = tokio::task::spawn_blocking(move || python.output())
        .await
        .unwrap()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(printed.trim())
        .unwrap_or_else(|error| panic!("{error}: {printed} {}", String::from_utf8_lossy(&output.stderr)))
}

/// All samples of the family with this name together.
fn sum(report: &Value, family: &str, sample: &str) -> f64 {
    let samples = report["families"][family]["samples"].as_array();
    let samples = samples.unwrap_or_else(|| panic!("{family} is not there: {report}"));
    let named = samples.iter().filter(|found| found[0] == sample);
    named.map(|found| found[2].as_f64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_reads_what_is_counted_on_both_listeners() {
    let installation = Installation::new(short_lived()).await;
    let (port, metrics) = (free_port(), free_port());
    let mut command = installation.evergrant();
    command
        .env("EVERGRANT_SERVER__LISTEN", format!("127.0.0.1:{port}"))
        .env("EVERGRANT_METRICS__LISTEN", format!("127.0.0.1:{metrics}"));
    let service = installation.try_serve(&mut command, port).unwrap();
    installation.connected(&service, "acme", 1001).await;
    let gateway = installation.key(&service, "gateway").await;
    let contacts = "/gateway/acme/crm/v3/objects/contacts";
    for _ in 0..3 {
        let answer = installation
            .send(&service, Method::GET, contacts, &gateway, None)
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }
    let key = installation.key(&service, "metrics").await;
    let main = read(format!("{}/metrics", service.address), Some(key)).await;
    let own = read(format!("http://127.0.0.1:{metrics}/metrics"), None).await;
    for report in [&main, &own] {
        assert_eq!(report["wrong"], serde_json::json!([]), "{report}");
        assert_eq!(report["content_type"], "text/plain; version=0.0.4; charset=utf-8");
        for (family, kind) in [
            ("evergrant_build_info", "gauge"),
            ("evergrant_calls", "counter"),
            ("evergrant_call_duration_seconds", "histogram"),
            ("evergrant_calls_in_flight", "gauge"),
            ("evergrant_redemptions", "counter"),
            ("process_cpu_seconds", "counter"),
        ] {
            assert_eq!(report["families"][family]["type"], kind, "{family}: {report}");
        }
        let counted = [
            sum(report, "evergrant_calls", "evergrant_calls_total"),
            sum(
                report,
                "evergrant_call_token_ttl_seconds",
                "evergrant_call_token_ttl_seconds_count",
            ),
        ];
        assert!(
            counted.iter().all(|count| (count - 3.0).abs() < f64::EPSILON),
            "{counted:?}"
        );
        assert!(sum(report, "evergrant_redemptions", "evergrant_redemptions_total") >= 1.0);
        let resident = "process_resident_memory_bytes";
        assert!(sum(report, resident, resident) > 0.0);
    }
}
