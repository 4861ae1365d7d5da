//! However many ask: one redemption.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use evergrant_domain::Version;
use evergrant_domain::redemption::LEASE;
use evergrant_keeper::{KeepError, Keeper, Renewal};
use evergrant_store::StoreError;
use futures_util::future::join_all;
use hubspot_sim::{Fault, FaultKind};

use crate::steps::{self, Moment, Steps};
use crate::world::{self, PAST_EXPIRY, World, assert_redeemed_once};

pub(crate) async fn ask(keeper: &Keeper, callers: usize) -> Vec<String> {
    let id = evergrant_domain::ConnectionId::parse("c1").unwrap();
    let calls = (0..callers).map(|_| {
        let (keeper, id) = (keeper.clone(), id.clone());
        tokio::spawn(async move {
            keeper
                .current(&id, None)
                .await
                .unwrap()
                .access_token
                .expose()
                .to_owned()
        })
    });
    join_all(calls).await.into_iter().map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_callers_at_one_expired_token_make_one_redemption() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    let tokens = ask(&keeper, 500).await;
    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
    assert_redeemed_once(&world.hubspot);
}

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_with_a_hundred_callers_each_make_one_redemption() {
    four_processes_make_one_redemption(World::with(hubspot_sim::Rotation::Always).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_on_one_postgresql_make_one_redemption() {
    four_processes_make_one_redemption(World::on_postgres(hubspot_sim::Rotation::Always).await).await;
}

async fn four_processes_make_one_redemption(world: World) {
    let mut keepers = Vec::new();
    for _ in 0..4 {
        keepers.push(world.keeper().await);
    }
    world.connected(&keepers[0]).await;
    one_redemption_each_round(&world, &keepers).await;
}

pub(crate) async fn one_redemption_each_round(world: &World, keepers: &[Keeper]) {
    for round in 1..=3 {
        world.pass(PAST_EXPIRY);
        let tokens = join_all(keepers.iter().map(|keeper| ask(keeper, 100)))
            .await
            .concat();
        assert!(tokens.iter().all(|token| *token == tokens[0]));
        assert_eq!(world.hubspot.ledger().refreshes_accepted, round);
    }
    assert_redeemed_once(&world.hubspot);
}

#[tokio::test]
async fn a_fresh_token_is_handed_out_without_a_redemption() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    for _ in 0..3 {
        let token = keeper.current(&connection.id, None).await.unwrap();
        assert!(world.accepts(&token.access_token).await);
    }
    assert_eq!(world.hubspot.ledger().token_requests, 0);
}

#[tokio::test]
async fn in_the_soft_window_the_token_serves_at_once_and_one_refresh_runs_behind_it() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    let first = keeper.current(&connection.id, None).await.unwrap();
    world.pass(Duration::from_secs(1700));
    world.hubspot.arm(Fault::token(FaultKind::HoldBeforeIssue));
    // The provider holds the refresh, and still every call is answered.
    for _ in 0..3 {
        let token = keeper.current(&connection.id, None).await.unwrap();
        assert_eq!(token.version, first.version);
    }
    world.hubspot.wait_for_held(1).await;
    world.hubspot.release_held();
    keeper.shutdown().await;
    let token = keeper.current(&connection.id, None).await.unwrap();
    assert_eq!(token.version, first.version.next());
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_take_the_redemption_with_it() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    world.hubspot.arm(Fault::token(FaultKind::HoldBeforeIssue));
    let caller = tokio::spawn({
        let (keeper, id) = (keeper.clone(), connection.id.clone());
        async move { keeper.current(&id, None).await }
    });
    world.hubspot.wait_for_held(1).await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    world.hubspot.release_held();
    keeper.shutdown().await;
    let token = keeper.current(&connection.id, None).await.unwrap();
    assert!(world.accepts(&token.access_token).await);
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
}

#[tokio::test]
async fn a_keeper_that_stops_saves_what_is_in_flight_and_begins_nothing_new() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    world.hubspot.arm(Fault::token(FaultKind::HoldAfterIssue));
    let caller = tokio::spawn({
        let (keeper, id) = (keeper.clone(), connection.id.clone());
        async move { keeper.current(&id, None).await }
    });
    world.hubspot.wait_for_held(1).await;
    let stopping = tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.shutdown().await }
    });
    world.hubspot.release_held();
    stopping.await.unwrap();
    let token = caller.await.unwrap().unwrap();
    assert!(world.accepts(&token.access_token).await);
    // Another one is not begun any more.
    world.pass(PAST_EXPIRY);
    let error = keeper.current(&connection.id, None).await.unwrap_err();
    assert!(matches!(error, KeepError::Overloaded { .. }), "{error:?}");
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
}

#[tokio::test]
async fn a_wish_for_more_lifetime_than_a_token_has_costs_one_redemption_not_one_per_call() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.pass(Duration::from_secs(1200));
    let wish = Some(Duration::from_secs(100_000));
    for _ in 0..5 {
        keeper.current(&connection.id, wish).await.unwrap();
    }
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
}

