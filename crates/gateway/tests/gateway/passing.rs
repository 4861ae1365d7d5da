//! What goes through, and what does not.

use bytes::Bytes;
use evergrant_gateway::RefusalKind;
use http::Request;
use http_body_util::Full;

use crate::scripted::{Reply, Scripted, ok, reply};
use crate::streaming::fed;
use crate::world::{World, body, gist, refused, text};

#[tokio::test]
async fn the_provider_sees_the_callers_request_with_our_bearer_and_nothing_of_ours() {
    let provider = Scripted::new(|_, _| ok()).await;
    let world = World::at(&format!("{}base/v1/", provider.base)).await;
    let request = Request::put("http://evil.test/ignored")
        .header("host", "evil.test")
        .header("authorization", "Bearer evg_callers_key")
        .header("connection", "authorization, x-once, keep-alive")
        .header("cookie", "session=1")
        .header("evergrant-connection", "c1")
        .header("evergrant-lane", "sync")
        .header("te", "trailers")
        .header("proxy-authorization", "Basic x")
        .header("upgrade", "h2c")
        .header("x-forwarded-host", "evil.test")
        .header("x-once", "1")
        .header("content-length", "999")
        .header("content-type", "text/plain")
        .header("x-mine", "a")
        .header("x-mine", "b")
        .body(Full::new(Bytes::from_static(b"hello")))
        .unwrap();
    let answer = world.gateway.call(&world.id, "/x?y=%2F", request).await.unwrap();
    assert_eq!(gist(&answer), (200, "ok", 1));
    let seen = provider.seen().remove(0);
    let bearer = world
        .keeper
        .current(&world.id, None)
        .await
        .unwrap()
        .bearer
        .clone();
    let mut lines: Vec<&str> = seen.head.trim_end().lines().collect();
    lines[1..].sort_unstable();
    let host = provider.base.trim_start_matches("http://").trim_end_matches('/');
    assert_eq!(
        lines,
        [
            "PUT /base/v1/x?y=%2F HTTP/1.1",
            &format!("authorization: {}", bearer.to_str().unwrap()),
            "content-length: 5",
            "content-type: text/plain",
            &format!("host: {host}"),
            "x-mine: a",
            "x-mine: b",
        ]
    );
    assert_eq!(seen.body, b"hello");
}

#[tokio::test]
async fn the_caller_sees_the_providers_answer_and_nothing_that_only_concerns_us() {
    let provider = Scripted::new(|_, _| {
        reply(
            "418 I'm a teapot",
            "Connection: x-once\r\nX-Once: 1\r\nKeep-Alive: timeout=5\r\nSet-Cookie: a=b\r\nEvergrant-Error: reconnect_required\r\n\
             Evergrant-Class: ok\r\nServer-Timing: db;dur=1\r\nX-Mine: a\r\nX-Mine: b\r\nContent-Type: text/plain\r\n",
            "short and stout",
        )
    })
    .await;
    let world = World::at(&provider.base).await;
    let answer = world.get("/x").await.unwrap();
    assert_eq!(gist(&answer), (418, "client_error", 1));
    let headers = answer.response.headers();
    let mut names: Vec<&str> = headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "content-length",
            "content-type",
            "evergrant-attempts",
            "evergrant-class",
            "evergrant-token-ttl",
            "evergrant-token-version",
            "server-timing",
            "x-mine",
        ]
    );
    assert_eq!(headers.get_all("x-mine").iter().count(), 2);
    let timings: Vec<&str> = headers
        .get_all("server-timing")
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect();
    assert!(
        timings[0] == "db;dur=1" && timings[1].starts_with("token;dur="),
        "{timings:?}"
    );
    assert_eq!(body(answer).await, "short and stout");
}

#[tokio::test]
async fn a_redirect_is_passed_on_and_never_followed() {
    let elsewhere = Scripted::new(|_, _| ok()).await;
    let location = format!("Location: {}x\r\n", elsewhere.base);
    let provider = Scripted::new(move |nth, _| {
        let status = ["301 A", "302 B", "303 C", "307 D", "308 E"][nth];
        reply(status, &location, "")
    })
    .await;
    let world = World::at(&provider.base).await;
    for status in [301, 302, 303, 307, 308] {
        let answer = world.send("POST", "/x", "{}").await.unwrap();
        assert_eq!(gist(&answer), (status, "ok", 1));
        assert_eq!(
            text(answer.response.headers(), "location"),
            format!("{}x", elsewhere.base)
        );
    }
    assert_eq!(elsewhere.seen().len(), 0);
}

