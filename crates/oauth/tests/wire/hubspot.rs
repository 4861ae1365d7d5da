//! The whole way against the simulator.

use evergrant_domain::token_answer::{Introspected, Revoked, TokenAnswer};
use evergrant_domain::{AccessToken, App, AuthorizationCode, ClientSecret, CodeVerifier, RefreshToken};
use evergrant_oauth::{ClientCheck, Introspect, Redeemed, authorize_url, new_code_verifier};
use hubspot_sim::{Fault, FaultKind, Rotation, SimApp, SimConfig, Simulator};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use url::Url;

use crate::{DEADLINE, app, endpoint, issued, secret, shown};

const HUB: u64 = 1001;

struct World {
    hubspot: Simulator,
    app: App,
}

impl World {
    async fn new() -> Self {
        let hubspot = Simulator::start(SimConfig {
            rotation: Rotation::Always,
            apps: vec![SimApp::new("sim-client", "sim-secret")],
            ..SimConfig::default()
        })
        .await
        .unwrap();
        let app = app(&hubspot.base_url());
        Self { hubspot, app }
    }

    async fn redeem(&self, refresh_token: &RefreshToken) -> TokenAnswer {
        match endpoint()
            .redeem(&self.app, &secret(), refresh_token, DEADLINE, async || true)
            .await
        {
            Redeemed::Answered(answer) => answer,
            Redeemed::SteppedBack => panic!("it was told to go on"),
        }
    }

    fn refresh_token(&self) -> RefreshToken {
        RefreshToken::new(self.hubspot.grant("sim-client", HUB).unwrap().refresh_token)
    }

    /// Sends a browser that consents, and gives the code it comes back with.
    async fn consent(&self, verifier: &CodeVerifier) -> AuthorizationCode {
        let scopes = ["oauth".to_owned(), "crm.objects.contacts.read".to_owned()];
        let optional = ["tickets".to_owned()];
        let url = authorize_url(&self.app, "state 1", &scopes, &optional, Some(verifier));
        let mut browser = TcpStream::connect(self.hubspot.address()).await.unwrap();
        let request = format!(
            "GET {}?{}&_sim_hub_id={HUB} HTTP/1.1\r\nhost: hubspot\r\nconnection: close\r\n\r\n",
            url.path(),
            url.query().unwrap()
        );
        browser.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        browser.read_to_string(&mut answer).await.unwrap();
        let location = answer
            .lines()
            .find_map(|line| line.strip_prefix("location: "))
            .expect(&answer);
        let returned = Url::parse(location).unwrap();
        let value = |name: &str| {
            let (_, value) = returned.query_pairs().find(|(key, _)| key == name).unwrap();
            value.into_owned()
        };
        assert_eq!(value("state"), "state 1");
        AuthorizationCode::new(value("code"))
    }
}

#[tokio::test]
async fn from_consent_to_revocation() {
    let world = World::new().await;
    let (app, secret, endpoint) = (&world.app, secret(), endpoint());
    let verifier = new_code_verifier();
    let code = world.consent(&verifier).await;

    let connected = issued(
        endpoint
            .exchange_code(app, &secret, &code, &app.redirect_uri, Some(&verifier), DEADLINE)
            .await,
    );
    assert_eq!(connected.account.unwrap().as_str(), "1001");
    assert_eq!(
        connected.scopes.unwrap(),
        ["oauth", "crm.objects.contacts.read", "tickets"]
    );

    let first = connected.refresh_token.unwrap();
    let refreshed = issued(world.redeem(&first).await);
    let second = refreshed.refresh_token.unwrap();
    assert_ne!(first.expose(), second.expose());

    for token in [
        Introspect::Access(&refreshed.access_token),
        Introspect::Refresh(&second),
    ] {
        let Introspected::Active(facts) = endpoint.introspect(app, &secret, token, DEADLINE).await else {
            panic!("{token:?} is not active");
        };
        assert_eq!(facts.account.unwrap().as_str(), "1001");
    }

    assert_eq!(
        endpoint.revoke(app, &secret, &second, DEADLINE).await,
        Revoked::Done
    );
    let introspected = endpoint
        .introspect(app, &secret, Introspect::Refresh(&second), DEADLINE)
        .await;
    assert!(matches!(introspected, Introspected::Inactive), "{introspected:?}");
    assert_eq!(
        shown(&world.redeem(&second).await),
        "grant refused: BAD_REFRESH_TOKEN (HTTP 400)"
    );
    let ledger = world.hubspot.ledger();
    assert_eq!(
        (ledger.code_exchanges, ledger.refreshes_accepted, ledger.replays),
        (1, 1, 0)
    );
}

