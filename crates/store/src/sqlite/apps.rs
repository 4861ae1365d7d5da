//! What is known about an app beyond its configuration.

use evergrant_domain::{AppName, Timestamp};
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
    pub(super) fn reject_app(&self, app: &AppName, rejected: &CredentialsRejected) -> Stored<()> {
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
        self.feed_app(app, changed)
    }

    pub(super) fn accept_app(&self, app: &AppName, secret_fingerprint: &str) -> Stored<()> {
        let changed = self
            .sql
            .prepare_cached(
                "INSERT INTO apps (name, secret_that_worked) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE
                    SET secret_that_worked = excluded.secret_that_worked,
                        rejected_code = NULL, rejected_since = NULL, rejected_fingerprint = NULL
                  WHERE rejected_code IS NOT NULL OR secret_that_worked IS NOT excluded.secret_that_worked",
            )?
            .execute(params![app.as_str(), secret_fingerprint])?;
        self.feed_app(app, changed)
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
