//! Pages: inert whatever is in them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{Answer, House, PUBLIC, bare};

#[track_caller]
fn inert(page: &Answer) {
    let policy = page.header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; style-src 'self'; form-action "),
        "{policy}"
    );
    assert!(
        policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe") && !policy.contains(" *;"),
        "{policy}"
    );
    assert_eq!(page.header("referrer-policy"), "no-referrer");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(page.header("cache-control"), "no-store");
    let html = page.text();
    for forbidden in ["<script", "<style", " style=", " onclick", "javascript:"] {
        assert!(!html.contains(forbidden), "{forbidden}: {html}");
    }
}

#[tokio::test]
async fn names_from_elsewhere_are_text_and_nothing_else() {
    let house = House::build().await;
    let customer = "\"><script>alert(1)</script><img src=x onerror=alert(1)>";
    let session = json!({"app": "crm", "customer": customer});
    let session = house
        .post(&house.admin, "/v1/connect-sessions", session)
        .await
        .expect(201)
        .json();
    let path = session["url"]
        .as_str()
        .unwrap()
        .strip_prefix(PUBLIC)
        .unwrap()
        .to_owned();
    let page = house.send(bare("GET", &path)).await.expect(200);
    inert(&page);
    assert!(
        page.text().contains("&lt;script&gt;") || page.text().contains("&#60;script&#62;"),
        "{}",
        page.text()
    );
    assert!(
        page.text().contains("Acme &lt;CRM&gt;") || page.text().contains("Acme &#60;CRM&#62;"),
        "{}",
        page.text()
    );
    assert!(
        page.header("content-security-policy")
            .contains(&house.sim.base_url())
    );
    let denied = house
        .send(bare(
            "GET",
            "/oauth/callback?error=%3Cscript%3Ealert(1)%3C/script%3E&state=x",
        ))
        .await;
    inert(&denied);
}

#[tokio::test]
async fn every_page_is_inert_and_every_word_has_a_page() {
    let house = House::build().await;
    for path in [
        "/docs",
        "/connect/none",
        "/help",
        "/help/reconnect",
        "/help/reconnect?app=crm",
        "/help/expired",
        "/help/errors/reconnect_required",
        "/install/crm",
        "/oauth/callback",
    ] {
        let page = house.send(bare("GET", path)).await;
        assert_eq!(page.header("content-type"), "text/html; charset=utf-8", "{path}");
        inert(&page);
    }
    for class in evergrant_domain::api_answer::Class::ALL {
        house
            .send(bare("GET", &format!("/help/{}", class.as_str())))
            .await
            .expect(200);
    }
    for code in evergrant_server::Code::ALL {
        let page = house
            .send(bare("GET", &format!("/help/errors/{}", code.as_str())))
            .await
            .expect(200);
        assert!(page.text().contains(code.as_str()));
    }
    let style = house.send(bare("GET", "/assets/style.css")).await.expect(200);
    assert!(style.text().contains("prefers-color-scheme: dark"));
}

#[tokio::test]
async fn help_pages_are_an_apps_own_where_they_are_asked_to_be_and_tell_nothing_else() {
    let house = House::build().await;
    let page = async |path: &str| house.send(bare("GET", path)).await.expect(200).text();
    for path in [
        "/help",
        "/help/reconnect",
        "/help/permission_denied",
        "/help/errors/reconnect_required",
    ] {
        let general = page(path).await;
        assert!(
            !general.contains("Acme") && !general.contains("support.example.com"),
            "{general}"
        );
        let own = page(&format!("{path}?app=crm&utm_source=mail")).await;
        assert!(
            own.contains("Acme") && own.contains("https://support.example.com/"),
            "{own}"
        );
        assert!(own.contains("?app=crm\""), "its links stay with the app: {own}");
        for nobody in ["nobody", "CRM", "%3Cscript%3E", "", "crm&app=crm"] {
            assert_eq!(page(&format!("{path}?app={nobody}")).await, general, "{nobody}");
        }
        // Nothing of the app but what its consent page shows.
        for secret in ["client_id", "redirect", "example.com/oauth"] {
            assert!(!own.contains(secret), "{secret}: {own}");
        }
    }
}

#[tokio::test]
async fn a_help_page_says_who_can_do_something_about_it() {
    let house = House::build().await;
    let page = async |path: &str| house.send(bare("GET", path)).await.expect(200).text();
    let reconnecting = page("/help/reconnect").await;
    let steps = ["1. Verify", "2. Reconnect", "3. Confirm", "You are done when"];
    let places: Vec<_> = steps
        .iter()
        .map(|step| reconnecting.find(step).unwrap())
        .collect();
    assert!(places.is_sorted(), "{places:?}");
    for path in ["/help/errors/reconnect_required", "/help/permission_denied"] {
        assert!(page(path).await.contains("href=\"/help/reconnect\""), "{path}");
    }
    for path in ["/help/rate_limited", "/help/errors/provider_unavailable"] {
        assert!(page(path).await.contains("tried again by itself"), "{path}");
    }
    for path in ["/help/client_error", "/help/errors/app_credentials_rejected"] {
        assert!(page(path).await.contains("Nothing in your account"), "{path}");
    }
    let all = page("/help").await;
    for code in evergrant_server::Code::ALL {
        assert!(
            all.contains(&format!("/help/errors/{}\"", code.as_str())),
            "{}",
            code.as_str()
        );
    }
}

#[tokio::test]
async fn health_needs_no_key_and_tells_nothing_about_customers() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let alive = house.send(bare("GET", "/healthz")).await.expect(200);
    assert_eq!(alive.json()["status"], "ok");
    let ready = house.send(bare("GET", "/readyz")).await.expect(200);
    assert_eq!(ready.json(), json!({"status": "ready", "store": "reachable"}));
    let spec = house.send(bare("GET", "/openapi.json")).await.expect(200);
    assert!(!spec.text().contains("acme"));
    assert_eq!(spec.text(), evergrant_server::openapi::description());
}

#[tokio::test]
async fn answers_have_the_members_that_the_description_names_and_no_others() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let spec: Value = serde_json::from_str(&evergrant_server::openapi::description()).unwrap();
    let check = |schema: &str, value: &Value| {
        let schema = &spec["components"]["schemas"][schema];
        let described: BTreeSet<_> = schema["properties"].as_object().unwrap().keys().collect();
        let answered: BTreeSet<_> = value.as_object().unwrap().keys().collect();
        assert_eq!(answered, described);
    };
    let get = async |path: &str| house.get(&house.admin, path).await.expect(200).json();
    check("Connection", &get("/v1/connections/c1").await);
    check("Connection", &get("/v1/connections").await["items"][0]);
    check("Token", &get("/v1/connections/c1/token").await);
    check("Event", &get("/v1/connections/c1/events").await["items"][0]);
    check("App", &get("/v1/apps").await["items"][0]);
    check("ApiKey", &get("/v1/keys").await["items"][0]);
    check("Ready", &get("/readyz").await);
    let explained = json!({"text": "HTTP/1.1 401"});
    let explained = house
        .post(&house.admin, "/v1/explain", explained)
        .await
        .expect(200);
    check("Explanation", &explained.json());
    let session = json!({"app": "crm", "customer": "acme"});
    let session = house
        .post(&house.admin, "/v1/connect-sessions", session)
        .await
        .expect(201);
    check("SessionLink", &session.json());
    let path = format!("/v1/connect-sessions/{}", session.json()["id"].as_str().unwrap());
    check("ConnectSession", &get(&path).await);
}
