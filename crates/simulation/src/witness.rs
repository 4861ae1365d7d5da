//! Sees everything: the provider's books, every exchange on the wire, every commit of the store. Judges as it sees.
//!
//! It takes part in nothing. What it knows, no process of a run ever learns.

mod seen;

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::redemption::LEASE;
use evergrant_domain::{ConnectionId, ConnectionStatus, ReconnectReason, Rotation};
use evergrant_store::contract::{Held, LeaseOn};
use parking_lot::{Mutex, MutexGuard};

use self::seen::{Exchange, Regressed, Seen, Stored, Watched};
use crate::gate::Gate;
use crate::grants::{End, Grants, Presented};
use crate::process::connection_id;
use crate::scenario::{Kind, Scenario};
use crate::trace::Trace;
use crate::violation::{Oracle, Violation};

/// Clones are the same one.
#[derive(Clone)]
pub(crate) struct Witness {
    pub(crate) trace: Trace,
    pub(crate) scenario: Arc<Scenario>,
    seen: Arc<Mutex<Seen>>,
}

impl Witness {
    pub(crate) fn new(trace: &Trace, scenario: &Arc<Scenario>) -> Self {
        Self {
            trace: trace.clone(),
            scenario: Arc::clone(scenario),
            seen: Arc::new(Mutex::new(Seen {
                grants: Grants::new(scenario.kind, scenario.family, scenario.lifetime),
                exchanges: Vec::new(),
                connections: (0..scenario.connections).map(|_| Watched::default()).collect(),
                rotation_known: (!scenario.rotation_unknown).then_some(Duration::ZERO),
                takers: Vec::new(),
                excused: std::collections::BTreeSet::new(),
                lost_commits_at: None,
                regressed: Vec::new(),
                violations: Vec::new(),
            })),
        }
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock()
    }

    pub(crate) fn now(&self) -> Duration {
        self.trace.now()
    }

    pub(crate) fn violations(&self) -> Vec<Violation> {
        self.seen().violations.clone()
    }

    /// Something that must never be.
    pub(crate) fn blame(&self, oracle: Oracle, what: String) {
        self.blame_under(&mut self.seen(), oracle, what);
    }

    fn blame_under(&self, seen: &mut Seen, oracle: Oracle, what: String) {
        self.trace.note("VIOLATION", format_args!("{oracle:?}: {what}"));
        seen.violations.push(Violation {
            oracle,
            at: self.now(),
            what,
        });
    }

    /// A process has a connection to the provider.
    pub(crate) fn connected(&self, process: &str, gate: &Gate) -> usize {
        let mut seen = self.seen();
        seen.exchanges.push(Exchange {
            process: process.to_owned(),
            gate: gate.clone(),
            sent: None,
            over: None,
            definite: false,
            issue: None,
            length: None,
            read: 0,
            delivered: None,
        });
        seen.exchanges.len() - 1
    }

