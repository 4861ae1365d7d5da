//! A token endpoint that is at fault, away, slow, or says strange things: checks 10, 27 to 29, 31 and 32.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::disturb::Blackhole;
use crate::provider::Rotation;
use crate::site::{Introspection, Service, Site, Store};

async fn begin() -> (Site, Service) {
    let site = Site::new(Store::Sqlite, Rotation::SingleUse, Introspection::Off).await;
    let service = site.serve();
    (site, service)
}

async fn fault(site: &Site, customer: &str, mut fault: Value) {
    fault["user"] = json!(customer);
    site.provider.fault(fault).await;
}

/// A refresh that brings nothing and says when to come again; the token at hand serves on.
async fn fails_and_the_old_token_serves(site: &Site, service: &Service, customer: &str) {
    let failed = site.refresh(service, customer, true).await;
    assert_eq!(failed.status, 503, "{customer}: {failed:?}");
    assert_eq!(
        failed.json()["code"],
        "provider_unavailable",
        "{customer}: {failed:?}"
    );
    let again_in: u64 = failed.header("retry-after").parse().unwrap();
    assert!((1..=30).contains(&again_in), "{customer}: {failed:?}");
    for _ in 0..10 {
        assert_eq!(site.call(service, customer).await.status, 200, "{customer}");
    }
    assert_eq!(site.status(service, customer).await, "active", "{customer}");
}

// Check 27.
#[tokio::test(flavor = "multi_thread")]
async fn when_the_token_endpoint_is_down_the_old_token_serves_and_nobody_insists() {
    let (site, service) = begin().await;
    for status in [500, 502, 503, 504] {
        let customer = format!("status-{status}");
        site.connect_fresh(&service, &customer).await;
        // It says so after it has redeemed, as an edge does that has lost patience.
        fault(&site, &customer, json!({"status": status})).await;
        fails_and_the_old_token_serves(&site, &service, &customer).await;
        let grant = site.provider.ledger().await.grant(&customer);
        assert_eq!((grant.presented, grant.accepted), (1, 1), "{customer}");
    }
    site.provider.ledger().await.is_clean(0);
}

/// A refusal that asks for a pause of three seconds, or of one more where parts of seconds cannot be said.
async fn asks_for_a_pause(refusal: Value) {
    let (site, service) = begin().await;
    site.connect(&service, "acme").await;
    site.provider.fault(refusal).await;
    let answer = site.call(&service, "acme").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    let again_in: u64 = answer.header("retry-after").parse().unwrap();
    assert!((3..=4).contains(&again_in), "{answer:?}");
    site.call_until_served(&service, "acme").await;
    let ledger = site.provider.ledger().await;
    let grant = ledger.grant("acme");
    let at = grant.presented_at();
    assert_eq!((at.len(), grant.accepted), (2, 1), "{grant:?}");
    assert!(at[1] - at[0] >= 2.9, "{at:?}");
    ledger.is_clean(0);
}

// Check 27.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_a_pause_gets_it_in_seconds_or_as_a_date() {
    let in_seconds = json!({"before": true, "status": 429, "headers": [["Retry-After", "3"]]});
    let as_a_date = json!({"before": true, "status": 429, "retry_after_date": 4});
    tokio::join!(asks_for_a_pause(in_seconds), asks_for_a_pause(as_a_date));
}

// Check 27.
#[tokio::test(flavor = "multi_thread")]
async fn pauses_grow_while_an_endpoint_goes_on_refusing() {
    let (site, service) = begin().await;
    site.connect(&service, "acme").await;
    site.provider
        .fault(json!({"before": true, "status": 429, "times": 3}))
        .await;
    site.call_until_served(&service, "acme").await;
    let grant = site.provider.ledger().await.grant("acme");
    let at = grant.presented_at();
    assert_eq!((at.len(), grant.accepted), (4, 1), "{grant:?}");
    // 1 s, 2 s, 4 s, up to half of each jitter.
    for (pair, least) in at.windows(2).zip([0.5, 1.0, 2.0]) {
        assert!(pair[1] - pair[0] >= least, "{at:?}");
    }
    site.provider.ledger().await.is_clean(0);
}

