//! The one sender of token requests.

use std::time::Duration;

use evergrant_domain::token_answer::{Failure, Introspected, Revoked, TokenAnswer};
use evergrant_domain::{AccessToken, App, AuthorizationCode, ClientSecret, CodeVerifier, RefreshToken};

use crate::tls::TlsRoots;

/// What a redemption came to.
#[derive(Debug, Clone)]
pub enum Redeemed {
    /// The last check before the first byte said no: nothing was sent.
    SteppedBack,
    /// It was tried.
    Answered(TokenAnswer),
}

/// The token to ask about.
#[derive(Debug, Clone, Copy)]
pub enum Introspect<'a> {
    /// An access token.
    Access(&'a AccessToken),
    /// A refresh token.
    Refresh(&'a RefreshToken),
}

/// Whether the provider knows the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCheck {
    /// It does, and the secret is right.
    Accepted,
    /// It refuses the client id or the secret.
    Refused(Failure),
    /// No usable answer.
    Unknown(Failure),
}

/// The one sender.
#[derive(Debug, Clone)]
pub struct TokenEndpoint {
    _roots: TlsRoots,
}

impl TokenEndpoint {
    /// A sender that trusts `roots`.
    pub fn new(roots: TlsRoots) -> Self {
        Self { _roots: roots }
    }

    /// Redeems a refresh token (RFC 6749 §6).
    pub async fn redeem<F, G>(
        &self,
        _app: &App,
        _secret: &ClientSecret,
        _refresh_token: &RefreshToken,
        _deadline: Duration,
        before_first_byte: F,
    ) -> Redeemed
    where
        F: FnOnce() -> G + Send,
        G: Future<Output = bool> + Send,
    {
        before_first_byte().await;
        Redeemed::SteppedBack
    }

    /// Redeems an authorization code (RFC 6749 §4.1.3).
    #[expect(clippy::unused_async, reason = "sends in the next commit")]
    pub async fn exchange_code(
        &self,
        _app: &App,
        _secret: &ClientSecret,
        _code: &AuthorizationCode,
        _redirect_uri: &str,
        _verifier: Option<&CodeVerifier>,
        _deadline: Duration,
    ) -> TokenAnswer {
        TokenAnswer::NotIssued(Failure::without_answer("not_sent"))
    }

    /// Asks about a token (RFC 7662).
    #[expect(clippy::unused_async, reason = "sends in the next commit")]
    pub async fn introspect(
        &self,
        _app: &App,
        _secret: &ClientSecret,
        _token: Introspect<'_>,
        _deadline: Duration,
    ) -> Introspected {
        Introspected::Unknown(Failure::without_answer("not_supported"))
    }

    /// Revokes a refresh token (RFC 7009).
    #[expect(clippy::unused_async, reason = "sends in the next commit")]
    pub async fn revoke(
        &self,
        _app: &App,
        _secret: &ClientSecret,
        _refresh_token: &RefreshToken,
        _deadline: Duration,
    ) -> Revoked {
        Revoked::Unsupported(Failure::without_answer("not_supported"))
    }

    /// Asks whether the provider accepts the client.
    #[expect(clippy::unused_async, reason = "sends in the next commit")]
    pub async fn check_client(&self, _app: &App, _secret: &ClientSecret, _deadline: Duration) -> ClientCheck {
        ClientCheck::Unknown(Failure::without_answer("not_sent"))
    }
}
