//! Who asks: API keys, and what a key may see and do.
//!
//! Keys are known by their hash. Those that are in use are kept in memory for as long as no process makes or revokes a key
//! (the keeper's `keys_generation`), so a call costs a hash and a look into a map, and a revocation is felt within a second.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use evergrant_domain::access::{Limits, Role};
use evergrant_domain::call_budget::Lane;
use evergrant_domain::trust::{STORE_ANSWERS_WITHIN, Trust};
use evergrant_domain::{AppName, Connection, ConnectionId, Customer};
use evergrant_gateway::Terms;
use evergrant_keeper::{Asker, Keeper};
use evergrant_metrics::Shards;
use evergrant_store::contract::ApiKey;
use evergrant_store::vault::random_token;
use http::{HeaderMap, header};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::in_flight::InFlight;
use crate::problem::{Code, Problem};
use crate::trace::single;

const PREFIX: &str = "evg_";
const KEY_BYTES: usize = 32;
/// 32 bytes in base64url without padding.
const KEY_TEXT: usize = 43;

/// Look-ups of keys that are not at hand, at a time. Made-up keys cost the store that much and no more.
const LOOKUPS: usize = 16;
/// How long a look-up waits for its turn.
const LOOKUP_WAIT: Duration = Duration::from_secs(2);

/// Makes a key and the hash that is kept of it.
pub(crate) fn new_key() -> (String, [u8; 32]) {
    let key = format!("{PREFIX}{}", random_token(KEY_BYTES));
    let hash = sha256(key.as_bytes());
    (key, hash)
}

/// SHA-256: the keys and states that it is used for are random, so nothing slower is needed.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// Whoever makes a call: the operator at the machine itself, or the holder of an API key.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    key: Option<Arc<KnownKey>>,
    /// The request, where it goes to the router.
    request_id: Option<Arc<str>>,
    /// When its key was found at hand, in boot time; where nothing need be looked up for it since.
    seen_at: Option<Duration>,
}

/// A key, and on which terms it calls through the gateway.
#[derive(Debug)]
struct KnownKey {
    record: ApiKey,
    is_limited: bool,
    terms: Terms,
    in_flight: InFlight,
}

impl KnownKey {
    /// `in_flight`: its calls go on while it is looked up again.
    fn new(record: ApiKey, in_flight: InFlight) -> Self {
        let terms = Terms {
            caller: Some(record.id.as_str().into()),
            lane: record.lane.as_deref().and_then(Lane::parse),
            max_wait: record.max_wait.map(|seconds| Duration::from_secs(seconds.into())),
            held: None,
        };
        Self {
            is_limited: record.limits != Limits::default(),
            record,
            terms,
            in_flight,
        }
    }
}

impl Caller {
    /// Who works on the store itself and needs no key.
    pub(crate) const OPERATOR: Self = Self {
        key: None,
        request_id: None,
        seen_at: None,
    };

    /// The same in this request.
    pub(crate) fn in_request(mut self, request_id: &str) -> Self {
        self.request_id = Some(request_id.into());
        // Its body may be on its way for a while.
        self.seen_at = None;
        self
    }

    /// How the history names it, in this request.
    pub(crate) fn asker<'a>(&'a self, request_id: Option<&'a str>) -> Asker<'a> {
        Asker {
            by: Some(self.key.as_ref().map_or("operator", |key| key.record.id.as_str())),
            request_id,
        }
    }

