//! Answers that were lost, by what the provider does to a redeemed refresh token.

use std::time::Duration;

use evergrant_domain::api_answer::Class;
use evergrant_domain::connection::Health;
use evergrant_domain::redemption::QUIET_TIME;
use evergrant_domain::{Connection, ConnectionStatus, ReconnectReason, Rotation, Version};
use evergrant_keeper::{AfterRejection, Clock as _, KeepError, Keeper, Renewal};
use hubspot_sim::{Fault, FaultKind};

use crate::world::{CLIENT, HUB, PAST_EXPIRY, World, assert_redeemed_once};

const LOST: [FaultKind; 4] = [
    FaultKind::AnswerLostAfterIssue,
    FaultKind::TruncatedJsonAfterIssue,
    FaultKind::EmptyBody,
    FaultKind::HugeBody { mib: 2 },
];

async fn fails(keeper: &Keeper) -> KeepError {
    let id = evergrant_domain::ConnectionId::parse("c1").unwrap();
    keeper.current(&id, None).await.unwrap_err()
}

fn reason(error: &KeepError) -> Option<ReconnectReason> {
    match error {
        KeepError::ReconnectRequired { reason, .. } => Some(*reason),
        _ => None,
    }
}

#[tokio::test]
async fn where_refresh_tokens_never_rotate_a_lost_answer_costs_a_pause() {
    for kind in LOST {
        let world = World::new().await;
        let keeper = world.keeper().await;
        let connection = world.connected(&keeper).await;
        world.hubspot.arm(Fault::token(kind.clone()));
        world.pass(PAST_EXPIRY);
        assert!(
            matches!(fails(&keeper).await, KeepError::ProviderUnavailable { .. }),
            "{kind:?}"
        );
        world.pass(Duration::from_secs(2));
        let token = keeper.current(&connection.id, None).await.unwrap();
        assert!(world.accepts(&token.access_token).await, "{kind:?}");
    }
}

#[tokio::test]
async fn a_refusal_after_a_lost_answer_does_not_say_that_the_customer_took_the_grant_back() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    world.connected(&keeper).await;
    world.hubspot.arm(Fault::token(FaultKind::AnswerLostAfterIssue));
    world.pass(PAST_EXPIRY);
    assert!(matches!(
        fails(&keeper).await,
        KeepError::ProviderUnavailable { .. }
    ));
    world.hubspot.uninstall(CLIENT, HUB);
    world.pass(Duration::from_secs(2));
    assert_eq!(
        reason(&fails(&keeper).await),
        Some(ReconnectReason::RedemptionOutcomeLost)
    );
}

#[tokio::test]
async fn inside_its_grace_window_a_lost_answer_is_asked_for_again() {
    let window = Duration::from_secs(30);
    let world = World::with(hubspot_sim::Rotation::Grace(window)).await;
    let mut app = world.app();
    app.provider.rotation = Rotation::Grace(window);
    let keeper = world.keeper_of(app).await;
    let connection = world.connected(&keeper).await;
    world.hubspot.arm(Fault::token(FaultKind::AnswerLostAfterIssue));
    world.pass(PAST_EXPIRY);
    assert!(matches!(
        fails(&keeper).await,
        KeepError::ProviderUnavailable { .. }
    ));
    world.pass(Duration::from_secs(2));
    let token = keeper.current(&connection.id, None).await.unwrap();
    assert!(world.accepts(&token.access_token).await);
    assert!(
        keeper
            .store()
            .connection(&connection.id)
            .await
            .unwrap()
            .unwrap()
            .unproven
    );
}

