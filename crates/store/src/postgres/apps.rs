//! What is known about an app beyond its configuration.

use evergrant_domain::{AppName, Timestamp};

use super::db::{Db, Tried, storable};
use crate::contract::{AppState, CredentialsRejected};
use crate::record::read_app_state;

impl Db {
    pub(super) async fn app_state(&self, app: &AppName) -> Tried<AppState> {
        let row = self
            .row("SELECT * FROM apps WHERE name = $1", &[&app.as_str()])
            .await?;
        Ok(row
            .map(|row| read_app_state(&row))
            .transpose()?
            .unwrap_or_default())
    }

    /// A second refusal of the same credentials changes nothing; other credentials begin anew.
    pub(super) async fn reject_app(&self, app: &AppName, rejected: &CredentialsRejected) -> Tried<()> {
        let changed = self
            .execute(
                "INSERT INTO apps (name, rejected_code, rejected_since, rejected_fingerprint)
                 VALUES ($1, $2, $3, $4)
                 ON CONFLICT (name) DO UPDATE
                    SET rejected_code = excluded.rejected_code, rejected_since = excluded.rejected_since,
                        rejected_fingerprint = excluded.rejected_fingerprint
                  WHERE apps.rejected_fingerprint IS DISTINCT FROM excluded.rejected_fingerprint",
                &[
                    &app.as_str(),
                    &storable(&rejected.code),
                    &rejected.since.millis(),
                    &rejected.credentials_fingerprint,
                ],
            )
            .await?;
        self.feed_app(app, changed).await
    }

    pub(super) async fn accept_app(&self, app: &AppName, secret_fingerprint: &str) -> Tried<()> {
        let changed = self
            .execute(
                "INSERT INTO apps (name, secret_that_worked) VALUES ($1, $2)
                 ON CONFLICT (name) DO UPDATE
                    SET secret_that_worked = excluded.secret_that_worked,
                        rejected_code = NULL, rejected_since = NULL, rejected_fingerprint = NULL
                  WHERE apps.rejected_code IS NOT NULL
                     OR apps.secret_that_worked IS DISTINCT FROM excluded.secret_that_worked",
                &[&app.as_str(), &secret_fingerprint],
            )
            .await?;
        self.feed_app(app, changed).await
    }

    pub(super) async fn switch_to_single_use(&self, app: &AppName, now: Timestamp) -> Tried<bool> {
        let changed = self
            .execute(
                "INSERT INTO apps (name, single_use_since) VALUES ($1, $2)
                 ON CONFLICT (name) DO UPDATE SET single_use_since = excluded.single_use_since
                  WHERE apps.single_use_since IS NULL",
                &[&app.as_str(), &now.millis()],
            )
            .await?;
        self.feed_app(app, changed).await?;
        Ok(changed > 0)
    }

    async fn feed_app(&self, app: &AppName, changed: u64) -> Tried<()> {
        if changed > 0 {
            self.execute(
                "INSERT INTO changes (kind, app) VALUES ('app', $1)",
                &[&app.as_str()],
            )
            .await?;
        }
        Ok(())
    }
}
