//! API keys, connect sessions, and authorization requests on their way.

use evergrant_domain::{AppName, ConnectionId, Customer, Timestamp};
use rusqlite::params;

use super::record::Db;
use crate::contract::{ApiKey, Authorization, ConnectSession, SessionOutcome};
use crate::record::{
    SealedVerifier, Stored, list, outcome_columns, read_authorization, read_key, read_session,
};

impl Db {
    pub(super) fn create_key(&self, key: &ApiKey, hash: [u8; 32]) -> Stored<()> {
        self.sql
            .prepare_cached(
                "INSERT INTO api_keys (id, hash, name, role, apps, customers, connections, lane, max_wait,
                                       created_at, expires_at, revoked_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?
            .execute(params![
                key.id,
                hash,
                key.name,
                key.role.as_str(),
                list(key.limits.apps.iter().map(AppName::as_str)),
                list(key.limits.customers.iter().map(Customer::as_str)),
                list(key.limits.connections.iter().map(ConnectionId::as_str)),
                key.lane,
                key.max_wait,
                key.created_at.millis(),
                key.expires_at.map(Timestamp::millis),
                key.revoked_at.map(Timestamp::millis),
            ])?;
        self.feed_keys()
    }

    pub(super) fn keys(&self) -> Stored<Vec<ApiKey>> {
        let mut statement = self
            .sql
            .prepare_cached("SELECT * FROM api_keys ORDER BY created_at, id")?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read_key(row)?);
        }
        Ok(found)
    }

    pub(super) fn key_by_hash(&self, hash: [u8; 32]) -> Stored<Option<ApiKey>> {
        let mut statement = self
            .sql
            .prepare_cached("SELECT * FROM api_keys WHERE hash = ?1")?;
        let mut rows = statement.query([hash])?;
        rows.next()?.map(read_key).transpose()
    }

    /// The first revocation's time stays.
    pub(super) fn revoke_key(&self, id: &str, now: Timestamp) -> Stored<bool> {
        let known = self
            .sql
            .prepare_cached("UPDATE api_keys SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1")?
            .execute(params![id, now.millis()])?;
        if known > 0 {
            self.feed_keys()?;
        }
        Ok(known > 0)
    }

    fn feed_keys(&self) -> Stored<()> {
        self.sql
            .prepare_cached("INSERT INTO changes (kind) VALUES ('keys')")?
            .execute([])?;
        Ok(())
    }

    pub(super) fn create_session(&self, session: &ConnectSession) -> Stored<()> {
        let (word, connection, code, detail) = outcome_columns(&session.outcome);
        self.sql
            .prepare_cached(
                "INSERT INTO connect_sessions (id, app, customer, connection, scopes, return_url, expires_at,
                                               outcome, outcome_connection, outcome_code, outcome_detail)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?
            .execute(params![
                session.id,
                session.app.as_str(),
                session.customer.as_str(),
                session.connection.as_ref().map(ConnectionId::as_str),
                list(session.scopes.iter().map(String::as_str)),
                session.return_url,
                session.expires_at.millis(),
                word,
                connection,
                code,
                detail,
            ])?;
        Ok(())
    }

    pub(super) fn session(&self, id: &str) -> Stored<Option<ConnectSession>> {
        let mut statement = self
            .sql
            .prepare_cached("SELECT * FROM connect_sessions WHERE id = ?1")?;
        let mut rows = statement.query([id])?;
        rows.next()?.map(read_session).transpose()
    }

    pub(super) fn finish_session(&self, id: &str, outcome: &SessionOutcome) -> Stored<()> {
        let (word, connection, code, detail) = outcome_columns(outcome);
        // Whoever goes back in the browser after it worked cannot undo it.
        self.sql
            .prepare_cached(
                "UPDATE connect_sessions
                    SET outcome = ?2, outcome_connection = ?3, outcome_code = ?4, outcome_detail = ?5
                  WHERE id = ?1 AND outcome <> 'connected'",
            )?
            .execute(params![id, word, connection, code, detail])?;
        Ok(())
    }

    pub(super) fn begin_authorization(&self, authorization: &Authorization) -> Stored<()> {
        let SealedVerifier(verifier) = SealedVerifier::new(&self.vault, authorization);
        self.sql
            .prepare_cached(
                "INSERT INTO authorizations (state_hash, session, app, customer, connection, scopes,
                                             return_url, code_verifier, expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                authorization.state_hash,
                authorization.session,
                authorization.app.as_str(),
                authorization.customer.as_str(),
                authorization.connection.as_ref().map(ConnectionId::as_str),
                list(authorization.scopes.iter().map(String::as_str)),
                authorization.return_url,
                verifier,
                authorization.expires_at.millis(),
            ])?;
        Ok(())
    }

    /// Single use by construction: the statement that reads it deletes it.
    pub(super) fn spend_state(&self, state_hash: [u8; 32], now: Timestamp) -> Stored<Option<Authorization>> {
        let mut statement = self
            .sql
            .prepare_cached("DELETE FROM authorizations WHERE state_hash = ?1 RETURNING *")?;
        let mut rows = statement.query([state_hash])?;
        let Some(row) = rows.next()? else {
            return Ok(None);
        };
        let spent = read_authorization(&self.vault, row)?;
        Ok(Some(spent).filter(|spent| now < spent.expires_at))
    }
}
