//! The keeper's doors, and the path of a call with a fresh token.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use evergrant_domain::api_answer::Class;
use evergrant_domain::connection::LastSeen;
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::refresh_policy::Jitter;
use evergrant_domain::rejection::YOUNG;
use evergrant_domain::tally::{Counted, EndedCall, Tally};
use evergrant_domain::token_set::Due;
use evergrant_domain::trust::{STORE_ANSWERS_WITHIN, Trust};
use evergrant_domain::{App, AppName, Connection, ConnectionId, ConnectionStatus, Kind, Timestamp, Version};
use evergrant_metrics::{Metrics, Shards};
use evergrant_oauth::TokenEndpoint;
use evergrant_store::contract::{Held, LeaseOn};
use evergrant_store::{Coordination, Store, Vault};
use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::asker::Asker;
use crate::background::merge;
use crate::cache::{Cache, Current};
use crate::clock::{Clock, Moment, Timeline};
use crate::error::KeepError;
use crate::flight::Flights;
use crate::gate::Gates;
use crate::journal::Journals;
use crate::landing::Afloat;
use crate::lifeboat::Lifeboat;
use crate::provider_clock::ProviderClocks;
use crate::redeem::Why;
use crate::rescue::Alarmed;
use crate::rest::Known;
use crate::surroundings::{Chance, Surroundings, Tasks};
use crate::throttle::Throttle;
use crate::watched_store::WatchedStore;

/// A forced refresh is made at most once in this time, whoever asks.
const FORCED_EVERY: Duration = Duration::from_secs(10);

/// What a keeper is made of.
pub struct KeeperParts {
    /// The configured apps.
    pub apps: Vec<App>,
    /// Where connections are kept.
    pub store: Arc<dyn Store>,
    /// The keys of this installation: for fingerprints.
    pub vault: Arc<Vault>,
    /// The wire.
    pub endpoint: TokenEndpoint,
    /// Time, chance, and where work runs.
    pub surroundings: Surroundings,
    /// Who waits how for their turn.
    pub coordination: Arc<dyn Coordination>,
    /// Where answers are kept that the store does not take.
    pub lifeboat: Option<Arc<dyn Lifeboat>>,
    /// How long cached tokens serve while the store does not answer.
    pub max_stale: Duration,
}

/// The engine. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Keeper {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) apps: ArcSwap<HashMap<AppName, Arc<App>>>,
    pub(crate) gates: Gates,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) vault: Arc<Vault>,
    pub(crate) endpoint: TokenEndpoint,
    /// What time it is: the timeline, as everybody else sees it.
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) timeline: Arc<Timeline>,
    /// Whether the store was asked for the time.
    pub(crate) on_time: AtomicBool,
    /// When it was last said that the machine's clock is off, in boot time.
    pub(crate) offset_said_at: Mutex<Option<Duration>>,
    pub(crate) chance: Arc<dyn Chance>,
    pub(crate) coordination: Arc<dyn Coordination>,
    pub(crate) lifeboat: Option<Arc<dyn Lifeboat>>,
    pub(crate) afloat: Afloat,
    pub(crate) alarmed: Alarmed,
    pub(crate) cache: Cache,
    pub(crate) flights: Flights,
    pub(crate) usage: Usage,
    /// When that was last written, in boot time.
    pub(crate) usage_flushed_at: Mutex<Duration>,
    pub(crate) events_kept: Mutex<EventsKept>,
    /// Behind which connection the next bite of history is looked at.
    pub(crate) trimmed_to: Mutex<Option<ConnectionId>>,
    /// Boot-time milliseconds of the last time that the change feed was read to its end.
    pub(crate) feed_read_at: AtomicU64,
    pub(crate) max_stale: Duration,
    /// Whether the feed could not be read when it was last tried.
    pub(crate) store_away: AtomicBool,
    pub(crate) keys_generation: AtomicU64,
    /// The apps that are left alone, as they were last read.
    pub(crate) at_rest: Mutex<HashMap<AppName, Known>>,
    /// The token set whose refresh token was examined last, by connection: see [`Keeper::examine`].
    pub(crate) examined: Mutex<HashMap<ConnectionId, (Version, Timestamp)>>,
    pub(crate) throttle: Throttle,
    pub(crate) journals: Mutex<Journals>,
    pub(crate) metrics: Metrics,
    pub(crate) provider_clocks: Arc<ProviderClocks>,
    pub(crate) tasks: Tasks,
    pub(crate) stopping: CancellationToken,
}

