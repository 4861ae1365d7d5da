//! A customer's way through consent, with a browser that keeps cookies and one that does not.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evergrant_store::contract::{ConnectSession, SessionOutcome};
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hubspot_sim::{Fault, FaultKind};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use url::Url;

use crate::harness::{Answer, House, PUBLIC, bare};

/// A browser: follows nothing by itself, brings its cookie back.
#[derive(Default)]
pub(crate) struct Browser {
    cookie: Option<String>,
}

impl Browser {
    pub(crate) async fn send(&mut self, house: &House, method: &str, url: &str) -> Answer {
        let path = url.strip_prefix(PUBLIC).unwrap_or(url);
        let mut request = bare(method, path);
        if let Some(cookie) = &self.cookie {
            request
                .headers_mut()
                .insert(header::COOKIE, cookie.parse().unwrap());
        }
        let answer = house.send(request).await;
        if let Some(cookie) = answer.headers.get(header::SET_COOKIE) {
            self.cookie = Some(cookie.to_str().unwrap().split(';').next().unwrap().to_owned());
        }
        answer
    }

    /// Opens the link, sends the form, and returns where the provider is.
    pub(crate) async fn go_to_provider(&mut self, house: &House, link: &str) -> String {
        self.send(house, "GET", link).await.expect(200);
        let answer = self.send(house, "POST", link).await.expect(303);
        answer.header("location").to_owned()
    }

    /// All the way to the callback's URL, with this decision at the provider.
    pub(crate) async fn go_to_callback(&mut self, house: &House, link: &str, decision: &str) -> String {
        let provider = self.go_to_provider(house, link).await;
        location_of(&format!("{provider}&{decision}")).await
    }
}

/// Where the provider's page sends the browser.
pub(crate) async fn location_of(url: &str) -> String {
    let url = Url::parse(url).unwrap();
    let address = (url.host_str().unwrap().to_owned(), url.port().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::get(&url[url::Position::BeforePath..]).header(header::HOST, "localhost");
    let answer = sender
        .send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap())
        .await
        .unwrap();
    let status = answer.status();
    let location = answer
        .headers()
        .get(header::LOCATION)
        .map(|location| location.to_str().unwrap().to_owned());
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    location.unwrap_or_else(|| panic!("{status}: {}", String::from_utf8_lossy(&body)))
}