#[tokio::test]
async fn a_single_use_token_is_asked_about_before_it_is_presented_again() {
    // Lost after the provider had issued: the old token is dead, and that is found out without presenting it.
    let world = World::with(hubspot_sim::Rotation::Always).await;
    let mut app = world.app();
    app.provider.rotation = Rotation::SingleUse;
    let keeper = world.keeper_of(app.clone()).await;
    let connection = world.connected(&keeper).await;
    world.hubspot.arm(Fault::token(FaultKind::AnswerLostAfterIssue));
    world.pass(PAST_EXPIRY);
    // A late answer may still land: whoever asks is told when it is worth asking again, and nothing is presented before.
    for (later, left) in [(0, 30), (10, 20)] {
        world.pass(Duration::from_secs(later));
        let quiet = fails(&keeper).await;
        let KeepError::ProviderUnavailable { retry_after, .. } = &quiet else {
            panic!("{quiet:?}")
        };
        assert!(retry_after.as_secs().abs_diff(left) <= 1, "{retry_after:?}");
    }
    // Not even where a person insists.
    let id = connection.id.clone();
    let insisted = keeper.refresh(&id, None, Renewal::Forced).await.unwrap_err();
    assert!(
        matches!(&insisted, KeepError::ProviderUnavailable { code, .. } if code == "outcome_pending"),
        "{insisted:?}"
    );
    world.pass(Duration::from_secs(30));
    assert_eq!(
        reason(&fails(&keeper).await),
        Some(ReconnectReason::RedemptionOutcomeLost)
    );
    assert_eq!(
        world
            .hubspot
            .ledger()
            .refresh_tokens
            .iter()
            .map(|token| token.presented)
            .max(),
        Some(1)
    );
    assert_redeemed_once(&world.hubspot);

    // Cut before the provider did anything: it lives, and is presented again.
    let world = World::with(hubspot_sim::Rotation::Always).await;
    app.provider = world.app().provider;
    app.provider.rotation = Rotation::SingleUse;
    let keeper = world.keeper_of(app).await;
    let token = world.connected(&keeper).await;
    world.hubspot.arm(Fault::token(FaultKind::CutBeforeIssue));
    world.pass(PAST_EXPIRY);
    assert!(matches!(
        fails(&keeper).await,
        KeepError::ProviderUnavailable { .. }
    ));
    world.pass(Duration::from_secs(60));
    let token = keeper.current(&token.id, None).await.unwrap();
    assert!(world.accepts(&token.access_token).await);
    assert_redeemed_once(&world.hubspot);
    assert_eq!(connection.id, token.connection);
}

#[tokio::test]
async fn without_introspection_a_single_use_token_gets_one_replay_and_no_third_presentation() {
    let world = World::with(hubspot_sim::Rotation::Always).await;
    let mut app = world.app();
    app.provider.rotation = Rotation::SingleUse;
    app.provider.introspect_url = None;
    let keeper = world.keeper_of(app).await;
    world.connected(&keeper).await;
    world
        .hubspot
        .arm(Fault::token(FaultKind::CutBeforeIssue).times(2));
    world.pass(PAST_EXPIRY);
    for _ in 0..2 {
        assert!(matches!(
            fails(&keeper).await,
            KeepError::ProviderUnavailable { .. }
        ));
        world.pass(Duration::from_secs(60));
    }
    for _ in 0..3 {
        assert_eq!(
            reason(&fails(&keeper).await),
            Some(ReconnectReason::RedemptionOutcomeLost)
        );
    }
    let presented: u64 = world
        .hubspot
        .ledger()
        .refresh_tokens
        .iter()
        .map(|token| token.presented)
        .sum();
    assert_eq!(presented, 2);
}

/// Two attempts of unknown outcome, and the end of the token at hand: the outcome is lost.
async fn outcome_lost(first: Fault, second: Fault) -> (World, Keeper, Connection) {
    let world = World::with(hubspot_sim::Rotation::Always).await;
    let mut app = world.app();
    app.provider.rotation = Rotation::SingleUse;
    app.provider.introspect_url = None;
    let keeper = world.keeper_of(app).await;
    let connection = world.connected(&keeper).await;
    world.hubspot.arm(first);
    world.hubspot.arm(second);
    world.pass(PAST_EXPIRY);
    for _ in 0..2 {
        fails(&keeper).await;
        world.pass(Duration::from_secs(60));
    }
    let stored = keeper.store().connection(&connection.id).await.unwrap().unwrap();
    let health = stored.health(world.clock.now(), QUIET_TIME);
    assert_ne!(health, Some(Health::Healthy));
    assert_eq!(
        reason(&fails(&keeper).await),
        Some(ReconnectReason::RedemptionOutcomeLost)
    );
    (world, keeper, connection)
}

