//! Events and tallies as their rows hold them.

use std::collections::BTreeMap;
use std::time::Duration;

use evergrant_domain::connection::Landing;
use evergrant_domain::event::{Circumstances, Event};
use evergrant_domain::tally::{Counted, Tally};
use evergrant_domain::{AppName, Connection, Health, Timestamp, Version};

use super::{Columns, Stored, strange};
use crate::circumstances::KeptCircumstances;
use crate::contract::{ConnectionCount, EventOrder, EventPage, EventQuery, StoredEvent, Tallied, Usage};

/// Every column of an event. One that an older program wrote names no app: it is its connection's.
pub(crate) const SELECT_EVENT: &str = "SELECT e.id, e.at, e.connection, coalesce(e.app, c.app) AS app, e.kind, e.detail, \
     e.version_before, e.version, e.fingerprint, e.process, e.request_id, e.provider_correlation_id, e.context \
     FROM events e LEFT JOIN connections c ON c.id = e.connection";

/// How many events one look goes through at most where nothing leads to the right ones.
const EVENTS_LOOKED_AT: i64 = 100_000;

/// Of so many of the newest events, connections with more than [`BUSY`] are looked at in every bite: whoever writes much is trimmed
/// soon.
pub(crate) const NEWEST_LOOKED_AT: i64 = 10_000;
pub(crate) const BUSY: i64 = 100;

/// How long tallies are kept beyond what else is swept.
pub(crate) const TALLIES_KEPT_ON: Duration = Duration::from_secs(24 * 3600);

/// Which events one look goes through: those with these ids.
pub(crate) struct Span {
    pub(crate) above: i64,
    pub(crate) upto: i64,
    /// Where there is nothing older than this.
    oldest: i64,
}

impl Span {
    /// A look into events of which the newest that may be read is `head`. `all_at_once` where an index leads to the few that are meant.
    pub(crate) fn new(order: EventOrder, head: i64, oldest: i64, all_at_once: bool) -> Self {
        let (above, upto) = match order {
            EventOrder::NewestFirst { before } => {
                let upto = before.map_or(i64::MAX, |before| before.saturating_sub(1));
                (upto.min(head).saturating_sub(EVENTS_LOOKED_AT), upto)
            }
            // A feed reads on from where its last look ended, so each one has an end.
            EventOrder::OldestFirst { after } => {
                let from = after.max(oldest.saturating_sub(1));
                (after, from.saturating_add(EVENTS_LOOKED_AT).min(head))
            }
        };
        match order {
            EventOrder::NewestFirst { .. } if all_at_once => Self {
                above: i64::MIN,
                upto,
                oldest,
            },
            EventOrder::OldestFirst { .. } if all_at_once => Self {
                above,
                upto: head,
                oldest,
            },
            EventOrder::NewestFirst { .. } | EventOrder::OldestFirst { .. } => Self { above, upto, oldest },
        }
    }

    /// What was found, and from where to read on.
    pub(crate) fn page(&self, query: &EventQuery, events: Vec<StoredEvent>) -> EventPage {
        let last = events.last().map(|event| event.id);
        let full = u32::try_from(events.len()).is_ok_and(|found| found >= query.limit);
        let read_on = match (query.order, last) {
            (_, Some(last)) if full => Some(last),
            (EventOrder::NewestFirst { .. }, _) => {
                (self.above >= self.oldest).then(|| self.above.saturating_add(1))
            }
            (EventOrder::OldestFirst { after }, _) => Some(self.upto.max(after)),
        };
        EventPage { events, read_on }
    }
}

/// Which version stood before an event.
#[derive(Clone, Copy)]
pub(crate) enum Before {
    /// None: the connection is new.
    Nothing,
    /// This one.
    Version(Version),
    /// The one before the one that stands now.
    OneLess,
    /// The one that stands now: the event goes with no change of it.
    #[cfg(feature = "sqlite")]
    Unchanged,
}

impl Before {
    /// The version where it is named, and by how much it is less than the one that stands.
    pub(crate) fn columns(self) -> (Option<i64>, Option<i64>) {
        match self {
            Self::Nothing => (None, None),
            Self::Version(version) => (Some(version.number()), None),
            Self::OneLess => (None, Some(1)),
            #[cfg(feature = "sqlite")]
            Self::Unchanged => (None, Some(0)),
        }
    }
}

/// What of an event's circumstances is never searched by, as its column holds it.
pub(crate) fn context(event: &Event) -> Stored<String> {
    let context = KeptCircumstances::from(Circumstances {
        provider_correlation_id: None,
        request_id: None,
        ..event.circumstances.clone()
    });
    serde_json::to_string(&context).map_err(|_| strange("context"))
}

pub(crate) fn read_event(row: &impl Columns) -> Stored<StoredEvent> {
    let context: KeptCircumstances =
        serde_json::from_str(&row.text("context")?).map_err(|_| strange("context"))?;
    let circumstances = Circumstances {
        provider_correlation_id: row.maybe_text("provider_correlation_id")?,
        request_id: row.maybe_text("request_id")?,
        ..context.into()
    };
    Ok(StoredEvent {
        id: row.number("id")?,
        at: row.time("at")?,
        connection: row.maybe_parsed("connection")?,
        app: row.parsed("app")?,
        kind: row.text("kind")?,
        detail: row.text("detail")?,
        circumstances,
        process: row.maybe_text("process")?,
        version_before: row.maybe_number("version_before")?.map(Version::new),
        version: row.maybe_number("version")?.map(Version::new),
        fingerprint: row.maybe_text("fingerprint")?,
    })
}

