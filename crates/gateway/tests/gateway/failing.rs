//! No answer, or one that says that the provider has trouble.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::{AccessToken, ReconnectReason, RefreshToken};
use evergrant_gateway::RefusalKind;
use evergrant_keeper::KeepError;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hubspot_sim::{Fault, FaultKind};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::faulty::Moment;
use crate::scripted::{Reply, Scripted, ok, reply};
use crate::streaming::fed;
use crate::world::{CONTACTS, HUB, Settings, World, body, gist, refused, text};

fn cut() -> Reply {
    Reply::Last(Vec::new())
}

#[tokio::test]
async fn a_write_that_nobody_guarded_is_told_how_to_look_for_it_by_what_it_said() {
    let world = World::new().await;
    world.hubspot.arm(Fault::api(FaultKind::AnswerLostAfterIssue));
    let refusal = world
        .send_with(
            "POST",
            CONTACTS,
            &[],
            "{\"properties\":{\"email\":\"ada@example.com\"}}",
        )
        .await
        .unwrap_err();
    let RefusalKind::OutcomeUnknown {
        look_up: Some(look_up),
    } = refusal.kind
    else {
        panic!("{refusal:?}");
    };
    assert_eq!(
        look_up.path,
        "/crm/v3/objects/contacts/ada%40example.com?idProperty=email"
    );
}

#[tokio::test]
async fn a_write_that_is_cut_after_it_was_carried_out_is_not_sent_again() {
    let world = World::new().await;
    world.hubspot.arm(Fault::api(FaultKind::AnswerLostAfterIssue));
    let (kind, attempts) = refused(world.create("r1").await);
    assert!(matches!(kind, RefusalKind::OutcomeUnknown { .. }), "{kind:?}");
    assert_eq!(attempts, 1);
    let request = world.hubspot.ledger().requests["r1"].clone();
    assert_eq!((request.deliveries, request.executed), (1, 1));
    assert_eq!(world.events(EventKind::OutcomeUnknown).await.len(), 1);
}

#[tokio::test]
async fn a_read_that_is_cut_is_sent_once_more_and_no_more() {
    let once = Scripted::new(|nth, _| if nth == 0 { cut() } else { ok() }).await;
    let world = World::at(&once.base).await;
    assert_eq!(gist(&world.get("/x").await.unwrap()), (200, "unavailable", 2));
    let search = world
        .send("POST", "/crm/v3/objects/contacts/search", "{}")
        .await
        .unwrap();
    assert_eq!(gist(&search), (200, "ok", 1));

    let always = Scripted::new(|_, _| cut()).await;
    let world = World::at(&always.base).await;
    let (kind, attempts) = refused(world.get("/x").await);
    assert!(matches!(kind, RefusalKind::UpstreamTimeout), "{kind:?}");
    assert_eq!((attempts, always.seen().len()), (2, 2));
}

#[tokio::test]
async fn an_idempotent_write_that_is_cut_is_the_callers_to_repeat() {
    let provider = Scripted::new(|_, _| cut()).await;
    let world = World::at(&provider.base).await;
    for method in ["PUT", "PATCH", "DELETE"] {
        let (kind, attempts) = refused(world.send(method, "/crm/v3/objects/contacts/1", "{}").await);
        assert!(matches!(kind, RefusalKind::UpstreamTimeout), "{method} {kind:?}");
        assert_eq!(attempts, 1, "{method}");
    }
}

#[tokio::test]
async fn a_read_is_sent_once_more_after_a_5xx_that_may_pass() {
    let unavailable = || reply("503 Service Unavailable", "", "busy");
    let once = Scripted::new(move |nth, _| if nth == 0 { unavailable() } else { ok() }).await;
    let world = World::at(&once.base).await;
    assert_eq!(gist(&world.get("/x").await.unwrap()), (200, "unavailable", 2));

    let always = Scripted::new(move |_, _| unavailable()).await;
    let world = World::at(&always.base).await;
    let answer = world.get("/x").await.unwrap();
    assert_eq!(gist(&answer), (503, "unavailable", 2));
    assert_eq!(body(answer).await, "busy");
    let write = world.send("POST", "/x", "{}").await.unwrap();
    assert_eq!(gist(&write), (503, "unavailable", 1));
    assert_eq!(text(write.response.headers(), "evergrant-outcome"), "unknown");
    assert!(write.record.outcome_unknown);

    let for_long = Scripted::new(|_, _| reply("503 Service Unavailable", "Retry-After: 3\r\n", "")).await;
    let world = World::at(&for_long.base).await;
    let answer = world.get("/x").await.unwrap();
    assert_eq!(gist(&answer), (503, "unavailable", 1));
    assert_eq!(text(answer.response.headers(), "retry-after"), "3");
}

