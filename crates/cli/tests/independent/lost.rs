//! Answers that are lost: checks 26 and 30.

use serde_json::json;

use crate::clock::Clock;
use crate::provider::Rotation;
use crate::site::{Introspection, Service, Site, Store};

/// Past the quiet time, which lasts as long as a lease.
const QUIET: i64 = 31;

/// One service, with a clock that can be set, and one connection whose access token has ended.
async fn begin(rotation: Rotation, introspection: Introspection) -> (Site, Clock, Service) {
    let site = Site::new(Store::Sqlite, rotation, introspection).await;
    let clock = Clock::new(site.path("clock"));
    let service = site.serve_with(&clock.settings());
    site.connect(&service, "acme").await;
    (site, clock, service)
}

/// A call that brings no token, for a reason that may pass.
async fn fails_for_now(site: &Site, service: &Service, customer: &str) {
    let answer = site.call(service, customer).await;
    assert_eq!(answer.status, 503, "{customer}: {answer:?}\n{}", site.printed());
    assert_eq!(answer.error(), "provider_unavailable", "{customer}: {answer:?}");
    let again_in: u64 = answer.header("retry-after").parse().unwrap();
    assert!((1..=30).contains(&again_in), "{customer}: {answer:?}");
}

/// A call that says that the customer has to connect again, because of a lost answer.
async fn is_lost(site: &Site, service: &Service, customer: &str) {
    let answer = site.call(service, customer).await;
    assert_eq!(answer.status, 424, "{customer}: {answer:?}\n{}", site.printed());
    assert_eq!(answer.error(), "reconnect_required", "{customer}: {answer:?}");
    let status = site.status(service, customer).await;
    assert_eq!(status, "redemption_outcome_lost", "{customer}");
}

async fn counts(site: &Site, customer: &str) -> (u64, u64, u64) {
    let grant = site.provider.ledger().await.grant(customer);
    (grant.presented, grant.accepted, grant.replays)
}

// Check 26.
#[tokio::test(flavor = "multi_thread")]
async fn within_grace_a_lost_answer_is_asked_for_again_and_recovered() {
    let (site, _clock, service) = begin(Rotation::Grace, Introspection::Off).await;
    site.provider.fault(json!({"cut": true})).await;
    fails_for_now(&site, &service, "acme").await;
    site.call_until_served(&service, "acme").await;
    assert_eq!(counts(&site, "acme").await, (2, 2, 1));
    site.provider.ledger().await.is_clean(1);
}

// Check 26.
#[tokio::test(flavor = "multi_thread")]
async fn a_single_use_token_whose_answer_was_lost_is_asked_about_and_not_presented_again() {
    let (site, clock, service) = begin(Rotation::SingleUse, Introspection::On).await;
    site.provider.fault(json!({"cut": true})).await;
    fails_for_now(&site, &service, "acme").await;
    fails_for_now(&site, &service, "acme").await;
    clock.set(QUIET);
    is_lost(&site, &service, "acme").await;
    clock.set(10 * QUIET);
    is_lost(&site, &service, "acme").await;
    let ledger = site.provider.ledger().await;
    assert_eq!(counts(&site, "acme").await, (1, 1, 0));
    assert_eq!(
        (ledger.families_revoked, ledger.introspections),
        (0, 1),
        "{ledger:?}"
    );
    ledger.is_clean(0);
}

// Check 26.
#[tokio::test(flavor = "multi_thread")]
async fn a_single_use_token_that_never_arrived_is_asked_about_and_then_presented() {
    let (site, clock, service) = begin(Rotation::SingleUse, Introspection::On).await;
    site.provider.fault(json!({"before": true, "cut": true})).await;
    fails_for_now(&site, &service, "acme").await;
    clock.set(QUIET);
    assert_eq!(site.call(&service, "acme").await.status, 200);
    let ledger = site.provider.ledger().await;
    assert_eq!(counts(&site, "acme").await, (2, 1, 0));
    assert!(
        ledger.grant("acme").live && ledger.introspections == 1,
        "{ledger:?}"
    );
    ledger.is_clean(0);
}

// Check 26: the one replay that I1 allows. The server takes it for a theft, as RFC 9700 wants.
#[tokio::test(flavor = "multi_thread")]
async fn without_introspection_a_lost_answer_costs_one_replay_and_never_a_loop() {
    let (site, clock, service) = begin(Rotation::SingleUse, Introspection::Off).await;
    site.provider.fault(json!({"cut": true})).await;
    fails_for_now(&site, &service, "acme").await;
    clock.set(QUIET);
    is_lost(&site, &service, "acme").await;
    for round in 2..6 {
        clock.set(round * QUIET);
        is_lost(&site, &service, "acme").await;
    }
    let ledger = site.provider.ledger().await;
    assert_eq!(counts(&site, "acme").await, (2, 1, 1));
    assert_eq!(ledger.families_revoked, 1, "{ledger:?}");
    ledger.is_clean(1);
}