#[tokio::test]
async fn a_refresh_that_is_asked_for_returns_a_young_token_as_it_is_unless_it_is_forced() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    let unforced = keeper
        .refresh(&connection.id, None, Renewal::IfOld)
        .await
        .unwrap();
    assert!(!unforced.redeemed);
    let forced = keeper
        .refresh(&connection.id, None, Renewal::Forced)
        .await
        .unwrap();
    assert!(
        forced.redeemed && forced.version == forced.version_before.next(),
        "{forced:?}"
    );
    // At most once in ten seconds, whoever asks.
    let again = world
        .keeper()
        .await
        .refresh(&connection.id, None, Renewal::Forced)
        .await
        .unwrap();
    assert!(!again.redeemed);
    world.pass(Duration::from_secs(11));
    let later = keeper
        .refresh(&connection.id, Some(connection.version), Renewal::Forced)
        .await
        .unwrap();
    assert!(
        !later.redeemed,
        "the version that was named is not the stored one any more"
    );
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
}

#[tokio::test]
async fn an_answer_in_hand_is_stored_however_often_the_store_fails() {
    for moment in [Moment::Before, Moment::After] {
        let world = World::with(hubspot_sim::Rotation::Always).await;
        let (store, vault) = world.store().await;
        let store = Steps::failing(store, "land", 3, moment);
        let keeper = world::keeper(world.app(), store, vault, world.clock.clone());
        let connection = world.connected(&keeper).await;
        world.pass(PAST_EXPIRY);
        let token = keeper.current(&connection.id, None).await.unwrap();
        assert!(world.accepts(&token.access_token).await, "failing {moment:?}");
        // What another process reads is what the provider issued.
        let other = world.keeper().await.current(&connection.id, None).await.unwrap();
        assert_eq!(other.access_token.expose(), token.access_token.expose());
        assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
        assert_redeemed_once(&world.hubspot);
    }
}

#[tokio::test]
async fn without_the_store_nothing_is_redeemed_and_the_caller_is_told() {
    let world = World::new().await;
    let (store, vault) = world.store().await;
    let store = Steps::failing(store, "take_lease", 1, Moment::Before);
    let keeper = world::keeper(world.app(), store, vault, world.clock.clone());
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    let error = keeper.current(&connection.id, None).await.unwrap_err();
    assert!(matches!(error, KeepError::StoreUnavailable { .. }), "{error:?}");
    assert_eq!(world.hubspot.ledger().token_requests, 0);
    assert!(keeper.current(&connection.id, None).await.is_ok());
}

/// Looks at the steps of one redemption in which `at_the_check` happens right before the first byte.
async fn check_before_sending(
    disturbed: Moment,
    at_the_check: impl Fn(&World) -> Result<(), StoreError> + Send + Sync + 'static,
) {
    let world = Arc::new(World::new().await);
    let (store, vault) = world.store().await;
    let leases = Arc::new(AtomicUsize::new(0));
    let checked = AtomicBool::new(false);
    let (taken, watched) = (leases.clone(), world.clone());
    let store = Steps::watched(store, move |step, moment| {
        if step == "take_lease" && moment == Moment::After {
            taken.fetch_add(1, Ordering::SeqCst);
        }
        // The first check alone.
        if step == "lease_lasts" && moment == disturbed && !checked.swap(true, Ordering::SeqCst) {
            return at_the_check(&watched);
        }
        Ok(())
    });
    let keeper = world::keeper(world.app(), store, vault, world.clock.clone());
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    keeper.current(&connection.id, None).await.unwrap();
    assert_eq!(
        leases.load(Ordering::SeqCst),
        2,
        "the first holder stepped back and tried anew"
    );
    assert_eq!(
        world.hubspot.ledger().token_requests,
        1,
        "who stepped back presented nothing"
    );
    let held = keeper.store().connection(&connection.id).await.unwrap().unwrap();
    assert_eq!(held.intent, None, "and took its attempt back");
}

#[tokio::test]
async fn a_holder_whose_lease_is_not_confirmed_right_before_the_first_byte_presents_nothing() {
    check_before_sending(Moment::Before, |_| {
        Err(StoreError::Unavailable {
            what: "a test says so".into(),
            outcome_unknown: false,
        })
    })
    .await;
}

