//! What can be asked of a provider, and what its answers come to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::token_answer::{self, Failure, Introspected, RawAnswer, Revoked, TokenAnswer};
use evergrant_domain::{App, AuthorizationCode, ClientSecret, CodeVerifier, RefreshToken, Timestamp};
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::network::{Machine, Network};
use crate::request::{Introspect, TokenRequest};
use crate::sender::{self, Answer, Body, NoAnswer, Outgoing as _};
use crate::tls::{Tls, TlsRoots};

/// What a redemption of a refresh token came to.
#[derive(Debug, Clone)]
pub enum Redeemed {
    /// The last check before the first byte said no. Nothing was sent.
    SteppedBack,
    /// It was tried, and this came of it.
    Answered(TokenAnswer),
}

/// Whether a provider accepts the app's own credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCheck {
    /// It knows the client id, and the secret is right.
    Accepted,
    /// It refuses the client id or the secret.
    Refused(Failure),
    /// It gave no answer that says.
    Unknown(Failure),
}

/// Sends requests to token endpoints: one fresh connection and one request for each call, and no retry.
///
/// Each `deadline` covers the whole exchange, connecting included. Failures without a code of the provider carry a word of
/// ours:
///
/// - nothing was sent: `unusable_url`, `plain_http_refused`, `name_not_resolved`, `unreachable`, `no_tls_roots`,
///   `certificate_refused`, `tls_failed`;
/// - sent, but the answer is not to be read: `unreadable`, `answer_too_long`, `answer_encoded`;
/// - either, and the variant says which: `timeout`, `connection_lost`;
/// - not tried, as the provider has no such endpoint: `not_supported`.
#[derive(Clone)]
pub struct TokenEndpoint {
    pub(crate) network: Arc<dyn Network>,
    listener: Option<Listener>,
}

/// What an answer tells of its maker's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockSeen {
    /// Whose.
    pub host: String,
    /// What it showed when the answer was made, cut off to the second.
    pub date: Timestamp,
    /// How long request and answer were on their way together.
    pub round_trip: Duration,
    /// How long ago the answer came.
    pub ago: Duration,
}

/// Is told of each clock that is seen.
type Listener = Arc<dyn Fn(ClockSeen) + Send + Sync>;

impl TokenEndpoint {
    /// A sender that believes those for whom `roots` vouch.
    pub fn new(roots: TlsRoots) -> Self {
        Self::over(Arc::new(Machine::new(Tls::new(roots))))
    }

    /// A sender whose connections come from elsewhere.
    pub fn over(network: Arc<dyn Network>) -> Self {
        Self {
            network,
            listener: None,
        }
    }

    /// The same sender, which tells `listener` of the clock that each answer shows.
    #[must_use]
    pub fn telling(self, listener: impl Fn(ClockSeen) + Send + Sync + 'static) -> Self {
        Self {
            listener: Some(Arc::new(listener)),
            ..self
        }
    }

    /// Redeems a refresh token. The caller holds the lease and decides about another try.
    ///
    /// `before_first_byte` runs when the connection stands and only the request is missing, so that what it checks is still
    /// true when the first byte leaves. Where it says no, nothing is sent.
    ///
    /// Source: RFC 6749 §6; PROTOCOL rules 4, 7, 8.
    pub async fn redeem<F, G>(
        &self,
        app: &App,
        secret: &ClientSecret,
        refresh_token: &RefreshToken,
        deadline: Duration,
        before_first_byte: F,
    ) -> Redeemed
    where
        F: FnOnce() -> G + Send,
        G: Future<Output = bool> + Send,
    {
        let request = TokenRequest::redemption(app, secret, refresh_token);
        match self.exchange(request, deadline, before_first_byte).await {
            Err(NoAnswer::SteppedBack) => Redeemed::SteppedBack,
            sent => Redeemed::Answered(token_answer(sent, app)),
        }
    }

