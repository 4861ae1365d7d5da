//! Turns and renewed leases: PROTOCOL rules 5 and 6.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use evergrant_domain::ConnectionId;
use evergrant_domain::redemption::{LEASE, LEASE_MAX};
use evergrant_keeper::{KeepError, Keeper};
use evergrant_store::coordination::{Guard, Turn};
use evergrant_store::{ByLease, Coordination, Store};
use parking_lot::Mutex;

use crate::stage::{ISSUES, Reply, Stage};
use crate::steps::{Moment, Steps, gone};

/// When each step of this name began, in whole seconds.
type Times = Arc<Mutex<Vec<u64>>>;

/// A store that notes when `noted` begins, and fails `failing` while it says so.
fn watched(
    stage: &Arc<Stage>,
    process: &str,
    noted: &'static str,
    failing: &'static str,
    fails: impl Fn() -> bool + Send + Sync + 'static,
) -> (Arc<dyn Store>, Times) {
    let times = Times::default();
    let store = Steps::watched(stage.store(process), {
        let (stage, times) = (stage.clone(), times.clone());
        move |step, moment| {
            if moment == Moment::Before && step == noted {
                times.lock().push(stage.elapsed().as_secs());
            }
            if moment == Moment::Before && step == failing && fails() {
                return Err(gone(false));
            }
            Ok(())
        }
    });
    (store, times)
}

fn ask(keeper: &Keeper, id: &ConnectionId) -> tokio::task::JoinHandle<Result<(), KeepError>> {
    let (keeper, id) = (keeper.clone(), id.clone());
    tokio::spawn(async move { keeper.current(&id, None).await.map(drop) })
}

/// One process holds an answer that its store does not take for so many seconds, and another one asks meanwhile. How often the
/// refresh token is presented, and when the lease was renewed.
async fn afloat_for(seconds: u64) -> (usize, Vec<u64>) {
    let stage = Arc::new(Stage::raise());
    let until = stage.clone();
    let fails = move || until.elapsed() < Duration::from_secs(seconds);
    let (store, renewals) = watched(&stage, "first", "renew_lease", "land", fails);
    let first = stage.keeper_on(store, Arc::new(ByLease));
    let second = stage.keeper("second");
    let id = stage.ended(&**second.store(), "c1").await;
    let caller = ask(&first, &id);
    stage.until(LEASE.as_secs_f64() - 1.0).await;
    let other = ask(&second, &id);
    caller.await.unwrap().unwrap();
    other.await.unwrap().unwrap();
    first.shutdown().await;
    let renewals = renewals.lock().clone();
    (stage.presented().len(), renewals)
}

#[tokio::test(start_paused = true)]
async fn while_an_answer_is_afloat_its_lease_is_renewed_and_nobody_presents_again() {
    let (presented, renewals) = afloat_for(45).await;
    assert_eq!(presented, 1);
    assert_eq!(renewals, [10, 20, 30]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_up_to_its_cap_and_no_longer() {
    let (presented, renewals) = afloat_for(90).await;
    assert_eq!(
        presented, 2,
        "the provider never rotates: the other one may go on"
    );
    let last = *renewals.last().unwrap();
    assert!(last <= LEASE_MAX.as_secs() - LEASE.as_secs() + 10, "{renewals:?}");
}

/// One redemption whose first renewal fails: how often a lease was taken, and how often the refresh token was presented.
async fn with_a_failing_renewal(reply: Reply) -> (Vec<u64>, usize) {
    let stage = Arc::new(Stage::raise());
    stage.answers(reply);
    let failed = AtomicBool::new(false);
    let fails = move || !failed.swap(true, Ordering::SeqCst);
    let (store, leases) = watched(&stage, "first", "take_lease", "renew_lease", fails);
    let keeper = stage.keeper_on(store, Arc::new(ByLease));
    let id = stage.ended(&**keeper.store(), "c1").await;
    let caller = ask(&keeper, &id);
    stage.until(11.0).await;
    stage.answers(ISSUES);
    caller.await.unwrap().unwrap();
    let leases = leases.lock().clone();
    (leases, stage.presented().len())
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_before_the_first_byte_aborts() {
    let slow_to_connect = Reply {
        connects_after: Duration::from_secs(12),
        ..ISSUES
    };
    let (leases, presented) = with_a_failing_renewal(slow_to_connect).await;
    assert_eq!(leases.len(), 2, "stepped back, and began anew: {leases:?}");
    assert_eq!(presented, 1);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_after_the_first_byte_changes_nothing() {
    let slow_to_answer = Reply {
        after: Duration::from_secs(12),
        ..ISSUES
    };
    let (leases, presented) = with_a_failing_renewal(slow_to_answer).await;
    assert_eq!(leases, [0], "the answer was waited for");
    assert_eq!(presented, 1);
}

/// Who waits, and what each turn comes to.
#[derive(Default)]
struct Noted {
    mine: bool,
    asked: AtomicUsize,
    kept: Arc<AtomicBool>,
}

#[async_trait]
impl Coordination for Noted {
    async fn turn(&self, _id: &ConnectionId, patience: Duration) -> Turn {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if !self.mine {
            tokio::time::sleep(patience).await;
            return Turn::NotYet;
        }
        self.kept.store(true, Ordering::SeqCst);
        let kept = self.kept.clone();
        Turn::Mine(Guard::new(move || kept.store(false, Ordering::SeqCst)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_kept_until_the_redemption_has_ended() {
    let stage = Stage::raise();
    let turns = Arc::new(Noted {
        mine: true,
        ..Noted::default()
    });
    let kept = turns.kept.clone();
    let seen: Arc<Mutex<Vec<(&str, bool)>>> = Arc::default();
    let store = Steps::watched(stage.store("first"), {
        let (kept, seen) = (kept.clone(), seen.clone());
        move |step, moment| {
            if moment == Moment::Before && ["take_lease", "lease_lasts", "land"].contains(&step) {
                seen.lock().push((step, kept.load(Ordering::SeqCst)));
            }
            Ok(())
        }
    });
    let keeper = stage.keeper_on(store, turns);
    let id = stage.ended(&**keeper.store(), "c1").await;
    keeper.current(&id, None).await.unwrap();
    let seen = seen.lock().clone();
    assert_eq!(
        seen,
        [("take_lease", true), ("lease_lasts", true), ("land", true)]
    );
    assert!(!kept.load(Ordering::SeqCst), "and given back then");
}

#[tokio::test(start_paused = true)]
async fn without_a_turn_nothing_is_redeemed_and_what_moved_meanwhile_is_used() {
    let stage = Stage::raise();
    let other = stage.keeper("other");
    let waits = Arc::new(Noted::default());
    let keeper = stage.keeper_on(stage.store("first"), waits.clone());
    let id = stage.ended(&**other.store(), "c1").await;
    let gave_up = keeper.current(&id, None).await.unwrap_err();
    assert!(matches!(gave_up, KeepError::Overloaded { .. }), "{gave_up:?}");
    assert!(
        waits.asked.load(Ordering::SeqCst) > 10,
        "it looked again every now and then"
    );
    assert_eq!(stage.presented().len(), 0);
    // The flight ends a little later than its first caller.
    stage.until(60.0).await;
    let began = stage.elapsed();
    let caller = ask(&keeper, &id);
    stage.until(began.as_secs_f64() + 1.0).await;
    other.current(&id, None).await.unwrap();
    caller.await.unwrap().unwrap();
    assert!(stage.elapsed() < began + Duration::from_secs(4));
    assert_eq!(stage.presented().len(), 1);
}
