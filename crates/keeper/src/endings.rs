//! How a redemption ends that brought no token: let go, put off, or judged. PROTOCOL rules 2 and 7 to 13.

use std::sync::Arc;

use evergrant_domain::connection::RefreshTrouble;
use evergrant_domain::event::{Circumstances, Event, EventKind};
use evergrant_domain::redemption::{self, LEASE, backoff};
use evergrant_domain::token_answer::{Failure, Introspected};
use evergrant_domain::token_set::Due;
use evergrant_domain::{
    App, Connection, ConnectionId, ConnectionStatus, ReconnectReason, Timestamp, TokenSet, Version,
};
use evergrant_oauth::Introspect;
use evergrant_store::StoreError;
use evergrant_store::contract::{Held, Lease, LeaseAnswer, LeaseOn, Presented};
use tokio::time::Instant;

use crate::asker::Asker;
use crate::cache::Current;
use crate::error::KeepError;
use crate::flight::Outcome;
use crate::keeper::Keeper;
use crate::redeem::{Holding, Turn, Why};
use crate::tenure::Tenure;

impl Keeper {
    /// Why nothing is tried now, as far as it is known without asking anybody: the last failure's pause is not over, or the app
    /// was seen to be at rest a moment ago.
    pub(crate) fn reason_to_wait(
        &self,
        app: &App,
        held: &Held,
        at_hand: Option<&Current>,
        why: Why,
    ) -> Option<KeepError> {
        let now = self.inner.clock.now();
        let trouble = held.connection.trouble.as_ref();
        let error = match trouble.filter(|trouble| now < trouble.next_attempt_at && !why.is_forced()) {
            Some(trouble) => KeepError::ProviderUnavailable {
                code: trouble.code.clone(),
                retry_after: trouble.next_attempt_at.since(now),
            },
            None => self.app_was_at_rest(app, &held.connection.id, now)?,
        };
        if let Some(token) = at_hand {
            self.rest(token, &error);
        }
        Some(error)
    }

    /// Begins no refresh behind a call before it is worth asking again.
    fn rest(&self, token: &Current, error: &KeepError) {
        if let KeepError::ProviderUnavailable { retry_after, .. } = error {
            token.rest_until(self.inner.clock.boot() + *retry_after);
        }
    }

    /// What a caller gets when no new token came: the token at hand while it serves, unless it is the token that was
    /// rejected, or somebody asked for a new one.
    pub(crate) fn fall_back(
        &self,
        held: &Held,
        at_hand: Option<&Arc<Current>>,
        why: Why,
        error: KeepError,
    ) -> Outcome {
        match (why, at_hand) {
            (Why::Due { .. }, Some(token)) if self.due(held) != Due::Hard => Ok(token.clone()),
            (Why::Due { .. } | Why::Rejected { .. } | Why::Asked { .. }, _) => Err(error),
        }
    }

    /// The redemption is over for this reason; the token at hand goes on serving.
    pub(crate) fn over(&self, holding: &Holding, error: KeepError) -> Turn {
        // Whoever was stopped past its lease may have been overtaken: what is stored counts, not what it has met.
        if !holding.tenure.lasts(self.inner.clock.boot()) {
            return Turn::LookAgain;
        }
        if let Some(token) = &holding.at_hand {
            self.rest(token, &error);
        }
        Turn::Over(self.fall_back(&holding.held, holding.at_hand.as_ref(), holding.why, error))
    }

    /// Rule 2: who steps back before the first byte takes its attempt back.
    pub(crate) async fn step_back(
        &self,
        lease: &Lease,
        held: &Held,
        event: Option<Event>,
    ) -> Result<(), StoreError> {
        // The trouble that was known stays: only an answer of the provider settles it.
        let trouble = held.connection.trouble.clone();
        let now = self.inner.clock.now();
        self.inner
            .store
            .give_up(lease, Presented::No, trouble, event, now)
            .await
    }

    /// A redemption that brought nothing, for a reason that may pass.
    pub(crate) async fn unfinished(
        &self,
        holding: &Holding,
        presented: Presented,
        failure: Failure,
    ) -> Result<Turn, KeepError> {
        let now = self.inner.clock.now();
        let connection = &holding.held.connection;
        let trouble = connection.trouble.as_ref();
        let failures = trouble.map_or(0, |trouble| trouble.failures).saturating_add(1);
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
        .during(holding.circumstances(Some(&failure), now));
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
        Ok(self.over(holding, error))
    }

    /// Rule 8: nobody knows whether a token set was issued. The attempt stays counted, and the refresh token rests.
    pub(crate) async fn lost(
        &self,
        holding: &Holding,
        tokens: &TokenSet,
        mut failure: Failure,
    ) -> Result<Turn, KeepError> {
        let now = self.inner.clock.now();
        let quiet = redemption::quiet_until(
            holding.earlier.as_ref(),
            holding.lease.version(),
            holding.rotation(),
            holding.app.provider.introspect_url.is_some(),
            holding.serves_until(tokens),
            now,
        );
        failure.retry_after = failure.retry_after.max(quiet.map(|until| until.since(now)));
        self.unfinished(holding, Presented::Unknown, failure).await
    }

