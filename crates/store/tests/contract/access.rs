//! API keys, connect sessions, authorization requests.

use evergrant_domain::CodeVerifier;
use evergrant_domain::access::{Limits, Role};
use evergrant_store::Store;
use evergrant_store::contract::{ApiKey, Authorization, Change, ConnectSession, SessionOutcome};

use crate::fixture::*;

pub(crate) async fn a_key_is_found_by_its_hash_until_and_after_it_is_revoked(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    let key = |name: &str, created| ApiKey {
        id: name.into(),
        name: format!("the {name} key"),
        role: Role::Tokens,
        limits: Limits {
            apps: vec![app("crm")],
            customers: vec![customer("acme, inc"), customer("Müller")],
            connections: vec![],
        },
        lane: Some("sync".into()),
        max_wait: Some(30),
        created_at: at(created),
        expires_at: Some(at(99)),
        revoked_at: None,
    };
    a.create_key(key("second", 2), [2; 32]).await.unwrap();
    a.create_key(key("first", 1), [1; 32]).await.unwrap();
    assert_eq!(b.keys().await.unwrap(), [key("first", 1), key("second", 2)]);
    assert_eq!(b.key_by_hash([2; 32]).await.unwrap(), Some(key("second", 2)));
    assert_eq!(b.key_by_hash([3; 32]).await.unwrap(), None);
    let head = b.change_head().await.unwrap();
    assert!(a.revoke_key("second", at(5)).await.unwrap());
    assert!(a.revoke_key("second", at(6)).await.unwrap());
    assert!(!a.revoke_key("nobody", at(5)).await.unwrap());
    let revoked = b.key_by_hash([2; 32]).await.unwrap().unwrap();
    assert_eq!(revoked.revoked_at, Some(at(5)));
    assert!(b.changes(head).await.unwrap().0.contains(&Change::Keys));
}

pub(crate) async fn a_session_that_connected_stays_connected(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let session = |outcome| ConnectSession {
        id: "s1".into(),
        app: app("crm"),
        customer: customer("acme"),
        connection: Some(id("c1")),
        scopes: vec!["oauth".into()],
        return_url: Some("https://app.example.com/".into()),
        expires_at: at(100),
        outcome,
    };
    store
        .create_session(session(SessionOutcome::Pending))
        .await
        .unwrap();
    let failed = SessionOutcome::Failed {
        code: "denied".into(),
        detail: "the customer said no".into(),
    };
    for (outcome, expected) in [
        (failed.clone(), failed.clone()),
        (
            SessionOutcome::Connected(id("c1")),
            SessionOutcome::Connected(id("c1")),
        ),
        (failed, SessionOutcome::Connected(id("c1"))),
    ] {
        store.finish_session("s1", outcome).await.unwrap();
        assert_eq!(store.session("s1").await.unwrap(), Some(session(expected)));
    }
    store.sweep(at(100)).await.unwrap();
    assert!(
        store.session("s1").await.unwrap().is_some(),
        "it has not ended before that"
    );
    store.sweep(at(101)).await.unwrap();
    assert_eq!(store.session("s1").await.unwrap(), None);
}

pub(crate) async fn a_state_is_spent_once(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    let authorization = |state| Authorization {
        state_hash: [state; 32],
        session: Some("s1".into()),
        app: app("crm"),
        customer: customer("acme"),
        connection: None,
        scopes: vec!["oauth".into()],
        return_url: None,
        code_verifier: Some(CodeVerifier::new("verifier")),
        expires_at: at(100),
    };
    a.begin_authorization(authorization(1)).await.unwrap();
    let (one, other) = tokio::join!(a.spend_state([1; 32], at(1)), b.spend_state([1; 32], at(1)));
    let spent: Vec<_> = [one.unwrap(), other.unwrap()].into_iter().flatten().collect();
    assert_eq!(spent.len(), 1);
    assert_eq!(spent[0].code_verifier.as_ref().unwrap().expose(), "verifier");
    assert!(a.spend_state([1; 32], at(1)).await.unwrap().is_none());
    a.begin_authorization(authorization(2)).await.unwrap();
    assert!(
        a.spend_state([2; 32], at(100)).await.unwrap().is_none(),
        "it has expired"
    );
    assert!(
        a.spend_state([2; 32], at(1)).await.unwrap().is_none(),
        "and is spent all the same"
    );
    a.begin_authorization(authorization(3)).await.unwrap();
    a.sweep(at(101)).await.unwrap();
    assert!(a.spend_state([3; 32], at(1)).await.unwrap().is_none());
}
