//! "Leases, clocks": checks 8, 9 and 11 to 14; check 10 stands with the other slow wires.

use std::sync::Arc;

use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::disturb::Blackhole;
use crate::provider::Rotation;
use crate::site::{Introspection, Site, Store};
use crate::web::eventually;

/// Check 8: stopped before the first byte, and for longer than the lease lasts.
async fn stopped_before_it_asks(store: Store) {
    let site = Arc::new(Site::new(store, Rotation::SingleUse, Introspection::Off).await);
    let other = site.serve();
    site.connect(&other, "acme").await;
    let hole = Blackhole::new().await;
    let astray = format!("http://{}/token", hole.address);
    let stopped = Arc::new(site.serve_with(&[("EVERGRANT_APPS__CRM__TOKEN_URL", &astray)]));
    let late = tokio::spawn({
        let (site, stopped) = (site.clone(), stopped.clone());
        async move { site.call(&stopped, "acme").await }
    });
    eventually("it has the lease and connects", async || {
        !site.record(&other, "acme").await["refresh_in_progress_until"].is_null()
    })
    .await;
    stopped.signal(Signal::STOP);
    // The other one gets its turn when the lease is over, and does not know whether the first one has sent anything: one
    // replay is allowed, and it is none.
    site.call_until_served(&other, "acme").await;
    // What it was connecting to is there now, and is the real one.
    let way = hole.leads_to(&site.provider.url);
    stopped.signal(Signal::CONT);
    // Its caller has waited for half a minute: what counts is that the next one is served, and by the newer token.
    let answer = late.await.unwrap();
    assert!(
        answer.status == 200 || answer.status == 503,
        "{answer:?}\n{}",
        site.printed()
    );
    let answer = site.call(&stopped, "acme").await;
    assert_eq!(answer.status, 200, "{answer:?}\n{}", site.printed());
    let ledger = site.provider.ledger().await;
    let grant = ledger.grant("acme");
    assert_eq!((grant.presented, grant.accepted), (1, 1), "{ledger:?}");
    ledger.is_clean(0);
    way.abort();
}

/// Check 9: stopped after the answer has left, and for longer than the lease lasts.
async fn stopped_before_it_stores(store: Store) {
    let site = Arc::new(Site::new(store, Rotation::Grace, Introspection::Off).await);
    let (other, stopped) = (site.serve(), Arc::new(site.serve()));
    site.connect(&stopped, "acme").await;
    site.provider.fault(json!({"hold": true})).await;
    let late = tokio::spawn({
        let (site, stopped) = (site.clone(), stopped.clone());
        async move { site.call(&stopped, "acme").await }
    });
    site.provider.holds(1).await;
    stopped.signal(Signal::STOP);
    site.provider.heal().await;
    site.call_until_served(&other, "acme").await;
    assert_eq!(site.record(&other, "acme").await["version"], 2);
    stopped.signal(Signal::CONT);
    let answer = late.await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}\n{}", site.printed());
    // What it got was stored by nobody: the newer set stands, and its refresh token is the one that is presented next.
    assert_eq!(site.record(&other, "acme").await["version"], 2);
    site.provider.expire("acme").await;
    for service in [&*stopped, &other] {
        assert_eq!(site.call(service, "acme").await.status, 200);
    }
    let ledger = site.provider.ledger().await;
    let grant = ledger.grant("acme");
    assert!(grant.live && grant.refused == 0, "{ledger:?}");
    ledger.is_clean(1);
}

// Check 8.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_slept_past_its_lease_before_it_asked_presents_nothing() {
    if crate::long("a lease of a service that is stopped before it asks runs out") {
        tokio::join!(
            stopped_before_it_asks(Store::Sqlite),
            stopped_before_it_asks(Store::postgres())
        );
    }
}

// Check 9.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_slept_past_its_lease_after_the_answer_overwrites_nothing() {
    if crate::long("a lease of a service that is stopped before it stores runs out") {
        tokio::join!(
            stopped_before_it_stores(Store::Sqlite),
            stopped_before_it_stores(Store::postgres())
        );
    }
}

/// Checks 11 and 12: two services on one database for so many seconds, one of them with a clock that is wrong.
async fn wrong_clock(seconds_off: i64, ttl: u32, lasts: f64) {
    let mut site = Site::new(Store::postgres(), Rotation::SingleUse, Introspection::Off).await;
    site.set("EVERGRANT_APPS__CRM__KEEP_FRESH", "off");
    site.provider.settings(json!({"ttl": ttl})).await;
    let clock = Clock::new(site.path("clock"));
    let services = [site.serve(), site.serve_with(&clock.settings())];
    site.connect(&services[0], "acme").await;
    let began = site.provider.ledger().await.now;
    assert_eq!(site.call(&services[0], "acme").await.status, 200);
    clock.set(seconds_off);
    eventually("the time is over", async || {
        for service in &services {
            let answer = site.call(service, "acme").await;
            assert_eq!(answer.status, 200, "{answer:?}\n{}", site.printed());
        }
        site.provider.ledger().await.now > began + lasts
    })
    .await;
    let ledger = site.provider.ledger().await;
    let grant = ledger.grant("acme");
    // A token is due at half its lifetime at the earliest; and a clock that is set may cost one more.
    let at = grant.presented_at();
    let soon = at
        .windows(2)
        .filter(|pair| pair[1] - pair[0] < f64::from(ttl) / 2.0)
        .count();
    assert!(soon <= 1, "{at:?}");
    assert!(grant.live, "{ledger:?}");
    assert!(!site.printed().contains("panicked"), "{}", site.printed());
    ledger.is_clean(0);
}

