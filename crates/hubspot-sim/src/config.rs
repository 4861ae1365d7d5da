//! How a simulator is set up: seed, lifetimes, rotation, apps.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::{Host, Url};

/// What the simulator starts with; [`Default`] is a HubSpot as observed, with the app `sim-client`.
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// Decides every token and code.
    pub seed: u64,
    /// How long access tokens live. HubSpot: 1800 s.
    pub token_ttl: Duration,
    /// What happens to a refresh token that is redeemed.
    pub rotation: Rotation,
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// The registered apps. When empty, [`SimApp::default`] is registered.
    pub apps: Vec<SimApp>,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            token_ttl: Duration::from_secs(1800),
            rotation: Rotation::Never,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            apps: Vec::new(),
        }
    }
}

/// What happens to a refresh token that is redeemed.
///
/// As text: `never`, `always`, `grace` (30 s), `grace:<seconds>`, `omit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rotation {
    /// It stays the same and the answer repeats it: HubSpot as observed.
    #[default]
    Never,
    /// It dies at once; the answer carries a new one.
    Always,
    /// The answer carries a new one, and the old one stays good for this long.
    Grace(Duration),
    /// It stays the same and the answer carries none at all.
    Omit,
}

impl Rotation {
    /// What `grace` without a number means.
    const GRACE_DEFAULT: Duration = Duration::from_secs(30);
}

impl fmt::Display for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Always => f.write_str("always"),
            Self::Grace(window) => write!(f, "grace:{}", window.as_secs()),
            Self::Omit => f.write_str("omit"),
        }
    }
}

/// A rotation that is none of `never`, `always`, `grace`, `grace:<seconds>`, `omit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownRotation(String);

impl fmt::Display for UnknownRotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "unknown rotation {:?}: use never, always, grace, grace:<seconds> or omit",
            self.0
        )
    }
}

impl std::error::Error for UnknownRotation {}

impl FromStr for Rotation {
    type Err = UnknownRotation;

    fn from_str(text: &str) -> Result<Self, UnknownRotation> {
        match text {
            "never" => Ok(Self::Never),
            "always" => Ok(Self::Always),
            "grace" => Ok(Self::Grace(Self::GRACE_DEFAULT)),
            "omit" => Ok(Self::Omit),
            _ => text
                .strip_prefix("grace:")
                .and_then(|seconds| seconds.trim_end_matches('s').parse().ok())
                .map(|seconds| Self::Grace(Duration::from_secs(seconds)))
                .ok_or_else(|| UnknownRotation(text.to_owned())),
        }
    }
}

impl Serialize for Rotation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rotation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// An app registered at the simulated HubSpot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimApp {
    /// The client id.
    pub client_id: String,
    /// The client secret.
    pub client_secret: String,
    /// The registered redirect URIs, matched exactly. HubSpot takes `https`, and `http` only where the host
    /// is literally `localhost`. An empty list accepts every URI that could be registered.
    #[serde(default)]
    pub redirect_uris: Vec<String>,
    /// The required scopes: consent is refused when `scope` does not cover them. Empty: anything goes.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// HubSpot's number for the app.
    #[serde(default = "default_app_id")]
    pub app_id: u64,
}

fn default_app_id() -> u64 {
    1_234_444
}

impl SimApp {
    /// An app that takes every allowed redirect URI and requires no scopes.
    pub fn new(client_id: impl Into<String>, client_secret: impl Into<String>) -> Self {
        Self {
            client_id: client_id.into(),
            client_secret: client_secret.into(),
            redirect_uris: Vec::new(),
            scopes: Vec::new(),
            app_id: default_app_id(),
        }
    }

    /// Registers one more redirect URI.
    #[must_use]
    pub fn redirect_uri(mut self, redirect_uri: impl Into<String>) -> Self {
        self.redirect_uris.push(redirect_uri.into());
        self
    }

    /// Replaces the required scopes.
    #[must_use]
    pub fn required_scopes<I: IntoIterator<Item = S>, S: Into<String>>(mut self, scopes: I) -> Self {
        self.scopes = scopes.into_iter().map(Into::into).collect();
        self
    }

    /// Why HubSpot would refuse to register this app.
    pub(crate) fn check(&self) -> Result<(), AppRefused> {
        if self.client_id.is_empty() || self.client_secret.is_empty() {
            return Err(AppRefused(
                "client_id and client_secret must not be empty".to_owned(),
            ));
        }
        for redirect_uri in &self.redirect_uris {
            check_redirect_uri(redirect_uri).map_err(AppRefused)?;
        }
        Ok(())
    }

    pub(crate) fn takes_redirect_uri(&self, redirect_uri: &str) -> Result<(), String> {
        check_redirect_uri(redirect_uri)?;
        if self.redirect_uris.is_empty() || self.redirect_uris.iter().any(|known| known == redirect_uri) {
            return Ok(());
        }
        Err(format!(
            "redirect URI {redirect_uri} does not exactly match a registered one"
        ))
    }
}

impl Default for SimApp {
    /// `sim-client` with the secret `sim-secret`.
    fn default() -> Self {
        Self::new("sim-client", "sim-secret")
    }
}

/// Why an app cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppRefused(String);

impl fmt::Display for AppRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for AppRefused {}

/// The rule for redirect URIs: `https`, or `http` on the literal host `localhost`.
fn check_redirect_uri(redirect_uri: &str) -> Result<(), String> {
    let url = Url::parse(redirect_uri).map_err(|error| format!("redirect URI {redirect_uri:?}: {error}"))?;
    let on_localhost = url.host() == Some(Host::Domain("localhost"));
    match url.scheme() {
        "https" => Ok(()),
        "http" if on_localhost => Ok(()),
        _ => Err(format!(
            "redirect URI {redirect_uri} is neither https nor http on localhost; HubSpot registers nothing else"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_is_read_as_it_is_written() {
        for text in ["never", "always", "grace:45", "omit"] {
            assert_eq!(text.parse::<Rotation>().unwrap().to_string(), text);
        }
        assert_eq!("grace".parse(), Ok(Rotation::Grace(Duration::from_secs(30))));
        assert!(
            "sometimes"
                .parse::<Rotation>()
                .unwrap_err()
                .to_string()
                .contains("sometimes")
        );
    }

    #[test]
    fn plain_http_can_be_registered_on_localhost_only() {
        let check = |redirect_uri: &str, allowed: bool| {
            let app = SimApp::default().redirect_uri(redirect_uri);
            assert_eq!(app.check().is_ok(), allowed, "{redirect_uri}");
        };
        check("https://app.example.com/callback", true);
        check("http://localhost:8484/oauth/callback", true);
        check("http://127.0.0.1:8484/oauth/callback", false);
        check("http://app.example.com/callback", false);
        check("/callback", false);
    }

    #[test]
    fn a_redirect_uri_must_match_exactly_unless_none_is_registered() {
        let app = SimApp::default().redirect_uri("https://app.example.com/callback");
        assert!(app.takes_redirect_uri("https://app.example.com/callback").is_ok());
        assert!(
            app.takes_redirect_uri("https://app.example.com/callback/")
                .is_err()
        );
        let app = SimApp::default();
        assert!(app.takes_redirect_uri("https://elsewhere.example.com/").is_ok());
        assert!(app.takes_redirect_uri("http://127.0.0.1/").is_err());
    }
}
