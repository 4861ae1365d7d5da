//! The tokens at hand: what a call with a fresh token reads, without a store, a lock or a copy.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use evergrant_domain::refresh_policy::{Ends, satisfies_min_ttl};
use evergrant_domain::{
    AccessToken, AccountId, App, ConnectionId, Customer, Kind, RefreshToken, ShownToken, Timestamp, TokenSet,
    Version,
};
use evergrant_metrics::AppSeries;
use evergrant_store::contract::Held;
use foldhash::quality::RandomState;
use http::HeaderValue;
use parking_lot::Mutex;

use crate::keeper::millis;
use crate::throttle::AT_MOST_EVERY;

/// A token set as callers use it: the access token, never the refresh token.
#[derive(Debug)]
pub struct Current {
    /// Whose.
    pub connection: ConnectionId,
    /// Its app.
    pub app: Arc<App>,
    /// Where its calls are counted.
    pub series: AppSeries,
    /// Its customer.
    pub customer: Customer,
    /// The provider's account, where it is known: what the provider counts calls by.
    pub account: Option<AccountId>,
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
    pub(crate) rest: Rest,
    /// The ends by the machine's boot-time clock, which nobody sets.
    pub(crate) soft: Duration,
    pub(crate) hard: Duration,
    /// Boot-time milliseconds before which no refresh is begun behind a call: the last one failed.
    pub(crate) rest_until: AtomicU64,
    /// Boot-time milliseconds before which it need not be looked at whether the history should tell that it was handed out.
    told_until: AtomicU64,
    /// What a service shows of it each time it is asked for: see [`Current::shown`].
    shown: OnceLock<ShownToken>,
}

/// What callers never see: with it, a store that has lost this token set is given it back. PROTOCOL rule 18.
#[derive(Debug)]
pub(crate) struct Rest {
    pub(crate) refresh_token: Option<RefreshToken>,
    pub(crate) scopes: Vec<String>,
    pub(crate) unproven: bool,
    /// Which life of this id, and which consent, it belongs to.
    pub(crate) created_at: Timestamp,
    pub(crate) connected_at: Timestamp,
}

impl Current {
    /// Of two sets of one id, the one with the higher place is the newer. An id that was erased may stand for another connection
    /// later, whose versions begin anew.
    fn place(&self) -> (Timestamp, Version) {
        (self.rest.created_at, self.version)
    }

    /// The whole set, as it is stored.
    pub(crate) fn token_set(&self) -> TokenSet {
        TokenSet {
            access_token: self.access_token.clone(),
            refresh_token: self.rest.refresh_token.clone(),
            token_type: self.token_type.clone(),
            scopes: self.rest.scopes.clone(),
            issued_at: self.issued_at,
            ends: self.ends,
            unproven: self.rest.unproven,
        }
    }

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

    /// Whether the history has been told lately that it was handed out.
    pub(crate) fn was_told_of(&self, boot: Duration) -> bool {
        millis(boot) < self.told_until.load(Ordering::Relaxed)
    }

    /// It is being told at `boot`.
    pub(crate) fn told_of_at(&self, boot: Duration) {
        let until = millis(boot + AT_MOST_EVERY);
        self.told_until.store(until, Ordering::Relaxed);
    }

    /// What a service says each time that it hands it out, put together the first time.
    pub fn shown(&self, put_together: impl FnOnce(&Self) -> ShownToken) -> &ShownToken {
        self.shown.get_or_init(|| put_together(self))
    }

    pub(crate) fn satisfies(&self, min_ttl: Option<Duration>, now: Timestamp) -> bool {
        min_ttl.is_none_or(|min_ttl| satisfies_min_ttl(self.issued_at, self.ends, min_ttl, now))
    }

    /// Makes what was read usable. `None` where there is no token set, or one that cannot stand in a header.
    pub(crate) fn of(
        held: &Held,
        app: Arc<App>,
        series: AppSeries,
        now: Timestamp,
        boot: Duration,
    ) -> Option<Self> {
        let tokens = held.tokens.as_ref()?;
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", tokens.access_token.expose())).ok()?;
        bearer.set_sensitive(true);
        let by_boot = |end: Timestamp| boot.saturating_add(end.since(now));
        Some(Self {
            connection: held.connection.id.clone(),
            app,
            series,
            customer: held.connection.customer.clone(),
            account: held.connection.account.as_ref().map(|account| account.id.clone()),
            kind: held.connection.kind,
            access_token: tokens.access_token.clone(),
            bearer,
            token_type: tokens.token_type.clone(),
            version: held.connection.version,
            issued_at: tokens.issued_at,
            expires_at: tokens.ends.expires,
            ends: tokens.ends,
            rest: Rest {
                refresh_token: tokens.refresh_token.clone(),
                scopes: tokens.scopes.clone(),
                unproven: tokens.unproven,
                created_at: held.connection.created_at,
                connected_at: held.connection.connected_at,
            },
            soft: by_boot(tokens.ends.soft),
            hard: by_boot(tokens.ends.hard),
            rest_until: AtomicU64::new(0),
            told_until: AtomicU64::new(0),
            shown: OnceLock::new(),
        })
    }
}

