//! What a fleet shares about an app: refusals, rotation, probes, the breaker, exchanges. PROTOCOL.md, rules 1, 7 to 9 and 12.

use std::time::Duration;

use evergrant_domain::breaker::Breaker;
use evergrant_domain::refresh_policy::Jitter;
use evergrant_store::Store;
use evergrant_store::contract::{AppState, CredentialsRejected};

use crate::fixture::*;

pub(crate) async fn a_refusal_of_an_app_keeps_its_first_time_until_accepted(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let crm = app("crm");
    assert_eq!(store.app_state(&crm).await.unwrap(), AppState::default());
    let refusal = |since, credentials: &str| CredentialsRejected {
        code: "BAD_CLIENT_SECRET".into(),
        since: at(since),
        credentials_fingerprint: credentials.into(),
    };
    let refused = async |rejected| {
        store.reject_app(&crm, rejected, event()).await.unwrap();
        store.app_state(&crm).await.unwrap().rejected
    };
    assert_eq!(refused(refusal(1, "old")).await, Some(refusal(1, "old")));
    assert_eq!(refused(refusal(2, "old")).await, Some(refusal(1, "old")));
    assert_eq!(refused(refusal(3, "new")).await, Some(refusal(3, "new")));
    store
        .accept_app(&crm, "secret".into(), event(), at(9))
        .await
        .unwrap();
    let state = store.app_state(&crm).await.unwrap();
    assert_eq!(
        (state.rejected, state.secret_that_worked.as_deref()),
        (None, Some("secret"))
    );
    let head = store.change_head().await.unwrap();
    store
        .accept_app(&crm, "secret".into(), event(), at(9))
        .await
        .unwrap();
    assert_eq!(store.change_head().await.unwrap(), head, "nothing changed");
}

pub(crate) async fn one_process_is_the_first_to_see_an_app_rotate(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    let crm = app("crm");
    let (one, other) = tokio::join!(
        a.switch_to_single_use(&crm, at(1)),
        b.switch_to_single_use(&crm, at(1))
    );
    assert_ne!(one.unwrap(), other.unwrap());
    assert!(!a.switch_to_single_use(&crm, at(9)).await.unwrap());
    assert_eq!(b.app_state(&crm).await.unwrap().single_use_since, Some(at(1)));
}

// Rule 9: one canary in the cluster, each time another connection.
pub(crate) async fn one_probe_in_its_time_each_time_by_another_connection(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    let crm = app("crm");
    let every = Duration::from_secs(10);
    let probes = async |store: &_, name, now| {
        let store: &_ = store;
        Store::claim_probe(store, &crm, &id(name), every, at(now))
            .await
            .unwrap()
    };
    let (one, other) = tokio::join!(probes(&a, "c1", 100), probes(&b, "c2", 100));
    assert_ne!(one, other, "one of two that ask at once");
    let (last, next) = if one { ("c1", "c2") } else { ("c2", "c1") };
    assert!(!probes(&b, next, 109).await);
    assert!(!probes(&b, last, 110).await, "it was the last one");
    assert!(probes(&a, next, 110).await);
    assert!(!probes(&a, next, 129).await);
    assert!(probes(&a, next, 130).await, "nobody else asked");
    assert!(!probes(&a, last, 121).await, "a clock that is a little behind");
    assert!(probes(&a, last, 60).await, "one that was set back");
}

pub(crate) async fn a_success_ends_what_was_probed(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let crm = app("crm");
    let every = Duration::from_secs(10);
    let probes = async || {
        let probes = store.claim_probe(&crm, &id("c1"), every, at(100)).await;
        probes.unwrap()
    };
    assert!(probes().await);
    assert!(!probes().await);
    store
        .accept_app(&crm, "secret".into(), event(), at(9))
        .await
        .unwrap();
    assert!(probes().await, "the next trouble is looked at at once");
    store
        .endpoint_failed(&crm, "503".into(), None, Jitter::NONE, at(100))
        .await
        .unwrap();
    store.endpoint_works(&crm).await.unwrap();
    assert!(probes().await);
}

pub(crate) async fn failures_of_an_endpoint_are_counted_over_all_processes(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    let crm = app("crm");
    let fails = |store| Store::endpoint_failed(store, &crm, "503".into(), None, Jitter::NONE, at(1));
    let (one, other) = tokio::join!(fails(&a), fails(&b));
    let mut counted = [one.unwrap().failures, other.unwrap().failures];
    counted.sort_unstable();
    assert_eq!(counted, [1, 2], "each sees the one before");
    let third = b
        .endpoint_failed(
            &crm,
            "429".into(),
            Some(Duration::from_secs(30)),
            Jitter::NONE,
            at(2),
        )
        .await
        .unwrap();
    let second = Breaker {
        failures: 2,
        code: "503".into(),
        rest_until: at(1),
    };
    let expected = Breaker::next(
        Some(&second),
        "429".into(),
        Some(Duration::from_secs(30)),
        Jitter::NONE,
        at(2),
    );
    assert_eq!(third, expected);
    assert_eq!(a.app_state(&crm).await.unwrap().endpoint, Some(expected));
    let other = a.app_state(&app("other")).await.unwrap();
    assert_eq!(other, AppState::default());
}

pub(crate) async fn an_endpoint_that_works_has_nothing_counted_against_it(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let crm = app("crm");
    store
        .endpoint_failed(&crm, "503".into(), None, Jitter::NONE, at(1))
        .await
        .unwrap();
    store.endpoint_works(&crm).await.unwrap();
    assert_eq!(store.app_state(&crm).await.unwrap(), AppState::default());
    let head = store.change_head().await.unwrap();
    assert_eq!(head, 2, "both were told");
    store.endpoint_works(&crm).await.unwrap();
    store.endpoint_works(&app("unknown")).await.unwrap();
    assert_eq!(store.change_head().await.unwrap(), head, "nothing is written");
}

// "Budgets are leased in slices of at most a second's rate; slices of the dead lapse with their window."
pub(crate) async fn exchanges_of_a_second_are_shared_by_all_processes(fixture: &impl Fixture) {
    const PER_SECOND: u32 = 10;
    let (a, b) = (fixture.open().await, fixture.open().await);
    let crm = app("crm");
    let second = async || {
        let pulse = a.pulse().await.unwrap();
        pulse.now.map_or(1000, |now| now.millis() / 1000)
    };
    let claim = async |store: &_| {
        Store::claim_exchanges(store, &crm, 3, PER_SECOND, at(1000))
            .await
            .unwrap()
    };
    let first = second().await;
    let mut claimed = 0;
    let mut none_left = false;
    for _ in 0..10 {
        let (one, other) = tokio::join!(claim(&a), claim(&b));
        assert!(one <= 3 && other <= 3);
        claimed += one + other;
        none_left |= one == 0 || other == 0;
    }
    let windows = u32::try_from(second().await - first).unwrap() + 1;
    assert!(
        claimed <= windows * PER_SECOND,
        "{claimed} in {windows} seconds of {PER_SECOND}"
    );
    assert!(
        none_left || windows > 1,
        "three for each of twenty are more than there are"
    );
    assert_eq!(
        b.claim_exchanges(&app("other"), 3, PER_SECOND, at(1000))
            .await
            .unwrap(),
        3
    );
    // The next second has its own.
    while a.claim_exchanges(&crm, 3, PER_SECOND, at(1001)).await.unwrap() < 3 {}
}
