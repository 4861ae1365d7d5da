//! What happened and how often: events, tallies, and how the connections do.

use std::collections::BTreeMap;
use std::time::Duration;

use evergrant_domain::access::Limits;
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::tally::Tally;
use evergrant_domain::{AppName, ConnectionId, Customer, Timestamp};
use rusqlite::params;

use super::conditions::Conditions;
use super::record::Db;
use crate::contract::{
    ConnectionCount, EventOrder, EventPage, EventQuery, EventTrim, RefreshCount, Tallied, Usage,
};
use crate::record::{
    BUSY, Before, Columns as _, NEWEST_LOOKED_AT, SELECT_EVENT, Span, Stored, Sums, context, counts,
    counts_column, health, hour, minute, read_count, read_counts, read_event, read_tallied,
};

/// Of how many connections one bite counts the events, and how many events it forgets of each at most. Whoever else writes waits
/// meanwhile.
const CONNECTIONS_TRIMMED: u32 = 200;
const EVENTS_TRIMMED: u32 = 1_000;

/// When the first attempt in a connection's intent began.
pub(super) const FIRST_ATTEMPT: &str = "(SELECT min(value ->> 1) FROM json_each(c.attempts))";

/// What lies within a key's limits, of connections called `c`.
pub(super) fn within(limits: &Limits, conditions: &mut Conditions) {
    conditions.one_of("c.app", limits.apps.iter().map(AppName::as_str));
    conditions.one_of("c.customer", limits.customers.iter().map(Customer::as_str));
    conditions.one_of("c.id", limits.connections.iter().map(ConnectionId::as_str));
}

