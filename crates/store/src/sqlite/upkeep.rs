//! What runs behind the calls: revocations, due connections, use, history, the change feed.

use std::time::Duration;

use evergrant_domain::event::Event;
use evergrant_domain::{AppName, ConnectionId, RefreshToken, Timestamp, TokenSet};
use rusqlite::{named_params, params};

use super::record::Db;
use crate::contract::{Change, DueQuery, Revocation, RevocationState, Usage};
use crate::record::{
    Before, Columns as _, Stored, TALLIES_KEPT_ON, fingerprint, read_change, read_revocation,
    read_revocation_state, seal_for_revocation, strange,
};

/// How many changes one read of the feed brings at most.
const CHANGES_READ: u32 = 10_000;

/// How many tallies one sweep forgets at most: whoever else writes waits meanwhile.
const TALLIES_SWEPT: u32 = 50_000;

impl Db {
    /// Seals the token once more, for the queue. One that waits there already is not queued twice.
    pub(super) fn queue_revocation(
        &self,
        connection: &ConnectionId,
        app: &AppName,
        refresh_token: &RefreshToken,
        now: Timestamp,
    ) -> Stored<()> {
        let version: Option<i64> = self.value(
            "SELECT version FROM connections WHERE id = ?1",
            [connection.as_str()],
        )?;
        let version = version.unwrap_or(0);
        let sealed = seal_for_revocation(&self.vault, connection, version, refresh_token);
        self.sql
            .prepare_cached(
                "INSERT INTO revocations
                     (connection, app, version, refresh_token, refresh_token_fingerprint, state, attempts, next_try_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, 'pending', 0, ?6)
                 ON CONFLICT (app, refresh_token_fingerprint) WHERE state = 'pending' DO NOTHING",
            )?
            .execute(params![
                connection.as_str(),
                app.as_str(),
                version,
                sealed,
                fingerprint(&self.vault, refresh_token),
                now.millis(),
            ])?;
        Ok(())
    }

    /// A grant that serves again is not revoked: who installs anew may get the very same refresh token.
    pub(super) fn spare_from_revocation(&self, app: &AppName, tokens: &TokenSet) -> Stored<()> {
        if let Some(token) = &tokens.refresh_token {
            self.sql
                .prepare_cached(
                    "DELETE FROM revocations
                      WHERE app = ?1 AND refresh_token_fingerprint = ?2 AND state = 'pending'",
                )?
                .execute(params![app.as_str(), fingerprint(&self.vault, token)])?;
        }
        Ok(())
    }

    pub(super) fn claim_revocations(
        &self,
        limit: u32,
        push: Duration,
        now: Timestamp,
    ) -> Stored<Vec<Revocation>> {
        let mut statement = self.sql.prepare_cached(
            "UPDATE revocations SET attempts = attempts + 1, next_try_at = ?2
              WHERE id IN (SELECT id FROM revocations WHERE state = 'pending' AND next_try_at <= ?1
                            ORDER BY next_try_at LIMIT ?3)
              RETURNING id, connection, app, version, refresh_token, attempts",
        )?;
        let mut rows = statement.query(params![now.millis(), now.after(push).millis(), limit])?;
        let mut claimed = Vec::new();
        while let Some(row) = rows.next()? {
            match read_revocation(&self.vault, row) {
                Ok(revocation) => claimed.push(revocation),
                // One record that was tampered with must not hold up the queue.
                Err(error) => tracing::error!(%error, "a queued revocation cannot be read"),
            }
        }
        Ok(claimed)
    }

    pub(super) fn finish_revocation(
        &self,
        id: i64,
        state: RevocationState,
        event: Option<&Event>,
        now: Timestamp,
    ) -> Stored<()> {
        if state == RevocationState::Pending {
            return Ok(());
        }
        let connection: Option<String> = self.value(
            "UPDATE revocations
                SET state = ?2, finished_at = ?3, refresh_token = NULL, refresh_token_fingerprint = NULL
              WHERE id = ?1 AND state = 'pending'
              RETURNING connection",
            params![id, state.as_str(), now.millis()],
        )?;
        if let Some(connection) = connection {
            self.sql
                .prepare_cached(
                    "UPDATE connections SET revocation = ?2
                      WHERE id = ?1 AND status = 'disconnected'
                        AND NOT EXISTS (SELECT 1 FROM revocations WHERE connection = ?1 AND state = 'pending')",
                )?
                .execute(params![connection, state.as_str()])?;
            if let Some(event) = event {
                let connection = connection.parse().map_err(|_| strange("connection"))?;
                self.append_event(&connection, Before::Unchanged, event, now)?;
            }
        }
        Ok(())
    }

    /// How far a disconnected connection's revocation is.
    pub(super) fn revocation_state(&self, id: &ConnectionId) -> Stored<RevocationState> {
        let word: Option<String> = self.value(
            "SELECT revocation FROM connections WHERE id = ?1 AND revocation IS NOT NULL",
            [id.as_str()],
        )?;
        read_revocation_state(word.as_deref())
    }