#[tokio::test]
async fn what_is_refused_is_not_sent() {
    let provider = Scripted::new(|_, _| ok()).await;
    let world = World::at(&provider.base).await;
    for target in ["/../x", "//evil.test/", "/%2e%2e/x", "/a\\b", "x", "/a%00"] {
        let (kind, attempts) = refused(world.get(target).await);
        assert!(
            matches!(kind, RefusalKind::BadRequest { .. }),
            "{target} {kind:?}"
        );
        assert_eq!(attempts, 0);
    }
    for target in ["/oauth/v1/token", "/oauth%2Fv1%2Ftoken"] {
        let (kind, _) = refused(world.send("POST", target, "grant_type=refresh_token").await);
        assert!(matches!(kind, RefusalKind::UseEvergrant), "{target} {kind:?}");
    }
    for method in ["CONNECT", "TRACE"] {
        let (kind, _) = refused(world.send(method, "/x", "").await);
        assert!(
            matches!(kind, RefusalKind::BadRequest { .. }),
            "{method} {kind:?}"
        );
    }
    for (guard, value) in [
        ("idempotency-key", "two words"),
        ("evergrant-dedupe", "fingerprint"),
        ("evergrant-guard", "write-before-read"),
    ] {
        let (kind, _) = refused(world.send_with("POST", "/x", &[(guard, value)], "").await);
        assert!(matches!(kind, RefusalKind::BadRequest { .. }), "{guard} {kind:?}");
    }
    assert_eq!(provider.seen().len(), 0);
    assert_eq!(world.hubspot.ledger().token_requests, 0);
}

#[tokio::test]
async fn how_long_a_body_is_means_the_same_on_both_sides() {
    let provider = Scripted::new(|_, _| ok()).await;
    let world = World::at(&provider.base).await;
    world.send("POST", "/x", "").await.unwrap();
    world.send("GET", "/x", "").await.unwrap();
    world.send("GET", "/x", "abc").await.unwrap();
    for method in ["GET", "DELETE", "POST"] {
        let (feed, stream) = fed();
        feed.send(Bytes::from_static(b"abc")).unwrap();
        drop(feed);
        let request = Request::builder().method(method).uri("/").body(stream).unwrap();
        world.gateway.call(&world.id, "/x", request).await.unwrap();
    }
    let seen: Vec<String> = provider
        .seen()
        .iter()
        .map(|seen| {
            let (length, coding) = (seen.header("content-length"), seen.header("transfer-encoding"));
            format!("{length}|{coding}|{}", String::from_utf8_lossy(&seen.body))
        })
        .collect();
    assert_eq!(
        seen,
        [
            "0||",
            "||",
            "3||abc",
            "|chunked|abc",
            "|chunked|abc",
            "|chunked|abc"
        ]
    );
}

#[tokio::test]
async fn a_head_request_keeps_the_length_of_what_it_does_not_get() {
    let provider =
        Scripted::new(|_, _| Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n".to_vec())).await;
    let world = World::at(&provider.base).await;
    for _ in 0..2 {
        let answer = world.send("HEAD", "/x", "").await.unwrap();
        assert_eq!(text(answer.response.headers(), "content-length"), "1234");
        assert_eq!(body(answer).await, "");
    }
}

#[tokio::test]
async fn an_answer_in_an_older_http_is_passed_on_in_ours() {
    let provider = Scripted::new(|_, _| Reply::Last(b"HTTP/1.0 200 OK\r\n\r\nuntil the end".to_vec())).await;
    let world = World::at(&provider.base).await;
    let answer = world.get("/x").await.unwrap();
    assert_eq!(answer.response.version(), http::Version::HTTP_11);
    assert_eq!(body(answer).await, "until the end");
}

#[tokio::test]
async fn what_is_known_of_a_call_holds_neither_its_token_nor_its_query() {
    let provider = Scripted::new(|nth, _| if nth == 0 { ok() } else { Reply::Last(Vec::new()) }).await;
    let world = World::at(&provider.base).await;
    let token = world.keeper.current(&world.id, None).await.unwrap();
    let answer = world.get("/x?secret=canary").await.unwrap();
    let refusal = world
        .send("POST", "/x?secret=canary", "canary")
        .await
        .unwrap_err();
    let shown = format!("{answer:?} {refusal:?} {refusal}");
    assert!(
        !shown.contains("canary") && !shown.contains(token.access_token.expose()),
        "{shown}"
    );
    assert_eq!(refusal.record.endpoint(), "/x");
}
