//! Every error answer: a problem document (RFC 9457) with a code that clients match on.
//!
//! A handler returns a [`Problem`]; [`Problem::write`] makes the answer of it in one place, where the request id is known and
//! whether the call came in through the gateway. [`Code`] is the one table of codes: statuses, wording and help pages all
//! come from it.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use evergrant_domain::ConnectionId;
use evergrant_domain::write_lookup::LookUp;
use evergrant_gateway::{Refusal, RefusalKind};
use evergrant_keeper::{ConnectError, KeepError};
use evergrant_store::StoreError;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

/// The longest pause that a caller is asked for; what is gone for longer is worth another look by then.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// Most redemptions are over by then.
const UNDER_WAY: Duration = Duration::from_secs(2);

macro_rules! codes {
    ($($variant:ident $word:literal $status:literal $retryable:literal $title:literal $meaning:literal $action:literal;)+) => {
        /// What went wrong, as one word. The words are public: clients match on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)+
        }

        impl Code {
            /// Every code, in the order of the help pages.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The status that it is answered with; the gateway's, where `/v1` has another.
            ///
            /// # Panics
            ///
            /// Never: the table holds valid statuses.
            pub fn status(self) -> StatusCode {
                let number: u16 = match self { $(Self::$variant => $status),+ };
                StatusCode::from_u16(number).expect("the table holds valid statuses")
            }

            /// Whether the same request may succeed later without anything else being done.
            pub fn is_retryable(self) -> bool {
                match self { $(Self::$variant => $retryable),+ }
            }

            /// A few words.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),+ }
            }

            /// What it means.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),+ }
            }

            /// What to do.
            pub fn action(self) -> &'static str {
                match self { $(Self::$variant => $action),+ }
            }
        }
    };
}

