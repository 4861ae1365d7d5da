//! What runs behind the calls: revocations, due connections, use, history, the change feed.

use std::time::Duration;

use evergrant_domain::event::Event;
use evergrant_domain::{AppName, ConnectionId, RefreshToken, Timestamp, TokenSet};

use super::db::{Db, Tried};
use crate::contract::{Change, DueQuery, Revocation, RevocationState, Usage};
use crate::record::{
    Columns as _, TALLIES_KEPT_ON, fingerprint, read_change, read_revocation, read_revocation_state,
    seal_for_revocation, strange,
};

/// How many changes one read of the feed brings at most.
const CHANGES_READ: i64 = 10_000;

impl Db {
    /// Seals the token once more, for the queue. One that waits there already is not queued twice.
    pub(super) async fn queue_revocation(
        &self,
        connection: &ConnectionId,
        app: &AppName,
        refresh_token: &RefreshToken,
        now: Timestamp,
    ) -> Tried<()> {
        let version = self
            .row(
                "SELECT version FROM connections WHERE id = $1",
                &[&connection.as_str()],
            )
            .await?
            .map_or(Ok(0), |row| row.number("version"))?;
        self.execute(
            "INSERT INTO revocations
                 (connection, app, version, refresh_token, refresh_token_fingerprint, state, attempts, next_try_at)
             VALUES ($1, $2, $3, $4, $5, 'pending', 0, $6)
             ON CONFLICT (app, refresh_token_fingerprint) WHERE state = 'pending' DO NOTHING",
            &[
                &connection.as_str(),
                &app.as_str(),
                &version,
                &seal_for_revocation(&self.vault, connection, version, refresh_token),
                &fingerprint(&self.vault, refresh_token),
                &now.millis(),
            ],
        )
        .await?;
        Ok(())
    }

    /// A grant that serves again is not revoked: who installs anew may get the very same refresh token.
    pub(super) async fn spare_from_revocation(&self, app: &AppName, tokens: &TokenSet) -> Tried<()> {
        if let Some(token) = &tokens.refresh_token {
            self.execute(
                "DELETE FROM revocations
                  WHERE app = $1 AND refresh_token_fingerprint = $2 AND state = 'pending'",
                &[&app.as_str(), &fingerprint(&self.vault, token)],
            )
            .await?;
        }
        Ok(())
    }

    pub(super) async fn claim_revocations(
        &self,
        limit: u32,
        push: Duration,
        now: Timestamp,
    ) -> Tried<Vec<Revocation>> {
        let rows = self
            .rows(
                "UPDATE revocations SET attempts = attempts + 1, next_try_at = $2
                  WHERE id = ANY (ARRAY(SELECT id FROM revocations WHERE state = 'pending' AND next_try_at <= $1
                                         ORDER BY next_try_at LIMIT $3 FOR UPDATE SKIP LOCKED))
                  RETURNING id, connection, app, version, refresh_token, attempts",
                &[&now.millis(), &now.after(push).millis(), &i64::from(limit)],
            )
            .await?;
        let mut claimed = Vec::with_capacity(rows.len());
        for row in &rows {
            match read_revocation(&self.vault, row) {
                Ok(revocation) => claimed.push(revocation),
                // One record that was tampered with must not hold up the queue.
                Err(error) => tracing::error!(%error, "a queued revocation cannot be read"),
            }
        }
        Ok(claimed)
    }

    /// Locks the connection before its revocation, in the order of everybody else.
    pub(super) async fn finish_revocation(
        &self,
        id: i64,
        state: RevocationState,
        event: Option<&Event>,
        now: Timestamp,
    ) -> Tried<()> {
        if state == RevocationState::Pending {
            return Ok(());
        }
        let waiting = self
            .row(
                "SELECT connection FROM revocations WHERE id = $1 AND state = 'pending'",
                &[&id],
            )
            .await?;
        let Some(waiting) = waiting else {
            return Ok(());
        };
        let connection: ConnectionId = waiting.parsed("connection")?;
        self.lock(&connection).await?;
        let finished = self
            .execute(
                "UPDATE revocations
                    SET state = $2, finished_at = $3, refresh_token = NULL, refresh_token_fingerprint = NULL
                  WHERE id = $1 AND state = 'pending'",
                &[&id, &state.as_str(), &now.millis()],
            )
            .await?;
        if finished == 0 {
            return Ok(());
        }
        self.execute(
            "UPDATE connections SET revocation = $2
              WHERE id = $1 AND status = 'disconnected'
                AND NOT EXISTS (SELECT 1 FROM revocations WHERE connection = $1 AND state = 'pending')",
            &[&connection.as_str(), &state.as_str()],
        )
        .await?;
        if let Some(event) = event {
            self.record_event(&connection, event, now).await?;
        }
        Ok(())
    }

