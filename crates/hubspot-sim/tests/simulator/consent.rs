//! The consent page.

use http::Method;
use hubspot_sim::{SimApp, SimConfig};

use crate::browser::{CLIENT, REDIRECT_URI, World, form, value};

#[tokio::test]
async fn consent_in_one_step_redirects_with_code_and_state() {
    let world = World::new().await;
    let redirect = world.consent(&[("_sim_hub_id", "1001")]).await;
    assert!(value(&redirect, "code").unwrap().starts_with("na1-"));
    assert_eq!(value(&redirect, "state"), Some("s1"));
}

#[tokio::test]
async fn the_prefix_of_a_code_shows_where_the_portal_is_hosted() {
    let world = World::new().await;
    let redirect = world.consent(&[("_sim_hub_id", "100000001")]).await;
    assert!(value(&redirect, "code").unwrap().starts_with("eu1-"));
}

#[tokio::test]
async fn denial_redirects_with_access_denied_and_state() {
    let world = World::new().await;
    let redirect = world.consent(&[("_sim_decision", "deny")]).await;
    assert_eq!(value(&redirect, "error"), Some("access_denied"));
    assert_eq!(value(&redirect, "state"), Some("s1"));
    assert_eq!(value(&redirect, "code"), None);
}

#[tokio::test]
async fn the_page_lists_portals_and_its_form_leads_to_the_redirect() {
    let world = World::new().await;
    let fields = [
        ("client_id", CLIENT),
        ("redirect_uri", REDIRECT_URI),
        ("scope", "oauth"),
        ("state", "a&b"),
    ];
    let page = world.get(&format!("/oauth/authorize?{}", form(&fields))).await;
    assert_eq!(page.status, 200);
    for part in [
        "Acme Ltd",
        "Connect app",
        "Cancel",
        r#"name="state" value="a&amp;b""#,
    ] {
        assert!(page.text.contains(part), "{part} is missing in {}", page.text);
    }

    let mut fields = fields.to_vec();
    fields.extend([
        ("hub_id", "1001"),
        ("other_hub_id", "4711"),
        ("decision", "grant"),
    ]);
    let answer = world.post_form("/oauth/authorize", &fields).await;
    assert_eq!(answer.status, 302);
    let location = url::Url::parse(answer.header("location").unwrap()).unwrap();
    let redirect: Vec<_> = location.query_pairs().into_owned().collect();
    assert_eq!(value(&redirect, "state"), Some("a&b"));
    let tokens = world.exchange(value(&redirect, "code").unwrap(), &[]).await;
    assert_eq!(tokens.json()["hub_id"], 4711, "the portal typed in wins");
}

#[tokio::test]
async fn the_portal_in_the_path_is_the_one_that_is_connected() {
    let world = World::new().await;
    let fields = [
        ("client_id", CLIENT),
        ("redirect_uri", REDIRECT_URI),
        ("scope", "oauth"),
        ("decision", "grant"),
    ];
    let answer = world.post_form("/oauth/77/authorize", &fields).await;
    let location = url::Url::parse(answer.header("location").unwrap()).unwrap();
    let redirect: Vec<_> = location.query_pairs().into_owned().collect();
    assert_eq!(
        world
            .exchange(value(&redirect, "code").unwrap(), &[])
            .await
            .json()["hub_id"],
        77
    );
}

#[tokio::test]
async fn mistakes_of_the_app_are_shown_on_the_page_and_never_redirected() {
    let app = SimApp::new("strict", "secret")
        .redirect_uri(REDIRECT_URI)
        .required_scopes(["oauth", "tickets"]);
    let world = World::with(SimConfig {
        apps: vec![app],
        ..SimConfig::default()
    })
    .await;
    let check = async |fields: &[(&str, &str)], expected: &str| {
        let path = format!("/oauth/authorize?_sim_hub_id=1&{}", form(fields));
        let answer = world.send(Method::GET, &path, &[], "").await.unwrap();
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(
            answer.text.contains(expected),
            "{expected:?} is missing in {}",
            answer.text
        );
    };
    let scopes = ("scope", "oauth tickets");
    check(&[("redirect_uri", REDIRECT_URI), scopes], "client_id is missing").await;
    check(
        &[("client_id", "<nobody>"), ("redirect_uri", REDIRECT_URI), scopes],
        "&lt;nobody&gt;",
    )
    .await;
    let strict = ("client_id", "strict");
    check(
        &[
            strict,
            ("redirect_uri", "https://app.example.com/callback/"),
            scopes,
        ],
        "exactly match",
    )
    .await;
    check(
        &[strict, ("redirect_uri", "http://127.0.0.1/callback"), scopes],
        "localhost",
    )
    .await;
    check(
        &[strict, ("redirect_uri", REDIRECT_URI), ("scope", "oauth")],
        "tickets",
    )
    .await;
    check(&[strict, ("redirect_uri", REDIRECT_URI)], "scope is missing").await;
    let plain = [
        strict,
        ("redirect_uri", REDIRECT_URI),
        scopes,
        ("code_challenge", "x"),
    ];
    check(&plain, "S256").await;
}