codes! {
    InvalidApiKey "invalid_api_key" 401 false "API key missing or not valid"
        "The request has no API key, or one that is unknown, expired or revoked."
        "Send the header Authorization: Bearer evg_… with a valid key; evergrant keys create makes one.";
    Forbidden "forbidden" 403 false "The key's role does not allow this"
        "The key is valid, but its role does not include what was asked for."
        "Use a key whose role allows it; /docs names the role of every route.";
    ReconnectRequired "reconnect_required" 424 false "The customer must reconnect"
        "The customer's grant does not work any more: most likely the app was uninstalled, the grant revoked, or its last refresh token lost. Nothing was sent."
        "Send the customer the reconnect link; the connection keeps its id and works again at once.";
    Disconnected "disconnected" 424 false "The connection was disconnected"
        "Its owner ended this connection and its tokens are erased. Nothing was sent."
        "Connect the customer anew, with the same connection id if you like.";
    AppCredentialsRejected "app_credentials_rejected" 424 false "The provider refuses the app's credentials"
        "The provider refuses the app's client id or secret. No connection is lost; none can be refreshed meanwhile."
        "Correct client id and secret in the configuration; evergrant apps check asks the provider whether they are right.";
    AppNotConfigured "app_not_configured" 424 false "The connection's app is not configured"
        "The connection belongs to an app that is not in this service's configuration. Nothing was sent."
        "Put the app back into the configuration, or disconnect the connection.";
    ConnectionUnreadable "connection_unreadable" 424 false "The connection's record cannot be read"
        "The connection's stored tokens do not open with the vault key: they were changed, or sealed with another key. Nothing was sent."
        "Restore the right key or a backup of the store, or send the customer the reconnect link; the connection keeps its id.";
    UnknownConnection "unknown_connection" 424 false "No such connection"
        "There is no connection with this id, or it lies outside what the key is limited to."
        "Check the id, and what the key is limited to.";
    UseEvergrant "use_evergrant" 424 false "The provider's token endpoints are not for callers"
        "A redemption or revocation through the gateway would happen behind Evergrant's back and could end the grant."
        "Take the token call out of your code: the gateway adds a valid token, and GET /v1/connections/{id}/token returns one.";
    OutcomeUnknown "outcome_unknown" 424 false "The outcome of a write is unknown"
        "The write left and no answer came. It may have been carried out."
        "Look whether the change is there before you repeat it.";
    BadRequest "bad_request" 400 false "The request cannot be understood"
        "Something in the request is not as it must be; the detail says what."
        "Correct the request.";
    NotFound "not_found" 404 false "No such route"
        "There is nothing at this path."
        "Compare the path with /docs.";
    UnknownApp "unknown_app" 404 false "No such app"
        "There is no app of this name in the configuration, or it lies outside what the key is limited to."
        "Check the name against what this lists: evergrant apps list.";
    UnknownSession "unknown_session" 404 false "No such connect session"
        "There is no connect session with this id, it was over long ago, or it lies outside what the key is limited to."
        "Begin another one.";
    UnknownKey "unknown_key" 404 false "No such API key"
        "There is no API key with this id."
        "Check the id against what this lists: evergrant keys list.";
    UnknownDelivery "unknown_delivery" 404 false "No such delivery"
        "There is no delivery of a webhook with this id, it was kept long enough, or it lies outside what the key is limited to."
        "Check the id against what this lists: evergrant webhooks list.";
    MethodNotAllowed "method_not_allowed" 405 false "The method does not fit the path"
        "The path exists, but not for this method; the header Allow names those that do."
        "Compare the method with /docs.";
    IdTaken "id_taken" 409 false "The connection id is taken"
        "Another connection has this id, or it belongs to another app or customer."
        "Choose another id, or none.";
    AccountTaken "account_taken" 409 false "The account is connected already"
        "Another live connection has this app, customer and account."
        "Use that connection, reconnect it, or disconnect it first.";
    GrantTaken "grant_taken" 409 false "The grant is held already"
        "Another live connection of this app holds this refresh token. Two holders would redeem it against each other."
        "Use that connection, or disconnect it first.";
    NotNewer "not_newer" 409 false "The record is not newer"
        "The connection holds a token set that ends as late as the record's, or later, or the record does not say when its own ends. Nothing was changed."
        "Nothing: what is stored is kept. A record that is newer says when its access token ends (expires_at).";
    AccountMismatch "account_mismatch" 409 false "Another account was chosen"
        "Consent was given in another account than the one that this connection is pinned to. Nothing was changed."
        "Reconnect and choose the account that is named, or make a new connection for the other one.";
    IdempotencyInProgress "idempotency_in_progress" 409 true "The same write is under way"
        "A write with the same Idempotency-Key, or the same request within its window, is under way. Nothing was sent now."
        "Send the same request again after as many seconds as Retry-After says: it is answered with the first one's answer.";
    IdempotencyMismatch "idempotency_mismatch" 422 false "Another write has this key"
        "Another request was made with this Idempotency-Key within 24 hours. Nothing was sent."
        "Use a new key for each write, and the same key only to repeat the same request, byte for byte.";
    GuardNotApplicable "guard_not_applicable" 422 false "The guard cannot be applied"
        "The call asks for a write guard that cannot be applied to it. Nothing was sent: to send it without would be worse."
        "Take the guard's header off, or use a call that it fits.";
    CodeRefused "code_refused" 422 false "The authorization code is refused"
        "The provider refuses the authorization code: it was used, has expired, or belongs to another redirect URI."
        "Begin again: every code works once and only briefly.";
    GrantInactive "grant_inactive" 422 false "The refresh token is not active"
        "The provider says that this refresh token is dead."
        "Connect the customer through the consent page instead.";
    BodyTooLarge "body_too_large" 413 false "The body is too large"
        "The body is over the limit; the detail names it."
        "Send less at once.";
    UnsupportedMediaType "unsupported_media_type" 415 false "The body is not declared as JSON"
        "The body must be JSON and say so."
        "Send the header Content-Type: application/json.";
    HostNotAllowed "host_not_allowed" 421 false "Not a name of this service"
        "The service listens on loopback and was addressed by another name: the sign of a DNS rebinding attack."
        "Use localhost, 127.0.0.1, [::1] or the host of public_url.";
    HeadersTooLarge "headers_too_large" 431 false "The headers are too large"
        "The request's headers are over the limit."
        "Send fewer or shorter headers.";
    Internal "internal" 500 false "A fault in the service"
        "Something in the service itself failed; its log says what, under this request id."
        "Report it with the request id.";
    BudgetExhausted "budget_exhausted" 429 true "The account's budget of calls is used up"
        "The provider allows so many calls in a time, and others have used them: this one would have waited for longer than it may. Nothing was sent."
        "Try again after as many seconds as Retry-After says, ask for a longer Evergrant-Max-Wait, or make fewer calls: in batches, from a cache.";
    UpstreamUnreachable "upstream_unreachable" 502 true "The provider cannot be reached"
        "No connection to the provider could be made. Nothing was sent."
        "Try again; it is safe.";
    UpstreamTimeout "upstream_timeout" 504 true "The provider did not answer in time"
        "A read or an idempotent write left, and no answer came: not in time, or the connection ended before."
        "Try again; it is safe.";
    ProviderUnavailable "provider_unavailable" 503 true "The provider does not answer now"
        "The token at hand has ended and the provider's token endpoint issues no other at the moment, or its API has answered no call for a while. Nothing was sent."
        "Try again after as many seconds as Retry-After says.";
    StoreUnavailable "store_unavailable" 503 true "The store does not answer"
        "The database cannot be reached, and what is known without it is too old to be used."
        "Try again after as many seconds as Retry-After says.";
    Overloaded "overloaded" 503 true "Too much at once"
        "Too many wait for the same thing."
        "Try again after as many seconds as Retry-After says.";
}

