//! The only place that presents a refresh token: the seven steps of one redemption, from the lease to the stored answer.
//!
//! The rules named here are PROTOCOL's. What an answer means is judged in [`evergrant_domain::token_answer`], what may follow a
//! lost one in [`evergrant_domain::redemption`]; this file does what they say, in their order.

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::connection::RefreshTrouble;
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::redemption::{self, DEADLINE, Intent, LEASE, Presenting, backoff};
use evergrant_domain::token_answer::{Failure, Introspected, TokenAnswer};
use evergrant_domain::token_set::Due;
use evergrant_domain::{
    App, Connection, ConnectionId, Kind, ReconnectReason, RefreshToken, Rotation, Timestamp, TokenSet,
    Version,
};
use evergrant_oauth::{Introspect, Redeemed};
use evergrant_store::StoreError;
use evergrant_store::contract::{CooldownAnswer, Held, Lease, LeaseAnswer, LeaseOn, Presented};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cache::Current;
use crate::error::KeepError;
use crate::flight::Outcome;
use crate::keeper::{Keeper, Renewal};

/// How long one flight goes on: another holder's lease, then an exchange of its own.
const FLIGHT_LASTS: Duration = Duration::from_secs(LEASE.as_secs() + DEADLINE.as_secs());

/// How long to wait before looking again at a connection whose lease another holder has.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(500);

/// Why a redemption is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// By the clock, or because of a caller's wish for a longer remaining lifetime.
    Due {
        /// The wish.
        min_ttl: Option<Duration>,
    },
    /// A call came back 401 with this version.
    Rejected {
        /// The version that was rejected.
        version: Version,
    },
    /// Somebody asked for it while this version was the stored one.
    Asked {
        /// The version that was seen.
        version: Version,
        /// Whether a failure's backoff is passed over.
        renewal: Renewal,
    },
}

impl Why {
    /// Whether what is held still needs a redemption.
    pub(crate) fn asks_for_redemption(self, held: &Held, now: Timestamp) -> bool {
        if held.connection.kind == Kind::Static {
            return false;
        }
        match self {
            Self::Due { min_ttl } => {
                let connection = &held.connection;
                let granted = min_ttl.is_none_or(|wish| {
                    evergrant_domain::refresh_policy::satisfies_min_ttl(
                        connection.issued_at,
                        connection.ends,
                        wish,
                        now,
                    )
                });
                now >= connection.ends.soft || !granted
            }
            Self::Rejected { version } | Self::Asked { version, .. } => held.connection.version == version,
        }
    }
}

/// What one turn of a flight came to.
pub(crate) enum Turn {
    /// It is over.
    Over(Outcome),
    /// The store has moved on, or somebody else holds the lease: read again.
    LookAgain,
}

/// A right to redeem, and what was read under it.
pub(crate) struct Holding {
    pub(crate) app: Arc<App>,
    pub(crate) lease: Lease,
    pub(crate) held: Box<Held>,
    /// The attempts before this one.
    pub(crate) earlier: Option<Intent>,
    /// Boot time from which the lease counts: before it was asked for, so that it is never overrated.
    pub(crate) taken_at: Duration,
}

impl Keeper {
    /// One flight: until the connection has a token that serves, or there is a reason why not.
    pub(crate) async fn redeem(&self, id: &ConnectionId, why: Why) -> Outcome {
        let ends = Instant::now() + FLIGHT_LASTS;
        let mut pause = LOOK_AGAIN;
        while Instant::now() < ends {
            let sight = self.inner.cache.sight(id);
            let held = self.held(id).await?;
            let token = self.usable(&held)?;
            if !why.asks_for_redemption(&held, self.inner.clock.now()) {
                self.inner.cache.keep(&token, sight);
                return Ok(token);
            }
            match self.turn(&held, token, why).await? {
                Turn::Over(outcome) => return outcome,
                Turn::LookAgain => {
                    let wait = pause / 2 + self.jitter().of(pause / 2);
                    tokio::time::sleep(wait).await;
                    pause = (pause * 2).min(LOOK_AGAIN_MAX);
                }
            }
        }
        Err(KeepError::Overloaded {
            retry_after: LOOK_AGAIN_MAX * 2,
        })
    }

