//! What runs by itself beside the change feed: the scheduler, revocations, lifeboats, and what is written every now and then.

use std::time::Duration;

use evergrant_domain::connection::LastSeen;
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::redemption::DEADLINE;
use evergrant_domain::token_answer::{Failure, Revoked};
use evergrant_domain::trust::STORE_ANSWERS_WITHIN;
use evergrant_domain::{ConnectionId, KeepFresh};
use evergrant_store::StoreError;
use evergrant_store::contract::{DueQuery, EventTrim, Revocation, RevocationState, Usage};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use crate::asker::Asker;
use crate::keeper::{Keeper, Used};

const DUE_EVERY: Duration = Duration::from_secs(1);
/// What connections were used for is written so often where they are few, and else so rarely: the store has other things to do.
const USAGE_LOOKED_AT_EVERY: Duration = Duration::from_secs(5);
const USAGE_EVERY: Duration = Duration::from_secs(30);
const FEW: usize = 1_000;
/// How many bites of the history one sweep takes.
const BITES: u32 = 10;
const REVOKE_EVERY: Duration = Duration::from_secs(10);
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Stored answers come in faster than anything else that is swept.
const SWEEP_WRITES_EVERY: Duration = Duration::from_secs(60);
const LAND_EVERY: Duration = Duration::from_secs(10);
/// More often than a turn at a journal lasts: whoever has it may be gone.
const JOURNALS_EVERY: Duration = Duration::from_secs(10);
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// How many due connections one look claims.
const DUE_AT_ONCE: u32 = 256;
/// Due connections that were claimed together are refreshed within so much time for each of them.
const DUE_SPREAD_EACH: Duration = Duration::from_millis(50);
/// At most: well before the claim ends.
const DUE_SPREAD_MAX: Duration = Duration::from_secs(10);
/// How far a claimed connection's next attempt is pushed on: past one exchange, so that no other process claims it too.
const DUE_PUSH: Duration = Duration::from_secs(30);
/// "Lately" is two lifetimes of the connection's own token, looked at after claiming; this bounds what is claimed at all.
const USED_AT_MOST_AGO: Duration = Duration::from_secs(2 * 24 * 3600);

const REVOKE_AT_ONCE: u32 = 16;
/// After so many answers that were none, over an hour, the provider is taken to revoke nothing.
const STRANGE_ANSWERS_MAX: u32 = 60;
const REVOKE_PUSH: Duration = Duration::from_secs(60);

/// How long finished connect sessions, feed entries and budgets that nobody uses are kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How much room the bodies of all stored answers may take, in bytes, but for what came in since the last look.
const BODIES_MAX: u64 = 256 * 1024 * 1024;

impl Keeper {
    /// Starts the background work: once, on the runtime that the keeper lives on.
    pub fn start(&self) {
        self.spawn_watching();
        self.every(LAND_EVERY, |keeper| async move {
            // What hindered it was said where it was found.
            let _ = keeper.land_lifeboats(None).await;
            Ok(())
        });
        self.every(COMPARE_EVERY, |keeper| async move {
            keeper.compare_with_store().await
        });
        self.every(DUE_EVERY, |keeper| async move { keeper.refresh_due().await });
        self.every(USAGE_LOOKED_AT_EVERY, |keeper| async move {
            keeper.flush_in_turn().await
        });
        self.every(REVOKE_EVERY, |keeper| async move { keeper.revoke_queued().await });
        self.every(
            JOURNALS_EVERY,
            |keeper| async move { keeper.read_journals().await },
        );
        self.every(SWEEP_EVERY, |keeper| async move {
            let before = keeper.inner.clock.now().before(KEPT);
            keeper.inner.cache.let_go(keeper.inner.clock.boot());
            keeper.forget_examined(before);
            keeper.inner.store.sweep(before).await?;
            keeper.trim_history().await
        });
        self.every(SWEEP_WRITES_EVERY, |keeper| async move {
            let now = keeper.inner.clock.now();
            keeper.inner.store.sweep_writes(now, BODIES_MAX).await
        });
    }

