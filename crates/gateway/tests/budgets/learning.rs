//! What answers teach, and what follows from a 429 and its like.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use evergrant_domain::app::Dialect;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::fleet::{Ask, Fleet, exhausted, status};
use crate::provider::{Arrived, Provider, Reply, says, too_many};

const TEN_SECONDS: Duration = Duration::from_secs(10);

#[expect(clippy::unnecessary_wraps, reason = "it is a reply")]
fn silent() -> Reply {
    Ok((200, vec![], "{}".to_owned()))
}

fn patient() -> Ask {
    Ask {
        lane: Some("interactive"),
        max_wait: Some(60),
        ..Ask::default()
    }
}

fn generic(app: &mut evergrant_domain::App) {
    app.provider.dialect = Dialect::Generic;
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_names_no_limit_costs_no_store_and_no_wait() {
    for change in [generic, |_: &mut evergrant_domain::App| {}] {
        let fleet = Fleet::with(1, Provider::new(|_, _| silent()), change).await;
        status(&fleet.call(Ask::default()).await);
        let began = Instant::now();
        let calls: Vec<_> = (0..500)
            .map(|_| {
                fleet.processes[0].spawn(Ask {
                    max_wait: Some(0),
                    ..Ask::default()
                })
            })
            .collect();
        for call in calls {
            let answer = call.await.unwrap().unwrap();
            assert_eq!(answer.record.budget_wait, None);
        }
        // As long as one call takes.
        assert!(
            began.elapsed() < Duration::from_millis(40),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(fleet.claims_made(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn until_an_answer_has_come_few_calls_are_under_way() {
    for (change, at_first) in [
        (generic as fn(&mut evergrant_domain::App), 32),
        (|_: &mut evergrant_domain::App| {}, 4),
    ] {
        let gate = Arc::new(Semaphore::new(0));
        let provider = Provider::new(|_, _| silent()).behind(&gate);
        let fleet = Fleet::with(1, provider, change).await;
        let calls: Vec<_> = (0..100)
            .map(|_| fleet.processes[0].spawn(Ask::default()))
            .collect();
        sleep(Duration::from_millis(500)).await;
        assert_eq!(fleet.provider.arrived().len(), at_first);
        // A provider that takes its time is asked a little more each second.
        sleep(Duration::from_millis(1000)).await;
        assert_eq!(fleet.provider.arrived().len(), 2 * at_first);
        gate.add_permits(1);
        sleep(Duration::from_millis(100)).await;
        assert_eq!(fleet.provider.arrived().len(), 100);
        gate.add_permits(99);
        for call in calls {
            status(&call.await.unwrap());
        }
        assert_eq!(fleet.claims_made(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fleet_that_knows_nothing_does_not_begin_with_a_burst() {
    let fleet = Fleet::of(16, Provider::counting(110, TEN_SECONDS)).await;
    let calls: Vec<_> = (0..800)
        .map(|n| fleet.processes[n % 16].spawn(patient()))
        .collect();
    for call in calls {
        if let Ok(answer) = call.await.unwrap() {
            assert_eq!(answer.response.status(), 200);
        }
    }
    assert_eq!(fleet.provider.refusals(), 0);
    assert!(fleet.provider.most_within(TEN_SECONDS) <= 110);
}

#[tokio::test(start_paused = true)]
async fn answers_lower_a_limit_and_never_raise_it() {
    let provider = Provider::new(|_, before| {
        let max = match before.len() {
            0..5 => 100,
            5..10 => 10,
            _ => 1000,
        };
        Ok((200, says(max, max, TEN_SECONDS), "{}".to_owned()))
    });
    let fleet = Fleet::of(1, provider).await;
    for _ in 0..60 {
        status(&fleet.call(patient()).await);
    }
    let arrived = fleet.provider.arrived();
    // Before it was lowered everything went through.
    assert!(arrived[5].at - arrived[0].at < Duration::from_secs(1));
    let since = |n: usize| arrived[n + 10].at - arrived[n].at;
    assert!((20..50).all(|n| since(n) >= TEN_SECONDS), "{arrived:?}");
}

#[tokio::test(start_paused = true)]
async fn what_others_use_of_the_account_counts() {
    // Whatever we do, somebody else has left three.
    let provider = Provider::new(|_, _| Ok((200, says(100, 3, TEN_SECONDS), "{}".to_owned())));
    let fleet = Fleet::of(1, provider).await;
    for _ in 0..12 {
        status(&fleet.call(patient()).await);
    }
    assert!(fleet.elapsed() > Duration::from_secs(15), "{:?}", fleet.elapsed());
}

/// Refuses the second call, then is well.
fn refuses_the_second(reply: impl Fn() -> Reply + Send + Sync + 'static) -> Provider {
    Provider::new(move |_: &Arrived, before: &[Arrived]| {
        if before.len() == 1 {
            return reply();
        }
        Ok((200, says(110, 100, TEN_SECONDS), "{}".to_owned()))
    })
}

#[tokio::test(start_paused = true)]
async fn after_a_429_a_read_is_sent_once_more_when_the_provider_says() {
    // The fleet's clock begins at this second.
    let date = |plus: u64| {
        let at = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + plus);
        httpdate::fmt_http_date(at)
    };
    for (headers, policy, pause) in [
        (vec![("retry-after", "3".to_owned())], "TEN_SECONDLY_ROLLING", 3),
        (
            vec![("retry-after", date(1004)), ("date", date(1000))],
            "TEN_SECONDLY_ROLLING",
            4,
        ),
        // By our own clock, which shows a moment after its beginning.
        (vec![("retry-after", date(5))], "TEN_SECONDLY_ROLLING", 5),
        (vec![], "TEN_SECONDLY_ROLLING", 10),
        (vec![], "SECONDLY", 1),
    ] {
        let (said, own) = (headers.clone(), policy);
        let provider = refuses_the_second(move || {
            let (_, _, body) = too_many(own).unwrap();
            Ok((429, said.clone(), body))
        });
        let fleet = Fleet::of(2, provider).await;
        status(&fleet.call(patient()).await);
        let began = Instant::now();
        let answer = fleet.call(patient()).await.unwrap();
        assert_eq!(answer.response.status(), 200, "{headers:?}");
        assert_eq!(answer.record.attempts, 2);
        assert_eq!(answer.record.class.as_str(), "rate_limited");
        assert!(!answer.record.refreshed);
        let took = began.elapsed();
        let expected = Duration::from_secs(pause);
        assert!(
            took + Duration::from_millis(100) >= expected && took < expected + Duration::from_millis(1300),
            "{headers:?} {policy}: {took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_429_the_whole_fleet_rests() {
    let provider = Provider::new(|call, _| {
        if call.method == "POST" {
            let (_, _, body) = too_many("DAILY").unwrap();
            return Ok((429, vec![("retry-after", "20".to_owned())], body));
        }
        Ok((200, says(110, 100, TEN_SECONDS), "{}".to_owned()))
    });
    let fleet = Fleet::of(2, provider).await;
    for process in &fleet.processes {
        status(&process.call(patient()).await);
    }
    let write = Ask {
        method: "POST",
        ..patient()
    };
    // A write is its caller's to repeat.
    let began = Instant::now();
    let answer = fleet.call(write).await.unwrap();
    assert_eq!(
        (answer.response.status().as_u16(), answer.record.attempts),
        (429, 1)
    );
    assert!(!answer.response.headers().contains_key("evergrant-error"));
    assert!(began.elapsed() < Duration::from_millis(100));
    sleep(Duration::from_millis(100)).await;
    for process in &fleet.processes {
        let began = Instant::now();
        let refused = process.call(Ask::default()).await;
        let (retry_after, policy) = exhausted(&refused);
        assert!((18..=20).contains(&retry_after.as_secs()), "{retry_after:?}");
        // Only who was told knows which limit it is.
        assert!(["DAILY", "TEN_SECONDLY_ROLLING"].contains(&policy));
        assert!(began.elapsed() <= Duration::from_secs(1));
    }
    assert_eq!(fleet.provider.arrived().len(), 3);
    assert_eq!(status(&fleet.processes[1].call(patient()).await), 200);
    assert!(fleet.elapsed() >= Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn a_rest_that_the_store_was_not_told_of_is_told_when_it_is_back() {
    let provider = Provider::new(|call, _| {
        if call.method == "POST" {
            let (_, _, body) = too_many("DAILY").unwrap();
            return Ok((429, vec![("retry-after", "60".to_owned())], body));
        }
        Ok((200, says(110, 100, TEN_SECONDS), "{}".to_owned()))
    });
    let fleet = Fleet::of(2, provider).await;
    for process in &fleet.processes {
        status(&process.call(patient()).await);
    }
    fleet.claims.fail.store(true, Ordering::Relaxed);
    let write = Ask {
        method: "POST",
        ..patient()
    };
    fleet.call(write).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    let tried = fleet.claims_made();
    assert!((2..20).contains(&tried), "{tried} claims");
    fleet.claims.fail.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(2)).await;
    let refused = fleet.processes[1].call(Ask::default()).await;
    let (retry_after, _) = exhausted(&refused);
    assert!((40..50).contains(&retry_after.as_secs()), "{retry_after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_may_not_wait_for_so_long_gets_the_provider_s_429() {
    let provider = refuses_the_second(|| too_many("TEN_SECONDLY_ROLLING"));
    let fleet = Fleet::of(1, provider).await;
    status(&fleet.call(patient()).await);
    let began = Instant::now();
    let ask = Ask {
        max_wait: Some(9),
        ..patient()
    };
    let answer = fleet.call(ask).await.unwrap();
    assert_eq!(
        (answer.response.status().as_u16(), answer.record.attempts),
        (429, 1)
    );
    assert!(began.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn a_429_of_which_nobody_says_how_long_it_lasts_is_passed_on_and_teaches_nothing() {
    let provider = Provider::new(|_, before| match before.len() {
        1 => Ok((429, vec![], String::new())),
        _ => silent(),
    });
    let fleet = Fleet::with(1, provider, generic).await;
    status(&fleet.call(Ask::default()).await);
    assert_eq!(status(&fleet.call(Ask::default()).await), 429);
    assert_eq!(status(&fleet.call(Ask::default()).await), 200);
    assert_eq!(fleet.claims_made(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_rest_without_a_limit_is_over_when_it_is_over() {
    let provider = Provider::new(|_, before| match before.len() {
        1 => Ok((429, vec![("retry-after", "5".to_owned())], String::new())),
        _ => silent(),
    });
    let fleet = Fleet::with(1, provider, generic).await;
    status(&fleet.call(Ask::default()).await);
    let answer = fleet.call(patient()).await.unwrap();
    assert_eq!(
        (answer.response.status().as_u16(), answer.record.attempts),
        (200, 2)
    );
    let claims = fleet.claims_made();
    for _ in 0..20 {
        let answer = fleet.call(patient()).await.unwrap();
        assert_eq!(answer.record.budget_wait, None);
    }
    assert_eq!(fleet.claims_made(), claims);
}

#[tokio::test(start_paused = true)]
async fn locks_moves_and_failures_are_waited_for_by_reads_alone() {
    let check = async |method, code: u16, retry_after: Option<&str>, attempts: u32, pause_ms: u64| {
        let headers: Vec<_> = retry_after
            .map(|value| ("retry-after", value.to_owned()))
            .into_iter()
            .collect();
        let provider = Provider::new(move |_, before| match before.len() {
            0 => Ok((code, headers.clone(), String::new())),
            _ => silent(),
        });
        let fleet = Fleet::of(1, provider).await;
        let ask = Ask { method, ..patient() };
        let began = Instant::now();
        let answer = fleet.call(ask).await.unwrap();
        let case = format!("{method} {code} {retry_after:?}");
        assert_eq!(answer.record.attempts, attempts, "{case}");
        assert!(!answer.record.refreshed, "{case}");
        let expected = Duration::from_millis(pause_ms + 30 * u64::from(attempts));
        let took = began.elapsed();
        assert!(
            took + Duration::from_millis(50) >= expected && took < expected + Duration::from_millis(50),
            "{case}: {took:?}"
        );
    };
    let soon = {
        let fleet = Fleet::of(1, Provider::new(|_, _| silent())).await;
        let now = u64::try_from(fleet.processes[0].keeper.clock().now().millis()).unwrap();
        let at = std::time::UNIX_EPOCH + Duration::from_secs(now.div_ceil(1000));
        httpdate::fmt_http_date(at)
    };
    check("GET", 423, None, 2, 2000).await;
    check("GET", 423, Some("1"), 2, 1000).await;
    check("GET", 477, None, 1, 0).await;
    check("GET", 477, Some("2"), 2, 2000).await;
    check("GET", 477, Some("86400"), 1, 0).await;
    check("GET", 500, None, 2, 250).await;
    check("GET", 503, Some("1"), 2, 1000).await;
    check("GET", 503, Some("3"), 1, 0).await;
    check("GET", 503, Some(&soon), 2, 0).await;
    check("GET", 524, None, 2, 250).await;
    for code in [423, 477, 500, 503] {
        check("POST", code, Some("1"), 1, 0).await;
        check("PATCH", code, Some("1"), 1, 0).await;
    }
}