impl Db {
    /// Appends to a connection's history; nothing where there is no such connection.
    pub(super) fn append_event(
        &self,
        id: &ConnectionId,
        before: Before,
        event: &Event,
        now: Timestamp,
    ) -> Stored<()> {
        let (named, less) = before.columns();
        let circumstances = &event.circumstances;
        self.sql
            .prepare_cached(
                "INSERT INTO events (at, connection, app, kind, detail, version_before, version, fingerprint, process,
                                     request_id, provider_correlation_id, context)
                 SELECT ?2, id, app, ?3, ?4, coalesce(?5, version - ?6), version, refresh_token_fingerprint, ?7, ?8, ?9, ?10
                   FROM connections WHERE id = ?1",
            )?
            .execute(params![
                id.as_str(),
                now.millis(),
                event.kind.as_str(),
                event.detail,
                named,
                less,
                self.holders.process(),
                circumstances.request_id,
                circumstances.provider_correlation_id,
                context(event)?,
            ])?;
        Ok(())
    }

    pub(super) fn note_app_event(&self, app: &AppName, event: &Event, now: Timestamp) -> Stored<()> {
        let circumstances = &event.circumstances;
        self.sql
            .prepare_cached(
                "INSERT INTO events (at, app, kind, detail, process, request_id, provider_correlation_id, context)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                now.millis(),
                app.as_str(),
                event.kind.as_str(),
                event.detail,
                self.holders.process(),
                circumstances.request_id,
                circumstances.provider_correlation_id,
                context(event)?,
            ])?;
        Ok(())
    }

    /// The number of the newest event, whether or not it was forgotten since. SQLite has one writer at a time, so numbers appear in
    /// their order and nothing that is committed later can have a lower one.
    pub(super) fn event_head(&self) -> Stored<i64> {
        let head = self.value("SELECT seq FROM sqlite_sequence WHERE name = 'events'", [])?;
        Ok(head.unwrap_or(0))
    }

    pub(super) fn find_events(&self, query: &EventQuery) -> Stored<EventPage> {
        let mut conditions = Conditions::default();
        conditions.one_of("e.connection", query.connections.iter().map(ConnectionId::as_str));
        conditions.one_of("e.request_id", query.request_ids.iter().map(String::as_str));
        conditions.one_of(
            "e.provider_correlation_id",
            query.provider_correlation_ids.iter().map(String::as_str),
        );
        // Each of these leads to few events.
        let all_at_once = !conditions.is_empty();
        conditions.one_of("coalesce(e.app, c.app)", query.apps.iter().map(AppName::as_str));
        conditions.one_of("c.customer", query.customers.iter().map(Customer::as_str));
        conditions.one_of("e.kind", query.kinds.iter().map(String::as_str));
        if let Some(since) = query.since {
            let since = conditions.value(since.millis());
            conditions.hold(format!("e.at >= {since}"));
        }
        let limits = &query.limits;
        conditions.one_of("coalesce(e.app, c.app)", limits.apps.iter().map(AppName::as_str));
        conditions.one_of("c.customer", limits.customers.iter().map(Customer::as_str));
        conditions.one_of("c.id", limits.connections.iter().map(ConnectionId::as_str));

        let head = self.event_head()?;
        let oldest: Option<i64> = self.value("SELECT id FROM events ORDER BY id LIMIT 1", [])?;
        let looked_at = Span::new(query.order, head, oldest.unwrap_or(head), all_at_once);
        let (above, upto) = (
            conditions.value(looked_at.above),
            conditions.value(looked_at.upto),
        );
        conditions.hold(format!("e.id > {above} AND e.id <= {upto}"));
        let order = match query.order {
            EventOrder::NewestFirst { .. } => "DESC",
            EventOrder::OldestFirst { .. } => "ASC",
        };
        let limit = conditions.value(query.limit);
        let mut statement = self.sql.prepare(&format!(
            "{SELECT_EVENT}{} ORDER BY e.id {order} LIMIT {limit}",
            conditions.clause()
        ))?;
        let mut rows = statement.query(conditions.values())?;
        let mut events = Vec::new();
        while let Some(row) = rows.next()? {
            events.push(read_event(row)?);
        }
        Ok(looked_at.page(query, events))
    }

    pub(super) fn count_refreshes(&self, id: &ConnectionId, since: Timestamp) -> Stored<RefreshCount> {
        let mut statement = self.sql.prepare_cached(
            "SELECT count(*) FILTER (WHERE kind = ?3) AS done, count(*) FILTER (WHERE kind = ?4) AS failed
               FROM events WHERE connection = ?1 AND at >= ?2",
        )?;
        let mut rows = statement.query(params![
            id.as_str(),
            since.millis(),
            EventKind::Refreshed.as_str(),
            EventKind::RefreshFailed.as_str(),
        ])?;
        rows.next()?.map_or(Ok(RefreshCount::default()), |row| {
            Ok(RefreshCount {
                done: row.count("done")?,
                failed: row.count("failed")?,
            })
        })
    }

    pub(super) fn trim_events(&self, trim: &EventTrim) -> Stored<Option<ConnectionId>> {
        // Numbers grow with time, so the oldest ones are the lowest.
        self.sql
            .prepare_cached(
                "DELETE FROM events WHERE at < ?1 AND id IN (SELECT id FROM events ORDER BY id LIMIT ?2)",
            )?
            .execute(params![trim.before.millis(), EVENTS_TRIMMED])?;
        let mut looked_at: Vec<ConnectionId> = Vec::new();
        let mut statement = self
            .sql
            .prepare_cached("SELECT id FROM connections WHERE id > ?1 ORDER BY id LIMIT ?2")?;
        let from = trim.from.as_ref().map_or("", ConnectionId::as_str);
        let mut rows = statement.query(params![from, CONNECTIONS_TRIMMED])?;
        while let Some(row) = rows.next()? {
            looked_at.push(row.parsed("id")?);
        }
        let full = u32::try_from(looked_at.len()) == Ok(CONNECTIONS_TRIMMED);
        let read_on = looked_at.last().filter(|_| full).cloned();
        let mut statement = self.sql.prepare_cached(
            "SELECT connection FROM (SELECT connection FROM events ORDER BY id DESC LIMIT ?1)
              WHERE connection IS NOT NULL GROUP BY connection HAVING count(*) > ?2",
        )?;
        let mut rows = statement.query(params![NEWEST_LOOKED_AT, BUSY])?;
        while let Some(row) = rows.next()? {
            looked_at.push(row.parsed("connection")?);
        }
        for id in looked_at {
            self.sql
                .prepare_cached(
                    "DELETE FROM events WHERE id IN (
                         SELECT id FROM events WHERE connection = ?1 ORDER BY id DESC LIMIT ?3 OFFSET ?2)",
                )?
                .execute(params![id.as_str(), trim.keep_per_connection, EVENTS_TRIMMED])?;
        }
        Ok(read_on)
    }

    /// Adds what was counted to the hour and the minute of `now`.
    pub(super) fn add_tallies(&self, usage: &[Usage], now: Timestamp) -> Stored<()> {
        let sums = Sums::new(usage);
        let hour = hour(now);
        for (id, tally) in &sums.connections {
            let there: Option<String> = self.value(
                "SELECT counts FROM tallies WHERE connection = ?1 AND hour = ?2",
                params![id, hour],
            )?;
            self.sql
                .prepare_cached(
                    "INSERT INTO tallies (connection, hour, counts) SELECT id, ?2, ?3 FROM connections WHERE id = ?1
                     ON CONFLICT (connection, hour) DO UPDATE SET counts = excluded.counts",
                )?
                .execute(params![id, hour, added(there, tally)?])?;
        }
        let minute = minute(now);
        for (app, tally) in &sums.apps {
            let there: Option<String> = self.value(
                "SELECT counts FROM app_tallies WHERE app = ?1 AND minute = ?2",
                params![app, minute],
            )?;
            self.sql
                .prepare_cached(
                    "INSERT INTO app_tallies (app, minute, counts) VALUES (?1, ?2, ?3)
                     ON CONFLICT (app, minute) DO UPDATE SET counts = excluded.counts",
                )?
                .execute(params![app, minute, added(there, tally)?])?;
        }
        Ok(())
    }

    pub(super) fn tallies(&self, id: &ConnectionId, since: Timestamp) -> Stored<Vec<Tallied>> {
        self.tallied(
            "SELECT hour AS began_at, counts FROM tallies WHERE connection = ?1 AND hour >= ?2 ORDER BY hour",
            params![id.as_str(), hour(since)],
        )
    }

    pub(super) fn app_tallies(&self, app: &AppName, since: Timestamp) -> Stored<Vec<Tallied>> {
        self.tallied(
            "SELECT minute AS began_at, counts FROM app_tallies WHERE app = ?1 AND minute >= ?2 ORDER BY minute",
            params![app.as_str(), minute(since)],
        )
    }

    fn tallied(&self, sql: &str, parameters: impl rusqlite::Params) -> Stored<Vec<Tallied>> {
        let mut statement = self.sql.prepare_cached(sql)?;
        let mut rows = statement.query(parameters)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read_tallied(row)?);
        }
        Ok(found)
    }

    pub(super) fn count_connections(
        &self,
        limits: &Limits,
        quiet_time: Duration,
        now: Timestamp,
    ) -> Stored<Vec<ConnectionCount>> {
        let mut conditions = Conditions::default();
        within(limits, &mut conditions);
        let lost = conditions.value(now.before(quiet_time).millis());
        let health = health(&lost, FIRST_ATTEMPT);
        let mut statement = self.sql.prepare(&format!(
            "SELECT app, health, count(*) AS count
               FROM (SELECT c.app AS app, {health} AS health FROM connections c{})
              GROUP BY app, health ORDER BY app, health",
            conditions.clause()
        ))?;
        let mut rows = statement.query(conditions.values())?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read_count(row)?);
        }
        Ok(found)
    }
}

/// A column's counts with those of a tally. Words that a newer program counts by stay.
fn added(there: Option<String>, tally: &Tally) -> Stored<String> {
    let mut sum = there.map_or(Ok(BTreeMap::new()), |there| read_counts(&there))?;
    for (word, times) in counts(tally) {
        *sum.entry(word).or_default() += times;
    }
    counts_column(&sum)
}
