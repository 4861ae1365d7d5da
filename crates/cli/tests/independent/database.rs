//! PostgreSQL and the way to it: checks 15, 16, 20 and 22 to 24.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use test_postgres::Server;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::between::{Between, Mood};
use crate::provider::Rotation;
use crate::site::{Introspection, Service, Site, Store};
use crate::web::{Answer, eventually};

/// A service whose way to its database can be disturbed, with one connection that is fresh and one that is due.
async fn begin() -> (Arc<Site>, Between, Arc<Service>) {
    let server = Server::shared();
    let database = server.database();
    let between = Between::before(server.socket()).await;
    let store = Store::Postgres(between.url(&database));
    let mut site = Site::new(store, Rotation::SingleUse, Introspection::Off).await;
    // Nothing is committed then but what a call asks for.
    site.set("EVERGRANT_APPS__CRM__KEEP_FRESH", "off");
    let service = site.serve();
    site.connect_fresh(&service, "fresh").await;
    site.connect(&service, "due").await;
    assert_eq!(site.call(&service, "fresh").await.status, 200);
    (Arc::new(site), between, Arc::new(service))
}

fn call(site: &Arc<Site>, service: &Arc<Service>, customer: &'static str) -> JoinHandle<Answer> {
    let (site, service) = (site.clone(), service.clone());
    tokio::spawn(async move { site.call(&service, customer).await })
}

/// One redemption whose token set meets `mood`, until `enough` has happened.
async fn token_set_meets(mood: Mood, enough: impl AsyncFn(&Site, &Between)) {
    let (site, between, service) = begin().await;
    site.provider.fault(json!({"hold": true})).await;
    let call = call(&site, &service, "due");
    site.provider.holds(1).await;
    between.set(mood);
    site.provider.heal().await;
    enough(&site, &between).await;
    between.set(Mood::Passes);
    let answer = call.await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}\n{}", site.printed());
    // Another one finds the same, stored once.
    let other = site.serve();
    eventually("it is stored", async || {
        site.record(&other, "due").await["version"] == 2
    })
    .await;
    assert_eq!(site.call(&other, "due").await.status, 200);
    let ledger = site.provider.ledger().await;
    let grant = ledger.grant("due");
    assert_eq!((grant.presented, grant.accepted), (1, 1), "{ledger:?}");
    ledger.is_clean(0);
}

// Check 15.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_found_to_be_done() {
    token_set_meets(Mood::LosesAnswers, async |_, between| between.has_lost(1).await).await;
}

// Check 16.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_never_arrives_is_made_again_until_it_is_done_and_loudly() {
    let told = async |site: &Site, between: &Between| {
        between.has_lost(3).await;
        eventually("it says that a token set is not stored", async || {
            site.printed().contains("token_set_")
        })
        .await;
    };
    token_set_meets(Mood::LosesTokenSets, told).await;
}

/// Check 22: so long as nobody reaches the database, what is fresh serves and nothing is redeemed.
async fn parted(mood: Mood) {
    const HEALED_WITHIN: Duration = Duration::from_secs(5);
    let (site, between, service) = begin().await;
    between.set(mood);
    for _ in 0..3 {
        assert_eq!(site.call(&service, "fresh").await.status, 200);
    }
    let answer = site.call(&service, "due").await;
    assert_eq!(
        (answer.status.as_u16(), answer.error()),
        (503, "store_unavailable"),
        "{answer:?}"
    );
    assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    assert_eq!(site.call(&service, "fresh").await.status, 200);
    assert_eq!(
        site.provider.ledger().await.token_requests,
        0,
        "no redemption without its guard"
    );
    between.set(Mood::Passes);
    let healed = Instant::now();
    site.call_until_served(&service, "due").await;
    assert!(healed.elapsed() < HEALED_WITHIN, "{:?}", healed.elapsed());
    let ledger = site.provider.ledger().await;
    assert_eq!(ledger.grant("due").presented, 1, "{ledger:?}");
    ledger.is_clean(0);
}

// Check 22.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_database_fresh_tokens_serve_and_nothing_is_redeemed() {
    tokio::join!(parted(Mood::Cut), parted(Mood::Silent));
}

