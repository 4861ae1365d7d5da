//! No secret shows in anything that can be printed.

use std::fmt::Debug;

use evergrant_domain::{AccessToken, AuthorizationCode, ClientSecret, RefreshToken};
use evergrant_oauth::{Introspect, TlsRoots, TokenEndpoint, new_code_verifier};

use crate::server::{Script, Server, answer};
use crate::{DEADLINE, app};

const CANARY: &str = "canary-7f3a";

fn check(what: &impl Debug) {
    let shown = format!("{what:?} {what:#?}");
    assert!(!shown.contains("canary"), "{shown}");
}

#[tokio::test]
async fn no_secret_shows_in_what_comes_of_any_answer() {
    let issued = format!(
        r#"{{"access_token":"{CANARY}","refresh_token":"{CANARY}","id_token":"{CANARY}","expires_in":60}}"#
    );
    let refused =
        format!(r#"{{"error":"invalid_grant","error_description":"{CANARY}","message":"{CANARY}"}}"#);
    let active = format!(r#"{{"active":true,"token":"{CANARY}","hub_id":1}}"#);
    let whole = answer("200 OK", &[&format!("x-echo: {CANARY}")], &issued);
    let endpoint = TokenEndpoint::new(TlsRoots::Native);
    let (secret, code) = (ClientSecret::new(CANARY), AuthorizationCode::new(CANARY));
    let (access, refresh) = (AccessToken::new(CANARY), RefreshToken::new(CANARY));
    check(&endpoint);
    check(&(
        Introspect::Access(&access),
        Introspect::Refresh(&refresh),
        new_code_verifier(),
    ));

    for script in [
        whole.clone(),
        whole[..whole.len() - 1].to_vec(),
        answer("400 Bad Request", &[], &refused),
        answer("400 Bad Request", &[], format!("<html>{CANARY}")),
        answer("500 Oops", &[], &refused),
        answer("200 OK", &[], active),
        answer("200 OK", &["content-encoding: gzip"], &issued),
        format!("{CANARY}\r\n\r\n").into(),
    ] {
        let server = Server::start(Script::Say(script)).await;
        let app = app(server.base());
        check(
            &endpoint
                .redeem(&app, &secret, &refresh, DEADLINE, async || true)
                .await,
        );
        check(
            &endpoint
                .exchange_code(&app, &secret, &code, "https://a.example/", None, DEADLINE)
                .await,
        );
        check(
            &endpoint
                .introspect(&app, &secret, Introspect::Refresh(&refresh), DEADLINE)
                .await,
        );
        check(&endpoint.revoke(&app, &secret, &refresh, DEADLINE).await);
        check(&endpoint.check_client(&app, &secret, DEADLINE).await);
        assert_eq!(server.log().requests.len(), 5);
        assert!(
            server
                .log()
                .requests
                .iter()
                .all(|request| request.contains(CANARY))
        );
    }
}