impl Code {
    /// Reads the word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == word)
    }

    /// What a word means and what to do, where it is one of ours.
    pub fn about(word: &str) -> Option<(&'static str, &'static str)> {
        Self::from_word(word).map(|code| (code.meaning(), code.action()))
    }
}

/// An error answer on its way. Boxed, because most results hold none.
#[derive(Debug, Clone)]
pub(crate) struct Problem(Box<Details>);

#[derive(Debug, Clone)]
struct Details {
    code: Code,
    /// Where `/v1` answers with another status than the gateway.
    status: StatusCode,
    /// What went wrong this time: one sentence.
    detail: String,
    connection: Option<ConnectionId>,
    reconnect_url: Option<String>,
    superseded_by: Option<ConnectionId>,
    provider_correlation_id: Option<String>,
    retry_after: Option<Duration>,
    allow: Option<HeaderValue>,
    /// Where it is more than the code's own.
    action: Option<String>,
    lookup: Option<LookUp>,
    policy: Option<&'static str>,
}

/// A problem document (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemView<'a> {
    /// `urn:evergrant:problem:<code>`
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    /// What clients match on.
    code: &'static str,
    /// What to do.
    action: &'a str,
    /// Whether the same request may succeed later without anything else being done.
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reconnect_url: Option<&'a str>,
    /// The connection that took the account over, where that is why this one is disconnected.
    #[serde(skip_serializing_if = "Option::is_none")]
    superseded_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider_correlation_id: Option<&'a str>,
    /// The request that says whether a write of unknown outcome was carried out, where one is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    lookup: Option<LookUpView<'a>>,
    /// `RATE_LIMIT`, as HubSpot says it, where a budget is used up.
    #[serde(rename = "errorType", skip_serializing_if = "Option::is_none")]
    error_type: Option<&'static str>,
    /// HubSpot's name for the limit.
    #[serde(rename = "policyName", skip_serializing_if = "Option::is_none")]
    policy_name: Option<&'static str>,
}

/// A request to send through the gateway, on the same connection.
#[derive(Serialize, ToSchema)]
#[schema(as = LookUp)]
pub(crate) struct LookUpView<'a> {
    method: &'static str,
    /// Path and query, percent-encoded.
    path: &'a str,
    /// The JSON body, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
}

impl Problem {
    /// A problem whose detail is the code's own meaning.
    pub(crate) fn new(code: Code) -> Self {
        Self::because(code, code.meaning())
    }

