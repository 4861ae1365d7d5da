//! One line of the append-only history: of a connection, or of an app.

use std::time::Duration;

use crate::api_answer::Class;
use crate::id::Version;

/// What happened to a connection, or to an app. Tokens never appear in an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    /// Two token sets were issued for one version: its refresh token was redeemed twice.
    DoubleRedemption,
    /// The store had lost a token set, and was given it back.
    StoreRegressed,
    /// An access token was handed to a caller.
    TokenHandedOut,
    /// A revocation that was queued is done.
    Revoked,
    /// A caller told what the provider answered to a token that it was handed.
    TokenReported,
    /// Somebody asked for a refresh whatever the token's age.
    RefreshForced,
    /// The provider refused an app's client credentials: an event of the app.
    CredentialsRejected,
    /// The provider accepted them again: an event of the app.
    CredentialsAccepted,
    /// The provider told of an uninstall that says nothing about the consent that is there now.
    UninstallIgnored,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 22] = [
        Self::Connected,
        Self::Refreshed,
        Self::RefreshFailed,
        Self::CallUnauthorized,
        Self::PermissionDenied,
        Self::RateLimited,
        Self::OutcomeUnknown,
        Self::WriteSuppressed,
        Self::ReconnectRequired,
        Self::Reconnected,
        Self::Disconnected,
        Self::AccountMismatch,
        Self::LeaseTakenOver,
        Self::DoubleRedemption,
        Self::StoreRegressed,
        Self::TokenHandedOut,
        Self::Revoked,
        Self::TokenReported,
        Self::RefreshForced,
        Self::CredentialsRejected,
        Self::CredentialsAccepted,
        Self::UninstallIgnored,
    ];

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
            Self::DoubleRedemption => "double_redemption",
            Self::StoreRegressed => "store_regressed",
            Self::TokenHandedOut => "token_handed_out",
            Self::Revoked => "revoked",
            Self::TokenReported => "token_reported",
            Self::RefreshForced => "refresh_forced",
            Self::CredentialsRejected => "credentials_rejected",
            Self::CredentialsAccepted => "credentials_accepted",
            Self::UninstallIgnored => "uninstall_ignored",
        }
    }

    /// Reads that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// Why a refresh was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshReason {
    /// The token set was due, and nobody waited.
    Due,
    /// A caller waited for it: the token had ended, or did not live long enough for what the caller asked.
    WaitedFor,
    /// A call came back 401.
    Rejected,
    /// Somebody asked for it.
    Asked,
    /// Somebody asked for it whatever the token set's age.
    Forced,
}

impl RefreshReason {
    /// Every reason.
    pub const ALL: [Self; 5] = [
        Self::Due,
        Self::WaitedFor,
        Self::Rejected,
        Self::Asked,
        Self::Forced,
    ];

    /// The word in the store and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::WaitedFor => "waited_for",
            Self::Rejected => "rejected",
            Self::Asked => "asked",
            Self::Forced => "forced",
        }
    }

    /// Reads that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}

/// What stood around an event, as far as its teller knows. What the store alone knows (who wrote it, the versions, the
/// fingerprint) it adds itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// The provider's correlation id, where its answer had one.
    pub provider_correlation_id: Option<String>,
    /// The request of ours that it happened in.
    pub request_id: Option<String>,
    /// Who asked: an API key's id, or `operator`, `scheduler`, `customer`.
    pub by: Option<String>,
    /// Why a refresh was made.
    pub reason: Option<RefreshReason>,
    /// What kind of answer it was.
    pub class: Option<Class>,
    /// Which attempt it was, from 1.
    pub attempt: Option<u32>,
    /// The provider's status code.
    pub status_code: Option<u16>,
    /// The method of the call.
    pub method: Option<String>,
    /// Where it went: the path with ids and query removed.
    pub endpoint: Option<String>,
    /// How many seconds the token had left when it was used; below zero once it had ended.
    pub seconds_remaining: Option<i64>,
    /// The version of the token set that was used.
    pub token_version: Option<Version>,
    /// How many failures in a row came before.
    pub failures_before: Option<u32>,
    /// How long it took.
    pub took: Option<Duration>,
}

/// What a change of state leaves in the history: written in the same transaction as the change itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// Why, for a person: one lower-case sentence without secrets.
    pub detail: String,
    /// What stood around it.
    pub circumstances: Circumstances,
}

impl Event {
    /// An event of which no more is known.
    pub fn new(kind: EventKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            circumstances: Circumstances::default(),
        }
    }

    /// Names the provider's answer it follows from.
    #[must_use]
    pub fn correlated(mut self, provider_correlation_id: Option<String>) -> Self {
        self.circumstances.provider_correlation_id = provider_correlation_id;
        self
    }

    /// Says what stood around it. A correlation id that was named before stays, where this names none.
    #[must_use]
    pub fn during(mut self, circumstances: Circumstances) -> Self {
        let named = self.circumstances.provider_correlation_id.take();
        self.circumstances = circumstances;
        if self.circumstances.provider_correlation_id.is_none() {
            self.circumstances.provider_correlation_id = named;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reads_back() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::from_word(kind.as_str()), Some(kind));
        }
        for reason in RefreshReason::ALL {
            assert_eq!(RefreshReason::from_word(reason.as_str()), Some(reason));
        }
        assert_eq!(EventKind::from_word("nothing"), None);
    }

    #[test]
    fn a_correlation_id_is_kept_whichever_is_said_first() {
        let correlated = |event: Event| event.circumstances.provider_correlation_id;
        let event = || Event::new(EventKind::Refreshed, "why").correlated(Some("a".into()));
        assert_eq!(
            correlated(event().during(Circumstances::default())).as_deref(),
            Some("a")
        );
        let names = Circumstances {
            provider_correlation_id: Some("b".into()),
            ..Circumstances::default()
        };
        assert_eq!(correlated(event().during(names)).as_deref(), Some("b"));
    }
}
