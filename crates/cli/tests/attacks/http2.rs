//! HTTP/2 by hand: frames and header blocks as no client would write them.

use serde_json::Value;

use crate::site::Site;
use crate::upstream::Seen;
use crate::wire::Wire;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A number with a prefix of 7 bits (RFC 7541 §5.1).
fn number(mut value: usize) -> Vec<u8> {
    if value < 127 {
        return vec![u8::try_from(value).unwrap()];
    }
    value -= 127;
    let mut bytes = vec![127];
    while value >= 128 {
        bytes.push(u8::try_from(value % 128).unwrap() | 128);
        value /= 128;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

/// Literal fields, never indexed, without Huffman's code.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.extend(number(text.len()));
            block.extend(text.as_bytes());
        }
    }
    block
}

const GET: &[&str] = &["GET /base/x"];
const POST: &[&str] = &["POST /base/x"];

/// What comes of a stream.
#[derive(Debug, PartialEq, Eq)]
enum Comes {
    Answer(u16, String),
    /// The stream or the connection was ended instead.
    End,
}

struct Http2 {
    wire: Wire,
}

impl Http2 {
    fn to(site: &Site) -> Self {
        let mut wire = site.wire();
        wire.send(PREFACE);
        wire.send(&frame(SETTINGS, 0, 0, &[]));
        Self { wire }
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.wire.send(&frame(kind, flags, stream, payload));
    }

    /// Reads until this stream has ended.
    fn comes(&mut self, stream: u32) -> Comes {
        let mut status = 0;
        let mut body = Vec::new();
        while let Some(head) = self.wire.take(9) {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let Some(payload) = self.wire.take(length) else {
                break;
            };
            let of = u32::from_be_bytes(head[5..9].try_into().unwrap());
            match (head[3], of) {
                (GOAWAY, _) => return Comes::End,
                (RST_STREAM, of) if of == stream => return Comes::End,
                (HEADERS, of) if of == stream => status = status_of(&payload),
                (DATA, of) if of == stream => body.extend(payload),
                _ => continue,
            }
            if of == stream && head[4] & END_STREAM != 0 {
                let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
                let code = problem["code"].as_str().unwrap_or_default();
                return Comes::Answer(status, code.to_owned());
            }
        }
        Comes::End
    }
}

/// The first field of an answer: indexed, or a literal of which only digits are read (RFC 7541, appendices A and B).
fn status_of(block: &[u8]) -> u16 {
    // A change of the table's size may come first.
    let block = if block[0] & 0xe0 == 0x20 {
        &block[1..]
    } else {
        block
    };
    match block[0] {
        0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(block[0] - 0x88)],
        _ if block[1] & 0x80 == 0 => std::str::from_utf8(&block[2..5]).unwrap().parse().unwrap(),
        _ => {
            let length = usize::from(block[1] & 0x7f);
            let bytes = block[2..2 + length].iter();
            let bits: String = bytes
                .map(|byte| format!("{byte:08b}"))
                .collect::<Vec<_>>()
                .concat();
            let mut rest = bits.as_str();
            let mut status = 0;
            for _ in 0..3 {
                let (digit, bits) = (0..3)
                    .map(|digit| (digit, format!("{digit:05b}")))
                    .chain((3..10).map(|digit| (digit, format!("{:06b}", digit + 22))))
                    .find(|(_, bits)| rest.starts_with(bits.as_str()))
                    .unwrap();
                status = status * 10 + digit;
                rest = &rest[bits.len()..];
            }
            status
        }
    }
}

/// One request, by its fields.
struct Request<'a> {
    name: &'a str,
    fields: Vec<(&'a str, &'a str)>,
}

/// A request without fault, in which these fields stand in place of, or behind, its own.
fn request<'a>(name: &'a str, changed: &[(&'a str, &'a str)]) -> Request<'a> {
    let usual = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "localhost"),
        (":path", "/gateway/c1/x"),
        ("authorization", "Bearer {key}"),
    ];
    let mut fields = Vec::new();
    for (name, value) in usual {
        match changed.iter().find(|(changed, _)| *changed == name) {
            // A value that is not sent at all.
            Some((_, "-")) => {}
            Some((name, value)) => fields.push((*name, *value)),
            None => fields.push((name, value)),
        }
    }
    for (name, value) in changed {
        if !usual.iter().any(|(usual, _)| usual == name) {
            fields.push((name, value));
        }
    }
    Request { name, fields }
}

