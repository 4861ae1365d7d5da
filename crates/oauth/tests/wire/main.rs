//! The crate through its public doors: against a server that answers whatever it is told to, and against the simulator.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod answers;
mod connecting;
mod hubspot;
mod requests;
mod secrets;
mod server;

use std::time::Duration;

use evergrant_domain::app::{ClientAuth, Dialect};
use evergrant_domain::token_answer::{Issued, TokenAnswer};
use evergrant_domain::{
    App, AppName, ClientSecret, KeepFresh, Provider, RefreshPolicy, RefreshToken, Rotation,
};
use evergrant_oauth::{Redeemed, TlsRoots, TokenEndpoint};
use url::Url;

const DEADLINE: Duration = Duration::from_secs(10);

/// An app whose provider has its endpoints below `base`.
fn app(base: &str) -> App {
    let url = |path: &str| Url::parse(&format!("{base}{path}")).unwrap();
    App {
        name: AppName::parse("crm").unwrap(),
        provider: Provider {
            dialect: Dialect::HubSpot,
            authorize_url: url("/oauth/authorize"),
            token_url: url("/oauth/2026-09/token"),
            introspect_url: Some(url("/oauth/2026-09/token/introspect")),
            revoke_url: Some(url("/oauth/2026-09/token/revoke")),
            api_base: url("/"),
            client_auth: ClientAuth::Post,
            pkce: false,
            rotation: Rotation::Never,
            account_claim: "hub_id".into(),
        },
        client_id: "sim-client".into(),
        client_secrets: vec![secret()],
        redirect_uri: "http://localhost:8484/oauth/callback".into(),
        scopes: vec!["oauth".into()],
        optional_scopes: vec![],
        refresh_policy: RefreshPolicy::Queue,
        keep_fresh: KeepFresh::Used,
        return_urls: vec![],
        display_name: None,
        support_url: None,
        public_install: false,
        budget: evergrant_domain::call_budget::Setting::Learnt,
        max_wait: None,
    }
}

fn secret() -> ClientSecret {
    ClientSecret::new("sim-secret")
}

/// The platform's roots, which no test server has.
fn endpoint() -> TokenEndpoint {
    TokenEndpoint::new(TlsRoots::Native)
}

/// Redeems a refresh token at `base` as it would be in earnest.
async fn redeem(base: &str) -> TokenAnswer {
    let refresh_token = RefreshToken::new("na1-refresh");
    match endpoint()
        .redeem(&app(base), &secret(), &refresh_token, DEADLINE, async || true)
        .await
    {
        Redeemed::Answered(answer) => answer,
        Redeemed::SteppedBack => panic!("it was told to go on"),
    }
}

fn shown(answer: &TokenAnswer) -> String {
    match answer {
        TokenAnswer::Issued(_) => "issued".into(),
        TokenAnswer::NotIssued(failure) => format!("not issued: {failure}"),
        TokenAnswer::Lost(failure) => format!("lost: {failure}"),
        TokenAnswer::ClientRefused(failure) => format!("client refused: {failure}"),
        TokenAnswer::WrongClient(failure) => format!("wrong client: {failure}"),
        TokenAnswer::GrantRefused(failure) => format!("grant refused: {failure}"),
        TokenAnswer::CodeRefused(failure) => format!("code refused: {failure}"),
        TokenAnswer::EndpointFault(failure) => format!("endpoint's fault: {failure}"),
    }
}

fn retry_after(answer: &TokenAnswer) -> Option<Duration> {
    match answer {
        TokenAnswer::Issued(_) => None,
        TokenAnswer::NotIssued(failure)
        | TokenAnswer::Lost(failure)
        | TokenAnswer::ClientRefused(failure)
        | TokenAnswer::WrongClient(failure)
        | TokenAnswer::GrantRefused(failure)
        | TokenAnswer::CodeRefused(failure)
        | TokenAnswer::EndpointFault(failure) => failure.retry_after,
    }
}

fn issued(answer: TokenAnswer) -> Issued {
    match answer {
        TokenAnswer::Issued(issued) => *issued,
        other => panic!("{}", shown(&other)),
    }
}
