//! What a provider may answer, and what of it comes through: its own answer and no more, to the call that it answers.

use crate::site::{Site, TOKEN};
use crate::upstream::After;
use crate::wire::Answer;

/// What the caller gets.
enum Gets {
    /// The provider's answer: status and body.
    Its(u16, &'static str),
    /// An answer of ours, in its place.
    Ours(u16, &'static str),
    /// A part of it, and an end that cannot be taken for one.
    Part,
}
use Gets::{Its, Ours, Part};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn ask(site: &Site, method: &str, name: &str) -> Option<Answer> {
    let mut wire = site.wire();
    let head = format!(
        "{method} /gateway/c1/answer/{name} HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    wire.send(&site.filled(head.as_bytes()));
    let answer = wire.answer(method == "HEAD");
    assert!(wire.ends(), "{name}: more than one answer");
    answer
}

#[test]
fn an_answer_is_one_answer_to_one_call() {
    let site = Site::new();
    let extra = format!("{OK}HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nevil!!!");
    let hints = format!(
        "{}{OK}",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(20)
    );
    let flood = format!("{}{OK}", "HTTP/1.1 100 Continue\r\n\r\n".repeat(100_000));
    let large = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: {}\r\n\r\nok",
        "a".repeat(400_000)
    );
    let many = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{}\r\nok",
        "X-A: b\r\n".repeat(5_000)
    );
    let own = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    let like_ours = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{own}", own.len());
    let cases: &[(&str, &[u8], After, Gets)] = &[
        ("control", OK.as_bytes(), After::KeepOpen, Its(200, "ok")),
        ("extra-bytes", extra.as_bytes(), After::KeepOpen, Its(200, "ok")),
        ("extra-rubbish", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokxxxxxxxx\r\n\r\n", After::KeepOpen, Its(200, "ok")),
        ("extra-behind-chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", After::KeepOpen, Its(200, "ok")),
        ("extra-behind-204", b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", After::KeepOpen, Its(204, "")),
        ("body-behind-304", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil", After::KeepOpen, Its(304, "")),
        ("switching", b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", After::KeepOpen, Ours(424, "outcome_unknown")),
        ("early-hints", hints.as_bytes(), After::KeepOpen, Its(200, "ok")),
        ("flood-of-continue", flood.as_bytes(), After::KeepOpen, Its(200, "ok")),
        ("length-and-chunks", b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", After::Close, Its(200, "ok")),
        ("two-lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 4\r\n\r\nevil", After::KeepOpen, Ours(424, "outcome_unknown")),
        ("no-length", b"HTTP/1.1 200 OK\r\n\r\nok", After::Close, Its(200, "ok")),
        ("large-headers", large.as_bytes(), After::KeepOpen, Ours(424, "outcome_unknown")),
        ("many-headers", many.as_bytes(), After::KeepOpen, Ours(424, "outcome_unknown")),
        ("no-http", b"220 mail.evil.test ESMTP\r\n\r\n", After::KeepOpen, Ours(424, "outcome_unknown")),
        ("nothing", b"", After::Close, Ours(424, "outcome_unknown")),
        ("half-a-head", b"HTTP/1.1 200 OK\r\nContent-Le", After::Close, Ours(424, "outcome_unknown")),
        ("folded", b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 2\r\n\r\nok", After::KeepOpen, Ours(424, "outcome_unknown")),
        ("nul-in-a-header", b"HTTP/1.1 200 OK\r\nX-A: b\0c\r\nContent-Length: 2\r\n\r\nok", After::KeepOpen, Ours(424, "outcome_unknown")),
        ("dies-in-its-body", b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok", After::Close, Part),
        ("dies-in-a-chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok", After::Close, Part),
        ("dies-between-chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", After::Close, Part),
        ("a-broken-chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nxyz\r\n", After::KeepOpen, Part),
        ("trailers", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Set-Cookie\r\n\r\n2\r\nok\r\n0\r\nSet-Cookie: a=evil\r\n\r\n", After::KeepOpen, Its(200, "ok")),
        ("like-our-own-400", like_ours.as_bytes(), After::KeepOpen, Its(200, "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")),
        ("an-own-error", b"HTTP/1.1 424 Failed\r\nEvergrant-Error: reconnect_required\r\nx-evergrant: y\r\nContent-Length: 2\r\n\r\nok", After::KeepOpen, Its(424, "ok")),
        ("redirect", b"HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\nContent-Length: 0\r\n\r\n", After::KeepOpen, Its(302, "")),
        ("redirect-that-keeps-the-method", b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n", After::KeepOpen, Its(307, "")),
        ("cookie", b"HTTP/1.1 200 OK\r\nSet-Cookie: a=evil\r\nAlt-Svc: h3=\":1\"\r\nContent-Length: 2\r\n\r\nok", After::KeepOpen, Its(200, "ok")),
        ("named-by-connection", b"HTTP/1.1 200 OK\r\nConnection: X-Evil\r\nX-Evil: evil\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic realm=evil\r\nContent-Length: 2\r\n\r\nok", After::KeepOpen, Its(200, "ok")),
    ];
    for (name, bytes, after, gets) in cases {
        site.upstream.answers(name, bytes, *after);
        let answer = ask(&site, "POST", name);
        let shown = answer.as_ref().map_or_else(String::new, |answer| {
            format!("{} {:?} {}", answer.status, answer.headers, answer.text())
        });
        assert!(!shown.contains("evil") || *name == "redirect", "{name}: {shown}");
        assert!(!shown.contains(TOKEN), "{name}: {shown}");
        match (gets, answer) {
            (Its(status, body), Some(answer)) => {
                assert_eq!(
                    (answer.status, answer.text().as_str()),
                    (*status, *body),
                    "{name}: {shown}"
                );
                assert!(answer.is_whole && answer.code().is_empty(), "{name}: {shown}");
            }
            (Ours(status, code), Some(answer)) => {
                assert_eq!(
                    (answer.status, answer.code().as_str()),
                    (*status, *code),
                    "{name}: {shown}"
                );
            }
            // Where it breaks off at once, its head may not have left.
            (Part, None) => {}
            (Part, Some(answer)) => assert!(answer.status == 200 && !answer.is_whole, "{name}: {shown}"),
            (_, None) => panic!("{name}: no answer"),
        }
        // The next ones get their own answers, on whatever connection is left, and a write was sent once.
        for _ in 0..2 {
            site.probe(name);
        }
        let seen = site.upstream.taken();
        let sent = seen
            .iter()
            .filter(|request| request.line.starts_with("POST"))
            .count();
        assert_eq!((sent, seen.len()), (1, 3), "{name}: {seen:?}");
    }
}

#[test]
fn what_belongs_to_no_answer_is_not_the_next_ones() {
    let site = Site::new();
    // A body where none may be: the next call on that connection would read it as its answer.
    site.upstream.answers(
        "head",
        b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        After::KeepOpen,
    );
    for round in 0..20 {
        let answer = ask(&site, "HEAD", "head").unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (200, ""));
        site.probe(&format!("round-{round}"));
    }
}
