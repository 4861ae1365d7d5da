//! Systems in which nothing is wrong, also where something might look so.

use std::time::Duration;

use http::Method;
use hubspot_sim::{Rotation, SimConfig};
use serde_json::json;

use crate::clock::Clock;
use crate::installation::CLIENT;
use crate::practice::Practice;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_found_after_connecting_calling_expiring_reconnecting_and_a_restart() {
    let config = SimConfig {
        rotation: Rotation::Always,
        token_ttl: Duration::from_secs(20),
        ..SimConfig::default()
    };
    let practice = Practice::new(config).await;
    let hubspot = &practice.installation.hubspot;
    let service = practice.serve();
    let grant = hubspot.grant(CLIENT, 1001).unwrap();
    practice.import(&service, "well", &grant, json!({})).await;
    // Its token is not even known yet.
    practice.is_healthy(&service, "well").await;
    for _ in 0..3 {
        practice.works(&service, "well").await;
    }
    practice.is_healthy(&service, "well").await;
    // Two workers take a token each, and one is told that it is rejected: repaired, and nobody's fault.
    hubspot.expire_access_tokens(1001);
    for _ in 0..3 {
        practice.works(&service, "well").await;
    }
    practice.is_healthy(&service, "well").await;
    // The customer leaves and comes back.
    hubspot.uninstall(CLIENT, 1001);
    practice
        .is_named(&service, "well", "grant_refused", "reconnect link")
        .await;
    practice.refresh(&service, "well").await;
    let answer = practice
        .send(
            &service,
            Method::DELETE,
            "/v1/connections/well?revoke=never&purge=true",
            None,
        )
        .await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let grant = hubspot.grant(CLIENT, 1001).unwrap();
    practice.import(&service, "well", &grant, json!({})).await;
    practice.works(&service, "well").await;
    practice.is_healthy(&service, "well").await;
    drop(service);
    let service = practice.serve();
    practice.is_healthy(&service, "well").await;
    practice.works(&service, "well").await;
    practice.is_healthy(&service, "well").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_found_of_a_connection_that_was_idle_for_a_month() {
    let practice = Practice::new(SimConfig::default()).await;
    let clock = Clock::new(practice.installation.folder().join("clock"));
    let service = practice.serve_by(&clock);
    practice.connect(&service, "idle", 1001).await;
    practice.works(&service, "idle").await;
    drop(service);
    // For everybody.
    practice
        .installation
        .hubspot
        .advance(Duration::from_secs(30 * 24 * 3600));
    clock.set(30 * 24 * 3600);
    let service = practice.serve_by(&clock);
    practice.is_healthy(&service, "idle").await;
    practice.works(&service, "idle").await;
    practice.is_healthy(&service, "idle").await;
}