    async fn turn(&self, held: &Held, token: Arc<Current>, why: Why) -> Result<Turn, KeepError> {
        let id = &held.connection.id;
        let version = held.connection.version;
        let now = self.inner.clock.now();
        let app = token.app.clone();

        if let Some(trouble) = &held.connection.trouble
            && now < trouble.next_attempt_at
            && !matches!(
                why,
                Why::Asked {
                    renewal: Renewal::Forced,
                    ..
                }
            )
        {
            let error = KeepError::ProviderUnavailable {
                code: trouble.code.clone(),
                retry_after: trouble.next_attempt_at.since(now),
            };
            token.rest_until(self.inner.clock.boot() + trouble.next_attempt_at.since(now));
            return Ok(Turn::Over(self.fall_back(held, &token, why, error)));
        }
        if let Some(rejected) = self.rejection_that_counts(&app).await?
            && !self.is_canary(&app)
        {
            let error = KeepError::AppCredentialsRejected {
                app: app.name.clone(),
                code: rejected.code,
            };
            return Ok(Turn::Over(self.fall_back(held, &token, why, error)));
        }
        // A 401 redeems at most once per connection and cooldown, in all processes together.
        if let Why::Rejected { version } = why {
            match self.inner.store.begin_cooldown(id, version, now).await? {
                CooldownAnswer::Holds(cooldown) if cooldown.forbids(held.connection.issued_at, now) => {
                    return Ok(Turn::Over(Ok(token)));
                }
                CooldownAnswer::Began(_) | CooldownAnswer::Holds(_) => {}
                CooldownAnswer::Moved => return Ok(Turn::LookAgain),
            }
        }
        // Rule 1: the permit comes before the lease, so that nothing waits between the lease and the sending.
        let permits = self.permits(&app.name);
        let _permit = permits.acquire().await;
        let taken_at = self.inner.clock.boot();
        match self
            .inner
            .store
            .take_lease(id, version, LEASE, LeaseOn::Active, self.inner.clock.now())
            .await?
        {
            LeaseAnswer::Missing => Ok(Turn::Over(Err(KeepError::Unknown))),
            // Rule 3: without a lease nothing is redeemed; what moved is used.
            LeaseAnswer::Busy | LeaseAnswer::Moved(_) => Ok(Turn::LookAgain),
            LeaseAnswer::Taken {
                lease,
                held,
                earlier,
                took_over,
            } => {
                if took_over {
                    let event = Event::new(
                        EventKind::LeaseTakenOver,
                        "the process that was redeeming is gone or too slow; another one went on",
                    );
                    self.inner
                        .store
                        .note_event(id, event, self.inner.clock.now())
                        .await?;
                }
                self.under_lease(
                    Holding {
                        app,
                        lease,
                        held,
                        earlier,
                        taken_at,
                    },
                    why,
                )
                .await
            }
        }
    }

    /// Rule 4: what was read before the lease does not count any more.
    async fn under_lease(&self, holding: Holding, why: Why) -> Result<Turn, KeepError> {
        let now = self.inner.clock.now();
        if !why.asks_for_redemption(&holding.held, now) {
            self.step_back(&holding, None).await?;
            return Ok(Turn::LookAgain);
        }
        let Some(tokens) = holding.held.tokens.clone() else {
            self.step_back(&holding, None).await?;
            return Ok(Turn::LookAgain);
        };
        let Some(refresh_token) = tokens.refresh_token.clone() else {
            return self.without_refresh_token(holding, &tokens, why).await;
        };
        if self.was_in_a_lifeboat(&holding).await? {
            return Ok(Turn::LookAgain);
        }
        let rotation = self.rotation(&holding.app).await?;
        let can_introspect = holding.app.provider.introspect_url.is_some();
        match redemption::presenting(
            holding.earlier.as_ref(),
            rotation,
            can_introspect,
            tokens.ends.hard,
            now,
        ) {
            Presenting::Now => self.present(holding, &tokens, refresh_token, rotation, why).await,
            Presenting::AfterIntrospection => {
                match self
                    .introspect(&holding.app, Introspect::Refresh(&refresh_token))
                    .await
                {
                    Introspected::Active(_) => {
                        self.present(holding, &tokens, refresh_token, rotation, why).await
                    }
                    Introspected::Inactive => {
                        self.condemn(&holding, ReconnectReason::RedemptionOutcomeLost, None)
                            .await
                    }
                    Introspected::ClientRefused(failure) | Introspected::Unknown(failure) => {
                        self.unfinished(holding, Presented::No, failure, why).await
                    }
                }
            }
            Presenting::NotBefore(at) => {
                let mut failure = Failure::without_answer("outcome_pending");
                failure.retry_after = Some(at.since(now));
                self.unfinished(holding, Presented::No, failure, why).await
            }
            Presenting::Exhausted if now < tokens.ends.hard => {
                let mut failure = Failure::without_answer("outcome_unknown");
                failure.retry_after = Some(tokens.ends.hard.since(now));
                self.unfinished(holding, Presented::No, failure, why).await
            }
            Presenting::Exhausted => {
                self.condemn(&holding, ReconnectReason::RedemptionOutcomeLost, None)
                    .await
            }
        }
    }

