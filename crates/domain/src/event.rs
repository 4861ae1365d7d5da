//! One line of a connection's append-only history.

/// What happened to a connection. Tokens never appear in an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A customer gave consent, or a record was imported.
    Connected,
    /// A refresh token was redeemed and the answer stored.
    Refreshed,
    /// A redemption brought no token set.
    RefreshFailed,
    /// A call came back 401.
    CallUnauthorized,
    /// A call came back 403.
    PermissionDenied,
    /// A call came back 429.
    RateLimited,
    /// A write left and no answer came.
    OutcomeUnknown,
    /// A write was not sent, for it had been carried out already.
    WriteSuppressed,
    /// The customer must install the app again.
    ReconnectRequired,
    /// The customer did.
    Reconnected,
    /// Its owner disconnected it.
    Disconnected,
    /// The provider answered for another account.
    AccountMismatch,
    /// A lease was taken over from a holder that is gone or too slow.
    LeaseTakenOver,
    /// The store had lost a token set, and was given it back.
    StoreRegressed,
    /// An access token was handed to a caller.
    TokenHandedOut,
    /// A revocation that was queued is done.
    Revoked,
}

impl EventKind {
    /// The word in the store and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Refreshed => "refreshed",
            Self::RefreshFailed => "refresh_failed",
            Self::CallUnauthorized => "call_unauthorized",
            Self::PermissionDenied => "permission_denied",
            Self::RateLimited => "rate_limited",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::WriteSuppressed => "write_suppressed",
            Self::ReconnectRequired => "reconnect_required",
            Self::Reconnected => "reconnected",
            Self::Disconnected => "disconnected",
            Self::AccountMismatch => "account_mismatch",
            Self::LeaseTakenOver => "lease_taken_over",
            Self::StoreRegressed => "store_regressed",
            Self::TokenHandedOut => "token_handed_out",
            Self::Revoked => "revoked",
        }
    }
}

/// What a change of state leaves in the history: written in the same transaction as the change itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// Why, for a person: one lower-case sentence without secrets.
    pub detail: String,
    /// The provider's correlation id, where its answer had one.
    pub provider_correlation_id: Option<String>,
}

impl Event {
    /// An event without a provider's answer behind it.
    pub fn new(kind: EventKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            provider_correlation_id: None,
        }
    }

    /// Names the provider's answer it follows from.
    #[must_use]
    pub fn correlated(mut self, provider_correlation_id: Option<String>) -> Self {
        self.provider_correlation_id = provider_correlation_id;
        self
    }
}
