//! The apps: which secret to use, whether the provider accepts it, what is known about its rotation.

use std::sync::Arc;

use evergrant_domain::app::AppHealth;
use evergrant_domain::event::{Circumstances, Event, EventKind};
use evergrant_domain::redemption::DEADLINE;
use evergrant_domain::token_answer::{Failure, Introspected};
use evergrant_domain::{App, AppName, ClientSecret};
use evergrant_oauth::{ClientCheck, Introspect};
use evergrant_store::StoreError;
use evergrant_store::contract::{AppState, CredentialsRejected};
use tokio::time::Instant;

use crate::error::KeepError;
use crate::keeper::Keeper;

impl Keeper {
    /// Whether the provider accepts the app's own credentials, as far as anyone knows.
    pub async fn app_health(&self, name: &AppName) -> Result<AppHealth, KeepError> {
        let app = self.configured(name)?;
        let state = self.inner.store.app_state(&app.name).await?;
        Ok(match self.counts(&app, &state) {
            Some(rejected) => AppHealth::CredentialsRejected {
                code: rejected.code.clone(),
                since: rejected.since,
            },
            None => AppHealth::Ok,
        })
    }

    /// Asks the provider whether it accepts the app's credentials; no grant is touched. With several secrets, one that is
    /// accepted is enough.
    pub async fn check_app(&self, name: &AppName) -> Result<ClientCheck, KeepError> {
        let app = self.configured(name)?;
        let mut worst = ClientCheck::Unknown(Failure::without_answer("no_client_secret"));
        for secret in self.secrets_in_order(&app).await? {
            match self.inner.endpoint.check_client(&app, &secret, DEADLINE).await {
                ClientCheck::Accepted => {
                    self.note_secret_that_worked(&app, &secret).await;
                    return Ok(ClientCheck::Accepted);
                }
                other => worst = other,
            }
        }
        if let ClientCheck::Refused(failure) = &worst {
            self.reject_app(&app, failure).await?;
        }
        Ok(worst)
    }

    pub(crate) fn configured(&self, name: &AppName) -> Result<Arc<App>, KeepError> {
        self.app(name)
            .ok_or_else(|| KeepError::AppNotConfigured { app: name.clone() })
    }

    /// The secret that worked last, then the others, newest first.
    pub(crate) async fn secrets_in_order(&self, app: &App) -> Result<Vec<ClientSecret>, StoreError> {
        if app.client_secrets.len() < 2 {
            return Ok(app.client_secrets.clone());
        }
        let state = self.inner.store.app_state(&app.name).await?;
        Ok(self.secrets(app, &state))
    }

    /// The same, where the app's state was read already.
    pub(crate) fn secrets(&self, app: &App, state: &AppState) -> Vec<ClientSecret> {
        let mut secrets = app.client_secrets.clone();
        if secrets.len() > 1
            && let Some(worked) = &state.secret_that_worked
        {
            secrets.sort_by_key(|secret| self.secret_fingerprint(app, secret) != *worked);
        }
        secrets
    }

