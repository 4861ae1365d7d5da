//! What callers ask of a process, and whether what they get is right.

use std::time::Duration;

use evergrant_domain::api_answer::Class;
use evergrant_domain::connection::LastSeen;
use evergrant_domain::{AuthorizationCode, ConnectionStatus, Version};
use evergrant_keeper::{AfterRejection, Consent, Current, KeepError, Keeper, Renewal};
use evergrant_store::contract::Revoke;

use crate::dice::Dice;
use crate::process::{Process, connection_id, customer};
use crate::violation::Oracle;
use crate::witness::Witness;

/// How long what another process did may stay unknown: one look at the feed, a look that just began, and their ways.
const SEEN_WITHIN: Duration = Duration::from_millis(1500);

/// How long a flight goes on.
const FLIGHT_LASTS: Duration = Duration::from_secs(60);

/// How long until every process knows that the store is another one, and reads its feed from the beginning.
const EPOCH_SEEN: Duration = Duration::from_secs(12);

/// A caller of one process.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) process: Process,
    pub(crate) witness: Witness,
    pub(crate) dice: Dice,
    pub(crate) app: evergrant_domain::AppName,
}

/// What must be true of a token when it is handed out.
struct Expected {
    began: Duration,
    /// The version that this process must know of, and whether the connection was disconnected then.
    known: Option<(Version, bool)>,
}

impl Caller {
    fn keeper(&self) -> &Keeper {
        &self.process.keeper
    }

    /// A call to the provider's API with a token, and what follows from a 401.
    pub(crate) async fn call(self, connection: usize) {
        let id = connection_id(connection);
        let expected = self.expect(connection);
        let lifetime = self.witness.scenario.lifetime;
        let wish = self
            .dice
            .happens(0.1)
            .then(|| self.dice.between(Duration::ZERO, lifetime));
        let got = self.keeper().current(&id, wish).await;
        let token = match got {
            Ok(token) => token,
            Err(error) => return self.refused(connection, &error),
        };
        self.handed_out(connection, &token, &expected);
        let now = self.process.keeper.clock().now();
        let seen = LastSeen {
            call_at: Some(now),
            ..LastSeen::default()
        };
        self.keeper().note(&token, &seen);
        let serves = self.serves(&token);
        if serves && !self.dice.happens(0.03) {
            return;
        }
        let expected = self.expect(connection);
        let class = if serves { Class::Rejected } else { Class::Expired };
        self.note(format_args!(
            "is told that {connection} at {} is {}",
            token.version,
            class.as_str()
        ));
        match self.keeper().rejected(&id, token.version, class).await {
            Ok(AfterRejection::Newer { token, .. }) => self.handed_out(connection, &token, &expected),
            Ok(AfterRejection::Stays { .. }) => {}
            Err(error) => self.refused(connection, &error),
        }
    }

    /// A person, or an unforced refresh by a caller.
    pub(crate) async fn refresh(self, connection: usize, renewal: Renewal) {
        self.note(format_args!("is asked to refresh {connection} ({renewal:?})"));
        if let Err(error) = self
            .keeper()
            .refresh(&connection_id(connection), None, renewal)
            .await
        {
            self.refused(connection, &error);
        }
    }

    /// The customer consents, again or for the first time.
    pub(crate) async fn consent(self, connection: usize, code: String) -> bool {
        let consent = Consent {
            app: self.app.clone(),
            customer: Some(customer(connection)),
            connection: Some(connection_id(connection)),
            code: AuthorizationCode::new(code),
            redirect_uri: "https://evergrant.example/oauth/callback".to_owned(),
            code_verifier: None,
            scopes: vec!["oauth".to_owned()],
        };
        let consented = self.keeper().consent(consent).await;
        if let Err(error) = &consented {
            self.note(format_args!("consent for {connection}: {error}"));
        }
        consented.is_ok()
    }

    /// The owner leaves.
    pub(crate) async fn disconnect(self, connection: usize) {
        let revoke = self.dice.one_of(&[Revoke::Auto, Revoke::Always]);
        if let Err(error) = self.keeper().disconnect(&connection_id(connection), revoke).await {
            self.refused(connection, &error);
        }
    }

    /// The owner erases what is left.
    pub(crate) async fn purge(self, connection: usize) {
        // What comes of it is seen in the store.
        let _ = self.keeper().store().purge(&connection_id(connection)).await;
    }

    /// Whether the provider's API takes this token.
    pub(crate) fn serves(&self, token: &Current) -> bool {
        let now = self.witness.now();
        self.witness
            .seen()
            .grants
            .serves(token.access_token.expose(), now)
    }

    fn expect(&self, connection: usize) -> Expected {
        let began = self.witness.now();
        let before = began.saturating_sub(SEEN_WITHIN);
        let awake = self.process.gate.stood_still_since(before).is_zero();
        let informed = awake && self.process.link.was_good_since(before);
        let witnessed = self.witness.seen();
        let known = witnessed
            .stored_at(connection, before)
            .filter(|_| {
                informed
                    && witnessed
                        .lost_commits_at
                        .is_none_or(|at| at + EPOCH_SEEN < before)
            })
            .map(|stored| {
                let disconnected = matches!(stored.status, ConnectionStatus::Disconnected { .. });
                (stored.version, disconnected)
            });
        Expected { began, known }
    }

    fn handed_out(&self, connection: usize, token: &Current, expected: &Expected) {
        let now = self.witness.now();
        let name = &self.process.name;
        let text = token.access_token.expose();
        let seen = self.witness.seen();
        let history = &seen.connections[connection].history;
        let stored = history
            .iter()
            .find(|stored| stored.access_token.as_deref() == Some(text));
        let stored_as = stored.map(|stored| stored.version);
        // Of a connection that was made anew under the same id, say: what was known before does not speak of it.
        let is_news = stored.is_some_and(|stored| stored.since > expected.began.saturating_sub(SEEN_WITHIN));
        let issued = seen.grants.access.get(text).copied();
        let of_it = issued.is_some_and(|(grant, _)| seen.grants.all[grant].connection == connection);
        let ends = issued.map(|(_, ends)| ends);
        drop(seen);
        // What is in hand and not stored yet serves, too.
        if !of_it || stored_as.is_some_and(|version| version != token.version) {
            let what = format!(
                "{name} hands out {text} as version {} of connection {connection}; it was stored as {stored_as:?}",
                token.version
            );
            self.witness.blame(Oracle::WholeAndForward, what);
        }
        if let Some((version, disconnected)) = expected.known
            && !is_news
            && (token.version < version || (disconnected && token.version == version))
        {
            let what = format!(
                "{name} hands out version {} of connection {connection}, which was at {version}{} {SEEN_WITHIN:?} before the call",
                token.version,
                if disconnected { " (disconnected)" } else { "" }
            );
            self.witness.blame(Oracle::SeenInTime, what);
        }
        // Callers of a flight get its result, and a flight may have stood still for long.
        let flight_began = expected.began.saturating_sub(FLIGHT_LASTS);
        let stopped = !self.process.gate.stood_still_since(flight_began).is_zero();
        if ends.is_some_and(|ends| ends <= now) && !stopped && !self.witness.scenario.wall_time_jumps() {
            let what = format!("{name} hands out {text}, which ended at {ends:?}");
            self.witness.blame(Oracle::ServesFresh, what);
        }
    }

    fn refused(&self, connection: usize, error: &KeepError) {
        self.note(format_args!("no token of {connection}: {error}"));
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.witness.trace.note(&self.process.name, what);
    }
}
