//! What a 401 costs.

use std::time::Duration;

use evergrant_domain::api_answer::Class;
use evergrant_domain::{AccessToken, AppName, ConnectionId, Customer, Version};
use evergrant_keeper::{AfterRejection, Import, ImportTokens, KeepError};
use futures_util::future::join_all;
use hubspot_sim::{Fault, FaultKind};

use crate::world::{HUB, PAST_EXPIRY, World, assert_redeemed_once};

fn shown(after: &AfterRejection) -> (Option<i64>, &'static str) {
    match after {
        AfterRejection::Newer { token, class } => (Some(token.version.number()), class.as_str()),
        AfterRejection::Stays { class, .. } => (None, class.as_str()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_died_early_costs_one_redemption_for_all_its_callers() {
    let world = World::new().await;
    let keepers = [world.keeper().await, world.keeper().await];
    let connection = world.connected(&keepers[0]).await;
    let rejections = (0..50).map(|n| {
        let (keeper, id) = (keepers[n % 2].clone(), connection.id.clone());
        tokio::spawn(async move {
            keeper
                .rejected(&id, Version::FIRST, Class::Expired)
                .await
                .unwrap()
        })
    });
    for after in join_all(rejections).await {
        let (version, class) = shown(after.as_ref().unwrap());
        assert_eq!(version, Some(2));
        assert!(["expired", "stale_token"].contains(&class), "{class}");
    }
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
    assert_redeemed_once(&world.hubspot);
}

#[tokio::test]
async fn an_upstream_that_always_answers_401_costs_one_redemption_per_cooldown() {
    let world = World::new().await;
    let keepers = [world.keeper().await, world.keeper().await];
    let connection = world.connected(&keepers[0]).await;
    let mut seen = Vec::new();
    for n in 0..10 {
        let keeper = &keepers[n % 2];
        let token = keeper.current(&connection.id, None).await.unwrap();
        let after = keeper
            .rejected(&connection.id, token.version, Class::Rejected)
            .await
            .unwrap();
        seen.push(shown(&after).1);
    }
    assert_eq!(seen[0], "rejected");
    assert!(
        seen[1..].iter().all(|class| *class == "rejected_after_refresh"),
        "{seen:?}"
    );
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
    world.pass(Duration::from_secs(61));
    let token = keepers[1].current(&connection.id, None).await.unwrap();
    let after = keepers[1]
        .rejected(&connection.id, token.version, Class::Rejected)
        .await
        .unwrap();
    assert_eq!(shown(&after).0, Some(3));
}

#[tokio::test]
async fn a_token_that_is_past_its_end_is_refreshed_for_a_401_whatever_the_cooldown_says() {
    let world = World::new().await;
    world.hubspot.set_token_ttl(Duration::from_secs(30));
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    for version in [1, 2] {
        let after = keeper
            .rejected(&connection.id, Version::new(version), Class::Expired)
            .await
            .unwrap();
        assert_eq!(shown(&after).0, Some(version + 1));
        // Within the cooldown, and longer than the token lives.
        world.pass(Duration::from_secs(31));
    }
    assert_redeemed_once(&world.hubspot);
}

#[tokio::test]
async fn a_redemption_that_brought_nothing_does_not_use_the_cooldown_up() {
    for kind in [
        FaultKind::Locked,
        FaultKind::Status {
            code: 503,
            location: None,
        },
        FaultKind::CutBeforeIssue,
    ] {
        let world = World::new().await;
        let keeper = world.keeper().await;
        let connection = world.connected(&keeper).await;
        world.pass(Duration::from_secs(65));
        world.hubspot.expire_access_tokens(HUB);
        world.hubspot.arm(Fault::token(kind.clone()));
        for _ in 0..3 {
            let error = keeper
                .rejected(&connection.id, Version::FIRST, Class::Expired)
                .await
                .unwrap_err();
            assert!(
                matches!(error, KeepError::ProviderUnavailable { .. }),
                "{kind:?}: {error:?}"
            );
        }
        assert_eq!(world.hubspot.ledger().token_requests, 1, "{kind:?}: backed off");
        world.pass(Duration::from_secs(2));
        let after = keeper
            .rejected(&connection.id, Version::FIRST, Class::Expired)
            .await
            .unwrap();
        assert_eq!(shown(&after), (Some(2), "expired"), "{kind:?}");
    }
}

#[tokio::test]
async fn a_stale_token_is_answered_with_the_stored_one_and_redeems_nothing() {
    let world = World::new().await;
    let (first, second) = (world.keeper().await, world.keeper().await);
    let connection = world.connected(&first).await;
    second.current(&connection.id, None).await.unwrap();
    world.pass(PAST_EXPIRY);
    first.current(&connection.id, None).await.unwrap();
    let after = second
        .rejected(&connection.id, Version::FIRST, Class::Expired)
        .await
        .unwrap();
    assert_eq!(shown(&after), (Some(2), "stale_token"));
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
}

#[tokio::test]
async fn what_the_provider_cannot_decode_is_never_refreshed() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    let after = keeper
        .rejected(&connection.id, Version::FIRST, Class::MalformedToken)
        .await
        .unwrap();
    assert_eq!(shown(&after), (None, "malformed_token"));
    assert_eq!(world.hubspot.ledger().token_requests, 0);
}

#[tokio::test]
async fn a_static_token_serves_for_ever_and_a_401_says_that_it_must_be_replaced() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let token = world.hubspot.static_token(HUB);
    let import = Import {
        id: Some(ConnectionId::parse("s1").unwrap()),
        app: AppName::parse("crm").unwrap(),
        customer: Customer::parse("acme").unwrap(),
        tokens: ImportTokens::Static {
            access_token: AccessToken::new(token),
        },
        account: None,
        labels: vec![],
    };
    let connection = keeper.import(import).await.unwrap();
    world.pass(Duration::from_secs(365 * 24 * 3600));
    let token = keeper
        .current(&connection.id, Some(Duration::from_secs(3600)))
        .await
        .unwrap();
    assert!(world.accepts(&token.access_token).await);
    let after = keeper
        .rejected(&connection.id, token.version, Class::Rejected)
        .await
        .unwrap();
    assert_eq!(shown(&after), (None, "static_rejected"));
    assert_eq!(world.hubspot.ledger().token_requests, 0);
}

#[tokio::test]
async fn a_fresh_token_that_is_rejected_condemns_only_where_the_refresh_token_itself_is_dead() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let alive = world.connected_as(&keeper, "alive", HUB).await;
    let dead = world.connected_as(&keeper, "dead", 1002).await;
    for connection in [&alive, &dead] {
        let after = keeper
            .rejected(&connection.id, Version::FIRST, Class::Rejected)
            .await
            .unwrap();
        assert_eq!(shown(&after), (Some(2), "rejected"));
    }
    world.hubspot.uninstall(crate::world::CLIENT, 1002);
    for connection in [&alive, &dead] {
        let after = keeper
            .rejected(&connection.id, Version::new(2), Class::Rejected)
            .await
            .unwrap();
        assert_eq!(shown(&after), (None, "rejected_after_refresh"));
    }
    keeper.shutdown().await;
    let keeper = world.keeper().await;
    assert!(keeper.current(&alive.id, None).await.is_ok());
    let error = keeper.current(&dead.id, None).await.unwrap_err();
    assert!(matches!(error, KeepError::ReconnectRequired { .. }), "{error:?}");
}