fn answer(status: u16, code: &str) -> Comes {
    Comes::Answer(status, code.to_owned())
}

fn check(site: &Site, request: &Request<'_>, body: Option<&[u8]>, arrives: &[&str], comes: &Comes) {
    let name = request.name;
    let mut http2 = Http2::to(site);
    let key = site.key.clone();
    let fields: Vec<(&str, String)> = request
        .fields
        .iter()
        .map(|(name, value)| (*name, value.replace("{key}", &key)))
        .collect();
    let fields: Vec<(&str, &str)> = fields
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let end = if body.is_none() { END_STREAM } else { 0 };
    http2.send(HEADERS, END_HEADERS | end, 1, &block(&fields));
    if let Some(body) = body {
        http2.send(DATA, END_STREAM, 1, body);
    }
    assert_eq!(http2.comes(1), *comes, "{name}");
    let seen = site.arrived(&name.replace(' ', "-"));
    let whole: Vec<&str> = seen.iter().filter(|seen| seen.is_whole).map(Seen::what).collect();
    assert_eq!(whole, arrives, "{name}: {seen:?}");
}

#[test]
fn a_request_is_what_its_pseudo_headers_say_once() {
    let site = Site::new();
    let passes = |name, changed: &[(&str, &str)], arrives: &[&str]| {
        check(&site, &request(name, changed), None, arrives, &answer(200, ""));
    };
    let refused = |name, changed: &[(&str, &str)], status, code| {
        check(&site, &request(name, changed), None, &[], &answer(status, code));
    };
    passes("control", &[], GET);
    passes("https", &[(":scheme", "https")], GET);
    passes("host beside authority", &[("host", "evil.test")], GET);
    passes(
        "cookies apart",
        &[("cookie", "a=evil"), ("cookie", "b=evil")],
        GET,
    );
    passes("te trailers", &[("te", "trailers")], GET);
    passes(
        "encoded",
        &[(":path", "/gateway/c1/a%2Fb?c=%2e%2e")],
        &["GET /base/a%2Fb?c=%2e%2e"],
    );
    passes(
        "forwarded",
        &[("x-forwarded-host", "evil.test"), ("x-original-url", "/evil")],
        GET,
    );
    passes(
        "our own",
        &[("evergrant-class", "evil"), ("proxy-authorization", "evil")],
        GET,
    );
    refused("dots", &[(":path", "/gateway/c1/../x")], 400, "bad_request");
    refused(
        "encoded dots",
        &[(":path", "/gateway/c1/%2e%2e/x")],
        400,
        "bad_request",
    );
    refused(
        "double slash",
        &[(":path", "/gateway/c1//evil.test")],
        400,
        "bad_request",
    );
    refused(
        "backslash",
        &[(":path", "/gateway/c1/\\evil")],
        400,
        "bad_request",
    );
    refused(
        "host after the id",
        &[(":path", "/gateway/c1@evil.test/x")],
        400,
        "bad_request",
    );
    refused(
        "authority elsewhere",
        &[(":authority", "evil.test")],
        421,
        "host_not_allowed",
    );
    refused(
        "authority with a user",
        &[(":authority", "evil@localhost")],
        421,
        "host_not_allowed",
    );
    refused(
        "host alone elsewhere",
        &[(":authority", "-"), ("host", "evil.test")],
        421,
        "host_not_allowed",
    );
    refused("no authority", &[(":authority", "-")], 421, "host_not_allowed");
    refused("trace", &[(":method", "TRACE")], 400, "bad_request");
    refused("track", &[(":method", "TRACK")], 400, "bad_request");
    refused("unknown method", &[(":method", "EVIL")], 400, "bad_request");
    refused("no key", &[("authorization", "-")], 401, "invalid_api_key");
    let mut two_keys = request("two keys", &[]);
    two_keys.fields.push(("authorization", "Bearer {key}"));
    check(&site, &two_keys, None, &[], &answer(401, "invalid_api_key"));
}