/// How much history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventsKept {
    /// For how long.
    pub keep: Duration,
    /// How many events of each connection.
    pub per_connection: u32,
}

/// What holds where nothing is said.
impl Default for EventsKept {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(90 * 24 * 3600),
            per_connection: 1000,
        }
    }
}

/// What connections were used for since that was last written. Each call notes it, so each thread has a part of its own.
#[derive(Debug, Default)]
pub(crate) struct Usage(Shards<Mutex<HashMap<ConnectionId, Used, RandomState>>>);

impl Usage {
    /// How many there are; one that was used on two threads may be counted twice.
    pub(crate) fn len(&self) -> usize {
        self.0.all().map(|part| part.lock().len()).sum()
    }

    fn add(&self, id: &ConnectionId, app: &AppName, add: impl FnOnce(&mut Used)) {
        let mut part = self.0.here().lock();
        if let Some(used) = part.get_mut(id) {
            add(used);
        } else {
            add(part.entry(id.clone()).or_insert_with(|| Used::of(app)));
        }
    }

    fn of(&self, id: &ConnectionId) -> Option<Used> {
        let mut whole: Option<Used> = None;
        for part in self.0.all() {
            if let Some(used) = part.lock().get(id) {
                match &mut whole {
                    Some(whole) => whole.merge(used),
                    None => whole = Some(used.clone()),
                }
            }
        }
        whole
    }

    /// Takes all of it.
    pub(crate) fn take(&self) -> HashMap<ConnectionId, Used> {
        let mut whole = HashMap::new();
        for part in self.0.all() {
            for (id, used) in std::mem::take(&mut *part.lock()) {
                match whole.entry(id) {
                    Entry::Vacant(new) => {
                        new.insert(used);
                    }
                    Entry::Occupied(mut known) => known.get_mut().merge(&used),
                }
            }
        }
        whole
    }
}

/// What a connection was used for since that was last written.
#[derive(Debug, Clone)]
pub(crate) struct Used {
    pub(crate) app: AppName,
    pub(crate) last: LastSeen,
    pub(crate) tally: Tally,
}

impl Used {
    pub(crate) fn of(app: &AppName) -> Self {
        Self {
            app: app.clone(),
            last: LastSeen::default(),
            tally: Tally::default(),
        }
    }

    fn merge(&mut self, other: &Self) {
        merge(&mut self.last, &other.last);
        self.tally.merge(&other.tally);
    }
}

/// How a refresh that somebody asks for treats a young token set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// A set younger than 60 s is returned as it is.
    IfOld,
    /// Redeemed whatever its age, at most once in 10 s.
    Forced,
}

/// What a refresh spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefreshReport {
    /// Whether a refresh token was redeemed.
    pub redeemed: bool,
    /// The version before.
    pub version_before: Version,
    /// The version now.
    pub version: Version,
    /// Why nothing was redeemed, for a person.
    pub why: Option<&'static str>,
}

/// What follows from a 401.
#[derive(Debug)]
pub enum AfterRejection {
    /// Repeat the call with this token.
    Newer {
        /// The token.
        token: Arc<Current>,
        /// Why the call came back 401.
        class: Class,
    },
    /// Pass the 401 through.
    Stays {
        /// What it means.
        class: Class,
        /// One sentence.
        why: &'static str,
    },
}

impl Keeper {
    /// Puts a keeper together. Nothing runs by itself until [`Keeper::start`].
    pub fn new(parts: KeeperParts) -> Self {
        let metrics = Metrics::default();
        let provider_clocks = Arc::new(ProviderClocks::new(parts.surroundings.clock.clone()));
        let endpoint = parts.endpoint.telling({
            let provider_clocks = provider_clocks.clone();
            move |seen| provider_clocks.take(seen)
        });
        let timeline = Arc::new(Timeline::new(parts.surroundings.clock));
        let booted = millis(timeline.boot());
        let keeper = Self {
            inner: Arc::new(Inner {
                apps: ArcSwap::default(),
                gates: Gates::default(),
                store: Arc::new(WatchedStore::new(parts.store, metrics.clone())),
                vault: parts.vault,
                endpoint,
                clock: timeline.clone(),
                timeline,
                on_time: AtomicBool::new(false),
                offset_said_at: Mutex::default(),
                chance: parts.surroundings.chance,
                coordination: parts.coordination,
                lifeboat: parts.lifeboat,
                afloat: Afloat::default(),
                alarmed: Alarmed::default(),
                cache: Cache::default(),
                flights: Flights::default(),
                usage: Usage::default(),
                usage_flushed_at: Mutex::default(),
                events_kept: Mutex::default(),
                trimmed_to: Mutex::default(),
                feed_read_at: AtomicU64::new(booted),
                max_stale: parts.max_stale,
                store_away: AtomicBool::new(false),
                keys_generation: AtomicU64::new(0),
                at_rest: Mutex::default(),
                examined: Mutex::default(),
                throttle: Throttle::default(),
                journals: Mutex::default(),
                metrics,
                provider_clocks,
                tasks: Tasks::new(parts.surroundings.runtime),
                stopping: CancellationToken::new(),
            }),
        };
        keeper.set_apps(parts.apps);
        keeper
    }

