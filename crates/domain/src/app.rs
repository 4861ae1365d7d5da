//! An app: our registration at a provider, and how that provider speaks.

use std::time::Duration;

use url::Url;

use crate::call_budget::Setting;
use crate::id::AppName;
use crate::refresh_policy::{KeepFresh, RefreshPolicy};
use crate::secret::ClientSecret;

/// Our registration at a provider (RFC 6749 §2, "client"). Comes from the configuration.
#[derive(Debug, Clone)]
pub struct App {
    /// Its name in the configuration.
    pub name: AppName,
    /// Where and how its provider is spoken to.
    pub provider: Provider,
    /// The client id, public.
    pub client_id: String,
    /// Newest first; more than one while a secret is being replaced. Never empty.
    pub client_secrets: Vec<ClientSecret>,
    /// Where the provider sends the browser after consent; exactly as registered.
    pub redirect_uri: String,
    /// Asked for in `scope`.
    pub scopes: Vec<String>,
    /// Asked for in HubSpot's `optional_scope`.
    pub optional_scopes: Vec<String>,
    /// When its tokens are due.
    pub refresh_policy: RefreshPolicy,
    /// Which of them the scheduler keeps fresh.
    pub keep_fresh: KeepFresh,
    /// Patterns (`*` at the end) that a `return_url` must match.
    pub return_urls: Vec<String>,
    /// Shown on the pages customers see.
    pub display_name: Option<String>,
    /// Where the pages send customers for help.
    pub support_url: Option<String>,
    /// Whether `GET /install/{app}` answers.
    pub public_install: bool,
    /// How many calls it may make to an account.
    pub budget: Setting,
    /// The longest that its calls may wait for that.
    pub max_wait: Option<Duration>,
}

impl App {
    /// What the pages call this app.
    pub fn shown_name(&self) -> &str {
        self.display_name.as_deref().unwrap_or(self.name.as_str())
    }

    /// Whether a browser may be sent to `url` after connecting: it matches one of `return_urls` exactly, or up to the
    /// `*` that ends a pattern. A pattern's origin is compared as a whole, never as a prefix.
    pub fn allows_return_to(&self, url: &Url) -> bool {
        if !matches!(url.scheme(), "https" | "http") || !url.username().is_empty() || url.password().is_some()
        {
            return false;
        }
        self.return_urls
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                None => Url::parse(pattern).is_ok_and(|allowed| allowed == *url),
                Some(prefix) => Url::parse(prefix).is_ok_and(|allowed| {
                    allowed.origin() == url.origin() && url.path().starts_with(allowed.path())
                }),
            })
    }
}

impl App {
    /// What is to be done about rights that a call was refused for want of, one lower-case sentence.
    ///
    /// A scope that the app asks for was not granted: the reconnect link asks the customer for it. One that it does not ask for
    /// must first be added to the configuration, and to the app's registration at the provider.
    pub fn about_missing_scopes(&self, missing: &[String]) -> String {
        let (asked, not_asked): (Vec<&str>, Vec<&str>) =
            missing.iter().map(String::as_str).partition(|scope| {
                self.scopes
                    .iter()
                    .chain(&self.optional_scopes)
                    .any(|own| own == scope)
            });
        if missing.is_empty() {
            return "the provider does not say which right is missing".to_owned();
        }
        let mut told = format!("missing scopes: {}", missing.join(" "));
        if !asked.is_empty() {
            told.push_str("; the customer has not granted ");
            told.push_str(&asked.join(" "));
            told.push_str(" yet: the reconnect link asks for it");
        }
        if !not_asked.is_empty() {
            told.push_str("; app ");
            told.push_str(self.name.as_str());
            told.push_str(" does not ask for ");
            told.push_str(&not_asked.join(" "));
            told.push_str(": add it to scopes of [apps.");
            told.push_str(self.name.as_str());
            told.push_str("] and to the app at the provider, then send the customer to the reconnect link");
        }
        told
    }
}

