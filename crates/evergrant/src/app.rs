//! An app described in code rather than in a configuration file.

use evergrant_domain::app::{ClientAuth, Dialect};
use evergrant_domain::{AppName, ClientSecret, KeepFresh, Provider, RefreshPolicy, Rotation};
use url::Url;

use crate::error::BuildError;

/// The version of HubSpot's OAuth API that is spoken where nothing else is said.
const HUBSPOT_OAUTH_VERSION: &str = "2026-09";
const HUBSPOT_API: &str = "https://api.hubapi.com/";
const HUBSPOT_AUTHORIZE: &str = "https://app.hubspot.com/oauth/authorize";

/// An app: our registration at a provider. A whole [`evergrant_domain::App`] can be used in its place.
#[derive(Debug, Clone)]
pub struct App(Described);

#[derive(Debug, Clone)]
enum Described {
    Whole(Box<evergrant_domain::App>),
    HubSpot(Box<HubSpot>),
}

#[derive(Debug, Clone)]
struct HubSpot {
    name: String,
    client_id: String,
    client_secrets: Vec<ClientSecret>,
    redirect_uri: Option<String>,
    scopes: Vec<String>,
    optional_scopes: Vec<String>,
    refresh_policy: RefreshPolicy,
    keep_fresh: KeepFresh,
    return_urls: Vec<String>,
    base: Option<Url>,
}

impl App {
    /// A HubSpot app, with HubSpot's own endpoints and the scope `oauth`.
    pub fn hubspot(name: impl Into<String>) -> Self {
        Self(Described::HubSpot(Box::new(HubSpot {
            name: name.into(),
            client_id: String::new(),
            client_secrets: Vec::new(),
            redirect_uri: None,
            scopes: vec!["oauth".to_owned()],
            optional_scopes: Vec::new(),
            refresh_policy: RefreshPolicy::Queue,
            keep_fresh: KeepFresh::Used,
            return_urls: Vec::new(),
            base: None,
        })))
    }

    /// The client id.
    #[must_use]
    pub fn client_id(self, client_id: impl Into<String>) -> Self {
        let client_id = client_id.into();
        self.change(
            |app| app.client_id.clone_from(&client_id),
            |app| app.client_id.clone_from(&client_id),
        )
    }

    /// Adds a client secret; the newest comes first, older ones follow while they are being replaced.
    #[must_use]
    pub fn client_secret(self, client_secret: impl Into<String>) -> Self {
        let secret = ClientSecret::new(client_secret);
        self.change(
            |app| app.client_secrets.push(secret.clone()),
            |app| app.client_secrets.push(secret.clone()),
        )
    }

    /// Where the provider sends the browser after consent; `/oauth/callback` of the public URL where nothing is said.
    #[must_use]
    pub fn redirect_uri(self, redirect_uri: impl Into<String>) -> Self {
        let uri = redirect_uri.into();
        self.change(
            |app| app.redirect_uri = Some(uri.clone()),
            |app| app.redirect_uri.clone_from(&uri),
        )
    }

    /// The scopes that every install must grant.
    #[must_use]
    pub fn scopes<I: IntoIterator<Item = S>, S: Into<String>>(self, scopes: I) -> Self {
        let scopes: Vec<String> = scopes.into_iter().map(Into::into).collect();
        self.change(
            |app| app.scopes.clone_from(&scopes),
            |app| app.scopes.clone_from(&scopes),
        )
    }

    /// The scopes that an install may leave out.
    #[must_use]
    pub fn optional_scopes<I: IntoIterator<Item = S>, S: Into<String>>(self, scopes: I) -> Self {
        let scopes: Vec<String> = scopes.into_iter().map(Into::into).collect();
        self.change(
            |app| app.optional_scopes.clone_from(&scopes),
            |app| app.optional_scopes.clone_from(&scopes),
        )
    }

    /// When tokens are due; [`RefreshPolicy::Queue`] where nothing is said.
    #[must_use]
    pub fn refresh_policy(self, policy: RefreshPolicy) -> Self {
        self.change(
            |app| app.refresh_policy = policy,
            |app| app.refresh_policy = policy,
        )
    }

    /// Which tokens are kept fresh without a call; [`KeepFresh::Used`] where nothing is said.
    #[must_use]
    pub fn keep_fresh(self, keep_fresh: KeepFresh) -> Self {
        self.change(
            |app| app.keep_fresh = keep_fresh,
            |app| app.keep_fresh = keep_fresh,
        )
    }