    /// A problem that says what went wrong this time.
    pub(crate) fn because(code: Code, detail: impl Into<String>) -> Self {
        Self(Box::new(Details {
            code,
            status: code.status(),
            detail: detail.into(),
            connection: None,
            reconnect_url: None,
            superseded_by: None,
            provider_correlation_id: None,
            retry_after: None,
            allow: None,
            action: None,
            lookup: None,
            policy: None,
        }))
    }

    /// What went wrong.
    pub(crate) fn code(&self) -> Code {
        self.0.code
    }

    /// What went wrong this time.
    #[cfg(test)]
    pub(crate) fn detail(&self) -> &str {
        &self.0.detail
    }

    /// Which connection it is about.
    pub(crate) fn connection(&self) -> Option<&ConnectionId> {
        self.0.connection.as_ref()
    }

    /// Says where the customer can restore the connection.
    #[must_use]
    pub(crate) fn reconnect_at(mut self, url: String) -> Self {
        self.0.reconnect_url = Some(url);
        self
    }

    /// A request that cannot be understood.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::because(Code::BadRequest, detail)
    }

    /// What is outside a key's limits and what does not exist are answered by this one function, so that nobody can tell
    /// them apart.
    pub(crate) fn unknown_connection(id: &ConnectionId) -> Self {
        let mut problem = Self::new(Code::UnknownConnection).about(id);
        problem.0.status = StatusCode::NOT_FOUND;
        problem
    }

    /// Why there is no token of this connection.
    pub(crate) fn keep(error: KeepError, id: &ConnectionId) -> Self {
        match error {
            KeepError::Unknown => Self::unknown_connection(id),
            other => Self::from(other).about(id),
        }
    }

    /// Why the gateway has no answer of the provider.
    pub(crate) fn refusal(refusal: &Refusal, id: &ConnectionId) -> Self {
        let problem = match &refusal.kind {
            RefusalKind::Keep(error) => Self::keep(error.clone(), id),
            RefusalKind::UseEvergrant => Self::new(Code::UseEvergrant),
            RefusalKind::BadRequest { what } => Self::bad_request(*what),
            RefusalKind::GuardNotApplicable { what } => Self::because(Code::GuardNotApplicable, *what),
            RefusalKind::BodyTooLarge { limit } => Self::body_too_large(*limit),
            RefusalKind::HeadersTooLarge => Self::new(Code::HeadersTooLarge),
            RefusalKind::BudgetExhausted { retry_after, policy } => {
                let mut problem = Self::new(Code::BudgetExhausted).retry_after(*retry_after);
                problem.0.policy = *policy;
                problem
            }
            RefusalKind::ProviderSilent { retry_after } | RefusalKind::LookUnclear { retry_after } => {
                Self::because(Code::ProviderUnavailable, refusal.kind.to_string()).retry_after(*retry_after)
            }
            RefusalKind::UpstreamUnreachable => Self::new(Code::UpstreamUnreachable),
            RefusalKind::UpstreamTimeout => Self::new(Code::UpstreamTimeout),
            RefusalKind::IdempotencyInProgress { retry_after } => {
                Self::new(Code::IdempotencyInProgress).retry_after(*retry_after)
            }
            RefusalKind::IdempotencyMismatch => Self::new(Code::IdempotencyMismatch),
            RefusalKind::OutcomeUnknown { look_up } | RefusalKind::OutcomeStillUnknown { look_up } => {
                Self::outcome_unknown(look_up.as_deref())
            }
        };
        let mut problem = problem.about(id);
        problem
            .0
            .provider_correlation_id
            .clone_from(&refusal.record.provider_correlation_id);
        problem
    }

    /// A write that may have been carried out, with what to ask to find out.
    fn outcome_unknown(look_up: Option<&LookUp>) -> Self {
        let mut problem = Self::new(Code::OutcomeUnknown);
        if let Some(look_up) = look_up {
            let how = if look_up.body.is_some() {
                ", with the body that lookup holds"
            } else {
                ""
            };
            problem.0.action = Some(format!(
                "Look whether the change is there before you repeat it: {} {}{how}, through the gateway.",
                look_up.method, look_up.path
            ));
            problem.0.lookup = Some(look_up.clone());
        }
        problem
    }

    /// A body over the limit.
    pub(crate) fn body_too_large(limit: u64) -> Self {
        Self::because(
            Code::BodyTooLarge,
            format!("the body is over the limit of {limit} bytes"),
        )
    }

    /// Names the connection.
    #[must_use]
    pub(crate) fn about(mut self, id: &ConnectionId) -> Self {
        self.0.connection = Some(id.clone());
        self
    }

    /// Says when it is worth asking again.
    #[must_use]
    pub(crate) fn retry_after(mut self, retry_after: Duration) -> Self {
        self.0.retry_after = Some(retry_after);
        self
    }

    /// Says which methods the path has.
    #[must_use]
    pub(crate) fn allow(mut self, allow: Option<HeaderValue>) -> Self {
        self.0.allow = allow;
        self
    }

    /// The status it is answered with there.
    pub(crate) fn status(&self, door: Door) -> StatusCode {
        match door {
            Door::Api => self.0.status,
            Door::Gateway => self.0.code.status(),
        }
    }

    /// The document.
    fn view<'a>(&'a self, request_id: Option<&'a str>, door: Door) -> ProblemView<'a> {
        ProblemView {
            kind: format!("urn:evergrant:problem:{}", self.0.code.as_str()),
            title: self.0.code.title(),
            status: self.status(door).as_u16(),
            detail: &self.0.detail,
            code: self.0.code.as_str(),
            action: self.0.action.as_deref().unwrap_or(self.0.code.action()),
            retryable: self.0.code.is_retryable(),
            connection: self.0.connection.as_ref().map(ConnectionId::as_str),
            reconnect_url: self.0.reconnect_url.as_deref(),
            superseded_by: self.0.superseded_by.as_ref().map(ConnectionId::as_str),
            request_id,
            provider_correlation_id: self.0.provider_correlation_id.as_deref(),
            lookup: self.0.lookup.as_ref().map(|look_up| LookUpView {
                method: look_up.method,
                path: &look_up.path,
                body: look_up.body.as_deref(),
            }),
            error_type: self.0.policy.map(|_| "RATE_LIMIT"),
            policy_name: self.0.policy,
        }
    }

    /// One item of a batch, which itself names connection and request.
    pub(crate) fn item(&self) -> ProblemView<'_> {
        ProblemView {
            connection: None,
            ..self.view(None, Door::Api)
        }
    }

    /// The answer.
    pub(crate) fn write(&self, request_id: &str, door: Door) -> Response {
        let body = serde_json::to_vec(&self.view(Some(request_id), door)).expect("a problem is plain data");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status(door);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.0.code == Code::InvalidApiKey {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(retry_after) = self.0.retry_after {
            // Rounded up: asked again a moment too early, the answer would be the same.
            let seconds = retry_after.min(RETRY_AFTER_MAX).as_secs_f64().ceil().max(1.0);
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from_str(&seconds.to_string()).expect("a number"),
            );
        }
        if let Some(allow) = &self.0.allow {
            headers.insert(header::ALLOW, allow.clone());
        }
        if door == Door::Gateway {
            headers.insert(EVERGRANT_ERROR, HeaderValue::from_static(self.0.code.as_str()));
            let retry = if self.0.code.is_retryable() {
                "true"
            } else {
                "false"
            };
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(retry));
            if self.0.code == Code::OutcomeUnknown {
                headers.insert(OUTCOME, HeaderValue::from_static("unknown"));
            }
        }
        response
    }
}

