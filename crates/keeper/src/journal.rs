//! Uninstalls, as the provider's journal tells of them, read by one process of the fleet at a time.
//!
//! An uninstall counts against the consent that was there when it happened. It may be told of days later, when the customer has long
//! installed the app again: so the times decide, and where the provider introspects refresh tokens, it is asked before a grant is given
//! up whose times speak against it (PROTOCOL rule 13). What a page comes to and how far was read change in one transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::journal::{NextPage, Uninstalled, read_next, read_page};
use evergrant_domain::redemption::DEADLINE;
use evergrant_domain::token_answer::{Failure, Introspected, TokenAnswer};
use evergrant_domain::webhook::refusal_in;
use evergrant_domain::{AccessToken, App, AppName, Connection, ConnectionStatus, ReconnectReason, Timestamp};
use evergrant_oauth::Introspect;
use evergrant_store::StoreError;
use evergrant_store::contract::{ConnectionFilter, JournalStep, Uninstall};

use crate::keeper::Keeper;

/// How long one process has an app's journal to itself; it is read once in that time.
const TURN: Duration = Duration::from_secs(30);
/// How many pages are read in one turn.
const PAGES_AT_ONCE: u32 = 20;
/// How long it is left alone after a refusal that only a change of the app's registration can mend.
const REFUSED_REST: Duration = Duration::from_secs(15 * 60);
/// How many connections of one app an account can have, one for each customer: more are not looked at.
const CONNECTIONS_MAX: u32 = 1000;

/// What this process knows of the journals that it reads.
#[derive(Default)]
pub(crate) struct Journals {
    apps: Vec<AppName>,
    /// The apps' own tokens, and until when they serve, in boot time.
    tokens: HashMap<AppName, (AccessToken, Duration)>,
    /// Until when a journal is left alone, in boot time.
    rests: HashMap<AppName, Duration>,
}

impl Keeper {
    /// Reads the journals of these apps from now on.
    pub fn read_journals_of(&self, apps: Vec<AppName>) {
        let mut journals = self.inner.journals.lock();
        journals.tokens.clear();
        journals.rests.clear();
        journals.apps = apps;
    }

    /// Reads what the journals tell since the last time, where no other process does.
    pub async fn read_journals(&self) -> Result<(), StoreError> {
        let apps = self.inner.journals.lock().apps.clone();
        for app in apps.iter().filter_map(|name| self.app(name)) {
            let boot = self.inner.clock.boot();
            let rests = self
                .inner
                .journals
                .lock()
                .rests
                .get(&app.name)
                .is_some_and(|until| boot < *until);
            if !rests {
                self.read_journal(&app).await?;
            }
        }
        Ok(())
    }

    async fn read_journal(&self, app: &Arc<App>) -> Result<(), StoreError> {
        let store = &self.inner.store;
        let now = self.inner.clock.now();
        let Some(journal) = store.claim_journal(&app.name, TURN, now).await? else {
            return Ok(());
        };
        let Some(token) = self.own_token(app).await? else {
            return Ok(());
        };
        if !journal.is_subscribed && !self.subscribe(app, &token).await? {
            return Ok(());
        }
        let mut position = journal.position;
        for _ in 0..PAGES_AT_ONCE {
            let asked = self
                .inner
                .endpoint
                .next_page(app, &token, position.as_deref(), DEADLINE)
                .await;
            let answer = match asked {
                Ok(answer) => answer,
                Err(failure) => {
                    self.leave_alone(app, &failure.code, failure.retry_after);
                    return Ok(());
                }
            };
            let (uninstalled, to) = match read_next(answer.status, &answer.body) {
                NextPage::At { url, position } => match self.uninstalls_at(app, url).await {
                    Some(uninstalled) => (uninstalled, Some(position)),
                    None => return Ok(()),
                },
                NextPage::NotYet => return Ok(()),
                // The earliest that is there is as good as nothing: it was written before, or never.
                NextPage::PositionLost if position.is_none() => return Ok(()),
                NextPage::PositionLost => {
                    tracing::warn!(
                        event = "journal_place_lost",
                        app = %app.name,
                        "the provider does not know any more how far its journal was read: it is read from its beginning"
                    );
                    (Vec::new(), None)
                }
                NextPage::TokenRefused => {
                    self.inner.journals.lock().tokens.remove(&app.name);
                    return Ok(());
                }
                NextPage::Forbidden => {
                    self.leave_alone(app, "missing_scopes", Some(REFUSED_REST));
                    return Ok(());
                }
                NextPage::Unclear => {
                    let code = format!("status {}", answer.status);
                    self.leave_alone(app, &code, answer.retry_after);
                    return Ok(());
                }
            };
            let step = self.judged(app, position, to.clone(), uninstalled).await?;
            let now = self.inner.clock.now();
            let Some(marked) = store.advance_journal(&app.name, step, now).await? else {
                return Ok(());
            };
            for id in marked {
                self.inner.cache.forget(&id);
                tracing::error!(
                    event = "reconnect_required",
                    connection_id = %id,
                    app = %app.name,
                    reason = ReconnectReason::Uninstalled.as_str(),
                    "the connection needs reconnecting: {}",
                    ReconnectReason::Uninstalled.meaning()
                );
            }
            position = to;
        }
        Ok(())
    }

