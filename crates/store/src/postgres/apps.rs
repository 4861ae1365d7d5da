//! What is known about an app beyond its configuration.

use std::time::Duration;

use evergrant_domain::breaker::Breaker;
use evergrant_domain::event::Event;
use evergrant_domain::refresh_policy::Jitter;
use evergrant_domain::{AppName, ConnectionId, Timestamp};

use super::db::{Db, Told, Tried, storable};
use crate::contract::{AppState, CredentialsRejected};
use crate::record::{Columns as _, read_app_state};

/// A statement that changes an app, with the change feed's entry where it did. Returns a row then.
macro_rules! fed {
    ($statement:literal) => {
        concat!(
            "WITH changed AS (",
            $statement,
            " RETURNING name) INSERT INTO changes (kind, app) SELECT 'app', name FROM changed RETURNING 1"
        )
    };
}

/// Writes an app's event where this has a row; its values are those of [`Told`] as $3, $4 and $5, and $2 for when.
macro_rules! of_an_app {
    ($of:literal) => {
        concat!(
            "told AS (
                 INSERT INTO events (at, app, kind, detail, request_id, provider_correlation_id, process, context)
                 SELECT $2, name, $3, $4, $5::text::jsonb ->> 'request_id',
                        $5::text::jsonb ->> 'provider_correlation_id', $5::text::jsonb ->> 'process',
                        $5::text::jsonb ->> 'context'
                   FROM ",
            $of,
            ")"
        )
    };
}

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
    pub(super) async fn reject_app(
        &self,
        app: &AppName,
        rejected: &CredentialsRejected,
        event: &Event,
    ) -> Tried<()> {
        let told = Told::new(event, &self.process)?;
        self.feed(
            concat!(
                "WITH changed AS (
                     INSERT INTO apps (name, rejected_code, rejected_since, rejected_fingerprint)
                     VALUES ($1, $6, $2, $7)
                     ON CONFLICT (name) DO UPDATE
                        SET rejected_code = excluded.rejected_code, rejected_since = excluded.rejected_since,
                            rejected_fingerprint = excluded.rejected_fingerprint
                      WHERE apps.rejected_fingerprint IS DISTINCT FROM excluded.rejected_fingerprint
                     RETURNING name), ",
                of_an_app!("changed"),
                " INSERT INTO changes (kind, app) SELECT 'app', name FROM changed RETURNING 1"
            ),
            &[
                &app.as_str(),
                &rejected.since.millis(),
                &told.kind,
                &told.detail,
                &told.rest,
                &storable(&rejected.code),
                &rejected.credentials_fingerprint,
            ],
        )
        .await?;
        Ok(())
    }

    /// What stood before is read under the row's lock, and before it is changed: of two that are told so at once, one writes the event.
    pub(super) async fn accept_app(
        &self,
        app: &AppName,
        secret_fingerprint: &str,
        event: &Event,
        now: Timestamp,
    ) -> Tried<()> {
        let told = Told::new(event, &self.process)?;
        self.feed(
            concat!(
                "WITH refused AS MATERIALIZED (
                     SELECT name FROM apps WHERE name = $1 AND rejected_code IS NOT NULL FOR UPDATE),
                 changed AS (
                     INSERT INTO apps (name, secret_that_worked)
                     SELECT $1::text, $6::text FROM (SELECT count(*) FROM refused) AS looked
                     ON CONFLICT (name) DO UPDATE
                        SET secret_that_worked = excluded.secret_that_worked,
                            rejected_code = NULL, rejected_since = NULL, rejected_fingerprint = NULL,
                            probed_at = NULL, probed_by = NULL
                      WHERE apps.rejected_code IS NOT NULL
                         OR apps.secret_that_worked IS DISTINCT FROM excluded.secret_that_worked
                     RETURNING name), ",
                of_an_app!("refused"),
                " INSERT INTO changes (kind, app) SELECT 'app', name FROM changed RETURNING 1"
            ),
            &[
                &app.as_str(),
                &now.millis(),
                &told.kind,
                &told.detail,
                &told.rest,
                &secret_fingerprint,
            ],
        )
        .await?;
        Ok(())
    }

    /// A look that lies ahead of `now` for longer than there is between two was noted by a clock that was wrong.
    pub(super) async fn claim_probe(
        &self,
        app: &AppName,
        connection: &ConnectionId,
        every: Duration,
        now: Timestamp,
    ) -> Tried<bool> {
        let claimed = self
            .execute(
                "INSERT INTO apps (name, probed_at, probed_by) VALUES ($1, $3, $2)
                 ON CONFLICT (name) DO UPDATE SET probed_at = excluded.probed_at, probed_by = excluded.probed_by
                  WHERE apps.probed_at IS NULL OR apps.probed_at > $3 + $4
                     OR apps.probed_at <= $3 - $4 * CASE WHEN apps.probed_by = excluded.probed_by THEN 2 ELSE 1 END",
                &[
                    &app.as_str(),
                    &connection.as_str(),
                    &now.millis(),
                    &i64::try_from(every.as_millis()).unwrap_or(i64::MAX / 4),
                ],
            )
            .await?;
        Ok(claimed > 0)
    }

    pub(super) async fn endpoint_failed(
        &self,
        app: &AppName,
        code: &str,
        retry_after: Option<Duration>,
        jitter: Jitter,
        now: Timestamp,
    ) -> Tried<Breaker> {
        // Failures are counted one after the other: each sees the one before.
        self.execute(
            "INSERT INTO apps (name) VALUES ($1) ON CONFLICT (name) DO NOTHING",
            &[&app.as_str()],
        )
        .await?;
        let row = self
            .row("SELECT * FROM apps WHERE name = $1 FOR UPDATE", &[&app.as_str()])
            .await?;
        let last = row
            .map(|row| read_app_state(&row))
            .transpose()?
            .and_then(|state| state.endpoint);
        let next = Breaker::next(last.as_ref(), storable(code), retry_after, jitter, now);
        if last.as_ref() != Some(&next) {
            self.feed(
                fed!(
                    "UPDATE apps SET endpoint_failures = $2, endpoint_code = $3, endpoint_rest_until = $4
                      WHERE name = $1"
                ),
                &[
                    &app.as_str(),
                    &i64::from(next.failures),
                    &next.code,
                    &next.rest_until.millis(),
                ],
            )
            .await?;
        }
        Ok(next)
    }

    pub(super) async fn endpoint_works(&self, app: &AppName) -> Tried<()> {
        self.feed(
            fed!(
                "UPDATE apps
                    SET endpoint_failures = NULL, endpoint_code = NULL, endpoint_rest_until = NULL,
                        probed_at = NULL, probed_by = NULL
                  WHERE name = $1 AND endpoint_failures IS NOT NULL"
            ),
            &[&app.as_str()],
        )
        .await?;
        Ok(())
    }

    /// The second is this database's. Who waited for the row may come with one that is over: then the newer one counts. One
    /// that lies further ahead was counted by a clock that was set back since.
    pub(super) async fn claim_exchanges(&self, app: &AppName, wanted: u32, per_second: u32) -> Tried<u32> {
        let claimed = self
            .row(
                "INSERT INTO exchanges AS e (app, second, used, granted)
                 VALUES ($1, floor(extract(epoch FROM clock_timestamp()))::bigint, least($2::bigint, $3::bigint), least($2, $3))
                 ON CONFLICT (app) DO UPDATE
                    SET (second, used, granted) = (
                            SELECT second, used + granted, granted
                              FROM (SELECT second, used, greatest(least($2, $3 - used), 0) AS granted
                                      FROM (SELECT CASE WHEN counts THEN e.second ELSE excluded.second END AS second,
                                                   CASE WHEN counts THEN e.used ELSE 0 END AS used
                                              FROM (SELECT e.second - excluded.second IN (0, 1) AS counts) AS it) AS found)
                                   AS got)
                 RETURNING granted",
                &[&app.as_str(), &i64::from(wanted), &i64::from(per_second)],
            )
            .await?;
        Ok(claimed.map_or(Ok(0), |row| row.count("granted"))?)
    }

    pub(super) async fn switch_to_single_use(&self, app: &AppName, now: Timestamp) -> Tried<bool> {
        let switched = self
            .feed(
                fed!(
                    "INSERT INTO apps (name, single_use_since) VALUES ($1, $2)
                     ON CONFLICT (name) DO UPDATE SET single_use_since = excluded.single_use_since
                      WHERE apps.single_use_since IS NULL"
                ),
                &[&app.as_str(), &now.millis()],
            )
            .await?;
        Ok(!switched.is_empty())
    }
}