/// Connections in use, by id. Reads take no lock.
///
/// What other processes did arrives through [`Cache::doubt`]: what is doubted does not serve until the store was read again, and
/// is remembered all the same, for the store may be the one that forgot. Somebody who read the store just before, and keeps just
/// after, would bring the old state back for good; so whoever keeps says which [`Sight`] it was read under.
#[derive(Debug)]
pub(crate) struct Cache {
    tokens: papaya::HashMap<ConnectionId, Entry, RandomState>,
    /// How often connections were doubted or forgotten, counted in shards by their id.
    moved: Box<[AtomicU64; SHARDS]>,
    hasher: BuildHasherDefault<DefaultHasher>,
    /// Those whose record is to be read again although nobody asks for them.
    to_compare: Mutex<BTreeSet<ConnectionId>>,
}

#[derive(Debug, Clone)]
struct Entry {
    token: Arc<Current>,
    serves: bool,
}

const SHARDS: usize = 1024;

/// How long a token set is remembered after its end although nobody asks for it: should the store have lost it, it is given back.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// Taken before the store is read: what stood there then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sight(u64);

impl Default for Cache {
    fn default() -> Self {
        Self {
            tokens: papaya::HashMap::with_hasher(RandomState::default()),
            moved: Box::new([const { AtomicU64::new(0) }; SHARDS]),
            hasher: BuildHasherDefault::new(),
            to_compare: Mutex::default(),
        }
    }
}

impl Cache {
    /// What may serve.
    pub(crate) fn find(&self, id: &ConnectionId) -> Option<Arc<Current>> {
        self.tokens
            .pin()
            .get(id)
            .filter(|entry| entry.serves)
            .map(|entry| entry.token.clone())
    }

    /// The newest that this process has seen, whether it may serve or not.
    pub(crate) fn newest(&self, id: &ConnectionId) -> Option<Arc<Current>> {
        self.tokens.pin().get(id).map(|entry| entry.token.clone())
    }

    /// To be taken before the store is read.
    pub(crate) fn sight(&self, id: &ConnectionId) -> Sight {
        Sight(self.shard(id).load(Ordering::SeqCst))
    }

    /// Keeps the newer of what is there and what comes; it serves unless the connection moved since `sight`.
    pub(crate) fn keep(&self, current: &Arc<Current>, sight: Sight) {
        let tokens = self.tokens.pin();
        let comes = Entry {
            token: current.clone(),
            serves: true,
        };
        tokens.update_or_insert_with(
            current.connection.clone(),
            |there| {
                if there.token.place() > current.place() {
                    there.clone()
                } else {
                    comes.clone()
                }
            },
            || comes.clone(),
        );
        // After the insertion: whoever doubts counts first and marks then, so one of the two marks in any case.
        if self.sight(&current.connection).0 != sight.0 {
            self.mark(&current.connection);
        }
    }

    /// Something about the connection changed, as of `version`: what is at hand does not serve before the store is read.
    pub(crate) fn doubt(&self, id: &ConnectionId, version: Version) {
        self.moved(id);
        let tokens = self.tokens.pin();
        // Somebody has stored a newer one: nobody needs ours any more.
        match tokens.get(id) {
            Some(entry) if entry.token.version < version => {
                tokens.remove(id);
            }
            Some(_) => self.mark(id),
            None => {}
        }
    }

    /// Anything may have changed: nothing serves before the store is read, and everything is compared with it.
    pub(crate) fn doubt_all(&self) {
        for shard in self.moved.iter() {
            shard.fetch_add(1, Ordering::SeqCst);
        }
        let tokens = self.tokens.pin();
        let ids: Vec<ConnectionId> = tokens.keys().cloned().collect();
        for id in &ids {
            self.mark(id);
        }
        self.to_compare.lock().extend(ids);
    }

    /// Some of those that are to be compared with the store, in the order of their ids.
    pub(crate) fn next_to_compare(&self, at_most: usize) -> Vec<ConnectionId> {
        let mut ids = self.to_compare.lock();
        let mut next = Vec::new();
        while next.len() < at_most
            && let Some(id) = ids.pop_first()
        {
            next.push(id);
        }
        next
    }

    /// They could not be compared; later.
    pub(crate) fn compare_later(&self, ids: impl IntoIterator<Item = ConnectionId>) {
        self.to_compare.lock().extend(ids);
    }

