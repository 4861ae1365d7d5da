//! Deliveries of webhooks, and places in journals.

use std::time::Duration;

use evergrant_domain::access::Limits;
use evergrant_domain::{AppName, ConnectionId, Customer, Timestamp};
use rusqlite::{named_params, params};

use super::conditions::Conditions;
use super::record::Db;
use crate::contract::{
    DeadLetters, Delivery, DeliveryFilter, DeliverySweep, Journal, JournalStep, NewDelivery, TriedDelivery,
    TryEnd,
};
use crate::record::{Before, EndColumns, Stored, list, read_dead_letters, read_delivery, read_journal};

impl Db {
    pub(super) fn webhook_position(&self) -> Stored<Option<i64>> {
        self.value("SELECT event FROM webhook_position", [])
    }

    pub(super) fn add_deliveries(
        &self,
        from: Option<i64>,
        to: i64,
        deliveries: &[NewDelivery],
        now: Timestamp,
    ) -> Stored<bool> {
        let moved = match from {
            Some(from) => self
                .sql
                .prepare_cached("UPDATE webhook_position SET event = ?2 WHERE event = ?1")?
                .execute([from, to])?,
            None => self
                .sql
                .prepare_cached(
                    "INSERT INTO webhook_position (only_row, event) VALUES (1, ?1) ON CONFLICT DO NOTHING",
                )?
                .execute([to])?,
        };
        if moved == 0 {
            return Ok(false);
        }
        let mut statement = self.sql.prepare_cached(
            "INSERT INTO webhook_deliveries (id, endpoint, url, event, type, app, customer, connection, at, data,
                                             state, tries, began_at, next_try_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 'pending', 0, ?11, ?11)
             ON CONFLICT DO NOTHING",
        )?;
        for delivery in deliveries {
            statement.execute(params![
                delivery.id,
                delivery.endpoint,
                delivery.url,
                delivery.event,
                delivery.kind,
                delivery.app.as_str(),
                delivery.customer.as_ref().map(Customer::as_str),
                delivery.connection.as_ref().map(ConnectionId::as_str),
                delivery.at.millis(),
                delivery.data,
                now.millis(),
            ])?;
        }
        Ok(true)
    }

    pub(super) fn claim_deliveries(
        &self,
        endpoint: &str,
        limit: u32,
        push: Duration,
        now: Timestamp,
    ) -> Stored<Vec<Delivery>> {
        let mut statement = self.sql.prepare_cached(
            "UPDATE webhook_deliveries SET tries = tries + 1, last_try_at = ?2, next_try_at = ?3
              WHERE id IN (SELECT id FROM webhook_deliveries
                            WHERE endpoint = ?1 AND state = 'pending' AND next_try_at <= ?2
                            ORDER BY next_try_at LIMIT ?4)
              RETURNING *",
        )?;
        let mut rows = statement.query(params![endpoint, now.millis(), now.after(push).millis(), limit])?;
        let mut claimed = Vec::new();
        while let Some(row) = rows.next()? {
            claimed.push(read_delivery(row)?);
        }
        Ok(claimed)
    }

    pub(super) fn end_try(&self, tried: &TriedDelivery, end: &TryEnd, now: Timestamp) -> Stored<bool> {
        let columns = EndColumns::new(end, now);
        let ended = self
            .sql
            .prepare_cached(
                "UPDATE webhook_deliveries
                    SET state = ?3, next_try_at = ?4, finished_at = ?5, last_status = ?6, last_error = ?7
                  WHERE id = ?1 AND tries = ?2 AND state = 'pending'",
            )?
            .execute(params![
                tried.id,
                tried.tries,
                columns.state,
                columns.next_try_at,
                columns.finished_at,
                tried.status,
                tried.error,
            ])?;
        Ok(ended > 0)
    }

    pub(super) fn deliveries(&self, filter: &DeliveryFilter) -> Stored<Vec<Delivery>> {
        fn asked<'a>(items: impl IntoIterator<Item = &'a str>) -> Option<String> {
            let mut items = items.into_iter().peekable();
            items.peek().is_some().then(|| list(items))
        }
        let limits = &filter.limits;
        let mut statement = self.sql.prepare_cached(
            "SELECT * FROM webhook_deliveries
              WHERE (:states IS NULL OR state IN (SELECT value FROM json_each(:states)))
                AND (:connections IS NULL OR connection IN (SELECT value FROM json_each(:connections)))
                AND (:id IS NULL OR id = :id)
                AND (:within_apps IS NULL OR app IN (SELECT value FROM json_each(:within_apps)))
                AND (:within_customers IS NULL OR customer IN (SELECT value FROM json_each(:within_customers)))
                AND (:within_ids IS NULL OR connection IN (SELECT value FROM json_each(:within_ids)))
                AND (:before IS NULL OR id < :before)
              ORDER BY id DESC LIMIT :limit",
        )?;
        let mut rows = statement.query(named_params! {
            ":states": asked(filter.states.iter().map(|state| state.as_str())),
            ":connections": asked(filter.connections.iter().map(ConnectionId::as_str)),
            ":id": filter.id,
            ":within_apps": asked(limits.apps.iter().map(AppName::as_str)),
            ":within_customers": asked(limits.customers.iter().map(Customer::as_str)),
            ":within_ids": asked(limits.connections.iter().map(ConnectionId::as_str)),
            ":before": filter.before,
            ":limit": filter.limit,
        })?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read_delivery(row)?);
        }
        Ok(found)
    }

    pub(super) fn dead_letters(&self, limits: &Limits) -> Stored<DeadLetters> {
        let mut conditions = Conditions::default();
        conditions.hold("state = 'dead'".to_owned());
        conditions.one_of("app", limits.apps.iter().map(AppName::as_str));
        conditions.one_of("customer", limits.customers.iter().map(Customer::as_str));
        conditions.one_of("connection", limits.connections.iter().map(ConnectionId::as_str));
        let mut statement = self.sql.prepare(&format!(
            "SELECT count(*) AS count, min(finished_at) AS oldest_at FROM webhook_deliveries{}",
            conditions.clause()
        ))?;
        let mut rows = statement.query(conditions.values())?;
        rows.next()?.map_or(Ok(DeadLetters::default()), read_dead_letters)
    }

    pub(super) fn resend_delivery(&self, id: &str, now: Timestamp) -> Stored<Option<Delivery>> {
        let mut statement = self.sql.prepare_cached(
            "UPDATE webhook_deliveries
                SET state = 'pending', tries = 0, began_at = ?2, next_try_at = ?2, finished_at = NULL
              WHERE id = ?1
              RETURNING *",
        )?;
        let mut rows = statement.query(params![id, now.millis()])?;
        rows.next()?.map(read_delivery).transpose()
    }

    pub(super) fn sweep_deliveries(&self, sweep: &DeliverySweep, now: Timestamp) -> Stored<()> {
        self.sql
            .prepare_cached(
                "DELETE FROM webhook_deliveries
                  WHERE (state = 'delivered' AND finished_at < ?1) OR (state = 'dead' AND finished_at < ?2)",
            )?
            .execute([sweep.delivered_before.millis(), sweep.dead_before.millis()])?;
        self.sql
            .prepare_cached(
                "UPDATE webhook_deliveries
                    SET state = 'dead', next_try_at = NULL, finished_at = ?1, last_error = ?2
                  WHERE state = 'pending' AND next_try_at < ?3
                    AND endpoint NOT IN (SELECT value FROM json_each(?4))",
            )?
            .execute(params![
                now.millis(),
                sweep.unclaimed,
                sweep.unclaimed_before.millis(),
                list(sweep.endpoints.iter().map(String::as_str)),
            ])?;
        Ok(())
    }

    pub(super) fn claim_journal(
        &self,
        app: &AppName,
        push: Duration,
        now: Timestamp,
    ) -> Stored<Option<Journal>> {
        let mut statement = self.sql.prepare_cached(
            "INSERT INTO journals (app, reads_until) VALUES (?1, ?3)
             ON CONFLICT (app) DO UPDATE SET reads_until = ?3 WHERE reads_until <= ?2
             RETURNING *",
        )?;
        let mut rows = statement.query(params![app.as_str(), now.millis(), now.after(push).millis()])?;
        rows.next()?.map(read_journal).transpose()
    }

    pub(super) fn journal_subscribed(&self, app: &AppName, now: Timestamp) -> Stored<()> {
        self.sql
            .prepare_cached("UPDATE journals SET subscribed_at = ?2 WHERE app = ?1")?
            .execute(params![app.as_str(), now.millis()])?;
        Ok(())
    }

    pub(super) fn advance_journal(
        &self,
        app: &AppName,
        step: &JournalStep,
        now: Timestamp,
    ) -> Stored<Option<Vec<ConnectionId>>> {
        let moved = self
            .sql
            .prepare_cached("UPDATE journals SET position = ?3 WHERE app = ?1 AND position IS ?2")?
            .execute(params![app.as_str(), step.from, step.to])?;
        if moved == 0 {
            return Ok(None);
        }
        let mut marked = Vec::new();
        for uninstall in &step.uninstalls {
            if self.mark_uninstalled(&uninstall.connection, uninstall.at, &uninstall.event, now)? {
                marked.push(uninstall.connection.clone());
            }
        }
        for (connection, event) in &step.notes {
            self.append_event(connection, Before::Unchanged, event, now)?;
        }
        Ok(Some(marked))
    }
}
