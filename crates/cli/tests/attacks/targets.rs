//! Where a call goes: methods, targets, and everything that could name another place.

use crate::site::{BAD, Case, OK, Site, case};

const X: &[&str] = &["GET /base/x"];

/// A call with this target and no more than it needs.
fn to(
    name: &'static str,
    target: &str,
    arrives: &'static [&'static str],
    answers: &'static [(u16, &'static str)],
) -> Case {
    let bytes = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\n\r\n");
    case(name, bytes, arrives, answers)
}

const LOST: &[(u16, &str)] = &[(424, "unknown_connection")];
const NO_NAME: &[(u16, &str)] = &[(421, "host_not_allowed")];
/// Outside the gateway's paths an answer is named in its body alone.
const ELSEWHERE: &[(u16, &str)] = &[(404, "")];

#[test]
fn a_call_goes_below_the_base_whatever_its_target_says() {
    Site::new().check(&[
        to("control", "/gateway/c1/x?a=b%2f..", &["GET /base/x?a=b%2f.."], OK),
        to(
            "encoded slash",
            "/gateway/c1/a%2Fb%2fc",
            &["GET /base/a%2Fb%2fc"],
            OK,
        ),
        to("semicolon", "/gateway/c1/a;b=c/d", &["GET /base/a;b=c/d"], OK),
        to(
            "host in path",
            "/gateway/c1/http://evil.test/",
            &["GET /base/http://evil.test/"],
            OK,
        ),
        to(
            "user in path",
            "/gateway/c1/@evil.test/",
            &["GET /base/@evil.test/"],
            OK,
        ),
        to("port in path", "/gateway/c1/:80/", &["GET /base/:80/"], OK),
        to("inner double slash", "/gateway/c1/a//b", &["GET /base/a//b"], OK),
        to(
            "query of another url",
            "/gateway/c1/a?u=http://evil.test",
            &["GET /base/a?u=http://evil.test"],
            OK,
        ),
        to("double slash", "/gateway/c1//evil.test/x", &[], BAD),
        to("triple slash", "/gateway/c1///evil.test/x", &[], BAD),
        to("dots", "/gateway/c1/../x", &[], BAD),
        to("dots at the end", "/gateway/c1/a/..", &[], BAD),
        to("one dot", "/gateway/c1/./x", &[], BAD),
        to("dots over the gateway", "/gateway/c1/../../v1/keys", &[], BAD),
        to("encoded dots", "/gateway/c1/%2e%2e/x", &[], BAD),
        to("half encoded dots", "/gateway/c1/.%2E/x", &[], BAD),
        to("dots and an encoded slash", "/gateway/c1/a%2f..%2fb", &[], BAD),
        to("doubly encoded dots", "/gateway/c1/%252e%252e/x", &[], BAD),
        to(
            "trebly encoded dots",
            "/gateway/c1/%25252e%25252e/x",
            &["GET /base/%25252e%25252e/x"],
            OK,
        ),
        to("dots with parameters", "/gateway/c1/..;/x", &[], BAD),
        to("dots with encoded parameters", "/gateway/c1/..%3ba/x", &[], BAD),
        to("backslash", "/gateway/c1/a\\b", &[], BAD),
        to("backslash host", "/gateway/c1/\\evil.test", &[], BAD),
        to("encoded backslash", "/gateway/c1/..%5cx", &[], BAD),
        to("encoded nul", "/gateway/c1/a%00", &[], BAD),
        to("doubly encoded nul", "/gateway/c1/a%2500", &[], BAD),
        to("encoded newline", "/gateway/c1/a%0d%0aX-Evil:%201", &[], BAD),
        to(
            "encoded newline in the query",
            "/gateway/c1/a?b=%0d%0aX",
            &["GET /base/a?b=%0d%0aX"],
            OK,
        ),
        // What is behind it is not part of a target, and nobody sees it.
        to("fragment", "/gateway/c1/a#b", &["GET /base/a"], OK),
        to("tab", "/gateway/c1/a\tb", &[], BAD),
        to("raw nul", "/gateway/c1/a\0b", &[], BAD),
        to("delete character", "/gateway/c1/a\u{7f}", &[], BAD),
        to("non ascii", "/gateway/c1/\u{fc}", &[], BAD),
        to("fullwidth dots", "/gateway/c1/\u{ff0e}\u{ff0e}/x", &[], BAD),
        to("no slash after the connection", "/gateway/c1", &[], BAD),
        to("user before a host", "/gateway/c1@evil.test/x", &[], BAD),
        to("port after the connection", "/gateway/c1:80/x", &[], BAD),
        to("encoded connection", "/gateway/%63%31/x", X, OK),
        to("encoded slash in the connection", "/gateway/c1%2fx/y", &[], BAD),
        to("nul in the connection", "/gateway/c1%00/y", &[], BAD),
        to("sql as a connection", "/gateway/c1'or'1'='1/x", &[], BAD),
        to("empty connection", "/gateway//x", &[], BAD),
        to("another connection", "/gateway/c2/x", &[], LOST),
        to("capital connection", "/gateway/C1/x", &[], LOST),
        to("capital gateway", "/Gateway/c1/x", &[], BAD),
        to("double slash before the gateway", "//gateway/c1/x", &[], BAD),
        to("dots before the gateway", "/v1/../gateway/c1/x", &[], ELSEWHERE),
        to("encoded gateway", "/%67ateway/c1/x", &[], BAD),
        to("token endpoint above the base", "/gateway/c1/../token", &[], BAD),
    ]);
}