// Check 26, and PROTOCOL, "After a lost answer": no third by itself; a person may try once more.
#[tokio::test(flavor = "multi_thread")]
async fn after_two_attempts_of_unknown_outcome_only_a_person_presents_the_token_again() {
    let (site, clock, service) = begin(Rotation::SingleUse, Introspection::Off).await;
    site.provider
        .fault(json!({"before": true, "cut": true, "times": 2}))
        .await;
    fails_for_now(&site, &service, "acme").await;
    clock.set(QUIET);
    fails_for_now(&site, &service, "acme").await;
    let health = site.record(&service, "acme").await["health"].clone();
    assert_eq!(health, "ambiguous");
    for round in 2..6 {
        clock.set(round * QUIET);
        is_lost(&site, &service, "acme").await;
    }
    assert_eq!(counts(&site, "acme").await, (2, 0, 0));
    let tried = site.refresh(&service, "acme", true).await;
    assert_eq!(tried.status, 200, "{tried:?}");
    assert_eq!(tried.json()["redeemed"], true, "{tried:?}");
    assert_eq!(site.call(&service, "acme").await.status, 200);
    assert_eq!(counts(&site, "acme").await, (3, 1, 0));
    site.provider.ledger().await.is_clean(0);
}

// Check 26: nothing is urgent while the old token serves.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_old_token_serves_nobody_presents_again_after_a_lost_answer() {
    let (site, clock, service) = begin(Rotation::SingleUse, Introspection::Off).await;
    site.connect_fresh(&service, "globex").await;
    site.provider.fault(json!({"cut": true, "user": "globex"})).await;
    let failed = site.refresh(&service, "globex", true).await;
    assert_eq!(failed.status, 503, "{failed:?}");
    clock.set(2 * QUIET);
    let again = site.refresh(&service, "globex", true).await;
    assert_eq!(again.status, 503, "{again:?}");
    assert_eq!(site.call(&service, "globex").await.status, 200);
    assert_eq!(counts(&site, "globex").await, (1, 1, 0));
    site.provider.ledger().await.is_clean(0);
}

// Check 30. None of these may be taken for a token set, although Authlib has issued one each time.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_read_is_lost_and_never_stored() {
    let (site, clock, service) = begin(Rotation::SingleUse, Introspection::On).await;
    let kinds = [
        ("cut-short", json!({"body": "half", "promised": 100})),
        ("truncated", json!({"body": "half"})),
        ("html", json!({"body": "html"})),
        ("empty", json!({"body": "empty"})),
        ("mark", json!({"body": "bom"})),
        ("not-utf8", json!({"body": "invalid_utf8"})),
        ("twice", json!({"body": "duplicate_keys"})),
        ("deep", json!({"body": "deep"})),
        (
            "no-access-token",
            json!({"json": {"access_token": {"remove": true}}}),
        ),
        ("empty-access-token", json!({"json": {"access_token": ""}})),
        (
            "line-end",
            json!({"json": {"access_token": "a\r\nx-injected: 1"}}),
        ),
        ("not-ascii", json!({"json": {"access_token": "zugriff-für-alle"}})),
        (
            "line-end-in-refresh-token",
            json!({"json": {"refresh_token": "r\r\n"}}),
        ),
        ("mac", json!({"json": {"token_type": "mac"}})),
    ];
    for (customer, fault) in &kinds {
        site.connect(&service, customer).await;
        let mut fault = fault.clone();
        fault["user"] = json!(customer);
        site.provider.fault(fault).await;
        fails_for_now(&site, &service, customer).await;
        assert_eq!(site.record(&service, customer).await["version"], 1, "{customer}");
        assert_eq!(counts(&site, customer).await, (1, 1, 0), "{customer}");
        site.one_redemption_works(&service, &format!("after-{customer}"))
            .await;
    }
    clock.set(QUIET);
    for (customer, _) in &kinds {
        is_lost(&site, &service, customer).await;
        assert_eq!(counts(&site, customer).await, (1, 1, 0), "{customer}");
    }
    // One that nothing happened to, beside them.
    assert_eq!(site.call(&service, "acme").await.status, 200);
    let ledger = site.provider.ledger().await;
    assert_eq!(ledger.families_revoked, 0, "{ledger:?}");
    ledger.is_clean(0);
}
