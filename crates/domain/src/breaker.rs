//! When a token endpoint is left alone: it fails for all connections of an app, so one is enough to find out.

use std::time::Duration;

use crate::time::Timestamp;

/// The failures of an app's token endpoint in a row, over the whole fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    /// How often in a row.
    pub failures: u32,
    /// What failed last, one word.
    pub code: String,
    /// Until when only a probe is sent.
    pub rest_until: Timestamp,
}

impl Breaker {
    /// After one more failure.
    pub fn next(last: Option<&Self>, code: String, retry_after: Option<Duration>, now: Timestamp) -> Self {
        let failures = last.map_or(0, |breaker| breaker.failures).saturating_add(1);
        Self {
            failures,
            code,
            rest_until: now.after(retry_after.unwrap_or_default()),
        }
    }
}