#[test]
fn a_call_goes_to_the_configured_host_whoever_else_is_named() {
    let named = |name, head: &str, arrives, answers| {
        case(name, format!("{head}\r\n{{auth}}\r\n\r\n"), arrives, answers)
    };
    Site::new().check(&[
        named(
            "absolute form",
            "GET http://localhost/gateway/c1/x HTTP/1.1\r\nHost: localhost",
            X,
            OK,
        ),
        named(
            "absolute form elsewhere",
            "GET http://evil.test/gateway/c1/x HTTP/1.1\r\nHost: localhost",
            &[],
            NO_NAME,
        ),
        named(
            "absolute form of the provider",
            "GET https://api.evil.test/x HTTP/1.1\r\nHost: localhost",
            &[],
            &[(421, "")],
        ),
        named(
            "absolute form and another host",
            "GET http://localhost/gateway/c1/x HTTP/1.1\r\nHost: evil.test",
            X,
            OK,
        ),
        named(
            "absolute form with a user",
            "GET http://a@localhost/gateway/c1/x HTTP/1.1\r\nHost: localhost",
            &[],
            NO_NAME,
        ),
        named(
            "file scheme",
            "GET file:///gateway/c1/x HTTP/1.1\r\nHost: localhost",
            &[],
            BAD,
        ),
        named(
            "no scheme",
            "GET localhost/gateway/c1/x HTTP/1.1\r\nHost: localhost",
            &[],
            BAD,
        ),
        named("asterisk", "GET * HTTP/1.1\r\nHost: localhost", &[], &[(404, "")]),
        named(
            "options asterisk",
            "OPTIONS * HTTP/1.1\r\nHost: localhost",
            &[],
            &[(404, "")],
        ),
        named(
            "host elsewhere",
            "GET /gateway/c1/x HTTP/1.1\r\nHost: evil.test",
            &[],
            NO_NAME,
        ),
        named(
            "host with a user",
            "GET /gateway/c1/x HTTP/1.1\r\nHost: localhost@evil.test",
            &[],
            NO_NAME,
        ),
        named(
            "host in a subdomain",
            "GET /gateway/c1/x HTTP/1.1\r\nHost: localhost.evil.test",
            &[],
            NO_NAME,
        ),
        named(
            "host with a dot",
            "GET /gateway/c1/x HTTP/1.1\r\nHost: localhost.",
            &[],
            NO_NAME,
        ),
        named(
            "host with a path",
            "GET /gateway/c1/x HTTP/1.1\r\nHost: localhost/evil",
            &[],
            NO_NAME,
        ),
        named(
            "host with a wrong port",
            "GET /gateway/c1/x HTTP/1.1\r\nHost: localhost:99999",
            &[],
            NO_NAME,
        ),
        named(
            "host twice",
            "GET /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\nHost: evil.test",
            &[],
            NO_NAME,
        ),
        named(
            "host twice alike",
            "GET /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\nHost: localhost",
            &[],
            NO_NAME,
        ),
        named("host empty", "GET /gateway/c1/x HTTP/1.1\r\nHost:", &[], NO_NAME),
        named("no host", "GET /gateway/c1/x HTTP/1.1", &[], NO_NAME),
        named(
            "host folded",
            "GET /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n evil.test",
            &[],
            BAD,
        ),
        named(
            "host with a space before the colon",
            "GET /gateway/c1/x HTTP/1.1\r\nHost : localhost",
            &[],
            BAD,
        ),
    ]);
}

