//! The dashboard's door: who is let in, what a form must bring along, and that a page shows no more than its reader's key may.

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;

use crate::harness::{Answer, House, bare};

/// A browser that is logged in, or not yet.
#[derive(Default, Clone)]
pub(crate) struct Visitor {
    cookies: Vec<(String, String)>,
    form_token: String,
}

impl Visitor {
    pub(crate) async fn with_key(house: &House, key: &str) -> Self {
        let mut visitor = Self::default();
        let answer = visitor.try_key(house, key).await.expect(303);
        assert_eq!(answer.header("location"), "/dashboard");
        let page = visitor.open(house, "/dashboard").await.expect(200).text();
        let token = page.split("name=\"form_token\" value=\"").nth(1).unwrap();
        token
            .split('"')
            .next()
            .unwrap()
            .clone_into(&mut visitor.form_token);
        visitor
    }

    async fn try_key(&mut self, house: &House, key: &str) -> Answer {
        let form = format!("key={key}&next=%2Fdashboard");
        self.send(house, form_request("/dashboard/login", &form)).await
    }

    pub(crate) async fn open(&mut self, house: &House, path: &str) -> Answer {
        self.send(house, bare("GET", path)).await
    }

    /// Sends a form as a page of ours would.
    pub(crate) async fn submit(&mut self, house: &House, path: &str) -> Answer {
        let form = format!("form_token={}", self.form_token);
        self.send(house, form_request(path, &form)).await
    }

    /// Sends a form and reads the page that follows.
    async fn submitted(&mut self, house: &House, path: &str) -> String {
        let answer = self.submit(house, path).await.expect(303);
        let location = answer.header("location").to_owned();
        self.open(house, &location).await.text()
    }

    async fn send(&mut self, house: &House, mut request: Request<Full<Bytes>>) -> Answer {
        if !self.cookies.is_empty() {
            let cookies: Vec<String> = self
                .cookies
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            request
                .headers_mut()
                .insert(header::COOKIE, cookies.join("; ").parse().unwrap());
        }
        let answer = house.send(request).await;
        for cookie in answer.headers.get_all(header::SET_COOKIE) {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            self.cookies.retain(|(known, _)| known != name);
            if !value.is_empty() {
                self.cookies.push((name.to_owned(), value.to_owned()));
            }
        }
        answer
    }
}

fn form_request(path: &str, form: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method("POST")
        .uri(path)
        .header("sec-fetch-site", "same-origin")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::from(form.to_owned()))
        .unwrap()
}

async fn version(house: &House, id: &str) -> i64 {
    let record = house.operate("GET", &format!("/v1/connections/{id}"), None).await;
    record.expect(200).json()["version"].as_i64().unwrap()
}

async fn support(house: &House) -> Visitor {
    let key = house.key(json!({"name": "support", "role": "support"})).await;
    Visitor::with_key(house, &key).await
}

#[tokio::test]
async fn nobody_is_let_in_without_a_key_that_may_look() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let mut nobody = Visitor::default();
    for (path, expected) in [
        ("/", "/dashboard"),
        ("/dashboard", "/dashboard/login"),
        (
            "/dashboard/connections/c1?x=y",
            "/dashboard/login?next=%2Fdashboard%2Fconnections%2Fc1%3Fx%3Dy",
        ),
        (
            "/dashboard/nowhere",
            "/dashboard/login?next=%2Fdashboard%2Fnowhere",
        ),
    ] {
        let answer = nobody.open(&house, path).await.expect(303);
        assert_eq!(answer.header("location"), expected, "{path}");
    }
    nobody.open(&house, "/dashboard/live").await.expect(401);
    let gateway = house.key(json!({"name": "g", "role": "gateway"})).await;
    let made_up = format!("evg_{}", "x".repeat(43));
    for (key, status) in [
        (made_up.as_str(), 401),
        ("nonsense", 401),
        ("", 401),
        (gateway.as_str(), 403),
    ] {
        let page = nobody.try_key(&house, key).await.expect(status).text();
        assert!(
            page.contains("role=\"alert\"") && (key.is_empty() || !page.contains(key)),
            "{page}"
        );
        assert!(nobody.cookies.is_empty());
    }
    for forged in ["", "x", "AAAA", &"A".repeat(200)] {
        nobody.cookies = vec![("evergrant_dashboard".to_owned(), forged.to_owned())];
        nobody.open(&house, "/dashboard").await.expect(303);
    }
}