// Check 11.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_an_hour_off_costs_no_storm_and_no_call() {
    tokio::join!(wrong_clock(3600, 3600, 1.0), wrong_clock(-3600, 3600, 1.0));
}

// Check 12. The same shape as clocks 90 s apart and tokens of 60 s, in less time.
#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_further_apart_than_a_token_lives_cost_one_redemption_a_lifetime() {
    wrong_clock(6, 4, 7.0).await;
}

// Check 13. The machine sleeps for longer than its token lives; what it was connected to has gone.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_sleep_there_is_one_redemption_and_no_call_fails_on_a_dead_connection() {
    let server = test_postgres::Server::shared();
    let database = server.database();
    let store = Store::Postgres(server.url(&database));
    let mut site = Site::new(store, Rotation::SingleUse, Introspection::Off).await;
    site.set("EVERGRANT_APPS__CRM__KEEP_FRESH", "off");
    site.provider.settings(json!({"ttl": 2})).await;
    let site = Arc::new(site);
    let service = Arc::new(site.serve());
    site.connect(&service, "acme").await;
    assert_eq!(site.call(&service, "acme").await.status, 200);
    let before = site.provider.ledger().await;
    service.signal(Signal::STOP);
    eventually("its connection to the API waits, and is cut", async || {
        site.provider.drop_idle_connections().await > 0
    })
    .await;
    server.sql(
        &database,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
    );
    eventually("the token is over", async || {
        site.provider.ledger().await.now > before.now + 3.0
    })
    .await;
    site.provider.settings(json!({"ttl": 3600})).await;
    service.signal(Signal::CONT);
    let mut callers = JoinSet::new();
    for _ in 0..20 {
        let (site, service) = (site.clone(), service.clone());
        callers.spawn(async move { site.call(&service, "acme").await });
    }
    for answer in callers.join_all().await {
        assert_eq!(answer.status, 200, "{answer:?}\n{}", site.printed());
    }
    let ledger = site.provider.ledger().await;
    let redeemed = ledger.grant("acme").presented - before.grant("acme").presented;
    assert_eq!(redeemed, 1, "{ledger:?}");
    ledger.is_clean(0);
}

// Check 14.
#[tokio::test(flavor = "multi_thread")]
async fn after_thirty_days_off_every_connection_is_refreshed_once_and_not_all_at_once() {
    const CONNECTIONS: usize = 60;
    const AT_ONCE: u64 = 32;
    const DAYS: i64 = 30 * 24 * 3600;
    let site = Site::new(Store::Sqlite, Rotation::SingleUse, Introspection::Off).await;
    let customers: Vec<_> = (0..CONNECTIONS).map(|number| format!("c{number}")).collect();
    let clock = Clock::new(site.path("clock"));
    let first = site.serve_with(&clock.settings());
    for customer in &customers {
        site.connect_fresh(&first, customer).await;
    }
    first.signal(Signal::TERM);
    assert!(first.ended().success());
    clock.set(DAYS);
    site.provider.settings(json!({"advance": DAYS})).await;
    let mut settings = clock.settings().to_vec();
    settings.push(("EVERGRANT_APPS__CRM__KEEP_FRESH", "always"));
    // Slow enough that they would meet.
    site.provider
        .fault(json!({"delay": 0.2, "times": CONNECTIONS}))
        .await;
    let again = site.serve_with(&settings);
    eventually("all are refreshed", async || {
        let ledger = site.provider.ledger().await;
        customers
            .iter()
            .all(|customer| ledger.grant(customer).accepted > 0)
    })
    .await;
    for customer in &customers {
        assert_eq!(site.call(&again, customer).await.status, 200, "{customer}");
    }
    let ledger = site.provider.ledger().await;
    let mut at = Vec::new();
    for customer in &customers {
        let grant = ledger.grant(customer);
        assert_eq!(
            (grant.presented, grant.accepted),
            (1, 1),
            "{customer}: {ledger:?}"
        );
        at.extend(grant.presented_at());
    }
    at.sort_by(f64::total_cmp);
    assert!(at[CONNECTIONS - 1] - at[0] > 1.0, "they are spread: {at:?}");
    assert!(ledger.in_flight_max <= AT_ONCE, "{}", ledger.in_flight_max);
    ledger.is_clean(0);
}
