//! The only place that presents a refresh token: the seven steps of one redemption, from the lease to the stored answer.
//!
//! The rules named here are PROTOCOL's. What an answer means is judged in [`evergrant_domain::token_answer`], what may follow a
//! lost one in [`evergrant_domain::redemption`]; this file does what they say, in their order. How a redemption ends that brought
//! nothing is in `endings`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use evergrant_domain::breaker::{self, Evidence};
use evergrant_domain::event::{Circumstances, Event, EventKind, RefreshReason};
use evergrant_domain::redemption::{self, DEADLINE, Intent, LEASE, Presenting};
use evergrant_domain::tally::Counted;
use evergrant_domain::token_answer::{Failure, Introspected, TokenAnswer};
use evergrant_domain::token_set::Due;
use evergrant_domain::{
    App, AppName, ClientSecret, ConnectionId, ConnectionStatus, Kind, ReconnectReason, RefreshToken,
    Rotation, Timestamp, TokenSet, Version,
};
use evergrant_metrics::{Redemption, Refresh};
use evergrant_oauth::{Introspect, Redeemed};
use evergrant_store::contract::{AppState, CooldownAnswer, Held, Lease, LeaseAnswer, LeaseOn, Presented};
use evergrant_store::coordination;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use crate::asker::KeptAsker;
use crate::cache::Current;
use crate::error::KeepError;
use crate::flight::Outcome;
use crate::gate::WaitedFor;
use crate::keeper::{Keeper, Renewal};
use crate::tenure::Tenure;

/// How long one flight goes on: another holder's lease, then an exchange of its own.
const FLIGHT_LASTS: Duration = Duration::from_secs(LEASE.as_secs() + DEADLINE.as_secs());

/// How long to wait before looking again at a connection whose lease another holder has.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(500);

/// How long to wait for one's turn before looking again: what a lost wake-up costs at most.
const PATIENCE: Duration = Duration::from_secs(2);

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

    /// The reason as it stands by now: whoever wanted another version than the one that is there has it, but where that has
    /// ended, too, it is redeemed like any other.
    fn now_that(self, held: &Held, due: Due) -> Self {
        match self {
            Self::Rejected { version } | Self::Asked { version, .. }
                if held.connection.version != version && due == Due::Hard =>
            {
                Self::Due { min_ttl: None }
            }
            Self::Due { .. } | Self::Rejected { .. } | Self::Asked { .. } => self,
        }
    }

    /// On which connections a redemption is made for this reason: only a person brings one back whose outcome was lost.
    fn lease_on(self) -> LeaseOn {
        match self {
            Self::Asked {
                renewal: Renewal::Forced,
                ..
            } => LeaseOn::LostOutcome,
            Self::Asked {
                renewal: Renewal::IfOld,
                ..
            }
            | Self::Due { .. }
            | Self::Rejected { .. } => LeaseOn::Active,
        }
    }

    /// The word in traces.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Due { .. } => "due",
            Self::Rejected { .. } => "rejected",
            Self::Asked {
                renewal: Renewal::IfOld,
                ..
            } => "asked",
            Self::Asked {
                renewal: Renewal::Forced,
                ..
            } => "forced",
        }
    }

    /// Whether the pause after a failure is passed over.
    pub(crate) fn is_forced(self) -> bool {
        self.lease_on() == LeaseOn::LostOutcome
    }
}

/// What is told of a flight once it has ended.
struct Course {
    /// Who began it.
    asker: KeptAsker,
    began: Instant,
    /// Whose connection it is, once that was read.
    app: Option<AppName>,
    /// The version that stood when it began.
    first: Option<Version>,
    /// Since when it waits for the lease.
    lease_asked_at: Option<Instant>,
    /// What a token that it ends with says of it.
    brought: Refresh,
}

impl Course {
    fn begin(asker: KeptAsker) -> Self {
        Self {
            asker,
            began: Instant::now(),
            app: None,
            first: None,
            lease_asked_at: None,
            brought: Refresh::NotNeeded,
        }
    }
}