    async fn without_refresh_token(
        &self,
        holding: Holding,
        tokens: &TokenSet,
        why: Why,
    ) -> Result<Turn, KeepError> {
        if tokens.due(self.inner.clock.now()) == Due::Hard || matches!(why, Why::Rejected { .. }) {
            return self
                .condemn(&holding, ReconnectReason::NoRefreshToken, None)
                .await;
        }
        self.step_back(&holding, None).await?;
        Ok(Turn::Over(self.usable(&holding.held)))
    }

    /// Presents the refresh token: one request for each secret that may be the right one, all under one deadline.
    async fn present(
        &self,
        holding: Holding,
        tokens: &TokenSet,
        refresh_token: RefreshToken,
        rotation: Rotation,
        why: Why,
    ) -> Result<Turn, KeepError> {
        let deadline = Instant::now() + DEADLINE;
        let mut refused = None;
        for secret in self.secrets_in_order(&holding.app).await? {
            let left = deadline.saturating_duration_since(Instant::now());
            let sent_at = Mutex::new(None);
            let redeemed = self
                .inner
                .endpoint
                .redeem(&holding.app, &secret, &refresh_token, left, || async {
                    let enough = self.lease_is_enough(&holding, deadline).await;
                    *sent_at.lock() = Some(self.inner.clock.now());
                    enough
                })
                .await;
            let sent_at = sent_at.into_inner().unwrap_or_else(|| self.inner.clock.now());
            let answer = match redeemed {
                Redeemed::SteppedBack => {
                    self.step_back(&holding, None).await?;
                    return Ok(Turn::LookAgain);
                }
                Redeemed::Answered(answer) => answer,
            };
            return match answer {
                TokenAnswer::Issued(issued) => {
                    let landed = self
                        .store_answer(&holding, tokens, *issued, sent_at, rotation)
                        .await;
                    // Whoever waits has their token; the store may be away.
                    let (keeper, app) = (self.clone(), holding.app.clone());
                    self.inner
                        .tasks
                        .spawn(async move { keeper.note_secret_that_worked(&app, &secret).await });
                    landed
                }
                // Rule 9: nothing was issued, so the next secret may follow under the same lease and deadline.
                TokenAnswer::ClientRefused(failure) => {
                    refused = Some(failure);
                    continue;
                }
                TokenAnswer::NotIssued(failure) => {
                    self.unfinished(holding, Presented::No, failure, why).await
                }
                TokenAnswer::Lost(mut failure) => {
                    let now = self.inner.clock.now();
                    let quiet = redemption::quiet_until(
                        holding.earlier.as_ref(),
                        holding.lease.version(),
                        rotation,
                        holding.app.provider.introspect_url.is_some(),
                        tokens.ends.hard,
                        now,
                    );
                    let quiet = quiet.map(|until| until.since(now));
                    failure.retry_after = failure.retry_after.max(quiet);
                    self.unfinished(holding, Presented::Unknown, failure, why).await
                }
                TokenAnswer::WrongClient(failure) => {
                    self.condemn(&holding, ReconnectReason::WrongClient, Some(failure))
                        .await
                }
                TokenAnswer::GrantRefused(failure) => {
                    let reason = redemption::reason_of_refusal(tokens.unproven, holding.earlier.as_ref());
                    self.condemn(&holding, reason, Some(failure)).await
                }
                // Rule 12: nobody is condemned for what is the endpoint's fault.
                TokenAnswer::EndpointFault(failure) | TokenAnswer::CodeRefused(failure) => {
                    tracing::error!(
                        event = "token_endpoint_fault",
                        app = %holding.app.name,
                        connection_id = %holding.held.connection.id,
                        code = %failure.code,
                        status_code = failure.http_status,
                        "the token endpoint answered something that is no answer to a refresh; check its URL and version"
                    );
                    self.unfinished(holding, Presented::No, failure, why).await
                }
            };
        }
        let failure = refused.unwrap_or_else(|| Failure::without_answer("no_client_secret"));
        self.client_refused(holding, failure, why).await
    }