#[test]
fn what_http2_forbids_never_becomes_a_call() {
    let site = Site::new();
    let ended =
        |name, changed: &[(&str, &str)]| check(&site, &request(name, changed), None, &[], &Comes::End);
    ended("no method", &[(":method", "-")]);
    ended("no scheme", &[(":scheme", "-")]);
    ended("no path", &[(":path", "-")]);
    ended("empty path", &[(":path", "")]);
    ended("path without a slash", &[(":path", "gateway/c1/x")]);
    ended("path of another host", &[(":path", "http://evil.test/")]);
    ended("path with a space", &[(":path", "/gateway/c1/a b")]);
    ended(
        "path with a newline",
        &[(":path", "/gateway/c1/a\r\nX-Evil: evil")],
    );
    ended("path with a nul", &[(":path", "/gateway/c1/a\0")]);
    ended("empty method", &[(":method", "")]);
    ended("method with a space", &[(":method", "GET /evil HTTP/1.1")]);
    ended(
        "authority with a newline",
        &[(":authority", "localhost\r\nX-Evil: evil")],
    );
    ended("authority with a slash", &[(":authority", "localhost/evil")]);
    ended("unknown pseudo header", &[(":evil", "x")]);
    ended("status in a request", &[(":status", "200")]);
    ended("capitals in a name", &[("X-Evil", "evil")]);
    ended("empty name", &[("", "evil")]);
    ended("space in a name", &[("x evil", "evil")]);
    ended("newline in a name", &[("x\r\nevil", "evil")]);
    ended("colon in a name", &[("x:evil", "evil")]);
    ended("newline in a value", &[("x-a", "b\r\nx-evil: evil")]);
    ended("line feed in a value", &[("x-a", "b\nx-evil: evil")]);
    ended("carriage return in a value", &[("x-a", "b\rc")]);
    ended("nul in a value", &[("x-a", "b\0c")]);
    ended("connection", &[("connection", "close")]);
    ended("keep alive", &[("keep-alive", "timeout=5")]);
    ended("proxy connection", &[("proxy-connection", "keep-alive")]);
    ended("transfer encoding", &[("transfer-encoding", "chunked")]);
    ended("upgrade", &[("upgrade", "websocket")]);
    ended("te", &[("te", "gzip")]);
    ended("connect with a path", &[(":method", "CONNECT")]);
    ended(
        "extended connect",
        &[(":method", "CONNECT"), (":protocol", "websocket")],
    );
    for (twice, value) in [
        (":method", "POST"),
        (":path", "/gateway/c1/smuggled"),
        (":authority", "evil.test"),
        (":scheme", "https"),
    ] {
        let mut request = request("twice", &[]);
        request.fields.insert(0, (twice, value));
        check(&site, &request, None, &[], &Comes::End);
    }
    let mut late = request("pseudo header behind another", &[]);
    late.fields.rotate_left(1);
    check(&site, &late, None, &[], &Comes::End);
}

