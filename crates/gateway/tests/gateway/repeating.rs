//! A 401 and what follows from it.

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use evergrant_domain::event::EventKind;
use evergrant_keeper::Renewal;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::future::join_all;
use http::Request;
use http_body_util::Full;
use hubspot_sim::{Fault, FaultKind};

use crate::scripted::{EXPIRED, GARBAGE, Reply, Scripted, expired, ok, reply};
use crate::streaming::fed;
use crate::world::{CONTACTS, HUB, Settings, World, body, fixed, gist, text};

#[tokio::test]
async fn a_call_with_an_expired_token_succeeds_after_one_refresh_and_one_repeat() {
    let world = World::new().await;
    world.hubspot.expire_access_tokens(HUB);
    let answer = world.create("r1").await.unwrap();
    assert_eq!(gist(&answer), (201, "expired", 2));
    assert_eq!(text(answer.response.headers(), "evergrant-token-version"), "2");
    assert!(answer.record.refreshed);
    let ledger = world.hubspot.ledger();
    let request = &ledger.requests["r1"];
    assert_eq!(
        (request.deliveries, request.executed, request.creates_executed),
        (2, 1, 1)
    );
    assert_eq!(ledger.refreshes_accepted, 1);
    assert_eq!(gist(&world.get(CONTACTS).await.unwrap()), (200, "ok", 1));
    assert_eq!(
        world.events(EventKind::CallUnauthorized).await,
        ["a call came back 401, expired: the call is repeated with a newer token"]
    );
}

#[tokio::test]
async fn the_repeat_is_the_same_request_byte_for_byte() {
    for length in [0, 1, 1024 * 1024] {
        let sent: Bytes = (0..length)
            .map(|at: u32| at.to_le_bytes()[0])
            .collect::<Vec<u8>>()
            .into();
        for known in [true, false] {
            let provider = Scripted::new(|nth, _| if nth == 0 { expired() } else { ok() }).await;
            let world = World::at(&provider.base).await;
            let target = "/a%2Fb?c=%20d&c=e";
            let answer = if known {
                let request = Request::post("/")
                    .header("x-mine", "1")
                    .body(Full::new(sent.clone()));
                world.gateway.call(&world.id, target, request.unwrap()).await
            } else {
                let (feed, stream) = fed();
                for piece in sent.chunks(10_000) {
                    feed.send(Bytes::copy_from_slice(piece)).unwrap();
                }
                drop(feed);
                let request = Request::post("/").header("x-mine", "1").body(stream).unwrap();
                world.gateway.call(&world.id, target, request).await
            };
            assert_eq!(gist(&answer.unwrap()), (200, "expired", 2));
            let seen = provider.seen();
            assert_eq!(seen.len(), 2);
            for seen in &seen {
                assert!(seen.body == sent, "{length} bytes, length known: {known}");
                assert_eq!(seen.first_line(), "POST /a%2Fb?c=%20d&c=e HTTP/1.1");
                let chunked = if known { "" } else { "chunked" };
                assert_eq!(seen.header("transfer-encoding"), chunked);
            }
            let without_bearer = |head: &str| {
                let lines = head.lines().filter(|line| !line.starts_with("authorization"));
                lines.map(str::to_owned).collect::<Vec<_>>()
            };
            assert_eq!(without_bearer(&seen[0].head), without_bearer(&seen[1].head));
            assert_ne!(seen[0].header("authorization"), seen[1].header("authorization"));
        }
    }
}

#[tokio::test]
async fn a_401_to_the_head_alone_is_repeated_with_the_whole_body() {
    let hasty = Scripted::hasty(|_, _| expired()).await;
    let world = World::at(&hasty.base).await;
    let (feed, stream) = fed();
    feed.send(Bytes::from_static(b"first, ")).unwrap();
    let gateway = world.gateway.clone();
    let id = world.id.clone();
    let call = tokio::spawn(async move {
        let request = Request::post("/").body(stream).unwrap();
        gateway.call(&id, "/x", request).await
    });
    // The second sending has begun, and the caller has not ended its body yet.
    hasty.wait_for_requests(2).await;
    drop(feed);
    assert_eq!(
        gist(&call.await.unwrap().unwrap()),
        (401, "rejected_after_refresh", 2)
    );
}

#[tokio::test]
async fn a_body_too_large_to_be_kept_passes_the_401_on_and_the_next_call_has_a_newer_token() {
    let provider = Scripted::new(|nth, _| if nth == 0 { expired() } else { ok() }).await;
    let mut settings = Settings::default();
    settings.limits.body_kept = 100;
    let world = World::with(Some(&provider.base), settings).await;
    let answer = world.send("POST", "/x", vec![b'x'; 101]).await.unwrap();
    assert_eq!(gist(&answer), (401, "expired", 1));
    assert_eq!(
        text(answer.response.headers(), "evergrant-not-repeated"),
        "body-not-kept"
    );
    assert_eq!(body(answer).await, EXPIRED);
    assert_eq!(provider.seen()[0].body.len(), 101);
    let next = world.send("POST", "/x", vec![b'x'; 101]).await.unwrap();
    assert_eq!(gist(&next), (200, "ok", 1));
    assert_eq!(text(next.response.headers(), "evergrant-token-version"), "2");
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
}

