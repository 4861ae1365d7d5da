//! The store's history and counts, as the decision wants them.

use std::sync::Arc;

use evergrant_domain::ConnectionId;
use evergrant_domain::api_answer::Class;
use evergrant_domain::diagnosis::{Calls, Happened, Hour, LOOKED_FOR};
use evergrant_domain::tally::{Counted, Seconds, Tally};
use evergrant_domain::{Timestamp, Version};
use evergrant_store::contract::{EventOrder, EventQuery, StoredEvent, Tallied};
use evergrant_store::{Store, StoreError};

/// How many lines are looked at: of the kinds that matter, more than a connection leaves in the time that counts.
const LINES_MAX: u32 = 1000;

/// Its history, oldest first, as far as it matters.
pub(crate) async fn history(store: &Arc<dyn Store>, id: &ConnectionId) -> Result<Vec<Happened>, StoreError> {
    let query = EventQuery {
        connections: vec![id.clone()],
        kinds: LOOKED_FOR.iter().map(|kind| kind.as_str().to_owned()).collect(),
        ..EventQuery::all(EventOrder::NewestFirst { before: None }, LINES_MAX)
    };
    let mut lines: Vec<Happened> = store
        .find_events(query)
        .await?
        .events
        .into_iter()
        .map(happened)
        .collect();
    lines.reverse();
    Ok(lines)
}

fn happened(event: StoredEvent) -> Happened {
    let around = event.circumstances;
    Happened {
        at: event.at,
        kind: event.kind,
        detail: event.detail,
        version: event.version.unwrap_or(Version::new(0)),
        fingerprint: event.fingerprint,
        process: event.process,
        reason: around.reason.map(|reason| reason.as_str().to_owned()),
        class: around.class.map(|class| class.as_str().to_owned()),
        status_code: around.status_code,
        token_version: around.token_version,
        seconds_remaining: around.seconds_remaining,
    }
}

/// What its calls did, by the hour, as far back as it is kept.
pub(crate) async fn hours(store: &Arc<dyn Store>, id: &ConnectionId) -> Result<Vec<Hour>, StoreError> {
    let tallied = store.tallies(id, Timestamp::from_millis(0)).await?;
    Ok(tallied.into_iter().map(hour).collect())
}

fn hour(Tallied { at, tally }: Tallied) -> Hour {
    Hour {
        began_at: at,
        calls: calls(&tally),
    }
}

fn calls(tally: &Tally) -> Calls {
    let times = |counted| u64::from(tally.times(counted));
    let class = |class| times(Counted::Class(class));
    Calls {
        all: tally.calls(),
        refused: tally.refused(),
        ok: class(Class::Ok),
        rate_limited: class(Class::RateLimited),
        not_found: times(Counted::Status(404)),
        unavailable: class(Class::Unavailable) + class(Class::Timeout),
        by_life: Seconds::ALL.map(|seconds| times(Counted::Ttl(seconds))),
        by_delay: Seconds::ALL.map(|seconds| times(Counted::Delay(seconds))),
        handed_out: times(Counted::HandedOut),
        refresh_forced: times(Counted::RefreshForced),
    }
}