fn presented(world: &World) -> u64 {
    let tokens = world.hubspot.ledger().refresh_tokens;
    tokens.iter().map(|token| token.presented).sum()
}

#[tokio::test]
async fn after_two_attempts_of_unknown_outcome_a_connection_is_ambiguous_and_its_token_serves_to_its_end() {
    let world = World::with(hubspot_sim::Rotation::Always).await;
    let mut app = world.app();
    app.provider.rotation = Rotation::SingleUse;
    app.provider.introspect_url = None;
    let keeper = world.keeper_of(app).await;
    let connection = world.connected(&keeper).await;
    let first = keeper.current(&connection.id, None).await.unwrap();
    world.hubspot.arm(Fault::token(FaultKind::CutBeforeIssue));
    let lost = keeper.refresh(&connection.id, None, Renewal::Forced).await;
    assert!(
        matches!(lost, Err(KeepError::ProviderUnavailable { .. })),
        "{lost:?}"
    );
    world.pass(Duration::from_secs(1750));
    let token = keeper.current(&connection.id, None).await.unwrap();
    assert_eq!(token.version, first.version);
    let stored = keeper.store().connection(&connection.id).await.unwrap().unwrap();
    assert_eq!(
        stored.health(world.clock.now(), QUIET_TIME),
        Some(Health::Ambiguous)
    );
    assert_eq!(presented(&world), 1, "nothing is urgent while the token serves");
}

#[tokio::test]
async fn a_person_may_have_the_token_of_a_lost_outcome_presented_once_more() {
    let cut = || Fault::token(FaultKind::CutBeforeIssue);
    let (world, keeper, connection) = outcome_lost(cut(), cut()).await;
    assert_eq!(presented(&world), 2);
    // No call does it, only who asks by name.
    fails(&keeper).await;
    assert_eq!(presented(&world), 2);
    let report = keeper
        .refresh(&connection.id, None, Renewal::IfOld)
        .await
        .unwrap();
    assert!(report.redeemed, "{report:?}");
    assert_eq!(presented(&world), 3);
    let stored = keeper.store().connection(&connection.id).await.unwrap().unwrap();
    assert_eq!(stored.status, ConnectionStatus::Active);
    assert!(stored.unproven, "rule 16");
    assert!(keeper.current(&connection.id, None).await.is_ok());
}

#[tokio::test]
async fn a_persons_try_whose_answer_is_lost_too_was_the_last_one() {
    let cut = || Fault::token(FaultKind::CutBeforeIssue);
    let (world, keeper, connection) = outcome_lost(cut(), cut()).await;
    world.hubspot.arm(cut());
    let lost = keeper.refresh(&connection.id, None, Renewal::Forced).await;
    assert!(
        matches!(lost, Err(KeepError::ProviderUnavailable { .. })),
        "{lost:?}"
    );
    assert_eq!(presented(&world), 3);
    for _ in 0..3 {
        world.pass(Duration::from_secs(600));
        let error = keeper
            .refresh(&connection.id, None, Renewal::Forced)
            .await
            .unwrap_err();
        assert_eq!(reason(&error), Some(ReconnectReason::RedemptionOutcomeLost));
    }
    assert_eq!(presented(&world), 3, "counted in the intent");
}

#[tokio::test]
async fn a_persons_try_that_is_refused_changes_nothing_and_one_that_never_left_is_not_counted() {
    // The provider had issued, so what is presented again is refused.
    let (world, keeper, connection) = outcome_lost(
        Fault::token(FaultKind::AnswerLostAfterIssue),
        Fault::token(FaultKind::CutBeforeIssue),
    )
    .await;
    world.pass(Duration::from_secs(60));
    world.hubspot.arm(Fault::token(FaultKind::Locked));
    let locked = keeper.refresh(&connection.id, None, Renewal::Forced).await;
    assert!(
        matches!(locked, Err(KeepError::ProviderUnavailable { .. })),
        "{locked:?}"
    );
    world.pass(Duration::from_secs(600));
    let error = keeper
        .refresh(&connection.id, None, Renewal::Forced)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), Some(ReconnectReason::RedemptionOutcomeLost));
    let kept = world.hubspot.ledger();
    assert_eq!(kept.refreshes_refused, 1, "it was asked once more: {kept:?}");
}