    /// Stops the background work and waits until every redemption in flight is saved, and for everything else that was begun.
    /// No new redemption begins.
    pub async fn shutdown(&self) {
        self.shutdown_within(None).await;
    }

    /// The same, but what is no redemption is waited for so long at most: guarded writes and what is noted behind calls.
    pub async fn shutdown_within(&self, patience: Option<Duration>) {
        let until = patience.map(|patience| Instant::now() + patience);
        self.inner.stopping.cancel();
        let others = within(until, self.inner.tasks.finished());
        let (finished, ()) = tokio::join!(others, self.inner.tasks.redeemed());
        if finished.is_none() {
            tracing::warn!(
                event = "drain_timeout",
                "guarded writes or notes were still under way at the end of drain_timeout and are cut off: what became of such a write is unknown"
            );
        }
        if let Some(Err(error)) = within(until, self.flush_usage()).await {
            tracing::warn!(event = "store_error", %error, "what connections were used for could not be noted");
        }
    }

    /// Runs work to its end, whatever becomes of who began it. [`Keeper::shutdown`] waits for it.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.inner.tasks.spawn(work);
    }

    /// Resolves when the keeper is told to stop: what only waits to try something again then tries it for the last time.
    pub async fn stops(&self) {
        self.inner.stopping.cancelled().await;
    }

    /// Notes what happened to a connection, behind the call that saw it. The same kind of event is noted once in a while:
    /// a thousand calls that come back 403 are one line of a history.
    pub fn event(&self, id: &ConnectionId, event: Event) {
        self.event_with(id, event.kind, || event);
    }

    /// The same for what happens so often that the words are put together only when they are noted.
    pub fn event_with(&self, id: &ConnectionId, kind: EventKind, event: impl FnOnce() -> Event) {
        // Nobody waits for it.
        let _ = self.noting(id, kind, event);
    }

    /// The same before what follows from it: whoever reads the history finds it first. A store that takes long holds nobody up for
    /// more than [`STORE_ANSWERS_WITHIN`]; then it is noted behind.
    pub async fn event_first(&self, id: &ConnectionId, kind: EventKind, event: impl FnOnce() -> Event) {
        if let Some(noted) = self.noting(id, kind, event) {
            let _ = timeout(STORE_ANSWERS_WITHIN, noted).await;
        }
    }

    /// Notes an event beside its caller, who may wait for that; nothing where it was noted lately.
    fn noting(
        &self,
        id: &ConnectionId,
        kind: EventKind,
        event: impl FnOnce() -> Event,
    ) -> Option<oneshot::Receiver<()>> {
        if !self.inner.throttle.admits(id, kind, self.inner.clock.boot()) {
            return None;
        }
        let event = event();
        let keeper = self.clone();
        let id = id.clone();
        let (tell, noted) = oneshot::channel();
        self.inner.tasks.spawn(async move {
            let now = keeper.inner.clock.now();
            if let Err(error) = keeper.inner.store.note_event(&id, event, now).await {
                tracing::warn!(event = "store_error", connection_id = %id, %error, "an event could not be noted");
            }
            let _ = tell.send(());
        });
        Some(noted)
    }

    /// Works on the revocation queue now instead of at the next round.
    pub(crate) fn revoke_soon(&self) {
        let keeper = self.clone();
        self.inner.tasks.spawn(async move {
            if let Err(error) = keeper.revoke_queued().await {
                tracing::warn!(event = "store_error", %error, "the revocation queue could not be read");
            }
        });
    }

    fn every<F, W>(&self, period: Duration, work: F)
    where
        F: Fn(Self) -> W + Send + 'static,
        W: Future<Output = Result<(), StoreError>> + Send,
    {
        let keeper = self.clone();
        self.inner.tasks.spawn(async move {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    () = keeper.inner.stopping.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                if let Err(error) = work(keeper.clone()).await {
                    tracing::warn!(event = "store_error", %error, "background work could not be done; it is tried again");
                }
            }
        });
    }

    async fn refresh_due(&self) -> Result<(), StoreError> {
        let now = self.inner.clock.now();
        let apps = self
            .apps()
            .into_iter()
            .filter_map(|app| match app.keep_fresh {
                KeepFresh::Off => None,
                KeepFresh::Used => Some((app.name.clone(), Some(now.before(USED_AT_MOST_AGO)))),
                KeepFresh::Always => Some((app.name.clone(), None)),
            })
            .collect::<Vec<_>>();
        // What stands in line here already is not claimed once more, by us or by anybody: others may have room for it.
        let room = DUE_AT_ONCE.saturating_sub(self.standing_behind());
        if apps.is_empty() || room == 0 {
            return Ok(());
        }
        let query = DueQuery {
            now,
            apps,
            limit: room,
            push: DUE_PUSH,
        };
        let due = self.inner.store.claim_due(query).await?;
        // After a long stop everything is due at once; nobody waits for any of it, so the provider need not bear it at once.
        let spread = DUE_SPREAD_EACH
            .saturating_mul(u32::try_from(due.len()).unwrap_or(u32::MAX))
            .min(DUE_SPREAD_MAX);
        for id in due {
            if self.is_worth_refreshing(&id).await? {
                self.refresh_later(id, self.jitter().of(spread));
            }
        }
        Ok(())
    }

    fn refresh_later(&self, id: ConnectionId, pause: Duration) {
        let keeper = self.clone();
        self.inner.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = keeper.inner.stopping.cancelled() => {}
                () = tokio::time::sleep(pause) => keeper.refresh_behind(Asker::SCHEDULER, &id),
            }
        });
    }

    /// `used` means within the last two lifetimes of the connection's own token.
    async fn is_worth_refreshing(&self, id: &ConnectionId) -> Result<bool, StoreError> {
        let Some(connection) = self.inner.store.connection(id).await? else {
            return Ok(false);
        };
        let Some(app) = self.app(&connection.app) else {
            return Ok(false);
        };
        let lifetime = connection.ends.expires.since(connection.issued_at);
        let lately = self.inner.clock.now().before(lifetime * 2);
        Ok(match app.keep_fresh {
            KeepFresh::Off => false,
            // What was used since the last flush counts, too; the store does not know of it yet.
            KeepFresh::Used => {
                let unflushed = self.unflushed(id).and_then(|seen| seen.call_at);
                connection
                    .last
                    .call_at
                    .max(unflushed)
                    .is_some_and(|at| at >= lately)
            }
            KeepFresh::Always => true,
        })
    }

    /// Forgets what is too old or too much of the history, a few bites of it: others write meanwhile.
    async fn trim_history(&self) -> Result<(), StoreError> {
        let kept = *self.inner.events_kept.lock();
        for _ in 0..BITES {
            let trim = EventTrim {
                before: self.inner.clock.now().before(kept.keep),
                keep_per_connection: kept.per_connection,
                from: self.inner.trimmed_to.lock().clone(),
            };
            let read_on = self.inner.store.trim_events(trim).await?;
            self.inner.trimmed_to.lock().clone_from(&read_on);
            if read_on.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Writes what connections were used for, where it is time.
    async fn flush_in_turn(&self) -> Result<(), StoreError> {
        let boot = self.inner.clock.boot();
        let is_time = {
            let flushed_at = self.inner.usage_flushed_at.lock();
            boot.saturating_sub(*flushed_at) >= USAGE_EVERY
        };
        if !is_time && self.inner.usage.len() > FEW {
            return Ok(());
        }
        *self.inner.usage_flushed_at.lock() = boot;
        self.flush_usage().await
    }

    /// Writes what connections were used for now, where they are few: for who counts or looks for them by that.
    pub async fn flush_soon(&self) {
        if self.inner.usage.len() <= FEW
            && let Err(error) = self.flush_usage().await
        {
            tracing::warn!(event = "store_error", %error, "what connections were used for could not be noted");
        }
    }

    pub(crate) async fn flush_usage(&self) -> Result<(), StoreError> {
        let seen = self.inner.usage.take();
        if seen.is_empty() {
            return Ok(());
        }
        let mut usage: Vec<Usage> = seen
            .into_iter()
            .map(|(connection, Used { app, last, tally })| Usage {
                connection,
                app,
                last,
                tally,
            })
            .collect();
        usage.sort_by(|a, b| a.connection.cmp(&b.connection));
        let now = self.inner.clock.now();
        let noted = self.inner.store.note_usage(usage.clone(), now).await;
        if let Err(error) = &noted {
            // What may have been added already is not added again: rather too few were counted than more than there were.
            let is_counted = matches!(
                error,
                StoreError::Unavailable {
                    outcome_unknown: true,
                    ..
                }
            );
            for told in usage {
                self.use_of(&told.connection, &told.app, |used| {
                    merge(&mut used.last, &told.last);
                    if !is_counted {
                        used.tally.merge(&told.tally);
                    }
                });
            }
        }
        noted
    }

    async fn revoke_queued(&self) -> Result<(), StoreError> {
        let now = self.inner.clock.now();
        for revocation in self
            .inner
            .store
            .claim_revocations(REVOKE_AT_ONCE, REVOKE_PUSH, now)
            .await?
        {
            // One that cannot be finished holds up no other: it is claimed again later.
            if let Err(error) = self.revoke(revocation).await {
                tracing::warn!(event = "store_error", %error, "what became of a revocation could not be noted");
            }
        }
        Ok(())
    }

    async fn revoke(&self, revocation: Revocation) -> Result<(), StoreError> {
        let Some(app) = self.app(&revocation.app) else {
            return Ok(());
        };
        let mut revoked = Revoked::TryAgain(Failure::without_answer("no_client_secret"));
        for secret in self.secrets_in_order(&app).await? {
            revoked = self
                .inner
                .endpoint
                .revoke(&app, &secret, &revocation.refresh_token, DEADLINE)
                .await;
            if !matches!(&revoked, Revoked::TryAgain(failure) if failure.code == "client_refused") {
                break;
            }
        }
        let id = &revocation.connection;
        let state = match revoked {
            Revoked::Done => RevocationState::Done,
            Revoked::Unsupported(_) => RevocationState::Unsupported,
            Revoked::Strange(_) if revocation.attempts >= STRANGE_ANSWERS_MAX => RevocationState::Unsupported,
            Revoked::TryAgain(failure) | Revoked::Strange(failure) => {
                tracing::warn!(
                    event = "revocation_failed",
                    connection_id = %id,
                    app = %revocation.app,
                    code = %failure.code,
                    attempt = revocation.attempts,
                    "a refresh token could not be revoked yet; it stays in the queue"
                );
                return Ok(());
            }
        };
        let event = (state == RevocationState::Done)
            .then(|| Event::new(EventKind::Revoked, "the provider revoked the refresh token"));
        let now = self.inner.clock.now();
        self.inner
            .store
            .finish_revocation(revocation.id, state, event, now)
            .await
    }
}

/// What comes of `work` until then; until it has ended where nothing is said.
async fn within<T>(until: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match until {
        Some(until) => timeout_at(until, work).await.ok(),
        None => Some(work.await),
    }
}

/// Keeps the later of two sights of each kind.
pub(crate) fn merge(last: &mut LastSeen, seen: &LastSeen) {
    last.call_at = last.call_at.max(seen.call_at);
    last.success_at = last.success_at.max(seen.success_at);
    last.refresh_at = last.refresh_at.max(seen.refresh_at);
    last.unauthorized_at = last.unauthorized_at.max(seen.unauthorized_at);
    last.forbidden_at = last.forbidden_at.max(seen.forbidden_at);
    last.rate_limited_at = last.rate_limited_at.max(seen.rate_limited_at);
}