#[tokio::test]
async fn a_session_is_a_strict_cookie_that_shows_nothing_of_the_key() {
    let house = House::build().await;
    let made = house
        .made_key(json!({"name": "the <b>desk</b>", "role": "support"}))
        .await;
    let key = made["key"].as_str().unwrap();
    let mut visitor = Visitor::default();
    let answer = visitor.try_key(&house, key).await.expect(303);
    let cookie = answer.header("set-cookie");
    assert!(
        cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200"),
        "{cookie}"
    );
    let page = visitor.open(&house, "/dashboard").await.expect(200);
    assert!(!page.text().contains("<b>desk"), "{}", page.text());
    for shown in [cookie, &page.text(), answer.header("location")] {
        assert!(
            !shown.contains(key) && !shown.contains(made["id"].as_str().unwrap()),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn every_page_and_file_is_inert_and_answers_to_our_names_only() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let mut visitor = support(&house).await;
    let page = visitor.open(&house, "/dashboard").await.text();
    let files: Vec<String> = page
        .split('"')
        .filter(|text| text.starts_with("/dashboard/assets/"))
        .map(str::to_owned)
        .collect();
    assert_eq!(files.len(), 3, "{page}");
    for path in [
        "/dashboard",
        "/dashboard/login",
        "/dashboard/connections",
        "/dashboard/connections/c1",
        "/dashboard/connections/c1/diagnosis",
        "/dashboard/connections/c1/disconnect",
        "/dashboard/diagnosis",
        "/dashboard/apps",
        "/dashboard/webhooks",
        "/dashboard/nowhere",
    ] {
        let page = visitor.open(&house, path).await;
        let policy = page.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self';"),
            "{path}: {policy}"
        );
        assert!(
            policy.contains("frame-ancestors 'none'") && policy.contains("form-action 'self'"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        for (name, expected) in [
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "same-origin"),
            ("cross-origin-opener-policy", "same-origin"),
        ] {
            assert_eq!(page.header(name), expected, "{path}: {name}");
        }
        for forbidden in ["<style", " style=", " onclick", "javascript:", "<script>"] {
            assert!(!page.text().contains(forbidden), "{path}: {forbidden}");
        }
    }
    for file in &files {
        let file = house.send(bare("GET", file)).await.expect(200);
        assert!(file.header("cache-control").contains("immutable"));
        assert_eq!(file.header("x-content-type-options"), "nosniff");
    }
    let all = files.iter().map(String::as_str);
    for path in all.chain([
        "/",
        "/dashboard",
        "/dashboard/login",
        "/dashboard/live",
        "/assets/style.css",
    ]) {
        let mut request = bare("GET", path);
        request
            .headers_mut()
            .insert(header::HOST, "evil.test:8484".parse().unwrap());
        visitor
            .send(&house, request)
            .await
            .refused(421, "host_not_allowed");
    }
}

#[tokio::test]
async fn a_form_of_another_site_does_nothing() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let mut visitor = support(&house).await;
    let other = support(&house).await;
    let path = "/dashboard/connections/c1/refresh";
    let good = format!("form_token={}", visitor.form_token);

    let check = async |visitor: &mut Visitor, headers: &[(&'static str, &str)], form: &str, status: u16| {
        let mut request = form_request(path, form);
        request.headers_mut().remove("sec-fetch-site");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        visitor.send(&house, request).await.expect(status);
    };
    let before = version(&house, "c1").await;
    for site in ["cross-site", "same-site", "none"] {
        check(&mut visitor, &[("sec-fetch-site", site)], &good, 403).await;
    }
    check(&mut visitor, &[], &good, 403).await;
    check(&mut visitor, &[("origin", "http://evil.test")], &good, 403).await;
    check(&mut visitor, &[("origin", "null")], &good, 403).await;
    check(
        &mut visitor,
        &[
            ("origin", "http://localhost:8484"),
            ("sec-fetch-site", "cross-site"),
        ],
        &good,
        403,
    )
    .await;
    let ours = [("sec-fetch-site", "same-origin")];
    let foreign_token = format!("form_token={}", other.form_token);
    for form in [
        "",
        "form_token=",
        foreign_token.as_str(),
        &format!("{good}&{good}"),
    ] {
        check(&mut visitor, &ours, form, 403).await;
    }
    check(
        &mut visitor,
        &[("sec-fetch-site", "same-origin"), ("content-type", "text/plain")],
        &good,
        415,
    )
    .await;
    check(
        &mut visitor,
        &ours,
        &format!("{good}&x={}", "x".repeat(20_000)),
        413,
    )
    .await;
    // A login that somebody else's page begins would put his key in place of ours.
    let mut request = form_request("/dashboard/login", "key=x");
    request
        .headers_mut()
        .insert("sec-fetch-site", "cross-site".parse().unwrap());
    visitor.send(&house, request).await.expect(403);
    assert_eq!(version(&house, "c1").await, before, "nothing was done");

    check(&mut visitor, &[("origin", "http://localhost:8484")], &good, 303).await;
    assert_eq!(
        version(&house, "c1").await,
        before + 1,
        "a form of ours does what it says"
    );
}

#[tokio::test]
async fn a_key_limited_to_one_customer_sees_and_does_nothing_else() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house.import("c2", "globex", 1002).await;
    let key = house
        .key(json!({"name": "acme's", "role": "support", "apps": ["crm"], "customers": ["acme"]}))
        .await;
    let mut visitor = Visitor::with_key(&house, &key).await;
    for path in [
        "/dashboard",
        "/dashboard/connections",
        "/dashboard/connections?q=globex",
        "/dashboard/apps",
        "/dashboard/diagnosis",
        "/dashboard/connections/c1",
    ] {
        let page = visitor
            .open(&house, path)
            .await
            .expect(200)
            .text()
            .replace("value=\"globex\"", "")
            .replace("q=globex", "");
        assert!(
            !page.contains("connections/c2") && !page.contains("globex") && !page.contains("app-other"),
            "{path}: {page}"
        );
    }
    let unseen = visitor
        .open(&house, "/dashboard/connections/c2")
        .await
        .expect(404)
        .text();
    let missing = visitor
        .open(&house, "/dashboard/connections/c9")
        .await
        .expect(404)
        .text();
    let told = |page: &str, id: &str| {
        let main = page
            .split("<main")
            .nth(1)
            .unwrap()
            .split("Request")
            .next()
            .unwrap();
        main.replace(id, "ID")
    };
    assert_eq!(told(&unseen, "c2"), told(&missing, "c9"));
    let before = version(&house, "c2").await;
    visitor
        .submit(&house, "/dashboard/connections/c2/refresh")
        .await
        .expect(303);
    visitor
        .open(&house, "/dashboard/connections/c2/export")
        .await
        .expect(404);
    assert_eq!(version(&house, "c2").await, before);
}

#[tokio::test]
async fn a_support_key_repairs_and_an_admin_key_ends() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let mut visitor = support(&house).await;
    let page = visitor
        .submitted(&house, "/dashboard/connections/c1/refresh")
        .await;
    assert!(
        page.contains("Refreshed: version 2 took the place of version 1"),
        "{page}"
    );
    let again = visitor.open(&house, "/dashboard/connections/c1").await.text();
    assert!(!again.contains("took the place"), "a message is said once");
    assert!(
        again.contains("/connect/r.") && !again.contains("/disconnect"),
        "{again}"
    );
    let page = visitor.submitted(&house, "/dashboard/apps/crm/check").await;
    assert!(
        page.contains("The provider accepts the credentials of app crm"),
        "{page}"
    );
    let page = visitor
        .submitted(&house, "/dashboard/connections/c1/disconnect")
        .await;
    assert!(page.contains("This takes the role admin"), "{page}");

    let mut admin = Visitor::with_key(&house, &house.admin).await;
    let asked = admin
        .open(&house, "/dashboard/connections/c1/disconnect")
        .await
        .expect(200)
        .text();
    assert!(
        asked.contains("Disconnect acme?") && asked.contains("erased at once"),
        "{asked}"
    );
    let page = admin
        .submitted(&house, "/dashboard/connections/c1/disconnect")
        .await;
    assert!(page.contains("Disconnected: its tokens are erased"), "{page}");
}

