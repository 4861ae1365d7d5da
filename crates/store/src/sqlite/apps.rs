//! What is known about an app beyond its configuration.

use std::time::Duration;

use evergrant_domain::breaker::Breaker;
use evergrant_domain::event::Event;
use evergrant_domain::refresh_policy::Jitter;
use evergrant_domain::{AppName, ConnectionId, Timestamp};
use rusqlite::params;

use super::record::Db;
use crate::contract::{AppState, CredentialsRejected};
use crate::record::{Stored, read_app_state};

impl Db {
    pub(super) fn app_state(&self, app: &AppName) -> Stored<AppState> {
        let mut statement = self.sql.prepare_cached("SELECT * FROM apps WHERE name = ?1")?;
        let mut rows = statement.query([app.as_str()])?;
        Ok(rows.next()?.map(read_app_state).transpose()?.unwrap_or_default())
    }

    /// A second refusal of the same credentials changes nothing; other credentials begin anew.
    pub(super) fn reject_app(
        &self,
        app: &AppName,
        rejected: &CredentialsRejected,
        event: &Event,
    ) -> Stored<()> {
        let changed = self
            .sql
            .prepare_cached(
                "INSERT INTO apps (name, rejected_code, rejected_since, rejected_fingerprint) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO UPDATE
                    SET rejected_code = excluded.rejected_code, rejected_since = excluded.rejected_since,
                        rejected_fingerprint = excluded.rejected_fingerprint
                  WHERE rejected_fingerprint IS NOT excluded.rejected_fingerprint",
            )?
            .execute(params![
                app.as_str(),
                rejected.code,
                rejected.since.millis(),
                rejected.credentials_fingerprint,
            ])?;
        if changed > 0 {
            self.note_app_event(app, event, rejected.since)?;
        }
        self.feed_app(app, changed)
    }

    pub(super) fn accept_app(
        &self,
        app: &AppName,
        secret_fingerprint: &str,
        event: &Event,
        now: Timestamp,
    ) -> Stored<()> {
        if self.app_state(app)?.rejected.is_some() {
            self.note_app_event(app, event, now)?;
        }
        let changed = self
            .sql
            .prepare_cached(
                "INSERT INTO apps (name, secret_that_worked) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE
                    SET secret_that_worked = excluded.secret_that_worked,
                        rejected_code = NULL, rejected_since = NULL, rejected_fingerprint = NULL,
                        probed_at = NULL, probed_by = NULL
                  WHERE rejected_code IS NOT NULL OR secret_that_worked IS NOT excluded.secret_that_worked",
            )?
            .execute(params![app.as_str(), secret_fingerprint])?;
        self.feed_app(app, changed)
    }

    /// A look that lies ahead of `now` for longer than there is between two was noted by a clock that was wrong.
    pub(super) fn claim_probe(
        &self,
        app: &AppName,
        connection: &ConnectionId,
        every: Duration,
        now: Timestamp,
    ) -> Stored<bool> {
        let claimed = self
            .sql
            .prepare_cached(
                "INSERT INTO apps (name, probed_at, probed_by) VALUES (?1, ?3, ?2)
                 ON CONFLICT (name) DO UPDATE SET probed_at = excluded.probed_at, probed_by = excluded.probed_by
                  WHERE probed_at IS NULL OR probed_at > ?3 + ?4
                     OR probed_at <= ?3 - ?4 * iif(probed_by = excluded.probed_by, 2, 1)",
            )?
            .execute(params![
                app.as_str(),
                connection.as_str(),
                now.millis(),
                i64::try_from(every.as_millis()).unwrap_or(i64::MAX / 4),
            ])?;
        Ok(claimed > 0)
    }

    pub(super) fn endpoint_failed(
        &self,
        app: &AppName,
        code: &str,
        retry_after: Option<Duration>,
        jitter: Jitter,
        now: Timestamp,
    ) -> Stored<Breaker> {
        let last = self.app_state(app)?.endpoint;
        let next = Breaker::next(last.as_ref(), code.to_owned(), retry_after, jitter, now);
        if last.as_ref() == Some(&next) {
            return Ok(next);
        }
        let changed = self
            .sql
            .prepare_cached(
                "INSERT INTO apps (name, endpoint_failures, endpoint_code, endpoint_rest_until) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO UPDATE
                    SET endpoint_failures = excluded.endpoint_failures, endpoint_code = excluded.endpoint_code,
                        endpoint_rest_until = excluded.endpoint_rest_until",
            )?
            .execute(params![app.as_str(), next.failures, next.code, next.rest_until.millis()])?;
        self.feed_app(app, changed)?;
        Ok(next)
    }

    pub(super) fn endpoint_works(&self, app: &AppName) -> Stored<()> {
        let changed = self
            .sql
            .prepare_cached(
                "UPDATE apps
                    SET endpoint_failures = NULL, endpoint_code = NULL, endpoint_rest_until = NULL,
                        probed_at = NULL, probed_by = NULL
                  WHERE name = ?1 AND endpoint_failures IS NOT NULL",
            )?
            .execute([app.as_str()])?;
        self.feed_app(app, changed)
    }

    /// A second that is over by more than one, in either direction, counts for nothing: clocks of two processes differ by less,
    /// and one that was set back must not keep everybody waiting for it.
    pub(super) fn claim_exchanges(
        &self,
        app: &AppName,
        wanted: u32,
        per_second: u32,
        now: Timestamp,
    ) -> Stored<u32> {
        let granted: Option<u32> = self.value(
            "INSERT INTO exchanges (app, second, used, granted) VALUES (?1, ?2, min(?3, ?4), min(?3, ?4))
             ON CONFLICT (app) DO UPDATE
                SET second = iif(second - excluded.second IN (0, 1), second, excluded.second),
                    used = iif(second - excluded.second IN (0, 1), used, 0)
                         + max(min(?3, ?4 - iif(second - excluded.second IN (0, 1), used, 0)), 0),
                    granted = max(min(?3, ?4 - iif(second - excluded.second IN (0, 1), used, 0)), 0)
              RETURNING granted",
            params![app.as_str(), now.millis().div_euclid(1000), wanted, per_second],
        )?;
        Ok(granted.unwrap_or(0))
    }

    pub(super) fn switch_to_single_use(&self, app: &AppName, now: Timestamp) -> Stored<bool> {
        let changed = self
            .sql
            .prepare_cached(
                "INSERT INTO apps (name, single_use_since) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET single_use_since = excluded.single_use_since
                  WHERE single_use_since IS NULL",
            )?
            .execute(params![app.as_str(), now.millis()])?;
        self.feed_app(app, changed)?;
        Ok(changed > 0)
    }

    fn feed_app(&self, app: &AppName, changed: usize) -> Stored<()> {
        if changed > 0 {
            self.sql
                .prepare_cached("INSERT INTO changes (kind, app) VALUES ('app', ?1)")?
                .execute([app.as_str()])?;
        }
        Ok(())
    }
}