/// The word for a refresh that ended without a token.
fn failed(error: &KeepError) -> Refresh {
    match error {
        KeepError::ReconnectRequired { .. } => Refresh::ReconnectRequired,
        KeepError::Unknown | KeepError::Disconnected | KeepError::Superseded { .. } => Refresh::Disconnected,
        KeepError::AppCredentialsRejected { .. } => Refresh::AppCredentialsRejected,
        KeepError::ProviderUnavailable { .. } => Refresh::ProviderUnavailable,
        KeepError::StoreUnavailable { .. } => Refresh::StoreUnavailable,
        KeepError::Overloaded { .. } => Refresh::Overloaded,
        KeepError::AppNotConfigured { .. } | KeepError::Unreadable { .. } => Refresh::Unusable,
    }
}

/// What one turn of a flight came to.
pub(crate) enum Turn {
    /// It is over.
    Over(Outcome),
    /// Another version is stored: read again.
    Moved,
    /// Somebody else holds the lease, or what was held was let go: wait a little, and read again.
    LookAgain,
}

/// A right to redeem, and what was read under it.
pub(crate) struct Holding {
    /// Who began the flight.
    pub(crate) asker: KeptAsker,
    /// Whether a caller waits for it.
    pub(crate) waited_for: bool,
    /// When the flight began.
    pub(crate) began: Instant,
    pub(crate) app: Arc<App>,
    pub(crate) why: Why,
    /// The token that serves meanwhile, where there is one.
    pub(crate) at_hand: Option<Arc<Current>>,
    pub(crate) lease: Lease,
    pub(crate) tenure: Arc<Tenure>,
    pub(crate) held: Box<Held>,
    /// The attempts before this one.
    pub(crate) earlier: Option<Intent>,
    /// What is known about the app: read once for each redemption.
    pub(crate) state: AppState,
}

impl Keeper {
    /// One flight: until the connection has a token that serves, or there is a reason why not.
    pub(crate) async fn redeem(
        &self,
        asker: &KeptAsker,
        id: &ConnectionId,
        why: Why,
        waited_for: &WaitedFor,
    ) -> Outcome {
        let mut course = Course::begin(asker.clone());
        let outcome = self.redeem_on(id, why, waited_for, &mut course).await;
        self.count(id, &course, &outcome);
        outcome
    }