pub(crate) fn parameter(url: &str, name: &str) -> Option<String> {
    Url::parse(url)
        .unwrap()
        .query_pairs()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

async fn session(house: &House, more: Value) -> Value {
    let mut wish = json!({"app": "crm", "customer": "acme"});
    wish.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    house
        .post(&house.admin, "/v1/connect-sessions", wish)
        .await
        .expect(201)
        .json()
}

async fn outcome(house: &House, session: &Value) -> Value {
    let path = format!("/v1/connect-sessions/{}", session["id"].as_str().unwrap());
    house.get(&house.admin, &path).await.expect(200).json()
}

fn link(session: &Value) -> &str {
    session["url"].as_str().unwrap()
}

const PORTAL: &str = "_sim_hub_id=1001";

#[tokio::test]
async fn a_customer_connects_and_the_connection_works() {
    let house = House::build().await;
    let session = session(&house, json!({"connection_id": "c1"})).await;
    assert_eq!(outcome(&house, &session).await["status"], "pending");
    let mut browser = Browser::default();
    let page = browser.send(&house, "GET", link(&session)).await.expect(200);
    assert!(page.text().contains("acme") && page.text().contains("https://support.example.com/"));
    assert!(page.header("set-cookie").contains("HttpOnly; SameSite=Lax"));
    let callback = browser.go_to_callback(&house, link(&session), PORTAL).await;
    let done = browser.send(&house, "GET", &callback).await.expect(200);
    assert!(done.text().contains("Connected"), "{}", done.text());
    assert!(!done.text().contains(&parameter(&callback, "code").unwrap()));
    let outcome = outcome(&house, &session).await;
    assert_eq!(
        (outcome["status"].as_str(), outcome["connection"].as_str()),
        (Some("connected"), Some("c1"))
    );
    house
        .get(&house.admin, "/gateway/c1/crm/v3/objects/contacts")
        .await
        .expect(200);
    let again = browser.send(&house, "GET", link(&session)).await.expect(200);
    assert!(again.text().contains("Already connected"));
    browser.send(&house, "POST", link(&session)).await.expect(200);
}

#[tokio::test]
async fn the_vendors_app_gets_its_browser_back_with_the_result() {
    let house = House::build().await;
    let back = json!({"connection_id": "c1", "return_url": "https://app.example.com/done?tab=crm"});
    let wish = session(&house, back.clone()).await;
    let mut browser = Browser::default();
    let callback = browser.go_to_callback(&house, link(&wish), PORTAL).await;
    let answer = browser.send(&house, "GET", &callback).await.expect(303);
    let location = answer.header("location");
    assert_eq!(
        location,
        "https://app.example.com/done?tab=crm&connection=c1&result=connected"
    );
    assert_eq!(answer.header("referrer-policy"), "no-referrer");
    let wish = session(&house, back).await;
    let callback = browser
        .go_to_callback(&house, link(&wish), "_sim_decision=deny")
        .await;
    let answer = browser.send(&house, "GET", &callback).await.expect(303);
    assert_eq!(
        answer.header("location"),
        "https://app.example.com/done?tab=crm&connection=c1&result=denied&code=denied"
    );
    let outcome = outcome(&house, &wish).await;
    assert_eq!(outcome["connection"], "c1");
    assert_eq!(
        (outcome["status"].as_str(), outcome["code"].as_str()),
        (Some("failed"), Some("denied"))
    );
    for evil in [
        "https://evil.test/",
        "https://app.example.com.evil.test/",
        "javascript:alert(1)",
        "//evil.test",
        "https://app.example.com@evil.test/",
    ] {
        let wish = json!({"app": "crm", "customer": "acme", "return_url": evil});
        house
            .post(&house.admin, "/v1/connect-sessions", wish)
            .await
            .refused(400, "bad_request");
    }
}

#[tokio::test]
async fn opening_the_page_spends_nothing() {
    let house = House::build().await;
    let session = session(&house, json!({})).await;
    for _ in 0..5 {
        house
            .send(bare("GET", link(&session).strip_prefix(PUBLIC).unwrap()))
            .await
            .expect(200);
        house
            .send(bare("HEAD", link(&session).strip_prefix(PUBLIC).unwrap()))
            .await
            .expect(200);
    }
    assert_eq!(outcome(&house, &session).await["status"], "pending");
    let mut browser = Browser::default();
    let callback = browser.go_to_callback(&house, link(&session), PORTAL).await;
    browser.send(&house, "GET", &callback).await.expect(200);
    assert_eq!(outcome(&house, &session).await["status"], "connected");
}

#[tokio::test]
async fn a_state_is_good_once() {
    let house = House::build().await;
    let session = session(&house, json!({})).await;
    let mut browser = Browser::default();
    let callback = browser.go_to_callback(&house, link(&session), PORTAL).await;
    browser.send(&house, "GET", &callback).await.expect(200);
    let exchanges = house.sim.ledger().code_exchanges;
    browser.send(&house, "GET", &callback).await.expect(404);
    assert_eq!(house.sim.ledger().code_exchanges, exchanges);
}

#[tokio::test]
async fn a_state_is_worth_nothing_in_another_browser_and_stays_good_in_its_own() {
    let house = House::build().await;
    let wish = session(&house, json!({})).await;
    let mut victim = Browser::default();
    let callback = victim.go_to_callback(&house, link(&wish), PORTAL).await;
    let bare_callback = callback.strip_prefix(PUBLIC).unwrap();
    house.send(bare("GET", bare_callback)).await.expect(403);
    // With the cookie of another browser, which has begun a consent of its own.
    let other = session(&house, json!({"customer": "globex"})).await;
    let mut stranger = Browser::default();
    stranger.go_to_provider(&house, link(&other)).await;
    stranger.send(&house, "GET", &callback).await.expect(404);
    // Not even the right browser spends it by looking.
    let looked = victim.send(&house, "HEAD", &callback).await.expect(200);
    assert_eq!(looked.header("cache-control"), "no-store");
    assert_eq!(house.sim.ledger().code_exchanges, 0);
    assert_eq!(outcome(&house, &wish).await["status"], "pending");
    victim.send(&house, "GET", &callback).await.expect(200);
    assert_eq!(outcome(&house, &wish).await["status"], "connected");
    assert_eq!(outcome(&house, &other).await["status"], "pending");
}

#[tokio::test]
async fn a_crowd_at_the_install_page_does_not_shut_out_who_was_sent_a_link() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let mut crowd = Browser::default();
    crowd.send(&house, "GET", "/install/crm").await.expect(200);
    while crowd.send(&house, "POST", "/install/crm").await.status == 303 {}
    crowd.send(&house, "POST", "/install/crm").await.expect(503);
    let mut customer = Browser::default();
    let sent = session(&house, json!({})).await;
    customer.go_to_provider(&house, link(&sent)).await;
    let restore = house
        .post(&house.admin, "/v1/connections/c1/reconnect-link", json!({}))
        .await
        .expect(200)
        .json();
    customer.go_to_provider(&house, link(&restore)).await;
}

