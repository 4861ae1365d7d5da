//! Who waits, for how long, and that no window ever holds too much.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use evergrant_domain::ConnectionId;
use evergrant_domain::app::Dialect;
use evergrant_domain::call_budget::{Lane, Limit, Setting};
use evergrant_gateway::RefusalKind;
use evergrant_keeper::KeepError;
use evergrant_store::contract::Revoke;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::fleet::{Ask, Fleet, SEARCH, exhausted, status};
use crate::provider::{Provider, says};

const TEN_SECONDS: Duration = Duration::from_secs(10);

/// Uses up what there is: the budget is known, and no call is left of it.
async fn used_up(calls: u32) -> Fleet {
    let fleet = Fleet::of(1, Provider::counting(calls as usize, TEN_SECONDS)).await;
    for _ in 0..calls {
        let ask = Ask {
            lane: Some("interactive"),
            ..Ask::default()
        };
        assert_eq!(status(&fleet.call(ask).await), 200);
    }
    fleet
}

/// As many jobs as there are, by workers that put back what is refused.
async fn replay(fleet: &Fleet, jobs: usize, at_a_time: usize) -> Duration {
    let left = Arc::new(Mutex::new(jobs));
    let workers: Vec<_> = fleet
        .processes
        .iter()
        .flat_map(|process| std::iter::repeat_n(process, at_a_time))
        .map(|process| {
            let (process, left) = (process.clone(), left.clone());
            tokio::spawn(async move {
                while take(&left) {
                    loop {
                        let ask = Ask {
                            lane: Some("backfill"),
                            ..Ask::default()
                        };
                        match process.call(ask).await {
                            Ok(answer) if answer.response.status() == 200 => break,
                            Ok(answer) => panic!("{}", answer.response.status()),
                            refused => sleep(exhausted(&refused).0).await,
                        }
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    fleet.elapsed()
}

fn take(left: &Mutex<usize>) -> bool {
    let mut left = left.lock();
    let any = *left > 0;
    *left = left.saturating_sub(1);
    any
}

#[tokio::test(start_paused = true)]
async fn a_backlog_of_sixteen_workers_gets_no_429_from_the_provider() {
    let fleet = Fleet::of(16, Provider::counting(110, TEN_SECONDS)).await;
    let took = replay(&fleet, 5000, 4).await;
    assert_eq!(fleet.provider.refusals(), 0);
    assert!(fleet.provider.most_within(TEN_SECONDS) <= 110);
    // A backfill may fill four fifths of a window, and each call counts for a second more than that is long.
    let best = Duration::from_secs(5000 * 11 / 88);
    assert!(took < best.mul_f64(1.15), "{took:?} instead of {best:?}");
    let claims = fleet.claims_made();
    println!("5,000 calls in {took:?}, {claims} claims");
    assert!(claims < 5000, "{claims} claims for 5,000 calls");
}

#[tokio::test(start_paused = true)]
async fn two_processes_together_stay_below_the_limit_in_every_window() {
    let fleet = Fleet::of(2, Provider::counting(20, TEN_SECONDS)).await;
    let mut calls = Vec::new();
    for n in 0..300_u64 {
        // In bursts of different sizes.
        if n % 7 == 0 {
            sleep(Duration::from_millis(n * 37 % 900)).await;
        }
        let ask = Ask {
            lane: Some("interactive"),
            max_wait: Some(60),
            ..Ask::default()
        };
        calls.push(fleet.processes[usize::try_from(n % 2).unwrap()].spawn(ask));
    }
    let mut served = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(answer) => {
                assert_eq!(answer.response.status(), 200);
                served += 1;
            }
            refused => assert!(exhausted(&refused).0 > Duration::ZERO),
        }
    }
    assert!(served >= 120, "{served}");
    assert_eq!(fleet.provider.refusals(), 0);
    assert!(fleet.provider.most_within(TEN_SECONDS) <= 20);
}

#[tokio::test(start_paused = true)]
async fn calls_with_budget_in_hand_ask_no_store() {
    let fleet = Fleet::of(1, Provider::counting(1000, TEN_SECONDS)).await;
    for _ in 0..100 {
        assert_eq!(status(&fleet.call(Ask::default()).await), 200);
    }
    // In three seconds, of which each needs a slice or two.
    let claims = fleet.claims_made();
    assert!(claims <= 12, "{claims} claims");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_served_in_time_is_refused_at_once() {
    let fleet = used_up(5).await;
    let began = Instant::now();
    let refused = fleet
        .call(Ask {
            max_wait: Some(3),
            ..Ask::default()
        })
        .await;
    let (retry_after, policy) = exhausted(&refused);
    assert!(
        began.elapsed() < Duration::from_millis(1),
        "{:?}",
        began.elapsed()
    );
    assert!((8..=11).contains(&retry_after.as_secs()), "{retry_after:?}");
    assert_eq!(policy, "TEN_SECONDLY_ROLLING");
    assert_eq!(fleet.provider.arrived().len(), 5);
    // The next one is refused without asking the store.
    let claims = fleet.claims_made();
    let again = Ask {
        max_wait: Some(0),
        ..Ask::default()
    };
    exhausted(&fleet.call(again).await);
    assert_eq!(fleet.claims_made(), claims);
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_as_long_as_it_may_and_says_how_long_it_did() {
    let fleet = used_up(5).await;
    let began = Instant::now();
    let answer = fleet
        .call(Ask {
            max_wait: Some(15),
            lane: Some("interactive"),
            ..Ask::default()
        })
        .await
        .unwrap();
    let waited = began.elapsed();
    assert!((10..=12).contains(&waited.as_secs()), "{waited:?}");
    assert_eq!(answer.response.status(), 200);
    let said = answer.record.budget_wait.unwrap();
    assert!(
        waited.saturating_sub(said) < Duration::from_millis(100),
        "{said:?} of {waited:?}"
    );
    let timing = answer.response.headers()["server-timing"].to_str().unwrap();
    assert!(timing.contains("budget;dur=1"), "{timing}");
}

#[tokio::test(start_paused = true)]
async fn whoever_is_too_far_back_in_the_queue_is_refused_and_nobody_waits_longer_than_it_may() {
    let fleet = used_up(5).await;
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let ask = Ask {
                max_wait: Some(12),
                lane: Some("interactive"),
                ..Ask::default()
            };
            let process = fleet.processes[0].clone();
            tokio::spawn(async move {
                let began = Instant::now();
                (process.call(ask).await, began.elapsed())
            })
        })
        .collect();
    let (mut served, mut at_once) = (0, 0);
    for call in calls {
        let (result, took) = call.await.unwrap();
        assert!(took <= Duration::from_millis(12_100), "{took:?}");
        match result {
            Ok(_) => served += 1,
            refused => {
                exhausted(&refused);
                at_once += usize::from(took < Duration::from_millis(1));
            }
        }
    }
    assert_eq!(served, 5);
    assert!(at_once >= 30, "{at_once} refused at once");
}

#[tokio::test(start_paused = true)]
async fn the_urgent_overtake_and_keys_take_turns() {
    let fleet = used_up(20).await;
    let ask = |caller, lane| Ask {
        caller,
        lane: Some(lane),
        max_wait: Some(60),
        ..Ask::default()
    };
    let mut calls = Vec::new();
    for (caller, lane, times) in [
        ("bulk", "sync", 60),
        ("small", "sync", 3),
        ("person", "interactive", 3),
    ] {
        for _ in 0..times {
            calls.push(fleet.processes[0].spawn(ask(caller, lane)));
            tokio::task::yield_now().await;
        }
    }
    for call in calls {
        assert_eq!(status(&call.await.unwrap()), 200);
    }
    let order: Vec<_> = fleet.provider.arrived()[20..]
        .iter()
        .map(|call| call.caller.clone())
        .collect();
    let place = |caller: &str| order.iter().rposition(|other| other == caller).unwrap();
    assert!(place("person") < 4, "{order:?}");
    assert!(place("small") < 11, "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn a_key_s_lane_is_what_counts() {
    let fleet = used_up(10).await;
    let bulk = Ask {
        caller: "bulk",
        lane: Some("interactive"),
        key_lane: Some(Lane::Backfill),
        max_wait: Some(60),
        ..Ask::default()
    };
    let person = Ask {
        caller: "person",
        lane: None,
        key_lane: Some(Lane::Interactive),
        max_wait: Some(60),
        ..Ask::default()
    };
    let first: Vec<_> = (0..5).map(|_| fleet.processes[0].spawn(bulk.clone())).collect();
    sleep(Duration::from_millis(10)).await;
    let last = fleet.processes[0].spawn(person);
    status(&last.await.unwrap());
    for call in first {
        status(&call.await.unwrap());
    }
    assert_eq!(fleet.provider.arrived()[10].caller, "person");
}

#[tokio::test(start_paused = true)]
async fn the_least_urgent_are_served_beside_a_stream_of_the_urgent() {
    let fleet = used_up(20).await;
    let urgent: Vec<_> = (0..100)
        .map(|n| {
            let process = fleet.processes[0].clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(n * 400)).await;
                let ask = Ask {
                    lane: Some("interactive"),
                    max_wait: Some(60),
                    ..Ask::default()
                };
                let _ = process.call(ask).await;
            })
        })
        .collect();
    sleep(Duration::from_secs(5)).await;
    let backfill = Ask {
        lane: Some("backfill"),
        max_wait: Some(60),
        ..Ask::default()
    };
    assert_eq!(status(&fleet.call(backfill).await), 200);
    for call in urgent {
        call.await.unwrap();
    }
    assert_eq!(fleet.provider.refusals(), 0);
}

#[tokio::test(start_paused = true)]
async fn callers_that_hang_up_leave_the_queue_and_cost_nothing() {
    let fleet = used_up(5).await;
    let ask = || Ask {
        lane: Some("interactive"),
        max_wait: Some(15),
        ..Ask::default()
    };
    let gone: Vec<_> = (0..5).map(|_| fleet.processes[0].spawn(ask())).collect();
    sleep(Duration::from_millis(10)).await;
    for call in gone {
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
    }
    // Behind them it would not be its turn in this window.
    let calls: Vec<_> = (0..5).map(|_| fleet.processes[0].spawn(ask())).collect();
    for call in calls {
        assert_eq!(status(&call.await.unwrap()), 200);
    }
    assert_eq!(fleet.provider.arrived().len(), 10);
}

#[tokio::test(start_paused = true)]
async fn after_the_wait_the_connection_is_looked_at_again() {
    let fleet = used_up(5).await;
    let waiting = fleet.processes[0].spawn(Ask {
        lane: Some("interactive"),
        max_wait: Some(15),
        ..Ask::default()
    });
    sleep(Duration::from_secs(1)).await;
    let keeper = &fleet.processes[0].keeper;
    let id = ConnectionId::parse("c1").unwrap();
    keeper.disconnect(&id, Revoke::Never).await.unwrap();
    let refusal = waiting.await.unwrap().unwrap_err();
    assert!(
        matches!(refusal.kind, RefusalKind::Keep(KeepError::Disconnected)),
        "{refusal}"
    );
    assert_eq!(fleet.provider.arrived().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn searches_have_a_budget_of_their_own_over_all_apps() {
    // No headers on searches; six in a second are refused.
    let fleet = Fleet::of(2, Provider::counting(5, Duration::from_secs(1))).await;
    let ask = |connection| Ask {
        connection,
        method: "POST",
        path: SEARCH,
        lane: Some("interactive"),
        max_wait: Some(30),
        ..Ask::default()
    };
    let calls: Vec<_> = (0..40).map(|n| fleet.processes[n % 2].spawn(ask("c1"))).collect();
    for call in calls {
        assert_eq!(status(&call.await.unwrap()), 200);
    }
    assert!(fleet.provider.most_within(Duration::from_secs(1)) <= 5);
    let took = fleet.elapsed();
    assert!((8..=12).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn accounts_do_not_wait_for_each_other() {
    let fleet = used_up(5).await;
    let began = Instant::now();
    let other = Ask {
        connection: "c2",
        max_wait: Some(0),
        ..Ask::default()
    };
    // The provider counts both alike, Evergrant does not.
    status(&fleet.call(other).await);
    assert!(began.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn away_from_the_store_a_process_goes_on_with_half_of_its_share() {
    let fleet = Fleet::of(1, Provider::counting(100, TEN_SECONDS)).await;
    let call = async || {
        let ask = Ask {
            lane: Some("interactive"),
            max_wait: Some(60),
            ..Ask::default()
        };
        status(&fleet.call(ask).await)
    };
    while fleet.elapsed() < Duration::from_secs(30) {
        call().await;
    }
    fleet.claims.fail.store(true, Ordering::Relaxed);
    let (before, since) = (fleet.provider.arrived().len(), Instant::now());
    while since.elapsed() < Duration::from_secs(20) {
        call().await;
    }
    let meanwhile = fleet.provider.arrived().len() - before;
    assert!((60..=110).contains(&meanwhile), "{meanwhile} calls in 20 s");
    fleet.claims.fail.store(false, Ordering::Relaxed);
    for _ in 0..100 {
        call().await;
    }
    assert_eq!(fleet.provider.refusals(), 0);
    assert!(fleet.provider.most_within(TEN_SECONDS) <= 100);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_holds_calls_for_a_moment_and_then_no_more() {
    const MOMENT: Duration = Duration::from_millis(300);
    let fleet = Fleet::of(1, Provider::counting(100, TEN_SECONDS)).await;
    // Slower than the half of its share that it goes on with.
    let call = async || {
        let began = Instant::now();
        assert_eq!(status(&fleet.call(Ask::default()).await), 200);
        let took = began.elapsed();
        sleep(Duration::from_millis(150)).await;
        took
    };
    while fleet.elapsed() < Duration::from_secs(20) {
        call().await;
    }
    fleet.claims.hang.store(true, Ordering::Relaxed);
    let (hangs_since, mut held) = (Instant::now(), Vec::new());
    while hangs_since.elapsed() < Duration::from_secs(20) {
        let took = call().await;
        if took > Duration::from_millis(50) {
            held.push(took);
        }
        sleep(MOMENT).await;
    }
    assert!(
        held.len() <= 1 && held.iter().all(|took| *took < MOMENT),
        "{held:?}"
    );
    fleet.claims.hang.store(false, Ordering::Relaxed);
    let claims = fleet.claims_made();
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(20) {
        call().await;
    }
    // It is found to be back, and is asked for no more than it must be.
    let claims = fleet.claims_made() - claims;
    assert!((5..60).contains(&claims), "{claims} claims in 20 s");
    assert_eq!(fleet.provider.refusals(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_leaves_late_counts_when_it_leaves() {
    let fleet = Fleet::of(1, Provider::counting(6, TEN_SECONDS)).await;
    let write = |key| Ask {
        method: "POST",
        lane: Some("interactive"),
        max_wait: Some(60),
        guard: Some(key),
        ..Ask::default()
    };
    // The limit is known, and its window over.
    status(&fleet.call(Ask::default()).await);
    sleep(2 * TEN_SECONDS).await;
    fleet.claims.leaving_ms.store(4000, Ordering::Relaxed);
    let late: Vec<_> = ["a", "b", "c", "d", "e", "f"]
        .map(|key| fleet.processes[0].spawn(write(key)))
        .into_iter()
        .collect();
    sleep(Duration::from_secs(3)).await;
    fleet.claims.leaving_ms.store(0, Ordering::Relaxed);
    let next: Vec<_> = ["g", "h", "i", "j", "k", "l"]
        .map(|key| fleet.processes[0].spawn(write(key)))
        .into_iter()
        .collect();
    for call in late.into_iter().chain(next) {
        assert_eq!(status(&call.await.unwrap()), 200);
    }
    let most = fleet.provider.most_within(TEN_SECONDS);
    assert!(most <= 6, "{most} calls in ten seconds");
    assert_eq!(fleet.provider.refusals(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_once_more_counts_twice() {
    // Each call fails at first.
    let provider = Provider::new(|_, before| {
        let status = if before.len().is_multiple_of(2) { 500 } else { 200 };
        Ok((status, says(20, 19, TEN_SECONDS), String::new()))
    });
    let fleet = Fleet::of(1, provider).await;
    for _ in 0..30 {
        let ask = Ask {
            lane: Some("interactive"),
            max_wait: Some(60),
            ..Ask::default()
        };
        assert_eq!(status(&fleet.call(ask).await), 200);
    }
    // A repeat does not wait: the last one of a window may be too much.
    let most = fleet.provider.most_within(TEN_SECONDS);
    assert!(most <= 21, "{most}");
}

#[tokio::test(start_paused = true)]
async fn an_app_s_own_limit_counts_from_the_first_call_on() {
    let limit = |app: &mut evergrant_domain::App| {
        app.budget = Setting::AtMost(Limit {
            calls: 10,
            per: TEN_SECONDS,
        });
    };
    let fleet = Fleet::with(2, Provider::counting(110, TEN_SECONDS), limit).await;
    let calls: Vec<_> = (0..40)
        .map(|n| {
            fleet.processes[n % 2].spawn(Ask {
                lane: Some("interactive"),
                max_wait: Some(60),
                ..Ask::default()
            })
        })
        .collect();
    for call in calls {
        status(&call.await.unwrap());
    }
    assert!(fleet.provider.most_within(TEN_SECONDS) <= 10);
}

#[tokio::test(start_paused = true)]
async fn hubspot_s_word_for_the_limit_is_said_by_apps_of_hubspot_alone() {
    for (dialect, word) in [(Dialect::HubSpot, "TEN_SECONDLY_ROLLING"), (Dialect::Generic, "")] {
        let limit = |app: &mut evergrant_domain::App| {
            app.budget = Setting::AtMost(Limit {
                calls: 1,
                per: TEN_SECONDS,
            });
        };
        let generic = |app: &mut evergrant_domain::App| {
            app.provider.dialect = Dialect::Generic;
            app.budget = Setting::AtMost(Limit {
                calls: 1,
                per: TEN_SECONDS,
            });
        };
        let change: fn(&mut evergrant_domain::App) = match dialect {
            Dialect::HubSpot => limit,
            Dialect::Generic => generic,
        };
        let fleet = Fleet::with(1, Provider::counting(110, TEN_SECONDS), change).await;
        let ask = || Ask {
            lane: Some("interactive"),
            max_wait: Some(0),
            ..Ask::default()
        };
        assert_eq!(status(&fleet.call(ask()).await), 200);
        assert_eq!(exhausted(&fleet.call(ask()).await).1, word);
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_whose_budget_is_off_is_not_counted() {
    let fleet = Fleet::with(1, Provider::counting(3, TEN_SECONDS), |app| {
        app.budget = Setting::Off;
    })
    .await;
    let ask = || Ask {
        method: "POST",
        ..Ask::default()
    };
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(status(&fleet.call(ask()).await));
    }
    assert_eq!(answers, [200, 200, 200, 429, 429]);
    assert_eq!(fleet.claims_made(), 0);
}