#[tokio::test]
async fn a_wrong_verifier_or_a_used_code_sends_the_customer_back() {
    let world = World::new().await;
    let (app, secret, endpoint) = (&world.app, secret(), endpoint());
    let code = world.consent(&new_code_verifier()).await;
    let other = new_code_verifier();
    let answer = endpoint
        .exchange_code(app, &secret, &code, &app.redirect_uri, Some(&other), DEADLINE)
        .await;
    assert_eq!(shown(&answer), "code refused: BAD_CODE_VERIFIER (HTTP 400)");
    let unknown = AuthorizationCode::new("na1-unknown");
    let answer = endpoint
        .exchange_code(app, &secret, &unknown, &app.redirect_uri, None, DEADLINE)
        .await;
    assert_eq!(shown(&answer), "code refused: BAD_AUTH_CODE (HTTP 400)");
}

#[tokio::test]
async fn the_client_is_checked_without_touching_a_grant() {
    let world = World::new().await;
    let refresh_token = world.refresh_token();
    let endpoint = endpoint();
    assert_eq!(
        endpoint.check_client(&world.app, &secret(), DEADLINE).await,
        ClientCheck::Accepted
    );
    let wrong = ClientSecret::new("wrong");
    let ClientCheck::Refused(failure) = endpoint.check_client(&world.app, &wrong, DEADLINE).await else {
        panic!("a wrong secret is refused");
    };
    assert_eq!(failure.code, "BAD_CLIENT_SECRET");
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 0);
    assert!(matches!(
        world.redeem(&refresh_token).await,
        TokenAnswer::Issued(_)
    ));
}

#[tokio::test]
async fn an_answer_lost_after_issue_is_lost_and_one_refused_before_is_not_issued() {
    let world = World::new().await;
    let refresh_token = world.refresh_token();
    world
        .hubspot
        .arm(Fault::token(FaultKind::Migrating { retry_after: 60 }));
    assert_eq!(
        shown(&world.redeem(&refresh_token).await),
        "not issued: account_migrating (HTTP 477)"
    );
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 0);
    world.hubspot.arm(Fault::token(FaultKind::AnswerLostAfterIssue));
    assert_eq!(
        shown(&world.redeem(&refresh_token).await),
        "lost: connection_lost"
    );
    let ledger = world.hubspot.ledger();
    // Sent twice by us, and by nothing below us a third time.
    assert_eq!(
        (
            ledger.token_requests,
            ledger.refreshes_accepted,
            ledger.answers_lost
        ),
        (2, 1, 1)
    );
}

#[tokio::test]
async fn a_provider_without_the_endpoint_is_asked_nothing() {
    let mut world = World::new().await;
    world.app.provider.introspect_url = None;
    world.app.provider.revoke_url = None;
    let (access, refresh) = (AccessToken::new("a"), RefreshToken::new("r"));
    let introspected = endpoint()
        .introspect(&world.app, &secret(), Introspect::Access(&access), DEADLINE)
        .await;
    assert!(
        matches!(&introspected, Introspected::Unknown(failure) if failure.code == "not_supported"),
        "{introspected:?}"
    );
    let revoked = endpoint().revoke(&world.app, &secret(), &refresh, DEADLINE).await;
    assert!(
        matches!(&revoked, Revoked::Unsupported(failure) if failure.code == "not_supported"),
        "{revoked:?}"
    );
    let ledger = world.hubspot.ledger();
    assert_eq!(
        (ledger.introspections, ledger.revocations, ledger.token_requests),
        (0, 0, 0)
    );
}