#[tokio::test]
async fn a_401_and_a_5xx_together_cost_three_sendings_at_most() {
    let provider = Scripted::new(|nth, _| match nth % 2 {
        0 => reply("503 Service Unavailable", "", ""),
        _ => crate::scripted::expired(),
    })
    .await;
    let world = World::at(&provider.base).await;
    assert_eq!(gist(&world.get("/x").await.unwrap()), (503, "unavailable", 3));
    assert_eq!(provider.seen().len(), 3);
}

#[tokio::test]
async fn a_provider_that_never_answers_is_not_waited_for() {
    let provider = Scripted::new(|_, seen| {
        if seen.first_line().contains("/ok") {
            ok()
        } else {
            Reply::Silence
        }
    })
    .await;
    let world = World::at(&provider.base).await;
    // The token is at hand from here on, so that nothing but timers is waited for.
    world.get("/ok").await.unwrap();
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let (kind, attempts) = refused(world.get("/x").await);
    assert!(matches!(kind, RefusalKind::UpstreamTimeout), "{kind:?}");
    assert_eq!(attempts, 1);
    assert!(began.elapsed() >= Duration::from_secs(60) && began.elapsed() < Duration::from_secs(70));
    let (kind, _) = refused(world.send("PUT", "/x", "{}").await);
    assert!(matches!(kind, RefusalKind::UpstreamTimeout), "{kind:?}");
    let (kind, _) = refused(world.send("POST", "/x", "{}").await);
    assert!(matches!(kind, RefusalKind::OutcomeUnknown { .. }), "{kind:?}");
}

#[tokio::test]
async fn a_caller_that_stops_in_the_middle_of_its_body_is_not_the_providers_fault() {
    let provider = Scripted::new(|_, _| ok()).await;
    let world = World::at(&provider.base).await;
    world.get("/ok").await.unwrap();
    tokio::time::pause();
    let (feed, stream) = fed();
    feed.send(Bytes::from_static(b"half")).unwrap();
    let request = Request::post("/").body(stream).unwrap();
    let (kind, _) = refused(world.gateway.call(&world.id, "/x", request).await);
    assert!(matches!(kind, RefusalKind::BadRequest { .. }), "{kind:?}");
    assert_eq!(provider.seen().len(), 1);
}

#[tokio::test]
async fn a_call_that_never_left_may_be_sent_again_whatever_it_is() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let world = World::at(&format!("http://{closed}/")).await;
    let (kind, attempts) = refused(world.send("POST", "/x", "{}").await);
    assert!(matches!(kind, RefusalKind::UpstreamUnreachable), "{kind:?}");
    assert_eq!(attempts, 1);
}