    /// Rule 11: a refusal is evidence. What it says, where nothing has moved since, depends on what may have been lost before.
    pub(crate) async fn grant_refused(
        &self,
        holding: &Holding,
        tokens: &TokenSet,
        failure: Failure,
    ) -> Result<Turn, KeepError> {
        let reason = match holding.held.connection.status {
            // A person's try changes nothing about what was lost.
            ConnectionStatus::ReconnectRequired { reason, .. } => reason,
            ConnectionStatus::Active | ConnectionStatus::Disconnected { .. } => {
                redemption::reason_of_refusal(tokens.unproven, holding.earlier.as_ref())
            }
        };
        self.condemn(holding, reason, Some(failure)).await
    }

    /// Rule 11: the verdict is one conditional statement. Where it does not hold any more, somebody else's result counts.
    pub(crate) async fn condemn(
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
            .during(holding.circumstances(failure.as_ref(), now));
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

    /// The app was uninstalled in the connection's account at this time, as the provider has told or confirmed: nothing is redeemed
    /// for it any more, and its customer must install the app again. A consent that was given at that time or later stands.
    /// `why` is for the history. `false`: nothing was changed.
    pub async fn uninstalled(&self, id: &ConnectionId, at: Timestamp, why: &str) -> Result<bool, KeepError> {
        let reason = ReconnectReason::Uninstalled;
        let event = Event::new(
            EventKind::ReconnectRequired,
            format!("{}: {why}", reason.meaning()),
        );
        let now = self.inner.clock.now();
        let marked = self.inner.store.mark_uninstalled(id, at, event, now).await?;
        if marked {
            self.inner.cache.forget(id);
            tracing::error!(
                event = "reconnect_required",
                connection_id = %id,
                reason = reason.as_str(),
                "the connection needs reconnecting: {}",
                reason.meaning()
            );
        }
        Ok(marked)
    }

    /// Rule 12: nobody is condemned for what is the endpoint's fault.
    pub(crate) async fn endpoint_fault(
        &self,
        holding: &Holding,
        failure: Failure,
    ) -> Result<Turn, KeepError> {
        tracing::error!(
            event = "token_endpoint_fault",
            app = %holding.app.name,
            connection_id = %holding.held.connection.id,
            code = %failure.code,
            status_code = failure.http_status,
            "the token endpoint answered something that is no answer to a refresh; check its URL and version"
        );
        self.unfinished(holding, Presented::No, failure).await
    }

    /// Rule 9: the app is to blame, and no connection's state changes.
    pub(crate) async fn client_refused(
        &self,
        holding: &Holding,
        failure: Failure,
    ) -> Result<Turn, KeepError> {
        let event = Event::new(
            EventKind::RefreshFailed,
            format!("the provider refused the app's credentials: {failure}"),
        )
        .during(Circumstances {
            // Nothing is wrong with the connection, so this is no failure of its own: the app's rejection is told of.
            failures_before: None,
            ..holding.circumstances(Some(&failure), self.inner.clock.now())
        });
        self.step_back(&holding.lease, &holding.held, Some(event)).await?;
        self.reject_app(&holding.app, &failure).await?;
        let error = KeepError::AppCredentialsRejected {
            app: holding.app.name.clone(),
            code: failure.code,
        };
        Ok(self.over(holding, error))
    }

    /// Rule 17: the answer that an open attempt waits for may lie in a lifeboat. Then the right is given back, and what landed
    /// counts.
    pub(crate) async fn was_in_a_lifeboat(&self, holding: &Holding) -> Result<bool, KeepError> {
        let open = holding.earlier.as_ref().map_or(0, |earlier| earlier.attempts);
        if open == 0 {
            return Ok(false);
        }
        let landed = self.land_lifeboats(Some(&holding.held.connection.id)).await;
        if !matches!(landed, Ok(0)) {
            self.step_back(&holding.lease, &holding.held, None).await?;
        }
        Ok(landed? > 0)
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

    /// Forgets that token sets were examined which were issued before `before`. One that is rejected still is examined once more.
    pub(crate) fn forget_examined(&self, before: Timestamp) {
        self.inner
            .examined
            .lock()
            .retain(|_, (_, issued_at)| *issued_at > before);
    }

    async fn examine_now(&self, id: &ConnectionId, version: Version) -> Result<(), KeepError> {
        let held = self.held(id).await?;
        let app = self.configured(&held.connection.app)?;
        let refresh_token = held.tokens.and_then(|tokens| tokens.refresh_token);
        let (Some(refresh_token), true) = (refresh_token, app.provider.introspect_url.is_some()) else {
            return Ok(());
        };
        let state = self.inner.store.app_state(&app.name).await?;
        let question = Introspect::Refresh(&refresh_token);
        if held.connection.version != version
            || !matches!(
                self.introspect_with(&app, self.secrets(&app, &state), question)
                    .await,
                Introspected::Inactive
            )
        {
            return Ok(());
        }
        let asked_at = self.inner.clock.boot();
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
                asker: Asker::SCHEDULER.kept(),
                waited_for: false,
                began: Instant::now(),
                app,
                why: Why::Rejected { version },
                at_hand: None,
                tenure: Arc::new(Tenure::new(lease.clone(), asked_at)),
                lease,
                held,
                earlier,
                state,
            };
            // An open attempt explains it, too: its answer may land still, and whoever redeems next judges it in its time.
            if holding
                .earlier
                .as_ref()
                .is_some_and(|earlier| earlier.attempts > 0)
            {
                return Ok(self.step_back(&holding.lease, &holding.held, None).await?);
            }
            let unproven = holding.held.connection.unproven;
            self.condemn(&holding, redemption::reason_of_refusal(unproven, None), None)
                .await?;
        }
        Ok(())
    }
}
