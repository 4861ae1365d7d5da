//! A connection's row, read and written; what every transaction shares.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::connection::{Account, LastSeen, RefreshTrouble};
use evergrant_domain::event::Event;
use evergrant_domain::redemption::Intent;
use evergrant_domain::refresh_policy::Ends;
use evergrant_domain::rejection::Cooldown;
use evergrant_domain::{
    AccessToken, Connection, ConnectionId, ConnectionStatus, Kind, ReconnectReason, RefreshToken, Timestamp,
    TokenSet, Version,
};
use rusqlite::{ErrorCode, OptionalExtension, Row, params};

use super::holder::Holders;
use crate::contract::{Held, StoreError};
use crate::vault::{Place, Vault};

pub(super) type Stored<T> = Result<T, StoreError>;

/// One database connection, inside a transaction.
pub(super) struct Db {
    pub(super) sql: rusqlite::Connection,
    pub(super) vault: Arc<Vault>,
    pub(super) holders: Holders,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match &error {
            rusqlite::Error::SqliteFailure(cause, _) => match cause.code {
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Unavailable {
                    what: "the database is locked by another program".into(),
                    outcome_unknown: false,
                },
                ErrorCode::DiskFull => Self::Unavailable {
                    what: "the disk is full".into(),
                    outcome_unknown: false,
                },
                // Messages name constraints, columns and files, never values.
                ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                | ErrorCode::Unknown => Self::Corrupt {
                    what: error.to_string(),
                },
                _ => Self::Unavailable {
                    what: error.to_string(),
                    outcome_unknown: false,
                },
            },
            rusqlite::Error::FromSqlConversionFailure(column, ..) => Self::Corrupt {
                what: format!("column {column} of an answer"),
            },
            // The rest names columns, types and statements.
            _ => Self::Corrupt {
                what: error.to_string(),
            },
        }
    }
}

/// Every column of a connection, with what its attempts sum up to.
pub(super) const SELECT_CONNECTION: &str = "
    SELECT c.*,
           (SELECT count(*) FROM attempts a WHERE a.connection = c.id AND a.version = c.version) AS attempts,
           (SELECT min(a.began_at) FROM attempts a WHERE a.connection = c.id AND a.version = c.version) AS first_attempt_at
      FROM connections c";

impl Db {
    /// The record with its token set.
    pub(super) fn held(&self, id: &ConnectionId) -> Stored<Option<Held>> {
        self.one(id, |row| self.read_held(row))
    }

    /// The record that was just written.
    pub(super) fn written(&self, id: &ConnectionId) -> Stored<Box<Held>> {
        self.held(id)?.map(Box::new).ok_or_else(|| StoreError::Corrupt {
            what: format!("connection {id} is gone in the middle of its transaction"),
        })
    }

    /// The record alone.
    pub(super) fn connection(&self, id: &ConnectionId) -> Stored<Option<Connection>> {
        self.one(id, read_connection)
    }