    /// Replaces the configured apps. Tokens at hand are read again, so that a new refresh policy reaches them.
    pub fn set_apps(&self, apps: Vec<App>) {
        let apps: HashMap<_, _> = apps
            .into_iter()
            .map(|app| (app.name.clone(), Arc::new(app)))
            .collect();
        for name in apps.keys() {
            // From the start on: who reads the counts sees each of them begin at zero.
            self.inner.metrics.app(Some(name));
        }
        self.inner.apps.store(Arc::new(apps));
        self.inner.cache.doubt_all();
    }

    /// Keeps so much history from now on.
    pub fn keep_events(&self, kept: EventsKept) {
        *self.inner.events_kept.lock() = kept;
    }

    /// A configured app.
    pub fn app(&self, name: &AppName) -> Option<Arc<App>> {
        self.inner.apps.load().get(name).cloned()
    }

    /// The configured apps, by name.
    pub fn apps(&self) -> Vec<Arc<App>> {
        let mut apps: Vec<_> = self.inner.apps.load().values().cloned().collect();
        apps.sort_by(|a, b| a.name.cmp(&b.name));
        apps
    }

    /// Where connections are kept.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// The keys of this installation.
    pub fn vault(&self) -> &Arc<Vault> {
        &self.inner.vault
    }

    /// The wire.
    pub fn endpoint(&self) -> &TokenEndpoint {
        &self.inner.endpoint
    }

    /// The clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    /// What time it is by both clocks.
    pub fn moment(&self) -> Moment {
        self.inner.timeline.moment_at(self.inner.clock.boot())
    }

    /// The same for who knows one of them.
    pub fn moment_at(&self, boot: Duration) -> Moment {
        self.inner.timeline.moment_at(boot)
    }

    /// What is counted in this process.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// A token that serves now.
    ///
    /// A fresh one comes from memory. In the soft window it comes from memory, too, and one refresh starts behind it; at the
    /// hard end callers wait for that refresh. `min_ttl` is a wish, see
    /// [`evergrant_domain::refresh_policy::satisfies_min_ttl`].
    pub async fn current(
        &self,
        id: &ConnectionId,
        min_ttl: Option<Duration>,
    ) -> Result<Arc<Current>, KeepError> {
        self.current_for(Asker::UNKNOWN, id, min_ttl).await
    }

    /// The same for somebody, whom the history names.
    pub async fn current_for(
        &self,
        asker: Asker<'_>,
        id: &ConnectionId,
        min_ttl: Option<Duration>,
    ) -> Result<Arc<Current>, KeepError> {
        let boot = self.inner.clock.boot();
        if let Some(token) = self.at_once(boot, asker, id, min_ttl) {
            return Ok(token);
        }
        let at_hand = self
            .serving(id, min_ttl, boot)
            .map(|token| (token, self.trust_at(boot)));
        // In a place of its own: whoever has a token at hand, as most have, need not carry the room that this takes.
        Box::pin(self.current_as_stored(asker, id, min_ttl, at_hand)).await
    }

    /// The same where nobody need be waited for. `boot` is what time it is.
    pub fn at_once(
        &self,
        boot: Duration,
        asker: Asker<'_>,
        id: &ConnectionId,
        min_ttl: Option<Duration>,
    ) -> Option<Arc<Current>> {
        let token = self.serving(id, min_ttl, boot)?;
        if self.trust_at(boot) != Trust::Full {
            return None;
        }
        if boot >= token.soft && !token.rests(boot) {
            self.refresh_behind(asker, id);
        }
        Some(token)
    }