    /// Adds a pattern that return URLs may match; a `*` at its end stands for any path below.
    #[must_use]
    pub fn return_url(self, pattern: impl Into<String>) -> Self {
        let pattern = pattern.into();
        self.change(
            |app| app.return_urls.push(pattern.clone()),
            |app| app.return_urls.push(pattern.clone()),
        )
    }

    /// Speaks to another host than HubSpot's, for consent, tokens and calls alike: the simulator.
    ///
    /// It has no effect on a whole [`evergrant_domain::App`], which names its endpoints itself.
    #[must_use]
    pub fn hosted_at(self, base: &Url) -> Self {
        self.change(|app| app.base = Some(base.clone()), |_| ())
    }

    fn change(
        mut self,
        hubspot: impl FnOnce(&mut HubSpot),
        whole: impl FnOnce(&mut evergrant_domain::App),
    ) -> Self {
        match &mut self.0 {
            Described::HubSpot(app) => hubspot(app),
            Described::Whole(app) => whole(app),
        }
        self
    }

    pub(crate) fn build(self, public_url: &Url) -> Result<evergrant_domain::App, BuildError> {
        match self.0 {
            Described::Whole(app) => Ok(*app),
            Described::HubSpot(app) => app.build(public_url),
        }
    }
}

impl From<evergrant_domain::App> for App {
    fn from(app: evergrant_domain::App) -> Self {
        Self(Described::Whole(Box::new(app)))
    }
}

impl HubSpot {
    fn build(self, public_url: &Url) -> Result<evergrant_domain::App, BuildError> {
        let refused = |what: String| BuildError::App {
            app: self.name.clone(),
            what,
        };
        let name = AppName::parse(&self.name).map_err(|error| refused(error.to_string()))?;
        if self.client_id.is_empty() {
            return Err(refused("it has no client_id".to_owned()));
        }
        if self
            .client_secrets
            .iter()
            .all(|secret| secret.expose().is_empty())
        {
            return Err(refused("it has no client_secret".to_owned()));
        }
        let api = match &self.base {
            Some(base) => base.clone(),
            None => parse(HUBSPOT_API).map_err(&refused)?,
        };
        let join = |path: &str| api.join(path).map_err(|error| refused(format!("{api}: {error}")));
        let authorize_url = if self.base.is_some() {
            join("/oauth/authorize")?
        } else {
            parse(HUBSPOT_AUTHORIZE).map_err(&refused)?
        };
        let token = format!("/oauth/{HUBSPOT_OAUTH_VERSION}/token");
        let provider = Provider {
            dialect: Dialect::HubSpot,
            authorize_url,
            token_url: join(&token)?,
            introspect_url: Some(join(&format!("{token}/introspect"))?),
            revoke_url: Some(join(&format!("{token}/revoke"))?),
            api_base: join("/")?,
            client_auth: ClientAuth::Post,
            pkce: false,
            rotation: Rotation::Never,
            account_claim: "hub_id".to_owned(),
        };
        let redirect_uri = match self.redirect_uri {
            Some(uri) => uri,
            None => format!("{}/oauth/callback", public_url.as_str().trim_end_matches('/')),
        };
        Ok(evergrant_domain::App {
            name,
            provider,
            client_id: self.client_id,
            client_secrets: self.client_secrets,
            redirect_uri,
            scopes: self.scopes,
            optional_scopes: self.optional_scopes,
            refresh_policy: self.refresh_policy,
            keep_fresh: self.keep_fresh,
            return_urls: self.return_urls,
            display_name: None,
            support_url: None,
            public_install: false,
            budget: evergrant_domain::call_budget::Setting::Learnt,
            max_wait: None,
        })
    }
}

fn parse(url: &str) -> Result<Url, String> {
    Url::parse(url).map_err(|error| format!("{url}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public_url() -> Url {
        Url::parse("http://localhost:8484").expect("a literal URL")
    }

    #[test]
    fn a_hubspot_app_needs_an_id_and_a_secret_and_nothing_else() {
        let app = App::hubspot("crm")
            .client_id("id")
            .client_secret("secret")
            .build(&public_url())
            .expect("a complete app");
        assert_eq!(app.redirect_uri, "http://localhost:8484/oauth/callback");
        assert_eq!(
            app.provider.token_url.as_str(),
            "https://api.hubapi.com/oauth/2026-09/token"
        );
        for (incomplete, missing) in [
            (App::hubspot("crm").client_secret("secret"), "client_id"),
            (App::hubspot("crm").client_id("id"), "client_secret"),
            (
                App::hubspot("CRM").client_id("id").client_secret("secret"),
                "app name",
            ),
        ] {
            let error = incomplete
                .build(&public_url())
                .expect_err("an incomplete app")
                .to_string();
            assert!(error.contains(missing), "{error}");
        }
    }
}
