//! HubSpot's own clients through the gateway, over many token lifetimes, without a failed call.

use std::process::Command;

use hubspot_sim::Rotation;
use serde_json::Value;

use crate::installation::Installation;
use crate::prepared::{client_script, prepared, short_lived};

const EXPIRIES: u64 = 8;

async fn check(mut client: Command, rotation: Rotation) {
    let installation = Installation::new(hubspot_sim::SimConfig {
        rotation,
        ..short_lived()
    })
    .await;
    let service = installation.serve();
    installation.connected(&service, "acme", 1001).await;
    let key = installation.key(&service, "gateway").await;
    client
        .env("GATEWAY", format!("{}/gateway/acme", service.address))
        .env("API_KEY", &key)
        .env(
            "LEDGER",
            format!("{}/_sim/ledger", installation.hubspot.base_url()),
        )
        .env("EXPIRIES", EXPIRIES.to_string());
    let output = tokio::task::spawn_blocking(move || client.output())
        .await
        .unwrap()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Value = serde_json::from_str(printed.trim())
        .unwrap_or_else(|error| panic!("{error}: {printed} {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(report["failures"], serde_json::json!([]), "{report}");
    assert!(report["calls"].as_u64().unwrap() > 100, "{report}");
    assert!(report["expiries"].as_u64().unwrap() >= EXPIRIES, "{report}");
    let ledger = installation.hubspot.ledger();
    assert_eq!(
        (ledger.replays, ledger.unauthorized),
        (0, hubspot_sim::Unauthorized::default()),
        "{ledger:?}"
    );
    assert!(ledger.grant_overlaps_max <= 1, "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_client_never_sees_an_expired_token() {
    let mut node = Command::new("node");
    node.arg(client_script("node/crud.mjs"))
        .env("NODE_PATH", prepared("EVERGRANT_TEST_NODE_MODULES"));
    check(node, Rotation::Never).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_never_sees_an_expired_token_though_refresh_tokens_rotate() {
    let mut python = Command::new(prepared("EVERGRANT_TEST_PYTHON"));
    python.arg(client_script("python/crud.py"));
    check(python, Rotation::Always).await;
}
