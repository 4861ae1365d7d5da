//! API keys, connect sessions, and authorization requests on their way.

use evergrant_domain::{AppName, ConnectionId, Customer, Timestamp};

use super::db::{Db, Tried, storable};
use crate::contract::{ApiKey, Authorization, ConnectSession, SessionOutcome};
use crate::record::{SealedVerifier, list, outcome_columns, read_authorization, read_key, read_session};

impl Db {
    pub(super) async fn create_key(&self, key: &ApiKey, hash: [u8; 32]) -> Tried<()> {
        self.execute(
            "INSERT INTO api_keys (id, hash, name, role, apps, customers, connections, lane, max_wait,
                                   created_at, expires_at, revoked_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            &[
                &key.id,
                &&hash[..],
                &key.name,
                &key.role.as_str(),
                &list(key.limits.apps.iter().map(AppName::as_str)),
                &list(key.limits.customers.iter().map(Customer::as_str)),
                &list(key.limits.connections.iter().map(ConnectionId::as_str)),
                &key.lane,
                &key.max_wait.map(i64::from),
                &key.created_at.millis(),
                &key.expires_at.map(Timestamp::millis),
                &key.revoked_at.map(Timestamp::millis),
            ],
        )
        .await?;
        self.feed_keys().await
    }

    pub(super) async fn keys(&self) -> Tried<Vec<ApiKey>> {
        let rows = self
            .rows("SELECT * FROM api_keys ORDER BY created_at, id", &[])
            .await?;
        Ok(rows.iter().map(read_key).collect::<Result<_, _>>()?)
    }

    pub(super) async fn key_by_hash(&self, hash: [u8; 32]) -> Tried<Option<ApiKey>> {
        let row = self
            .row("SELECT * FROM api_keys WHERE hash = $1", &[&&hash[..]])
            .await?;
        Ok(row.map(|row| read_key(&row)).transpose()?)
    }

    /// The first revocation's time stays.
    pub(super) async fn revoke_key(&self, id: &str, now: Timestamp) -> Tried<bool> {
        let known = self
            .execute(
                "UPDATE api_keys SET revoked_at = coalesce(revoked_at, $2) WHERE id = $1",
                &[&id, &now.millis()],
            )
            .await?;
        if known > 0 {
            self.feed_keys().await?;
        }
        Ok(known > 0)
    }

    async fn feed_keys(&self) -> Tried<()> {
        self.feed("INSERT INTO changes (kind) VALUES ('keys') RETURNING 1", &[])
            .await?;
        Ok(())
    }

    pub(super) async fn create_session(&self, session: &ConnectSession) -> Tried<()> {
        let (word, connection, code, detail) = outcome_columns(&session.outcome);
        self.execute(
            "INSERT INTO connect_sessions (id, app, customer, connection, scopes, return_url, expires_at,
                                           outcome, outcome_connection, outcome_code, outcome_detail)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            &[
                &session.id,
                &session.app.as_str(),
                &session.customer.as_str(),
                &session.connection.as_ref().map(ConnectionId::as_str),
                &list(session.scopes.iter().map(String::as_str)),
                &session.return_url,
                &session.expires_at.millis(),
                &word,
                &connection,
                &code.map(storable),
                &detail.map(storable),
            ],
        )
        .await?;
        Ok(())
    }

    pub(super) async fn session(&self, id: &str) -> Tried<Option<ConnectSession>> {
        let row = self
            .row("SELECT * FROM connect_sessions WHERE id = $1", &[&id])
            .await?;
        Ok(row.map(|row| read_session(&row)).transpose()?)
    }

    pub(super) async fn finish_session(&self, id: &str, outcome: &SessionOutcome) -> Tried<()> {
        let (word, connection, code, detail) = outcome_columns(outcome);
        // Whoever goes back in the browser after it worked cannot undo it.
        self.execute(
            "UPDATE connect_sessions
                SET outcome = $2, outcome_connection = $3, outcome_code = $4, outcome_detail = $5
              WHERE id = $1 AND outcome <> 'connected'",
            &[
                &id,
                &word,
                &connection,
                &code.map(storable),
                &detail.map(storable),
            ],
        )
        .await?;
        Ok(())
    }

    pub(super) async fn begin_authorization(&self, authorization: &Authorization) -> Tried<()> {
        let SealedVerifier(verifier) = SealedVerifier::new(&self.vault, authorization);
        self.execute(
            "INSERT INTO authorizations (state_hash, session, app, customer, connection, scopes,
                                         return_url, code_verifier, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            &[
                &&authorization.state_hash[..],
                &authorization.session,
                &authorization.app.as_str(),
                &authorization.customer.as_str(),
                &authorization.connection.as_ref().map(ConnectionId::as_str),
                &list(authorization.scopes.iter().map(String::as_str)),
                &authorization.return_url,
                &verifier,
                &authorization.expires_at.millis(),
            ],
        )
        .await?;
        Ok(())
    }

    /// Single use by construction: the statement that reads it deletes it.
    pub(super) async fn spend_state(
        &self,
        state_hash: [u8; 32],
        now: Timestamp,
    ) -> Tried<Option<Authorization>> {
        let row = self
            .row(
                "DELETE FROM authorizations WHERE state_hash = $1 RETURNING *",
                &[&&state_hash[..]],
            )
            .await?;
        let spent = row.map(|row| read_authorization(&self.vault, &row)).transpose()?;
        Ok(spent.filter(|spent| now < spent.expires_at))
    }
}