    fn one<T>(&self, id: &ConnectionId, read: impl FnOnce(&Row<'_>) -> Stored<T>) -> Stored<Option<T>> {
        let mut statement = self
            .sql
            .prepare_cached(&format!("{SELECT_CONNECTION} WHERE c.id = ?1"))?;
        let mut rows = statement.query([id.as_str()])?;
        rows.next()?.map(read).transpose()
    }

    fn read_held(&self, row: &Row<'_>) -> Stored<Held> {
        let connection = read_connection(row)?;
        let open = |field| -> Stored<_> {
            let Some(sealed) = row.get::<_, Option<Vec<u8>>>(field)? else {
                return Ok(None);
            };
            let place = token_place(&connection.id, field, connection.version);
            self.vault
                .open(place, &sealed)
                .map(Some)
                .map_err(|_| unreadable(place))
        };
        // `as_str` makes an exact copy that moves into the secret; the opened buffer is wiped.
        let refresh_token = open("refresh_token")?.map(|text| RefreshToken::new(text.as_str()));
        let tokens = open("access_token")?.map(|text| TokenSet {
            access_token: AccessToken::new(text.as_str()),
            refresh_token,
            token_type: connection.token_type.clone(),
            scopes: connection.scopes.clone(),
            issued_at: connection.issued_at,
            ends: connection.ends,
            unproven: connection.unproven,
        });
        let cooldown = read_cooldown(row)?;
        Ok(Held {
            connection,
            tokens,
            cooldown,
        })
    }

    /// Seals a token set for the version that it is stored with.
    pub(super) fn seal(&self, id: &ConnectionId, version: Version, tokens: &TokenSet) -> SealedTokens {
        let refresh_token = tokens.refresh_token.as_ref().map(RefreshToken::expose);
        SealedTokens {
            access_token: self.vault.seal(
                token_place(id, "access_token", version),
                tokens.access_token.expose(),
            ),
            refresh_token: refresh_token
                .map(|token| self.vault.seal(token_place(id, "refresh_token", version), token)),
            fingerprint: refresh_token.map(|token| self.refresh_token_fingerprint(token)),
        }
    }

    pub(super) fn refresh_token_fingerprint(&self, token: &str) -> String {
        self.vault.fingerprint("refresh_token", token)
    }

    /// Writes the history and the change feed for a change of a connection's state: the one goes with the other.
    pub(super) fn record_change(&self, id: &ConnectionId, event: &Event, now: Timestamp) -> Stored<()> {
        self.record_event(id, event, now)?;
        self.feed_connection(id)
    }

    /// Appends to a connection's history; nothing where there is no such connection.
    pub(super) fn record_event(&self, id: &ConnectionId, event: &Event, now: Timestamp) -> Stored<()> {
        self.sql
            .prepare_cached(
                "INSERT INTO events (at, connection, kind, detail, version, provider_correlation_id)
                 SELECT ?2, id, ?3, ?4, version, ?5 FROM connections WHERE id = ?1",
            )?
            .execute(params![
                id.as_str(),
                now.millis(),
                event.kind.as_str(),
                event.detail,
                event.provider_correlation_id,
            ])?;
        Ok(())
    }

    /// Tells every process that a connection changed. When is read from the system's clock, not from a caller: it says
    /// only how long the entry is kept.
    pub(super) fn feed_connection(&self, id: &ConnectionId) -> Stored<()> {
        self.sql
            .prepare_cached(
                "INSERT INTO changes (kind, connection, version)
                 SELECT 'connection', id, version FROM connections WHERE id = ?1",
            )?
            .execute([id.as_str()])?;
        Ok(())
    }

    /// A single value, where there is a row.
    pub(super) fn value<T: rusqlite::types::FromSql>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
    ) -> Stored<Option<T>> {
        Ok(self
            .sql
            .prepare_cached(sql)?
            .query_row(parameters, |row| row.get(0))
            .optional()?)
    }
}

/// A token set as its columns hold it.
pub(super) struct SealedTokens {
    pub(super) access_token: Vec<u8>,
    pub(super) refresh_token: Option<Vec<u8>>,
    pub(super) fingerprint: Option<String>,
}

fn token_place<'a>(id: &'a ConnectionId, field: &'static str, version: Version) -> Place<'a> {
    Place {
        table: "connections",
        record: id.as_str(),
        field,
        version: version.number(),
    }
}

pub(super) fn unreadable(place: Place<'_>) -> StoreError {
    StoreError::Unreadable {
        record: format!("{} {}", place.table, place.record),
        field: place.field,
    }
}

