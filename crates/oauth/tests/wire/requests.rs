//! What goes over the wire, byte by byte.

use base64::Engine as _;
use evergrant_domain::app::ClientAuth;
use evergrant_domain::{AccessToken, App, AuthorizationCode, CodeVerifier, RefreshToken};
use evergrant_oauth::{ClientCheck, Introspect};

use crate::server::{Script, Server, answer};
use crate::{DEADLINE, app, endpoint, secret};

/// Lets `act` act once with each way to authenticate, and compares the bytes that the server received.
async fn check(act: impl AsyncFn(&App), path: &str, form: &str) {
    for client_auth in [ClientAuth::Post, ClientAuth::Basic] {
        let server = Server::start(Script::Say(answer("404 Not Found", &[], ""))).await;
        let mut app = app(server.base());
        app.provider.client_auth = client_auth;
        act(&app).await;

        let (authorization, form) = match client_auth {
            ClientAuth::Post => (
                String::new(),
                format!("{form}&client_id=sim-client&client_secret=sim-secret"),
            ),
            ClientAuth::Basic => {
                let credentials = base64::engine::general_purpose::STANDARD.encode("sim-client:sim-secret");
                (format!("authorization: Basic {credentials}\r\n"), form.to_owned())
            }
        };
        let expected = format!(
            "POST {path} HTTP/1.1\r\n\
             host: {host}\r\n\
             user-agent: evergrant/{version}\r\n\
             accept: application/json\r\n\
             connection: close\r\n\
             content-type: application/x-www-form-urlencoded\r\n\
             {authorization}\
             content-length: {length}\r\n\
             \r\n\
             {form}",
            host = server.base().trim_start_matches("http://"),
            version = env!("CARGO_PKG_VERSION"),
            length = form.len(),
        );
        assert_eq!(server.log().requests, [expected]);
    }
}

#[tokio::test]
async fn a_redemption() {
    check(
        async |app| {
            let refresh_token = RefreshToken::new("na1-r");
            endpoint()
                .redeem(app, &secret(), &refresh_token, DEADLINE, async || true)
                .await;
        },
        "/oauth/2026-09/token",
        "grant_type=refresh_token&refresh_token=na1-r",
    )
    .await;
}

#[tokio::test]
async fn a_code_exchange_with_and_without_a_verifier() {
    let code = AuthorizationCode::new("na1-c");
    let form = "grant_type=authorization_code&code=na1-c&redirect_uri=https%3A%2F%2Fa.example%2Fcb";
    let verifier = CodeVerifier::new("v");
    for (verifier, form) in [
        (None, form.to_owned()),
        (Some(&verifier), format!("{form}&code_verifier=v")),
    ] {
        check(
            async |app| {
                endpoint()
                    .exchange_code(app, &secret(), &code, "https://a.example/cb", verifier, DEADLINE)
                    .await;
            },
            "/oauth/2026-09/token",
            &form,
        )
        .await;
    }
}

#[tokio::test]
async fn an_introspection_of_either_token() {
    let (access, refresh) = (AccessToken::new("a"), RefreshToken::new("r"));
    for (token, form) in [
        (
            Introspect::Access(&access),
            "token=a&token_type_hint=access_token",
        ),
        (
            Introspect::Refresh(&refresh),
            "token=r&token_type_hint=refresh_token",
        ),
    ] {
        check(
            async |app| {
                endpoint().introspect(app, &secret(), token, DEADLINE).await;
            },
            "/oauth/2026-09/token/introspect",
            form,
        )
        .await;
    }
}

#[tokio::test]
async fn a_revocation() {
    check(
        async |app| {
            endpoint()
                .revoke(app, &secret(), &RefreshToken::new("r"), DEADLINE)
                .await;
        },
        "/oauth/2026-09/token/revoke",
        "token=r&token_type_hint=refresh_token",
    )
    .await;
}

#[tokio::test]
async fn a_check_of_the_client_presents_other_nonsense_each_time() {
    let refused = answer("400 Bad Request", &[], r#"{"error":"invalid_grant"}"#);
    let server = Server::start(Script::Say(refused)).await;
    for _ in 0..2 {
        let check = endpoint()
            .check_client(&app(server.base()), &secret(), DEADLINE)
            .await;
        assert_eq!(check, ClientCheck::Accepted);
    }
    let nonsense = |index: usize| {
        let request = server.log().requests[index].clone();
        let (_, form) = request.split_once("\r\n\r\n").unwrap();
        let form = form
            .strip_prefix("grant_type=refresh_token&refresh_token=")
            .unwrap();
        form.strip_suffix("&client_id=sim-client&client_secret=sim-secret")
            .unwrap()
            .to_owned()
    };
    assert_ne!(nonsense(0), nonsense(1));
    assert_eq!(nonsense(0).len(), 43);
}
