//! The log, on standard error: one JSON object a line, or compact lines where somebody looks.
//!
//! `EVERGRANT_LOG` filters it, like `debug` or `warn,evergrant_keeper=debug`.

mod lines;

use std::fmt;
use std::io::{self, IsTerminal as _};

use opentelemetry_sdk::trace::SdkTracer;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, registry};

use crate::failure::Failure;
use crate::log::lines::Lines;

const FILTER: &str = "EVERGRANT_LOG";

/// A log that was begun. The last lines are written when this is dropped.
#[must_use = "the end of the process loses the last lines"]
pub(crate) struct Log(Option<Lines>);

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(lines) = &self.0 {
            lines.flush();
        }
    }
}

/// Logs for as long as the process lives. `level` holds where `EVERGRANT_LOG` says nothing; `None`: then nothing is logged. With a
/// tracer, spans of ours are handed to it, whatever is logged.
pub(crate) fn start(level: Option<&str>, tracer: Option<SdkTracer>) -> Result<Log, Failure> {
    let wanted = std::env::var(FILTER).ok().filter(|filter| !filter.is_empty());
    let Some(filter) = wanted.as_deref().or(level) else {
        return Ok(Log(None));
    };
    let filter = EnvFilter::try_new(filter).map_err(|error| Failure::usage(format!("{FILTER}: {error}")))?;
    let lines = Lines::to(io::stderr(), |lost| {
        tracing::warn!(
            event = "log_lines_lost",
            lost,
            "{lost} lines of the log were lost since the start: standard error could not be written or was not read"
        );
    })
    .map_err(|error| Failure::failed(format!("the log does not start: {error}")))?;
    let writer = lines.clone();
    let log = tracing_subscriber::fmt::layer()
        .with_writer(move || writer.clone())
        // It would complain on standard error, and panic where that is what cannot be written.
        .log_internal_errors(false);
    let log = if io::stderr().is_terminal() {
        log.compact().with_target(false).boxed()
    } else {
        log.event_format(Json).boxed()
    };
    match tracer {
        // One filter for everything: what it does not want costs nothing.
        None => registry().with(log).with(filter).init(),
        Some(tracer) => registry()
            .with(log.with_filter(filter))
            .with(spans_to(tracer))
            .init(),
    }
    // What the standard library says of a panic would wait for standard error.
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        let message = panic.payload_as_str().unwrap_or("a panic without a message");
        tracing::error!(event = "panicked", location, "{message}");
    }));
    Ok(Log(Some(lines)))
}

/// Hands spans to a tracer: ours, and no other library's. Their attributes are those that they are given and no more.
fn spans_to<S>(tracer: SdkTracer) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let ours = filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("evergrant"));
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_level(false)
        .with_location(false)
        .with_target(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(ours.with_max_level_hint(LevelFilter::DEBUG))
}

/// One flat object a line: `ts`, `level`, then the event's own members.
struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let now = jiff::Timestamp::now();
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        write!(writer, r#"{{"ts":"{now:.3}","level":"{level}""#)?;
        let mut members = Members::default();
        event.record(&mut members);
        for (name, value) in members.0 {
            write!(writer, ",{}:{value}", Value::from(name))?;
        }
        writeln!(writer, "}}")
    }
}

#[derive(Default)]
struct Members(Map<String, Value>);

impl Members {
    fn add(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Members {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_one_flat_object_and_holds_no_empty_members() {
        let written = Written::default();
        let writer = written.clone();
        let log = tracing_subscriber::fmt()
            .event_format(Json)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(log, || {
            let class: Option<&str> = None;
            tracing::warn!(event = "call", status_code = 401_u16, version = 7_i64, class, app = %"crm", "a \"quoted\"\nline");
        });
        let text = String::from_utf8(written.0.lock().expect("nobody panics").clone()).expect("UTF-8");
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).expect("JSON");
        assert!(text.starts_with(r#"{"ts":"2"#), "{text}");
        assert_eq!(line["level"], "warn");
        assert_eq!(line["event"], "call");
        assert_eq!(line["status_code"], 401);
        assert_eq!(line["version"], 7);
        assert_eq!(line["app"], "crm");
        assert_eq!(line["message"], "a \"quoted\"\nline");
        assert_eq!(line.get("class"), None);
    }
}