/// Where a call came in. The gateway's statuses are chosen so that no client takes them for the provider's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// `/gateway/…`
    Gateway,
    /// Everything else.
    Api,
}

const EVERGRANT_ERROR: HeaderName = HeaderName::from_static("evergrant-error");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const OUTCOME: HeaderName = HeaderName::from_static("evergrant-outcome");

/// The problem travels beside an empty answer until [`Problem::write`] makes the real one of it.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.0.status;
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable { .. } => {
                tracing::warn!(event = "store_error", %error, "the store did not answer");
                Self::new(Code::StoreUnavailable).retry_after(Duration::from_secs(1))
            }
            StoreError::Unreadable { .. } | StoreError::Corrupt { .. } => {
                tracing::error!(event = "store_error", %error, "the store holds something that cannot be read");
                Self::new(Code::Internal)
            }
        }
    }
}

impl From<ConnectError> for Problem {
    fn from(error: ConnectError) -> Self {
        let detail = error.to_string();
        match error {
            ConnectError::AppNotConfigured { .. } => Self::new(Code::UnknownApp),
            ConnectError::AppCredentialsRejected { .. } => {
                Self::because(Code::AppCredentialsRejected, detail)
            }
            ConnectError::ProviderUnavailable { .. } | ConnectError::Unverified { .. } => {
                Self::because(Code::ProviderUnavailable, detail).retry_after(RETRY_AFTER_MAX)
            }
            // A lost answer spends the code, too.
            ConnectError::CodeRefused { .. } | ConnectError::OutcomeLost => {
                Self::because(Code::CodeRefused, detail)
            }
            ConnectError::NotNewer { by } => Self::new(Code::NotNewer).about(&by),
            ConnectError::RedemptionUnderWay { .. } => {
                Self::because(Code::Overloaded, detail).retry_after(UNDER_WAY)
            }
            ConnectError::AccountMismatch { .. } | ConnectError::RecordOfAnotherAccount { .. } => {
                Self::because(Code::AccountMismatch, detail)
            }
            ConnectError::IdTaken => Self::new(Code::IdTaken),
            ConnectError::AccountTaken { by } => Self::because(Code::AccountTaken, detail).about(&by),
            ConnectError::GrantTaken { by } => Self::because(Code::GrantTaken, detail).about(&by),
            ConnectError::GrantInactive => Self::new(Code::GrantInactive),
            ConnectError::Invalid { what } => Self::bad_request(what),
            ConnectError::Store(error) => error.into(),
        }
    }
}

