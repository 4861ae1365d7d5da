//! Refusals: of the grant, of the client, of the endpoint. Who is to blame, and who is not.

use std::time::Duration;

use evergrant_domain::app::AppHealth;
use evergrant_domain::{AppName, ClientSecret, ReconnectReason};
use evergrant_keeper::{KeepError, Renewal};
use evergrant_oauth::ClientCheck;
use evergrant_store::StoreError;
use hubspot_sim::{Fault, FaultKind};

use crate::steps::{Moment, Steps};
use crate::world::{self, CLIENT, HUB, PAST_EXPIRY, World, assert_redeemed_once};

fn crm() -> AppName {
    AppName::parse("crm").unwrap()
}

#[tokio::test]
async fn a_revoked_grant_needs_reconnecting_and_is_not_presented_again() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.hubspot.uninstall(CLIENT, HUB);
    world.pass(PAST_EXPIRY);
    for _ in 0..3 {
        let error = keeper.current(&connection.id, None).await.unwrap_err();
        let KeepError::ReconnectRequired { reason, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(reason, ReconnectReason::GrantRefused);
    }
    assert_eq!(world.hubspot.ledger().token_requests, 1);
}

#[tokio::test]
async fn a_refusal_that_comes_after_a_reconnect_does_not_condemn_the_new_grant() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    world.hubspot.uninstall(CLIENT, HUB);
    world.hubspot.arm(Fault::token(FaultKind::HoldAfterIssue));
    let caller = tokio::spawn({
        let (keeper, id) = (keeper.clone(), connection.id.clone());
        async move { keeper.current(&id, None).await }
    });
    world.hubspot.wait_for_held(1).await;
    let other = world.keeper().await;
    let grant = world.hubspot.grant(CLIENT, HUB).unwrap();
    crate::connecting::reconnect_behind(&**other.store(), &*world.clock, &connection.id, &grant).await;
    world.hubspot.release_held();
    // The caller gets the new grant's token, and the connection stays active.
    let token = caller.await.unwrap().unwrap();
    assert!(world.accepts(&token.access_token).await);
    assert!(other.current(&connection.id, None).await.is_ok());
}

#[tokio::test]
async fn refused_credentials_are_the_apps_fault_and_no_connections() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.hubspot.set_client_secret(CLIENT, "another");
    world.pass(Duration::from_secs(1700));
    // The token at hand serves on, though its refresh is refused.
    assert!(
        keeper
            .refresh(&connection.id, None, Renewal::Forced)
            .await
            .is_err()
    );
    assert!(keeper.current(&connection.id, None).await.is_ok());
    assert!(matches!(
        keeper.app_health(&crm()).await.unwrap(),
        AppHealth::CredentialsRejected { .. }
    ));
    world.pass(PAST_EXPIRY);
    let asked = world.hubspot.ledger().client_refusals;
    let mut errors = Vec::new();
    for _ in 0..10 {
        errors.push(keeper.current(&connection.id, None).await.unwrap_err());
    }
    assert!(
        errors
            .iter()
            .all(|error| matches!(error, KeepError::AppCredentialsRejected { .. })),
        "{errors:?}"
    );
    assert!(
        world.hubspot.ledger().client_refusals <= asked + 1,
        "one canary, not one per call"
    );
    // A corrected configuration clears it at once.
    let mut app = world.app();
    app.client_secrets = vec![ClientSecret::new("another")];
    let corrected = world.keeper_of(app).await;
    let token = corrected.current(&connection.id, None).await.unwrap();
    assert!(world.accepts(&token.access_token).await);
    assert_eq!(corrected.app_health(&crm()).await.unwrap(), AppHealth::Ok);
}

#[tokio::test]
async fn while_a_secret_is_being_replaced_either_one_serves() {
    let world = World::new().await;
    let mut app = world.app();
    app.client_secrets = vec![ClientSecret::new("new"), ClientSecret::new("sim-secret")];
    let keeper = world.keeper_of(app).await;
    let connection = world.connected(&keeper).await;
    for _ in 0..2 {
        world.pass(PAST_EXPIRY);
        keeper.current(&connection.id, None).await.unwrap();
    }
    assert_eq!(
        world.hubspot.ledger().client_refusals,
        1,
        "the one that worked is tried first the next time"
    );
    world.hubspot.set_client_secret(CLIENT, "new");
    world.pass(PAST_EXPIRY);
    keeper.current(&connection.id, None).await.unwrap();
    assert_redeemed_once(&world.hubspot);
}

#[tokio::test]
async fn credentials_can_be_checked_before_any_customer_is_asked() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    assert!(matches!(
        keeper.check_app(&crm()).await.unwrap(),
        ClientCheck::Accepted
    ));
    world.hubspot.set_client_secret(CLIENT, "another");
    assert!(matches!(
        keeper.check_app(&crm()).await.unwrap(),
        ClientCheck::Refused(_)
    ));
    assert!(matches!(
        keeper.app_health(&crm()).await.unwrap(),
        AppHealth::CredentialsRejected { .. }
    ));
}

