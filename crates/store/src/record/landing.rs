//! How a refreshed token set is stored: PROTOCOL.md, rules 14 and 16.

use evergrant_domain::connection::Landing;
use evergrant_domain::{Connection, ConnectionStatus, ReconnectReason, Timestamp};

use crate::contract::Refreshed;

/// What a row says once a refreshed token set landed on it.
pub(crate) struct LandsAs {
    pub(crate) status: &'static str,
    pub(crate) reason: Option<ReconnectReason>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) unproven: bool,
}

impl LandsAs {
    /// On the record `found`.
    pub(crate) fn new(found: &Connection, refreshed: &Refreshed, now: Timestamp) -> Self {
        let attempts = found.intent.as_ref().map_or(0, |intent| intent.attempts);
        let found = &found.status;
        let landing = found.after_token_set_landed();
        // Rule 14: a set of another account is kept, since it may be the only one there is, and never serves.
        let (status, reason) = match (&refreshed.mismatch, landing, found) {
            (Some(_), ..) => ("reconnect_required", Some(ReconnectReason::AccountMismatch)),
            (None, Landing::Active | Landing::ActiveUnproven, _) => ("active", None),
            (
                None,
                Landing::StaysAsItIs | Landing::Refused,
                ConnectionStatus::ReconnectRequired { reason, .. },
            ) => ("reconnect_required", Some(*reason)),
            // The statement that stores it finds no row of such a status.
            (None, Landing::StaysAsItIs | Landing::Refused, status) => (status.as_str(), None),
        };
        let since = match found {
            ConnectionStatus::ReconnectRequired {
                since,
                reason: before,
            } if Some(*before) == reason => *since,
            _ => now,
        };
        Self {
            status,
            since: reason.map(|_| since),
            reason,
            unproven: refreshed.tokens.unproven || landing == Landing::ActiveUnproven || attempts > 1,
        }
    }
}