// Check 27. What fails for so many fails for all.
#[tokio::test(flavor = "multi_thread")]
async fn after_failures_in_a_row_other_refresh_tokens_are_spared() {
    let (site, service) = begin().await;
    site.provider
        .fault(json!({"before": true, "status": 429, "times": 5}))
        .await;
    let customers: Vec<_> = (0..15).map(|number| format!("c{number}")).collect();
    for customer in &customers {
        site.connect(&service, customer).await;
    }
    for customer in &customers[..5] {
        assert_eq!(site.call(&service, customer).await.status, 503, "{customer}");
    }
    let answer = site.call(&service, &customers[14]).await;
    assert_eq!(
        (answer.status.as_u16(), answer.error()),
        (503, "provider_unavailable"),
        "{answer:?}"
    );
    assert_eq!(site.provider.ledger().await.token_requests, 5);
    for customer in &customers {
        site.call_until_served(&service, customer).await;
    }
    let ledger = site.provider.ledger().await;
    for customer in &customers {
        let grant = ledger.grant(customer);
        assert_eq!(grant.accepted, 1, "{customer}: {ledger:?}");
        assert!(grant.presented <= 2, "{customer}: {ledger:?}");
    }
    ledger.is_clean(0);
}

// Check 28. The way to the endpoint is a service's own; the connection is everybody's.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_not_reached_costs_nothing_but_time_and_is_found_again() {
    let (site, service) = begin().await;
    // The server speaks no TLS.
    let tls = site.provider.url.replace("http:", "https:") + "/token";
    let ways = [
        ("refused", "http://127.0.0.1:1/token", "unreachable"),
        ("nameless", "https://nobody.invalid/token", "name_not_resolved"),
        ("no-tls", &tls, "tls_failed"),
    ];
    for (customer, url, code) in ways {
        let astray = site.serve_with(&[("EVERGRANT_APPS__CRM__TOKEN_URL", url)]);
        site.connect_fresh(&astray, customer).await;
        fails_and_the_old_token_serves(&site, &astray, customer).await;
        let error = site.record(&astray, customer).await["last_refresh_error"]["code"].clone();
        assert_eq!(error, code, "{customer}");
    }
    assert_eq!(site.provider.ledger().await.token_requests, 0);
    for (customer, ..) in ways {
        site.provider.expire(customer).await;
        site.call_until_served(&service, customer).await;
        let grant = site.provider.ledger().await.grant(customer);
        assert_eq!((grant.presented, grant.accepted), (1, 1), "{customer}: {grant:?}");
    }
    site.provider.ledger().await.is_clean(0);
}

// Checks 10, 28 and 29: whatever is slow, an exchange ends after 15 s, well within its lease of 30 s.
#[tokio::test(flavor = "multi_thread")]
async fn no_exchange_outlasts_its_deadline_however_slow_the_wire_is() {
    const DEADLINE: Duration = Duration::from_secs(15);
    let (site, service) = begin().await;
    let site = Arc::new(site);
    let service = Arc::new(service);
    let other = site.serve();
    let hole = Blackhole::new().await;
    let astray = format!("http://{}/token", hole.address);
    let astray = Arc::new(site.serve_with(&[("EVERGRANT_APPS__CRM__TOKEN_URL", &astray)]));
    let slow = [
        ("held", json!({"hold": true})),
        ("dripping", json!({"drip": 1})),
        ("endless", json!({"endless": 0.2})),
        ("no-answer", json!({})),
    ];
    let mut asking = tokio::task::JoinSet::new();
    for (customer, kind) in slow {
        site.connect(&service, customer).await;
        let by = if customer == "no-answer" {
            &astray
        } else {
            &service
        };
        fault(&site, customer, kind).await;
        let (site, by) = (site.clone(), by.clone());
        asking.spawn(async move {
            let began = Instant::now();
            let answer = site.refresh(&by, customer, true).await;
            (customer, answer, began.elapsed())
        });
    }
    // Another service wants the same all the while.
    site.provider.holds(1).await;
    let impatient = tokio::spawn({
        let site = site.clone();
        async move { site.call(&other, "held").await }
    });
    while let Some(done) = asking.join_next().await {
        let (customer, answer, took) = done.unwrap();
        assert_eq!(answer.status, 503, "{customer}: {answer:?}");
        assert!(
            took >= DEADLINE && took < DEADLINE + Duration::from_secs(10),
            "{customer}: {took:?}"
        );
    }
    assert_eq!(impatient.await.unwrap().status, 503);
    site.provider.heal().await;
    let ledger = site.provider.ledger().await;
    for customer in ["held", "dripping", "endless"] {
        let grant = ledger.grant(customer);
        assert_eq!(
            (grant.presented, grant.accepted),
            (1, 1),
            "{customer}: {ledger:?}"
        );
    }
    assert_eq!(ledger.grant("no-answer").presented, 0, "{ledger:?}");
    ledger.is_clean(0);
}