// Check 20.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_restarts_is_found_again_and_one_that_forgot_a_commit_is_told_again() {
    let server = Server::new();
    let live = server.database();
    let store = Store::Postgres(server.url(&live));
    let site = Site::new(store, Rotation::SingleUse, Introspection::Off).await;
    let service = site.serve();
    site.connect(&service, "acme").await;
    server.stop();
    server.start();
    site.call_until_served(&service, "acme").await;

    // A replica as it was before the next commit; then it takes over.
    let away = |then: &str| {
        let close = format!(
            "ALTER DATABASE {live} ALLOW_CONNECTIONS false; \
             SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{live}'; "
        );
        for statement in close
            .split("; ")
            .chain(then.split("; "))
            .filter(|one| !one.trim().is_empty())
        {
            server.sql("postgres", statement);
        }
    };
    away(&format!(
        "CREATE DATABASE replica TEMPLATE {live}; ALTER DATABASE {live} ALLOW_CONNECTIONS true"
    ));
    eventually("one more token set is stored", async || {
        let answer = site.refresh(&service, "acme", true).await;
        answer.status == 200 && site.record(&service, "acme").await["version"] == 3
    })
    .await;
    assert_eq!(site.call(&service, "acme").await.status, 200);
    away(&format!(
        "ALTER DATABASE {live} RENAME TO gone; ALTER DATABASE replica RENAME TO {live}"
    ));
    site.call_until_served(&service, "acme").await;
    eventually("what the replica lacks is stored again", async || {
        site.record(&service, "acme").await["version"].as_i64().unwrap() >= 3
    })
    .await;
    assert!(site.printed().contains("store_regressed"), "{}", site.printed());
    site.provider.expire("acme").await;
    site.call_until_served(&service, "acme").await;
    let ledger = site.provider.ledger().await;
    assert_eq!(ledger.grant("acme").accepted, 3, "{ledger:?}");
    assert!(ledger.grant("acme").live, "{ledger:?}");
    ledger.is_clean(0);
}

// Check 23.
#[tokio::test(flavor = "multi_thread")]
async fn slow_redemptions_take_nothing_from_those_who_have_tokens() {
    const SLOW: usize = 40;
    let server = Server::shared();
    let database = server.database();
    let store = Store::Postgres(server.url(&database));
    let site = Arc::new(Site::new(store, Rotation::SingleUse, Introspection::Off).await);
    let service = Arc::new(site.serve());
    site.connect_fresh(&service, "fresh").await;
    assert_eq!(site.call(&service, "fresh").await.status, 200);
    site.provider.fault(json!({"hold": true, "times": SLOW})).await;
    let mut slow = JoinSet::new();
    for number in 0..SLOW {
        let customer = format!("slow-{number}");
        site.connect(&service, &customer).await;
        let (site, service) = (site.clone(), service.clone());
        slow.spawn(async move { site.call(&service, &customer).await });
    }
    site.provider.holds(30).await;
    let in_transactions = server.sql(
        &database,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'",
    );
    assert_eq!(
        in_transactions, "0",
        "no transaction is open while the provider works"
    );
    for _ in 0..20 {
        assert_eq!(site.call(&service, "fresh").await.status, 200);
        site.record(&service, "fresh").await;
    }
    site.provider.heal().await;
    for answer in slow.join_all().await {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let ledger = site.provider.ledger().await;
    for number in 0..SLOW {
        let grant = ledger.grant(&format!("slow-{number}"));
        assert_eq!((grant.presented, grant.accepted), (1, 1), "{ledger:?}");
    }
    ledger.is_clean(0);
}

// Check 24.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_keeps_the_tables_locked_delays_redemptions_and_doubles_none() {
    let server = Server::shared();
    let database = server.database();
    let store = Store::Postgres(server.url(&database));
    let site = Site::new(store, Rotation::SingleUse, Introspection::Off).await;
    let service = site.serve();
    site.connect_fresh(&service, "fresh").await;
    site.connect(&service, "due").await;
    assert_eq!(site.call(&service, "fresh").await.status, 200);
    let locker = server.lock_every_table(&database);
    eventually("the tables are locked", async || {
        server.sql(
            &database,
            "SELECT count(*) > 0 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted",
        ) == "t"
    })
    .await;
    let answer = site.call(&service, "due").await;
    assert_eq!(
        (answer.status.as_u16(), answer.error()),
        (503, "store_unavailable"),
        "{answer:?}"
    );
    assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    assert_eq!(site.call(&service, "fresh").await.status, 200);
    assert_eq!(site.provider.ledger().await.token_requests, 0);
    server.sql(
        &database,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep(600)' AND pid <> pg_backend_pid()",
    );
    drop(locker);
    site.call_until_served(&service, "due").await;
    let ledger = site.provider.ledger().await;
    assert_eq!(ledger.grant("due").presented, 1, "{ledger:?}");
    ledger.is_clean(0);
}