#[tokio::test]
async fn no_bearer_leaves_this_machine_in_clear() {
    let provider = Scripted::new(|_, _| ok()).await;
    // Would be connected to, but is no address of this machine alone.
    let world = World::at(&provider.base.replace("127.0.0.1", "0.0.0.0")).await;
    let (kind, _) = refused(world.send("POST", "/x", "{}").await);
    assert!(matches!(kind, RefusalKind::UpstreamUnreachable), "{kind:?}");
    assert_eq!(provider.seen().len(), 0);
    let world = World::at(&provider.base.replace("127.0.0.1", "localhost")).await;
    assert_eq!(
        gist(&world.send("POST", "/x", "{}").await.unwrap()),
        (200, "ok", 1)
    );
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_fails_no_write() {
    let provider = Scripted::new(|_, _| {
        let Reply::Bytes(bytes) = ok() else { unreachable!() };
        Reply::Last(bytes)
    })
    .await;
    let world = World::at(&provider.base).await;
    for number in 1..=20 {
        // Without a body, then with one.
        let answer = if number > 10 {
            world.send("POST", "/x", "{}").await.unwrap()
        } else {
            world.send("DELETE", "/x", "").await.unwrap()
        };
        assert_eq!(gist(&answer), (200, "ok", 1));
        body(answer).await;
        provider.wait_for_ends(number).await;
    }
    assert_eq!(provider.seen().len(), 20);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_never_taken_for_a_whole_one() {
    for framing in [
        "Content-Length: 100\r\n\r\nhalf",
        "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        for status in ["200 OK", "404 Not Found"] {
            let bytes = format!("HTTP/1.1 {status}\r\n{framing}").into_bytes();
            let provider = Scripted::new(move |_, _| Reply::Last(bytes.clone())).await;
            let world = World::at(&provider.base).await;
            let mut answer = world.get("/x").await.unwrap().response.into_body();
            assert_eq!(
                answer.frame().await.unwrap().unwrap().into_data().unwrap(),
                "half"
            );
            assert!(answer.frame().await.unwrap().is_err(), "{status} {framing}");
        }
    }
}

#[tokio::test]
async fn what_is_no_answer_is_not_passed_on() {
    for nonsense in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "hello\r\n\r\n",
    ] {
        let provider = Scripted::new(move |_, _| Reply::Last(nonsense.into())).await;
        let world = World::at(&provider.base).await;
        let (kind, _) = refused(world.send("POST", "/x", "{}").await);
        assert!(
            matches!(kind, RefusalKind::OutcomeUnknown { .. }),
            "{nonsense:?} {kind:?}"
        );
        let (kind, _) = refused(world.get("/x").await);
        assert!(
            matches!(kind, RefusalKind::UpstreamTimeout),
            "{nonsense:?} {kind:?}"
        );
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_broken_off_on_its_way() {
    let provider = Scripted::new(|_, _| ok()).await;
    let mut settings = Settings::default();
    settings.limits.body_max = Some(10);
    let world = World::with(Some(&provider.base), settings).await;
    let (kind, attempts) = refused(world.send("POST", "/x", "01234567890").await);
    assert!(
        matches!(kind, RefusalKind::BodyTooLarge { limit: 10 }),
        "{kind:?}"
    );
    assert_eq!(attempts, 0);
    let (feed, stream) = fed();
    for piece in [&b"0123456789"[..], b"0"] {
        feed.send(Bytes::from_static(piece)).unwrap();
    }
    let request = Request::post("/").body(stream).unwrap();
    let (kind, _) = refused(world.gateway.call(&world.id, "/x", request).await);
    assert!(
        matches!(kind, RefusalKind::BodyTooLarge { limit: 10 }),
        "{kind:?}"
    );
    assert_eq!(provider.seen().len(), 0, "the provider saw a whole request");
    assert_eq!(
        gist(&world.send("POST", "/x", "0123456789").await.unwrap()),
        (200, "ok", 1)
    );
}

#[tokio::test]
async fn a_caller_that_leaves_ends_the_exchange_with_the_provider() {
    let provider = Scripted::new(|_, _| Reply::Silence).await;
    let world = World::at(&provider.base).await;
    let gateway = world.gateway.clone();
    let id = world.id.clone();
    let call = tokio::spawn(async move {
        let request = Request::get("/").body(Full::new(Bytes::new())).unwrap();
        gateway.call(&id, CONTACTS, request).await
    });
    provider.wait_for_requests(1).await;
    call.abort();
    provider.wait_for_ends(1).await;
    assert!(call.await.unwrap_err().is_cancelled());
}

const UNINSTALL: &str = "/appinstalls/2026-03/external-install";

#[tokio::test]
async fn an_uninstall_through_the_gateway_ends_the_grant_at_once() {
    let world = World::new().await;
    let answer = world.send("DELETE", UNINSTALL, "").await.unwrap();
    assert_eq!(gist(&answer), (204, "ok", 1));
    let before = world.hubspot.ledger().token_requests;
    let (kind, attempts) = refused(world.get(CONTACTS).await);
    assert!(
        matches!(
            &kind,
            RefusalKind::Keep(KeepError::ReconnectRequired {
                reason: ReconnectReason::Uninstalled,
                ..
            })
        ),
        "{kind:?}"
    );
    assert_eq!(attempts, 0);
    assert_eq!(
        world.hubspot.ledger().token_requests,
        before,
        "no refresh token was presented"
    );
    let told = world.events(EventKind::ReconnectRequired).await;
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("a call through the gateway"), "{told:?}");
}

#[tokio::test]
async fn an_uninstall_that_was_refused_or_is_none_ends_nothing() {
    let provider = Scripted::new(|_, request| {
        if request.head.starts_with("DELETE /crm") {
            reply("204 No Content", "", "")
        } else {
            reply("403 Forbidden", "", "{}")
        }
    })
    .await;
    let world = World::at(&provider.base).await;
    world.send("DELETE", UNINSTALL, "").await.unwrap();
    world
        .send("DELETE", "/crm/v3/objects/contacts/1", "")
        .await
        .unwrap();
    world.keeper.current(&world.id, None).await.expect("it serves on");
    assert!(world.events(EventKind::ReconnectRequired).await.is_empty());
}

#[tokio::test]
async fn an_uninstall_that_the_store_did_not_take_is_told_again() {
    let world = World::new().await;
    world.faults.fail("mark_uninstalled", Moment::Before);
    world.send("DELETE", UNINSTALL, "").await.unwrap();
    assert_eq!(world.faults.asked("mark_uninstalled"), 1);
    world.faults.heal();
    // Whoever tells it again waits for its second by now.
    for _ in 0..9 {
        tokio::task::yield_now().await;
    }
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(1)).await;
    tokio::time::resume();
    let told = world.events(EventKind::ReconnectRequired).await;
    assert_eq!(told.len(), 1, "{told:?}");
}