#[test]
fn a_body_is_as_long_as_it_says() {
    let site = Site::new();
    let post = |name, more: &[(&'static str, &'static str)], body: &[u8], arrives: &[&str], comes: Comes| {
        let mut request = request(name, &[(":method", "POST")]);
        request.fields.extend_from_slice(more);
        check(&site, &request, Some(body), arrives, &comes);
    };
    post(
        "length",
        &[("content-length", "3")],
        b"abc",
        POST,
        answer(200, ""),
    );
    post("no length", &[], b"abc", POST, answer(200, ""));
    post("longer", &[("content-length", "3")], b"abcd", &[], Comes::End);
    post("shorter", &[("content-length", "4")], b"abc", &[], Comes::End);
    post("no number", &[("content-length", "3x")], b"abc", &[], Comes::End);
    post("negative", &[("content-length", "-1")], b"abc", &[], Comes::End);
    post(
        "in a list",
        &[("content-length", "3, 3")],
        b"abc",
        &[],
        Comes::End,
    );
    // Trailers end here, whatever they say.
    for trailers in [
        &[("authorization", "evil"), ("x-evil", "evil")][..],
        &[("content-length", "9")],
    ] {
        let mut http2 = Http2::to(&site);
        let key = format!("Bearer {}", site.key);
        let mut fields = request("trailers", &[(":method", "POST")]).fields;
        fields.retain(|(name, _)| *name != "authorization");
        fields.push(("authorization", &key));
        http2.send(HEADERS, END_HEADERS, 1, &block(&fields));
        http2.send(DATA, 0, 1, b"abc");
        http2.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(trailers));
        assert_eq!(http2.comes(1), answer(200, ""));
        let seen = site.arrived("trailers");
        assert_eq!((seen.len(), &seen[0].body[..]), (1, &b"abc"[..]));
    }
    // Nothing more is waited for, so the call may have left. What is behind its end does not. It is the last case
    // here: what left may arrive when everything else is over.
    let mut http2 = Http2::to(&site);
    let key = format!("Bearer {}", site.key);
    let mut fields = request("behind", &[(":method", "POST"), ("authorization", "-")]).fields;
    fields.extend([("authorization", key.as_str()), ("content-length", "0")]);
    http2.send(HEADERS, END_HEADERS, 1, &block(&fields));
    http2.send(DATA, END_STREAM, 1, b"GET /gateway/c1/smuggled HTTP/1.1\r\n\r\n");
    assert!([Comes::End, answer(200, "")].contains(&http2.comes(1)));
    let seen = site.arrived("behind");
    assert!(
        seen.len() <= 1 && seen.iter().all(|seen| seen.body.is_empty()),
        "{seen:?}"
    );
}

/// The fields of a call, ready to be sent.
fn call(site: &Site, path: &str) -> Vec<u8> {
    let key = format!("Bearer {}", site.key);
    block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "localhost"),
        (":path", path),
        ("authorization", &key),
    ])
}

#[test]
fn frames_out_of_order_end_the_connection_and_nothing_else() {
    let site = Site::new();
    let call = call(&site, "/gateway/c1/x");
    let ends = |name: &str, frames: &[Vec<u8>]| {
        let mut http2 = Http2::to(&site);
        for frame in frames {
            http2.wire.send(frame);
        }
        http2.wire.end_sending();
        assert_eq!(http2.comes(1), Comes::End, "{name}");
        let seen = site.arrived(&name.replace(' ', "-"));
        assert!(seen.is_empty(), "{name}: {seen:?}");
    };
    let whole = END_HEADERS | END_STREAM;
    ends("an even stream", &[frame(HEADERS, whole, 2, &call)]);
    ends("stream zero", &[frame(HEADERS, whole, 0, &call)]);
    ends("data first", &[frame(DATA, END_STREAM, 1, b"abc")]);
    ends(
        "continuation of nothing",
        &[frame(CONTINUATION, END_HEADERS, 1, &call)],
    );
    ends(
        "data within a header block",
        &[frame(HEADERS, 0, 1, &call), frame(DATA, END_STREAM, 1, b"abc")],
    );
    ends(
        "another stream within a header block",
        &[
            frame(HEADERS, 0, 1, &call),
            frame(CONTINUATION, END_HEADERS, 3, &call),
        ],
    );
    ends("a promise", &[frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])]);
    ends(
        "a frame that is too large",
        &[frame(HEADERS, whole, 1, &vec![0; 20_000])],
    );
    ends(
        "more padding than payload",
        &[frame(HEADERS, whole | PADDED, 1, &[200, 0x82])],
    );
    ends(
        "an index out of range",
        &[frame(HEADERS, whole, 1, &[0xff, 0xff, 0xff, 0xff, 0x0f])],
    );
    ends("an index of zero", &[frame(HEADERS, whole, 1, &[0x80])]);
    ends(
        "a string that is cut off",
        &[frame(HEADERS, whole, 1, &[0x00, 0x05, b'x'])],
    );
    ends(
        "a table that is too large",
        &[frame(HEADERS, whole, 1, &[0x3f, 0xff, 0xff, 0xff, 0x0f])],
    );
    ends(
        "push switched to two",
        &[frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2])],
    );
    ends("settings of half a size", &[frame(SETTINGS, 0, 0, &[0, 2, 0])]);
    ends("settings on a stream", &[frame(SETTINGS, 0, 1, &[])]);
    ends(
        "a window that overflows",
        &[frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])],
    );
    ends("a window of zero", &[frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 0])]);
    ends("a ping of half a size", &[frame(PING, 0, 0, b"abc")]);
    ends("a reset of nothing", &[frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])]);
    ends("priority of half a size", &[frame(PRIORITY, 0, 1, &[0])]);
    ends(
        "the first request of http 1.1",
        &[b"GET /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()],
    );
}