#[tokio::test]
async fn a_callback_that_is_not_whole_or_made_up_exchanges_nothing() {
    let house = House::build().await;
    let session = session(&house, json!({})).await;
    let mut browser = Browser::default();
    let callback = browser.go_to_callback(&house, link(&session), PORTAL).await;
    let code = parameter(&callback, "code").unwrap();
    let state = parameter(&callback, "state").unwrap();
    let long = "s".repeat(5000);
    for query in [
        String::new(),
        format!("code={code}&state=made-up"),
        format!("code={code}&state={long}"),
        format!("code={code}&code={code}&state={state}"),
        format!("code={code}&state={state}&state={state}"),
        "error=access_denied".to_owned(),
    ] {
        browser
            .send(&house, "GET", &format!("/oauth/callback?{query}"))
            .await
            .expect(404);
    }
    let page = browser
        .send(&house, "GET", &format!("/oauth/callback?state={state}"))
        .await
        .expect(200);
    assert!(page.text().contains("Not connected"));
    assert_eq!(house.sim.ledger().code_exchanges, 0);
}

#[tokio::test]
async fn an_issuer_that_is_not_this_apps_provider_is_refused() {
    let house = House::build().await;
    for (issuer, connected) in [
        ("https://evil.test", false),
        ("not a url", false),
        (house.sim.base_url().as_str(), true),
    ] {
        let session = session(&house, json!({})).await;
        let mut browser = Browser::default();
        let callback = browser.go_to_callback(&house, link(&session), PORTAL).await;
        let mut url = Url::parse(&callback).unwrap();
        url.query_pairs_mut().append_pair("iss", issuer);
        browser.send(&house, "GET", url.as_str()).await.expect(200);
        let outcome = outcome(&house, &session).await;
        assert_eq!(outcome["status"] == "connected", connected, "{issuer}: {outcome}");
    }
    assert_eq!(house.sim.ledger().code_exchanges, 1);
}

#[tokio::test]
async fn two_tabs_of_one_browser_do_not_disturb_each_other() {
    let house = House::build().await;
    let first = session(&house, json!({"connection_id": "c1"})).await;
    let second = session(&house, json!({"connection_id": "c2", "customer": "globex"})).await;
    let mut browser = Browser::default();
    let one = browser.go_to_callback(&house, link(&first), PORTAL).await;
    let two = browser
        .go_to_callback(&house, link(&second), "_sim_hub_id=1002")
        .await;
    browser.send(&house, "GET", &two).await.expect(200);
    browser.send(&house, "GET", &one).await.expect(200);
    assert_eq!(outcome(&house, &first).await["connection"], "c1");
    assert_eq!(outcome(&house, &second).await["connection"], "c2");
}

