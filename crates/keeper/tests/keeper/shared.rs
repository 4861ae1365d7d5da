//! Small work that the fleet shares: canaries, the breaker, the endpoint's budget. Two keepers on one store, as two processes.

use std::time::Duration;

use evergrant_domain::redemption::EXCHANGES_PER_SECOND;
use evergrant_domain::refresh_policy::Jitter;
use evergrant_domain::{Connection, ConnectionId, KeepFresh, Version};
use evergrant_keeper::{KeepError, Keeper};
use evergrant_store::contract::DueQuery;
use futures_util::future::join_all;
use hubspot_sim::{Fault, FaultKind, Rotation};

use crate::stage::{ISSUES, Reply, Stage};
use crate::world::{CLIENT, HUB, PAST_EXPIRY, World};

/// A world with two keepers and so many connections, each of which has refreshed before.
async fn fleet(world: &World, connections: u64) -> ([Keeper; 2], Vec<Connection>) {
    let keepers = [world.keeper().await, world.keeper().await];
    let mut connected = Vec::new();
    for n in 0..connections {
        connected.push(world.connected_as(&keepers[0], &format!("c{n}"), HUB + n).await);
    }
    world.pass(PAST_EXPIRY);
    for connection in &connected {
        keepers[0].current(&connection.id, None).await.unwrap();
    }
    world.pass(PAST_EXPIRY);
    (keepers, connected)
}

/// Asks both keepers for every connection.
async fn ask(keepers: &[Keeper], connections: &[Connection]) -> Vec<Result<Version, KeepError>> {
    let mut answers = Vec::new();
    for keeper in keepers {
        for connection in connections {
            let answer = keeper.current(&connection.id, None).await;
            answers.push(answer.map(|token| token.version));
        }
    }
    answers
}

/// One of them is let through, and the provider answers it.
async fn succeeds(keepers: &[Keeper], connections: &[Connection]) {
    for connection in connections {
        if keepers[0].current(&connection.id, None).await.is_ok() {
            return;
        }
    }
    panic!("nobody was let through");
}

/// The first success clears what was known against the app, for everybody. That is noted behind whoever waited for it.
async fn all_clear(keepers: &[Keeper], connections: &[Connection]) {
    let known = || async {
        let state = keepers[1].store().app_state(&connections[0].app).await.unwrap();
        state.endpoint.is_some() || state.rejected.is_some()
    };
    while known().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let answers = ask(keepers, connections).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
}

/// Which connections were answered that the app's credentials are refused, by the provider itself.
async fn refused(keeper: &Keeper, connections: &[Connection]) -> Vec<usize> {
    let events = connections.iter().map(async |connection| {
        let events = keeper.store().events(&connection.id, 100).await.unwrap();
        let refusals = events.iter().filter(|event| event.kind == "refresh_failed");
        refusals.count()
    });
    join_all(events).await
}

async fn one_canary_in_the_fleet(world: World) {
    let (keepers, connections) = fleet(&world, 4).await;
    world.hubspot.set_client_secret(CLIENT, "another");
    for round in 1..=3 {
        for answer in ask(&keepers, &connections).await {
            assert!(
                matches!(answer, Err(KeepError::AppCredentialsRejected { .. })),
                "{answer:?}"
            );
        }
        assert_eq!(world.hubspot.ledger().client_refusals, round);
        world.pass(Duration::from_secs(31));
    }
    // The first was no canary yet; the two that were are not the same.
    let refused = refused(&keepers[0], &connections).await;
    assert_eq!(refused.iter().sum::<usize>(), 3);
    assert!(
        refused.iter().filter(|times| **times > 0).count() >= 2,
        "{refused:?}"
    );
    // One success clears it for everybody.
    world.hubspot.set_client_secret(CLIENT, "sim-secret");
    succeeds(&keepers, &connections).await;
    all_clear(&keepers, &connections).await;
    assert_eq!(world.hubspot.ledger().client_refusals, 3);
}

#[tokio::test]
async fn while_credentials_are_refused_one_canary_in_the_fleet_looks_each_time_for_another_connection() {
    one_canary_in_the_fleet(World::new().await).await;
}

#[tokio::test]
async fn one_canary_looks_for_a_fleet_on_postgresql_too() {
    one_canary_in_the_fleet(World::on_postgres(Rotation::Never).await).await;
}