    /// How far a disconnected connection's revocation is.
    pub(super) async fn revocation_state(&self, id: &ConnectionId) -> Tried<RevocationState> {
        let row = self
            .row(
                "SELECT revocation FROM connections WHERE id = $1",
                &[&id.as_str()],
            )
            .await?;
        let word = match row {
            Some(row) => row.maybe_text("revocation")?,
            None => None,
        };
        Ok(read_revocation_state(word.as_deref())?)
    }

    pub(super) async fn claim_due(&self, query: &DueQuery) -> Tried<Vec<ConnectionId>> {
        // The statement that reads them pushes them on: no other process claims them, too. What another one claims at this
        // moment is skipped, not waited for. An array, because a list behind IN may be made more than once, and then claims more
        // than the limit.
        let (apps, used_since): (Vec<&str>, Vec<Option<i64>>) = query
            .apps
            .iter()
            .map(|(app, used_since)| (app.as_str(), used_since.map(Timestamp::millis)))
            .unzip();
        let rows = self
            .rows(
                "UPDATE connections SET claimed_until = $4
                  WHERE id = ANY (ARRAY(
                            SELECT due.id
                              FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS asked (app, used_since, place)
                             CROSS JOIN LATERAL (
                                    SELECT id FROM connections
                                     WHERE app = asked.app AND status = 'active' AND kind = 'oauth' AND soft_end <= $3
                                       AND claimed_until <= $3
                                       AND (trouble_next_attempt_at IS NULL OR trouble_next_attempt_at <= $3)
                                       AND (asked.used_since IS NULL OR last_call_at >= asked.used_since)
                                     ORDER BY soft_end LIMIT $5 FOR NO KEY UPDATE SKIP LOCKED) AS due
                             ORDER BY asked.place LIMIT $5))
                  RETURNING id",
                &[
                    &apps,
                    &used_since,
                    &query.now.millis(),
                    &query.now.after(query.push).millis(),
                    &i64::from(query.limit),
                ],
            )
            .await?;
        Ok(rows
            .iter()
            .map(|row| row.parsed("id"))
            .collect::<Result<_, _>>()?)
    }