    /// A refusal counts only for the credentials that were refused: a changed configuration clears it.
    pub(crate) fn counts<'a>(&self, app: &App, state: &'a AppState) -> Option<&'a CredentialsRejected> {
        let rejected = state.rejected.as_ref()?;
        (rejected.credentials_fingerprint == self.credentials_fingerprint(app)).then_some(rejected)
    }

    pub(crate) async fn reject_app(&self, app: &App, failure: &Failure) -> Result<(), StoreError> {
        tracing::error!(
            event = "app_credentials_rejected",
            app = %app.name,
            code = %failure.code,
            "the provider refuses the client id or secret of this app: correct them in the configuration; no connection is lost"
        );
        let now = self.inner.clock.now();
        let rejected = CredentialsRejected {
            code: failure.code.clone(),
            since: now,
            credentials_fingerprint: self.credentials_fingerprint(app),
        };
        let event = Event::new(
            EventKind::CredentialsRejected,
            format!("the provider refuses the client id or secret: {}", failure.code),
        )
        .during(Circumstances {
            provider_correlation_id: failure.correlation_id.clone(),
            status_code: failure.http_status,
            ..Circumstances::default()
        });
        self.inner
            .store
            .reject_app(&app.name, rejected.clone(), event)
            .await?;
        let rejected = Some(rejected);
        self.known_at_rest(
            app,
            AppState {
                rejected,
                ..AppState::default()
            },
            None,
        );
        Ok(())
    }

    /// One success clears a refusal. Written only where it changes something: most redemptions change nothing here.
    pub(crate) async fn note_secret_that_worked(&self, app: &App, secret: &ClientSecret) {
        match self.inner.store.app_state(&app.name).await {
            Ok(state) => self.note_success(app, &state, secret).await,
            Err(error) => not_noted(app, &error),
        }
    }

    /// The same, where the app's state was read already.
    pub(crate) async fn note_success(&self, app: &App, state: &AppState, secret: &ClientSecret) {
        let fingerprint = self.secret_fingerprint(app, secret);
        if state.rejected.is_none() && state.secret_that_worked.as_ref() == Some(&fingerprint) {
            return;
        }
        let event = Event::new(
            EventKind::CredentialsAccepted,
            "the provider accepts the client id and secret again",
        );
        let now = self.inner.clock.now();
        match self
            .inner
            .store
            .accept_app(&app.name, fingerprint, event, now)
            .await
        {
            Ok(()) if state.rejected.is_some() => {
                self.inner.at_rest.lock().remove(&app.name);
                tracing::info!(event = "app_credentials_accepted", app = %app.name, "the provider accepts this app's credentials again");
            }
            Ok(()) => {}
            Err(error) => not_noted(app, &error),
        }
    }

    /// The provider was seen to rotate although that was not expected: from now on nothing is presented twice.
    pub(crate) async fn expect_rotation(&self, app: &App) {
        match self
            .inner
            .store
            .switch_to_single_use(&app.name, self.inner.clock.now())
            .await
        {
            Ok(true) => tracing::error!(
                event = "rotation_seen",
                app = %app.name,
                "the provider answered with another refresh token than it was given; from now on each is taken to be single use"
            ),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(event = "store_error", app = %app.name, %error, "that the provider rotates could not be noted");
            }
        }
    }

    /// Introspects with the first secret that the provider accepts.
    pub(crate) async fn introspect(&self, app: &App, token: Introspect<'_>) -> Introspected {
        match self.secrets_in_order(app).await {
            Ok(secrets) => self.introspect_with(app, secrets, token).await,
            Err(_) => Introspected::Unknown(Failure::without_answer("store_unavailable")),
        }
    }

    /// The same, with these secrets.
    pub(crate) async fn introspect_with(
        &self,
        app: &App,
        secrets: Vec<ClientSecret>,
        token: Introspect<'_>,
    ) -> Introspected {
        let deadline = Instant::now() + DEADLINE;
        let mut answer = Introspected::Unknown(Failure::without_answer("no_client_secret"));
        for secret in secrets {
            let left = deadline.saturating_duration_since(Instant::now());
            answer = self.inner.endpoint.introspect(app, &secret, token, left).await;
            if !matches!(answer, Introspected::ClientRefused(_)) {
                break;
            }
        }
        answer
    }

    fn secret_fingerprint(&self, app: &App, secret: &ClientSecret) -> String {
        self.inner
            .vault
            .fingerprint(&format!("client_secret/{}", app.name), secret.expose())
    }

    fn credentials_fingerprint(&self, app: &App) -> String {
        let mut all = app.client_id.clone();
        for secret in &app.client_secrets {
            all.push('\n');
            all.push_str(&self.secret_fingerprint(app, secret));
        }
        self.inner.vault.fingerprint("client_credentials", &all)
    }
}

fn not_noted(app: &App, error: &StoreError) {
    tracing::warn!(event = "store_error", app = %app.name, %error, "which client secret works could not be noted");
}