async fn one_probe_in_the_fleet(world: World) {
    let (keepers, connections) = fleet(&world, 8).await;
    let serving = world.connected_as(&keepers[0], "serving", 99).await;
    let before = world.hubspot.ledger().token_requests;
    let requests = || world.hubspot.ledger().token_requests - before;
    let down = FaultKind::Status {
        code: 503,
        location: None,
    };
    world.hubspot.arm(Fault::token(down).times(0));
    let unavailable = |answers: Vec<Result<Version, KeepError>>| {
        for answer in answers {
            assert!(
                matches!(answer, Err(KeepError::ProviderUnavailable { .. })),
                "{answer:?}"
            );
        }
    };
    unavailable(ask(&keepers, &connections).await);
    assert_eq!(
        requests(),
        5,
        "enough to know that it is not about one connection"
    );
    // What still serves goes on serving.
    assert!(keepers[1].current(&serving.id, None).await.is_ok());
    world.pass(Duration::from_secs(61));
    unavailable(ask(&keepers, &connections).await);
    assert_eq!(requests(), 6, "one probe in the fleet, and it failed");
    world.hubspot.clear_faults();
    world.pass(Duration::from_secs(61));
    // While the next one is with the provider, nobody else tries.
    world.hubspot.arm(Fault::token(FaultKind::HoldBeforeIssue));
    let probe = tokio::spawn({
        let (keeper, id) = (keepers[1].clone(), connections[7].id.clone());
        async move { keeper.current(&id, None).await.map(drop) }
    });
    world.hubspot.wait_for_held(1).await;
    unavailable(ask(&keepers, &connections[..7]).await);
    assert_eq!(requests(), 7);
    world.hubspot.release_held();
    probe.await.unwrap().unwrap();
    // The other process remembers for a second what it was told.
    world.pass(Duration::from_secs(2));
    all_clear(&keepers, &connections).await;
}

#[tokio::test]
async fn an_endpoint_that_fails_for_everybody_is_left_alone_and_one_probe_finds_out_when_it_works() {
    one_probe_in_the_fleet(World::new().await).await;
}

#[tokio::test]
async fn one_probe_finds_out_for_a_fleet_on_postgresql_too() {
    one_probe_in_the_fleet(World::on_postgres(Rotation::Never).await).await;
}

#[tokio::test]
async fn a_pause_that_the_provider_asks_for_holds_for_the_whole_fleet() {
    let world = World::new().await;
    let (keepers, connections) = fleet(&world, 3).await;
    let before = world.hubspot.ledger().token_requests;
    world.hubspot.arm(Fault::token(FaultKind::RateLimited {
        policy: hubspot_sim::RateLimitPolicy::TenSecondly,
        retry_after: Some(40),
    }));
    for answer in ask(&keepers, &connections).await {
        let Err(KeepError::ProviderUnavailable { retry_after, .. }) = answer else {
            panic!("{answer:?}")
        };
        assert!(retry_after.as_secs().abs_diff(40) <= 1, "{retry_after:?}");
    }
    assert_eq!(world.hubspot.ledger().token_requests - before, 1);
    world.pass(Duration::from_secs(41));
    succeeds(&keepers, &connections).await;
    all_clear(&keepers, &connections).await;
}

/// The places of these in the order in which refresh tokens were presented.
fn places(stage: &Stage, names: &[&ConnectionId]) -> Vec<usize> {
    let presented = stage.presented();
    let place = |id: &&ConnectionId| presented.iter().position(|seen| seen.token == id.as_str());
    names.iter().filter_map(place).collect()
}