#[tokio::test]
async fn a_form_from_elsewhere_or_without_the_cookie_begins_nothing() {
    let house = House::build().await;
    let session = session(&house, json!({})).await;
    let path = link(&session).strip_prefix(PUBLIC).unwrap();
    house.send(bare("POST", path)).await.expect(403);
    let mut browser = Browser::default();
    browser.send(&house, "GET", path).await.expect(200);
    for site in ["cross-site", "same-site"] {
        let request = Request::post(path)
            .header("sec-fetch-site", site)
            .header(header::COOKIE, browser.cookie.clone().unwrap());
        house
            .send(request.body(Full::default()).unwrap())
            .await
            .expect(403);
    }
    let request = Request::post(path)
        .header("sec-fetch-site", "same-origin")
        .header(header::COOKIE, browser.cookie.clone().unwrap());
    house
        .send(request.body(Full::default()).unwrap())
        .await
        .expect(303);
}

#[tokio::test]
async fn an_expired_session_is_a_dead_link_and_reads_as_failed() {
    let house = House::build().await;
    let keeper = house.service.engine().keeper();
    let app = keeper.apps()[0].name.clone();
    let expired = ConnectSession {
        id: "old-session-id-made-here".to_owned(),
        app,
        customer: evergrant::Customer::parse("acme").unwrap(),
        connection: None,
        scopes: vec![],
        return_url: None,
        expires_at: keeper.clock().now().before(Duration::from_secs(1)),
        outcome: SessionOutcome::Pending,
    };
    keeper.store().create_session(expired).await.unwrap();
    house
        .send(bare("GET", "/connect/old-session-id-made-here"))
        .await
        .expect(404);
    let read = house
        .get(&house.admin, "/v1/connect-sessions/old-session-id-made-here")
        .await
        .expect(200)
        .json();
    assert_eq!(
        (read["status"].as_str(), read["code"].as_str()),
        (Some("failed"), Some("expired"))
    );
    house.send(bare("GET", "/connect/none")).await.expect(404);
    house
        .get(&house.admin, "/v1/connect-sessions/none")
        .await
        .refused(404, "unknown_session");
}

#[tokio::test]
async fn a_reconnect_link_restores_the_pinned_account_in_place_and_no_other() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house.sim.uninstall("sim-client", 1001);
    house
        .post(&house.admin, "/v1/connections/c1/refresh", json!({"force": true}))
        .await
        .refused(424, "reconnect_required");
    let wish = json!({"expires_in": 3600, "return_url": "https://app.example.com/done"});
    let link = house
        .post(&house.admin, "/v1/connections/c1/reconnect-link", wish)
        .await
        .expect(200)
        .json();
    let link = link["url"].as_str().unwrap();
    let mut browser = Browser::default();
    let page = browser.send(&house, "GET", link).await.expect(200);
    assert!(
        page.text().contains("has lost its access") && page.text().contains("1001"),
        "{}",
        page.text()
    );
    let callback = browser.go_to_callback(&house, link, "_sim_hub_id=1002").await;
    let answer = browser.send(&house, "GET", &callback).await.expect(303);
    assert_eq!(
        answer.header("location"),
        "https://app.example.com/done?connection=c1&result=failed&code=account_mismatch"
    );
    let record = house
        .get(&house.admin, "/v1/connections/c1")
        .await
        .expect(200)
        .json();
    assert_eq!(record["status"], "reconnect_required");
    let callback = browser.go_to_callback(&house, link, PORTAL).await;
    let answer = browser.send(&house, "GET", &callback).await.expect(303);
    let page = browser.send(&house, "GET", link).await.expect(200);
    assert!(
        page.text().contains("Renew what") && !page.text().contains("has lost its access"),
        "{}",
        page.text()
    );
    assert!(
        answer
            .header("location")
            .contains("connection=c1&result=connected")
    );
    let record = house
        .get(&house.admin, "/v1/connections/c1")
        .await
        .expect(200)
        .json();
    assert_eq!(
        (record["id"].as_str(), record["status"].as_str()),
        (Some("c1"), Some("active"))
    );
    house
        .get(&house.admin, "/gateway/c1/crm/v3/objects/contacts")
        .await
        .expect(200);
    for forged in [
        format!("{link}x"),
        link.replace("/connect/r.", "/connect/r.e30"),
        format!("{PUBLIC}/connect/r.e30.AAAA"),
    ] {
        browser.send(&house, "GET", &forged).await.expect(404);
    }
    for wrong in [
        json!({"expires_in": 0}),
        json!({"expires_in": 2_592_001}),
        json!({"return_url": "https://evil.test/"}),
        json!({"days": 1}),
    ] {
        house
            .post(&house.admin, "/v1/connections/c1/reconnect-link", wrong)
            .await
            .refused(400, "bad_request");
    }
}