#[test]
fn floods_of_frames_are_ended_and_others_go_on() {
    let site = Site::new();
    let whole = END_HEADERS | END_STREAM;
    let call = call(&site, "/gateway/c1/x");
    let open = |frames: &mut dyn FnMut(&mut Http2)| {
        let mut http2 = Http2::to(&site);
        frames(&mut http2);
        http2.wire.end_sending();
        http2
    };
    // A header block without end.
    let mut http2 = open(&mut |http2| {
        http2.send(HEADERS, 0, 1, &call);
        for _ in 0..5_000 {
            http2.send(CONTINUATION, 0, 1, &block(&[("x-a", "b")]));
        }
    });
    assert_eq!(http2.comes(1), Comes::End);
    assert!(site.arrived("continuations").is_empty());
    // One without anything in it.
    let mut http2 = open(&mut |http2| {
        http2.send(HEADERS, 0, 1, &call);
        for _ in 0..50_000 {
            http2.send(CONTINUATION, 0, 1, &[]);
        }
    });
    assert_eq!(http2.comes(1), Comes::End);
    assert!(site.arrived("empty-continuations").is_empty());
    // A field that is kept once and named five thousand times: 20 MB of headers in a few kilobytes.
    let mut bomb = call.clone();
    bomb.push(0x40);
    bomb.extend(number(3));
    bomb.extend(b"x-a");
    bomb.extend(number(3_900));
    bomb.extend([b'b'; 3_900]);
    bomb.extend([0xbe; 5_000]);
    let mut http2 = open(&mut |http2| http2.send(HEADERS, whole, 1, &bomb));
    assert_ne!(http2.comes(1), answer(200, ""));
    assert!(site.arrived("bomb").is_empty());
    // Requests that are taken back as they are made.
    let mut http2 = open(&mut |http2| {
        for stream in 0..5_000 {
            http2.send(HEADERS, whole, 2 * stream + 1, &call);
            http2.send(RST_STREAM, 0, 2 * stream + 1, &[0, 0, 0, 8]);
        }
    });
    assert_eq!(http2.comes(9_999), Comes::End);
    let arrived = site.arrived("resets").len();
    assert!(arrived < 1_000, "{arrived} calls of 5000 that were taken back");
    // Pings and settings that each want an answer, from one who reads none.
    for (kind, payload) in [
        (PING, &b"12345678"[..]),
        (SETTINGS, &[]),
        (PRIORITY, &[0, 0, 0, 0, 1]),
    ] {
        let stream = u32::from(kind == PRIORITY) * 3;
        let mut http2 = Http2::to(&site);
        let one = frame(kind, 0, stream, payload);
        http2.wire.send(&one.repeat(20_000));
        site.probe("frames");
        http2.wire.end_sending();
        site.upstream.taken();
    }
}

#[test]
fn a_connection_holds_so_many_calls_and_no_more() {
    let site = Site::new();
    let whole = END_HEADERS | END_STREAM;
    let mut http2 = Http2::to(&site);
    let held = call(&site, "/gateway/c1/hold");
    for stream in 0..400 {
        http2.send(HEADERS, whole, 2 * stream + 1, &held);
    }
    // The last one is over the number that is allowed.
    assert_eq!(http2.comes(799), Comes::End);
    site.upstream.wait_for_held(1);
    site.probe("many-streams");
    site.upstream.release();
    let seen = site.upstream.taken();
    assert!(seen.len() <= 257 + 1, "{}", seen.len());
}