// Check 29.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_end_is_neither_read_nor_unpacked() {
    let (site, service) = begin().await;
    let bodies = [
        ("huge", json!({"body": "huge"}), "answer_too_long"),
        ("endless", json!({"endless": 0}), "answer_too_long"),
        ("bomb", json!({"body": "gzip_bomb"}), "answer_encoded"),
    ];
    for (customer, kind, code) in bodies {
        site.connect_fresh(&service, customer).await;
        fault(&site, customer, kind).await;
        fails_and_the_old_token_serves(&site, &service, customer).await;
        let error = site.record(&service, customer).await["last_refresh_error"]["code"].clone();
        assert_eq!(error, code, "{customer}");
    }
    let peak = std::fs::read_to_string(format!("/proc/{}/status", service.pid().as_raw_nonzero())).unwrap();
    let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: u64 = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(kilobytes < 150_000, "{kilobytes} kB");
    site.provider.ledger().await.is_clean(0);
}

// Check 31: what `expires_in` says, and how long the token is taken to live.
#[tokio::test(flavor = "multi_thread")]
async fn a_lifetime_that_makes_sense_is_believed_and_any_other_is_ten_minutes() {
    let (site, service) = begin().await;
    let lifetimes = [
        ("text", json!("3600"), 3600),
        ("fraction", json!(3599.9), 3599),
        ("missing", json!({"remove": true}), 600),
        ("zero", json!(0), 600),
        ("negative", json!(-1), 600),
        ("null", json!(null), 600),
        ("for-ever", json!(1e18), 600),
        ("list", json!([3600]), 600),
    ];
    for (customer, expires_in, lifetime) in lifetimes {
        site.connect(&service, customer).await;
        fault(&site, customer, json!({"json": {"expires_in": expires_in}})).await;
        assert_eq!(site.call(&service, customer).await.status, 200, "{customer}");
        let record = site.record(&service, customer).await;
        let remaining = record["seconds_remaining"].as_u64().unwrap();
        assert!(
            (lifetime - 60..=lifetime).contains(&remaining),
            "{customer}: {record}"
        );
        for _ in 0..10 {
            assert_eq!(site.call(&service, customer).await.status, 200, "{customer}");
        }
        let presented = site.provider.ledger().await.grant(customer).presented;
        assert_eq!(
            presented, 1,
            "{customer}: no lifetime leads to a redemption a call"
        );
    }
    site.provider.ledger().await.is_clean(0);
}