/// A link as this installation signs it, for this connection and until then.
fn signed(house: &House, connection: &str, until: i64) -> String {
    let payload = URL_SAFE_NO_PAD.encode(json!({"c": connection, "e": until}).to_string());
    let signature = house
        .service
        .engine()
        .keeper()
        .vault()
        .sign("reconnect", payload.as_bytes());
    format!(
        "{PUBLIC}/connect/r.{payload}.{}",
        URL_SAFE_NO_PAD.encode(signature)
    )
}

#[tokio::test]
async fn a_link_that_has_expired_is_dead_though_its_signature_is_good() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let now = house.service.engine().keeper().clock().now().millis() / 1000;
    let mut browser = Browser::default();
    for (connection, until, status) in [
        ("c1", now + 60, 200),
        ("c1", now - 1, 404),
        ("c1", i64::MAX, 404),
        ("nobody", now + 60, 404),
    ] {
        let link = signed(&house, connection, until);
        browser.send(&house, "GET", &link).await.expect(status);
    }
    assert_eq!(house.sim.ledger().code_exchanges, 0);
}

#[tokio::test]
async fn the_wrong_account_is_explained_to_the_customer() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let session = session(&house, json!({"connection_id": "c1"})).await;
    let mut browser = Browser::default();
    let callback = browser
        .go_to_callback(&house, link(&session), "_sim_hub_id=1002")
        .await;
    let page = browser.send(&house, "GET", &callback).await.expect(200).text();
    assert!(
        page.contains("1001") && page.contains("1002") || page.contains("hub-1002"),
        "{page}"
    );
    assert_eq!(outcome(&house, &session).await["code"], "account_mismatch");
}

#[tokio::test]
async fn a_link_of_a_connection_that_was_ended_restores_nothing() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let made = house
        .call(&house.admin, "POST", "/v1/connections/c1/reconnect-link", None)
        .await
        .expect(200)
        .json();
    let link = made["url"].as_str().unwrap();
    let mut browser = Browser::default();
    let callback = browser.go_to_callback(&house, link, PORTAL).await;
    house
        .call(&house.admin, "DELETE", "/v1/connections/c1", None)
        .await
        .expect(202);
    let page = browser.send(&house, "GET", &callback).await.expect(200);
    let page = page.text();
    assert!(
        page.contains("Not connected") && page.contains("href=\"/help/reconnect?app=crm\""),
        "whoever failed is shown how it is done: {page}"
    );
    let dead = browser.send(&house, "GET", link).await.expect(404).text();
    assert!(
        dead.contains("href=\"/help/reconnect\""),
        "and no app is named where the link names none: {dead}"
    );
    assert_eq!(house.sim.ledger().code_exchanges, 0);
}

#[tokio::test]
async fn wrong_credentials_are_the_vendors_to_mend_and_their_details_stay_inside() {
    let house = House::build().await;
    let session = session(&house, json!({})).await;
    let mut browser = Browser::default();
    let callback = browser.go_to_callback(&house, link(&session), PORTAL).await;
    house.sim.set_client_secret("sim-client", "another");
    let page = browser.send(&house, "GET", &callback).await.expect(200).text();
    assert!(
        page.contains("vendor") && !page.contains("BAD_CLIENT") && !page.contains("sim-client"),
        "{page}"
    );
    assert_eq!(
        outcome(&house, &session).await["code"],
        "app_credentials_rejected"
    );
}