    /// The same in the request that it came with.
    pub(crate) fn asked(&self) -> Asker<'_> {
        self.asker(self.request_id.as_deref())
    }

    /// When it was seen, in boot time: now, unless something was waited for since.
    pub(crate) fn seen_at(&self) -> Option<Duration> {
        self.seen_at
    }

    /// What it is limited to; `None` for nothing.
    pub(crate) fn limits(&self) -> Option<&Limits> {
        self.key
            .as_ref()
            .filter(|key| key.is_limited)
            .map(|key| &key.record.limits)
    }

    /// What to filter lists by.
    pub(crate) fn filter(&self) -> Limits {
        self.limits().cloned().unwrap_or_default()
    }

    /// How it is named in a history.
    pub(crate) fn shown(&self) -> String {
        self.key.as_ref().map_or_else(
            || "the operator".to_owned(),
            |key| format!("API key {}", key.record.id),
        )
    }

    /// The key's id; the operator has none.
    pub(crate) fn key_id(&self) -> Option<&str> {
        self.key.as_ref().map(|key| key.record.id.as_str())
    }

    /// What the key is called by those who made it.
    pub(crate) fn key_name(&self) -> &str {
        self.key.as_ref().map_or("the operator", |key| &key.record.name)
    }

    fn role(&self) -> Role {
        self.key.as_ref().map_or(Role::Admin, |key| key.record.role)
    }

    /// On which terms it calls through the gateway; the operator's calls say it themselves.
    pub(crate) fn terms(&self) -> Cow<'_, Terms> {
        match &self.key {
            Some(key) => Cow::Borrowed(&key.terms),
            None => Cow::Owned(Terms::default()),
        }
    }

    /// Whether its key still counts: for what goes on for long. `generation` is what was known of the keys when it was last looked up.
    pub(crate) async fn lives(&self, keeper: &Keeper, generation: &mut Option<u64>) -> bool {
        let Some(key) = &self.key else { return true };
        let lives = |record: &ApiKey| {
            record.revoked_at.is_none() && record.expires_at.is_none_or(|end| end > keeper.clock().now())
        };
        if !lives(&key.record) {
            return false;
        }
        let now = keeper.keys_generation();
        if *generation == Some(now) {
            return true;
        }
        match keeper.store().keys().await {
            Ok(keys) => {
                *generation = Some(now);
                keys.iter()
                    .any(|record| record.id == key.record.id && lives(record))
            }
            // What is known without the store counts for as long as cached tokens do.
            Err(_) => keeper.trust() != Trust::Lapsed,
        }
    }

    /// Its calls in flight.
    pub(crate) fn in_flight(&self) -> Option<&InFlight> {
        self.key.as_ref().map(|key| &key.in_flight)
    }

    /// Refuses where the role does not include `needed`.
    pub(crate) fn require(&self, needed: Role) -> Result<(), Problem> {
        if self.role().includes(needed) {
            return Ok(());
        }
        Err(Problem::because(
            Code::Forbidden,
            format!(
                "this takes the role {}; the key's role is {}",
                needed.as_str(),
                self.role().as_str()
            ),
        ))
    }

    /// Whether an app lies within the key's limits.
    pub(crate) fn sees_app(&self, app: &AppName) -> bool {
        self.limits().is_none_or(|limits| limits.admit_app(app))
    }

    /// Whether a connection lies within the key's limits.
    pub(crate) fn sees(&self, connection: &Connection) -> bool {
        self.limits().is_none_or(|limits| limits.admit(connection))
    }

    /// Whether a connection of this app and customer, with this id or a new one, lies within the key's limits.
    pub(crate) fn sees_parts(&self, app: &AppName, customer: &Customer, id: Option<&ConnectionId>) -> bool {
        self.limits().is_none_or(|limits| match id {
            Some(id) => limits.admit_parts(app, customer, id),
            None => limits.admit_new(app, customer),
        })
    }

    /// Whether it may make, see and revoke a key with these limits: one that reaches no further than itself.
    pub(crate) fn may_grant(&self, limits: &Limits) -> bool {
        fn within<T: PartialEq>(own: &[T], granted: &[T]) -> bool {
            own.is_empty() || (!granted.is_empty() && granted.iter().all(|one| own.contains(one)))
        }
        self.limits().is_none_or(|own| {
            within(&own.apps, &limits.apps)
                && within(&own.customers, &limits.customers)
                && within(&own.connections, &limits.connections)
        })
    }

    /// The record, where there is one that the key may see: what the role then does not allow is 403, everything else looks as
    /// if it did not exist.
    pub(crate) async fn connection(
        &self,
        keeper: &Keeper,
        id: &ConnectionId,
        needed: Role,
    ) -> Result<Connection, Problem> {
        let connection = keeper.store().connection(id).await?;
        let connection = connection
            .filter(|connection| self.sees(connection))
            .ok_or_else(|| Problem::unknown_connection(id))?;
        self.require(needed)?;
        Ok(connection)
    }

    /// As [`Caller::connection`], where the record itself is not needed: what is at hand says whose a connection is, without a
    /// look into the store. For a key without limits everything is its own; what does not exist shows later.
    pub(crate) async fn admit(
        &self,
        keeper: &Keeper,
        id: &ConnectionId,
        needed: Role,
    ) -> Result<(), Problem> {
        if self.role().includes(needed) {
            let Some(limits) = self.limits() else {
                return Ok(());
            };
            if let Some(known) = keeper.at_hand(id)
                && limits.admit_parts(&known.app.name, &known.customer, id)
            {
                return Ok(());
            }
        }
        // Whatever is refused is refused by the record itself, so that all refusals cost alike.
        Box::pin(self.connection(keeper, id, needed)).await.map(|_| ())
    }
}

