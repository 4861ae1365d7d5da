//! Requests that are written otherwise than HTTP says, or ask for more than a call.

use crate::site::{BAD, Case, OK, Site, TOKEN, case};

const X: &[&str] = &["GET /base/x"];
const LARGE: &[(u16, &str)] = &[(431, "headers_too_large")];

fn with(
    name: &'static str,
    header: &str,
    arrives: &'static [&'static str],
    answers: &'static [(u16, &'static str)],
) -> Case {
    let bytes = format!("GET /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\n{header}\r\n\r\n");
    case(name, bytes, arrives, answers)
}

#[test]
fn a_header_cannot_hold_another() {
    Site::new().check(&[
        with("control", "X-A: b c", X, OK),
        with("encoded newline", "X-A: b%0d%0aX-B: c", X, OK),
        with("bytes above ascii", "X-A: \u{fc}", X, OK),
        with("bare carriage return", "X-A: b\rX-Evil: evil", &[], BAD),
        with("nul in a value", "X-A: b\0c", &[], BAD),
        with("bell in a value", "X-A: b\x07c", &[], BAD),
        with("folded", "X-A: b\r\n c", &[], BAD),
        with("folded by a tab", "X-A: b\r\n\tX-Evil: evil", &[], BAD),
        with("space before the colon", "X-A : b", &[], BAD),
        with("space in a name", "X A: b", &[], BAD),
        with("no name", ": b", &[], BAD),
        with("no colon", "X-A", &[], BAD),
        with("nul in a name", "X\0A: b", &[], BAD),
        with("colon in a name", "X-A:: b", X, OK),
        with("name in brackets", "X(A): b", &[], BAD),
        case(
            "leading space",
            " GET /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{auth}\r\n\r\n",
            &[],
            BAD,
        ),
        case(
            "leading empty lines",
            "\r\n\r\nGET /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{auth}\r\n\r\n",
            X,
            OK,
        ),
        case(
            "space before the first header",
            "GET /gateway/c1/x HTTP/1.1\r\n Host: localhost\r\n{auth}\r\n\r\n",
            &[],
            BAD,
        ),
        case(
            "two spaces in the request line",
            "GET  /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{auth}\r\n\r\n",
            &[],
            BAD,
        ),
        case(
            "a space at the end of the request line",
            "GET /gateway/c1/x HTTP/1.1 \r\nHost: localhost\r\n{auth}\r\n\r\n",
            &[],
            BAD,
        ),
        case(
            "line feeds alone",
            "GET /gateway/c1/x HTTP/1.1\nHost: localhost\n{auth}\n\n",
            X,
            OK,
        ),
        case(
            "carriage returns alone",
            "GET /gateway/c1/x HTTP/1.1\rHost: localhost\r{auth}\r\r",
            &[],
            BAD,
        ),
    ]);
}

#[test]
fn a_request_is_of_a_version_that_is_known() {
    let of = |name, version: &str, arrives, answers| {
        let bytes = format!("GET /gateway/c1/x{version}\r\nHost: localhost\r\n{{auth}}\r\n\r\n");
        case(name, bytes, arrives, answers)
    };
    Site::new().check(&[
        of("http 1.1", " HTTP/1.1", X, OK),
        of("http 1.0", " HTTP/1.0", X, OK),
        of("http 0.9", "", &[], BAD),
        of("http 1.2", " HTTP/1.2", &[], BAD),
        of("http 2.0", " HTTP/2.0", &[], BAD),
        of("http 9", " HTTP/9", &[], BAD),
        of("http in small letters", " http/1.1", &[], BAD),
        of("another protocol", " RTSP/1.0", &[], BAD),
        of("version with zeros", " HTTP/01.1", &[], BAD),
        case(
            "a tls hello",
            "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03\r\n\r\n",
            &[],
            BAD,
        ),
        case("an ssh greeting", "SSH-2.0-OpenSSH_9.2\r\n\r\n", &[], BAD),
        case(
            "an http 1.0 without host",
            "GET /gateway/c1/x HTTP/1.0\r\n{auth}\r\n\r\n",
            &[],
            &[(421, "host_not_allowed")],
        ),
    ]);
}

#[test]
fn a_call_stays_a_call() {
    let upgrade = |name, protocol: &str, more: &str, arrives, answers| {
        with(
            name,
            &format!("Connection: Upgrade{more}\r\nUpgrade: {protocol}"),
            arrives,
            answers,
        )
    };
    Site::new().check(&[
        upgrade("websocket", "websocket", "\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", &[], BAD),
        upgrade("unknown protocol", "evil/1", "", &[], BAD),
        upgrade("several protocols", "h2c, websocket", "", &[], BAD),
        upgrade("h2c", "h2c", ", HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__", X, OK),
        upgrade("h2c without settings", "h2c", "", X, OK),
        case(
            "expect and a body",
            "POST /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{auth}\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
            &["POST /base/x"],
            OK,
        ),
        with("expect without a body", "Expect: 100-continue", X, OK),
        with("unknown expectation", "Expect: 200-evil", X, OK),
        with("range", "Range: bytes=0-1", X, OK),
    ]);
}

