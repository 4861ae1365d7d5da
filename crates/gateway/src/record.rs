//! What came of a call: the provider's answer or why there is none, and what a log line needs to know of it.

use std::time::Duration;

use evergrant_domain::api_answer::Class;
use evergrant_domain::event::Circumstances;
use evergrant_domain::tally::{EndedBy, EndedCall};
use evergrant_domain::write_lookup::LookUp;
use evergrant_domain::{AppName, Timestamp, Version};
use evergrant_keeper::{Asker, KeepError};

use crate::answer_body::GatewayBody;

/// The provider's answer, whatever its status.
#[derive(Debug)]
pub struct Answer {
    /// As it came, without what concerns one connection only, and with headers that say what was done.
    pub response: http::Response<GatewayBody>,
    /// What was done.
    pub record: Box<CallRecord>,
}

/// There is no answer of the provider.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{kind}")]
pub struct Refusal {
    /// Why.
    pub kind: RefusalKind,
    /// What was done.
    pub record: Box<CallRecord>,
}

/// Why there is no answer of the provider. One variant per next step.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RefusalKind {
    /// There is no token. Nothing was sent.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// The provider's token endpoints are not for callers. Nothing was sent.
    #[error("the provider's token endpoints are not for callers")]
    UseEvergrant,
    /// The call cannot be sent as it is.
    #[error("{what}")]
    BadRequest {
        /// Why.
        what: &'static str,
    },
    /// The caller asked for a guard that cannot be applied to this call. Nothing was sent: to send without it would be worse.
    #[error("{what}")]
    GuardNotApplicable {
        /// Why.
        what: &'static str,
    },
    /// The same guarded write is under way. Nothing was sent now.
    #[error("the same write is under way")]
    IdempotencyInProgress {
        /// When it is worth asking again.
        retry_after: Duration,
    },
    /// Another write was made under this key. Nothing was sent.
    #[error("another write was made under this key")]
    IdempotencyMismatch,
    /// The body is over the limit. Where it was under way already, the sending was broken off.
    #[error("the body is over the limit of {limit} bytes")]
    BodyTooLarge {
        /// The limit.
        limit: u64,
    },
    /// The headers are over the limit. Nothing was sent.
    #[error("the headers are over the limit")]
    HeadersTooLarge,
    /// The account's budget has no place for the call within the time that it may wait. It was not sent.
    #[error("no budget of calls is left within the time that this one may wait")]
    BudgetExhausted {
        /// When it is worth another try.
        retry_after: Duration,
        /// HubSpot's word for the limit.
        policy: Option<&'static str>,
    },
    /// The provider has answered nothing for a while, and is left alone for a moment. The call was not sent.
    #[error("the provider has answered nothing for a while")]
    ProviderSilent {
        /// When it is worth another try.
        retry_after: Duration,
    },
    /// Whether what a write would bring is there was asked, and answered with something that says nothing about it: a page of
    /// whoever stands before the provider, mostly. The write was not sent.
    #[error("whether it is there already was asked, and the answer said nothing about it")]
    LookUnclear {
        /// When it is worth another try.
        retry_after: Duration,
    },
    /// The provider was not reached: the call did not leave.
    #[error("the provider cannot be reached")]
    UpstreamUnreachable,
    /// A call that may be sent again left, and no answer came: not in time, or the connection ended before.
    #[error("the call left and the provider did not answer")]
    UpstreamTimeout,
    /// A write left, and no answer came: it may have been carried out.
    #[error("the call left and no answer came; it may have been carried out")]
    OutcomeUnknown {
        /// What to ask to find out, where that is known. For the caller alone: it may hold what the call held.
        look_up: Option<Box<LookUp>>,
    },
    /// The same guarded write left before, and nobody knows what became of it. Nothing was sent now.
    #[error("the same write left before and no answer came; it may have been carried out")]
    OutcomeStillUnknown {
        /// What to ask to find out, where that is known. For the caller alone: it may hold what the call held.
        look_up: Option<Box<LookUp>>,
    },
}

