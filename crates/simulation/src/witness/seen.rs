//! What the witness has seen, and what follows from it.

use std::collections::BTreeSet;
use std::time::Duration;

use evergrant_domain::{ConnectionStatus, Version};

use super::TO_STORE;
use crate::gate::Gate;
use crate::grants::{Grants, Issue};
use crate::violation::Violation;

/// What was seen so far.
pub(crate) struct Seen {
    pub(crate) grants: Grants,
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) connections: Vec<Watched>,
    /// Since when the store must know that the provider rotates.
    pub(super) rotation_known: Option<Duration>,
    /// Who took the right to present which refresh token.
    pub(super) takers: Vec<(String, Gate)>,
    /// Refresh tokens with an attempt that nobody could take back.
    pub(super) excused: BTreeSet<String>,
    /// When the database last lost commits.
    pub(crate) lost_commits_at: Option<Duration>,
    /// What it shows since then although something newer had been stored.
    pub(super) regressed: Vec<Regressed>,
    pub(super) violations: Vec<Violation>,
}

/// A refresh token that came back from the past.
pub(super) struct Regressed {
    pub(super) refresh_token: String,
    pub(super) at: Duration,
    /// Who had stored the newer one, and has it still.
    pub(super) holder: String,
}

/// One connection to the provider, and what went over it.
pub(crate) struct Exchange {
    pub(crate) process: String,
    pub(super) gate: Gate,
    /// When the first byte of a redemption left, and which refresh token it presents.
    pub(super) sent: Option<(Duration, String)>,
    /// When the process let go of it.
    pub(crate) over: Option<Duration>,
    /// The provider has judged it, and said so in an answer that means it.
    pub(super) definite: bool,
    pub(super) issue: Option<Issue>,
    /// How many bytes the whole answer has, and how many were read.
    pub(super) length: Option<usize>,
    pub(super) read: usize,
    /// When the process had the whole answer.
    pub(super) delivered: Option<Duration>,
}

/// What the store holds of a connection, as it changed.
#[derive(Default)]
pub(crate) struct Watched {
    pub(crate) history: Vec<Stored>,
    /// Every access token that was ever the stored one.
    pub(super) stored_access_tokens: BTreeSet<String>,
    pub(crate) purged: bool,
}

/// A connection between two commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) since: Duration,
    pub(crate) version: Version,
    pub(crate) status: ConnectionStatus,
    pub(crate) refresh_token: Option<String>,
    pub(crate) access_token: Option<String>,
    /// Who stored it.
    pub(crate) by: String,
}

impl Exchange {
    /// Whether a refresh token was redeemed by it.
    pub(crate) fn brought_tokens(&self) -> bool {
        self.issue.is_some()
    }
}

impl Seen {
    /// Refresh tokens of a connection that some process had in hand, and that the provider would accept.
    pub(crate) fn held_and_alive(&self, connection: usize, now: Duration) -> Vec<String> {
        let mut stored = self.connections[connection].history.iter().rev();
        let last = stored.find_map(|stored| stored.refresh_token.clone());
        // What another's answer had superseded before is of no grant that a provider keeps apart.
        let answers = self.exchanges.iter().filter_map(|exchange| {
            let safe = exchange.delivered? + TO_STORE;
            let (_, presented) = exchange.sent.as_ref()?;
            let issue = exchange.issue.as_ref()?;
            let newest = last.as_ref() == Some(presented) && !exchange.gate.lived_shorter_than(safe);
            newest.then(|| issue.refresh_token.clone())
        });
        let grant = last.as_ref().and_then(|token| self.grants.grant_of(token));
        let mut alive: Vec<String> = answers
            .chain(last.clone())
            // Of the last grant: what an earlier consent brought was left to the provider when the customer consented anew.
            .filter(|token| self.grants.grant_of(token) == grant && self.grants.redeems(token, now))
            .collect();
        alive.sort();
        alive.dedup();
        alive
    }

    /// Whose a refresh token is, of whichever of its grants.
    pub(crate) fn connection_of(&self, refresh_token: &str) -> Option<usize> {
        let grant = self.grants.grant_of(refresh_token)?;
        Some(self.grants.all[grant].connection)
    }

    pub(super) fn same_grant(&self, one: &str, other: &str) -> bool {
        self.grants.grant_of(one) == self.grants.grant_of(other)
    }

    /// Whether a presentation of this grant may have been accepted without its answer being stored.
    pub(crate) fn lost_an_answer(&self, grant: usize) -> bool {
        self.exchanges.iter().any(|exchange| {
            let of_it = exchange
                .sent
                .as_ref()
                .is_some_and(|(_, token)| self.grants.grant_of(token) == Some(grant));
            let known = exchange.delivered.is_some() && exchange.definite;
            let stored = exchange.issue.as_ref().is_some_and(|issue| {
                self.connections[self.grants.all[grant].connection]
                    .stored_access_tokens
                    .contains(&issue.access_token)
            });
            of_it && !stored && (!known || exchange.issue.is_some())
        })
    }

    /// Whether a process that had the right to present it is gone, or could not give it back: nobody knows what it did.
    pub(super) fn lost_a_holder(&self, refresh_token: &str) -> bool {
        let gone = |(token, gate): &(String, Gate)| token == refresh_token && gate.is_killed();
        self.excused.contains(refresh_token) || self.takers.iter().any(gone)
    }

    /// What the store held of a connection at a moment.
    pub(crate) fn stored_at(&self, connection: usize, at: Duration) -> Option<&Stored> {
        let history = &self.connections[connection].history;
        history.iter().rev().find(|stored| stored.since <= at)
    }
}
