//! The tokens at hand: what a call with a fresh token reads, without a store, a lock or a copy.

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use evergrant_domain::refresh_policy::{Ends, satisfies_min_ttl};
use evergrant_domain::{AccessToken, App, ConnectionId, Customer, Kind, Timestamp, Version};
use evergrant_store::contract::Held;
use http::HeaderValue;

use crate::keeper::millis;

/// A token set as callers use it: the access token, never the refresh token.
#[derive(Debug)]
pub struct Current {
    /// Whose.
    pub connection: ConnectionId,
    /// Its app.
    pub app: Arc<App>,
    /// Its customer.
    pub customer: Customer,
    /// Whether there is anything to refresh.
    pub kind: Kind,
    /// The access token.
    pub access_token: AccessToken,
    /// `Bearer` and the token (RFC 6750 §2.1), marked sensitive.
    pub bearer: HeaderValue,
    /// As the provider wrote it.
    pub token_type: String,
    /// Which version.
    pub version: Version,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    pub(crate) ends: Ends,
    /// The ends by the machine's boot-time clock, which nobody sets.
    pub(crate) soft: Duration,
    pub(crate) hard: Duration,
    /// Boot-time milliseconds before which no refresh is begun behind a call: the last one failed.
    pub(crate) rest_until: AtomicU64,
}

impl Current {
    /// Whole seconds it still lives; negative once it has ended.
    pub fn seconds_remaining(&self, now: Timestamp) -> i64 {
        self.expires_at.seconds_from(now)
    }

    /// No refresh is begun behind a call before `boot`.
    pub(crate) fn rest_until(&self, boot: Duration) {
        self.rest_until.store(millis(boot), Ordering::Relaxed);
    }

    pub(crate) fn rests(&self, boot: Duration) -> bool {
        millis(boot) < self.rest_until.load(Ordering::Relaxed)
    }

    pub(crate) fn satisfies(&self, min_ttl: Option<Duration>, now: Timestamp) -> bool {
        min_ttl.is_none_or(|min_ttl| satisfies_min_ttl(self.issued_at, self.ends, min_ttl, now))
    }

    /// Makes what was read usable. `None` where there is no token set, or one that cannot stand in a header.
    pub(crate) fn of(held: &Held, app: Arc<App>, now: Timestamp, boot: Duration) -> Option<Self> {
        let tokens = held.tokens.as_ref()?;
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", tokens.access_token.expose())).ok()?;
        bearer.set_sensitive(true);
        let by_boot = |end: Timestamp| boot.saturating_add(end.since(now));
        Some(Self {
            connection: held.connection.id.clone(),
            app,
            customer: held.connection.customer.clone(),
            kind: held.connection.kind,
            access_token: tokens.access_token.clone(),
            bearer,
            token_type: tokens.token_type.clone(),
            version: held.connection.version,
            issued_at: tokens.issued_at,
            expires_at: tokens.ends.expires,
            ends: tokens.ends,
            soft: by_boot(tokens.ends.soft),
            hard: by_boot(tokens.ends.hard),
            rest_until: AtomicU64::new(0),
        })
    }
}

/// Connections in use, by id. Reads take no lock.
///
/// What other processes did arrives through [`Cache::forget`]. Somebody who read the store just before, and keeps just after,
/// would bring the old state back for good; so whoever keeps says which [`Sight`] it was read under.
#[derive(Debug)]
pub(crate) struct Cache {
    tokens: papaya::HashMap<ConnectionId, Arc<Current>>,
    /// How often connections were forgotten, counted in shards by their id.
    forgotten: Box<[AtomicU64; SHARDS]>,
    hasher: std::hash::RandomState,
}

const SHARDS: usize = 1024;

/// Taken before the store is read: what stood there then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sight(u64);

impl Default for Cache {
    fn default() -> Self {
        Self {
            tokens: papaya::HashMap::new(),
            forgotten: Box::new([const { AtomicU64::new(0) }; SHARDS]),
            hasher: std::hash::RandomState::new(),
        }
    }
}

impl Cache {
    pub(crate) fn find(&self, id: &ConnectionId) -> Option<Arc<Current>> {
        self.tokens.pin().get(id).cloned()
    }

    /// To be taken before the store is read.
    pub(crate) fn sight(&self, id: &ConnectionId) -> Sight {
        Sight(self.shard(id).load(Ordering::SeqCst))
    }

    /// Keeps the newer of what is there and what comes, unless the connection was forgotten since `sight`.
    pub(crate) fn keep(&self, current: &Arc<Current>, sight: Sight) {
        let tokens = self.tokens.pin();
        tokens.update_or_insert_with(
            current.connection.clone(),
            |there| {
                if there.version > current.version {
                    there.clone()
                } else {
                    current.clone()
                }
            },
            || current.clone(),
        );
        // After the insertion: whoever forgets counts first and removes then, so one of the two removes in any case.
        if self.sight(&current.connection).0 != sight.0 {
            tokens.remove(&current.connection);
        }
    }

    pub(crate) fn forget(&self, id: &ConnectionId) {
        self.shard(id).fetch_add(1, Ordering::SeqCst);
        self.tokens.pin().remove(id);
    }

    pub(crate) fn clear(&self) {
        for shard in self.forgotten.iter() {
            shard.fetch_add(1, Ordering::SeqCst);
        }
        self.tokens.pin().clear();
    }

    fn shard(&self, id: &ConnectionId) -> &AtomicU64 {
        let hash = self.hasher.hash_one(id);
        &self.forgotten[usize::try_from(hash % SHARDS as u64).unwrap_or(0)]
    }
}

#[cfg(test)]
mod tests {
    use evergrant_domain::refresh_policy::{Jitter, RefreshPolicy};

    use super::*;

    fn current(version: i64) -> Arc<Current> {
        let at = Timestamp::from_millis(0);
        Arc::new(Current {
            connection: ConnectionId::parse("c1").expect("a literal id"),
            app: Arc::new(crate::app::app("http://127.0.0.1:1")),
            customer: Customer::parse("acme").expect("a literal customer"),
            kind: Kind::OAuth,
            access_token: AccessToken::new("canary-access-token"),
            bearer: HeaderValue::from_static("Bearer x"),
            token_type: "bearer".into(),
            version: Version::new(version),
            issued_at: at,
            expires_at: at,
            ends: RefreshPolicy::Queue.ends(at, Duration::from_secs(1800), Jitter::NONE),
            soft: Duration::ZERO,
            hard: Duration::ZERO,
            rest_until: AtomicU64::new(0),
        })
    }

    #[test]
    fn an_older_version_never_takes_the_place_of_a_newer_one() {
        let cache = Cache::default();
        for version in [2, 1] {
            let token = current(version);
            cache.keep(&token, cache.sight(&token.connection));
        }
        let id = current(1).connection.clone();
        assert_eq!(cache.find(&id).map(|token| token.version), Some(Version::new(2)));
    }

    #[test]
    fn what_was_read_before_a_change_is_not_kept_after_it() {
        let cache = Cache::default();
        let token = current(1);
        let sight = cache.sight(&token.connection);
        cache.forget(&token.connection);
        cache.keep(&token, sight);
        assert!(cache.find(&token.connection).is_none());
        let sight = cache.sight(&token.connection);
        cache.clear();
        cache.keep(&token, sight);
        assert!(cache.find(&token.connection).is_none());
    }
}
