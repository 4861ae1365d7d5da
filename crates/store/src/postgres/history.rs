//! What happened and how often: events, tallies, and how the connections do.

use std::collections::BTreeMap;
use std::time::Duration;

use evergrant_domain::access::Limits;
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::tally::Tally;
use evergrant_domain::{AppName, ConnectionId, Customer, Timestamp};

use super::conditions::Conditions;
use super::db::{Db, Told, Tried};
use crate::contract::{
    ConnectionCount, EventOrder, EventPage, EventQuery, EventTrim, RefreshCount, Tallied, Usage,
};
use crate::record::{
    BUSY, Columns as _, NEWEST_LOOKED_AT, SELECT_EVENT, Span, Stored, Sums, counts, counts_column, health,
    hour, minute, read_count, read_event, read_tallied,
};

/// Of how many connections one bite counts the events, and how many events it forgets of each, and of all, at most.
const CONNECTIONS_TRIMMED: i64 = 1_000;
const EVENTS_TRIMMED_EACH: i64 = 1_000;
const EVENTS_TRIMMED: i64 = 10_000;

/// When the first attempt in a connection's intent began.
pub(super) const FIRST_ATTEMPT: &str =
    "(SELECT min((attempt ->> 1)::bigint) FROM jsonb_array_elements(c.attempts::jsonb) attempt)";

/// What lies within a key's limits, of connections called `c`.
pub(super) fn within(limits: &Limits, conditions: &mut Conditions) {
    conditions.one_of("c.app", limits.apps.iter().map(AppName::as_str));
    conditions.one_of("c.customer", limits.customers.iter().map(Customer::as_str));
    conditions.one_of("c.id", limits.connections.iter().map(ConnectionId::as_str));
}

impl Db {
    pub(super) async fn note_app_event(&self, app: &AppName, event: &Event, now: Timestamp) -> Tried<()> {
        let told = Told::new(event, &self.process)?;
        self.execute(
            "INSERT INTO events (at, app, kind, detail, request_id, provider_correlation_id, process, context)
             SELECT $1, $2, $3, $4, rest ->> 'request_id', rest ->> 'provider_correlation_id', rest ->> 'process',
                    rest ->> 'context'
               FROM (SELECT $5::text::jsonb AS rest) AS told",
            &[&now.millis(), &app.as_str(), &told.kind, &told.detail, &told.rest],
        )
        .await?;
        Ok(())
    }

    /// The newest event before which nothing can appear any more, whether or not it was forgotten since: as [`Db::change_head`].
    pub(super) async fn event_head(&self) -> Tried<i64> {
        self.head("events_id_seq", 17752).await
    }

    pub(super) async fn find_events(&self, query: &EventQuery) -> Tried<EventPage> {
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

        // Before the events: what is committed after it has higher numbers.
        let head = self.event_head().await?;
        let oldest = match self.row("SELECT min(id) AS oldest FROM events", &[]).await? {
            Some(row) => row.maybe_number("oldest")?,
            None => None,
        };
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
        let limit = conditions.value(i64::from(query.limit));
        let rows = self
            .rows_once(
                &format!(
                    "{SELECT_EVENT}{} ORDER BY e.id {order} LIMIT {limit}",
                    conditions.clause()
                ),
                &conditions.values(),
            )
            .await?;
        let events = rows.iter().map(read_event).collect::<Result<_, _>>()?;
        Ok(looked_at.page(query, events))
    }

    pub(super) async fn count_refreshes(&self, id: &ConnectionId, since: Timestamp) -> Tried<RefreshCount> {
        let row = self
            .row(
                "SELECT count(*) FILTER (WHERE kind = $3) AS done, count(*) FILTER (WHERE kind = $4) AS failed
                   FROM events WHERE connection = $1 AND at >= $2",
                &[
                    &id.as_str(),
                    &since.millis(),
                    &EventKind::Refreshed.as_str(),
                    &EventKind::RefreshFailed.as_str(),
                ],
            )
            .await?;
        let Some(row) = row else {
            return Ok(RefreshCount::default());
        };
        Ok(RefreshCount {
            done: row.count("done")?,
            failed: row.count("failed")?,
        })
    }