#[tokio::test]
async fn a_session_ends_with_its_key_and_with_its_logout() {
    let house = House::build().await;
    let made = house.made_key(json!({"name": "short", "role": "support"})).await;
    let mut visitor = Visitor::with_key(&house, made["key"].as_str().unwrap()).await;
    let mut left = support(&house).await;
    let kept = left.clone();
    left.open(&house, "/dashboard").await.expect(200);
    left.submit(&house, "/dashboard/logout").await.expect(303);
    assert!(left.cookies.is_empty(), "the browser forgets it");
    kept.clone().open(&house, "/dashboard").await.expect(303);

    house
        .operate(
            "DELETE",
            &format!("/v1/keys/{}", made["id"].as_str().unwrap()),
            None,
        )
        .await
        .expect(204);
    let gone = visitor.open(&house, "/dashboard/connections").await.expect(303);
    let login = gone.header("location").to_owned();
    assert!(login.starts_with("/dashboard/login"));
    let page = visitor.open(&house, &login).await.expect(200).text();
    assert!(page.contains("You are no longer logged in"), "{page}");
    let page = house.send(bare("GET", &login)).await.expect(200).text();
    assert!(!page.contains("no longer"), "nobody was in: {page}");
    visitor.submit(&house, "/dashboard/logout").await.expect(303);
}

