//! A store or a provider that does not answer is found, and not waited for.

use std::time::Duration;

use hubspot_sim::{Fault, FaultKind, SimConfig};
use serde_json::json;
use test_postgres::Server;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::practice::{Practice, check, fresh};

/// However many it looks at, and whatever does not answer.
const BOUND: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_takes_connections_and_says_nothing_is_an_outage_within_seconds() {
    let practice = Practice::new(SimConfig::default()).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let service = practice.serve_with(&[("EVERGRANT_APPS__OTHER__OAUTH_BASE", &address)]);
    let grant = practice.installation.hubspot.grant("other-client", 1001).unwrap();
    let mut record = fresh(&grant);
    record["app"] = json!("other");
    record["account"] = json!("1001");
    practice.import(&service, "silent", &grant, record).await;
    practice.connect(&service, "well", 1002).await;
    let found = timeout(
        BOUND,
        practice.is_named(&service, "silent", "provider_outage", "no usable answer"),
    )
    .await
    .expect("a doctor that waits for a silent provider");
    assert_eq!(check(&found, "grant_refused")["result"], "skipped", "{found:#}");
    practice.is_healthy(&service, "well").await;
}

/// A practice whose services find their store at this address.
async fn on_postgres(url: &str) -> Practice {
    let mut practice = Practice::new(SimConfig::default()).await;
    let made = practice
        .evergrant()
        .args(["keys", "create", "--json", "--name", "test", "--role", "admin"])
        .env("EVERGRANT_STORE__URL", url)
        .output()
        .unwrap();
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    made["key"]
        .as_str()
        .unwrap()
        .clone_into(&mut practice.installation.admin_key);
    practice
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_away_is_not_taken_for_a_provider_that_was() {
    let server = Server::new();
    let database = server.database();
    let url = server.url(&database);
    let practice = on_postgres(&url).await;
    let service = practice.serve_with(&[("EVERGRANT_STORE__URL", &url)]);
    practice.connect(&service, "well", 1001).await;
    practice.works(&service, "well").await;
    server.stop();
    let mut refused = 5;
    for nth in 0..refused {
        let key = format!("write-{nth}");
        let answer = practice.write(&service, "well", &key).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["code"].as_str()),
            (503, Some("store_unavailable")),
            "{answer:?}"
        );
    }
    // Nobody has asked this process before, and it was ready all the same.
    let mut ready = json!(null);
    while ready["store"] != "unreachable" {
        let answer = practice.send(&service, http::Method::GET, "/readyz", None).await;
        ready = answer.json();
        assert_eq!((answer.status.as_u16(), &ready["status"]), (200, &json!("ready")));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.start();
    // One outcome that nobody knows, and asked about again and again.
    practice
        .installation
        .hubspot
        .arm(Fault::api(FaultKind::AnswerLostAfterIssue).times(1));
    let mut told = 0;
    while told < 6 {
        let answer = practice.write(&service, "well", "lost").await;
        if answer.status == 503 {
            // It has not found its store again.
            tokio::time::sleep(Duration::from_millis(100)).await;
        } else {
            assert_eq!(answer.json()["code"], "outcome_unknown", "{answer:?}");
            told += 1;
        }
        refused += 1;
    }
    // The first of them was sent.
    refused -= 1;
    practice.works(&service, "well").await;
    let found = practice.diagnosis(&service, "well").await;
    assert_ne!(found["cause"], "provider_outage", "{found:#}");
    let check = check(&found, "provider_outage");
    assert_eq!(check["result"], "clear", "{found:#}");
    let said = check["evidence"].as_str().unwrap();
    assert!(
        said.starts_with("1 of 3 calls") && said.contains(&format!("{refused} more were refused here")),
        "{said}"
    );
    // What the provider does not answer is its trouble as ever.
    practice.installation.hubspot.arm(
        Fault::api(FaultKind::Status {
            code: 503,
            location: None,
        })
        .times(4),
    );
    for nth in 0..4 {
        let answer = practice.write(&service, "well", &format!("answered-{nth}")).await;
        assert_eq!(answer.headers.get("evergrant-error"), None, "{answer:?}");
    }
    practice
        .is_named(&service, "well", "provider_outage", "5 of 7 calls")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_is_named_by_a_service_that_goes_on_serving() {
    let server = Server::shared();
    let database = server.database();
    let url = server.url(&database);
    let practice = on_postgres(&url).await;
    let service = practice.serve_with(&[("EVERGRANT_STORE__URL", &url)]);
    practice.connect(&service, "well", 1001).await;
    practice.works(&service, "well").await;
    practice.is_healthy(&service, "well").await;
    let locks = server.lock_every_table(&database);
    let locked = "SELECT count(*) > 0 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted";
    while server.sql(&database, locked) != "t" {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    timeout(
        BOUND,
        practice.is_named(&service, "well", "store_trouble", "the store does not answer"),
    )
    .await
    .expect("a doctor that waits for a silent store");
    server.sql(
        &database,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep(600)' AND pid <> pg_backend_pid()",
    );
    drop(locks);
    practice.works(&service, "well").await;
    practice.is_healthy(&service, "well").await;
}