    /// The app's own token; `None` where none can be had now.
    async fn own_token(&self, app: &Arc<App>) -> Result<Option<AccessToken>, StoreError> {
        let boot = self.inner.clock.boot();
        if let Some((token, ends)) = self.inner.journals.lock().tokens.get(&app.name)
            && boot < *ends
        {
            return Ok(Some(token.clone()));
        }
        let mut refused = Failure::without_answer("no_client_secret");
        for secret in self.secrets_in_order(app).await? {
            match self.inner.endpoint.own_token(app, &secret, DEADLINE).await {
                TokenAnswer::Issued(issued) => {
                    self.note_secret_that_worked(app, &secret).await;
                    // Half of its life is enough for what is read every half minute.
                    let ends = boot + issued.lifetime / 2;
                    let token = issued.access_token.clone();
                    let mut journals = self.inner.journals.lock();
                    journals.tokens.insert(app.name.clone(), (token.clone(), ends));
                    return Ok(Some(token));
                }
                TokenAnswer::ClientRefused(failure) => refused = failure,
                TokenAnswer::NotIssued(failure) | TokenAnswer::Lost(failure) => {
                    self.leave_alone(app, &failure.code, failure.retry_after);
                    return Ok(None);
                }
                // `BAD_SCOPES` above all: the app lacks the journal's.
                TokenAnswer::EndpointFault(failure)
                | TokenAnswer::CodeRefused(failure)
                | TokenAnswer::GrantRefused(failure)
                | TokenAnswer::WrongClient(failure) => {
                    self.leave_alone(app, &failure.code, Some(REFUSED_REST));
                    return Ok(None);
                }
            }
        }
        self.reject_app(app, &refused).await?;
        self.leave_alone(app, &refused.code, Some(REFUSED_REST));
        Ok(None)
    }

    /// Asks for uninstalls to be written, once. `false`: not yet.
    async fn subscribe(&self, app: &Arc<App>, token: &AccessToken) -> Result<bool, StoreError> {
        let asked = self
            .inner
            .endpoint
            .subscribe_to_uninstalls(app, token, DEADLINE)
            .await;
        match asked {
            // 409: it is there already, from another installation or from before.
            Ok(answer) if matches!(answer.status, 200..=299 | 409) => {
                let now = self.inner.clock.now();
                self.inner.store.journal_subscribed(&app.name, now).await?;
                Ok(true)
            }
            Ok(answer) => {
                let rest = (answer.status == 403).then_some(REFUSED_REST);
                self.leave_alone(
                    app,
                    &format!("status {}", answer.status),
                    answer.retry_after.or(rest),
                );
                Ok(false)
            }
            Err(failure) => {
                self.leave_alone(app, &failure.code, failure.retry_after);
                Ok(false)
            }
        }
    }