    /// The same where what is at hand does not do, or not alone.
    async fn current_as_stored(
        &self,
        asker: Asker<'_>,
        id: &ConnectionId,
        min_ttl: Option<Duration>,
        at_hand: Option<(Arc<Current>, Trust)>,
    ) -> Result<Arc<Current>, KeepError> {
        let sight = self.inner.cache.sight(id);
        let held = if let Some((_, Trust::AskFirst)) = at_hand {
            match timeout(STORE_ANSWERS_WITHIN, self.held(id)).await {
                // Looked up again: what was found out meanwhile counts.
                Err(_) | Ok(Err(KeepError::StoreUnavailable { .. })) => {
                    let boot = self.inner.clock.boot();
                    return self
                        .serving(id, min_ttl, boot)
                        .ok_or(KeepError::StoreUnavailable {
                            retry_after: STORE_ANSWERS_WITHIN,
                        });
                }
                Ok(held) => held?,
            }
        } else {
            self.held(id).await?
        };
        let token = self.usable(&held)?;
        let now = self.inner.clock.now();
        let why = Why::Due { min_ttl };
        if !why.asks_for_redemption(&held, now) {
            self.inner.cache.keep(&token, sight);
            return Ok(token);
        }
        if self.due(&held) == Due::Soft && token.satisfies(min_ttl, now) {
            self.inner.cache.keep(&token, sight);
            self.refresh_behind(asker, id);
            return Ok(token);
        }
        self.fly(asker, id, why).await
    }

    /// What follows from a 401 that came back for `version`. At most one redemption per connection and cooldown.
    pub async fn rejected(
        &self,
        id: &ConnectionId,
        version: Version,
        class: Class,
    ) -> Result<AfterRejection, KeepError> {
        self.rejected_for(Asker::UNKNOWN, id, version, class).await
    }

    /// The same for somebody, whom the history names.
    pub async fn rejected_for(
        &self,
        asker: Asker<'_>,
        id: &ConnectionId,
        version: Version,
        class: Class,
    ) -> Result<AfterRejection, KeepError> {
        let sight = self.inner.cache.sight(id);
        let held = self.held(id).await?;
        let stored = self.usable(&held)?;
        // Rule 18: sets are compared by what they are. One that was served before it was stored may have lost its number.
        let another = self.inner.cache.find(id).is_some_and(|sent| {
            sent.version == version && sent.access_token.expose() != stored.access_token.expose()
        });
        if held.connection.version > version || another {
            // A stale token: the newer one is taken through the same door as for any call. The feed may not have told of it
            // yet, and then it is the stale one that is at hand.
            self.inner.cache.keep(&stored, sight);
            let token = self.current_for(asker, id, None).await?;
            return Ok(AfterRejection::Newer {
                token,
                class: Class::StaleToken,
            });
        }
        if held.connection.kind == Kind::Static {
            return Ok(AfterRejection::Stays {
                class: Class::StaticRejected,
                why: "this connection holds a static token: there is nothing to refresh, the token itself must be replaced",
            });
        }
        if class == Class::MalformedToken {
            return Ok(AfterRejection::Stays {
                class,
                why: "the provider cannot decode this access token at all; refreshing would not help",
            });
        }
        let why = Why::Rejected { version };
        let mut token = self.fly(asker, id, why).await?;
        if token.version <= version {
            // The flight that was joined may have been on its way for another reason, and found nothing to do.
            token = self.fly(asker, id, why).await?;
        }
        if token.version > version {
            return Ok(AfterRejection::Newer { token, class });
        }
        self.examine(&held.connection);
        Ok(AfterRejection::Stays {
            class: Class::RejectedAfterRefresh,
            why: "the token was refreshed a short while ago and is rejected all the same: wrong account, missing right or a skewed clock",
        })
    }

    /// Redeems because somebody asks for it; joins a redemption that is on its way.
    pub async fn refresh(
        &self,
        id: &ConnectionId,
        if_version: Option<Version>,
        renewal: Renewal,
    ) -> Result<RefreshReport, KeepError> {
        self.refresh_for(Asker::UNKNOWN, id, if_version, renewal).await
    }