    async fn redeem_on(
        &self,
        id: &ConnectionId,
        why: Why,
        waited_for: &WaitedFor,
        course: &mut Course,
    ) -> Outcome {
        let ends = course.began + FLIGHT_LASTS;
        let mut pause = LOOK_AGAIN;
        let mut moved = false;
        while Instant::now() < ends {
            let sight = self.inner.cache.sight(id);
            let held = self.held(id).await?;
            let seen = held.connection.version;
            let first = *course.first.get_or_insert(seen);
            course.app = Some(held.connection.app.clone());
            let why = why.now_that(&held, self.due(&held));
            let at_hand = match self.usable(&held) {
                Ok(token) if !why.asks_for_redemption(&held, self.inner.clock.now()) => {
                    if seen > first {
                        course.brought = Refresh::Found;
                    }
                    self.inner.cache.keep(&token, sight);
                    return Ok(token);
                }
                Ok(token) => Some(token),
                Err(_) if why.lease_on().allows(&held.connection.status) => None,
                Err(error) => return Err(error),
            };
            match self.turn(&held, at_hand, why, waited_for, ends, course).await? {
                Turn::Over(outcome) => {
                    course.brought = match &outcome {
                        Ok(token) if token.version > seen => Refresh::Refreshed,
                        Ok(_) | Err(_) => Refresh::PutOff,
                    };
                    return outcome;
                }
                // Once at once: somebody else's result is there. But a store that goes on showing the same is not pressed.
                Turn::Moved if !moved => moved = true,
                Turn::Moved | Turn::LookAgain => {
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

    /// A refresh has ended.
    fn count(&self, id: &ConnectionId, course: &Course, outcome: &Outcome) {
        let metrics = &self.inner.metrics;
        let refresh = match outcome {
            Ok(_) => course.brought,
            Err(error) => failed(error),
        };
        let series = match &course.app {
            Some(app) => metrics.of(app, id),
            None => metrics.app(None),
        };
        series.here().refresh(refresh);
        metrics.refresh_took(course.began.elapsed());
        // What it waited for was brought by another one, or never came.
        if let Some(asked_at) = course.lease_asked_at {
            metrics.lease_waited(asked_at.elapsed());
        }
        let span = Span::current();
        span.record("evergrant.outcome", refresh.as_str());
        if outcome.is_err() {
            span.record("otel.status_code", "ERROR");
            span.record("error.type", refresh.as_str());
        }
    }

    fn note_lease_wait(&self, course: &mut Course) {
        if let Some(asked_at) = course.lease_asked_at.take() {
            self.inner.metrics.lease_waited(asked_at.elapsed());
        }
    }

    async fn turn(
        &self,
        held: &Held,
        at_hand: Option<Arc<Current>>,
        why: Why,
        waited_for: &WaitedFor,
        ends: Instant,
        course: &mut Course,
    ) -> Result<Turn, KeepError> {
        let id = &held.connection.id;
        let version = held.connection.version;
        let app = self.configured(&held.connection.app)?;

        if let Some(error) = self.reason_to_wait(&app, held, at_hand.as_deref(), why) {
            return Ok(Turn::Over(self.fall_back(held, at_hand.as_ref(), why, error)));
        }
        // A 401 redeems at most once per connection and cooldown, in all processes together.
        if let (Why::Rejected { version }, Some(token)) = (why, &at_hand) {
            let now = self.inner.clock.now();
            match self.inner.store.begin_cooldown(id, version, now).await? {
                // A token that is past its end is redeemed for that, whatever a 401 may cost.
                CooldownAnswer::Holds(cooldown)
                    if cooldown.forbids(held.connection.issued_at, now) && self.due(held) != Due::Hard =>
                {
                    return Ok(Turn::Over(Ok(token.clone())));
                }
                CooldownAnswer::Began(_) | CooldownAnswer::Holds(_) => {}
                CooldownAnswer::Moved => return Ok(Turn::Moved),
            }
        }
        // Rule 1: the permit comes before the lease, so that nothing waits between the lease and the sending.
        let _permit = self.permit(&app.name, id, waited_for).await?;
        // Rule 6: the turn only says who waits how. It is kept until the redemption has ended; the lease is what counts.
        let patience = PATIENCE.min(ends.saturating_duration_since(Instant::now()));
        course.lease_asked_at.get_or_insert_with(Instant::now);
        let waiting = tracing::debug_span!("lease", otel.kind = "internal");
        let turn = self.inner.coordination.turn(id, patience);
        let _guard = match turn.instrument(waiting.clone()).await {
            coordination::Turn::Mine(guard) => guard,
            // Never without a turn and never without the lease: what moved meanwhile is used.
            coordination::Turn::NotYet => return Ok(Turn::LookAgain),
        };
        let asked_at = self.inner.clock.boot();
        let now = self.inner.clock.now();
        match self
            .inner
            .store
            .take_lease(id, version, LEASE, why.lease_on(), now)
            .instrument(waiting)
            .await?
        {
            LeaseAnswer::Missing => Ok(Turn::Over(Err(KeepError::Unknown))),
            // Rule 3: without a lease nothing is redeemed; what moved is used.
            LeaseAnswer::Busy => Ok(Turn::LookAgain),
            LeaseAnswer::Moved(_) => Ok(Turn::Moved),
            LeaseAnswer::Taken {
                lease,
                held,
                earlier,
                took_over,
            } => {
                self.note_lease_wait(course);
                let read = async {
                    if took_over {
                        let event = Event::new(
                            EventKind::LeaseTakenOver,
                            "the process that was redeeming is gone or too slow; another one went on",
                        )
                        .during(course.asker.asker().circumstances());
                        self.inner.store.note_event(id, event, now).await?;
                    }
                    self.inner.store.app_state(&app.name).await
                };
                let state = match read.await {
                    Ok(state) => state,
                    Err(error) => {
                        self.step_back(&lease, &held, None).await?;
                        return Err(error.into());
                    }
                };
                let tenure = Arc::new(Tenure::new(lease.clone(), asked_at));
                self.under_lease(Holding {
                    asker: course.asker.clone(),
                    waited_for: waited_for.load(Ordering::SeqCst),
                    began: course.began,
                    app,
                    why,
                    at_hand,
                    lease,
                    tenure,
                    held,
                    earlier,
                    state,
                })
                .await
            }
        }
    }

    /// Rule 4: what was read before the lease does not count any more.
    async fn under_lease(&self, holding: Holding) -> Result<Turn, KeepError> {
        let held = &holding.held;
        let now = self.inner.clock.now();
        let tokens = held.tokens.as_ref();
        let Some(tokens) = tokens.filter(|_| holding.why.asks_for_redemption(held, now)) else {
            self.step_back(&holding.lease, held, None).await?;
            return Ok(Turn::LookAgain);
        };
        let Some(refresh_token) = &tokens.refresh_token else {
            return self.without_refresh_token(&holding, tokens).await;
        };
        if self.was_in_a_lifeboat(&holding).await? {
            return Ok(Turn::Moved);
        }
        if let Some(error) = self.app_at_rest(&holding).await? {
            self.step_back(&holding.lease, held, None).await?;
            return Ok(self.over(&holding, error));
        }
        match holding.presenting(tokens, now) {
            Presenting::Now => self.present(&holding, tokens, refresh_token).await,
            Presenting::AfterIntrospection => {
                let question = Introspect::Refresh(refresh_token);
                let secrets = self.secrets(&holding.app, &holding.state);
                let asked = self.introspect_with(&holding.app, secrets, question);
                match self.under_renewal(&holding.tenure, || false, asked).await {
                    Some(Introspected::Active(_)) => self.present(&holding, tokens, refresh_token).await,
                    Some(Introspected::Inactive) => {
                        self.condemn(&holding, ReconnectReason::RedemptionOutcomeLost, None)
                            .await
                    }
                    Some(Introspected::ClientRefused(failure) | Introspected::Unknown(failure)) => {
                        self.unfinished(&holding, Presented::No, failure).await
                    }
                    None => {
                        self.step_back(&holding.lease, held, None).await?;
                        Ok(Turn::LookAgain)
                    }
                }
            }
            Presenting::NotBefore(at) => {
                let failure = Failure {
                    retry_after: Some(at.since(now)),
                    ..Failure::without_answer("outcome_pending")
                };
                self.unfinished(&holding, Presented::No, failure).await
            }
            Presenting::Exhausted => self.exhausted(&holding, tokens, now).await,
        }
    }

    /// It may have been accepted twice already: no third time by itself. The token serves to its hard end.
    async fn exhausted(
        &self,
        holding: &Holding,
        tokens: &TokenSet,
        now: Timestamp,
    ) -> Result<Turn, KeepError> {
        if holding.held.connection.status != ConnectionStatus::Active {
            self.step_back(&holding.lease, &holding.held, None).await?;
            return Ok(Turn::Over(self.usable(&holding.held)));
        }
        let serves_until = holding.serves_until(tokens);
        if now < serves_until {
            let failure = Failure {
                retry_after: Some(serves_until.since(now)),
                ..Failure::without_answer("outcome_unknown")
            };
            return self.unfinished(holding, Presented::No, failure).await;
        }
        self.condemn(holding, ReconnectReason::RedemptionOutcomeLost, None)
            .await
    }

    async fn without_refresh_token(&self, holding: &Holding, tokens: &TokenSet) -> Result<Turn, KeepError> {
        if tokens.due(self.inner.clock.now()) == Due::Hard || matches!(holding.why, Why::Rejected { .. }) {
            return self.condemn(holding, ReconnectReason::NoRefreshToken, None).await;
        }
        self.step_back(&holding.lease, &holding.held, None).await?;
        Ok(Turn::Over(self.usable(&holding.held)))
    }

    /// Presents the refresh token: one request for each secret that may be the right one, all under one deadline.
    async fn present(
        &self,
        holding: &Holding,
        tokens: &TokenSet,
        refresh_token: &RefreshToken,
    ) -> Result<Turn, KeepError> {
        let deadline = Instant::now() + DEADLINE;
        let mut refused = None;
        for secret in self.secrets(&holding.app, &holding.state) {
            let Some((answer, sent_at)) = self.request(holding, &secret, refresh_token, deadline).await
            else {
                self.step_back(&holding.lease, &holding.held, None).await?;
                return Ok(Turn::LookAgain);
            };
            let evidence = breaker::evidence(&answer);
            let series = self
                .inner
                .metrics
                .of(&holding.app.name, &holding.held.connection.id);
            let counted = counted_as(&answer);
            series.here().redemption(counted);
            self.note_counted(&holding.held.connection.id, &holding.app.name, Counted::Redeemed);
            Span::current().record("evergrant.redemption", counted.as_str());
            let turn = match answer {
                TokenAnswer::Issued(issued) => {
                    let rotation = holding.rotation();
                    let landed = self
                        .store_answer(holding, tokens, *issued, sent_at, rotation)
                        .await;
                    self.note_behind(holding, secret);
                    return landed;
                }
                // Rule 9: nothing was issued, so the next secret may follow under the same lease and deadline.
                TokenAnswer::ClientRefused(failure) => {
                    refused = Some(failure);
                    continue;
                }
                TokenAnswer::NotIssued(failure) => self.unfinished(holding, Presented::No, failure).await,
                TokenAnswer::Lost(failure) => self.lost(holding, tokens, failure).await,
                TokenAnswer::WrongClient(failure) => {
                    self.condemn(holding, ReconnectReason::WrongClient, Some(failure))
                        .await
                }
                TokenAnswer::GrantRefused(failure) => self.grant_refused(holding, tokens, failure).await,
                TokenAnswer::EndpointFault(failure) | TokenAnswer::CodeRefused(failure) => {
                    self.endpoint_fault(holding, failure).await
                }
            };
            // Whoever waits has what there is; the breaker comes after it.
            self.note_evidence(&holding.app, &holding.state, evidence).await;
            return turn;
        }
        let failure = refused.unwrap_or_else(|| Failure::without_answer("no_client_secret"));
        self.note_evidence(&holding.app, &holding.state, Evidence::Works)
            .await;
        self.client_refused(holding, failure).await
    }

    /// Whoever waits has their token, and the store may be away: what a success says about the app is noted behind them.
    fn note_behind(&self, holding: &Holding, secret: ClientSecret) {
        let (app, state) = (holding.app.clone(), holding.state.clone());
        let keeper = self.clone();
        self.inner.tasks.spawn(async move {
            keeper.note_success(&app, &state, &secret).await;
            keeper.note_evidence(&app, &state, Evidence::Works).await;
        });
    }

    /// One request, and when its first byte left. `None` where the lease was not enough any more: then nothing was sent.
    async fn request(
        &self,
        holding: &Holding,
        secret: &ClientSecret,
        refresh_token: &RefreshToken,
        deadline: Instant,
    ) -> Option<(TokenAnswer, Timestamp)> {
        let left = || deadline.saturating_duration_since(Instant::now());
        let sent_at = Mutex::new(None);
        let exchange = self
            .inner
            .endpoint
            .redeem(&holding.app, secret, refresh_token, left(), || async {
                let enough = self.lease_is_enough(&holding.tenure, left).await;
                if enough {
                    *sent_at.lock() = Some(self.inner.clock.now());
                }
                enough
            });
        let begun = || sent_at.lock().is_some();
        let redeemed = self.under_renewal(&holding.tenure, begun, exchange).await?;
        match redeemed {
            Redeemed::SteppedBack => None,
            Redeemed::Answered(answer) => {
                let sent_at = *sent_at.lock();
                Some((answer, sent_at.unwrap_or_else(|| self.inner.clock.now())))
            }
        }
    }
}

/// The word for an answer where redemptions are counted.
fn counted_as(answer: &TokenAnswer) -> Redemption {
    match answer {
        TokenAnswer::Issued(_) => Redemption::Issued,
        TokenAnswer::Lost(_) => Redemption::Lost,
        TokenAnswer::GrantRefused(_) | TokenAnswer::WrongClient(_) => Redemption::GrantRefused,
        TokenAnswer::ClientRefused(_) => Redemption::ClientRefused,
        TokenAnswer::NotIssued(_) | TokenAnswer::EndpointFault(_) | TokenAnswer::CodeRefused(_) => {
            Redemption::NotIssued
        }
    }
}

impl Holding {
    /// What the history says of what came of it.
    pub(crate) fn circumstances(&self, failure: Option<&Failure>, now: Timestamp) -> Circumstances {
        let connection = &self.held.connection;
        let earlier = self.earlier.as_ref().map_or(0, |earlier| earlier.attempts);
        Circumstances {
            provider_correlation_id: failure.and_then(|failure| failure.correlation_id.clone()),
            status_code: failure.and_then(|failure| failure.http_status),
            reason: Some(match self.why {
                Why::Due { .. } if self.waited_for => RefreshReason::WaitedFor,
                Why::Due { .. } => RefreshReason::Due,
                Why::Rejected { .. } => RefreshReason::Rejected,
                Why::Asked {
                    renewal: Renewal::IfOld,
                    ..
                } => RefreshReason::Asked,
                Why::Asked {
                    renewal: Renewal::Forced,
                    ..
                } => RefreshReason::Forced,
            }),
            attempt: Some(earlier.saturating_add(1)),
            seconds_remaining: Some(connection.ends.expires.seconds_from(now)),
            token_version: Some(connection.version),
            failures_before: Some(connection.trouble.as_ref().map_or(0, |trouble| trouble.failures)),
            took: Some(self.began.elapsed()),
            ..self.asker.asker().circumstances()
        }
    }

    /// What attempts of unknown outcome allow; where the outcome was given up for lost, a person asked for one more.
    fn presenting(&self, tokens: &TokenSet, now: Timestamp) -> Presenting {
        let earlier = self.earlier.as_ref();
        match self.held.connection.status {
            ConnectionStatus::ReconnectRequired { since, .. } => {
                redemption::presenting_once_more(earlier, since, now)
            }
            ConnectionStatus::Active | ConnectionStatus::Disconnected { .. } => redemption::presenting(
                earlier,
                self.rotation(),
                self.app.provider.introspect_url.is_some(),
                self.serves_until(tokens),
                now,
            ),
        }
    }

    /// Until when nothing is urgent: the token at hand serves to its hard end, but not where the provider was seen to reject it.
    pub(crate) fn serves_until(&self, tokens: &TokenSet) -> Timestamp {
        let rejected = self
            .held
            .cooldown
            .is_some_and(|cooldown| cooldown.began_at >= tokens.issued_at);
        if rejected {
            tokens.issued_at
        } else {
            tokens.ends.hard
        }
    }

    /// What happens to a redeemed refresh token, as configured or as seen since.
    pub(crate) fn rotation(&self) -> Rotation {
        match (self.app.provider.rotation, self.state.single_use_since) {
            (Rotation::Never, Some(_)) => Rotation::SingleUse,
            (configured, _) => configured,
        }
    }
}
