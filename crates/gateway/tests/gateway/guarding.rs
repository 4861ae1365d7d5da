//! Guarded writes: carried out once, whatever happens to them, to their answer, to their caller or to the store.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use evergrant_domain::event::EventKind;
use evergrant_gateway::{Answer, GatewayLimits, Refusal, RefusalKind};
use evergrant_keeper::{KeepError, Renewal};
use evergrant_oauth::TlsRoots;
use http::Request;
use hubspot_sim::{Fault, FaultKind};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::faulty::Moment;
use crate::scripted::{Reply, Scripted, expired, ok, reply};
use crate::streaming::fed;
use crate::world::{CONTACTS, Settings, World, body, gist, refused, text};

const ADA: &str = "{\"properties\":{\"email\":\"ada@example.com\",\"firstname\":\"Ada\"}}";
const KEY: (&str, &str) = ("idempotency-key", "canary-key-1");
const WINDOW: (&str, &str) = ("evergrant-dedupe", "fingerprint;window=60");

fn cut() -> Reply {
    Reply::Last(Vec::new())
}

fn created() -> Reply {
    reply(
        "201 Created",
        "Content-Type: application/json\r\nLocation: /7\r\nSet-Cookie: a=b\r\nX-Trace: 1\r\n",
        "{\"id\":\"7\"}",
    )
}

/// A guarded create.
async fn create(world: &World, guard: (&str, &str)) -> Result<Answer, Refusal> {
    world.send_with("POST", CONTACTS, &[guard], ADA).await
}

fn replayed(answer: &Answer) -> &str {
    text(answer.response.headers(), "evergrant-replayed")
}

fn is_unknown(result: Result<Answer, Refusal>) -> bool {
    matches!(refused(result), (RefusalKind::OutcomeStillUnknown { .. }, 0))
}

#[tokio::test]
async fn a_write_that_comes_again_is_answered_with_its_first_answer() {
    for guard in [KEY, WINDOW] {
        let provider = Scripted::new(|_, _| created()).await;
        let world = World::at(&provider.base).await;
        let first = create(&world, guard).await.unwrap();
        assert_eq!((gist(&first), replayed(&first)), ((201, "ok", 1), ""));
        assert_eq!(text(first.response.headers(), "x-trace"), "1");
        assert_eq!(body(first).await, "{\"id\":\"7\"}");
        let again = create(&world, guard).await.unwrap();
        assert_eq!((gist(&again), replayed(&again)), ((201, "ok", 0), "true"));
        assert!(again.record.replayed);
        let headers = again.response.headers();
        let names: Vec<_> = headers.keys().map(http::HeaderName::as_str).collect();
        assert_eq!(text(headers, "location"), "/7");
        assert!(
            !names.contains(&"set-cookie") && !names.contains(&"x-trace"),
            "{names:?}"
        );
        assert_eq!(body(again).await, "{\"id\":\"7\"}");
        assert_eq!(provider.seen().len(), 1, "{guard:?}");
        assert_eq!(world.events(EventKind::WriteSuppressed).await.len(), 1);
    }
}

#[tokio::test]
async fn a_guard_stays_behind_and_the_body_goes_on_whole() {
    let provider = Scripted::new(|_, _| created()).await;
    let world = World::at(&provider.base).await;
    create(&world, KEY).await.unwrap();
    let seen = &provider.seen()[0];
    for name in ["idempotency-key", "evergrant-dedupe", "evergrant-guard"] {
        assert_eq!(seen.header(name), "");
    }
    assert_eq!(seen.body, ADA.as_bytes());
}

