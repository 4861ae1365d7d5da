//! A process that dies between any two steps of a refresh loses nothing.
//!
//! The test starts itself again as a process of its own, which redeems one refresh token and kills itself with SIGKILL at its
//! n-th step at the store; the test then goes on as the process that comes after it. The wire's steps are covered by holding
//! the answer at the provider and killing from outside.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use evergrant_domain::{ConnectionId, ReconnectReason, Rotation};
use evergrant_keeper::{KeepError, SystemClock};
use hubspot_sim::{Fault, FaultKind};

use crate::steps::Steps;
use crate::world::{self, PAST_EXPIRY, World};

const GRACE: Duration = Duration::from_secs(3600);

/// The process that is going to die: everything comes by environment. Without it this is the run that does not crash.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_of_a_process_of_its_own_goes_through_all_its_steps() {
    let world;
    let (base, database, key) = if let Ok(base) = std::env::var("CRASH_BASE") {
        (
            base,
            std::env::var("CRASH_DATABASE").unwrap().into(),
            std::env::var("CRASH_KEY").unwrap(),
        )
    } else {
        world = World::new().await;
        let keeper = world.keeper().await;
        world.connected(&keeper).await;
        world.hubspot.expire_access_tokens(world::HUB);
        (world.hubspot.base_url(), world.database(), world.key().to_owned())
    };
    let dies_at: usize = std::env::var("CRASH_AT").map_or(usize::MAX, |at| at.parse().unwrap());
    let mut app = world::app(&base);
    app.provider.rotation = match std::env::var("CRASH_ROTATION").as_deref() {
        Ok("single_use") => Rotation::SingleUse,
        Ok("grace") => Rotation::Grace(GRACE),
        _ => Rotation::Never,
    };
    let (store, vault) = world::open(&database, &key).await;
    let step = Arc::new(AtomicUsize::new(0));
    let counted = step.clone();
    let store = Steps::watched(store, move |name, moment| {
        let now = counted.fetch_add(1, Ordering::SeqCst);
        eprintln!("step {now}: {moment:?} {name}");
        if now == dies_at {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
        Ok(())
    });
    let keeper = world::keeper(app, store, vault, Arc::new(SystemClock));
    let id = ConnectionId::parse("c1").unwrap();
    let report = keeper
        .refresh(&id, None, evergrant_keeper::Renewal::Forced)
        .await
        .unwrap();
    assert!(report.redeemed);
    println!("steps taken: {}", step.load(Ordering::SeqCst));
    assert!(
        step.load(Ordering::SeqCst) > 8,
        "held, claim, held, app state, lease, check, land, accept"
    );
}

fn process(world: &World, rotation: &str, dies_at: usize) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "--nocapture",
            "crash::a_refresh_of_a_process_of_its_own_goes_through_all_its_steps",
        ])
        .env("CRASH_BASE", world.hubspot.base_url())
        .env("CRASH_DATABASE", world.database())
        .env("CRASH_KEY", world.key())
        .env("CRASH_ROTATION", rotation)
        .env("CRASH_AT", dies_at.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Kills the refresh at every one of its steps in turn, until one run goes through; what the process after it finds.
async fn check(rotation: hubspot_sim::Rotation, kind: &str, own: Rotation, may_be_lost: bool) {
    let mut lost = Vec::new();
    let mut dies_at = 0;
    loop {
        let world = World::with(rotation).await;
        let mut app = world.app();
        app.provider.rotation = own;
        let keeper = world.keeper_of(app.clone()).await;
        let connection = world.connected(&keeper).await;
        let mut command = process(&world, kind, dies_at);
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let last_step = log
            .lines()
            .rfind(|line| line.starts_with("step "))
            .unwrap_or_default()
            .to_owned();

        // The process that comes after it, when the old access token has ended and nothing is on its way any more.
        world.pass(PAST_EXPIRY);
        let after = world.keeper_of(app).await;
        match after.current(&connection.id, None).await {
            Ok(token) => assert!(
                world.accepts(&token.access_token).await,
                "{kind}, died at {last_step}"
            ),
            Err(KeepError::ReconnectRequired {
                reason: ReconnectReason::RedemptionOutcomeLost,
                ..
            }) if may_be_lost => {
                lost.push(last_step.clone());
            }
            Err(error) => panic!("{kind}, died at {last_step}: {error:?}"),
        }
        let ledger = world.hubspot.ledger();
        assert!(
            ledger.grant_overlaps_max <= 1,
            "{kind}, died at {last_step}: {ledger:?}"
        );
        if matches!(own, Rotation::Never | Rotation::SingleUse) {
            assert_eq!(ledger.replays, 0, "{kind}, died at {last_step}: {ledger:?}");
        }
        if output.status.success() {
            break;
        }
        dies_at += 1;
    }
    assert!(
        dies_at > 8,
        "{kind}: the crashes went through the whole refresh: {dies_at}"
    );
    // Between the provider's answer and the commit nothing else stands: the floor that PROTOCOL names.
    assert!(
        lost.iter().all(|step| step.ends_with("Before land")),
        "{kind}: lost at {lost:?}"
    );
    assert_eq!(lost.is_empty(), !may_be_lost, "{kind}: {lost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_refresh_tokens_never_rotate_no_crash_loses_anything() {
    check(hubspot_sim::Rotation::Never, "never", Rotation::Never, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_an_old_refresh_token_has_grace_no_crash_loses_anything() {
    check(
        hubspot_sim::Rotation::Grace(GRACE),
        "grace",
        Rotation::Grace(GRACE),
        false,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_refresh_tokens_are_single_use_only_a_crash_between_answer_and_commit_loses_one_and_says_so() {
    check(
        hubspot_sim::Rotation::Always,
        "single_use",
        Rotation::SingleUse,
        true,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_while_the_provider_works_loses_nothing_that_can_be_kept() {
    for kind in [FaultKind::HoldBeforeIssue, FaultKind::HoldAfterIssue] {
        let world = World::new().await;
        let keeper = world.keeper().await;
        let connection = world.connected(&keeper).await;
        world.hubspot.arm(Fault::token(kind.clone()));
        let mut child = process(&world, "never", usize::MAX).spawn().unwrap();
        world.hubspot.wait_for_held(1).await;
        child.kill().unwrap();
        child.wait().unwrap();
        world.hubspot.release_held();
        // The dead process's lease is free at once.
        world.pass(PAST_EXPIRY);
        let token = keeper.current(&connection.id, None).await.unwrap();
        assert!(world.accepts(&token.access_token).await, "{kind:?}");
        let events = keeper.store().events(&connection.id, 10).await.unwrap();
        assert!(
            events.iter().any(|event| event.kind == "lease_taken_over"),
            "{kind:?}: {events:?}"
        );
    }
}