    /// The same for somebody, whom the history names.
    pub async fn refresh_for(
        &self,
        asker: Asker<'_>,
        id: &ConnectionId,
        if_version: Option<Version>,
        renewal: Renewal,
    ) -> Result<RefreshReport, KeepError> {
        let sight = self.inner.cache.sight(id);
        let held = self.held(id).await?;
        let before = held.connection.version;
        let as_it_is = |why| RefreshReport {
            redeemed: false,
            version_before: before,
            version: before,
            why: Some(why),
        };
        let now = self.inner.clock.now();
        // Where an outcome was lost, whoever asks by name gets the one more try that no call gets.
        let renewal = match self.usable(&held) {
            Ok(token) if token.kind == Kind::Static => {
                return Ok(as_it_is("a static token has nothing to refresh"));
            }
            // What the caller is told of is what is served from now on.
            Ok(token) => {
                self.inner.cache.keep(&token, sight);
                renewal
            }
            Err(_) if LeaseOn::LostOutcome.allows(&held.connection.status) => Renewal::Forced,
            Err(error) => return Err(error),
        };
        if if_version.is_some_and(|wanted| wanted != before) {
            return Ok(as_it_is(
                "the stored version is another one than the one that was named",
            ));
        }
        let issued_at = held.connection.issued_at;
        match renewal {
            Renewal::IfOld if self.due(&held) == Due::Hard => {}
            Renewal::IfOld if now < issued_at.after(YOUNG) => {
                return Ok(as_it_is("the token set is younger than 60 s"));
            }
            Renewal::IfOld => {
                if held
                    .cooldown
                    .is_some_and(|cooldown| cooldown.forbids(issued_at, now))
                {
                    return Ok(as_it_is(
                        "the token set was redeemed because of a 401 a short while ago",
                    ));
                }
            }
            Renewal::Forced => {
                let detail = if LeaseOn::LostOutcome.allows(&held.connection.status) {
                    "an outcome was lost and somebody asked for a refresh: its refresh token is presented once more"
                } else {
                    "somebody asked for a refresh whatever the token set's age"
                };
                let event = Event::new(EventKind::RefreshForced, detail).during(asker.circumstances());
                if !self
                    .inner
                    .store
                    .claim_forced_refresh(id, FORCED_EVERY, event, now)
                    .await?
                {
                    return Ok(as_it_is("a forced refresh was made within the last 10 s"));
                }
                self.note_counted(id, &held.connection.app, Counted::RefreshForced);
            }
        }
        let why = Why::Asked {
            version: before,
            renewal,
        };
        let token = self.fly(asker, id, why).await?;
        let redeemed = token.version > before;
        Ok(RefreshReport {
            redeemed,
            version_before: before,
            version: token.version,
            why: (!redeemed).then_some("the refresh that was joined found nothing to do"),
        })
    }

    /// Notes what a connection was used for; written to the store every now and then.
    pub fn note(&self, token: &Current, seen: &LastSeen) {
        self.use_of(&token.connection, &token.app.name, |used| {
            merge(&mut used.last, seen);
        });
    }

    /// The same, and counts the call that ended with it.
    pub fn note_call(&self, token: &Current, seen: &LastSeen, call: &EndedCall) {
        self.use_of(&token.connection, &token.app.name, |used| {
            merge(&mut used.last, seen);
            used.tally.call(call);
        });
    }

    /// Notes that an access token was handed to a caller, and every now and then this event.
    pub fn note_handed_out(&self, token: &Current, at: Moment, event: impl FnOnce() -> Event) {
        let seen = LastSeen {
            call_at: Some(at.now),
            ..LastSeen::default()
        };
        self.use_of(&token.connection, &token.app.name, |used| {
            merge(&mut used.last, &seen);
            used.tally.add(Counted::HandedOut, 1);
        });
        if !token.was_told_of(at.boot) {
            token.told_of_at(at.boot);
            self.event_with(&token.connection, EventKind::TokenHandedOut, event);
        }
    }

    /// Counts a call of which no more is to be noted.
    pub fn count_call(&self, id: &ConnectionId, app: &AppName, call: &EndedCall) {
        self.use_of(id, app, |used| used.tally.call(call));
    }

    /// Counts one thing about a connection.
    pub fn note_counted(&self, id: &ConnectionId, app: &AppName, counted: Counted) {
        self.use_of(id, app, |used| used.tally.add(counted, 1));
    }

    pub(crate) fn use_of(&self, id: &ConnectionId, app: &AppName, add: impl FnOnce(&mut Used)) {
        self.inner.usage.add(id, app, add);
    }

    /// What this process saw of a connection and has not written yet: later than what its record says.
    pub fn unflushed(&self, id: &ConnectionId) -> Option<LastSeen> {
        self.inner.usage.of(id).map(|used| used.last)
    }