#[tokio::test]
async fn every_part_of_a_request_counts() {
    let provider = Scripted::new(|_, _| created()).await;
    let world = World::at(&provider.base).await;
    let json = ("content-type", "application/json");
    let send = async |method, target, headers: &[_], body: &'static str| {
        world.send_with(method, target, headers, body).await
    };
    send("POST", "/x?a=1", &[KEY, json], "{}").await.unwrap();
    for (method, target, headers, body) in [
        ("PUT", "/x?a=1", vec![KEY, json], "{}"),
        ("POST", "/y?a=1", vec![KEY, json], "{}"),
        ("POST", "/x?a=2", vec![KEY, json], "{}"),
        ("POST", "/x", vec![KEY, json], "{}"),
        ("POST", "/x?a=1", vec![KEY, ("content-type", "text/plain")], "{}"),
        ("POST", "/x?a=1", vec![KEY], "{}"),
        ("POST", "/x?a=1", vec![KEY, json], "{} "),
    ] {
        let (kind, _) = refused(send(method, target, &headers, body).await);
        assert!(
            matches!(kind, RefusalKind::IdempotencyMismatch),
            "{method} {target} {kind:?}"
        );
    }
    // Other headers may differ from try to try.
    let again = send("POST", "/x?a=1", &[KEY, json, ("x-try", "2")], "{}")
        .await
        .unwrap();
    assert_eq!(replayed(&again), "true");
    // Without a key each of them is a write of its own.
    send("POST", "/x?a=1", &[WINDOW, json], "{}").await.unwrap();
    send("POST", "/x?a=1", &[WINDOW, json], "{} ").await.unwrap();
    assert_eq!(provider.seen().len(), 3);
}

#[tokio::test]
async fn a_key_lasts_a_day_and_a_window_as_long_as_it_says() {
    let provider = Scripted::new(|_, _| created()).await;
    for (guard, lasts_s) in [(KEY, 24 * 3600), (WINDOW, 60)] {
        let world = World::at(&provider.base).await;
        create(&world, guard).await.unwrap();
        let sql = rusqlite::Connection::open(world.database()).unwrap();
        let kept: i64 = sql
            .query_row("SELECT (keep_until - changed_at) / 1000 FROM writes", [], |row| {
                row.get(0)
            })
            .unwrap();
        assert!((lasts_s - 5..=lasts_s).contains(&kept), "{guard:?} {kept}");
        let over = sql.execute("UPDATE writes SET keep_until = 1", []).unwrap();
        assert_eq!(over, 1);
        let later = create(&world, guard).await.unwrap();
        assert_eq!((gist(&later), replayed(&later)), ((201, "ok", 1), ""));
    }
}

#[tokio::test]
async fn what_may_have_been_carried_out_is_never_sent_again() {
    for guard in [KEY, WINDOW] {
        for fault in [
            FaultKind::AnswerLostAfterIssue,
            FaultKind::StatusAfterIssue { code: 502 },
            // Of whoever stands between.
            FaultKind::StatusAfterIssue { code: 408 },
        ] {
            let world = World::new().await;
            world.hubspot.arm(Fault::api(fault.clone()));
            match create(&world, guard).await {
                Ok(answer) => {
                    let (status, _, attempts) = gist(&answer);
                    assert!(matches!(status, 408 | 502) && attempts == 1, "{status}");
                    assert_eq!(text(answer.response.headers(), "evergrant-outcome"), "unknown");
                }
                Err(refusal) => {
                    let RefusalKind::OutcomeUnknown {
                        look_up: Some(look_up),
                    } = refusal.kind
                    else {
                        panic!("{refusal:?}");
                    };
                    assert_eq!(
                        (look_up.method, look_up.path.as_str()),
                        (
                            "GET",
                            "/crm/v3/objects/contacts/ada%40example.com?idProperty=email"
                        )
                    );
                }
            }
            for _ in 0..3 {
                assert!(is_unknown(create(&world, guard).await), "{guard:?} {fault:?}");
            }
            assert_eq!(world.hubspot.ledger().creates_executed, 1, "{guard:?} {fault:?}");
        }
    }
}