impl RefusalKind {
    /// The word that its caller is told, and that is counted and logged.
    pub(crate) fn class(&self) -> Class {
        match self {
            Self::Keep(
                KeepError::Unknown
                | KeepError::ReconnectRequired { .. }
                | KeepError::Disconnected
                | KeepError::Superseded { .. }
                | KeepError::AppCredentialsRejected { .. }
                | KeepError::AppNotConfigured { .. }
                | KeepError::Unreadable { .. },
            )
            | Self::UseEvergrant
            | Self::BadRequest { .. }
            | Self::GuardNotApplicable { .. }
            | Self::IdempotencyMismatch
            // Nothing is known of the provider here: the first of them is under way, or was counted when it was sent.
            | Self::IdempotencyInProgress { .. }
            | Self::OutcomeStillUnknown { .. }
            | Self::BodyTooLarge { .. }
            | Self::HeadersTooLarge => Class::ClientError,
            Self::Keep(
                KeepError::ProviderUnavailable { .. }
                | KeepError::StoreUnavailable { .. }
                | KeepError::Overloaded { .. },
            )
            | Self::ProviderSilent { .. }
            | Self::LookUnclear { .. }
            | Self::UpstreamUnreachable => Class::Unavailable,
            Self::BudgetExhausted { .. } => Class::RateLimited,
            Self::UpstreamTimeout | Self::OutcomeUnknown { .. } => Class::Timeout,
        }
    }

    /// Whether it says something of how the provider does: that it did not answer, or not usably. What does not is counted apart,
    /// or a store that is away would read like a provider that is.
    pub(crate) fn speaks_of_the_provider(&self) -> bool {
        match self {
            Self::Keep(KeepError::ProviderUnavailable { .. })
            | Self::ProviderSilent { .. }
            | Self::LookUnclear { .. }
            | Self::UpstreamUnreachable
            | Self::UpstreamTimeout
            | Self::OutcomeUnknown { .. } => true,
            Self::Keep(
                KeepError::Unknown
                | KeepError::ReconnectRequired { .. }
                | KeepError::Disconnected
                | KeepError::Superseded { .. }
                | KeepError::AppCredentialsRejected { .. }
                | KeepError::AppNotConfigured { .. }
                | KeepError::Unreadable { .. }
                | KeepError::StoreUnavailable { .. }
                | KeepError::Overloaded { .. },
            )
            | Self::UseEvergrant
            | Self::BadRequest { .. }
            | Self::GuardNotApplicable { .. }
            | Self::IdempotencyInProgress { .. }
            | Self::IdempotencyMismatch
            | Self::BodyTooLarge { .. }
            | Self::HeadersTooLarge
            | Self::BudgetExhausted { .. }
            | Self::OutcomeStillUnknown { .. } => false,
        }
    }
}

/// What a log line needs to know of a call. No header, no query, no body, no token.
#[derive(Debug, Clone)]
pub struct CallRecord {
    /// The app, once it is known.
    pub app: Option<AppName>,
    /// The method.
    pub method: http::Method,
    /// The provider's status, where there is an answer.
    pub status_code: Option<u16>,
    /// Why the call failed or, where it did not, why it was repeated.
    pub class: Class,
    /// How often it was sent.
    pub attempts: u32,
    /// Whose doing it is that it ended as it did.
    pub ended_by: EndedBy,
    /// Whether a 401 led to a refresh.
    pub refreshed: bool,
    /// Whether it is a write that may have been carried out, and nobody knows.
    pub outcome_unknown: bool,
    /// Whether a guarded write was answered without being sent for it: with its first answer, or with what was found.
    pub replayed: bool,
    /// The version of the token set that was used last.
    pub version: Option<Version>,
    /// When that access token ends; `None` for a static one, of which nobody knows.
    pub expires_at: Option<Timestamp>,
    /// Whole seconds that it still lived at the last sending; negative where it had ended.
    pub seconds_remaining: Option<i64>,
    /// How many seconds after its job was put into a queue it was prepared, where its caller said when that was.
    pub enqueued_for: Option<i64>,
    /// The provider's correlation id, where a failed answer had one.
    pub provider_correlation_id: Option<String>,
    /// Until the head of the answer, or the refusal.
    pub duration: Duration,
    /// How much of it was waiting for its turn in the account's budget; `None` where nobody counts its calls.
    pub budget_wait: Option<Duration>,
    /// How much of it was the provider's; `None` where nothing was sent.
    pub upstream: Option<Duration>,
    path: Box<str>,
}

