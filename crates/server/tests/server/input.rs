//! Bad input gets a clear answer and changes nothing.

use evergrant_server::{Peer, Reach};
use http::{Request, header};
use http_body_util::Full;
use serde_json::json;

use crate::harness::{Answer, House, bare};

#[tokio::test]
async fn a_body_that_is_not_as_it_must_be_is_refused_with_the_place() {
    let house = House::build().await;
    let post = async |content_type: &str, body: String| {
        let mut request = Request::post("/v1/connect-sessions")
            .header(header::AUTHORIZATION, format!("Bearer {}", house.admin));
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        house.send(request.body(Full::from(body)).unwrap()).await
    };
    let good = json!({"app": "crm", "customer": "acme"}).to_string();
    for content_type in [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/jsonp",
    ] {
        post(content_type, good.clone())
            .await
            .refused(415, "unsupported_media_type");
    }
    post("application/json; charset=utf-8", good.clone())
        .await
        .expect(201);
    for (body, says) in [
        ("", "not JSON"),
        ("{", "line 1"),
        ("[]", "an object"),
        ("{\"app\":\"crm\"}", "missing field `customer`"),
        (
            "{\"app\":\"crm\",\"customer\":\"a\",\"costumer\":\"b\"}",
            "unknown field `costumer`",
        ),
        ("{\"app\":\"crm\",\"customer\":{}}", "`customer`"),
        (
            "{\"app\":\"crm\",\"customer\":\"a\",\"scopes\":[\"oauth\",7]}",
            "`scopes[1]`",
        ),
        (
            "{\"app\":\"crm\",\"app\":\"crm\",\"customer\":\"a\"}",
            "duplicate field `app`",
        ),
        ("{\"app\":\"crm\",\"customer\":\"a\"} trailing", "not JSON"),
        ("\u{feff}{}", "not JSON"),
    ] {
        let answer = post("application/json", body.to_owned())
            .await
            .refused(400, "bad_request");
        assert!(
            answer.json()["detail"].as_str().unwrap().contains(says),
            "{body}: {}",
            answer.text()
        );
    }
    let deep = format!("{{\"app\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    post("application/json", deep).await.refused(400, "bad_request");
    let large = format!("{{\"app\":\"crm\",\"customer\":\"{}\"}}", "a".repeat(1024 * 1024));
    post("application/json", large)
        .await
        .refused(413, "body_too_large");
    for (member, value) in [
        ("scopes", json!(["crm.objects.deals.read"])),
        ("return_url", json!("https://evil.test/")),
        ("connection_id", json!("a/b")),
    ] {
        let mut body = json!({"app": "crm", "customer": "acme"});
        body[member] = value;
        post("application/json", body.to_string())
            .await
            .refused(400, "bad_request");
    }
}

#[tokio::test]
async fn a_malformed_id_is_refused_wherever_it_stands() {
    let house = House::build().await;
    let long = "a".repeat(129);
    for id in [
        "a%2Fb",
        "%2e%2e",
        "a%20b",
        "%D0%B0",
        "a'or'1'='1",
        "-a",
        "_",
        &long,
        "%ff",
        "a%00",
        "a@b",
        "a;b",
    ] {
        for path in [
            "/v1/connections/ID",
            "/v1/connections/ID/token",
            "/v1/connections/ID/events",
        ] {
            house
                .get(&house.admin, &path.replace("ID", id))
                .await
                .refused(400, "bad_request");
        }
    }
    house
        .get(&house.admin, "/v1/apps/CRM/check")
        .await
        .refused(405, "method_not_allowed");
    house
        .post(&house.admin, "/v1/apps/CRM/check", json!({}))
        .await
        .refused(400, "bad_request");
}

#[tokio::test]
async fn an_unknown_route_is_404_and_a_wrong_method_405_with_those_that_fit() {
    let house = House::build().await;
    for path in [
        "/nothing",
        "/v1/nothing",
        "/v1/connections/c1/nothing",
        "/v1/connections/",
        "/healthz/",
        "/help/nothing",
        "/help/errors/nothing",
    ] {
        house.get(&house.admin, path).await.refused(404, "not_found");
    }
    let mut allowed: Vec<_> = house
        .call(&house.admin, "PUT", "/v1/connections", None)
        .await
        .refused(405, "method_not_allowed")
        .header("allow")
        .split(',')
        .map(|method| method.trim().to_owned())
        .collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "POST"]);
    house
        .call(&house.admin, "POST", "/v1/connections/c1/token", None)
        .await
        .refused(405, "method_not_allowed");
    house
        .send(bare("DELETE", "/healthz"))
        .await
        .refused(405, "method_not_allowed");
    house
        .send(bare("OPTIONS", "/v1/connections"))
        .await
        .refused(401, "invalid_api_key");
}