#[tokio::test]
async fn a_provider_that_never_answers_leaves_an_unknown_outcome() {
    let provider = Scripted::new(|nth, _| if nth == 0 { ok() } else { Reply::Silence }).await;
    let mut settings = Settings::default();
    settings.limits.upstream_timeout = Duration::from_millis(100);
    let world = World::with(Some(&provider.base), settings).await;
    world.get("/ok").await.unwrap();
    let (kind, attempts) = refused(create(&world, KEY).await);
    assert!(matches!(kind, RefusalKind::OutcomeUnknown { .. }), "{kind:?}");
    assert_eq!(attempts, 1);
    assert!(is_unknown(create(&world, KEY).await));
    // Somebody who asks for a write once does not want it twice, be the end state the same.
    let put = || world.send_with("PUT", "/x", &[("idempotency-key", "put")], "{}");
    let (kind, _) = refused(put().await);
    assert!(matches!(kind, RefusalKind::OutcomeUnknown { .. }), "{kind:?}");
    assert!(is_unknown(put().await));
    assert_eq!(provider.seen().len(), 3);
}

#[tokio::test]
async fn what_was_surely_not_applied_leaves_its_place_free() {
    for status in ["403 Forbidden", "423 Locked", "429 Too Many", "477 Migration"] {
        let provider = Scripted::new(move |nth, _| {
            if nth == 0 {
                reply(status, "", "")
            } else {
                created()
            }
        })
        .await;
        let world = World::at(&provider.base).await;
        let first = create(&world, KEY).await.unwrap();
        assert!(first.response.status().is_client_error(), "{status}");
        let again = create(&world, KEY).await.unwrap();
        assert_eq!((gist(&again), replayed(&again)), ((201, "ok", 1), ""), "{status}");
    }
}