    /// Redeems an authorization code. It is single use: after a lost answer the customer begins again.
    ///
    /// `redirect_uri` and `verifier` are those that the customer was sent to consent with.
    ///
    /// Source: RFC 6749 §4.1.3; RFC 7636 §4.5.
    pub async fn exchange_code(
        &self,
        app: &App,
        secret: &ClientSecret,
        code: &AuthorizationCode,
        redirect_uri: &str,
        verifier: Option<&CodeVerifier>,
        deadline: Duration,
    ) -> TokenAnswer {
        let request = TokenRequest::code_exchange(app, secret, code, redirect_uri, verifier);
        token_answer(self.send(request, deadline).await, app)
    }

    /// Asks whether a token lives. No grant is touched, so it may be asked again at will.
    ///
    /// Source: RFC 7662 §2.
    pub async fn introspect(
        &self,
        app: &App,
        secret: &ClientSecret,
        token: Introspect<'_>,
        deadline: Duration,
    ) -> Introspected {
        let Some(request) = TokenRequest::introspection(app, secret, token) else {
            return Introspected::Unknown(Failure::without_answer(NOT_SUPPORTED));
        };
        let answer = match self.send(request, deadline).await {
            Ok(answer) => answer,
            Err(none) => return Introspected::Unknown(Failure::without_answer(none.word())),
        };
        match answer.whole_body() {
            Ok(raw) => {
                token_answer::read_introspection(raw, app.provider.dialect, &app.provider.account_claim)
            }
            Err(word) => Introspected::Unknown(answer.failure(word)),
        }
    }

    /// Revokes a refresh token. Revoking twice does no harm, so it may be tried until it is done.
    ///
    /// Source: RFC 7009 §2.
    pub async fn revoke(
        &self,
        app: &App,
        secret: &ClientSecret,
        refresh_token: &RefreshToken,
        deadline: Duration,
    ) -> Revoked {
        let Some(request) = TokenRequest::revocation(app, secret, refresh_token) else {
            return Revoked::Unsupported(Failure::without_answer(NOT_SUPPORTED));
        };
        let answer = match self.send(request, deadline).await {
            Ok(answer) => answer,
            Err(none) => return Revoked::TryAgain(Failure::without_answer(none.word())),
        };
        match answer.whole_body() {
            Ok(raw) => token_answer::read_revocation(raw),
            // RFC 7009 §2.2: a success says it all in its status, whatever became of the body.
            Err(_) if (200..300).contains(&answer.status) => Revoked::Done,
            Err(word) => Revoked::TryAgain(answer.failure(word)),
        }
    }

    /// Asks whether the app's own credentials are right, by redeeming a refresh token that cannot exist: who is told that
    /// the grant is bad was let in.
    ///
    /// # Panics
    ///
    /// Where the system has no random numbers to give.
    pub async fn check_client(&self, app: &App, secret: &ClientSecret, deadline: Duration) -> ClientCheck {
        let nonsense = RefreshToken::new(crate::random_secret());
        let request = TokenRequest::redemption(app, secret, &nonsense);
        match token_answer(self.send(request, deadline).await, app) {
            TokenAnswer::GrantRefused(_) | TokenAnswer::WrongClient(_) => ClientCheck::Accepted,
            TokenAnswer::ClientRefused(failure) => ClientCheck::Refused(failure),
            // Whoever takes nonsense for a grant takes anything for a client.
            TokenAnswer::Issued(_) => ClientCheck::Unknown(Failure::without_answer("nonsense_accepted")),
            TokenAnswer::NotIssued(failure)
            | TokenAnswer::Lost(failure)
            | TokenAnswer::CodeRefused(failure)
            | TokenAnswer::EndpointFault(failure) => ClientCheck::Unknown(failure),
        }
    }

    /// Sends a request whose answer is read like any of the token endpoint's.
    pub(crate) async fn token_request(
        &self,
        request: TokenRequest,
        app: &App,
        deadline: Duration,
    ) -> TokenAnswer {
        token_answer(self.send(request, deadline).await, app)
    }

