//! A connection's row, read and written; what every transaction shares.

use std::sync::Arc;

use evergrant_domain::event::Event;
use evergrant_domain::{Connection, ConnectionId, Timestamp, TokenSet, Version};
use rusqlite::{ErrorCode, OptionalExtension, Row};

use super::holder::Holders;
use crate::contract::{Held, StoreError};
use crate::record::{Before, Columns, SELECT_CONNECTION, SealedTokens, Stored, read_connection, read_held};
use crate::vault::Vault;

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

impl Columns for Row<'_> {
    fn maybe_text(&self, column: &'static str) -> Stored<Option<String>> {
        Ok(self.get(column)?)
    }

    fn maybe_number(&self, column: &'static str) -> Stored<Option<i64>> {
        Ok(self.get(column)?)
    }

    fn maybe_bytes(&self, column: &'static str) -> Stored<Option<Vec<u8>>> {
        Ok(self.get(column)?)
    }

    fn flag(&self, column: &'static str) -> Stored<bool> {
        Ok(self.get(column)?)
    }
}

impl Db {
    /// The record with its token set.
    pub(super) fn held(&self, id: &ConnectionId) -> Stored<Option<Held>> {
        self.one(id, |row| read_held(&self.vault, row))
    }

    /// The record that was just written.
    pub(super) fn written(&self, id: &ConnectionId) -> Stored<Box<Held>> {
        self.held(id)?.map(Box::new).ok_or_else(|| StoreError::Corrupt {
            what: format!("connection {id} is gone in the middle of its transaction"),
        })
    }

    /// The record alone.
    pub(super) fn connection(&self, id: &ConnectionId) -> Stored<Option<Connection>> {
        self.one(id, |row| read_connection(row))
    }

    fn one<T>(&self, id: &ConnectionId, read: impl FnOnce(&Row<'_>) -> Stored<T>) -> Stored<Option<T>> {
        let mut statement = self
            .sql
            .prepare_cached(&format!("{SELECT_CONNECTION} WHERE c.id = ?1"))?;
        let mut rows = statement.query([id.as_str()])?;
        rows.next()?.map(read).transpose()
    }

    /// Seals a token set for the version that it is stored with.
    pub(super) fn seal(&self, id: &ConnectionId, version: Version, tokens: &TokenSet) -> SealedTokens {
        SealedTokens::new(&self.vault, id, version, tokens)
    }

    /// Writes the history and the change feed for a change of a connection's state: the one goes with the other.
    pub(super) fn record_change(
        &self,
        id: &ConnectionId,
        before: Before,
        event: &Event,
        now: Timestamp,
    ) -> Stored<()> {
        self.append_event(id, before, event, now)?;
        self.feed_connection(id)
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