/// A provider: data, and a dialect for what data cannot say.
#[derive(Debug, Clone)]
pub struct Provider {
    /// How its answers are read.
    pub dialect: Dialect,
    /// Where the browser is sent for consent.
    pub authorize_url: Url,
    /// Where codes and refresh tokens are redeemed (RFC 6749 §3.2).
    pub token_url: Url,
    /// RFC 7662, where there is one.
    pub introspect_url: Option<Url>,
    /// RFC 7009, where there is one.
    pub revoke_url: Option<Url>,
    /// Calls go here and nowhere else: origin and base path.
    pub api_base: Url,
    /// How the client authenticates at the token endpoint (RFC 6749 §2.3.1). Pinned: never probed.
    pub client_auth: ClientAuth,
    /// Whether S256 (RFC 7636) is used when connecting.
    pub pkce: bool,
    /// What happens to a refresh token that was redeemed.
    pub rotation: Rotation,
    /// The member that names the account: of the token answer, its `id_token`, then the introspection answer.
    pub account_claim: String,
}

impl Provider {
    /// Whether a path (as sent to the API base) is one of the provider's own token endpoints.
    ///
    /// Such a call would redeem or revoke behind the keeper's back. HubSpot serves its OAuth endpoints on the API's own
    /// host in many versions, so there the whole `/oauth/` tree counts.
    pub fn is_token_endpoint(&self, path: &str) -> bool {
        const OAUTH: &[u8] = b"/oauth/";
        let path = path.trim_end_matches('/');
        // The path first: two origins are dear to compare, and every call is asked about.
        let own = |url: &Url| {
            url.path().trim_end_matches('/').eq_ignore_ascii_case(path)
                && url.origin() == self.api_base.origin()
        };
        let is_below_oauth = || {
            let begins = path.as_bytes().get(..OAUTH.len());
            path.eq_ignore_ascii_case("/oauth")
                || begins.is_some_and(|begins| begins.eq_ignore_ascii_case(OAUTH))
        };
        let endpoints = [
            Some(&self.token_url),
            self.introspect_url.as_ref(),
            self.revoke_url.as_ref(),
        ];
        endpoints.into_iter().flatten().any(own) || (self.dialect == Dialect::HubSpot && is_below_oauth())
    }
}

impl Provider {
    /// Whether a call that succeeds takes the app out of its account.
    ///
    /// Source: HubSpot, "Uninstall an app" (`DELETE /appinstalls/{version}/external-install`).
    pub fn is_uninstall(&self, method: &str, path: &str) -> bool {
        let mut segments = path.trim_matches('/').split('/');
        self.dialect == Dialect::HubSpot
            && method == "DELETE"
            && segments.next() == Some("appinstalls")
            && segments.next().is_some_and(|version| !version.is_empty())
            && segments.next() == Some("external-install")
            && segments.next().is_none()
    }
}

/// How a provider's answers are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// HubSpot's error bodies: `status` before `error`, `category`, `correlationId`.
    HubSpot,
    /// RFC 6749 and RFC 6750 as written.
    Generic,
}

impl Dialect {
    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HubSpot => "hubspot",
            Self::Generic => "generic",
        }
    }
}

/// How the client authenticates (RFC 6749 §2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// `Authorization: Basic`, id and secret form-encoded first.
    Basic,
    /// `client_id` and `client_secret` in the body.
    Post,
}

/// What happens to a refresh token that was redeemed (RFC 9700 §4.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// It goes on being valid.
    Never,
    /// It may be presented again for this long after it was first redeemed.
    Grace(Duration),
    /// It is dead once redeemed.
    SingleUse,
}