/// A gateway whose API takes every uninstall, and a call that did one and has not been noted yet; it is noted with a permit.
async fn uninstalling() -> (World, Arc<Semaphore>, tokio::task::JoinHandle<u16>) {
    let provider = Scripted::new(|_, _| reply("204 No Content", "", "")).await;
    let world = World::at(&provider.base).await;
    let noted = world.faults.hold("mark_uninstalled");
    let call = tokio::spawn({
        let (gateway, id) = (world.gateway.clone(), world.id.clone());
        async move {
            let request = Request::delete("/").body(Full::new(Bytes::new())).unwrap();
            let answer = gateway.call(&id, UNINSTALL, request).await.unwrap();
            answer.response.status().as_u16()
        }
    });
    while world.faults.asked("mark_uninstalled") == 0 {
        tokio::task::yield_now().await;
    }
    (world, noted, call)
}

#[tokio::test]
async fn a_refresh_in_between_does_not_hide_an_uninstall() {
    let (world, noted, call) = uninstalling().await;
    let renewal = evergrant_keeper::Renewal::Forced;
    let report = world.keeper.refresh(&world.id, None, renewal).await.unwrap();
    assert!(report.version > report.version_before);
    noted.add_permits(1);
    assert_eq!(call.await.unwrap(), 204);
    let (kind, _) = refused(world.get(CONTACTS).await);
    assert!(
        matches!(
            &kind,
            RefusalKind::Keep(KeepError::ReconnectRequired {
                reason: ReconnectReason::Uninstalled,
                ..
            })
        ),
        "{kind:?}"
    );
}

#[tokio::test]
async fn a_consent_in_between_outlives_the_uninstall_before_it() {
    let (world, noted, call) = uninstalling().await;
    let another = world.another_keeper().await;
    let held = another.store().held(&world.id).await.unwrap().unwrap();
    let grant = world.hubspot.grant("sim-client", HUB).unwrap();
    let mut tokens = held.tokens.unwrap();
    tokens.refresh_token = Some(RefreshToken::new(grant.refresh_token));
    tokens.access_token = AccessToken::new(grant.access_token);
    let event = Event::new(EventKind::Reconnected, "the customer gave consent again");
    let now = another.clock().now();
    another
        .store()
        .reconnect(&world.id, None, tokens, event, now)
        .await
        .unwrap();
    noted.add_permits(1);
    assert_eq!(call.await.unwrap(), 204);
    assert!(world.events(EventKind::ReconnectRequired).await.is_empty());
    let record = another.store().connection(&world.id).await.unwrap().unwrap();
    assert_eq!(record.status, evergrant_domain::ConnectionStatus::Active);
}