#[tokio::test]
async fn headers_over_the_limit_are_431() {
    let house = House::build().await;
    let request = Request::get("/v1/connections")
        .header(header::AUTHORIZATION, format!("Bearer {}", house.admin))
        .header("x-long", "a".repeat(70 * 1024));
    house
        .send(request.body(Full::default()).unwrap())
        .await
        .refused(431, "headers_too_large");
    let request = Request::get("/gateway/c1/x").header("x-long", "a".repeat(70 * 1024));
    let answer = house
        .send(request.body(Full::default()).unwrap())
        .await
        .refused(431, "headers_too_large");
    assert_eq!(answer.header("evergrant-error"), "headers_too_large");
}

#[tokio::test]
async fn every_answer_carries_a_request_id_and_takes_a_valid_one_over() {
    let house = House::build().await;
    for path in [
        "/healthz",
        "/v1/connections",
        "/nothing",
        "/gateway/c1/x",
        "/docs",
        "/connect/x",
    ] {
        let answer = house.send(bare("GET", path)).await;
        assert_eq!(answer.header("evergrant-request-id").len(), 16, "{path}");
        let request = Request::get(path).header("x-request-id", "mine-1.2");
        let answer = house.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(answer.header("evergrant-request-id"), "mine-1.2", "{path}");
        let request = Request::get(path).header("x-request-id", "<script>");
        let answer = house.send(request.body(Full::default()).unwrap()).await;
        assert!(!answer.header("evergrant-request-id").contains('<'), "{path}");
    }
}

#[tokio::test]
async fn a_name_that_is_not_ours_is_421_on_every_route_of_a_loopback_listener() {
    let house = House::build().await;
    for path in [
        "/healthz",
        "/v1/connections",
        "/docs",
        "/assets/style.css",
        "/gateway/c1/x",
        "/connect/x",
        "/nothing",
    ] {
        for host in [
            "evil.test",
            "evil.test:8484",
            "localhost.evil.test",
            "127.0.0.1.nip.io",
            "[::1].evil.test",
            "169.254.169.254",
            "",
        ] {
            let request = Request::get(path)
                .header(header::HOST, host)
                .header(header::AUTHORIZATION, format!("Bearer {}", house.admin));
            house
                .send(request.body(Full::default()).unwrap())
                .await
                .refused(421, "host_not_allowed");
        }
    }
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1:8484", "[::1]:8484"] {
        let request = Request::get("/healthz")
            .header(header::HOST, host)
            .header(header::ORIGIN, "http://evil.test");
        let answer = house
            .send(request.body(Full::default()).unwrap())
            .await
            .expect(200);
        assert!(
            answer
                .headers
                .keys()
                .all(|name| !name.as_str().starts_with("access-control")),
            "{:?}",
            answer.headers
        );
    }
}

/// A body that breaks whatever reads it.
struct Broken;

impl http_body::Body for Broken {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        panic!("canary of a panic")
    }
}