/// Whether the provider accepts the app's own credentials. No connection's status depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppHealth {
    /// As far as anyone knows.
    Ok,
    /// The provider refused the client id or every configured secret.
    CredentialsRejected {
        /// The provider's error code.
        code: String,
        /// When it was first refused.
        since: crate::Timestamp,
    },
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn app() -> App {
        let url = |text: &str| Url::parse(text).expect("a literal URL");
        App {
            name: AppName::parse("crm").expect("a literal name"),
            provider: Provider {
                dialect: Dialect::HubSpot,
                authorize_url: url("https://app.hubspot.com/oauth/authorize"),
                token_url: url("https://api.hubapi.com/oauth/2026-09/token"),
                introspect_url: Some(url("https://api.hubapi.com/oauth/2026-09/token/introspect")),
                revoke_url: Some(url("https://api.hubapi.com/oauth/2026-09/token/revoke")),
                api_base: url("https://api.hubapi.com/"),
                client_auth: ClientAuth::Post,
                pkce: false,
                rotation: Rotation::Never,
                account_claim: "hub_id".into(),
            },
            client_id: "id".into(),
            client_secrets: vec![ClientSecret::new("secret")],
            redirect_uri: "http://localhost:8484/oauth/callback".into(),
            scopes: vec!["oauth".into()],
            optional_scopes: vec![],
            refresh_policy: RefreshPolicy::Queue,
            keep_fresh: KeepFresh::Used,
            return_urls: vec![
                "https://app.example.com/*".into(),
                "https://other.example.com/done".into(),
            ],
            display_name: None,
            support_url: None,
            public_install: false,
            budget: Setting::Learnt,
            max_wait: None,
        }
    }

    #[test]
    fn return_urls_are_matched_by_origin_and_path_never_by_text() {
        let check = |url: &str, allowed: bool| {
            assert_eq!(
                app().allows_return_to(&Url::parse(url).expect("a literal URL")),
                allowed,
                "{url}"
            );
        };
        check("https://app.example.com/", true);
        check("https://app.example.com/settings?tab=1", true);
        check("https://other.example.com/done", true);
        check("https://other.example.com/done/else", false);
        check("https://app.example.com.evil.test/", false);
        check("https://app.example.com@evil.test/", false);
        check("https://user@app.example.com/", false);
        check("http://app.example.com/", false);
        check("https://app.example.com:8443/", false);
        check("javascript:alert(1)", false);
    }

    #[test]
    fn a_right_that_is_missing_is_asked_for_or_added_to_the_configuration_first() {
        let told = |missing: &[&str]| {
            let missing: Vec<String> = missing.iter().map(|&scope| scope.to_owned()).collect();
            App {
                optional_scopes: vec!["tickets".into()],
                ..app()
            }
            .about_missing_scopes(&missing)
        };
        assert_eq!(told(&[]), "the provider does not say which right is missing");
        assert_eq!(
            told(&["tickets"]),
            "missing scopes: tickets; the customer has not granted tickets yet: the reconnect link asks for it"
        );
        assert_eq!(
            told(&["files"]),
            "missing scopes: files; app crm does not ask for files: add it to scopes of [apps.crm] and to the app at the provider, then send the customer to the reconnect link"
        );
        let both = told(&["oauth", "files"]);
        assert!(
            both.contains("granted oauth yet") && both.contains("ask for files:"),
            "{both}"
        );
    }

    #[test]
    fn an_uninstall_is_known_by_its_path_in_any_version() {
        let provider = app().provider;
        for path in [
            "/appinstalls/v3/external-install",
            "/appinstalls/2026-03/external-install/",
        ] {
            assert!(provider.is_uninstall("DELETE", path), "{path}");
            assert!(!provider.is_uninstall("GET", path), "{path}");
        }
        for path in [
            "/appinstalls/external-install",
            "/appinstalls/v3/external-install/x",
            "/crm/v3/objects",
        ] {
            assert!(!provider.is_uninstall("DELETE", path), "{path}");
        }
        let generic = Provider {
            dialect: Dialect::Generic,
            ..provider
        };
        assert!(!generic.is_uninstall("DELETE", "/appinstalls/v3/external-install"));
    }

    #[test]
    fn the_providers_own_token_endpoints_are_recognised_in_any_version() {
        let provider = app().provider;
        for path in [
            "/oauth/v1/token",
            "/oauth/2026-09/token/",
            "/OAuth/v3/token/revoke",
            "/oauth/v1/refresh-tokens/x",
        ] {
            assert!(provider.is_token_endpoint(path), "{path}");
        }
        for path in ["/crm/v3/objects/contacts", "/oauthish/token", "/"] {
            assert!(!provider.is_token_endpoint(path), "{path}");
        }
        let generic = Provider {
            dialect: Dialect::Generic,
            ..provider
        };
        assert!(generic.is_token_endpoint("/oauth/2026-09/token"));
        assert!(!generic.is_token_endpoint("/oauth/v1/token"));
    }
}