#[tokio::test]
async fn a_page_hears_that_something_came_and_not_what_until_its_key_is_gone() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let made = house.made_key(json!({"name": "short", "role": "support"})).await;
    let visitor = Visitor::with_key(&house, made["key"].as_str().unwrap()).await;
    let mut request = bare("GET", "/dashboard/live?connection=c1&after=0");
    let (name, value) = &visitor.cookies[0];
    let headers = request.headers_mut();
    headers.insert(header::HOST, "localhost:8484".parse().unwrap());
    headers.insert(header::COOKIE, format!("{name}={value}").parse().unwrap());
    let stream = TcpStream::connect(house.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let _driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut body = answer.into_body();
    let mut heard = String::new();
    while !heard.contains("data: 1\n\n") {
        let frame = body.frame().await.unwrap().unwrap();
        heard.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    let path = format!("/v1/keys/{}", made["id"].as_str().unwrap());
    house.operate("DELETE", &path, None).await.expect(204);
    // Whatever comes then is the end.
    heard.push_str(std::str::from_utf8(&body.collect().await.unwrap().to_bytes()).unwrap());
    assert!(
        heard.contains("id: ") && !heard.contains("acme") && !heard.contains("connected"),
        "{heard}"
    );
}

#[tokio::test]
async fn an_address_that_tries_keys_is_shut_out_for_a_minute() {
    let house = House::build().await;
    let mut guesser = Visitor::default();
    for _ in 0..10 {
        guesser.try_key(&house, "evg_guess").await.expect(401);
    }
    let refused = guesser.try_key(&house, &house.admin).await.expect(429);
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert!(guesser.cookies.is_empty());
}

#[tokio::test]
async fn a_link_from_elsewhere_steps_in_once_before_it_asks_for_a_key() {
    let house = House::build().await;
    let mut request = bare("GET", "/dashboard/connections/c1?a=%22b");
    request
        .headers_mut()
        .insert("sec-fetch-site", "cross-site".parse().unwrap());
    let page = house.send(request).await.expect(200);
    assert!(
        page.text()
            .contains("content=\"0;url=/dashboard/connections/c1?a=%22b\""),
        "{}",
        page.text()
    );
    let mut request = bare("GET", "/dashboard/connections/c1");
    request
        .headers_mut()
        .insert("sec-fetch-site", "same-origin".parse().unwrap());
    house.send(request).await.expect(303);
}