#[tokio::test]
async fn a_refusal_of_the_write_itself_is_its_answer() {
    for status in [
        "400 Bad Request",
        "404 Not Found",
        "409 Conflict",
        "422 Unprocessable",
    ] {
        let provider = Scripted::new(move |_, _| reply(status, "Retry-After: 3\r\n", "why")).await;
        let world = World::at(&provider.base).await;
        create(&world, KEY).await.unwrap();
        let again = create(&world, KEY).await.unwrap();
        assert_eq!(
            (replayed(&again), again.record.class.as_str()),
            ("true", "client_error")
        );
        assert_eq!(text(again.response.headers(), "retry-after"), "3");
        assert_eq!(body(again).await, "why");
        assert_eq!(provider.seen().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_repeat_after_a_401_is_part_of_the_same_write() {
    let provider = Scripted::new(|nth, _| if nth == 0 { expired() } else { created() }).await;
    let world = World::at(&provider.base).await;
    let first = create(&world, KEY).await.unwrap();
    assert_eq!(gist(&first), (201, "expired", 2));
    assert_eq!(provider.seen()[1].body, ADA.as_bytes());
    assert_eq!(replayed(&create(&world, KEY).await.unwrap()), "true");
    assert_eq!(provider.seen().len(), 2);
}

#[tokio::test]
async fn a_401_that_stays_leaves_its_place_free() {
    let provider = Scripted::new(|nth, _| if nth < 2 { expired() } else { created() }).await;
    let world = World::at(&provider.base).await;
    let first = create(&world, KEY).await.unwrap();
    assert_eq!(gist(&first), (401, "rejected_after_refresh", 2));
    assert_eq!(gist(&create(&world, KEY).await.unwrap()), (201, "ok", 1));
}

#[tokio::test]
async fn a_write_that_never_left_may_run() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let world = World::at(&format!("http://{closed}/")).await;
    for _ in 0..2 {
        let (kind, attempts) = refused(create(&world, KEY).await);
        assert!(matches!(kind, RefusalKind::UpstreamUnreachable), "{kind:?}");
        assert_eq!(attempts, 1);
    }
}

#[tokio::test]
async fn a_shortened_timeout_does_not_make_an_unsent_write_an_unknown_one() {
    // Takes connections, and never speaks TLS.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://{}/", silent.local_addr().unwrap());
    let trusted = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let settings = Settings {
        roots: TlsRoots::Only(vec![trusted.cert.der().clone()]),
        ..Settings::default()
    };
    let world = World::with(Some(&base), settings).await;
    world.gateway.limit(GatewayLimits {
        upstream_timeout: Duration::from_millis(400),
        ..GatewayLimits::default()
    });
    for _ in 0..2 {
        let (kind, _) = refused(create(&world, KEY).await);
        assert!(matches!(kind, RefusalKind::UpstreamUnreachable), "{kind:?}");
    }
}

/// A write that the provider does not answer before it is released.
async fn under_way() -> (Arc<World>, JoinHandle<Result<Answer, Refusal>>) {
    let world = Arc::new(World::new().await);
    world.hubspot.arm(Fault::api(FaultKind::HoldBeforeIssue));
    let first = tokio::spawn({
        let world = world.clone();
        async move { create(&world, KEY).await }
    });
    world.hubspot.wait_for_held(1).await;
    (world, first)
}

#[tokio::test]
async fn while_a_write_is_under_way_the_same_one_waits_its_turn() {
    let (world, first) = under_way().await;
    let (kind, _) = refused(create(&world, KEY).await);
    let RefusalKind::IdempotencyInProgress { retry_after } = kind else {
        panic!("{kind:?}");
    };
    assert!(retry_after >= Duration::from_secs(1) && retry_after <= Duration::from_secs(10));
    world.hubspot.release_held();
    assert_eq!(gist(&first.await.unwrap().unwrap()), (201, "ok", 1));
    assert_eq!(replayed(&create(&world, KEY).await.unwrap()), "true");
}

#[tokio::test]
async fn a_place_lasts_half_a_minute_and_for_as_long_as_its_owner_is_at_work() {
    let (world, first) = under_way().await;
    let sql = rusqlite::Connection::open(world.database()).unwrap();
    let lasts = || -> i64 {
        sql.query_row("SELECT deadline - changed_at FROM writes", [], |row| row.get(0))
            .unwrap()
    };
    assert_eq!(lasts(), 30_000);
    // As if its owner had been there for a while.
    sql.execute("UPDATE writes SET deadline = changed_at + 1", [])
        .unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    while lasts() == 1 {
        tokio::task::yield_now().await;
    }
    let (kind, _) = refused(create(&world, KEY).await);
    assert!(
        matches!(kind, RefusalKind::IdempotencyInProgress { .. }),
        "{kind:?}"
    );
    world.hubspot.release_held();
    assert_eq!(gist(&first.await.unwrap().unwrap()), (201, "ok", 1));
    assert_eq!(replayed(&create(&world, KEY).await.unwrap()), "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_one_is_carried_out() {
    for guard in [KEY, WINDOW] {
        let world = Arc::new(World::new().await);
        let calls: Vec<_> = (0..32)
            .map(|_| {
                let world = world.clone();
                tokio::spawn(async move { create(&world, guard).await })
            })
            .collect();
        let mut first = 0;
        for call in calls {
            match call.await.unwrap() {
                Ok(answer) if replayed(&answer) == "true" => assert_eq!(answer.record.attempts, 0),
                Ok(answer) => {
                    assert_eq!(gist(&answer), (201, "ok", 1));
                    first += 1;
                }
                Err(refusal) => assert!(
                    matches!(refusal.kind, RefusalKind::IdempotencyInProgress { .. }),
                    "{refusal:?}"
                ),
            }
        }
        assert_eq!((first, world.hubspot.ledger().creates_executed), (1, 1));
    }
}

#[tokio::test]
async fn a_caller_that_hangs_up_finds_the_answer_when_it_comes_again() {
    let world = Arc::new(World::new().await);
    world.hubspot.arm(Fault::api(FaultKind::HoldAfterIssue));
    let call = tokio::spawn({
        let world = world.clone();
        async move { create(&world, KEY).await }
    });
    world.hubspot.wait_for_held(1).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    world.hubspot.release_held();
    // A service that stops waits for it.
    world.keeper.shutdown().await;
    let again = create(&world, KEY).await.unwrap();
    assert_eq!((gist(&again), replayed(&again)), ((201, "ok", 0), "true"));
    assert_eq!(world.hubspot.ledger().creates_executed, 1);
}

#[tokio::test]
async fn what_only_reads_needs_no_guard_and_no_store() {
    let provider = Scripted::new(|_, _| ok()).await;
    let world = World::at(&provider.base).await;
    world.get("/x").await.unwrap();
    world.faults.fail("reserve_write", Moment::Before);
    for (method, target) in [
        ("GET", "/x"),
        ("HEAD", "/x"),
        ("POST", "/crm/v3/objects/deals/search"),
    ] {
        for _ in 0..2 {
            let answer = world.send_with(method, target, &[KEY], "").await.unwrap();
            assert_eq!(
                (gist(&answer), replayed(&answer)),
                ((200, "ok", 1), ""),
                "{method}"
            );
        }
    }
    let unguarded = world.send("POST", "/x", "{}").await.unwrap();
    assert_eq!(gist(&unguarded), (200, "ok", 1));
    assert_eq!(world.faults.asked("reserve_write"), 0);
}

#[tokio::test]
async fn a_body_that_cannot_be_compared_is_refused() {
    let provider = Scripted::new(|_, _| created()).await;
    let mut settings = Settings::default();
    settings.limits.body_kept = 10;
    let world = World::with(Some(&provider.base), settings).await;
    let (kind, _) = refused(world.send_with("POST", "/x", &[KEY], "01234567890").await);
    assert!(matches!(kind, RefusalKind::GuardNotApplicable { .. }), "{kind:?}");
    let streamed = |pieces: &'static [&'static str]| {
        let (feed, stream) = fed();
        for piece in pieces {
            feed.send(Bytes::from_static(piece.as_bytes())).unwrap();
        }
        drop(feed);
        let request = Request::post("/").header(KEY.0, KEY.1).body(stream).unwrap();
        world.gateway.call(&world.id, "/x", request)
    };
    let (kind, _) = refused(streamed(&["0123456789", "0"]).await);
    assert!(matches!(kind, RefusalKind::GuardNotApplicable { .. }), "{kind:?}");
    assert_eq!(provider.seen().len(), 0);
    assert_eq!(
        gist(&streamed(&["01234", "56789"]).await.unwrap()),
        (201, "ok", 1)
    );
    assert_eq!(provider.seen()[0].body, b"0123456789");
    // However it is framed.
    let again = world.send_with("POST", "/x", &[KEY], "0123456789").await.unwrap();
    assert_eq!(replayed(&again), "true");
}

#[tokio::test]
async fn an_answer_over_the_limit_is_given_whole_once_and_then_by_its_status() {
    let large = "a".repeat(256 * 1024 + 1);
    let sent = large.clone();
    let provider =
        Scripted::new(move |_, _| reply("201 Created", "Content-Type: text/plain\r\n", &sent)).await;
    let world = World::at(&provider.base).await;
    assert_eq!(body(create(&world, KEY).await.unwrap()).await, large);
    let again = create(&world, KEY).await.unwrap();
    assert_eq!((gist(&again), replayed(&again)), ((201, "ok", 0), "status-only"));
    assert_eq!(text(again.response.headers(), "content-type"), "text/plain");
    assert_eq!(body(again).await, "");
}

#[tokio::test]
async fn an_answer_that_breaks_off_was_one_all_the_same() {
    let provider = Scripted::new(|_, _| {
        Reply::Last(b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\nhalf".to_vec())
    })
    .await;
    let world = World::at(&provider.base).await;
    create(&world, KEY).await.unwrap();
    let again = create(&world, KEY).await.unwrap();
    assert_eq!((gist(&again), replayed(&again)), ((201, "ok", 0), "status-only"));
    assert_eq!(provider.seen().len(), 1);
}

#[tokio::test]
async fn without_the_store_no_guarded_write_leaves() {
    for (step, moment) in [
        ("reserve_write", Moment::Before),
        ("reserve_write", Moment::After),
        ("write_leaves", Moment::Before),
        ("write_leaves", Moment::After),
    ] {
        let provider = Scripted::new(|_, _| created()).await;
        let world = World::at(&provider.base).await;
        world.faults.fail(step, moment);
        let (kind, attempts) = refused(create(&world, KEY).await);
        assert!(
            matches!(kind, RefusalKind::Keep(KeepError::StoreUnavailable { .. })),
            "{step} {kind:?}"
        );
        assert_eq!((attempts, provider.seen().len()), (0, 0), "{step} {moment:?}");
        world.faults.heal();
        // What may have been taken is given up behind the call.
        world.keeper.shutdown().await;
        let again = create(&world, KEY).await.unwrap();
        assert_eq!(gist(&again), (201, "ok", 1), "{step} {moment:?}");
    }
}

#[tokio::test]
async fn an_end_that_the_store_does_not_take_keeps_the_answer_from_nobody() {
    for moment in [Moment::Before, Moment::After] {
        let provider = Scripted::new(|_, _| created()).await;
        let world = World::at(&provider.base).await;
        world.get("/warm").await.unwrap();
        world.faults.fail("end_write", moment);
        let first = create(&world, KEY).await.unwrap();
        assert_eq!(gist(&first), (201, "ok", 1));
        if moment == Moment::Before {
            let (kind, _) = refused(create(&world, KEY).await);
            assert!(
                matches!(kind, RefusalKind::IdempotencyInProgress { .. }),
                "{kind:?}"
            );
        }
        world.faults.heal();
        // It is tried on, and a service that stops waits for that.
        world.keeper.shutdown().await;
        assert_eq!(
            replayed(&create(&world, KEY).await.unwrap()),
            "true",
            "{moment:?}"
        );
        assert_eq!(provider.seen().len(), 2);
    }
}

#[tokio::test]
async fn ends_that_the_store_does_not_take_are_bounded_and_hold_no_shutdown() {
    let provider = Scripted::new(|_, _| created()).await;
    let world = World::at(&provider.base).await;
    world.faults.fail("reserve_write", Moment::Before);
    let hung = world.faults.hold("end_write");
    for _ in 0..1100 {
        refused(create(&world, KEY).await);
    }
    // Each that waits has been asked for once it had its turn.
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.faults.asked("end_write"), 1024);
    timeout(
        Duration::from_secs(20),
        world.keeper.shutdown_within(Some(Duration::ZERO)),
    )
    .await
    .expect("a store that hangs holds nobody who stops");
    drop(hung);
}

#[tokio::test]
async fn an_end_is_tried_once_more_when_the_service_stops_and_no_longer() {
    let provider = Scripted::new(|_, _| created()).await;
    let world = World::at(&provider.base).await;
    world.get("/warm").await.unwrap();
    world.faults.fail("reserve_write", Moment::Before);
    world.faults.fail("end_write", Moment::Before);
    refused(create(&world, KEY).await);
    timeout(Duration::from_secs(20), world.keeper.shutdown())
        .await
        .expect("it is not tried for minutes");
    assert!(world.faults.asked("end_write") <= 3);
}

#[tokio::test]
async fn a_guarded_write_that_hangs_holds_a_shutdown_for_no_longer_than_it_has_patience() {
    let (world, call) = under_way().await;
    call.abort();
    let stopping = world.keeper.shutdown_within(Some(Duration::from_millis(1)));
    timeout(Duration::from_secs(20), stopping)
        .await
        .expect("it is cut off");
    assert_eq!(world.hubspot.ledger().creates_executed, 0);
    world.hubspot.release_held();
}

#[tokio::test]
async fn the_token_is_chosen_after_it_is_on_record_that_the_write_leaves() {
    let world = Arc::new(World::new().await);
    let permits = world.faults.hold("write_leaves");
    let call = tokio::spawn({
        let world = world.clone();
        async move { create(&world, KEY).await }
    });
    while world.faults.asked("write_leaves") == 0 {
        tokio::task::yield_now().await;
    }
    let newer = world
        .keeper
        .refresh(&world.id, None, Renewal::Forced)
        .await
        .unwrap();
    permits.add_permits(1);
    let answer = call.await.unwrap().unwrap();
    assert_eq!(gist(&answer), (201, "ok", 1));
    assert_eq!(answer.record.version, Some(newer.version));
}

#[tokio::test]
async fn the_end_is_on_record_before_the_caller_has_the_answer() {
    let provider = Scripted::new(|_, _| created()).await;
    let world = Arc::new(World::at(&provider.base).await);
    let permits = world.faults.hold("end_write");
    let call = tokio::spawn({
        let world = world.clone();
        async move { create(&world, KEY).await }
    });
    while world.faults.asked("end_write") == 0 {
        tokio::task::yield_now().await;
    }
    // Nothing else has to happen until then.
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert!(!call.is_finished());
    }
    permits.add_permits(1);
    assert_eq!(gist(&call.await.unwrap().unwrap()), (201, "ok", 1));
    assert_eq!(replayed(&create(&world, KEY).await.unwrap()), "true");
}

#[tokio::test]
async fn a_write_whose_place_was_taken_over_does_not_leave() {
    let provider = Scripted::new(|_, _| created()).await;
    let world = World::at(&provider.base).await;
    // As if it had been away for longer than its place lasts, and another had come meanwhile.
    world.faults.steal(world.database());
    let (kind, attempts) = refused(create(&world, KEY).await);
    assert!(
        matches!(kind, RefusalKind::IdempotencyInProgress { .. }),
        "{kind:?}"
    );
    assert_eq!((attempts, provider.seen().len()), (0, 0));
    // What the other one has is left alone.
    assert_eq!(world.faults.asked("end_write"), 0);
}

#[tokio::test]
async fn neither_key_nor_body_is_shown_anywhere() {
    let provider = Scripted::new(|nth, _| if nth == 0 { created() } else { cut() }).await;
    let world = World::at(&provider.base).await;
    let mut shown = String::new();
    for (key, body) in [
        ("canary-key-1", ADA),
        ("canary-key-1", ADA),
        ("canary-key-1", "{}"),
        ("canary-key-2", ADA),
        ("canary-key-2", ADA),
    ] {
        let result = world
            .send_with("POST", CONTACTS, &[("idempotency-key", key)], body)
            .await;
        match result {
            Ok(answer) => write!(shown, "{answer:?}").unwrap(),
            Err(refusal) => write!(shown, "{refusal:?} {refusal}").unwrap(),
        }
    }
    for kind in [EventKind::WriteSuppressed, EventKind::OutcomeUnknown] {
        let events = world.events(kind).await;
        assert_eq!(events.len(), 1);
        shown.push_str(&events.join(" "));
    }
    for canary in ["canary-key", "ada@", "ada%40", "firstname"] {
        assert!(!shown.contains(canary), "{canary} in {shown}");
    }
    let stored = world.stored();
    for canary in ["canary-key", "ada@example.com", "\"id\":\"7\""] {
        let found = stored
            .windows(canary.len())
            .any(|bytes| bytes == canary.as_bytes());
        assert!(!found, "{canary} is stored in clear");
    }
}
