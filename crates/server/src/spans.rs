//! A call's span: what traces show of it. Without a subscriber that reads traces it costs one look at a number.

use std::sync::Arc;

use http::HeaderMap;
use http::request::Parts;
use tracing::Span;
use tracing::field::Empty;
use tracing::level_filters::LevelFilter;

use crate::answer::Answer;
use crate::router::Endpoint;
use crate::trace::Trace;

/// Where a call's span belongs in the caller's own traces: whoever reads traces knows how they name that, this crate does not.
pub trait Traces: Send + Sync + 'static {
    /// Puts the span under its parent, where the headers name a valid one, and says which trace it belongs to; `None` where
    /// nobody keeps that trace.
    fn adopt(&self, span: &Span, headers: &HeaderMap) -> Option<String>;
}

const GATEWAY: &str = "/gateway/{connection_id}/{path}";

/// Begins the span of a call, and names the trace in the call's log line.
pub(crate) fn begin(head: &Parts, traces: Option<&Arc<dyn Traces>>, trace: &mut Trace) -> Span {
    if LevelFilter::current() < LevelFilter::DEBUG {
        return Span::none();
    }
    let path = head.uri.path();
    // A name does not change any more once its span has begun.
    let route = if path.starts_with("/gateway/") {
        GATEWAY
    } else if path.starts_with("/v1/") {
        "/v1/{path}"
    } else {
        // Who scrapes or probes every few seconds would fill the traces with it.
        return Span::none();
    };
    let span = tracing::debug_span!(
        parent: None,
        "call",
        otel.name = %format_args!("{} {route}", head.method),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = head.method.as_str(),
        http.response.status_code = Empty,
        http.route = Empty,
        error.type = Empty,
        evergrant.app = Empty,
        evergrant.attempts = Empty,
        evergrant.class = Empty,
        evergrant.connection_id = Empty,
        evergrant.endpoint = Empty,
        evergrant.error = Empty,
        evergrant.request_id = trace.request_id(),
    );
    if let Some(traces) = traces.filter(|_| !span.is_disabled()) {
        // Only what is valid names a parent: the same rule as for the log.
        let nobody = HeaderMap::new();
        let headers = match trace.trace_id {
            Some(_) => &head.headers,
            None => &nobody,
        };
        if let Some(id) = traces.adopt(&span, headers) {
            trace.trace_id = Some(id);
        }
    }
    span
}

/// Says what came of it.
pub(crate) fn end(span: &Span, answer: &Answer) {
    let status = answer.response.status();
    match &answer.call {
        Some(call) => {
            let record = &call.record;
            span.record("evergrant.connection_id", call.connection.as_str());
            span.record(
                "evergrant.app",
                record.app.as_ref().map(evergrant_domain::AppName::as_str),
            );
            span.record("evergrant.class", record.class.as_str());
            span.record("evergrant.attempts", record.attempts);
            span.record("evergrant.endpoint", record.endpoint());
            span.record("http.route", GATEWAY);
        }
        None => {
            span.record("http.route", answer.endpoint.as_ref().map(Endpoint::as_str));
        }
    }
    span.record("http.response.status_code", status.as_u16());
    if let Some(problem) = &answer.problem {
        span.record("evergrant.error", problem.code().as_str());
    }
    // Of a server's spans a 4xx is no error: the caller may have meant it.
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", status.as_str());
    }
}