#[tokio::test]
async fn a_provider_that_is_seen_to_rotate_is_taken_to_be_single_use_from_then_on() {
    let world = World::with(hubspot_sim::Rotation::Always).await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    keeper.current(&connection.id, None).await.unwrap();
    world.hubspot.arm(Fault::token(FaultKind::AnswerLostAfterIssue));
    world.pass(PAST_EXPIRY);
    assert!(matches!(
        fails(&keeper).await,
        KeepError::ProviderUnavailable { .. }
    ));
    world.pass(Duration::from_secs(5));
    let pending = fails(&world.keeper().await).await;
    let KeepError::ProviderUnavailable { retry_after, .. } = &pending else {
        panic!("{pending:?}")
    };
    assert!(
        *retry_after > Duration::from_secs(20),
        "single use from now on: {retry_after:?}"
    );
    assert_redeemed_once(&world.hubspot);
}

#[tokio::test]
async fn a_refresh_token_that_the_answer_leaves_out_is_kept() {
    let world = World::with(hubspot_sim::Rotation::Omit).await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    for expected in 1..=3 {
        world.pass(PAST_EXPIRY);
        let token = keeper.current(&connection.id, None).await.unwrap();
        assert!(world.accepts(&token.access_token).await);
        assert_eq!(world.hubspot.ledger().refreshes_accepted, expected);
    }
}

#[tokio::test]
async fn a_disconnect_in_mid_refresh_wins_and_the_new_refresh_token_is_revoked() {
    let world = World::with(hubspot_sim::Rotation::Always).await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    world.hubspot.arm(Fault::token(FaultKind::HoldAfterIssue));
    let caller = tokio::spawn({
        let (keeper, id) = (keeper.clone(), connection.id.clone());
        async move { keeper.current(&id, None).await }
    });
    world.hubspot.wait_for_held(1).await;
    keeper
        .disconnect(&connection.id, evergrant_store::contract::Revoke::Auto)
        .await
        .unwrap();
    world.hubspot.release_held();
    assert!(matches!(
        caller.await.unwrap().unwrap_err(),
        KeepError::Disconnected
    ));
    keeper.shutdown().await;
    let ledger = world.hubspot.ledger();
    assert!(
        ledger
            .refresh_tokens
            .iter()
            .all(|token| token.dead || token.superseded),
        "{ledger:?}"
    );
    assert!(matches!(
        fails(&world.keeper().await).await,
        KeepError::Disconnected
    ));
    assert!(world.hubspot.grant(CLIENT, HUB).is_some());
}

#[tokio::test]
async fn a_token_that_was_rejected_is_not_waited_for_after_a_lost_answer() {
    let world = World::with(hubspot_sim::Rotation::Always).await;
    let mut app = world.app();
    app.provider.rotation = Rotation::SingleUse;
    let keeper = world.keeper_of(app).await;
    let connection = world.connected(&keeper).await;
    world.pass(Duration::from_secs(120));
    world.hubspot.expire_access_tokens(HUB);
    world.hubspot.arm(Fault::token(FaultKind::CutBeforeIssue));
    let rejected = async || {
        keeper
            .rejected(&connection.id, Version::FIRST, Class::Expired)
            .await
    };
    assert!(rejected().await.is_err());
    // Long before its end by the clock, and after the quiet time.
    world.pass(QUIET_TIME + Duration::from_secs(30));
    let after = rejected().await.unwrap();
    assert!(matches!(after, AfterRejection::Newer { .. }), "{after:?}");
    assert_eq!(world.hubspot.ledger().introspections, 1, "asked about first");
}
