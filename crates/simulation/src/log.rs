//! What the product logs: part of a run's trace, and searched for secrets.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::grants::CANARY;
use crate::trace::Trace;

/// Takes what is logged. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Captured {
    trace: Trace,
    leaked: Arc<Mutex<Option<String>>>,
}

impl Captured {
    pub(crate) fn new(trace: &Trace) -> Self {
        Self {
            trace: trace.clone(),
            leaked: Arc::default(),
        }
    }

    /// The first line with a secret in it.
    pub(crate) fn leaked(&self) -> Option<String> {
        self.leaked.lock().clone()
    }
}

impl Subscriber for Captured {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && metadata.target().starts_with("evergrant")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        if line.0.contains(CANARY) {
            self.leaked.lock().get_or_insert(line.0.clone());
        }
        self.trace.note("log", line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write as _;
        // A file's name or an attempt's may hold a number that no seed decides.
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?} ");
        } else {
            let _ = write!(self.0, "{}={value:?} ", field.name());
        }
    }
}
