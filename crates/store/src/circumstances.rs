//! What stood around an event, in words that are kept: in the history, and in the lifeboat until it gets there.

use std::time::Duration;

use evergrant_domain::Version;
use evergrant_domain::api_answer::Class;
use evergrant_domain::event::{Circumstances, RefreshReason};
use serde::{Deserialize, Serialize};

/// [`Circumstances`], word for word. What a newer program added is passed over when it is read, and a word that it knows alone
/// reads as none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptCircumstances {
    #[serde(skip_serializing_if = "Option::is_none")]
    provider_correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds_remaining: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_version: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failures_before: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<u64>,
}

impl From<Circumstances> for KeptCircumstances {
    fn from(circumstances: Circumstances) -> Self {
        let Circumstances {
            provider_correlation_id,
            request_id,
            by,
            reason,
            class,
            attempt,
            status_code,
            method,
            endpoint,
            seconds_remaining,
            token_version,
            failures_before,
            took,
        } = circumstances;
        Self {
            provider_correlation_id,
            request_id,
            by,
            reason: reason.map(|reason| reason.as_str().to_owned()),
            class: class.map(|class| class.as_str().to_owned()),
            attempt,
            status_code,
            method,
            endpoint,
            seconds_remaining,
            token_version: token_version.map(Version::number),
            failures_before,
            took_ms: took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

impl From<KeptCircumstances> for Circumstances {
    fn from(kept: KeptCircumstances) -> Self {
        let class = |word: String| Class::ALL.into_iter().find(|class| class.as_str() == word);
        Self {
            provider_correlation_id: kept.provider_correlation_id,
            request_id: kept.request_id,
            by: kept.by,
            reason: kept.reason.and_then(|word| RefreshReason::from_word(&word)),
            class: kept.class.and_then(class),
            attempt: kept.attempt,
            status_code: kept.status_code,
            method: kept.method,
            endpoint: kept.endpoint,
            seconds_remaining: kept.seconds_remaining,
            token_version: kept.token_version.map(Version::new),
            failures_before: kept.failures_before,
            took: kept.took_ms.map(Duration::from_millis),
        }
    }
}
