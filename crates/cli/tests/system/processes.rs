//! Several services on one store, while some of them are killed; and what all of them print, serve and store.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::Method;
use hubspot_sim::{RateLimits, Rotation, SimConfig};
use rustix::process::Signal;

use crate::installation::Installation;
use crate::prepared::short_lived;

#[tokio::test(flavor = "multi_thread")]
async fn services_that_are_killed_under_load_lose_no_grant_and_redeem_nothing_twice() {
    // Grace is what providers with rotation offer for just this; a longer one than any test.
    let rotation = Rotation::Never;
    let installation = Arc::new(
        Installation::new(SimConfig {
            rotation,
            ..short_lived()
        })
        .await,
    );
    // What is proved here is about tokens: the callers ask for more than HubSpot's 110 calls in 10 s.
    installation.hubspot.set_rate_limits(RateLimits {
        calls_max: 100_000,
        ..RateLimits::default()
    });
    let steady = Arc::new(installation.serve());
    for portal in 1..=4 {
        installation
            .connected(&steady, &format!("c{portal}"), 1000 + portal)
            .await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let failed = Arc::new(AtomicU64::new(0));
    let calls = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (1..=4)
        .map(|portal| {
            let (installation, steady, stop) = (installation.clone(), steady.clone(), stop.clone());
            let (failed, calls) = (failed.clone(), calls.clone());
            tokio::spawn(async move {
                let path = format!("/gateway/c{portal}/crm/v3/objects/contacts?limit=1");
                while !stop.load(Ordering::SeqCst) {
                    let answer = installation
                        .send(&steady, Method::GET, &path, &installation.admin_key, None)
                        .await;
                    calls.fetch_add(1, Ordering::SeqCst);
                    if answer.status != 200 {
                        eprintln!("{answer:?}");
                        failed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        })
        .collect();
    // Services come, take part in refreshing, and die in the middle of it.
    for _ in 0..6 {
        let other = installation.serve_another();
        let before = installation.hubspot.ledger().refreshes_accepted;
        let mut asked = 0;
        while installation.hubspot.ledger().refreshes_accepted < before + 2 {
            let path = format!("/gateway/c{}/crm/v3/objects/contacts?limit=1", asked % 4 + 1);
            let _ = installation
                .try_send(&other, Method::GET, &path, &installation.admin_key, None)
                .await;
            asked += 1;
        }
        // It is killed while it redeems for all four.
        let other = Arc::new(other);
        let pending: Vec<_> = (1..=4)
            .map(|portal| {
                let (installation, other) = (installation.clone(), other.clone());
                tokio::spawn(async move {
                    let path = format!("/v1/connections/c{portal}/refresh");
                    let body = Some(serde_json::json!({"force": true}));
                    let _ = installation
                        .try_send(&other, Method::POST, &path, &installation.admin_key, body)
                        .await;
                })
            })
            .collect();
        let requests = installation.hubspot.ledger().token_requests;
        while installation.hubspot.ledger().token_requests == requests
            && !pending.iter().all(tokio::task::JoinHandle::is_finished)
        {
            tokio::task::yield_now().await;
        }
        other.signal(Signal::KILL);
        for request in pending {
            request.await.unwrap();
        }
    }
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    let ledger = installation.hubspot.ledger();
    assert_eq!(
        failed.load(Ordering::SeqCst),
        0,
        "{ledger:?}\n{}",
        installation.printed()
    );
    assert!(
        calls.load(Ordering::SeqCst) > 100 && ledger.refreshes_accepted > 12,
        "{ledger:?}"
    );
    assert!(ledger.grant_overlaps_max <= 1, "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_told_to_stop_finishes_the_call_and_the_redemption_in_flight() {
    let installation = Arc::new(
        Installation::new(SimConfig {
            rotation: Rotation::Always,
            ..SimConfig::default()
        })
        .await,
    );
    let service = Arc::new(installation.serve());
    installation.connected(&service, "acme", 1001).await;
    installation
        .hubspot
        .arm(hubspot_sim::Fault::token(hubspot_sim::FaultKind::HoldAfterIssue));
    let call = tokio::spawn({
        let (installation, service) = (installation.clone(), service.clone());
        async move {
            let path = "/gateway/acme/crm/v3/objects/contacts";
            installation
                .send(&service, Method::GET, path, &installation.admin_key, None)
                .await
        }
    });
    installation.hubspot.wait_for_held(1).await;
    service.signal(Signal::TERM);
    installation.hubspot.release_held();
    assert_eq!(call.await.unwrap().status, 200);
    let status = Arc::into_inner(service).unwrap().ended();
    assert!(status.success(), "{status}: {}", installation.printed());
    // What it redeemed is stored: the next one serves it without another redemption.
    let next = installation.serve();
    let path = "/gateway/acme/crm/v3/objects/contacts";
    let answer = installation
        .send(&next, Method::GET, path, &installation.admin_key, None)
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(installation.hubspot.ledger().refreshes_accepted, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_printed_served_or_stored_in_clear() {
    let installation = Installation::new(short_lived()).await;
    let service = installation.serve();
    installation.connected(&service, "acme", 1001).await;
    let admin = installation.admin_key.clone();
    let mut canaries = vec![admin.clone(), "sim-secret".to_owned()];
    let mut served = String::new();
    let mut ask = async |method: Method, path: &str, body: Option<serde_json::Value>| {
        let answer = installation.send(&service, method, path, &admin, body).await;
        writeln!(served, "{:?}\n{}", answer.headers, answer.text).unwrap();
        answer
    };
    ask(Method::GET, "/gateway/acme/crm/v3/objects/contacts", None).await;
    let token = installation
        .send(&service, Method::GET, "/v1/connections/acme/token", &admin, None)
        .await
        .json();
    canaries.push(token["access_token"].as_str().unwrap().to_owned());
    let grant = installation
        .hubspot
        .grant(crate::installation::CLIENT, 1002)
        .unwrap();
    canaries.extend([grant.refresh_token.clone(), grant.access_token.clone()]);
    let record = serde_json::json!({"id": "other", "app": "crm", "customer": "globex", "refresh_token": grant.refresh_token});
    ask(Method::POST, "/v1/connections", Some(record)).await;
    installation.hubspot.uninstall(crate::installation::CLIENT, 1002);
    for path in [
        "/gateway/other/crm/v3/objects/contacts",
        "/gateway/acme/oauth/v1/token",
        "/gateway/acme/../../etc/passwd",
        "/v1/connections",
        "/v1/connections/acme",
        "/v1/connections/acme/events",
        "/v1/connections/other/events",
        "/v1/apps",
        "/v1/keys",
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/docs",
        "/oauth/callback?code=canary-code&state=canary-state",
        "/v1/connections/nobody",
    ] {
        ask(Method::GET, path, None).await;
    }
    installation
        .hubspot
        .set_client_secret(crate::installation::CLIENT, "another");
    ask(
        Method::POST,
        "/v1/connections/acme/refresh",
        Some(serde_json::json!({"force": true})),
    )
    .await;
    ask(Method::DELETE, "/v1/connections/other", None).await;
    canaries.extend(["canary-code".to_owned(), "canary-state".to_owned()]);
    service.signal(Signal::TERM);
    assert!(service.ended().success());

    let printed = installation.printed();
    assert!(printed.contains("\"event\""), "something was logged: {printed}");
    let mut stored = Vec::new();
    for entry in std::fs::read_dir(installation.folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path.to_string_lossy().contains(".db") {
            stored.extend(std::fs::read(path).unwrap());
        }
    }
    assert!(stored.len() > 10_000);
    for canary in &canaries {
        let shown = &canary[..6];
        assert!(!printed.contains(canary.as_str()), "printed: {shown}…");
        assert!(!served.contains(canary.as_str()), "served: {shown}…");
        let found = stored
            .windows(canary.len())
            .any(|window| window == canary.as_bytes());
        assert!(!found, "stored in clear: {shown}…");
    }
}