#[tokio::test]
async fn an_install_without_our_state_begins_afresh_and_its_code_is_left_alone() {
    let house = House::build().await;
    let mut browser = Browser::default();
    let stray = browser
        .send(
            &house,
            "GET",
            "/oauth/callback?code=stray&returnUrl=https%3A%2F%2Fapp-eu1.hubspot.com%2Fx",
        )
        .await;
    let install = stray.expect(303).header("location").to_owned();
    assert!(
        install.starts_with(&format!("{PUBLIC}/install/crm?returnUrl=")),
        "{install}"
    );
    assert_eq!(house.sim.ledger().code_exchanges, 0);
    let page = browser.send(&house, "GET", &install).await.expect(200).text();
    let action = page.split("action=\"").nth(1).unwrap().split('"').next().unwrap();
    let provider = browser
        .send(&house, "POST", action)
        .await
        .expect(303)
        .header("location")
        .to_owned();
    let callback = location_of(&format!("{provider}&{PORTAL}")).await;
    let done = browser.send(&house, "GET", &callback).await.expect(303);
    assert_eq!(done.header("location"), "https://app-eu1.hubspot.com/x");
    let list = house
        .get(&house.admin, "/v1/connections")
        .await
        .expect(200)
        .json();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["customer"], "install:1001");
    browser.send(&house, "GET", "/install/other").await.expect(404);
    browser.send(&house, "GET", "/install/none").await.expect(404);
}

#[tokio::test]
async fn installing_again_restores_the_same_connection() {
    let house = House::build().await;
    let mut browser = Browser::default();
    for _ in 0..2 {
        let callback = browser
            .go_to_callback(&house, &format!("{PUBLIC}/install/crm"), PORTAL)
            .await;
        browser.send(&house, "GET", &callback).await.expect(200);
        house.sim.uninstall("sim-client", 1001);
    }
    let list = house
        .get(&house.admin, "/v1/connections")
        .await
        .expect(200)
        .json();
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list["items"][0]["version"], 2);
}

#[tokio::test]
async fn a_marketplaces_return_url_is_believed_only_where_it_is_hubspots_own() {
    let house = House::build().await;
    for (url, believed) in [
        ("https://app.hubspot.com/x", true),
        ("https://app-na2.hubspot.com/x", true),
        ("http://app.hubspot.com/x", false),
        ("https://app.hubspot.com.evil.test/", false),
        ("https://evil-app.hubspot.com/", false),
        ("https://app-.hubspot.com/", false),
        ("https://app.hubspot.com@evil.test/", false),
        ("https://app.hubspot.com:8443/", false),
        ("javascript:alert(1)", false),
    ] {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("returnUrl", url)
            .finish();
        let page = house
            .send(bare("GET", &format!("/install/crm?{query}")))
            .await
            .expect(200)
            .text();
        assert_eq!(page.contains("returnUrl"), believed, "{url}");
    }
}

#[tokio::test]
async fn a_provider_that_wants_proof_of_the_same_client_gets_it() {
    let house = House::with(|app| app.provider.pkce = true).await;
    let session = session(&house, json!({"connection_id": "c1"})).await;
    let mut browser = Browser::default();
    let provider = browser.go_to_provider(&house, link(&session)).await;
    assert_eq!(
        parameter(&provider, "code_challenge_method").as_deref(),
        Some("S256")
    );
    let callback = location_of(&format!("{provider}&{PORTAL}")).await;
    browser.send(&house, "GET", &callback).await.expect(200);
    assert_eq!(outcome(&house, &session).await["status"], "connected");
}

#[tokio::test]
async fn a_session_asks_for_the_scopes_of_its_app_or_fewer_and_for_its_own_connection() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let fewer = session(&house, json!({"scopes": ["oauth"]})).await;
    let provider = Browser::default().go_to_provider(&house, link(&fewer)).await;
    assert_eq!(parameter(&provider, "scope").as_deref(), Some("oauth"));
    let all = session(&house, json!({})).await;
    let provider = Browser::default().go_to_provider(&house, link(&all)).await;
    assert_eq!(
        parameter(&provider, "scope").as_deref(),
        Some("oauth crm.objects.contacts.read")
    );
    assert_eq!(
        parameter(&provider, "redirect_uri"),
        Some(format!("{PUBLIC}/oauth/callback"))
    );
    for foreign in [
        json!({"app": "crm", "customer": "globex", "connection_id": "c1"}),
        json!({"app": "other", "customer": "acme", "connection_id": "c1"}),
    ] {
        house
            .post(&house.admin, "/v1/connect-sessions", foreign)
            .await
            .refused(409, "id_taken");
    }
}