#[tokio::test]
async fn an_endpoint_at_fault_condemns_nobody_and_is_left_alone_for_a_while() {
    let faults = [
        FaultKind::Html { code: 400 },
        FaultKind::Html { code: 404 },
        FaultKind::Status {
            code: 302,
            location: None,
        },
        FaultKind::RateLimited {
            policy: hubspot_sim::RateLimitPolicy::TenSecondly,
            retry_after: Some(30),
        },
        FaultKind::Locked,
        FaultKind::Migrating { retry_after: 60 },
        FaultKind::CutBeforeIssue,
    ];
    for kind in faults {
        let world = World::new().await;
        let keeper = world.keeper().await;
        let connection = world.connected(&keeper).await;
        world.hubspot.arm(Fault::token(kind.clone()));
        world.pass(PAST_EXPIRY);
        for _ in 0..5 {
            let error = keeper.current(&connection.id, None).await.unwrap_err();
            assert!(
                matches!(error, KeepError::ProviderUnavailable { .. }),
                "{kind:?}: {error:?}"
            );
        }
        assert_eq!(world.hubspot.ledger().token_requests, 1, "{kind:?}");
        world.pass(Duration::from_secs(61));
        let token = keeper.current(&connection.id, None).await.unwrap();
        assert!(world.accepts(&token.access_token).await, "{kind:?}");
    }
}

#[tokio::test]
async fn in_the_soft_window_a_failing_refresh_is_seen_by_no_caller() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.hubspot.arm(
        Fault::token(FaultKind::Status {
            code: 503,
            location: None,
        })
        .times(0),
    );
    world.pass(Duration::from_secs(1700));
    for _ in 0..20 {
        let token = keeper.current(&connection.id, None).await.unwrap();
        assert!(world.accepts(&token.access_token).await);
    }
    keeper.shutdown().await;
    assert_eq!(world.hubspot.ledger().token_requests, 1);
}

#[tokio::test]
async fn an_answer_for_another_account_is_stored_and_never_served() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    let foreign = world.hubspot.grant(CLIENT, 2002).unwrap();
    let body = format!(
        r#"{{"access_token":"{}","refresh_token":"{}","expires_in":1800,"hub_id":2002,"token_type":"bearer"}}"#,
        foreign.access_token, foreign.refresh_token
    );
    world.hubspot.arm(Fault::token(FaultKind::CustomBody {
        code: 200,
        body,
        content_type: None,
    }));
    world.pass(PAST_EXPIRY);
    for _ in 0..2 {
        let error = keeper.current(&connection.id, None).await.unwrap_err();
        let KeepError::ReconnectRequired { reason, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(reason, ReconnectReason::AccountMismatch);
    }
    let events = keeper.store().events(&connection.id, 1).await.unwrap();
    assert_eq!(events[0].kind, "account_mismatch");
}

#[tokio::test]
async fn a_record_that_does_not_open_is_said_to_need_repair_and_redeems_nothing() {
    let world = World::new().await;
    let (store, vault) = world.store().await;
    let store = Steps::watched(store, |step, moment| {
        if step == "held" && moment == Moment::After {
            return Err(StoreError::Unreadable {
                record: "connection c1".into(),
                field: "refresh_token",
            });
        }
        Ok(())
    });
    let keeper = world::keeper(world.app(), store, vault, world.clock.clone());
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    let error = keeper.current(&connection.id, None).await.unwrap_err();
    assert!(matches!(error, KeepError::Unreadable { .. }), "{error:?}");
    assert_eq!(world.hubspot.ledger().token_requests, 0);
}

#[tokio::test]
async fn the_history_says_how_many_refreshes_in_a_row_had_failed_before() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.hubspot.arm(Fault::token(FaultKind::Locked).times(2));
    world.pass(PAST_EXPIRY);
    for _ in 0..2 {
        keeper.current(&connection.id, None).await.unwrap_err();
        world.pass(Duration::from_secs(3600));
    }
    keeper.current(&connection.id, None).await.unwrap();
    let events = keeper.store().events(&connection.id, 10).await.unwrap();
    let mut told: Vec<_> = events
        .iter()
        .filter(|event| event.kind.starts_with("refresh"))
        .map(|event| (event.kind.as_str(), event.circumstances.failures_before))
        .collect();
    told.reverse();
    assert_eq!(
        told,
        [
            ("refresh_failed", Some(0)),
            ("refresh_failed", Some(1)),
            ("refreshed", Some(2))
        ]
    );
}

#[tokio::test]
async fn refused_credentials_are_no_failure_of_the_connection_in_its_history() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.hubspot.set_client_secret(CLIENT, "another");
    world.pass(PAST_EXPIRY);
    keeper.current(&connection.id, None).await.unwrap_err();
    let events = keeper.store().events(&connection.id, 9).await.unwrap();
    let failed: Vec<_> = events
        .iter()
        .filter(|event| event.kind == "refresh_failed")
        .map(|event| event.circumstances.failures_before)
        .collect();
    // Nobody is to be told that it does badly, for nobody would be told when it does well again.
    assert_eq!(failed, [None], "{events:?}");
}