#[tokio::test]
async fn a_provider_that_always_answers_401_costs_one_redemption_and_two_deliveries_a_call() {
    let world = World::new().await;
    world.hubspot.arm(Fault::api(FaultKind::AlwaysUnauthorized));
    let ids: Vec<String> = (0..50).map(|number| format!("r{number}")).collect();
    let answers = join_all(ids.iter().map(|id| world.create(id))).await;
    for answer in answers {
        let answer = answer.unwrap();
        let (status, class, attempts) = gist(&answer);
        assert_eq!((status, class), (401, "rejected_after_refresh"));
        assert!(attempts <= 2);
    }
    let late = world.create("late").await.unwrap();
    assert_eq!(gist(&late), (401, "rejected_after_refresh", 1));
    let ledger = world.hubspot.ledger();
    assert!(ledger.requests.values().all(|request| request.deliveries <= 2));
    assert_eq!((ledger.token_requests, ledger.refreshes_accepted), (1, 1));
    assert_eq!(ledger.creates_executed, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stampede_after_an_expiry_costs_one_redemption_and_no_failed_call() {
    let world = World::new().await;
    world.get(CONTACTS).await.unwrap();
    world.hubspot.expire_access_tokens(HUB);
    let ids: Vec<String> = (0..50).map(|number| format!("r{number}")).collect();
    let answers = join_all(ids.iter().map(|id| world.create(id))).await;
    for answer in answers {
        let (status, class, attempts) = gist(answer.as_ref().unwrap());
        assert_eq!(status, 201);
        assert!(matches!(
            (class, attempts),
            ("expired" | "stale_token", 2) | ("ok", 1)
        ));
    }
    let ledger = world.hubspot.ledger();
    assert_eq!((ledger.token_requests, ledger.creates_executed), (1, 50));
}

#[tokio::test]
async fn a_token_that_is_older_than_the_stores_is_replaced_without_a_redemption() {
    let world = World::new().await;
    world.get(CONTACTS).await.unwrap();
    world.hubspot.expire_access_tokens(HUB);
    let elsewhere = world.another_keeper().await;
    elsewhere.refresh(&world.id, None, Renewal::Forced).await.unwrap();
    let answer = world.get(CONTACTS).await.unwrap();
    assert_eq!(gist(&answer), (200, "stale_token", 2));
    assert!(!answer.record.refreshed);
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
}

#[tokio::test]
async fn a_call_is_repeated_once_because_of_a_401_even_where_each_brings_a_newer_token() {
    let provider = Scripted::new(|nth, _| if nth == 0 { ok() } else { expired() }).await;
    let world = World::at(&provider.base).await;
    world.get("/x").await.unwrap();
    let elsewhere = world.another_keeper().await;
    elsewhere.refresh(&world.id, None, Renewal::Forced).await.unwrap();
    // 401 for version 1, because it is stale; 401 for version 2, which is redeemed; version 3 is for the next call.
    let answer = world.send("POST", "/x", "{}").await.unwrap();
    assert_eq!(gist(&answer), (401, "rejected_after_refresh", 2));
    assert_eq!(provider.seen().len(), 3);
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 2);
}

#[tokio::test]
async fn a_token_that_the_provider_cannot_decode_is_never_refreshed() {
    let provider = Scripted::new(|_, _| reply("401 Unauthorized", "", GARBAGE)).await;
    let world = World::at(&provider.base).await;
    let answer = world.get("/x").await.unwrap();
    assert_eq!(gist(&answer), (401, "malformed_token", 1));
    assert_eq!(body(answer).await, GARBAGE);
    assert_eq!(world.hubspot.ledger().token_requests, 0);
}

#[tokio::test]
async fn a_packed_401_is_judged_and_passed_on_as_it_came() {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(GARBAGE.as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    let sent = packed.clone();
    let provider =
        Scripted::new(move |_, _| reply("401 Unauthorized", "Content-Encoding: gzip\r\n", &sent)).await;
    let world = World::at(&provider.base).await;
    let answer = world.get("/x").await.unwrap();
    // Unread, it would be `rejected` and cost a redemption.
    assert_eq!(gist(&answer), (401, "malformed_token", 1));
    assert_eq!(text(answer.response.headers(), "content-encoding"), "gzip");
    assert_eq!(body(answer).await, packed);
}

#[tokio::test]
async fn a_static_token_has_nothing_to_refresh() {
    let settings = Settings {
        tokens: fixed,
        ..Settings::default()
    };
    let world = World::with(None, settings).await;
    assert_eq!(gist(&world.get(CONTACTS).await.unwrap()), (200, "ok", 1));
    world.hubspot.arm(Fault::api(FaultKind::AlwaysUnauthorized));
    assert_eq!(
        gist(&world.get(CONTACTS).await.unwrap()),
        (401, "static_rejected", 1)
    );
    assert_eq!(world.hubspot.ledger().token_requests, 0);
}

#[tokio::test]
async fn a_401_that_asks_for_more_scope_is_a_matter_of_permission() {
    let challenge = "WWW-Authenticate: Bearer error=\"insufficient_scope\"\r\n";
    let provider = Scripted::new(move |_, _| reply("401 Unauthorized", challenge, "")).await;
    let world = World::at(&provider.base).await;
    assert_eq!(
        gist(&world.get("/x").await.unwrap()),
        (401, "permission_denied", 1)
    );
    assert_eq!(world.hubspot.ledger().token_requests, 0);
}

#[tokio::test]
async fn a_401_whose_grant_is_gone_says_what_is_to_be_done() {
    let world = World::new().await;
    world.get(CONTACTS).await.unwrap();
    world.hubspot.uninstall("sim-client", HUB);
    // The first call finds out, the next one is not sent.
    for attempts in [1, 0] {
        let refusal = world.get(CONTACTS).await.unwrap_err();
        assert!(
            format!("{:?}", refusal.kind).starts_with("Keep(ReconnectRequired"),
            "{refusal:?}"
        );
        assert_eq!(refusal.record.attempts, attempts);
    }
    assert_eq!(world.events(EventKind::CallUnauthorized).await.len(), 1);
}

#[tokio::test]
async fn a_401_whose_refresh_is_not_possible_now_asks_to_come_again() {
    let world = World::new().await;
    world.get(CONTACTS).await.unwrap();
    world.hubspot.expire_access_tokens(HUB);
    world.hubspot.arm(Fault::token(FaultKind::Locked));
    let refusal = world.get(CONTACTS).await.unwrap_err();
    assert!(
        format!("{:?}", refusal.kind).starts_with("Keep(ProviderUnavailable"),
        "{refusal:?}"
    );
    assert_eq!(refusal.record.class.as_str(), "expired");
    assert_eq!(world.hubspot.ledger().token_requests, 1);
}

#[tokio::test]
async fn no_other_answer_costs_a_redemption() {
    let world = World::new().await;
    let faults = [
        FaultKind::Forbidden,
        FaultKind::RateLimited {
            policy: hubspot_sim::RateLimitPolicy::TenSecondly,
            retry_after: Some(7),
        },
        FaultKind::Locked,
        FaultKind::Migrating { retry_after: 3600 },
        FaultKind::Status {
            code: 500,
            location: None,
        },
        FaultKind::Html { code: 502 },
    ];
    let mut seen = Vec::new();
    for (number, fault) in faults.into_iter().enumerate() {
        world.hubspot.arm(Fault::api(fault));
        let answer = world.create(&format!("r{number}")).await.unwrap();
        let (status, class, attempts) = gist(&answer);
        let outcome = text(answer.response.headers(), "evergrant-outcome").to_owned();
        seen.push(format!("{status} {class} {attempts} {outcome}"));
    }
    assert_eq!(
        seen,
        [
            "403 permission_denied 1 ",
            "429 rate_limited 1 ",
            "423 unavailable 1 ",
            "477 unavailable 1 ",
            "500 unavailable 1 unknown",
            "502 unavailable 1 unknown"
        ]
    );
    assert_eq!(world.hubspot.ledger().token_requests, 0);
    let denied = world.events(EventKind::PermissionDenied).await;
    assert!(
        denied.len() == 1 && denied[0].contains("missing scopes: crm."),
        "{denied:?}"
    );
}

#[tokio::test]
async fn a_caller_may_ask_for_a_token_that_lives_longer() {
    let world = World::new().await;
    let request = || {
        let request = Request::get("/").header("evergrant-min-ttl", "1700");
        request.body(Full::new(Bytes::new())).unwrap()
    };
    let answer = world.gateway.call(&world.id, CONTACTS, request()).await.unwrap();
    let ttl: i64 = text(answer.response.headers(), "evergrant-token-ttl")
        .parse()
        .unwrap();
    assert!((1700..=1800).contains(&ttl), "{ttl}");
    assert!(answer.record.duration > Duration::ZERO);
}

#[tokio::test]
async fn a_repeat_that_is_cut_is_a_write_of_unknown_outcome() {
    let provider = Scripted::new(|nth, _| {
        if nth == 0 {
            expired()
        } else {
            Reply::Last(Vec::new())
        }
    })
    .await;
    let world = World::at(&provider.base).await;
    let refusal = world.send("POST", "/x", "body").await.unwrap_err();
    // The repeat is a sending like any other: it left, and no answer came.
    assert!(
        format!("{:?}", refusal.kind).starts_with("OutcomeUnknown"),
        "{refusal:?}"
    );
    assert_eq!((refusal.record.attempts, provider.seen().len()), (2, 2));
}
