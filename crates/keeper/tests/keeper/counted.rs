//! What is counted of refreshes, redemptions and token sets, so that a fleet's numbers add up.

use std::sync::Arc;

use evergrant_domain::ConnectionId;
use evergrant_keeper::{Keeper, LifeboatFolder};
use evergrant_metrics::Exposition;
use hubspot_sim::{Fault, FaultKind};

use crate::steps::{Moment, Steps};
use crate::world::{self, PAST_EXPIRY, World};

/// What is counted under this name and with these labels; nothing where there is no such line.
fn counted(keeper: &Keeper, series: &str) -> f64 {
    let mut text = Exposition::new();
    keeper.metrics().write(&mut text);
    let text = text.into_text();
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.map_or(0.0, |value| value.parse().unwrap())
}

#[track_caller]
fn check(keeper: &Keeper, expected: &[(&str, f64)]) {
    for (series, expected) in expected {
        let found = counted(keeper, series);
        assert!(
            (found - expected).abs() < f64::EPSILON,
            "{series}: {found}, not {expected}"
        );
    }
}

const CONNECTED: &str = r#"evergrant_token_sets_stored_total{app="crm",source="import"}"#;
const STORED: &str = r#"evergrant_token_sets_stored_total{app="crm",source="refresh"}"#;
const ISSUED: &str = r#"evergrant_redemptions_total{app="crm",outcome="issued"}"#;
const LOST: &str = r#"evergrant_redemptions_total{app="crm",outcome="lost"}"#;
const REFRESHED: &str = r#"evergrant_refreshes_total{app="crm",outcome="refreshed"}"#;
const FOUND: &str = r#"evergrant_refreshes_total{app="crm",outcome="found"}"#;
const UNAVAILABLE: &str = r#"evergrant_refreshes_total{app="crm",outcome="provider_unavailable"}"#;
const DOUBLE: &str = "evergrant_double_redemptions_total";

#[tokio::test]
async fn redemptions_less_token_sets_stored_are_the_failures() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world
        .hubspot
        .arm(Fault::token(FaultKind::AnswerLostAfterIssue).times(1));
    world.pass(PAST_EXPIRY);
    keeper.current(&connection.id, None).await.unwrap_err();
    world.pass(std::time::Duration::from_secs(2));
    keeper.current(&connection.id, None).await.unwrap();
    check(
        &keeper,
        &[
            (CONNECTED, 1.0),
            (LOST, 1.0),
            (ISSUED, 1.0),
            (STORED, 1.0),
            (UNAVAILABLE, 1.0),
            (REFRESHED, 1.0),
            (DOUBLE, 0.0),
            ("evergrant_refresh_duration_seconds_count", 2.0),
            ("evergrant_lease_wait_seconds_count", 2.0),
        ],
    );
}

