//! Faults that need a service of their own: clocks, the store itself, calls that stop.

use std::time::Duration;

use hubspot_sim::{Fault, FaultKind, SimConfig};
use rusqlite::{Connection, params};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::installation::CLIENT;
use crate::practice::{Practice, check};

fn database(practice: &Practice) -> Connection {
    let database = Connection::open(practice.installation.folder().join("evergrant.db")).unwrap();
    database.busy_timeout(Duration::from_secs(5)).unwrap();
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_is_named_by_the_providers_date() {
    let practice = Practice::new(SimConfig::default()).await;
    let clock = Clock::new(practice.installation.folder().join("clock"));
    let service = practice.serve_by(&clock);
    practice.connect(&service, "clock", 1001).await;
    practice.is_healthy(&service, "clock").await;
    // Eleven minutes fast: the token is not taken for ended yet.
    clock.set(700);
    practice
        .is_named(&service, "clock", "clock_skew", "11 min ahead of the provider's")
        .await;
    clock.set(-700);
    practice
        .is_named(&service, "clock", "clock_skew", "11 min behind the provider's")
        .await;
    clock.set(0);
    practice.is_healthy(&service, "clock").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_that_two_processes_redeem_at_once_is_named() {
    let practice = Practice::new(SimConfig::default()).await;
    let hubspot = &practice.installation.hubspot;
    let (service, other) = (practice.serve(), practice.serve());
    practice.connect(&service, "twice", 1001).await;
    // One process redeems, and while its request lies at the provider nothing keeps the other one back: its lease and its
    // attempt are gone from the store.
    hubspot.arm(Fault::token(FaultKind::HoldBeforeIssue).hub(1001));
    let (first, ()) = tokio::join!(practice.refresh(&service, "twice"), async {
        while hubspot.held() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let forgotten = database(&practice)
            .execute(
                "UPDATE connections SET lease_holder = NULL, lease_boot = NULL, lease_until = NULL,
                        lease_shown_until = NULL, attempts = '[]', forced_at = NULL
                  WHERE id = ?1",
                params!["twice"],
            )
            .unwrap();
        assert_eq!(forgotten, 1);
        let second = practice.refresh(&other, "twice").await;
        assert_eq!(second.json()["redeemed"], true, "{second:?}");
        hubspot.release_held();
    });
    assert_eq!(first.status, 200, "{first:?}");
    practice
        .is_named(&service, "twice", "refresh_stampede", "redeemed again once")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_somebody_else_wrote_is_named() {
    let practice = Practice::new(SimConfig::default()).await;
    let service = practice.serve();
    practice.connect(&service, "restored", 1001).await;
    practice.connect(&service, "well", 1002).await;
    practice.is_healthy(&service, "restored").await;
    // The row as it is now is written back over a newer one.
    let database = database(&practice);
    database
        .execute_batch("CREATE TABLE backup AS SELECT * FROM connections WHERE id = 'restored'")
        .unwrap();
    assert_eq!(practice.refresh(&service, "restored").await.json()["version"], 2);
    practice.is_healthy(&service, "restored").await;
    // Nobody is there who holds the newer one and would put it back.
    service.signal(Signal::TERM);
    assert!(service.ended().success());
    database
        .execute_batch(
            "UPDATE connections
                SET (version, access_token, refresh_token, refresh_token_fingerprint) =
                    (SELECT version, access_token, refresh_token, refresh_token_fingerprint FROM backup)
              WHERE id = 'restored'",
        )
        .unwrap();
    let service = practice.serve();
    practice
        .is_named(
            &service,
            "restored",
            "raced_write",
            "the history told of version 2",
        )
        .await;
    practice.is_healthy(&service, "well").await;
}

/// Each hour a few calls, by a service of its own: what it has counted is written when it ends.
async fn calls_every_hour(practice: &Practice, clock: &Clock, hours: &[i64], calling: &[&str]) {
    for hours_ago in hours {
        clock.set(-hours_ago * 3600);
        let service = practice.serve_by(clock);
        for id in calling {
            practice.works(&service, id).await;
        }
        service.signal(Signal::TERM);
        assert!(service.ended().success(), "{}", practice.installation.printed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_have_stopped_coming_are_told_from_a_connection_that_nobody_calls() {
    let practice = Practice::new(SimConfig::default()).await;
    let hubspot = &practice.installation.hubspot;
    let clock = Clock::new(practice.installation.folder().join("clock"));
    clock.set(-8 * 3600);
    let service = practice.serve_by(&clock);
    for (id, portal) in [
        ("stopped", 1001),
        ("called", 1002),
        ("never", 1003),
        ("seldom", 1004),
    ] {
        let grant = hubspot.grant(CLIENT, portal).unwrap();
        practice.import(&service, id, &grant, json!({})).await;
    }
    drop(service);
    calls_every_hour(&practice, &clock, &[7], &["stopped", "called", "seldom"]).await;
    calls_every_hour(&practice, &clock, &[6, 5], &["stopped", "called"]).await;
    calls_every_hour(&practice, &clock, &[4, 3, 2, 1], &["called"]).await;
    clock.set(0);
    let service = practice.serve_by(&clock);
    let found = practice
        .is_named(
            &service,
            "stopped",
            "no_traffic",
            "Look at whatever makes the calls",
        )
        .await;
    assert_eq!(found["reconnect_url"], Value::Null, "{found:#}");
    practice.is_healthy(&service, "called").await;
    let found = practice.is_healthy(&service, "never").await;
    assert!(
        check(&found, "no_traffic")["evidence"]
            .as_str()
            .unwrap()
            .contains("no call has ever come"),
        "{found:#}"
    );
    let found = practice.is_healthy(&service, "seldom").await;
    assert!(
        check(&found, "no_traffic")["evidence"]
            .as_str()
            .unwrap()
            .contains("too seldom"),
        "{found:#}"
    );
    // Calls come again.
    practice.works(&service, "stopped").await;
    practice.is_healthy(&service, "stopped").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_keeps_a_token_past_its_time_is_named_and_one_that_was_overtaken_is_not() {
    let practice = Practice::new(SimConfig::default()).await;
    let clock = Clock::new(practice.installation.folder().join("clock"));
    let service = practice.serve_by(&clock);
    for (id, portal) in [("overtaken", 1001), ("replaced", 1002), ("ended", 1003)] {
        practice.connect(&service, id, portal).await;
    }
    for id in ["overtaken", "replaced"] {
        assert_eq!(practice.refresh(&service, id).await.json()["version"], 2);
    }
    // A call that was under way meanwhile.
    let answer = practice.reports(&service, "overtaken", 1, 401).await;
    assert_eq!(answer.json()["version"], 2, "{answer:?}");
    practice.is_healthy(&service, "overtaken").await;
    // A little later nothing is under way any more.
    clock.set(20);
    practice.reports(&service, "replaced", 1, 401).await;
    practice
        .is_named(
            &service,
            "replaced",
            "stale_token_reuse",
            "after it had been replaced",
        )
        .await;
    clock.set(2000);
    practice.reports(&service, "ended", 1, 401).await;
    practice
        .is_named(&service, "ended", "stale_token_reuse", "after it had ended")
        .await;
}
