//! A store or a provider that does not answer is found, and not waited for.

use std::time::Duration;

use hubspot_sim::SimConfig;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_is_named_by_a_service_that_goes_on_serving() {
    let server = Server::shared();
    let database = server.database();
    let url = server.url(&database);
    let mut practice = Practice::new(SimConfig::default()).await;
    let made = practice
        .evergrant()
        .args(["keys", "create", "--json", "--name", "test", "--role", "admin"])
        .env("EVERGRANT_STORE__URL", &url)
        .output()
        .unwrap();
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    made["key"]
        .as_str()
        .unwrap()
        .clone_into(&mut practice.installation.admin_key);
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