#[test]
fn headers_that_name_another_place_or_sender_stay_behind() {
    let with = |name, header: &str, arrives, answers| {
        let bytes = format!("GET /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\n{header}\r\n\r\n");
        case(name, bytes, arrives, answers)
    };
    Site::new().check(&[
        with("forwarded host", "X-Forwarded-Host: evil.test", X, OK),
        with(
            "forwarded proto",
            "X-Forwarded-Proto: https\r\nX-Forwarded-Port: 1",
            X,
            OK,
        ),
        with("forwarded for", "X-Forwarded-For: 127.0.0.1, 10.0.0.1", X, OK),
        with("forwarded prefix", "X-Forwarded-Prefix: /evil", X, OK),
        with("forwarded", "Forwarded: host=evil.test", X, OK),
        with("original url", "X-Original-URL: /evil", X, OK),
        with("rewrite url", "X-Rewrite-URL: /evil", X, OK),
        with("real ip", "X-Real-IP: 127.0.0.1", X, OK),
        with("method override", "X-HTTP-Method-Override: DELETE", &[], BAD),
        with(
            "method override by another name",
            "X-HTTP-Method: DELETE",
            &[],
            BAD,
        ),
        with(
            "method override by a third name",
            "X-Method-Override: DELETE",
            &[],
            BAD,
        ),
        with("cookie", "Cookie: session=evil", X, OK),
        with("proxy authorization", "Proxy-Authorization: Basic evil", X, OK),
        with("proxy connection", "Proxy-Connection: keep-alive", X, OK),
        with(
            "our own headers",
            "Evergrant-Lane: sync\r\nEvergrant-Whatever: evil",
            X,
            OK,
        ),
        with("our own in capitals", "EVERGRANT-CLASS: evil", X, OK),
        with("the connection named twice", "Evergrant-Connection: c2", &[], BAD),
        with(
            "the connection named twice alike",
            "Evergrant-Connection: c1\r\nEvergrant-Connection: c1",
            &[],
            BAD,
        ),
        with(
            "authorization named by connection",
            "Connection: authorization, host",
            X,
            OK,
        ),
        with(
            "content length named by connection",
            "Connection: content-length\r\nX-A: b",
            X,
            OK,
        ),
        with(
            "named by connection",
            "Connection: x-secret\r\nX-Secret: evil",
            X,
            OK,
        ),
        with("keep alive", "Keep-Alive: timeout=9999", X, OK),
        with("te", "TE: trailers, deflate", X, OK),
        with("trailer", "Trailer: Authorization", X, OK),
    ]);
}

#[test]
fn only_what_an_api_is_called_with_is_a_method() {
    fn by(
        name: &'static str,
        method: &str,
        arrives: &'static [&'static str],
        answers: &'static [(u16, &'static str)],
    ) -> Case {
        let length = if matches!(method, "POST" | "PUT" | "PATCH") {
            "Content-Length: 0\r\n"
        } else {
            ""
        };
        let bytes = format!("{method} /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\n{length}\r\n");
        case(name, bytes, arrives, answers)
    }
    Site::new().check(&[
        by("get", "GET", &["GET /base/x"], OK),
        by("head", "HEAD", &["HEAD /base/x"], OK),
        by("post", "POST", &["POST /base/x"], OK),
        by("put", "PUT", &["PUT /base/x"], OK),
        by("patch", "PATCH", &["PATCH /base/x"], OK),
        by("delete", "DELETE", &["DELETE /base/x"], OK),
        by("options", "OPTIONS", &["OPTIONS /base/x"], OK),
        by("trace", "TRACE", &[], BAD),
        by("track", "TRACK", &[], BAD),
        by("debug", "DEBUG", &[], BAD),
        by("propfind", "PROPFIND", &[], BAD),
        by("purge", "PURGE", &[], BAD),
        by("unknown", "EVIL", &[], BAD),
        by("small letters", "get", &[], BAD),
        by("preface", "PRI", &[], BAD),
        by("no token", "GE/T", &[], BAD),
        by("method with a tab", "GET\t", &[], BAD),
        by("empty", "", &[], BAD),
        case(
            "connect",
            "CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n{auth}\r\n\r\n",
            &[],
            &[(421, "")],
        ),
        case(
            "connect to ourselves",
            "CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n{auth}\r\n\r\n",
            &[],
            &[(404, "")],
        ),
        case(
            "connect with a path",
            "CONNECT /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{auth}\r\n\r\n",
            &[],
            BAD,
        ),
    ]);
}