/// The keys in use. Each thread has its own copies: most calls show the same key, and counting who holds it would be a matter between
/// all threads.
pub(crate) struct Keys {
    at_hand: Shards<Mutex<ByHash<AtHand>>>,
    /// The calls in flight of each key that is at hand somewhere.
    in_flight: Mutex<ByHash<InFlight>>,
    lookups: Semaphore,
}

type ByHash<T> = HashMap<[u8; 32], T, BuildHasherDefault<Itself>>;

#[derive(Clone)]
struct AtHand {
    key: Arc<KnownKey>,
    generation: u64,
}

/// A hash is its own hash: nobody can choose what it begins with.
#[derive(Default)]
struct Itself(u64);

impl Hasher for Itself {
    fn write(&mut self, bytes: &[u8]) {
        // Its length comes first, as a number.
        if bytes.len() > size_of::<usize>()
            && let Some(begin) = bytes.first_chunk()
        {
            self.0 = u64::from_le_bytes(*begin);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            at_hand: Shards::default(),
            in_flight: Mutex::default(),
            lookups: Semaphore::new(LOOKUPS),
        }
    }
}

impl Keys {
    /// Whose key the request carries.
    pub(crate) async fn caller(&self, keeper: &Keeper, headers: &HeaderMap) -> Result<Caller, Problem> {
        let refused = || Problem::new(Code::InvalidApiKey);
        let key = bearer(headers).ok_or_else(refused)?;
        // What is at hand has the form of a key.
        self.of(keeper, sha256(key), || is_key(key))
            .await?
            .ok_or_else(refused)
    }

    /// The key of this hash, where there is one that lives.
    pub(crate) async fn by_hash(&self, keeper: &Keeper, hash: [u8; 32]) -> Result<Option<Caller>, Problem> {
        self.of(keeper, hash, || true).await
    }

    /// The same. What is not at hand is looked up only if it may be there.
    async fn of(
        &self,
        keeper: &Keeper,
        hash: [u8; 32],
        may_be: impl Fn() -> bool,
    ) -> Result<Option<Caller>, Problem> {
        let generation = keeper.keys_generation();
        let known = self
            .at_hand
            .here()
            .lock()
            .get(&hash)
            .filter(|known| known.generation == generation)
            .map(|known| known.key.clone());
        let boot = keeper.clock().boot();
        let (key, seen_at) = match known.map(|key| (key, keeper.trust_at(boot))) {
            // What is known without the store counts for as long as cached tokens do.
            Some((key, Trust::Full)) => (Some(key), Some(boot)),
            None if !may_be() => (None, None),
            // In a place of its own: most callers need not carry the room that this takes.
            known => {
                let stored = Box::pin(self.as_stored(keeper, hash, generation, known)).await?;
                (stored, None)
            }
        };
        let has_ended = |end| end <= keeper.clock().now();
        let lives =
            |record: &ApiKey| record.revoked_at.is_none() && !record.expires_at.is_some_and(has_ended);
        Ok(key.filter(|key| lives(&key.record)).map(|key| Caller {
            seen_at: seen_at.filter(|_| !key.is_limited),
            key: Some(key),
            request_id: None,
        }))
    }

    /// The key where what is at hand does not do, or not alone.
    async fn as_stored(
        &self,
        keeper: &Keeper,
        hash: [u8; 32],
        generation: u64,
        known: Option<(Arc<KnownKey>, Trust)>,
    ) -> Result<Option<Arc<KnownKey>>, Problem> {
        let asked = self.look_up(keeper, hash, generation);
        if let Some((key, Trust::Full | Trust::AskFirst)) = known {
            match timeout(STORE_ANSWERS_WITHIN, asked).await {
                Ok(Ok(found)) => Ok(found),
                Ok(Err(_)) | Err(_) => Ok(Some(key)),
            }
        } else {
            asked.await
        }
    }

    async fn look_up(
        &self,
        keeper: &Keeper,
        hash: [u8; 32],
        generation: u64,
    ) -> Result<Option<Arc<KnownKey>>, Problem> {
        let Ok(Ok(_turn)) = timeout(LOOKUP_WAIT, self.lookups.acquire()).await else {
            return Err(Problem::new(Code::Overloaded).retry_after(LOOKUP_WAIT));
        };
        let key = keeper.store().key_by_hash(hash).await?;
        // Only keys that exist are kept, so there are no more than their number.
        if key.is_none() {
            self.at_hand.here().lock().remove(&hash);
            self.in_flight.lock().remove(&hash);
        }
        Ok(key.map(|record| self.keep(hash, record, generation)))
    }