#[tokio::test]
async fn a_record_that_does_not_open_is_no_outage_and_reconnecting_mends_it() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house.import("c2", "globex", 1002).await;
    house.tamper(
        "UPDATE connections SET access_token = zeroblob(64), refresh_token = zeroblob(64) WHERE id = 'c1'",
    );
    let contacts = "/gateway/c1/crm/v3/objects/contacts";
    let refused = house
        .get(&house.admin, contacts)
        .await
        .refused(424, "connection_unreadable");
    assert_eq!(refused.header("evergrant-error"), "connection_unreadable");
    assert_eq!(refused.header("x-should-retry"), "false");
    assert_eq!(refused.header("retry-after"), "");
    house
        .get(&house.admin, "/v1/connections/c1/token")
        .await
        .refused(424, "connection_unreadable");
    house
        .get(&house.admin, "/gateway/c2/crm/v3/objects/contacts")
        .await
        .expect(200);
    let link = refused.json()["reconnect_url"].as_str().unwrap().to_owned();
    let mut browser = Browser::default();
    let callback = browser.go_to_callback(&house, &link, PORTAL).await;
    browser.send(&house, "GET", &callback).await.expect(200);
    house.get(&house.admin, contacts).await.expect(200);
}

#[tokio::test]
async fn a_code_that_is_being_redeemed_makes_its_connection_though_the_browser_hangs_up() {
    let house = House::build().await;
    let session = session(&house, json!({"connection_id": "c1"})).await;
    let mut browser = Browser::default();
    let callback = browser.go_to_callback(&house, link(&session), PORTAL).await;
    house.sim.arm(Fault::token(FaultKind::HoldAfterIssue));
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: localhost\r\nCookie: {}\r\n\r\n",
        callback.strip_prefix(PUBLIC).unwrap(),
        browser.cookie.unwrap()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    house.sim.wait_for_held(1).await;
    drop(stream);
    // An answer on a later connection: by then the service has seen that the browser is gone.
    house.send(bare("GET", "/healthz")).await.expect(200);
    house.sim.release_held();
    let connected = async { while outcome(&house, &session).await["status"] != "connected" {} };
    tokio::time::timeout(Duration::from_secs(20), connected)
        .await
        .unwrap();
    house
        .get(&house.admin, "/gateway/c1/crm/v3/objects/contacts")
        .await
        .expect(200);
}

const CONTACTS_READ: &str = "crm.objects.contacts.read";

/// Imports a connection that was granted these scopes alone.
async fn import_with(house: &House, scopes: &[&str]) {
    let grant = house.sim.grant_scopes("sim-client", 1001, scopes).unwrap();
    let record = json!({
        "app": "crm", "id": "c1", "customer": "acme", "refresh_token": grant.refresh_token,
        "access_token": grant.access_token, "account": 1001, "scopes": grant.scopes,
        "expires_at": crate::harness::in_seconds(1800),
    });
    house
        .post(&house.admin, "/v1/connections", record)
        .await
        .expect(201);
}

async fn record(house: &House, id: &str) -> Value {
    let path = format!("/v1/connections/{id}");
    house.get(&house.admin, &path).await.expect(200).json()
}