    /// Merges: of two times the later one wins, and nothing takes one away. One statement for all of them, and locked in
    /// one order, so that two processes that tell of the same connections wait for each other only once.
    pub(super) async fn note_usage(&self, usage: &[Usage], now: Timestamp) -> Tried<()> {
        let ids: Vec<&str> = usage.iter().map(|usage| usage.connection.as_str()).collect();
        let times = |pick: fn(&Usage) -> Option<Timestamp>| -> Vec<Option<i64>> {
            usage
                .iter()
                .map(|usage| pick(usage).map(Timestamp::millis))
                .collect()
        };
        self.execute(
            "WITH locked AS MATERIALIZED (
                 SELECT id FROM connections WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE)
             UPDATE connections c
                SET last_call_at = greatest(c.last_call_at, u.call_at),
                    last_success_at = greatest(c.last_success_at, u.success_at),
                    last_refresh_at = greatest(c.last_refresh_at, u.refresh_at),
                    last_unauthorized_at = greatest(c.last_unauthorized_at, u.unauthorized_at),
                    last_forbidden_at = greatest(c.last_forbidden_at, u.forbidden_at),
                    last_rate_limited_at = greatest(c.last_rate_limited_at, u.rate_limited_at)
               FROM (SELECT id, max(call_at) AS call_at, max(success_at) AS success_at, max(refresh_at) AS refresh_at,
                            max(unauthorized_at) AS unauthorized_at, max(forbidden_at) AS forbidden_at,
                            max(rate_limited_at) AS rate_limited_at
                       FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                                   $7::bigint[])
                            AS told (id, call_at, success_at, refresh_at, unauthorized_at, forbidden_at,
                                     rate_limited_at)
                      GROUP BY id) u
               JOIN locked USING (id)
              WHERE c.id = u.id",
            &[
                &ids,
                &times(|usage| usage.last.call_at),
                &times(|usage| usage.last.success_at),
                &times(|usage| usage.last.refresh_at),
                &times(|usage| usage.last.unauthorized_at),
                &times(|usage| usage.last.forbidden_at),
                &times(|usage| usage.last.rate_limited_at),
            ],
        )
        .await?;
        self.add_tallies(usage, now).await
    }

    /// The newest change before which nothing can appear any more, whether or not it was swept since.
    ///
    /// Two statements, in this order. Whoever draws a number shows before how far the numbers stood, until its
    /// transaction has ended: so either the second statement sees that, or its number is higher than what the first one
    /// read, or it has ended and a later statement sees its changes. Transactions of other programs hold up nothing.
    pub(super) async fn change_head(&self) -> Tried<i64> {
        self.head("changes_id_seq", 17750).await
    }

    /// As [`Db::change_head`] says, for a sequence and the mark of its locks.
    pub(super) async fn head(&self, sequence: &'static str, mark: i64) -> Tried<i64> {
        let drawn = self
            .row(
                &format!("SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS drawn FROM {sequence}"),
                &[],
            )
            .await?
            .map_or(Ok(0), |row| row.number("drawn"))?;
        let coming = self
            .row(
                "SELECT min((classid::bigint << 32 | objid::bigint) & ((1::bigint << 40) - 1)) AS coming
                   FROM pg_locks
                  WHERE locktype = 'advisory' AND objsubid = 1 AND classid::bigint >> 8 = $1
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                &[&mark],
            )
            .await?
            .map_or(Ok(None), |row| row.maybe_number("coming"))?;
        Ok(coming.map_or(drawn, |coming| coming.min(drawn)))
    }

    /// Brings what is there, and says from where to read on: changes that came while an older one was on its way are
    /// brought again.
    pub(super) async fn changes(&self, after: i64) -> Tried<(Vec<Change>, i64)> {
        let head = self.change_head().await?;
        let rows = self
            .rows(
                "SELECT id, kind, connection, version, app FROM changes WHERE id > $1 ORDER BY id LIMIT $2",
                &[&after, &CHANGES_READ],
            )
            .await?;
        let read_to = match rows.last() {
            Some(last) if i64::try_from(rows.len()) == Ok(CHANGES_READ) => head.min(last.number("id")?),
            _ => head,
        };
        let changes = rows.iter().map(read_change).collect::<Result<_, _>>()?;
        Ok((changes, read_to))
    }

    /// This database's time, which server it is on and since when, and how far the change feed's numbers are.
    ///
    /// A replica that takes over begins a timeline of its own; a server that was started again may have been restored.
    pub(super) async fn pulse(&self) -> Tried<(Timestamp, String, i64)> {
        let row = self
            .row(
                "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now,
                        CASE WHEN pg_is_in_recovery() THEN 'standby'
                             ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END
                        || ' ' || (extract(epoch FROM pg_postmaster_start_time()) * 1000)::bigint AS server,
                        (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM changes_id_seq) AS feed",
                &[],
            )
            .await?
            .ok_or_else(|| strange("now"))?;
        Ok((row.time("now")?, row.text("server")?, row.number("feed")?))
    }

    pub(super) async fn sweep(&self, before: Timestamp) -> Tried<()> {
        for sql in [
            "DELETE FROM changes WHERE at < $1",
            "DELETE FROM authorizations WHERE expires_at < $1",
            "DELETE FROM connect_sessions WHERE expires_at < $1",
            "DELETE FROM revocations WHERE finished_at < $1",
            "DELETE FROM budgets WHERE touched_at < $1",
            "DELETE FROM app_tallies WHERE minute < $1",
        ] {
            self.execute(sql, &[&before.millis()]).await?;
        }
        self.execute(
            "DELETE FROM tallies WHERE hour < $1",
            &[&before.before(TALLIES_KEPT_ON).millis()],
        )
        .await?;
        Ok(())
    }
}