    /// Adds to a record what this process saw and has not written yet.
    pub fn look_at(&self, connection: &mut Connection) {
        if let Some(seen) = self.unflushed(&connection.id) {
            merge(&mut connection.last, &seen);
        }
    }

    /// What this process counted of a connection and has not written yet.
    pub fn uncounted(&self, id: &ConnectionId) -> Option<Tally> {
        self.inner.usage.of(id).map(|used| used.tally)
    }

    /// The token of a record that may serve, or why it may not.
    pub(crate) fn usable(&self, held: &Held) -> Result<Arc<Current>, KeepError> {
        match &held.connection.status {
            ConnectionStatus::Active => {}
            ConnectionStatus::ReconnectRequired { reason, since } => {
                self.inner.cache.forget(&held.connection.id);
                return Err(KeepError::ReconnectRequired {
                    reason: *reason,
                    since: *since,
                });
            }
            ConnectionStatus::Disconnected { superseded_by, .. } => {
                self.inner.cache.forget(&held.connection.id);
                return Err(match superseded_by {
                    Some(by) => KeepError::Superseded { by: by.clone() },
                    None => KeepError::Disconnected,
                });
            }
        }
        let name = &held.connection.app;
        let app = self
            .app(name)
            .ok_or_else(|| KeepError::AppNotConfigured { app: name.clone() })?;
        let series = self.inner.metrics.of(name, &held.connection.id);
        let clock = &self.inner.clock;
        // A token that cannot stand in a header was never stored, so a missing one means that the row is being erased.
        Current::of(held, app, series, clock.now(), clock.boot())
            .map(Arc::new)
            .ok_or(KeepError::Disconnected)
    }

    pub(crate) fn due(&self, held: &Held) -> Due {
        held.tokens
            .as_ref()
            .map_or(Due::Hard, |tokens| tokens.due(self.inner.clock.now()))
    }

    /// Grows whenever any process made or revoked an API key: what was read about keys before is out of date then.
    pub fn keys_generation(&self) -> u64 {
        self.inner.keys_generation.load(Ordering::Acquire)
    }

    /// What is at hand of a connection, however its token stands: whose it is can be told without the store.
    pub fn at_hand(&self, id: &ConnectionId) -> Option<Arc<Current>> {
        self.inner
            .cache
            .find(id)
            .filter(|_| self.trust() != Trust::Lapsed)
    }

    /// How far what is at hand counts without the store.
    pub fn trust(&self) -> Trust {
        self.trust_at(self.inner.clock.boot())
    }

    /// The same at `boot`, which is now.
    pub fn trust_at(&self, boot: Duration) -> Trust {
        let read_at = Duration::from_millis(self.inner.feed_read_at.load(Ordering::Relaxed));
        let away = self.inner.store_away.load(Ordering::Relaxed);
        Trust::after(boot.saturating_sub(read_at), away, self.inner.max_stale)
    }

    /// The token at hand, where it has not ended and grants the wish.
    fn serving(&self, id: &ConnectionId, min_ttl: Option<Duration>, boot: Duration) -> Option<Arc<Current>> {
        self.inner.cache.find(id).filter(|token| {
            boot < token.hard && (min_ttl.is_none() || token.satisfies(min_ttl, self.inner.clock.now()))
        })
    }

    /// A number for spreading work.
    pub(crate) fn jitter(&self) -> Jitter {
        self.inner.chance.jitter()
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_was_used_for_is_one_sum_whichever_threads_saw_it() {
        let usage = Usage::default();
        let id = ConnectionId::parse("c1").expect("a literal id");
        let app = AppName::parse("plain").expect("a literal name");
        std::thread::scope(|scope| {
            for thread in 1..=4 {
                let (usage, id, app) = (&usage, &id, &app);
                scope.spawn(move || {
                    usage.add(id, app, |used| {
                        used.tally.add(Counted::HandedOut, 1);
                        used.last.call_at = Some(Timestamp::from_millis(thread));
                    });
                });
            }
        });
        let whole = usage.of(&id).expect("it was used");
        let mut expected = Used::of(&app);
        expected.tally.add(Counted::HandedOut, 4);
        assert_eq!(whole.tally, expected.tally);
        assert_eq!(whole.last.call_at, Some(Timestamp::from_millis(4)));
        let taken = usage.take();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[&id].tally, expected.tally);
        assert_eq!((usage.len(), usage.of(&id).is_none()), (0, true));
    }
}