#[tokio::test(start_paused = true)]
async fn callers_at_the_hard_end_go_before_work_that_nobody_waits_for() {
    let stage = Stage::raise();
    let keeper = stage.keeper("one");
    let store = &**keeper.store();
    let mut behind = Vec::new();
    for n in 0..200 {
        let soft = Duration::from_secs(1600);
        behind.push(
            stage
                .connect(store, &format!("soft{n}"), soft, Jitter::NONE)
                .await,
        );
    }
    let urgent = stage.ended(store, "urgent").await;
    stage.answers(Reply {
        after: Duration::from_secs(1),
        ..ISSUES
    });
    for id in &behind {
        keeper.current(id, None).await.unwrap();
    }
    stage.until(0.5).await;
    // One that came late, and one that stood at the very end when somebody began to wait for it.
    let hurried = behind.last().unwrap();
    let long = Some(Duration::from_secs(900));
    let (one, other) = tokio::join!(keeper.current(&urgent, None), keeper.current(hurried, long));
    assert!(one.is_ok() && other.is_ok());
    let places = places(&stage, &[&urgent, hurried]);
    assert!(
        places.len() == 2 && places.iter().all(|place| *place < 70),
        "{places:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_spread_over_the_endpoints_budget() {
    let stage = Stage::raise();
    let keepers = [stage.keeper("one"), stage.keeper("other")];
    let mut ids = Vec::new();
    for n in 0..2 * EXCHANGES_PER_SECOND + 100 {
        ids.push(stage.ended(&**keepers[0].store(), &format!("c{n}")).await);
    }
    let began = stage.elapsed();
    let calls = ids
        .iter()
        .enumerate()
        .map(|(n, id)| keepers[n % 2].current(id, None));
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    let mut each_second = std::collections::BTreeMap::new();
    for presented in stage.presented() {
        *each_second
            .entry(presented.at.saturating_sub(began).as_secs())
            .or_insert(0) += 1;
    }
    assert!(each_second.len() >= 3, "{each_second:?}");
    assert!(
        each_second
            .values()
            .all(|count| *count <= EXCHANGES_PER_SECOND + 64),
        "{each_second:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn when_a_whole_fleet_is_due_at_once_nothing_comes_later_than_its_own_hard_end() {
    const CONNECTIONS: u32 = 10_000;
    let stage = Stage::raise();
    let keeper = stage.keeper("one");
    stage.answers(Reply {
        after: Duration::from_millis(200),
        ..ISSUES
    });
    // Their soft end is now, their hard end in five minutes: together they take a good minute of it.
    for n in 0..CONNECTIONS {
        let age = Duration::from_secs(1500);
        stage
            .connect(&**keeper.store(), &format!("c{n}"), age, Jitter::NONE)
            .await;
    }
    keeper.start();
    let began = stage.elapsed().as_secs_f64();
    stage.until(began + 20.0).await;
    // A caller whose token has ended does not stand in line behind all that.
    let urgent = stage.ended(&**keeper.store(), "urgent").await;
    let asked = stage.elapsed();
    keeper.current(&urgent, None).await.unwrap();
    assert!(stage.elapsed() < asked + Duration::from_secs(1));
    stage.until(began + 290.0).await;
    let presented = stage.presented();
    let mut once: Vec<_> = presented.iter().map(|seen| seen.token.clone()).collect();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), presented.len(), "each of them once");
    assert_eq!(presented.len(), CONNECTIONS as usize + 1, "all of them in time");
    keeper.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_process_that_has_enough_in_line_leaves_the_rest_to_others() {
    const CONNECTIONS: u32 = 6000;
    let stage = Stage::raise();
    let keeper = stage.keeper("one");
    let store = stage.store("other");
    stage.answers(Reply {
        after: Duration::from_secs(10),
        ..ISSUES
    });
    for n in 0..CONNECTIONS {
        stage.ended(&*store, &format!("c{n}")).await;
    }
    let began = stage.elapsed().as_secs_f64();
    keeper.start();
    stage.until(began + 20.0).await;
    let left = DueQuery {
        now: keeper.clock().now(),
        apps: vec![(stage.app.name.clone(), None)],
        limit: CONNECTIONS,
        push: Duration::from_secs(30),
    };
    let left = store.claim_due(left).await.unwrap().len();
    assert!(left > 4000, "{left} are left to others");
    keeper.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn that_an_endpoint_works_again_is_known_elsewhere_with_the_next_look_at_the_feed() {
    let mut stage = Stage::raise();
    stage.app.keep_fresh = KeepFresh::Off;
    let [one, other] = ["one", "other"].map(|process| stage.keeper(process));
    let mut ids = Vec::new();
    for n in 0..7 {
        ids.push(stage.ended(&**one.store(), &format!("c{n}")).await);
    }
    one.start();
    other.start();
    stage.answers(Reply {
        status: 503,
        ..ISSUES
    });
    for id in &ids[..5] {
        assert!(one.current(id, None).await.is_err());
    }
    let opened = stage.elapsed().as_secs_f64();
    stage.until(opened + 2.0).await;
    stage.answers(Reply {
        after: Duration::from_millis(300),
        ..ISSUES
    });
    let probe = tokio::spawn({
        let (one, id) = (one.clone(), ids[5].clone());
        async move { one.current(&id, None).await.is_ok() }
    });
    stage.until(opened + 2.1).await;
    assert!(
        other.current(&ids[6], None).await.is_err(),
        "one probe is under way"
    );
    assert!(probe.await.unwrap());
    stage.until(opened + 2.95).await;
    assert!(other.current(&ids[6], None).await.is_ok());
}