    /// The first byte of a redemption leaves: I2, and that what is presented is the stored one.
    pub(crate) fn sends(&self, exchange: usize, refresh_token: &str) {
        let now = self.now();
        let mut seen = self.seen();
        let seen = &mut *seen;
        let process = seen.exchanges[exchange].process.clone();
        self.trace.note(
            &process,
            format_args!("presents {refresh_token} (exchange {exchange})"),
        );
        seen.exchanges[exchange].sent = Some((now, refresh_token.to_owned()));
        let Some(connection) = seen.connection_of(refresh_token) else {
            return;
        };
        if let Some(stored) = seen.connections[connection].history.last()
            && stored.refresh_token.as_deref() != Some(refresh_token)
            && self.scenario.kind != Kind::Never
        {
            let what = format!(
                "{process} presents {refresh_token}, but version {} with {:?} is stored since {:.3}",
                stored.version,
                stored.refresh_token,
                stored.since.as_secs_f64()
            );
            self.blame_under(seen, Oracle::PresentedOnce, what);
        }
        self.judge_regression(seen, &process, refresh_token, now);
        if seen.lost_commits_at.is_some_and(|at| now < at + LEASE) {
            // Leases are lost with the commits that took them.
            return;
        }
        let others: Vec<String> = seen
            .exchanges
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != exchange)
            .filter_map(|(other, e)| {
                let (since, token) = e.sent.as_ref().filter(|_| e.over.is_none())?;
                let theirs = seen.connection_of(token)? == connection;
                let moved_on = token != refresh_token && self.scenario.kind == Kind::Never;
                // Killed or stopped for long: the lease was rightly taken over.
                let gone = e.gate.is_killed() || e.gate.stood_still_since(*since) + DEADLINE_AT_MOST > LEASE;
                (theirs && !moved_on && !gone && seen.same_grant(token, refresh_token))
                    .then(|| format!("exchange {other} of {}", e.process))
            })
            .collect();
        if !others.is_empty() {
            let what = format!("{process} presents {refresh_token} beside {}", others.join(", "));
            self.blame_under(seen, Oracle::OneInFlight, what);
        }
    }

    /// Rule 18: whoever holds the newer set never presents the older one, and gives the store its own back.
    fn judge_regression(&self, seen: &mut Seen, process: &str, refresh_token: &str, now: Duration) {
        let wrong = seen.regressed.iter().find(|regressed| {
            regressed.refresh_token == refresh_token
                && (regressed.holder == process || now > regressed.at + GIVEN_BACK)
        });
        if let Some(regressed) = wrong {
            let what = format!(
                "{process} presents {refresh_token}, which the store shows again since {:?}; {} holds a newer one",
                regressed.at, regressed.holder
            );
            self.blame_under(seen, Oracle::NothingLost, what);
        }
    }

    /// The process lets go of the connection; `leaves` where it does not wait for an answer that may come.
    pub(crate) fn lets_go(&self, exchange: usize, leaves: bool) {
        let now = self.now();
        let mut seen = self.seen();
        let seen = &mut *seen;
        let it = &mut seen.exchanges[exchange];
        it.over.get_or_insert(now);
        if leaves && let Some((_, refresh_token)) = &it.sent {
            let what = format!(
                "{} presented {refresh_token} and did not wait for the answer",
                it.process
            );
            self.blame_under(seen, Oracle::NothingLost, what);
        }
    }

    /// The provider judges a presented refresh token: I1.
    pub(crate) fn judge(&self, exchange: usize, refresh_token: &str) -> Presented {
        let now = self.now();
        let mut seen = self.seen();
        let seen = &mut *seen;
        self.judge_replay(seen, exchange, refresh_token, now);
        let presented = seen.grants.present(refresh_token, now);
        let shown = match &presented {
            Presented::Accepted(issue) => format!("accepts {refresh_token}, issues {}", issue.refresh_token),
            Presented::Refused => format!("refuses {refresh_token}"),
        };
        self.trace
            .note("provider", format_args!("{shown} (exchange {exchange})"));
        if let Presented::Accepted(issue) = &presented {
            seen.exchanges[exchange].issue = Some(issue.clone());
        }
        presented
    }

    fn judge_replay(&self, seen: &mut Seen, exchange: usize, refresh_token: &str, now: Duration) {
        let Some(refresh) = seen.grants.refresh.get_mut(refresh_token) else {
            return;
        };
        // What was sent inside the window and was long on its way was rightly sent.
        let sent_at = seen.exchanges[exchange].sent.as_ref().map_or(now, |(at, _)| *at);
        let spent = match (self.scenario.kind, refresh.accepted_at) {
            (Kind::Never, _) | (_, None) => false,
            (Kind::Grace(window), Some(at)) => sent_at >= at + window,
            (Kind::SingleUse, Some(_)) => true,
        };
        let regressed = seen.regressed.iter().any(|it| it.refresh_token == refresh_token);
        if !spent || regressed {
            return;
        }
        refresh.replays += 1;
        let replays = refresh.replays;
        // The declared replay; where the provider can be asked first, there is none.
        let declared = u32::from(!self.scenario.introspects) + refresh.tries_of_persons;
        if seen.rotation_known.is_some_and(|since| since <= now)
            && replays > declared
            && !self.scenario.wall_time_jumps()
        {
            let process = &seen.exchanges[exchange].process;
            let what =
                format!("{process} presented {refresh_token}, which was spent, for the {replays}. time");
            self.blame_under(seen, Oracle::PresentedOnce, what);
        }
    }

    /// The provider's answer begins to leave: so many bytes make it whole.
    pub(crate) fn answers(&self, exchange: usize, length: Option<usize>, definite: bool) {
        let mut seen = self.seen();
        seen.exchanges[exchange].length = length.filter(|_| definite);
        seen.exchanges[exchange].definite = definite;
    }

    /// The process has read some of the answer.
    pub(crate) fn reads(&self, exchange: usize, bytes: usize) {
        let now = self.now();
        let mut seen = self.seen();
        let it = &mut seen.exchanges[exchange];
        it.read += bytes;
        if it.delivered.is_none() && it.length.is_some_and(|length| it.read >= length) {
            it.delivered = Some(now);
            if it.issue.is_some() {
                let process = it.process.clone();
                self.trace
                    .note(process, format_args!("has the answer of exchange {exchange}"));
            }
        }
    }

    /// The database lost its last commits: what follows from that is not the product's doing.
    pub(crate) fn loses_commits(&self) {
        let now = self.now();
        self.seen().lost_commits_at = Some(now);
    }

    /// A process took the right to present this.
    pub(crate) fn takes(&self, refresh_token: &str, gate: &Gate, on: LeaseOn) {
        let mut seen = self.seen();
        if let Some(refresh) = seen.grants.refresh.get_mut(refresh_token) {
            refresh.tries_of_persons += u32::from(on == LeaseOn::LostOutcome);
        }
        seen.takers.push((refresh_token.to_owned(), gate.clone()));
    }

    /// An attempt could not be taken back, for no fault of the process's own.
    pub(crate) fn excuses_an_attempt(&self, refresh_token: &str) {
        self.seen().excused.insert(refresh_token.to_owned());
    }

    /// What is stored now.
    pub(crate) fn stored_refresh_token(&self, id: &ConnectionId) -> Option<String> {
        let number = (0..self.scenario.connections).find(|number| connection_id(*number) == *id)?;
        self.seen().connections[number]
            .history
            .last()?
            .refresh_token
            .clone()
    }

    /// What the store holds of a connection after a commit of `process`: I3, and that nobody is condemned wrongly.
    pub(crate) fn stores(&self, connection: usize, held: Option<&Held>, process: &str, lost_commits: bool) {
        let now = self.now();
        let mut seen = self.seen();
        let seen = &mut *seen;
        let Some(held) = held else {
            let watched = &mut seen.connections[connection];
            watched.purged = !watched.history.is_empty();
            return;
        };
        let stored = Stored {
            since: now,
            version: held.connection.version,
            status: held.connection.status.clone(),
            refresh_token: held
                .tokens
                .as_ref()
                .and_then(|tokens| Some(tokens.refresh_token.as_ref()?.expose().to_owned())),
            access_token: held
                .tokens
                .as_ref()
                .map(|tokens| tokens.access_token.expose().to_owned()),
            by: process.to_owned(),
        };
        let watched = &mut seen.connections[connection];
        if std::mem::take(&mut watched.purged) {
            // Another connection has the id of one that was erased.
            watched.history.clear();
        }
        let last = watched.history.last().cloned();
        if last.as_ref().is_some_and(|last| {
            let unchanged = Stored {
                since: last.since,
                by: last.by.clone(),
                ..stored.clone()
            };
            *last == unchanged
        }) {
            return;
        }
        watched.stored_access_tokens.extend(stored.access_token.clone());
        watched.history.push(stored.clone());
        let rotated = last.as_ref().is_some_and(|last| {
            let pair = last.refresh_token.as_deref().zip(stored.refresh_token.as_deref());
            pair.is_some_and(|(old, new)| old != new && seen.same_grant(old, new))
        });
        if rotated {
            seen.rotation_known.get_or_insert(now + TO_NOTE);
        }
        self.trace.note(
            process,
            format_args!(
                "connection {connection} is {} at version {} with {}{}",
                shown(&stored.status),
                stored.version,
                stored.refresh_token.as_deref().unwrap_or("nothing"),
                if held.connection.unproven {
                    ", unproven"
                } else {
                    ""
                },
            ),
        );
        if let (Some(last), true) = (&last, lost_commits) {
            // Where the newer state had another refresh token, somebody holds it.
            if let Some(refresh_token) = stored.refresh_token.clone()
                && last
                    .refresh_token
                    .as_ref()
                    .is_some_and(|newer| *newer != refresh_token)
                && stored.version < last.version
            {
                seen.regressed.push(Regressed {
                    refresh_token,
                    at: now,
                    holder: last.by.clone(),
                });
            }
        } else if let Some(last) = last {
            let same_tokens =
                last.access_token == stored.access_token && last.refresh_token == stored.refresh_token;
            if stored.version < last.version || (stored.version == last.version && !same_tokens) {
                let what = format!("connection {connection} went from {last:?} to {stored:?}");
                self.blame_under(seen, Oracle::WholeAndForward, what);
            }
            self.judge_condemnation(seen, connection, &last, &stored);
        }
    }

    fn judge_condemnation(&self, seen: &mut Seen, connection: usize, last: &Stored, stored: &Stored) {
        let ConnectionStatus::ReconnectRequired { reason, .. } = &stored.status else {
            return;
        };
        if last.status == stored.status {
            return;
        }
        let token = last.refresh_token.clone().unwrap_or_default();
        let Some(grant) = seen.grants.grant_of(&token) else {
            return;
        };
        let ended = seen.grants.all[grant].ended.map(|(_, why)| why);
        let redeems = seen.grants.redeems(&token, self.now());
        let came_back = |it: &Regressed| seen.grants.grant_of(&it.refresh_token) == Some(grant);
        if seen.regressed.iter().any(came_back) {
            return;
        }
        let unknown = seen.lost_an_answer(grant) || seen.lost_a_holder(&token);
        let right = match reason {
            // What was revoked when its owner left is refused, though a failover shows the connection again.
            ReconnectReason::GrantRefused => {
                // Leases are lost with the commits that took them, and with a lease what it meant to present: whoever presents
                // it again finds a refusal and no attempt that could explain it. The answer that was lost mends that.
                let forgot = seen.lost_commits_at.is_some_and(|at| self.now() < at + LEASE);
                ended.is_some_and(|why| why != End::Replay)
                    || seen.grants.was_revoked(&token)
                    || (forgot && unknown)
            }
            ReconnectReason::RedemptionOutcomeLost => {
                // A family that died of a replay died of ours, and whether that was right is judged where it was made.
                matches!(ended, Some(End::Customer | End::Replay))
                    || (unknown
                        && self.scenario.kind != Kind::Never
                        && !(self.scenario.introspects && redeems))
            }
            ReconnectReason::WrongClient
            | ReconnectReason::AccountMismatch
            | ReconnectReason::NoRefreshToken
            | ReconnectReason::Uninstalled => false,
        };
        if !right {
            let what = format!(
                "connection {connection} says {} of {token}; the grant's end: {ended:?}, it redeems: {redeems}, an answer was lost: {unknown}",
                reason.as_str()
            );
            self.blame_under(seen, Oracle::CondemnedRightly, what);
        }
    }

    /// Once a run is over: what was issued, arrived, and is nowhere.
    pub(crate) fn judge_what_was_lost(&self) {
        let mut seen = self.seen();
        let seen = &mut *seen;
        let mut blamed = Vec::new();
        for (number, exchange) in seen.exchanges.iter().enumerate() {
            let (Some(issue), Some(delivered), Some((sent, token))) =
                (&exchange.issue, exchange.delivered, &exchange.sent)
            else {
                continue;
            };
            let Some(connection) = seen.connection_of(token) else {
                continue;
            };
            let watched = &seen.connections[connection];
            if watched.stored_access_tokens.contains(&issue.access_token) || watched.purged {
                continue;
            }
            // Reconnected or disconnected meanwhile, or another's answer was stored: this one is the past.
            let before = seen.stored_at(connection, *sent).map(|stored| stored.version);
            let mut later = watched.history.iter().filter(|stored| stored.since >= *sent);
            let moved = later.any(|stored| Some(stored.version) > before);
            if moved
                || seen.lost_commits_at.is_some()
                || exchange.gate.lived_shorter_than(delivered + TO_STORE)
            {
                continue;
            }
            blamed.push(format!(
                "{} had the answer of exchange {number} at {:.3} and lived on; {} is stored nowhere",
                exchange.process,
                delivered.as_secs_f64(),
                issue.refresh_token
            ));
        }
        for what in blamed {
            self.blame_under(seen, Oracle::NothingLost, what);
        }
    }
}

/// The longest that an exchange may take.
const DEADLINE_AT_MOST: Duration = evergrant_domain::redemption::DEADLINE;
/// How long it may take to note that the provider rotates.
const TO_NOTE: Duration = Duration::from_secs(20);
/// How long until every process has compared what it holds with a store that lost commits.
const GIVEN_BACK: Duration = Duration::from_secs(15);
/// How long a process that lives may take to bring an answer to safety.
const TO_STORE: Duration = Duration::from_secs(5);

/// The rotation that the app is configured with.
pub(crate) fn configured_rotation(scenario: &Scenario) -> Rotation {
    match scenario.kind {
        Kind::Never => Rotation::Never,
        _ if scenario.rotation_unknown => Rotation::Never,
        Kind::Grace(window) => Rotation::Grace(window),
        Kind::SingleUse => Rotation::SingleUse,
    }
}

fn shown(status: &ConnectionStatus) -> String {
    match status {
        ConnectionStatus::ReconnectRequired { reason, .. } => {
            format!("reconnect_required ({})", reason.as_str())
        }
        other => other.as_str().to_owned(),
    }
}
