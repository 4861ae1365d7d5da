//! Deliveries of webhooks, and places in journals.

use std::time::Duration;

use evergrant_domain::access::Limits;
use evergrant_domain::{AppName, ConnectionId, Customer, Timestamp};

use super::conditions::Conditions;
use super::db::{Db, Tried, storable};
use crate::contract::{
    DeadLetters, Delivery, DeliveryFilter, DeliverySweep, Journal, JournalStep, NewDelivery, TriedDelivery,
    TryEnd,
};
use crate::record::{Columns as _, EndColumns, read_dead_letters, read_delivery, read_journal};

impl Db {
    pub(super) async fn webhook_position(&self) -> Tried<Option<i64>> {
        let row = self.row("SELECT event FROM webhook_position", &[]).await?;
        Ok(row.map(|row| row.number("event")).transpose()?)
    }

    pub(super) async fn add_deliveries(
        &self,
        from: Option<i64>,
        to: i64,
        deliveries: &[NewDelivery],
        now: Timestamp,
    ) -> Tried<bool> {
        let moved = match from {
            Some(from) => {
                self.execute(
                    "UPDATE webhook_position SET event = $2 WHERE event = $1",
                    &[&from, &to],
                )
                .await?
            }
            None => {
                self.execute(
                    "INSERT INTO webhook_position (only_row, event) VALUES (1, $1) ON CONFLICT DO NOTHING",
                    &[&to],
                )
                .await?
            }
        };
        if moved == 0 {
            return Ok(false);
        }
        for delivery in deliveries {
            self.execute(
                "INSERT INTO webhook_deliveries (id, endpoint, url, event, type, app, customer, connection, at, data,
                                                 state, tries, began_at, next_try_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'pending', 0, $11, $11)
                 ON CONFLICT DO NOTHING",
                &[
                    &delivery.id,
                    &delivery.endpoint,
                    &storable(&delivery.url),
                    &delivery.event,
                    &delivery.kind,
                    &delivery.app.as_str(),
                    &delivery.customer.as_ref().map(Customer::as_str),
                    &delivery.connection.as_ref().map(ConnectionId::as_str),
                    &delivery.at.millis(),
                    &storable(&delivery.data),
                    &now.millis(),
                ],
            )
            .await?;
        }
        Ok(true)
    }

    pub(super) async fn claim_deliveries(
        &self,
        endpoint: &str,
        limit: u32,
        push: Duration,
        now: Timestamp,
    ) -> Tried<Vec<Delivery>> {
        let rows = self
            .rows(
                "UPDATE webhook_deliveries SET tries = tries + 1, last_try_at = $2, next_try_at = $3
                  WHERE id = ANY (ARRAY(SELECT id FROM webhook_deliveries
                                         WHERE endpoint = $1 AND state = 'pending' AND next_try_at <= $2
                                         ORDER BY next_try_at LIMIT $4 FOR UPDATE SKIP LOCKED))
                  RETURNING *",
                &[
                    &endpoint,
                    &now.millis(),
                    &now.after(push).millis(),
                    &i64::from(limit),
                ],
            )
            .await?;
        Ok(rows.iter().map(read_delivery).collect::<Result<_, _>>()?)
    }

    pub(super) async fn end_try(&self, tried: &TriedDelivery, end: &TryEnd, now: Timestamp) -> Tried<bool> {
        let columns = EndColumns::new(end, now);
        let ended = self
            .execute(
                "UPDATE webhook_deliveries
                    SET state = $3, next_try_at = $4, finished_at = $5, last_status = $6, last_error = $7
                  WHERE id = $1 AND tries = $2 AND state = 'pending'",
                &[
                    &tried.id,
                    &i64::from(tried.tries),
                    &columns.state,
                    &columns.next_try_at,
                    &columns.finished_at,
                    &tried.status.map(i64::from),
                    &tried.error.as_deref().map(storable),
                ],
            )
            .await?;
        Ok(ended > 0)
    }

    pub(super) async fn deliveries(&self, filter: &DeliveryFilter) -> Tried<Vec<Delivery>> {
        fn asked<'a>(items: impl IntoIterator<Item = &'a str>) -> Option<Vec<&'a str>> {
            Some(items.into_iter().collect()).filter(|items: &Vec<_>| !items.is_empty())
        }
        let limits = &filter.limits;
        let rows = self
            .rows(
                "SELECT * FROM webhook_deliveries
                  WHERE ($1::text[] IS NULL OR state = ANY ($1))
                    AND ($2::text[] IS NULL OR connection = ANY ($2))
                    AND ($3::text IS NULL OR id = $3)
                    AND ($4::text[] IS NULL OR app = ANY ($4))
                    AND ($5::text[] IS NULL OR customer = ANY ($5))
                    AND ($6::text[] IS NULL OR connection = ANY ($6))
                    AND ($7::text IS NULL OR id < $7)
                  ORDER BY id DESC LIMIT $8",
                &[
                    &asked(filter.states.iter().map(|state| state.as_str())),
                    &asked(filter.connections.iter().map(ConnectionId::as_str)),
                    &filter.id.as_deref().map(storable),
                    &asked(limits.apps.iter().map(AppName::as_str)),
                    &asked(limits.customers.iter().map(Customer::as_str)),
                    &asked(limits.connections.iter().map(ConnectionId::as_str)),
                    &filter.before.as_deref().map(storable),
                    &i64::from(filter.limit),
                ],
            )
            .await?;
        Ok(rows.iter().map(read_delivery).collect::<Result<_, _>>()?)
    }

    pub(super) async fn dead_letters(&self, limits: &Limits) -> Tried<DeadLetters> {
        let mut conditions = Conditions::default();
        conditions.hold("state = 'dead'".to_owned());
        conditions.one_of("app", limits.apps.iter().map(AppName::as_str));
        conditions.one_of("customer", limits.customers.iter().map(Customer::as_str));
        conditions.one_of("connection", limits.connections.iter().map(ConnectionId::as_str));
        let rows = self
            .rows_once(
                &format!(
                    "SELECT count(*) AS count, min(finished_at) AS oldest_at FROM webhook_deliveries{}",
                    conditions.clause()
                ),
                &conditions.values(),
            )
            .await?;
        Ok(rows
            .first()
            .map_or(Ok(DeadLetters::default()), read_dead_letters)?)
    }

    pub(super) async fn resend_delivery(&self, id: &str, now: Timestamp) -> Tried<Option<Delivery>> {
        let row = self
            .row(
                "UPDATE webhook_deliveries
                    SET state = 'pending', tries = 0, began_at = $2, next_try_at = $2, finished_at = NULL
                  WHERE id = $1
                  RETURNING *",
                &[&storable(id), &now.millis()],
            )
            .await?;
        Ok(row.map(|row| read_delivery(&row)).transpose()?)
    }

    pub(super) async fn sweep_deliveries(&self, sweep: &DeliverySweep, now: Timestamp) -> Tried<()> {
        self.execute(
            "DELETE FROM webhook_deliveries
              WHERE (state = 'delivered' AND finished_at < $1) OR (state = 'dead' AND finished_at < $2)",
            &[&sweep.delivered_before.millis(), &sweep.dead_before.millis()],
        )
        .await?;
        self.execute(
            "UPDATE webhook_deliveries
                SET state = 'dead', next_try_at = NULL, finished_at = $1, last_error = $2
              WHERE state = 'pending' AND next_try_at < $3 AND endpoint <> ALL ($4::text[])",
            &[
                &now.millis(),
                &sweep.unclaimed,
                &sweep.unclaimed_before.millis(),
                &sweep.endpoints,
            ],
        )
        .await?;
        Ok(())
    }

    pub(super) async fn claim_journal(
        &self,
        app: &AppName,
        push: Duration,
        now: Timestamp,
    ) -> Tried<Option<Journal>> {
        let row = self
            .row(
                "INSERT INTO journals (app, reads_until) VALUES ($1, $3)
                 ON CONFLICT (app) DO UPDATE SET reads_until = $3 WHERE journals.reads_until <= $2
                 RETURNING *",
                &[&app.as_str(), &now.millis(), &now.after(push).millis()],
            )
            .await?;
        Ok(row.map(|row| read_journal(&row)).transpose()?)
    }

    pub(super) async fn journal_subscribed(&self, app: &AppName, now: Timestamp) -> Tried<()> {
        self.execute(
            "UPDATE journals SET subscribed_at = $2 WHERE app = $1",
            &[&app.as_str(), &now.millis()],
        )
        .await?;
        Ok(())
    }

    pub(super) async fn advance_journal(
        &self,
        app: &AppName,
        step: &JournalStep,
        now: Timestamp,
    ) -> Tried<Option<Vec<ConnectionId>>> {
        let moved = self
            .execute(
                "UPDATE journals SET position = $3 WHERE app = $1 AND position IS NOT DISTINCT FROM $2",
                &[&app.as_str(), &step.from, &step.to.as_deref().map(storable)],
            )
            .await?;
        if moved == 0 {
            return Ok(None);
        }
        let mut marked = Vec::new();
        for uninstall in &step.uninstalls {
            if self
                .mark_uninstalled(&uninstall.connection, uninstall.at, &uninstall.event, now)
                .await?
            {
                marked.push(uninstall.connection.clone());
            }
        }
        for (connection, event) in &step.notes {
            self.record_event(connection, event, now).await?;
        }
        Ok(Some(marked))
    }
}