    pub(super) fn claim_due(&self, query: &DueQuery) -> Stored<Vec<ConnectionId>> {
        let mut claimed = Vec::new();
        // The statement that reads them pushes them on: no other process claims them, too.
        let mut statement = self.sql.prepare_cached(
            "UPDATE connections SET claimed_until = :until
              WHERE id IN (SELECT id FROM connections
                            WHERE app = :app AND status = 'active' AND kind = 'oauth' AND soft_end <= :now
                              AND claimed_until <= :now
                              AND (trouble_next_attempt_at IS NULL OR trouble_next_attempt_at <= :now)
                              AND (:used_since IS NULL OR last_call_at >= :used_since)
                            ORDER BY soft_end LIMIT :limit)
              RETURNING id",
        )?;
        for (app, used_since) in &query.apps {
            let left = query
                .limit
                .saturating_sub(u32::try_from(claimed.len()).unwrap_or(u32::MAX));
            let mut rows = statement.query(named_params! {
                ":app": app.as_str(),
                ":now": query.now.millis(),
                ":until": query.now.after(query.push).millis(),
                ":used_since": used_since.map(Timestamp::millis),
                ":limit": left,
            })?;
            while let Some(row) = rows.next()? {
                claimed.push(row.parsed("id")?);
            }
        }
        Ok(claimed)
    }

    /// Merges: of two times the later one wins, and nothing takes one away.
    pub(super) fn note_usage(&self, usage: &[Usage], now: Timestamp) -> Stored<()> {
        let mut statement = self.sql.prepare_cached(
            "UPDATE connections
                SET last_call_at = max(coalesce(last_call_at, ?2), coalesce(?2, last_call_at)),
                    last_success_at = max(coalesce(last_success_at, ?3), coalesce(?3, last_success_at)),
                    last_refresh_at = max(coalesce(last_refresh_at, ?4), coalesce(?4, last_refresh_at)),
                    last_unauthorized_at = max(coalesce(last_unauthorized_at, ?5), coalesce(?5, last_unauthorized_at)),
                    last_forbidden_at = max(coalesce(last_forbidden_at, ?6), coalesce(?6, last_forbidden_at)),
                    last_rate_limited_at = max(coalesce(last_rate_limited_at, ?7), coalesce(?7, last_rate_limited_at))
              WHERE id = ?1",
        )?;
        for Usage { connection, last, .. } in usage {
            let millis = |at: Option<Timestamp>| at.map(Timestamp::millis);
            statement.execute(params![
                connection.as_str(),
                millis(last.call_at),
                millis(last.success_at),
                millis(last.refresh_at),
                millis(last.unauthorized_at),
                millis(last.forbidden_at),
                millis(last.rate_limited_at),
            ])?;
        }
        self.add_tallies(usage, now)
    }

    /// The number of the newest change, whether or not it was swept since. SQLite has one writer at a time, so numbers
    /// appear in their order and nothing that was committed later can have a lower one.
    pub(super) fn change_head(&self) -> Stored<i64> {
        let head = self.value("SELECT seq FROM sqlite_sequence WHERE name = 'changes'", [])?;
        Ok(head.unwrap_or(0))
    }

    pub(super) fn changes(&self, after: i64) -> Stored<(Vec<Change>, i64)> {
        let mut statement = self
            .sql
            .prepare_cached("SELECT * FROM changes WHERE id > ?1 ORDER BY id LIMIT ?2")?;
        let mut rows = statement.query(params![after, CHANGES_READ])?;
        let mut changes = Vec::new();
        let mut read_to = None;
        while let Some(row) = rows.next()? {
            changes.push(read_change(row)?);
            read_to = Some(row.get("id")?);
        }
        match read_to {
            Some(read_to) => Ok((changes, read_to)),
            None => Ok((changes, self.change_head()?)),
        }
    }

    pub(super) fn sweep(&self, before: Timestamp) -> Stored<()> {
        for sql in [
            "DELETE FROM changes WHERE at < ?1",
            "DELETE FROM authorizations WHERE expires_at < ?1",
            "DELETE FROM connect_sessions WHERE expires_at < ?1",
            "DELETE FROM revocations WHERE finished_at < ?1",
            "DELETE FROM budgets WHERE touched_at < ?1",
            "DELETE FROM app_tallies WHERE minute < ?1",
        ] {
            self.sql.prepare_cached(sql)?.execute([before.millis()])?;
        }
        self.sql
            .prepare_cached(
                "DELETE FROM tallies WHERE (connection, hour) IN (
                     SELECT connection, hour FROM tallies WHERE hour < ?1 ORDER BY hour LIMIT ?2)",
            )?
            .execute(params![before.before(TALLIES_KEPT_ON).millis(), TALLIES_SWEPT])?;
        Ok(())
    }
}
