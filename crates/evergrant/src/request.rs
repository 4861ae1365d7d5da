//! What a request may ask of the gateway, in words of its own instead of headers.

use std::time::Duration;

use evergrant_domain::call_budget::Lane;
use http::request::Builder;

/// Asks the gateway for something beside the call itself. These are headers, removed before the request is sent; a value that is no
/// header's makes the builder fail, as any other does.
pub trait RequestExt: Sized {
    /// Carries a write out once, however often it is sent with this key for this connection within 24 hours: later ones get the
    /// first one's answer. At most 255 bytes.
    #[must_use]
    fn idempotency_key(self, key: &str) -> Self;

    /// Carries a write out once, however often the same one is sent within this time; whole seconds count.
    #[must_use]
    fn dedupe_within(self, window: Duration) -> Self;

    /// Creates an object only where a look-up finds none with the same value of this property, which must be unique.
    #[must_use]
    fn read_before_write(self, property: &str) -> Self;

    /// How urgent the call is.
    #[must_use]
    fn lane(self, lane: Lane) -> Self;

    /// How long it may wait for its turn in the provider's budget; whole seconds count, up to 60.
    #[must_use]
    fn max_wait(self, wait: Duration) -> Self;

    /// Wishes for a token that still lives so long; whole seconds count.
    #[must_use]
    fn min_ttl(self, ttl: Duration) -> Self;
}

impl RequestExt for Builder {
    fn idempotency_key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    fn dedupe_within(self, window: Duration) -> Self {
        self.header(
            "evergrant-dedupe",
            format!("fingerprint;window={}", window.as_secs()),
        )
    }

    fn read_before_write(self, property: &str) -> Self {
        self.header(
            "evergrant-guard",
            format!("read-before-write;property={property}"),
        )
    }

    fn lane(self, lane: Lane) -> Self {
        self.header("evergrant-lane", lane.as_str())
    }

    fn max_wait(self, wait: Duration) -> Self {
        self.header("evergrant-max-wait", wait.as_secs())
    }

    fn min_ttl(self, ttl: Duration) -> Self {
        self.header("evergrant-min-ttl", ttl.as_secs())
    }
}