    /// What time it is at the provider, to the whole second, by the `Date` of an answer to a request that asks for nothing and
    /// carries no secret. The error is a word: why there was no answer, or `no_date`.
    ///
    /// Source: RFC 9110 §6.6.1.
    pub async fn date(&self, app: &App, deadline: Duration) -> Result<Timestamp, &'static str> {
        let greeting = TokenRequest::greeting(app);
        match sender::send(&*self.network, greeting, deadline, async || true).await {
            Ok(answer) => answer.date.ok_or("no_date"),
            Err(none) => Err(none.word()),
        }
    }

    async fn send(&self, request: TokenRequest, deadline: Duration) -> Result<Answer, NoAnswer> {
        self.exchange(request, deadline, async || true).await
    }

    async fn exchange<F, G>(
        &self,
        request: TokenRequest,
        deadline: Duration,
        before_first_byte: F,
    ) -> Result<Answer, NoAnswer>
    where
        F: FnOnce() -> G + Send,
        G: Future<Output = bool> + Send,
    {
        let url = request.url().clone();
        let host = url.host_str().unwrap_or_default();
        // Named as OpenTelemetry names what an HTTP client does. A token endpoint's path is configured and names nobody.
        let span = tracing::debug_span!(
            "token_endpoint",
            otel.name = %format_args!("POST {}", url.path()),
            otel.kind = "client",
            otel.status_code = Empty,
            http.request.method = "POST",
            http.response.status_code = Empty,
            server.address = host,
            server.port = url.port_or_known_default(),
            url.template = url.path(),
            error.type = Empty,
        );
        let answer = sender::send(&*self.network, request, deadline, before_first_byte)
            .instrument(span.clone())
            .await;
        match &answer {
            Ok(answer) => {
                span.record("http.response.status_code", answer.status);
                if answer.status >= 400 {
                    span.record("otel.status_code", "ERROR");
                    span.record("error.type", answer.status.to_string());
                }
                if let (Some(listener), Some(date)) = (&self.listener, answer.date) {
                    listener(ClockSeen {
                        host: host.to_owned(),
                        date,
                        round_trip: answer.took,
                        ago: answer.came_at.elapsed(),
                    });
                }
            }
            Err(none) => {
                span.record("otel.status_code", "ERROR");
                span.record("error.type", none.word());
            }
        }
        answer
    }
}

impl fmt::Debug for TokenEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenEndpoint").finish_non_exhaustive()
    }
}

const NOT_SUPPORTED: &str = "not_supported";

/// Rules 7 and 8: without a byte sent nothing was issued; without a readable answer nobody knows.
fn token_answer(sent: Result<Answer, NoAnswer>, app: &App) -> TokenAnswer {
    let answer = match sent {
        Ok(answer) => answer,
        Err(none @ NoAnswer::Lost(_)) => return TokenAnswer::Lost(Failure::without_answer(none.word())),
        Err(none @ (NoAnswer::NotSent(_) | NoAnswer::SteppedBack)) => {
            return TokenAnswer::NotIssued(Failure::without_answer(none.word()));
        }
    };
    let read = |body| {
        token_answer::read(
            answer.raw(body),
            app.provider.dialect,
            &app.provider.account_claim,
        )
    };
    match &answer.body {
        Body::Whole(body) => read(body),
        // The status still counts: a 429 is none the less one, and a 404 no token set.
        Body::Unreadable(word) => match read(b"") {
            TokenAnswer::Lost(failure) if failure.code == "unreadable" => {
                TokenAnswer::Lost(answer.failure(word))
            }
            other => other,
        },
        // Here it counts only where it says alone that nothing was issued.
        Body::Cut(word) => match read(b"") {
            not_issued @ TokenAnswer::NotIssued(_) => not_issued,
            _ => TokenAnswer::Lost(answer.failure(word)),
        },
    }
}

impl NoAnswer {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::SteppedBack => "stepped_back",
            Self::NotSent(word) | Self::Lost(word) => word,
        }
    }
}

impl Answer {
    fn whole_body(&self) -> Result<RawAnswer<'_>, &'static str> {
        match &self.body {
            Body::Whole(body) => Ok(self.raw(body)),
            Body::Unreadable(word) | Body::Cut(word) => Err(word),
        }
    }

    fn raw<'a>(&self, body: &'a [u8]) -> RawAnswer<'a> {
        RawAnswer {
            status: self.status,
            retry_after: self.retry_after,
            body,
        }
    }

    fn failure(&self, word: &str) -> Failure {
        Failure {
            http_status: Some(self.status),
            retry_after: self.retry_after,
            ..Failure::without_answer(word)
        }
    }
}