// Check 31: no new refresh token, the same, or an empty one.
#[tokio::test(flavor = "multi_thread")]
async fn where_no_new_refresh_token_comes_the_old_one_is_kept() {
    let (site, service) = begin().await;
    let answers = [
        ("missing", json!({})),
        ("empty", json!({"json": {"refresh_token": ""}})),
        ("equal", json!({"json": {"refresh_token": {"presented": true}}})),
    ];
    for (customer, kind) in answers {
        let grant = site.provider.grant_that_never_rotates(customer).await;
        site.import(&service, customer, &grant, json!({})).await;
        fault(&site, customer, kind).await;
        assert_eq!(site.call(&service, customer).await.status, 200, "{customer}");
        let again = site.refresh(&service, customer, true).await;
        assert_eq!(again.json()["redeemed"], true, "{customer}: {again:?}");
        let grant = site.provider.ledger().await.grant(customer);
        assert_eq!(
            (grant.accepted, grant.refused, grant.refresh_tokens.len()),
            (2, 0, 1),
            "{customer}: {grant:?}"
        );
        assert!(grant.live && grant.overlaps == 0, "{customer}: {grant:?}");
    }
}

// Check 31: what else an answer may say.
#[tokio::test(flavor = "multi_thread")]
async fn strange_words_in_an_answer_are_taken_for_what_they_mean() {
    let (site, service) = begin().await;
    let words = [
        ("no-type", json!({"token_type": {"remove": true}})),
        ("shouted", json!({"token_type": "BEARER"})),
        ("unknown-member", json!({"surprise": [1, {"2": null}]})),
    ];
    for (customer, members) in words {
        site.connect(&service, customer).await;
        fault(&site, customer, json!({"json": members})).await;
        assert_eq!(site.call(&service, customer).await.status, 200, "{customer}");
    }
    site.connect(&service, "smaller").await;
    fault(&site, "smaller", json!({"json": {"scope": "other"}})).await;
    assert_eq!(site.call(&service, "smaller").await.status, 200);
    let record = site.record(&service, "smaller").await;
    assert_eq!(
        (&record["scopes"], &record["missing_scopes"]),
        (&json!(["other"]), &json!(["things"]))
    );

    // An error wins over the tokens beside it, and one that is the endpoint's condemns nobody.
    site.connect(&service, "error").await;
    fault(&site, "error", json!({"json": {"error": "server_error"}})).await;
    let answer = site.call(&service, "error").await;
    assert_eq!(
        (answer.status.as_u16(), answer.error()),
        (503, "provider_unavailable"),
        "{answer:?}"
    );
    let record = site.record(&service, "error").await;
    assert_eq!(
        (&record["version"], &record["status"]),
        (&json!(1), &json!("active"))
    );

    // Long, but a token.
    site.connect(&service, "long").await;
    let long = "x".repeat(64 * 1024);
    fault(&site, "long", json!({"json": {"access_token": long}})).await;
    let token = site
        .send(&service, http::Method::GET, "/v1/connections/long/token", None)
        .await;
    assert_eq!(token.json()["access_token"], long);
    site.provider.ledger().await.is_clean(0);
}

// Check 32.
#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_of_the_token_endpoint_is_not_followed_and_its_target_gets_nothing() {
    let (site, service) = begin().await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let other_host = format!("http://{}/token", elsewhere.local_addr().unwrap());
    let same_host = format!("{}/elsewhere", site.provider.url);
    let mut customers = Vec::new();
    for status in [301, 302, 307, 308] {
        for (place, location) in [("same", &same_host), ("other", &other_host)] {
            let customer = format!("{place}-{status}");
            site.connect_fresh(&service, &customer).await;
            let redirect = json!({"before": true, "status": status, "headers": [["Location", location]]});
            fault(&site, &customer, redirect).await;
            fails_and_the_old_token_serves(&site, &service, &customer).await;
            site.one_redemption_works(&service, &format!("after-{customer}"))
                .await;
            customers.push(customer);
        }
    }
    let nobody = elsewhere.accept().map(drop).unwrap_err();
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
    let ledger = site.provider.ledger().await;
    assert_eq!(ledger.token_requests, 16, "{ledger:?}");
    for customer in customers {
        let grant = ledger.grant(&customer);
        assert_eq!(
            (grant.presented, grant.accepted),
            (1, 0),
            "{customer}: {ledger:?}"
        );
    }
    ledger.is_clean(0);
}
