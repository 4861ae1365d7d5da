//! Who has no key gets nowhere, however it is written.

use crate::site::{Case, OK, Site, case};

const X: &[&str] = &["GET /base/x"];

const REFUSED: &[(u16, &str)] = &[(401, "invalid_api_key")];

fn with(
    name: &'static str,
    line: &str,
    header: &str,
    arrives: &'static [&'static str],
    answers: &'static [(u16, &'static str)],
) -> Case {
    let header = if header.is_empty() {
        String::new()
    } else {
        format!("{header}\r\n")
    };
    let bytes = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n");
    case(name, bytes, arrives, answers)
}

#[test]
fn a_key_is_the_one_bearer_of_one_header() {
    let call = |name, header: &str| with(name, "GET /gateway/c1/x", header, &[], REFUSED);
    let valid = |name, header: &str| with(name, "GET /gateway/c1/x", header, X, OK);
    Site::new().check(&[
        valid("a key", "Authorization: Bearer {key}"),
        valid("scheme in small letters", "authorization: bearer {key}"),
        call("no key", ""),
        call("empty", "Authorization:"),
        call("scheme alone", "Authorization: Bearer"),
        call("basic", "Authorization: Basic {key}"),
        call("basic with the key as password", "Authorization: Basic OmV2Z18="),
        call("key alone", "Authorization: {key}"),
        call("short", "Authorization: Bearer evg_abc"),
        call("long", "Authorization: Bearer {key}x"),
        call(
            "very long",
            &format!("Authorization: Bearer evg_{}", "a".repeat(50_000)),
        ),
        call(
            "made up",
            "Authorization: Bearer evg_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ),
        call("the access token", "Authorization: Bearer the-token-of-c1"),
        call("two spaces", "Authorization: Bearer  {key}"),
        call("in quotes", "Authorization: Bearer \"{key}\""),
        call("a list", "Authorization: Bearer {key}, Bearer {key}"),
        call(
            "twice",
            "Authorization: Bearer {key}\r\nAuthorization: Bearer {key}",
        ),
        call(
            "twice, one made up",
            "Authorization: Bearer evil\r\nAuthorization: Bearer {key}",
        ),
        call("another header", "X-Api-Key: {key}"),
        call("a cookie", "Cookie: Authorization=Bearer {key}"),
        call("proxy authorization", "Proxy-Authorization: Bearer {key}"),
        call("a probe's user agent", "User-Agent: kube-probe/1.31"),
        call(
            "from this machine",
            "X-Forwarded-For: 127.0.0.1\r\nX-Real-IP: 127.0.0.1",
        ),
        with(
            "in the query",
            "GET /gateway/c1/x?access_token={key}&api_key={key}",
            "",
            &[],
            REFUSED,
        ),
        with("behind healthz", "GET /gateway/c1/x?/healthz", "", &[], REFUSED),
        with("dots to healthz", "GET /gateway/../healthz", "", &[], REFUSED),
        with(
            "from healthz",
            "GET /healthz/../gateway/c1/x",
            "",
            &[],
            &[(404, "")],
        ),
        with("parameters", "GET /gateway;x/c1/x", "", &[], &[(404, "")]),
        with(
            "options",
            "OPTIONS /gateway/c1/x",
            "Origin: https://evil.test\r\nAccess-Control-Request-Method: POST",
            &[],
            REFUSED,
        ),
        with("head", "HEAD /gateway/c1/x", "", &[], REFUSED),
    ]);
}

#[test]
fn a_key_reaches_its_own_connections_and_cannot_tell_others_from_none() {
    let site = Site::new();
    let wish = serde_json::json!({"name": "n", "role": "gateway", "connections": ["c2"]});
    let made = site.api("POST", "/v1/keys", &wish);
    let made: serde_json::Value = serde_json::from_slice(&made.body).unwrap();
    let key = made["key"].as_str().unwrap();
    let ask = |id: &str| {
        let mut wire = site.wire();
        wire.send(format!("GET /gateway/{id}/x HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: same\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n").as_bytes());
        let answer = wire.answer(false).unwrap();
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (424, "unknown_connection"),
            "{id}"
        );
        answer.text().replace(id, "ID")
    };
    assert_eq!(ask("c1"), ask("c9"));
    assert!(site.arrived("others").is_empty());
}
