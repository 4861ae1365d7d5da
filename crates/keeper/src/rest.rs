//! When an app is left alone: its credentials are refused, or its token endpoint does not work. Shared by the fleet: one
//! redemption finds out for all whether that is over.

use std::time::Duration;

use evergrant_domain::breaker::{Evidence, Passage};
use evergrant_domain::redemption::DEADLINE;
use evergrant_domain::{App, ConnectionId, Timestamp};
use evergrant_store::contract::AppState;

use crate::error::KeepError;
use crate::keeper::Keeper;
use crate::redeem::Holding;

/// While an app's credentials are refused, one redemption in this time looks whether they still are. Rule 9.
const CANARY_EVERY: Duration = Duration::from_secs(30);

/// How often that may be one of a connection that never refreshed before, and so proves less: only where no other asks.
const UNPROVEN_CANARY_EVERY: Duration = Duration::from_secs(300);

/// A probe of an endpoint at rest has ended by then, well or ill.
const PROBE_EVERY: Duration = DEADLINE;

/// How soon to ask again while a probe is under way.
const PROBE_SOON: Duration = Duration::from_secs(1);

/// How long what was read about an app at rest spares others the same look.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// An app at rest, as it was last read.
#[derive(Debug)]
pub(crate) struct Known {
    at: Duration,
    state: AppState,
    /// The only connection that it is known for: another one may be let through as the probe.
    only: Option<ConnectionId>,
}

/// Why an app rests, and how often one redemption may look whether it still must.
struct Rest {
    error: KeepError,
    probe_every: Option<Duration>,
}

impl Keeper {
    /// Why an app is left alone, as far as it was read a moment ago.
    pub(crate) fn app_was_at_rest(&self, app: &App, id: &ConnectionId, now: Timestamp) -> Option<KeepError> {
        let boot = self.inner.clock.boot();
        let known = self.inner.at_rest.lock();
        let known = known.get(&app.name).filter(|known| boot < known.at + KNOWN_FOR)?;
        if known.only.as_ref().is_some_and(|only| only != id) {
            return None;
        }
        self.rest_of(app, &known.state, now).map(|rest| rest.error)
    }

    /// Why an app is left alone, unless this redemption is the one that finds out for all whether it still must be.
    pub(crate) async fn app_at_rest(&self, holding: &Holding) -> Result<Option<KeepError>, KeepError> {
        let (app, connection) = (&holding.app, &holding.held.connection);
        let now = self.inner.clock.now();
        let Some(rest) = self.rest_of(app, &holding.state, now) else {
            return Ok(None);
        };
        let proves = connection.last.refresh_at.is_some() || holding.why.is_forced();
        let every = match rest.probe_every {
            Some(CANARY_EVERY) if !proves => UNPROVEN_CANARY_EVERY,
            Some(every) => every,
            None => {
                self.known_at_rest(app, holding.state.clone(), None);
                return Ok(Some(rest.error));
            }
        };
        let claim = self
            .inner
            .store
            .claim_probe(&app.name, &connection.id, every, now);
        match claim.await {
            Ok(true) => Ok(None),
            Ok(false) => {
                self.known_at_rest(app, holding.state.clone(), Some(&connection.id));
                Ok(Some(rest.error))
            }
            Err(error) => {
                self.step_back(&holding.lease, &holding.held, None).await?;
                Err(error.into())
            }
        }
    }

    fn rest_of(&self, app: &App, state: &AppState, now: Timestamp) -> Option<Rest> {
        if let Some(rejected) = self.counts(app, state) {
            let soon = now < rejected.since.after(CANARY_EVERY);
            return Some(Rest {
                error: KeepError::AppCredentialsRejected {
                    app: app.name.clone(),
                    code: rejected.code.clone(),
                },
                probe_every: (!soon).then_some(CANARY_EVERY),
            });
        }
        let breaker = state.endpoint.as_ref()?;
        let (retry_after, probe_every) = match breaker.lets_through(now) {
            Passage::Closed => return None,
            Passage::Open(until) => (until.since(now), None),
            Passage::HalfOpen => (PROBE_SOON, Some(PROBE_EVERY)),
        };
        Some(Rest {
            error: KeepError::ProviderUnavailable {
                code: breaker.code.clone(),
                retry_after,
            },
            probe_every,
        })
    }

    /// What was read spares others the same look for a while. A connection that is not the probe says so for itself; the second
    /// one that is not says so for all.
    pub(crate) fn known_at_rest(&self, app: &App, state: AppState, not_the_probe: Option<&ConnectionId>) {
        let at = self.inner.clock.boot();
        let mut at_rest = self.inner.at_rest.lock();
        let other = at_rest
            .get(&app.name)
            .filter(|known| at < known.at + KNOWN_FOR)
            .and_then(|known| known.only.as_ref());
        let only = match (not_the_probe, other) {
            (Some(id), Some(other)) if other != id => None,
            (only, _) => only.cloned(),
        };
        at_rest.insert(app.name.clone(), Known { at, state, only });
    }

    /// Counts what an answer said about the endpoint, for the whole fleet. Written only where it changes something.
    pub(crate) async fn note_evidence(&self, app: &App, state: &AppState, evidence: Evidence) {
        let noted = match evidence {
            Evidence::Nothing => return,
            Evidence::Works if state.endpoint.is_none() => return,
            Evidence::Works => {
                self.inner.at_rest.lock().remove(&app.name);
                self.inner.store.endpoint_works(&app.name).await
            }
            Evidence::Fails { code, retry_after } => {
                let now = self.inner.clock.now();
                let jitter = self.jitter();
                let failed = self
                    .inner
                    .store
                    .endpoint_failed(&app.name, code, retry_after, jitter, now);
                failed.await.map(|breaker| {
                    if breaker.lets_through(now) != Passage::Closed {
                        tracing::error!(
                            event = "token_endpoint_at_rest",
                            app = %app.name,
                            code = %breaker.code,
                            failures = breaker.failures,
                            rests_for_seconds = breaker.rest_until.since(now).as_secs(),
                            "the token endpoint does not work; it is left alone, and one probe finds out when it works again"
                        );
                        let state = AppState {
                            endpoint: Some(breaker),
                            ..state.clone()
                        };
                        self.known_at_rest(app, state, None);
                    }
                })
            }
        };
        if let Err(error) = noted {
            tracing::warn!(event = "store_error", app = %app.name, %error, "how the token endpoint does could not be noted");
        }
    }
}