#[tokio::test]
async fn a_link_asks_for_what_is_missing_and_shows_exactly_that() {
    let house = House::with(|app| app.optional_scopes = vec!["tickets".to_owned()]).await;
    import_with(&house, &["oauth"]).await;
    let before = record(&house, "c1").await;
    assert_eq!(before["missing_scopes"], json!([CONTACTS_READ]));
    let link = before["reconnect_url"].as_str().expect("it has a link");
    let mut browser = Browser::default();
    let page = browser.send(&house, "GET", link).await.expect(200).text();
    let new = &page[page.find("New this time").expect("something is new")..];
    assert!(new.contains(&format!("<code>{CONTACTS_READ}</code>")), "{new}");
    assert!(
        new.contains("<code>tickets</code>, where your account has it"),
        "{new}"
    );
    assert!(!new.contains("<code>oauth</code>"), "{new}");
    assert!(page.contains("Renew what"), "it has not lost its access: {page}");

    let provider = browser.go_to_provider(&house, link).await;
    assert_eq!(
        parameter(&provider, "scope").as_deref(),
        Some("oauth crm.objects.contacts.read"),
        "HubSpot takes the app's required scopes as a whole, or none"
    );
    assert_eq!(parameter(&provider, "optional_scope").as_deref(), Some("tickets"));
    let callback = location_of(&format!("{provider}&{PORTAL}")).await;
    browser.send(&house, "GET", &callback).await.expect(200);
    let after = record(&house, "c1").await;
    assert_eq!(after["missing_scopes"], json!([]));
    assert_eq!(after["reconnect_url"], Value::Null);
    let page = browser.send(&house, "GET", link).await.expect(200).text();
    assert!(!page.contains("New this time"), "nothing is new any more: {page}");
}

#[tokio::test]
async fn a_session_that_asks_for_one_scope_more_does_not_lose_the_others() {
    let house = House::with(|app| app.scopes.push("tickets".to_owned())).await;
    import_with(&house, &["oauth", "tickets"]).await;
    let wish = json!({"connection_id": "c1", "scopes": [CONTACTS_READ]});
    let session = session(&house, wish).await;
    let mut browser = Browser::default();
    let page = browser
        .send(&house, "GET", link(&session))
        .await
        .expect(200)
        .text();
    let new = &page[page.find("New this time").expect("something is new")..];
    assert!(new.contains(CONTACTS_READ) && !new.contains("tickets"), "{new}");
    let callback = browser.go_to_callback(&house, link(&session), PORTAL).await;
    browser.send(&house, "GET", &callback).await.expect(200);
    let scopes = record(&house, "c1").await["scopes"].clone();
    for scope in ["oauth", "tickets", CONTACTS_READ] {
        assert!(
            scopes.as_array().unwrap().contains(&json!(scope)),
            "{scope} of {scopes}"
        );
    }
}

#[tokio::test]
async fn an_install_under_a_new_id_names_its_successor_to_whoever_uses_the_old_one() {
    let house = House::build().await;
    house.import("old", "acme", 1001).await;
    house
        .get(&house.admin, "/gateway/old/crm/v3/objects/contacts")
        .await
        .expect(200);
    let session = session(&house, json!({"connection_id": "new"})).await;
    let mut browser = Browser::default();
    let callback = browser.go_to_callback(&house, link(&session), PORTAL).await;
    browser.send(&house, "GET", &callback).await.expect(200);
    assert_eq!(outcome(&house, &session).await["connection"], "new");
    let refused = house
        .get(&house.admin, "/gateway/old/crm/v3/objects/contacts")
        .await
        .refused(424, "disconnected");
    let problem = refused.json();
    assert_eq!(problem["superseded_by"], "new");
    assert!(problem["detail"].as_str().unwrap().contains("new"), "{problem}");
    house
        .get(&house.admin, "/v1/connections/old/token")
        .await
        .refused(424, "disconnected");
    let retired = record(&house, "old").await;
    assert_eq!(
        (retired["status"].as_str(), retired["status_reason"].as_str()),
        (Some("disconnected"), Some("superseded_by new"))
    );
    house
        .get(&house.admin, "/gateway/new/crm/v3/objects/contacts")
        .await
        .expect(200);
    // A link of the old one restores nothing: it would take the account back.
    let link = house
        .post(&house.admin, "/v1/connections/old/reconnect-link", json!({}))
        .await;
    if link.status == 200 {
        let url = link.json()["url"].as_str().unwrap().to_owned();
        browser.send(&house, "GET", &url).await.expect(404);
    }
}