#[test]
fn what_is_too_large_is_refused_before_anything_is_sent() {
    let long = |length: usize| "a".repeat(length);
    let many = |count: usize| {
        (0..count)
            .map(|n| format!("X-{n}: a"))
            .collect::<Vec<_>>()
            .join("\r\n")
    };
    Site::with("[limits]\nbody_bytes = 1024").check(&[
        with("a large header that is not too large", &format!("X-A: {}", long(50_000)), X, OK),
        with("a header over the limit", &format!("X-A: {}", long(70_000)), &[], LARGE),
        with("a header over what is read", &format!("X-A: {}", long(400_000)), &[], LARGE),
        with("a long name", &format!("{}: b", long(70_000)), &[], LARGE),
        with("many headers that are not too many", &many(90), X, OK),
        with("too many headers", &many(110), &[], LARGE),
        with("many headers over the limit", &many(100_000), &[], LARGE),
        with("many cookies", &vec!["Cookie: a=evil"; 90].join("\r\n"), X, OK),
        case("a long line over what is read", format!("GET /gateway/c1/{} HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\n\r\n", long(400_000)), &[], LARGE),
        case("a long line", format!("GET /gateway/c1/{} HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\n\r\n", long(66_000)), &[], LARGE),
        case("a long method", format!("{} /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\n\r\n", "A".repeat(20_000)), &[], BAD),
        case("a long host", format!("GET /gateway/c1/x HTTP/1.1\r\nHost: {}\r\n{{auth}}\r\n\r\n", long(60_000)), &[], &[(421, "host_not_allowed")]),
        case("a long connection", format!("GET /gateway/{}/x HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\n\r\n", long(10_000)), &[], BAD),
        case("a body that is not too large", format!("POST /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\nContent-Length: 1024\r\n\r\n{}", long(1024)), &["POST /base/x"], OK),
        case("a body over the limit", format!("POST /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\nContent-Length: 1025\r\n\r\n{}", long(1025)), &[], &[(413, "body_too_large")]),
        case("a body that says it is over the limit", "POST /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{auth}\r\nContent-Length: 9000000000\r\n\r\n", &[], &[(413, "body_too_large")]),
        Case { may_begin: true, ..case("a body that turns out to be over the limit", format!("POST /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n{}\r\n0\r\n\r\n", long(4096)), &[], &[(413, "body_too_large")]) },
    ]);
}

#[test]
fn what_is_slow_is_given_up_and_what_is_cut_off_is_no_request() {
    let site = Site::with("[limits]\nheader_timeout = \"1s\"\nbody_timeout = \"1s\"");
    // Without an end nothing leaves, and nothing is answered.
    for (name, bytes) in [
        ("half a line", "GET /gateway/c1/x HT"),
        (
            "half a head",
            "GET /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{auth}\r\n",
        ),
        ("nothing", ""),
        ("empty lines", "\r\n\r\n\r\n"),
    ] {
        let mut wire = site.wire();
        wire.send(&site.filled(bytes.as_bytes()));
        assert!(wire.ends(), "{name}");
        assert!(site.arrived("slow-heads").is_empty(), "{name}");
    }
    for (name, framing) in [
        ("slow length", "Content-Length: 10"),
        ("slow chunks", "Transfer-Encoding: chunked"),
    ] {
        let head =
            format!("POST /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\n{framing}\r\n\r\n3");
        let mut wire = site.wire();
        wire.send(&site.filled(head.as_bytes()));
        let answer = wire.answer(false).unwrap();
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "bad_request"),
            "{name}"
        );
        assert!(wire.ends(), "{name}");
        let seen = site.arrived("slow-bodies");
        assert_eq!(seen.len(), 1, "{name}: {seen:?}");
        assert!(
            !seen[0].is_whole,
            "the provider is not told that this was all: {seen:?}"
        );
    }
    // Who hangs up in the middle of a body has sent no whole request either.
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let head =
            format!("POST /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\n{framing}\r\n\r\n3\r\nab");
        let mut wire = site.wire();
        wire.send(&site.filled(head.as_bytes()));
        wire.end_sending();
        while wire.answer(false).is_some() {}
        let seen = site.arrived("half-a-body");
        assert!(
            seen.iter().all(|request| !request.is_whole),
            "{framing}: {seen:?}"
        );
    }
    assert!(!site.log().contains(TOKEN) && !site.log().contains(&site.key));
}
