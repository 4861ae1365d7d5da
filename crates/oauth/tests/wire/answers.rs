//! Every odd answer that a token endpoint can give, and what it comes to.

use std::time::Duration;

use evergrant_domain::token_answer::{Introspected, Revoked, TokenAnswer};
use evergrant_domain::{AccessToken, RefreshToken};
use evergrant_oauth::{ClientCheck, Introspect};

use crate::server::{Script, Server, answer};
use crate::{DEADLINE, app, endpoint, issued, redeem, retry_after, secret, shown};

const TOKENS: &str = r#"{"access_token":"a","refresh_token":"r","expires_in":1800}"#;

/// Redeems at a server that does this, and gives the answer's word.
async fn check(script: Script, expected: &str) {
    let server = Server::start(script).await;
    let answer = redeem(server.base()).await;
    assert_eq!(shown(&answer), expected);
    assert_eq!(server.log().requests.len(), 1, "{expected}");
    assert_eq!(server.log().connections, 1, "{expected}");
}

fn ok(body: impl AsRef<[u8]>) -> Script {
    Script::Say(answer("200 OK", &["content-type: application/json"], body))
}

#[tokio::test]
async fn a_plain_answer_is_read_with_a_length_with_chunks_or_to_the_end() {
    check(ok(TOKENS), "issued").await;
    let chunked = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{}\r\n{:x}\r\n{}\r\n0\r\ntrailer: x\r\n\r\n",
        &TOKENS[..5],
        TOKENS.len() - 5,
        &TOKENS[5..]
    );
    check(Script::Say(chunked.into()), "issued").await;
    let to_the_end = format!("HTTP/1.1 200 OK\r\n\r\n{TOKENS}");
    check(Script::Say(to_the_end.into()), "issued").await;
    // The length counts, not the end.
    check(Script::SayAndHang(answer("200 OK", &[], TOKENS)), "issued").await;
    let after_interim = [
        b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(50),
        answer("200 OK", &[], TOKENS),
    ]
    .concat();
    check(Script::Say(after_interim), "issued").await;
}

#[tokio::test]
async fn an_unreadable_success_is_a_lost_answer() {
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    for body in [
        "",
        "{",
        r#"{"access_token":"abc","refr"#,
        "<!doctype html><title>Welcome to the hotel</title>",
        "\u{feff}{\"access_token\":\"a\"}",
        r#"{"access_token":"a","access_token":"b"}"#,
        &deep,
    ] {
        check(ok(body), "lost: unreadable (HTTP 200)").await;
    }
    check(ok(b"{\"access_token\":\"\xff\"}"), "lost: unreadable (HTTP 200)").await;
}