#[tokio::test]
async fn each_consent_is_one_token_set_of_its_own_source() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let first = crate::connecting::consented(&world, &keeper, world::HUB, None).await;
    let again = crate::connecting::consented(&world, &keeper, world::HUB, None).await;
    assert_eq!(first.unwrap().id, again.unwrap().id);
    let of_consents = r#"evergrant_token_sets_stored_total{app="crm",source="connect"}"#;
    check(
        &keeper,
        &[(of_consents, 2.0), (CONNECTED, 0.0), (STORED, 0.0), (ISSUED, 0.0)],
    );
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_one_token_set_and_the_error_is_counted() {
    let world = World::new().await;
    let (store, vault) = world.store().await;
    let store = Steps::failing(store, "land", 1, Moment::After);
    let keeper = world::keeper(world.app(), store, vault, world.clock.clone());
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    keeper.current(&connection.id, None).await.unwrap();
    // It has landed by the time that everything has ended.
    keeper.shutdown().await;
    check(
        &keeper,
        &[
            (STORED, 1.0),
            (DOUBLE, 0.0),
            (r#"evergrant_store_errors_total{op="land"}"#, 1.0),
            (r#"evergrant_store_errors_total{op="give_up"}"#, 0.0),
        ],
    );
}

#[tokio::test]
async fn what_another_process_lands_from_the_lifeboat_is_counted_there_and_once() {
    let world = World::new().await;
    let lifeboat = || Some(Arc::new(LifeboatFolder::open(world.lifeboat()).unwrap()) as Arc<_>);
    let (store, vault) = world.store().await;
    let failing = Steps::failing(store, "land", usize::MAX, Moment::Before);
    let first = world::keeper_with(
        world.app(),
        failing,
        vault.clone(),
        world.clock.clone(),
        lifeboat(),
    );
    let connection = world.connected(&first).await;
    world.pass(PAST_EXPIRY);
    first.current(&connection.id, None).await.unwrap();
    first.shutdown().await;
    assert_eq!(first.lifeboat_entries().await, Some(1));
    check(&first, &[(ISSUED, 1.0), (STORED, 0.0)]);
    let (store, _) = world.store().await;
    let next = world::keeper_with(world.app(), store, vault, world.clock.clone(), lifeboat());
    assert_eq!(next.land_lifeboats(None).await.unwrap(), 1);
    assert_eq!(next.land_lifeboats(None).await.unwrap(), 0);
    check(&next, &[(ISSUED, 0.0), (STORED, 1.0), (DOUBLE, 0.0)]);
    assert_eq!(next.lifeboat_entries().await, Some(0));
}

#[tokio::test]
async fn two_token_sets_for_one_version_are_a_double_redemption() {
    let world = World::new().await;
    let (store, vault) = world.store().await;
    // Its lease ends at once, and it does not see that.
    let first = world::keeper(world.app(), Steps::stopped(store), vault, world.clock.clone());
    let second = world.keeper().await;
    let connection = world.connected(&second).await;
    world.pass(PAST_EXPIRY);
    world
        .hubspot
        .arm(Fault::token(FaultKind::HoldAfterIssue).times(1));
    let waits = tokio::spawn({
        let (first, id) = (first.clone(), connection.id.clone());
        async move { first.current(&id, None).await.map(drop) }
    });
    world.hubspot.wait_for_held(1).await;
    second.current(&connection.id, None).await.unwrap();
    check(&second, &[(ISSUED, 1.0), (STORED, 1.0), (DOUBLE, 0.0)]);
    world.hubspot.release_held();
    waits.await.unwrap().unwrap();
    first.shutdown().await;
    check(
        &first,
        &[(ISSUED, 1.0), (STORED, 0.0), (DOUBLE, 1.0), (FOUND, 1.0)],
    );
    let events = second.store().events(&connection.id, 9).await.unwrap();
    let told = events.iter().filter(|event| event.kind == "double_redemption");
    assert_eq!(told.count(), 1, "{events:?}");
}

#[tokio::test]
async fn a_token_set_that_was_stored_without_saying_so_and_refreshed_since_is_no_double_redemption() {
    let world = World::new().await;
    let (store, vault) = world.store().await;
    let permits = Arc::new(tokio::sync::Semaphore::new(1));
    let store = Steps::gated(store, "land", permits.clone());
    let store = Steps::failing(store, "land", 1, Moment::After);
    let first = world::keeper(world.app(), store, vault, world.clock.clone());
    let second = world.keeper().await;
    let connection = world.connected(&second).await;
    world.pass(PAST_EXPIRY);
    first.current(&connection.id, None).await.unwrap();
    // Before the first one asks again whether it was stored, the second one has redeemed what was.
    let renewal = evergrant_keeper::Renewal::Forced;
    let report = second.refresh(&connection.id, None, renewal).await.unwrap();
    assert_eq!(report.version, connection.version.next().next());
    permits.add_permits(9);
    first.shutdown().await;
    check(&first, &[(ISSUED, 1.0), (STORED, 1.0), (DOUBLE, 0.0)]);
    check(&second, &[(ISSUED, 1.0), (STORED, 1.0), (DOUBLE, 0.0)]);
}

#[tokio::test]
async fn a_newer_consent_is_no_double_redemption() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    world
        .hubspot
        .arm(Fault::token(FaultKind::HoldAfterIssue).times(1));
    let waits = tokio::spawn({
        let (keeper, id) = (keeper.clone(), connection.id.clone());
        async move { keeper.current(&id, None).await.map(drop) }
    });
    world.hubspot.wait_for_held(1).await;
    let held = keeper.store().held(&connection.id).await.unwrap().unwrap();
    let mut tokens = held.tokens.unwrap();
    tokens.issued_at = keeper.clock().now();
    let event = evergrant_domain::event::Event::new(
        evergrant_domain::event::EventKind::Reconnected,
        "the customer gave consent again",
    );
    let store = keeper.store();
    store
        .reconnect(&connection.id, None, tokens, event, keeper.clock().now())
        .await
        .unwrap();
    world.hubspot.release_held();
    let _ = waits.await.unwrap();
    keeper.shutdown().await;
    // What had been issued for the old consent was let go; the new one's token had ended, too.
    check(&keeper, &[(ISSUED, 2.0), (STORED, 1.0), (DOUBLE, 0.0)]);
}

#[tokio::test]
async fn a_connection_that_was_named_is_counted_apart() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    keeper
        .metrics()
        .name_connections([ConnectionId::parse("c1").unwrap()]);
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    keeper.current(&connection.id, None).await.unwrap();
    check(
        &keeper,
        &[
            (
                r#"evergrant_token_sets_stored_total{app="crm",source="refresh",connection="c1"}"#,
                1.0,
            ),
            (
                r#"evergrant_refreshes_total{app="crm",outcome="refreshed",connection="c1"}"#,
                1.0,
            ),
            (
                r#"evergrant_redemptions_total{app="crm",outcome="issued",connection="c1"}"#,
                1.0,
            ),
            (STORED, 0.0),
        ],
    );
}

#[tokio::test]
async fn the_providers_clock_is_read_off_its_answers() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    keeper.current(&connection.id, None).await.unwrap();
    let ahead = keeper.provider_clock_offset_ms().unwrap();
    assert!(ahead.abs() < 5_000, "{ahead}");
    // The provider's clock alone; the answers from before count until they are outnumbered.
    world.hubspot.advance(PAST_EXPIRY);
    for _ in 0..5 {
        world.pass(std::time::Duration::from_secs(11));
        let renewal = evergrant_keeper::Renewal::Forced;
        keeper.refresh(&connection.id, None, renewal).await.unwrap();
    }
    let ahead = keeper.provider_clock_offset_ms().unwrap();
    assert!((ahead + 1_801_000).abs() < 5_000, "{ahead}");
}