    pub(super) async fn trim_events(&self, trim: &EventTrim) -> Tried<Option<ConnectionId>> {
        // Numbers grow with time, so the oldest ones are the lowest.
        self.execute(
            "DELETE FROM events WHERE at < $1 AND id = ANY (ARRAY(SELECT id FROM events ORDER BY id LIMIT $2))",
            &[&trim.before.millis(), &EVENTS_TRIMMED],
        )
        .await?;
        let from = trim.from.as_ref().map_or("", ConnectionId::as_str);
        let ids = self
            .rows(
                "SELECT id FROM connections WHERE id > $1 ORDER BY id LIMIT $2",
                &[&from, &CONNECTIONS_TRIMMED],
            )
            .await?
            .iter()
            .map(|row| row.parsed("id"))
            .collect::<Result<Vec<ConnectionId>, _>>()?;
        let names: Vec<&str> = ids.iter().map(ConnectionId::as_str).collect();
        self.execute(
            "WITH looked_at AS (
                 SELECT unnest($1::text[]) AS connection
                 UNION
                 SELECT connection FROM (SELECT connection FROM events ORDER BY id DESC LIMIT $4) newest
                  WHERE connection IS NOT NULL GROUP BY connection HAVING count(*) > $5)
             DELETE FROM events WHERE id = ANY (ARRAY(
                 SELECT old.id FROM looked_at CROSS JOIN LATERAL (
                        SELECT id FROM events WHERE events.connection = looked_at.connection
                         ORDER BY id DESC OFFSET $2 LIMIT $3) old
                  LIMIT $6))",
            &[
                &names,
                &i64::from(trim.keep_per_connection),
                &EVENTS_TRIMMED_EACH,
                &NEWEST_LOOKED_AT,
                &BUSY,
                &EVENTS_TRIMMED,
            ],
        )
        .await?;
        let full = i64::try_from(ids.len()) == Ok(CONNECTIONS_TRIMMED);
        Ok(ids.last().filter(|_| full).cloned())
    }

    /// Adds what was counted to the hour and the minute of `now`, in one order: two processes that tell of the same wait for each
    /// other only once. The rows of the connections are locked already; those of the apps, which every process writes, come last.
    pub(super) async fn add_tallies(&self, usage: &[Usage], now: Timestamp) -> Tried<()> {
        let sums = Sums::new(usage);
        let (ids, told) = columns(&sums.connections)?;
        if ids.is_empty() {
            return Ok(());
        }
        self.execute(
            "INSERT INTO tallies AS there (connection, hour, counts)
             SELECT c.id, $2, told.counts::jsonb
               FROM unnest($1::text[], $3::text[]) AS told (id, counts) JOIN connections c ON c.id = told.id
              ORDER BY c.id
             ON CONFLICT (connection, hour) DO UPDATE
                SET counts = (SELECT jsonb_object_agg(word, times)
                                FROM (SELECT key AS word, sum(value::bigint) AS times
                                        FROM (SELECT * FROM jsonb_each_text(there.counts)
                                              UNION ALL SELECT * FROM jsonb_each_text(excluded.counts)) AS both_of
                                       GROUP BY key) AS added)",
            &[&ids, &hour(now), &told],
        )
        .await?;
        let (apps, told) = columns(&sums.apps)?;
        self.execute(
            "INSERT INTO app_tallies AS there (app, minute, counts)
             SELECT told.app, $2, told.counts::jsonb
               FROM unnest($1::text[], $3::text[]) WITH ORDINALITY AS told (app, counts, place) ORDER BY told.place
             ON CONFLICT (app, minute) DO UPDATE
                SET counts = (SELECT jsonb_object_agg(word, times)
                                FROM (SELECT key AS word, sum(value::bigint) AS times
                                        FROM (SELECT * FROM jsonb_each_text(there.counts)
                                              UNION ALL SELECT * FROM jsonb_each_text(excluded.counts)) AS both_of
                                       GROUP BY key) AS added)",
            &[&apps, &minute(now), &told],
        )
        .await?;
        Ok(())
    }

    pub(super) async fn tallies(&self, id: &ConnectionId, since: Timestamp) -> Tried<Vec<Tallied>> {
        let rows = self
            .rows(
                "SELECT hour AS began_at, counts::text AS counts FROM tallies
                  WHERE connection = $1 AND hour >= $2 ORDER BY hour",
                &[&id.as_str(), &hour(since)],
            )
            .await?;
        Ok(rows.iter().map(read_tallied).collect::<Result<_, _>>()?)
    }

    pub(super) async fn app_tallies(&self, app: &AppName, since: Timestamp) -> Tried<Vec<Tallied>> {
        let rows = self
            .rows(
                "SELECT minute AS began_at, counts::text AS counts FROM app_tallies
                  WHERE app = $1 AND minute >= $2 ORDER BY minute",
                &[&app.as_str(), &minute(since)],
            )
            .await?;
        Ok(rows.iter().map(read_tallied).collect::<Result<_, _>>()?)
    }

    pub(super) async fn count_connections(
        &self,
        limits: &Limits,
        quiet_time: Duration,
        now: Timestamp,
    ) -> Tried<Vec<ConnectionCount>> {
        let mut conditions = Conditions::default();
        within(limits, &mut conditions);
        let lost = conditions.value(now.before(quiet_time).millis());
        let health = health(&format!("{lost}::bigint"), FIRST_ATTEMPT);
        let rows = self
            .rows_once(
                &format!(
                    "SELECT app, health, count(*) AS count
                       FROM (SELECT c.app AS app, {health} AS health FROM connections c{}) AS counted
                      GROUP BY app, health ORDER BY app, health",
                    conditions.clause()
                ),
                &conditions.values(),
            )
            .await?;
        Ok(rows.iter().map(read_count).collect::<Result<_, _>>()?)
    }
}

/// Names and their counts, as two arrays.
fn columns<'a>(sums: &BTreeMap<&'a str, Tally>) -> Stored<(Vec<&'a str>, Vec<String>)> {
    let mut names = Vec::with_capacity(sums.len());
    let mut told = Vec::with_capacity(sums.len());
    for (name, tally) in sums {
        names.push(*name);
        told.push(counts_column(&counts(tally))?);
    }
    Ok((names, told))
}