impl CallRecord {
    pub(crate) fn new(method: http::Method, target: &str) -> Self {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        Self {
            app: None,
            method,
            status_code: None,
            class: Class::Ok,
            attempts: 0,
            ended_by: EndedBy::Provider,
            refreshed: false,
            outcome_unknown: false,
            replayed: false,
            version: None,
            expires_at: None,
            seconds_remaining: None,
            enqueued_for: None,
            provider_correlation_id: None,
            duration: Duration::ZERO,
            budget_wait: None,
            upstream: None,
            path: path.into(),
        }
    }

    /// What the history says of it.
    pub(crate) fn circumstances(&self, asker: Asker<'_>) -> Circumstances {
        Circumstances {
            class: Some(self.class),
            attempt: Some(self.attempts),
            method: Some(self.method.as_str().to_owned()),
            endpoint: Some(self.endpoint()),
            seconds_remaining: self.seconds_remaining,
            token_version: self.version,
            ..asker.circumstances()
        }
    }

    /// What of it is counted in the history.
    pub(crate) fn ended(&self) -> EndedCall {
        EndedCall {
            class: self.class,
            ended_by: self.ended_by,
            status: self.status_code,
            seconds_remaining: self.seconds_remaining,
            enqueued_for: self.enqueued_for,
        }
    }

    /// The path with the ids taken out: `/crm/v3/objects/contacts/{id}`. Made when it is asked for, because most calls get no line.
    pub fn endpoint(&self) -> String {
        const SHOWN_MAX: usize = 256;
        let mut endpoint = String::with_capacity(self.path.len().min(SHOWN_MAX) + 8);
        for segment in self.path.split('/').skip(1) {
            if endpoint.len() >= SHOWN_MAX {
                endpoint.push_str("/…");
                break;
            }
            endpoint.push('/');
            endpoint.push_str(if names_a_thing(segment) { segment } else { "{id}" });
        }
        endpoint
    }
}

/// Words and versions (`v3`, `2026-03`) say what is called. Everything else may say whom it is about.
fn names_a_thing(segment: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_word = segment.len() <= 40
        && segment
            .bytes()
            .all(|byte| byte.is_ascii_alphabetic() || byte == b'-' || byte == b'_');
    let is_version = segment.len() <= 4 && segment.strip_prefix('v').is_some_and(is_number);
    let is_date = segment.len() == 7
        && segment
            .split_once('-')
            .is_some_and(|(year, month)| year.len() == 4 && is_number(year) && is_number(month));
    is_word || is_version || is_date
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_provider_does_not_do_speaks_of_it() {
        let retry_after = Duration::from_secs(1);
        for kind in [
            RefusalKind::Keep(KeepError::StoreUnavailable { retry_after }),
            RefusalKind::Keep(KeepError::Overloaded { retry_after }),
            RefusalKind::BudgetExhausted {
                retry_after,
                policy: None,
            },
            RefusalKind::OutcomeStillUnknown { look_up: None },
        ] {
            assert!(!kind.speaks_of_the_provider(), "{kind:?}");
        }
        for kind in [
            RefusalKind::ProviderSilent { retry_after },
            RefusalKind::UpstreamUnreachable,
            RefusalKind::UpstreamTimeout,
            RefusalKind::OutcomeUnknown { look_up: None },
        ] {
            assert!(kind.speaks_of_the_provider(), "{kind:?}");
        }
    }

    #[test]
    fn an_endpoint_names_what_is_called_and_not_whom_it_is_about() {
        let check = |target: &str, endpoint: &str| {
            assert_eq!(
                CallRecord::new(http::Method::GET, target).endpoint(),
                endpoint,
                "{target}"
            );
        };
        check(
            "/crm/v3/objects/contacts/51?a=ann@example.com",
            "/crm/v3/objects/contacts/{id}",
        );
        check(
            "/crm/objects/2026-03/contacts/search",
            "/crm/objects/2026-03/contacts/search",
        );
        check(
            "/crm/v3/objects/contacts/ann%40example.com",
            "/crm/v3/objects/contacts/{id}",
        );
        check(
            "/crm/v3/objects/2-1234/batch/read",
            "/crm/v3/objects/{id}/batch/read",
        );
        check("/x/0198c6e2-7a5b-7000-8000-000000000000", "/x/{id}");
        check("/", "/");
        let long = CallRecord::new(http::Method::GET, &"/abc".repeat(9000)).endpoint();
        assert!(long.len() < 300, "{}", long.len());
    }
}
