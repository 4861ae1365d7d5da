//! Revocations, history, the change feed, and what is known about an app.

use evergrant_domain::breaker::Breaker;
use evergrant_domain::{ConnectionId, RefreshToken, Version};

use super::{Columns, Stored, unreadable};
use crate::contract::{AppState, Change, CredentialsRejected, Revocation, RevocationState, StoreError};
use crate::vault::{Place, Vault};

/// Seals a refresh token once more, for the revocation queue.
pub(crate) fn seal_for_revocation(
    vault: &Vault,
    connection: &ConnectionId,
    version: i64,
    refresh_token: &RefreshToken,
) -> Vec<u8> {
    vault.seal(queue_place(connection, version), refresh_token.expose())
}

pub(crate) fn read_revocation(vault: &Vault, row: &impl Columns) -> Stored<Revocation> {
    let connection: ConnectionId = row.parsed("connection")?;
    let place = queue_place(&connection, row.number("version")?);
    let token = vault
        .open(place, &row.bytes("refresh_token")?)
        .map_err(|_| unreadable(place))?;
    Ok(Revocation {
        id: row.number("id")?,
        app: row.parsed("app")?,
        refresh_token: RefreshToken::new(token.as_str()),
        // The contract counts those that lie behind.
        attempts: row.count("attempts")?.saturating_sub(1),
        connection,
    })
}

/// How far a disconnected connection's revocation is, by its word.
pub(crate) fn read_revocation_state(word: Option<&str>) -> Stored<RevocationState> {
    [
        RevocationState::Pending,
        RevocationState::Done,
        RevocationState::Unsupported,
        RevocationState::Shared,
    ]
    .into_iter()
    .find(|state| Some(state.as_str()) == word)
    .ok_or_else(|| StoreError::Corrupt {
        what: "a disconnected connection without a state of its revocation".into(),
    })
}

fn queue_place(connection: &ConnectionId, version: i64) -> Place<'_> {
    Place {
        table: "revocations",
        record: connection.as_str(),
        field: "refresh_token",
        version,
    }
}

pub(crate) fn read_change(row: &impl Columns) -> Stored<Change> {
    Ok(match row.text("kind")?.as_str() {
        "connection" => Change::Connection {
            id: row.parsed("connection")?,
            version: Version::new(row.number("version")?),
        },
        "app" => Change::App(row.parsed("app")?),
        _ => Change::Keys,
    })
}

/// How far the change feed was ever seen to be. A store that shows less has lost commits.
#[derive(Debug, Default)]
pub(crate) struct HighestSeen {
    head: i64,
    steps_back: u64,
}

impl HighestSeen {
    /// How often it was less than before, this time included.
    pub(crate) fn note(&mut self, head: i64) -> u64 {
        self.steps_back += u64::from(head < self.head);
        self.head = head;
        self.steps_back
    }
}

pub(crate) fn read_app_state(row: &impl Columns) -> Stored<AppState> {
    let rejected = match row.maybe_time("rejected_since")? {
        Some(since) => Some(CredentialsRejected {
            code: row.text("rejected_code")?,
            since,
            credentials_fingerprint: row.text("rejected_fingerprint")?,
        }),
        None => None,
    };
    let endpoint = match row.maybe_time("endpoint_rest_until")? {
        Some(rest_until) => Some(Breaker {
            failures: row.count("endpoint_failures")?,
            code: row.text("endpoint_code")?,
            rest_until,
        }),
        None => None,
    };
    Ok(AppState {
        rejected,
        endpoint,
        single_use_since: row.maybe_time("single_use_since")?,
        secret_that_worked: row.maybe_text("secret_that_worked")?,
    })
}