pub(super) fn read_connection(row: &Row<'_>) -> Stored<Connection> {
    let id: ConnectionId = parsed(row, "id")?;
    let version = Version::new(row.get("version")?);
    let attempts: u32 = row.get("attempts")?;
    let since = || time(row, "status_since");
    let status = match row.get::<_, String>("status")?.as_str() {
        "active" => ConnectionStatus::Active,
        "reconnect_required" => ConnectionStatus::ReconnectRequired {
            reason: word(row, "status_reason", ReconnectReason::from_word)?,
            since: since()?,
        },
        "disconnected" => ConnectionStatus::Disconnected {
            since: since()?,
            superseded_by: optional(row, "superseded_by")?,
        },
        _ => return Err(strange("status")),
    };
    let account = match optional(row, "account_id")? {
        Some(id) => Some(Account {
            id,
            domain: row.get("account_domain")?,
            user: row.get("account_user")?,
        }),
        None => None,
    };
    let trouble = match optional_time(row, "trouble_failed_at")? {
        Some(failed_at) => Some(RefreshTrouble {
            failed_at,
            code: row.get("trouble_code")?,
            failures: row.get("trouble_failures")?,
            next_attempt_at: time(row, "trouble_next_attempt_at")?,
        }),
        None => None,
    };
    let intent = optional_time(row, "first_attempt_at")?.map(|first_at| Intent {
        version,
        first_at,
        attempts,
    });
    Ok(Connection {
        app: parsed(row, "app")?,
        customer: parsed(row, "customer")?,
        kind: word(row, "kind", Kind::from_word)?,
        account,
        status,
        version,
        scopes: texts(row, "scopes")?,
        token_type: row.get("token_type")?,
        issued_at: time(row, "issued_at")?,
        ends: Ends {
            soft: time(row, "soft_end")?,
            hard: time(row, "hard_end")?,
            expires: time(row, "expires_at")?,
        },
        unproven: row.get("unproven")?,
        labels: pairs(row, "labels")?,
        created_at: time(row, "created_at")?,
        connected_at: time(row, "connected_at")?,
        updated_at: time(row, "updated_at")?,
        last: LastSeen {
            call_at: optional_time(row, "last_call_at")?,
            success_at: optional_time(row, "last_success_at")?,
            refresh_at: optional_time(row, "last_refresh_at")?,
            unauthorized_at: optional_time(row, "last_unauthorized_at")?,
            forbidden_at: optional_time(row, "last_forbidden_at")?,
            rate_limited_at: optional_time(row, "last_rate_limited_at")?,
        },
        trouble,
        intent,
        refresh_in_progress_until: optional_time(row, "lease_shown_until")?,
        id,
    })
}

pub(super) fn read_cooldown(row: &Row<'_>) -> Stored<Option<Cooldown>> {
    let Some(began_at) = optional_time(row, "cooldown_began_at")? else {
        return Ok(None);
    };
    let millis = u64::try_from(row.get::<_, i64>("cooldown_ms")?).map_err(|_| strange("cooldown_ms"))?;
    Ok(Some(Cooldown {
        began_at,
        lasts: Duration::from_millis(millis),
    }))
}

/// A column with a name in it.
pub(super) fn parsed<T: FromStr>(row: &Row<'_>, column: &'static str) -> Stored<T> {
    optional(row, column)?.ok_or_else(|| strange(column))
}

/// A column with a name in it, or NULL.
pub(super) fn optional<T: FromStr>(row: &Row<'_>, column: &'static str) -> Stored<Option<T>> {
    row.get::<_, Option<String>>(column)?
        .map(|text| text.parse().map_err(|_| strange(column)))
        .transpose()
}

/// A column with one of our words in it.
pub(super) fn word<T>(row: &Row<'_>, column: &'static str, read: fn(&str) -> Option<T>) -> Stored<T> {
    read(&row.get::<_, String>(column)?).ok_or_else(|| strange(column))
}

pub(super) fn time(row: &Row<'_>, column: &str) -> Stored<Timestamp> {
    Ok(Timestamp::from_millis(row.get(column)?))
}

pub(super) fn optional_time(row: &Row<'_>, column: &str) -> Stored<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_millis))
}

/// A column with a list of texts in it.
pub(super) fn texts(row: &Row<'_>, column: &'static str) -> Stored<Vec<String>> {
    serde_json::from_str(&row.get::<_, String>(column)?).map_err(|_| strange(column))
}

/// A column with a list of names in it.
pub(super) fn names<T: FromStr>(row: &Row<'_>, column: &'static str) -> Stored<Vec<T>> {
    texts(row, column)?
        .iter()
        .map(|text| text.parse().map_err(|_| strange(column)))
        .collect()
}

fn pairs(row: &Row<'_>, column: &'static str) -> Stored<Vec<(String, String)>> {
    serde_json::from_str(&row.get::<_, String>(column)?).map_err(|_| strange(column))
}

/// A list as its column holds it.
pub(super) fn list<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    items.into_iter().collect::<serde_json::Value>().to_string()
}

/// Labels as their column holds them.
pub(super) fn label_list(labels: &[(String, String)]) -> String {
    let pairs = labels
        .iter()
        .map(|(key, value)| vec![key.as_str(), value.as_str()]);
    pairs.collect::<serde_json::Value>().to_string()
}

pub(super) fn strange(column: &'static str) -> StoreError {
    StoreError::Corrupt {
        what: format!("column {column} holds what nobody here wrote"),
    }
}