#[tokio::test]
async fn a_fault_in_one_answer_is_500_without_detail_and_the_service_goes_on() {
    let house = House::build().await;
    let peer = Peer {
        address: std::net::Ipv4Addr::LOCALHOST.into(),
        reach: Reach::Loopback,
    };
    let request = Request::post("/v1/explain")
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, format!("Bearer {}", house.admin));
    let answer = house.service.answer(request.body(Broken).unwrap(), peer).await;
    let (parts, body) = answer.into_parts();
    let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
    let answer = Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    }
    .refused(500, "internal");
    assert!(!answer.text().contains("canary"));
    house
        .post(&house.admin, "/v1/explain", json!({"text": "HTTP/1.1 401"}))
        .await
        .expect(200);
}

#[tokio::test]
async fn a_flood_of_made_up_keys_and_links_leaves_the_service_to_those_who_have_one() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house
        .get(&house.admin, "/v1/connections/c1/token")
        .await
        .expect(200);
    let flood = (0..400).map(|number| {
        let house = &house;
        async move {
            let path = match number % 4 {
                0 => "/gateway/c1/x".to_owned(),
                1 => format!("/connect/made-up-{number}"),
                2 => format!("/oauth/callback?state=made-up-{number}&code=x"),
                _ => "/readyz".to_owned(),
            };
            house
                .get(&format!("evg_{number:043}"), &path)
                .await
                .status
                .as_u16()
        }
    });
    let served = (0..50).map(|_| house.get(&house.admin, "/v1/connections/c1/token"));
    let (refused, served) = futures_util::future::join(
        futures_util::future::join_all(flood),
        futures_util::future::join_all(served),
    )
    .await;
    assert!(
        refused
            .iter()
            .all(|status| [200, 401, 403, 404, 503].contains(status)),
        "{refused:?}"
    );
    assert!(served.iter().all(|answer| answer.status == 200));
}

#[tokio::test]
async fn a_query_parameter_that_a_route_does_not_know_is_refused_everywhere() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    for (method, path) in [
        ("GET", "/v1/connections"),
        ("POST", "/v1/connections"),
        ("GET", "/v1/connections/c1"),
        ("PATCH", "/v1/connections/c1"),
        ("DELETE", "/v1/connections/c1"),
        ("GET", "/v1/connections/c1/events"),
        ("GET", "/v1/connections/c1/token"),
        ("POST", "/v1/connections/c1/token/rejected"),
        ("POST", "/v1/connections/c1/refresh"),
        ("POST", "/v1/connections/c1/reconnect-link"),
        ("POST", "/v1/connect-sessions"),
        ("GET", "/v1/connect-sessions/none"),
        ("POST", "/v1/tokens/batch"),
        ("GET", "/v1/apps"),
        ("POST", "/v1/apps/crm/check"),
        ("POST", "/v1/explain"),
        ("GET", "/v1/keys"),
        ("POST", "/v1/keys"),
        ("DELETE", "/v1/keys/none"),
    ] {
        let path = format!("{path}?bogus=1");
        let answer = house.call(&house.admin, method, &path, None).await;
        let problem = answer.refused(400, "bad_request").json();
        assert!(
            problem["detail"].as_str().unwrap().contains("bogus"),
            "{method} {path}: {problem}"
        );
    }
}

#[tokio::test]
async fn many_headers_within_the_limit_are_no_reason_to_refuse() {
    let house = House::build().await;
    let many = |path: &str, size: usize| {
        let mut request = Request::get(path);
        for number in 0..90 {
            request = request.header(format!("x-{number}"), "a".repeat(size));
        }
        request.body(Full::default()).unwrap()
    };
    house.send(many("/healthz", 1)).await.expect(200);
    let refused = house
        .send(many("/gateway/c1/x", 800))
        .await
        .refused(431, "headers_too_large");
    assert_eq!(refused.header("evergrant-error"), "headers_too_large");
}