    /// Keeps what was looked up.
    fn keep(&self, hash: [u8; 32], record: ApiKey, generation: u64) -> Arc<KnownKey> {
        // However many threads have it, its calls are counted together.
        let in_flight = self.in_flight.lock().entry(hash).or_default().clone();
        let key = Arc::new(KnownKey::new(record, in_flight));
        let at_hand = AtHand {
            key: key.clone(),
            generation,
        };
        self.at_hand.here().lock().insert(hash, at_hand);
        key
    }

    /// A key that this process revoked is not at hand any more; other processes learn it from the change feed.
    pub(crate) fn forget(&self, id: &str) {
        for part in self.at_hand.all() {
            part.lock().retain(|_, known| known.key.record.id != id);
        }
    }
}

/// What the one `Authorization` header says in place of a key, if it is as long as one. Nothing else is looked at: not the query, not
/// a cookie.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = single(headers, &header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    (scheme.eq_ignore_ascii_case(b"Bearer ") && key.len() == PREFIX.len() + KEY_TEXT).then_some(key)
}

/// Whether a text has the form of a key.
fn is_key(text: &[u8]) -> bool {
    text.strip_prefix(PREFIX.as_bytes()).is_some_and(|random| {
        random.len() == KEY_TEXT
            && random
                .iter()
                .all(|&byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    })
}

/// What a key is looked up by. `None` for what cannot be one.
pub(crate) fn key_hash(text: &str) -> Option<[u8; 32]> {
    let text = text.as_bytes();
    is_key(text).then(|| sha256(text))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use evergrant_domain::Timestamp;
    use http::HeaderValue;

    use super::*;

    fn record() -> ApiKey {
        ApiKey {
            id: "k".to_owned(),
            name: "n".to_owned(),
            role: Role::Gateway,
            limits: Limits::default(),
            lane: None,
            max_wait: None,
            created_at: Timestamp::from_millis(0),
            expires_at: None,
            revoked_at: None,
        }
    }

    #[test]
    fn a_key_that_is_forgotten_is_at_hand_on_no_thread() {
        let keys = Keys::default();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| keys.keep([0; 32], record(), 0));
            }
        });
        let at_hand = || keys.at_hand.all().map(|part| part.lock().len()).sum::<usize>();
        assert!(at_hand() > 0);
        keys.forget("k");
        assert_eq!(at_hand(), 0);
    }

    #[test]
    fn what_waits_for_its_body_is_judged_by_the_time_when_it_has_come() {
        let caller = Caller {
            key: None,
            request_id: None,
            seen_at: Some(Duration::from_secs(1)),
        };
        assert_eq!(caller.in_request("r").seen_at(), None);
    }

    #[test]
    fn however_many_look_a_key_up_first_its_calls_are_counted_together() {
        let record = record();
        for _ in 0..2000 {
            let keys = Keys::default();
            let both = Barrier::new(2);
            let look_up = || {
                both.wait();
                keys.keep([0; 32], record.clone(), 0).in_flight.clone()
            };
            let (one, other) = std::thread::scope(|scope| {
                let one = scope.spawn(look_up);
                let other = scope.spawn(look_up);
                (one.join().unwrap(), other.join().unwrap())
            });
            assert!(one.is(&other));
        }
    }

    #[test]
    fn a_key_is_taken_from_one_well_formed_header_only() {
        let (key, hash) = new_key();
        assert_eq!(hash, sha256(key.as_bytes()));
        let check = |values: &[&str], taken: bool| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(
                    header::AUTHORIZATION,
                    HeaderValue::from_str(value).expect("a literal value"),
                );
            }
            assert_eq!(bearer(&headers).is_some_and(is_key), taken, "{values:?}");
        };
        let whole = format!("Bearer {key}");
        check(&[&whole], true);
        check(&[&format!("bearer {key}")], true);
        check(&[&whole, &whole], false);
        check(&[], false);
        for wrong in ["", "Bearer", "Bearer ", "Basic Zm9vOmJhcg==", &key, &key[..20]] {
            check(&[wrong], false);
        }
        check(&[&format!("Bearer {key}x")], false);
        check(&[&format!("Bearer {}", &key[..46])], false);
        check(&[&format!("Bearer  {key}")], false);
        check(&[&format!("Bearer {key}, Bearer {key}")], false);
    }
}