#[tokio::test]
async fn a_token_that_cannot_be_sent_on_is_a_lost_answer() {
    for token in ["", r"a\r\nx-evil: 1", r"a\nb", "tök", r"a\u0000", "a b"] {
        let body = format!(r#"{{"access_token":"{token}"}}"#);
        check(ok(body), "lost: unusable_access_token (HTTP 200)").await;
    }
    check(
        ok(r#"{"token_type":"bearer"}"#),
        "lost: no_access_token (HTTP 200)",
    )
    .await;
    check(
        ok(r#"{"access_token":"a","token_type":"mac"}"#),
        "lost: unusable_token_type (HTTP 200)",
    )
    .await;
    check(ok(r#"{"access_token":"a","token_type":"BEARER"}"#), "issued").await;
    check(
        ok(format!(r#"{{"access_token":"{}"}}"#, "x".repeat(65_536))),
        "issued",
    )
    .await;
}

#[tokio::test]
async fn an_error_inside_a_success_wins() {
    check(
        ok(r#"{"error":"invalid_grant","access_token":"a"}"#),
        "grant refused: invalid_grant (HTTP 200)",
    )
    .await;
}

#[tokio::test]
async fn a_lifetime_is_a_number_or_the_default() {
    for (expires_in, seconds) in [
        ("1800", 1800),
        ("\"3600\"", 3600),
        ("3599.9", 3599),
        ("0", 600),
        ("-1", 600),
        ("1e18", 600),
        ("null", 600),
        ("[1800]", 600),
    ] {
        let body = format!(r#"{{"access_token":"a","expires_in":{expires_in}}}"#);
        let server = Server::start(ok(body)).await;
        let lifetime = issued(redeem(server.base()).await).lifetime;
        assert_eq!(lifetime, Duration::from_secs(seconds), "{expires_in}");
    }
}

#[tokio::test]
async fn a_missing_or_empty_refresh_token_leaves_the_old_one_in_place() {
    for body in [
        r#"{"access_token":"a"}"#,
        r#"{"access_token":"a","refresh_token":""}"#,
    ] {
        let server = Server::start(ok(body)).await;
        assert!(
            issued(redeem(server.base()).await).refresh_token.is_none(),
            "{body}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_lost() {
    let whole = answer("200 OK", &[], TOKENS);
    // Nothing, half a head, a head, half a body.
    for length in [0, 10, whole.len() - TOKENS.len(), whole.len() - 10] {
        let expected = if length < whole.len() - TOKENS.len() {
            "lost: connection_lost"
        } else {
            "lost: connection_lost (HTTP 200)"
        };
        check(Script::Say(whole[..length].to_vec()), expected).await;
    }
    let chunk_missing = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"acc\r\n";
    check(
        Script::Say(chunk_missing.to_vec()),
        "lost: connection_lost (HTTP 200)",
    )
    .await;
}

#[tokio::test]
async fn a_refusal_that_breaks_off_condemns_nobody() {
    let whole = answer("400 Bad Request", &[], r#"{"error":"invalid_grant"}"#);
    check(
        Script::Say(whole.clone()),
        "grant refused: invalid_grant (HTTP 400)",
    )
    .await;
    check(
        Script::Say(whole[..whole.len() - 1].to_vec()),
        "lost: connection_lost (HTTP 400)",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_every_wait() {
    check(Script::SayAndHang(vec![]), "lost: timeout").await;
    check(Script::SayAndHang(b"HTTP/1.1 200".to_vec()), "lost: timeout").await;
    let whole = answer("200 OK", &[], TOKENS);
    let half = whole[..whole.len() - 5].to_vec();
    check(Script::SayAndHang(half), "lost: timeout (HTTP 200)").await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_trickles_gets_no_more_time_than_any_other() {
    let begun = tokio::time::Instant::now();
    check(Script::Trickle(answer("200 OK", &[], TOKENS)), "lost: timeout").await;
    let waited = begun.elapsed();
    assert!(
        waited >= DEADLINE && waited < DEADLINE + Duration::from_secs(1),
        "{waited:?}"
    );
}

#[tokio::test]
async fn an_answer_has_a_mebibyte_and_no_more() {
    const MEBIBYTE: usize = 1024 * 1024;
    let padded = |length: usize| format!("{TOKENS}{}", " ".repeat(length - TOKENS.len()));
    check(ok(padded(MEBIBYTE)), "issued").await;
    check(ok(padded(MEBIBYTE + 1)), "lost: answer_too_long (HTTP 200)").await;

    let announced = b"HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\n".to_vec();
    check(Script::SayAndHang(announced), "lost: answer_too_long (HTTP 200)").await;
    let to_the_end = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    check(
        Script::Endless(to_the_end, vec![b' '; 65_536]),
        "lost: answer_too_long (HTTP 200)",
    )
    .await;
    let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 65_536], b"\r\n".to_vec()].concat();
    check(
        Script::Endless(chunked, chunk),
        "lost: answer_too_long (HTTP 200)",
    )
    .await;
}

#[tokio::test]
async fn a_coded_answer_is_not_unpacked() {
    for coding in ["gzip", "br", "identity"] {
        let coded = answer("200 OK", &[&format!("content-encoding: {coding}")], TOKENS);
        check(Script::Say(coded), "lost: answer_encoded (HTTP 200)").await;
    }
}

#[tokio::test]
async fn what_is_no_http_is_unreadable() {
    for bytes in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "<html></html>\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
    ] {
        check(Script::Say(bytes.into()), "lost: unreadable").await;
    }
    let headers = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(200_000));
    check(Script::Say(headers.into()), "lost: unreadable").await;
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: 1\r\n".repeat(200));
    check(Script::Say(many.into()), "lost: unreadable").await;
}

#[tokio::test]
async fn no_server_error_says_that_nothing_was_issued() {
    for status in ["500 E", "502 E", "503 E", "504 E", "521 E", "524 E"] {
        let code = &status[..3];
        let body = r#"{"error":"invalid_grant"}"#;
        let script = Script::Say(answer(status, &["retry-after: 7"], body));
        let server = Server::start(script).await;
        let read = redeem(server.base()).await;
        assert_eq!(shown(&read), format!("lost: server_error (HTTP {code})"));
        assert_eq!(retry_after(&read), Some(Duration::from_secs(7)));
    }
}

#[tokio::test]
async fn a_limited_or_locked_endpoint_issued_nothing_and_its_pause_is_heard() {
    for (status, headers, expected, seconds) in [
        (
            "429 Too Many Requests",
            &["retry-after: 10"][..],
            "not issued: rate_limited (HTTP 429)",
            Some(10),
        ),
        (
            "429 Too Many Requests",
            &[
                "date: Wed, 21 Oct 2026 07:28:00 GMT",
                "retry-after: Wed, 21 Oct 2026 07:28:30 GMT",
            ],
            "not issued: rate_limited (HTTP 429)",
            Some(30),
        ),
        (
            "429 Too Many Requests",
            &[],
            "not issued: rate_limited (HTTP 429)",
            None,
        ),
        (
            "423 Locked",
            &["retry-after: 2"],
            "not issued: locked (HTTP 423)",
            Some(2),
        ),
        (
            "477 Migrating",
            &["retry-after: 86400"],
            "not issued: account_migrating (HTTP 477)",
            Some(86_400),
        ),
    ] {
        let server = Server::start(Script::Say(answer(status, headers, "<html>"))).await;
        let read = redeem(server.base()).await;
        assert_eq!(shown(&read), expected);
        assert_eq!(retry_after(&read), seconds.map(Duration::from_secs), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_that_says_it_all_needs_no_body() {
    let limited = "not issued: rate_limited (HTTP 429)";
    let head = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 100\r\n\r\n".to_vec();
    check(Script::Say(head.clone()), limited).await;
    check(Script::SayAndHang(head), limited).await;
    let coded = answer("429 Too Many Requests", &["content-encoding: gzip"], "x");
    check(Script::Say(coded), limited).await;
    let coded = answer("404 Not Found", &["content-encoding: gzip"], "x");
    check(
        Script::Say(coded),
        "endpoint's fault: unexpected_answer (HTTP 404)",
    )
    .await;
}

#[tokio::test]
async fn no_redirect_is_followed_and_its_target_gets_nothing() {
    for status in ["301 R", "302 R", "303 R", "307 R", "308 R"] {
        let target = Server::start(ok(TOKENS)).await;
        for location in ["/oauth/v1/token", target.base(), "//localhost/"] {
            let redirect = answer(status, &[&format!("location: {location}")], "");
            let expected = format!("endpoint's fault: unexpected_answer (HTTP {})", &status[..3]);
            check(Script::Say(redirect), &expected).await;
        }
        assert_eq!(target.log().connections, 0, "{status}");
    }
}

#[tokio::test]
async fn an_introspection_without_a_readable_answer_says_nothing_about_the_token() {
    let introspect = async |script: Script| {
        let server = Server::start(script).await;
        let token = AccessToken::new("a");
        let app = app(server.base());
        match endpoint()
            .introspect(&app, &secret(), Introspect::Access(&token), DEADLINE)
            .await
        {
            Introspected::Active(_) => "active".to_owned(),
            Introspected::Inactive => "inactive".to_owned(),
            Introspected::ClientRefused(failure) => format!("client refused: {failure}"),
            Introspected::Unknown(failure) => format!("unknown: {failure}"),
        }
    };
    let inactive = answer("200 OK", &[], r#"{"active":false}"#);
    assert_eq!(introspect(Script::Say(inactive.clone())).await, "inactive");
    let cut = inactive[..inactive.len() - 1].to_vec();
    assert_eq!(
        introspect(Script::Say(cut)).await,
        "unknown: connection_lost (HTTP 200)"
    );
    assert_eq!(introspect(Script::Say(vec![])).await, "unknown: connection_lost");
    let coded = answer("200 OK", &["content-encoding: gzip"], r#"{"active":false}"#);
    assert_eq!(
        introspect(Script::Say(coded)).await,
        "unknown: answer_encoded (HTTP 200)"
    );
}

#[tokio::test]
async fn a_revocation_is_done_when_the_status_says_so_and_else_tried_again() {
    let revoke = async |script: Script| {
        let server = Server::start(script).await;
        let app = app(server.base());
        match endpoint()
            .revoke(&app, &secret(), &RefreshToken::new("r"), DEADLINE)
            .await
        {
            Revoked::Done => "done".to_owned(),
            Revoked::TryAgain(failure) => format!("try again: {failure}"),
            Revoked::Strange(failure) => format!("strange: {failure}"),
            Revoked::Unsupported(failure) => format!("unsupported: {failure}"),
        }
    };
    let head = |status: &str| Script::Say(format!("HTTP/1.1 {status}\r\ncontent-length: 9\r\n\r\n").into());
    assert_eq!(
        revoke(Script::Say(answer("204 No Content", &[], ""))).await,
        "done"
    );
    assert_eq!(revoke(head("200 OK")).await, "done");
    assert_eq!(
        revoke(head("400 Bad Request")).await,
        "try again: connection_lost (HTTP 400)"
    );
    assert_eq!(revoke(Script::Say(vec![])).await, "try again: connection_lost");
}

#[tokio::test]
async fn the_check_of_a_client_concludes_only_from_what_is_said() {
    let check = async |status: &str, body: &str| {
        let server = Server::start(Script::Say(answer(status, &[], body))).await;
        match endpoint()
            .check_client(&app(server.base()), &secret(), DEADLINE)
            .await
        {
            ClientCheck::Accepted => "accepted".to_owned(),
            ClientCheck::Refused(failure) => format!("refused: {failure}"),
            ClientCheck::Unknown(failure) => format!("unknown: {failure}"),
        }
    };
    assert_eq!(
        check("400 E", r#"{"status":"BAD_REFRESH_TOKEN"}"#).await,
        "accepted"
    );
    assert_eq!(
        check("400 E", r#"{"status":"MISMATCH_REFRESH_TOKEN_CLIENT"}"#).await,
        "accepted"
    );
    assert_eq!(
        check("401 E", r#"{"error":"invalid_client"}"#).await,
        "refused: invalid_client (HTTP 401)"
    );
    assert_eq!(check("503 E", "").await, "unknown: server_error (HTTP 503)");
    assert_eq!(check("404 E", "").await, "unknown: unexpected_answer (HTTP 404)");
    assert_eq!(check("200 OK", TOKENS).await, "unknown: nonsense_accepted");
}

#[tokio::test]
async fn a_refused_code_is_told_from_a_refused_grant() {
    let body = r#"{"status":"BAD_AUTH_CODE","error":"invalid_grant"}"#;
    let server = Server::start(Script::Say(answer("400 Bad Request", &[], body))).await;
    let code = evergrant_domain::AuthorizationCode::new("c");
    let app = app(server.base());
    let answer = endpoint()
        .exchange_code(&app, &secret(), &code, "https://a.example/", None, DEADLINE)
        .await;
    assert!(
        matches!(answer, TokenAnswer::CodeRefused(_)),
        "{}",
        shown(&answer)
    );
}