    /// What is at hand is of no use to anybody any more.
    pub(crate) fn forget(&self, id: &ConnectionId) {
        self.moved(id);
        self.tokens.pin().remove(id);
    }

    /// Lets go of what has ended so long before `boot` that its connection is not in use any more.
    pub(crate) fn let_go(&self, boot: Duration) {
        self.tokens
            .pin()
            .retain(|_, entry| boot < entry.token.hard.saturating_add(REMEMBERED));
    }

    fn mark(&self, id: &ConnectionId) {
        self.tokens.pin().update(id.clone(), |entry| Entry {
            serves: false,
            ..entry.clone()
        });
    }

    fn moved(&self, id: &ConnectionId) {
        self.shard(id).fetch_add(1, Ordering::SeqCst);
    }

    fn shard(&self, id: &ConnectionId) -> &AtomicU64 {
        let hash = self.hasher.hash_one(id);
        &self.moved[usize::try_from(hash % SHARDS as u64).unwrap_or(0)]
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
            series: AppSeries::default(),
            customer: Customer::parse("acme").expect("a literal customer"),
            account: None,
            kind: Kind::OAuth,
            access_token: AccessToken::new("canary-access-token"),
            bearer: HeaderValue::from_static("Bearer x"),
            token_type: "bearer".into(),
            version: Version::new(version),
            issued_at: at,
            expires_at: at,
            ends: RefreshPolicy::Queue.ends(at, Duration::from_secs(1800), Jitter::NONE),
            rest: Rest {
                refresh_token: Some(RefreshToken::new("canary-refresh-token")),
                scopes: vec![],
                unproven: false,
                created_at: at,
                connected_at: at,
            },
            soft: Duration::ZERO,
            hard: Duration::ZERO,
            rest_until: AtomicU64::new(0),
            told_until: AtomicU64::new(0),
            shown: OnceLock::new(),
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
    fn a_connection_that_was_made_anew_takes_the_place_of_the_one_that_was_erased() {
        let cache = Cache::default();
        let erased = current(7);
        let mut anew = Arc::into_inner(current(1)).expect("the only one");
        anew.rest.created_at = Timestamp::from_millis(1);
        for token in [&erased, &Arc::new(anew), &erased] {
            cache.keep(token, cache.sight(&token.connection));
        }
        let found = cache.find(&erased.connection).map(|token| token.version);
        assert_eq!(found, Some(Version::new(1)));
    }

    #[test]
    fn what_was_read_before_a_change_does_not_serve_after_it() {
        let cache = Cache::default();
        let token = current(1);
        let id = token.connection.clone();
        let keep_across = |change: &dyn Fn()| {
            let sight = cache.sight(&id);
            change();
            cache.keep(&token, sight);
            assert!(cache.find(&id).is_none());
            cache.keep(&token, cache.sight(&id));
            assert!(cache.find(&id).is_some());
        };
        keep_across(&|| cache.forget(&id));
        keep_across(&|| cache.doubt(&id, Version::new(1)));
        keep_across(&|| cache.doubt(&id, Version::new(2)));
        keep_across(&|| cache.doubt_all());
    }

    #[test]
    fn what_is_doubted_does_not_serve_and_is_remembered_unless_somebody_has_newer() {
        let cache = Cache::default();
        let token = current(2);
        let id = token.connection.clone();
        for (told, remembered) in [(1, true), (2, true), (3, false)] {
            cache.keep(&token, cache.sight(&id));
            cache.doubt(&id, Version::new(told));
            assert!(cache.find(&id).is_none(), "told of {told}");
            assert_eq!(cache.newest(&id).is_some(), remembered, "told of {told}");
        }
        cache.keep(&token, cache.sight(&id));
        cache.doubt_all();
        assert!(cache.find(&id).is_none());
        assert_eq!(
            cache.newest(&id).map(|token| token.version),
            Some(Version::new(2))
        );
        assert_eq!(cache.next_to_compare(9), [id]);
        assert!(cache.next_to_compare(9).is_empty());
    }

    #[test]
    fn what_nobody_has_used_for_a_day_after_its_end_is_let_go() {
        let cache = Cache::default();
        let token = current(1);
        cache.keep(&token, cache.sight(&token.connection));
        for (boot, there) in [(REMEMBERED / 2, true), (REMEMBERED, false)] {
            cache.let_go(boot);
            assert_eq!(cache.newest(&token.connection).is_some(), there, "{boot:?}");
        }
    }

    #[test]
    fn what_callers_never_see_does_not_show() {
        let shown = format!("{:?}", current(1));
        assert!(!shown.contains("canary"), "{shown}");
    }
}