    /// The uninstalls that a page tells of; `None` where it could not be fetched now. One that is no page is passed over, or all that
    /// comes behind it would never be read.
    async fn uninstalls_at(&self, app: &App, url: url::Url) -> Option<Vec<Uninstalled>> {
        if let Some(why) = refusal_in(&url) {
            tracing::error!(event = "journal_page_refused", app = %app.name, "the journal names a page at an address that {why}: it is passed over");
            return Some(Vec::new());
        }
        let answer = match self.inner.endpoint.page(url, DEADLINE).await {
            Ok(answer) if (200..300).contains(&answer.status) => answer,
            Ok(answer) => {
                self.leave_alone(app, &format!("status {}", answer.status), answer.retry_after);
                return None;
            }
            Err(failure) if matches!(failure.code.as_str(), "answer_too_long" | "answer_encoded") => {
                tracing::error!(event = "journal_page_unreadable", app = %app.name, code = %failure.code, "a page of the journal is passed over");
                return Some(Vec::new());
            }
            Err(failure) => {
                self.leave_alone(app, &failure.code, failure.retry_after);
                return None;
            }
        };
        Some(read_page(&answer.body, rfc3339).unwrap_or_else(|why| {
            tracing::error!(event = "journal_page_unreadable", app = %app.name, code = why, "a page of the journal is passed over");
            Vec::new()
        }))
    }

    /// What the uninstalls of a page come to.
    async fn judged(
        &self,
        app: &Arc<App>,
        from: Option<String>,
        to: Option<String>,
        uninstalled: Vec<Uninstalled>,
    ) -> Result<JournalStep, StoreError> {
        let mut step = JournalStep {
            from,
            to,
            uninstalls: Vec::new(),
            notes: Vec::new(),
        };
        for uninstalled in uninstalled {
            let filter = ConnectionFilter {
                apps: vec![app.name.clone()],
                accounts: vec![uninstalled.account.to_string()],
                statuses: vec!["active".to_owned(), "reconnect_required".to_owned()],
                limit: CONNECTIONS_MAX,
                ..ConnectionFilter::default()
            };
            for connection in self.inner.store.list(filter).await? {
                match self
                    .why_it_does_not_count(app, &connection, uninstalled.at)
                    .await?
                {
                    Some(why) => {
                        let told = format!("the provider's journal tells of an uninstall, and {why}");
                        step.notes
                            .push((connection.id, Event::new(EventKind::UninstallIgnored, told)));
                    }
                    None => step.uninstalls.push(Uninstall {
                        connection: connection.id,
                        at: uninstalled.at,
                        event: Event::new(
                            EventKind::ReconnectRequired,
                            format!(
                                "{}: the provider's journal tells it",
                                ReconnectReason::Uninstalled.meaning()
                            ),
                        ),
                    }),
                }
            }
        }
        // In one order, so that two that write at once wait for each other only once.
        step.uninstalls.sort_by(|a, b| a.connection.cmp(&b.connection));
        Ok(step)
    }

    /// Why an uninstall at that time says nothing about the consent that is there now; `None` where it does.
    async fn why_it_does_not_count(
        &self,
        app: &App,
        connection: &Connection,
        at: Timestamp,
    ) -> Result<Option<&'static str>, StoreError> {
        if at <= connection.connected_at {
            return Ok(Some("the customer has installed the app since"));
        }
        if !matches!(connection.status, ConnectionStatus::Active) || app.provider.introspect_url.is_none() {
            return Ok(None);
        }
        // The provider's clock and ours may differ; a refresh token that lives proves the install that issued it.
        let held = self.inner.store.held(&connection.id).await?;
        let refresh_token = held
            .filter(|held| held.connection.version == connection.version)
            .and_then(|held| held.tokens)
            .and_then(|tokens| tokens.refresh_token);
        let Some(refresh_token) = refresh_token else {
            return Ok(None);
        };
        Ok(
            match self.introspect(app, Introspect::Refresh(&refresh_token)).await {
                Introspected::Active(_) => Some("the grant is alive, by the provider's own word"),
                Introspected::Inactive | Introspected::ClientRefused(_) | Introspected::Unknown(_) => None,
            },
        )
    }

    fn leave_alone(&self, app: &App, code: &str, rest: Option<Duration>) {
        tracing::warn!(
            event = "journal_not_read",
            app = %app.name,
            code,
            "the provider's journal of uninstalls could not be read; until it can, an uninstall is found out by the next redemption"
        );
        if let Some(rest) = rest {
            let until = self.inner.clock.boot() + rest.min(REFUSED_REST);
            self.inner.journals.lock().rests.insert(app.name.clone(), until);
        }
    }
}

fn rfc3339(text: &str) -> Option<Timestamp> {
    let at: jiff::Timestamp = text.parse().ok()?;
    Some(Timestamp::from_millis(at.as_millisecond()))
}