    /// Rule 4, right before the first byte: the lease is still ours and lasts for the whole exchange. The store knows whether
    /// it was taken away; the boot-time clock knows how long this process was stopped since.
    async fn lease_is_enough(&self, holding: &Holding, deadline: Instant) -> bool {
        let needed = |now: Instant| deadline.saturating_duration_since(now);
        let ours = self
            .inner
            .store
            .lease_lasts(&holding.lease, needed(Instant::now()))
            .await
            .unwrap_or(false);
        let lasts_until = holding.taken_at + LEASE;
        ours && self.inner.clock.boot() + needed(Instant::now()) <= lasts_until
    }

    /// Rule 11: the verdict is one conditional statement. Where it does not hold any more, somebody else's result counts.
    async fn condemn(
        &self,
        holding: &Holding,
        reason: ReconnectReason,
        failure: Option<Failure>,
    ) -> Result<Turn, KeepError> {
        let id = &holding.held.connection.id;
        let now = self.inner.clock.now();
        let detail = match &failure {
            Some(failure) => format!("{}: {failure}", reason.meaning()),
            None => reason.meaning().to_owned(),
        };
        let event = Event::new(EventKind::ReconnectRequired, detail)
            .correlated(failure.and_then(|failure| failure.correlation_id));
        if !self
            .inner
            .store
            .condemn(&holding.lease, reason, event, now)
            .await?
        {
            return Ok(Turn::LookAgain);
        }
        self.inner.cache.forget(id);
        tracing::error!(
            event = "reconnect_required",
            connection_id = %id,
            app = %holding.app.name,
            reason = reason.as_str(),
            "the connection needs reconnecting: {}",
            reason.meaning()
        );
        Ok(Turn::Over(Err(KeepError::ReconnectRequired {
            reason,
            since: now,
        })))
    }

    /// A redemption that brought nothing, for a reason that may pass.
    async fn unfinished(
        &self,
        holding: Holding,
        presented: Presented,
        failure: Failure,
        why: Why,
    ) -> Result<Turn, KeepError> {
        let now = self.inner.clock.now();
        let connection = &holding.held.connection;
        let failures = connection
            .trouble
            .as_ref()
            .map_or(0, |trouble| trouble.failures)
            .saturating_add(1);
        let pause = backoff(failures, failure.retry_after, self.jitter());
        tracing::warn!(
            event = "refresh_failed",
            connection_id = %connection.id,
            app = %holding.app.name,
            code = %failure.code,
            status_code = failure.http_status,
            provider_correlation_id = failure.correlation_id.as_deref(),
            retry_in_seconds = pause.as_secs(),
            "a redemption brought no token"
        );
        let event = Event::new(
            EventKind::RefreshFailed,
            match presented {
                Presented::No => format!("no token was issued: {failure}"),
                Presented::Unknown => format!("the answer was lost: {failure}"),
            },
        )
        .correlated(failure.correlation_id.clone());
        let trouble = RefreshTrouble {
            failed_at: now,
            code: failure.code.clone(),
            failures,
            next_attempt_at: now.after(pause),
        };
        self.inner
            .store
            .give_up(&holding.lease, presented, Some(trouble), Some(event), now)
            .await?;
        let error = KeepError::ProviderUnavailable {
            code: failure.code,
            retry_after: pause,
        };
        let token = self.usable(&holding.held)?;
        token.rest_until(self.inner.clock.boot() + pause);
        Ok(Turn::Over(self.fall_back(&holding.held, &token, why, error)))
    }

