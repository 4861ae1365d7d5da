//! A HubSpot app for tests, those within the crate included.

use evergrant_domain::app::{ClientAuth, Dialect};
use evergrant_domain::{App, AppName, ClientSecret, KeepFresh, Provider, RefreshPolicy, Rotation};
use url::Url;

/// The simulator's default app, at `base`.
pub(crate) fn app(base: &str) -> App {
    let url = |path: &str| Url::parse(&format!("{base}/{path}")).expect("a literal");
    App {
        name: AppName::parse("crm").expect("a literal"),
        provider: Provider {
            dialect: Dialect::HubSpot,
            authorize_url: url("oauth/authorize"),
            token_url: url("oauth/2026-09/token"),
            introspect_url: Some(url("oauth/2026-09/token/introspect")),
            revoke_url: Some(url("oauth/2026-09/token/revoke")),
            api_base: url(""),
            client_auth: ClientAuth::Post,
            pkce: false,
            rotation: Rotation::Never,
            account_claim: "hub_id".into(),
        },
        client_id: "sim-client".into(),
        client_secrets: vec![ClientSecret::new("sim-secret")],
        redirect_uri: "http://localhost:8484/oauth/callback".into(),
        scopes: vec!["oauth".into()],
        optional_scopes: vec![],
        refresh_policy: RefreshPolicy::Queue,
        keep_fresh: KeepFresh::Off,
        return_urls: vec![],
        display_name: None,
        support_url: None,
        public_install: false,
        budget: evergrant_domain::call_budget::Setting::Learnt,
        max_wait: None,
    }
}