#[tokio::test]
async fn a_holder_that_was_stopped_between_its_lease_and_the_first_byte_presents_nothing() {
    check_before_sending(Moment::After, |world| {
        world.pass(Duration::from_secs(20));
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn without_the_store_a_token_at_hand_serves_for_a_while_and_no_longer() {
    let world = World::new().await;
    let (store, vault) = world.store().await;
    let away = Arc::new(AtomicBool::new(false));
    let gone = away.clone();
    let store = Steps::watched(store, move |_, _| {
        if gone.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable {
                what: "a test says so".into(),
                outcome_unknown: false,
            });
        }
        Ok(())
    });
    let keeper = world::keeper(world.app(), store, vault, world.clock.clone());
    let connection = world.connected(&keeper).await;
    keeper.current(&connection.id, None).await.unwrap();
    away.store(true, Ordering::SeqCst);
    world.pass(Duration::from_secs(59));
    assert!(keeper.current(&connection.id, None).await.is_ok());
    // Past max_stale nobody can know any more whether it was disconnected elsewhere.
    world.pass(Duration::from_secs(2));
    let error = keeper.current(&connection.id, None).await.unwrap_err();
    assert!(matches!(error, KeepError::StoreUnavailable { .. }), "{error:?}");
    away.store(false, Ordering::SeqCst);
    assert!(keeper.current(&connection.id, None).await.is_ok());
    assert_eq!(world.hubspot.ledger().token_requests, 0);
}

#[tokio::test]
async fn an_answer_that_comes_after_its_lease_has_ended_serves_nobody_before_it_is_stored() {
    let world = Arc::new(World::new().await);
    let (store, vault) = world.store().await;
    let away = Arc::new(AtomicBool::new(false));
    let (moved, gone, stopped) = (world.clone(), away.clone(), AtomicBool::new(false));
    let store = Steps::watched(store, move |step, _| {
        if step == "land" && !stopped.swap(true, Ordering::SeqCst) {
            // The process was stopped with the answer in its hand.
            moved.pass(LEASE + Duration::from_secs(1));
            gone.store(true, Ordering::SeqCst);
        }
        if gone.load(Ordering::SeqCst) {
            return Err(steps::gone(false));
        }
        Ok(())
    });
    let keeper = world::keeper(world.app(), store, vault, world.clock.clone());
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    // Somebody else may have stored another set as version 2 by now.
    let error = keeper.current(&connection.id, None).await.unwrap_err();
    assert!(matches!(error, KeepError::StoreUnavailable { .. }), "{error:?}");
    away.store(false, Ordering::SeqCst);
    let token = keeper.current(&connection.id, None).await.unwrap();
    assert_eq!(token.version, Version::new(2));
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
}

#[tokio::test]
async fn what_is_in_hand_past_its_lease_serves_nobody_before_the_store_says_that_it_counts() {
    let world = Arc::new(World::new().await);
    let (store, vault) = world.store().await;
    let (refuses, stopped) = (Arc::new(AtomicBool::new(true)), AtomicBool::new(false));
    let (moved, writes) = (world.clone(), refuses.clone());
    let store = Steps::watched(store, move |step, _| {
        if !matches!(step, "land" | "renew_lease") || !writes.load(Ordering::SeqCst) {
            return Ok(());
        }
        if !stopped.swap(true, Ordering::SeqCst) {
            moved.pass(LEASE + Duration::from_secs(1));
        }
        Err(steps::gone(false))
    });
    let keeper = world::keeper(world.app(), store, vault, world.clock.clone());
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    // Reading shows version 1 still; whoever has the lease now may be about to store another version 2.
    let error = keeper.current(&connection.id, None).await.unwrap_err();
    assert!(matches!(error, KeepError::StoreUnavailable { .. }), "{error:?}");
    refuses.store(false, Ordering::SeqCst);
    let token = keeper.current(&connection.id, None).await.unwrap();
    assert_eq!(token.version, Version::new(2));
    assert_redeemed_once(&world.hubspot);
}

#[tokio::test]
async fn what_a_refresh_that_was_asked_for_reports_is_served_from_then_on() {
    let world = World::new().await;
    let (first, second) = (world.keeper().await, world.keeper().await);
    let connection = world.connected(&first).await;
    first.current(&connection.id, None).await.unwrap();
    second
        .refresh(&connection.id, None, Renewal::Forced)
        .await
        .unwrap();
    let report = first.refresh(&connection.id, None, Renewal::IfOld).await.unwrap();
    let token = first.current(&connection.id, None).await.unwrap();
    assert_eq!(
        (report.version, token.version),
        (Version::new(2), Version::new(2))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_was_overtaken_while_it_was_stopped_uses_what_is_stored() {
    let world = Arc::new(World::new().await);
    let other = world.keeper().await;
    let connection = world.connected(&other).await;
    let (store, vault) = world.store().await;
    let (moved, overtakes, id) = (world.clone(), other.clone(), connection.id.clone());
    let store = Steps::watched(store, move |step, moment| {
        if (step, moment) == ("give_up", Moment::After) {
            moved.pass(LEASE + Duration::from_secs(1));
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    let runtime = tokio::runtime::Runtime::new().unwrap();
                    let refreshed = overtakes.refresh(&id, None, Renewal::Forced);
                    assert!(runtime.block_on(refreshed).unwrap().redeemed);
                });
            });
        }
        Ok(())
    });
    let keeper = world::keeper(world.app(), store, vault, world.clock.clone());
    world.pass(PAST_EXPIRY);
    world.hubspot.arm(Fault::token(FaultKind::Locked));
    let token = keeper.current(&connection.id, None).await.unwrap();
    assert_eq!(token.version, Version::new(2));
    assert_redeemed_once(&world.hubspot);
}
