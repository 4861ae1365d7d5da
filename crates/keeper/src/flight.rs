//! Single flight: one redemption of a connection at a time in this process, as a task that outlives whoever began it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use evergrant_domain::ConnectionId;
use futures_util::FutureExt as _;
use futures_util::future::Shared;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, span};

use crate::asker::Asker;
use crate::cache::Current;
use crate::error::KeepError;
use crate::gate::WaitedFor;
use crate::keeper::Keeper;
use crate::redeem::Why;

/// How long a caller waits for a flight: a lease that another process holds, and an exchange of our own.
const CALLER_WAITS: Duration = Duration::from_secs(45);

pub(crate) type Outcome = Result<Arc<Current>, KeepError>;

/// The flights in progress, by connection.
#[derive(Default)]
pub(crate) struct Flights {
    by_connection: Mutex<HashMap<ConnectionId, Flight>>,
}

#[derive(Clone)]
struct Flight {
    /// Whoever waits for it is told in turn, and not, as by a watch channel, in an order of chance: a simulation must be repeatable.
    outcome: Shared<oneshot::Receiver<Outcome>>,
    /// Whether it goes before those that nobody waits for.
    waited_for: WaitedFor,
    /// What traces know it by. Not the span itself, which ends when nobody holds it any more.
    span: Option<span::Id>,
}

impl Keeper {
    /// Joins the connection's flight, or starts it, and waits for its outcome.
    pub(crate) async fn fly(&self, asker: Asker<'_>, id: &ConnectionId, why: Why) -> Outcome {
        let flight = self.join(asker, id, why);
        if !flight.waited_for.swap(true, Ordering::SeqCst) {
            self.hurry(id);
        }
        match tokio::time::timeout(CALLER_WAITS, flight.outcome).await {
            Ok(Ok(outcome)) => outcome,
            // The task ended without an outcome: it panicked, or the runtime is going down.
            Ok(Err(_)) | Err(_) => Err(overloaded()),
        }
    }

    /// Starts a flight that nobody waits for, unless one is on its way.
    pub(crate) fn refresh_behind(&self, asker: Asker<'_>, id: &ConnectionId) {
        drop(self.join(asker, id, Why::Due { min_ttl: None }));
    }

    fn join(&self, asker: Asker<'_>, id: &ConnectionId, why: Why) -> Flight {
        let mut flights = self.inner.flights.by_connection.lock();
        if let Some(flight) = flights.get(id) {
            // While it is on the list its span has not ended. A call that did not begin it waits for it all the same, and its trace
            // says for which one.
            if flight.span.is_some() {
                Span::current().follows_from(flight.span.clone());
            }
            return flight.clone();
        }
        let (landing, outcome) = oneshot::channel();
        let waited_for = WaitedFor::default();
        let span = tracing::debug_span!(
            "refresh",
            otel.kind = "internal",
            otel.status_code = Empty,
            error.type = Empty,
            evergrant.connection_id = %id,
            evergrant.reason = why.as_str(),
            evergrant.outcome = Empty,
            evergrant.redemption = Empty,
        );
        let flight = Flight {
            span: span.id(),
            outcome: outcome.shared(),
            waited_for: waited_for.clone(),
        };
        // A process that is going down begins nothing that it may not live to store.
        if self.inner.stopping.is_cancelled() {
            // It is there: the flight holds the other end.
            let _ = landing.send(Err(overloaded()));
            return flight;
        }
        flights.insert(id.clone(), flight.clone());
        drop(flights);
        let keeper = self.clone();
        let id = id.clone();
        let asker = asker.kept();
        // The task is its own: a caller that goes away does not take a redemption with it.
        let work = async move {
            let leaves = Leaves {
                keeper: &keeper,
                id: &id,
            };
            let outcome = keeper.redeem(&asker, &id, why, &waited_for).await;
            // Out of the list before the outcome is told: who comes after it finds what it stored, or starts anew.
            drop(leaves);
            // Where nobody waits any more, what it brought is stored all the same.
            let _ = landing.send(outcome);
        };
        self.inner.tasks.redeem(work.instrument(span));
        flight
    }
}

/// Takes the flight off the list however its task ends, a panic included: an entry that stayed would block the connection
/// for ever.
struct Leaves<'a> {
    keeper: &'a Keeper,
    id: &'a ConnectionId,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.keeper.inner.flights.by_connection.lock().remove(self.id);
    }
}

fn overloaded() -> KeepError {
    KeepError::Overloaded {
        retry_after: Duration::from_secs(5),
    }
}