/// Where the connection is known: [`Problem::keep`].
impl From<KeepError> for Problem {
    fn from(error: KeepError) -> Self {
        let detail = error.to_string();
        match error {
            KeepError::Unknown => Self::because(Code::UnknownConnection, detail),
            KeepError::ReconnectRequired { .. } => Self::because(Code::ReconnectRequired, detail),
            KeepError::Disconnected => Self::because(Code::Disconnected, detail),
            KeepError::Superseded { by } => {
                let mut problem = Self::because(Code::Disconnected, detail);
                problem.0.action = Some(format!(
                    "Use connection {by} from now on: the customer installed the app again, and it holds the new grant."
                ));
                problem.0.superseded_by = Some(by);
                problem
            }
            KeepError::AppCredentialsRejected { .. } => Self::because(Code::AppCredentialsRejected, detail),
            KeepError::AppNotConfigured { .. } => Self::because(Code::AppNotConfigured, detail),
            KeepError::Unreadable { .. } => Self::because(Code::ConnectionUnreadable, detail),
            KeepError::ProviderUnavailable { retry_after, .. } => {
                Self::because(Code::ProviderUnavailable, detail).retry_after(retry_after)
            }
            KeepError::StoreUnavailable { retry_after } => {
                Self::because(Code::StoreUnavailable, detail).retry_after(retry_after)
            }
            KeepError::Overloaded { retry_after } => {
                Self::because(Code::Overloaded, detail).retry_after(retry_after)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // On a terminal, on a page and in JSON alike: nobody there makes anything of marks around code.
    #[test]
    fn what_a_code_means_and_asks_for_is_plain_text() {
        for code in Code::ALL {
            for text in [code.title(), code.meaning(), code.action()] {
                assert!(!text.contains('`'), "{}: {text}", code.as_str());
            }
        }
    }
}