/// Words and how often, as their column holds them.
pub(crate) fn counts(tally: &Tally) -> BTreeMap<String, u64> {
    tally
        .iter()
        .map(|(counted, times)| (counted.word(), u64::from(times)))
        .collect()
}

pub(crate) fn counts_column(counts: &BTreeMap<String, u64>) -> Stored<String> {
    serde_json::to_string(counts).map_err(|_| strange("counts"))
}

pub(crate) fn read_counts(column: &str) -> Stored<BTreeMap<String, u64>> {
    serde_json::from_str(column).map_err(|_| strange("counts"))
}

/// A newer program may count more.
pub(crate) fn read_tallied(row: &impl Columns) -> Stored<Tallied> {
    let mut tally = Tally::default();
    for (word, times) in read_counts(&row.text("counts")?)? {
        if let Some(counted) = Counted::from_word(&word) {
            tally.add(counted, u32::try_from(times).unwrap_or(u32::MAX));
        }
    }
    Ok(Tallied {
        at: row.time("began_at")?,
        tally,
    })
}

/// What was counted, by connection and by app: in the order of their names, each once.
pub(crate) struct Sums<'a> {
    pub(crate) connections: BTreeMap<&'a str, Tally>,
    pub(crate) apps: BTreeMap<&'a str, Tally>,
}

impl<'a> Sums<'a> {
    pub(crate) fn new(usage: &'a [Usage]) -> Self {
        let mut sums = Self {
            connections: BTreeMap::new(),
            apps: BTreeMap::new(),
        };
        for usage in usage.iter().filter(|usage| !usage.tally.is_empty()) {
            let of_connection = sums.connections.entry(usage.connection.as_str()).or_default();
            of_connection.merge(&usage.tally);
            let of_app = sums.apps.entry(AppName::as_str(&usage.app)).or_default();
            of_app.merge(&usage.tally);
        }
        sums
    }
}

/// When the hour began that a time lies in.
pub(crate) fn hour(at: Timestamp) -> i64 {
    begun(at, 3_600_000)
}

/// When the minute began that a time lies in.
pub(crate) fn minute(at: Timestamp) -> i64 {
    begun(at, 60_000)
}

fn begun(at: Timestamp, lasts: i64) -> i64 {
    at.millis() - at.millis().rem_euclid(lasts)
}

/// How a connection does, as `Connection::health` says it. The time before which an attempt's answer cannot arrive any more is `lost`,
/// and `first_attempt` reads when the first one of those in `c.attempts` began.
pub(crate) fn health(lost: &str, first_attempt: &str) -> String {
    format!(
        "CASE WHEN c.status = 'disconnected' THEN NULL
              WHEN c.status = 'reconnect_required' THEN 'reconnect_required'
              WHEN c.attempts <> '[]' AND {first_attempt} < {lost} THEN 'ambiguous'
              WHEN c.trouble_failed_at IS NOT NULL
                OR (c.last_unauthorized_at IS NOT NULL
                    AND (c.last_success_at IS NULL OR c.last_success_at < c.last_unauthorized_at)
                    AND (c.last_refresh_at IS NULL OR c.last_refresh_at < c.last_unauthorized_at)) THEN 'degraded'
              WHEN c.last_success_at IS NULL OR c.last_success_at < c.connected_at THEN 'unverified'
              ELSE 'healthy' END"
    )
}

pub(crate) fn read_count(row: &impl Columns) -> Stored<ConnectionCount> {
    let health = match row.maybe_text("health")? {
        Some(word) => Some(Health::from_word(&word).ok_or_else(|| strange("health"))?),
        None => None,
    };
    Ok(ConnectionCount {
        app: row.parsed("app")?,
        health,
        count: u64::try_from(row.number("count")?).map_err(|_| strange("count"))?,
    })
}

/// What is told of a token set that lands on the record `found`. How many refreshes in a row had failed before it is known here alone:
/// an answer may have lain in a lifeboat, and its connection been given up meanwhile, which counts as one.
pub(crate) fn told_of_landing(found: &Connection, event: &Event) -> Event {
    let failures = found.trouble.as_ref().map_or(0, |trouble| trouble.failures);
    let given_up = found.status.after_token_set_landed() == Landing::ActiveUnproven;
    let mut event = event.clone();
    event.circumstances.failures_before = Some(failures.max(u32::from(given_up)));
    event
}

#[cfg(test)]
mod tests {
    use evergrant_domain::api_answer::Class;

    use super::*;

    #[test]
    fn what_a_newer_program_counts_is_kept_and_not_read() {
        let mut stored = read_counts(r#"{"class:ok":1,"sung":2}"#).expect("counts");
        let mut tally = Tally::default();
        tally.add(Counted::Class(Class::Ok), 2);
        for (word, times) in counts(&tally) {
            *stored.entry(word).or_default() += times;
        }
        let column = counts_column(&stored).expect("counts");
        assert_eq!(column, r#"{"class:ok":3,"sung":2}"#);
    }

    #[test]
    fn an_hour_begins_on_the_hour() {
        let at = Timestamp::from_millis(2 * 3_600_000 + 61_000);
        assert_eq!((hour(at), minute(at)), (2 * 3_600_000, 2 * 3_600_000 + 60_000));
    }
}