    /// Rule 9: the app is to blame, and no connection's state changes.
    async fn client_refused(&self, holding: Holding, failure: Failure, why: Why) -> Result<Turn, KeepError> {
        let event = Event::new(
            EventKind::RefreshFailed,
            format!("the provider refused the app's credentials: {failure}"),
        )
        .correlated(failure.correlation_id.clone());
        self.step_back(&holding, Some(event)).await?;
        self.reject_app(&holding.app, &failure).await?;
        let error = KeepError::AppCredentialsRejected {
            app: holding.app.name.clone(),
            code: failure.code,
        };
        let token = self.usable(&holding.held)?;
        Ok(Turn::Over(self.fall_back(&holding.held, &token, why, error)))
    }

    /// A token that was just issued is rejected: is it the grant? Asked behind the call, once for a version, and only where the
    /// provider introspects refresh tokens. Rule 13: nothing but the refresh token's own death condemns.
    pub(crate) fn examine(&self, connection: &Connection) {
        // A token set is known by its version and when it was issued: an id may be given to another connection one day.
        let set = (connection.version, connection.issued_at);
        let id = connection.id.clone();
        if self.inner.examined.lock().insert(id.clone(), set) == Some(set) {
            return;
        }
        let keeper = self.clone();
        self.inner.tasks.spawn(async move {
            if let Err(error) = keeper.examine_now(&id, set.0).await {
                tracing::warn!(event = "examination_failed", connection_id = %id, %error, "whether the grant lives could not be found out");
            }
        });
    }

    async fn examine_now(&self, id: &ConnectionId, version: Version) -> Result<(), KeepError> {
        let held = self.held(id).await?;
        let app = self.configured(&held.connection.app)?;
        let refresh_token = held.tokens.and_then(|tokens| tokens.refresh_token);
        let (Some(refresh_token), true) = (refresh_token, app.provider.introspect_url.is_some()) else {
            return Ok(());
        };
        if held.connection.version != version
            || !matches!(
                self.introspect(&app, Introspect::Refresh(&refresh_token)).await,
                Introspected::Inactive
            )
        {
            return Ok(());
        }
        let taken_at = self.inner.clock.boot();
        let now = self.inner.clock.now();
        if let LeaseAnswer::Taken {
            lease, held, earlier, ..
        } = self
            .inner
            .store
            .take_lease(id, version, LEASE, LeaseOn::Active, now)
            .await?
        {
            let holding = Holding {
                app,
                lease,
                held,
                earlier,
                taken_at,
            };
            if self.was_in_a_lifeboat(&holding).await? {
                return Ok(());
            }
            self.condemn(&holding, ReconnectReason::GrantRefused, None)
                .await?;
        }
        Ok(())
    }

    /// Rule 17: the answer that an open attempt waits for may lie in a lifeboat. Then the right is given back, and what landed
    /// counts.
    async fn was_in_a_lifeboat(&self, holding: &Holding) -> Result<bool, KeepError> {
        if holding
            .earlier
            .as_ref()
            .is_none_or(|earlier| earlier.attempts == 0)
        {
            return Ok(false);
        }
        let landed = self.land_lifeboats(Some(&holding.held.connection.id)).await;
        if !matches!(landed, Ok(0)) {
            self.step_back(holding, None).await?;
        }
        Ok(landed? > 0)
    }

    async fn step_back(&self, holding: &Holding, event: Option<Event>) -> Result<(), StoreError> {
        // The trouble that was known stays: only an answer of the provider settles it.
        let trouble = holding.held.connection.trouble.clone();
        self.inner
            .store
            .give_up(
                &holding.lease,
                Presented::No,
                trouble,
                event,
                self.inner.clock.now(),
            )
            .await
    }

    /// What a caller gets when no new token came: the token at hand while it serves, unless it is the token that was
    /// rejected, or somebody asked for a new one.
    fn fall_back(&self, held: &Held, token: &Arc<Current>, why: Why, error: KeepError) -> Outcome {
        match why {
            Why::Due { .. } if self.due(held) != Due::Hard => Ok(token.clone()),
            Why::Due { .. } | Why::Rejected { .. } | Why::Asked { .. } => Err(error),
        }
    }
}
