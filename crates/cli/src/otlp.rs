//! Traces of calls, sent to a collector by OTLP over HTTP.
//!
//! Off where neither `[tracing]` nor OpenTelemetry's own variables name a collector, and then nothing of this exists. A collector that
//! is away costs its spans: they are made and dropped beside the calls, in a queue of a bounded length on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use evergrant_server::Traces;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_http::{HeaderExtractor, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::failure::Failure;
use crate::network::{self, HttpClient};

/// How long a collector may take for one batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the end of the process waits for the last spans.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What a collector answers is a few bytes; more is not read.
const ANSWER_MAX: usize = 64 * 1024;

/// A way to a collector.
pub(crate) struct Otlp {
    provider: SdkTracerProvider,
}

impl Otlp {
    /// What the configuration and the environment ask for; `None` where nobody asks.
    pub(crate) fn asked_for(tracing: &evergrant_config::Tracing) -> Result<Option<Self>, Failure> {
        if !is_asked_for(tracing, |name| std::env::var(name).ok()) {
            return Ok(None);
        }
        let sender = Sender {
            client: network::client()?,
            runtime: Handle::current(),
            is_away: AtomicBool::new(false),
        };
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(EXPORT_TIMEOUT)
            .with_http_client(sender);
        if let Some(endpoint) = &tracing.otlp_endpoint {
            exporter = exporter.with_endpoint(endpoint.as_str());
        }
        let exporter = exporter
            .build()
            .map_err(|error| Failure::usage(format!("traces cannot be sent: {error}")))?;
        // The service's own name, which OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES may change.
        let resource = Resource::builder().with_attribute(opentelemetry::KeyValue::new(
            "service.version",
            env!("CARGO_PKG_VERSION"),
        ));
        let resource = if std::env::var_os("OTEL_SERVICE_NAME").is_some() {
            resource
        } else {
            resource.with_service_name("evergrant")
        };
        let mut provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build());
        if let Some(ratio) = tracing.sample_ratio {
            // A caller's decision for its own trace goes before ours.
            let ours = Sampler::TraceIdRatioBased(ratio);
            provider = provider.with_sampler(Sampler::ParentBased(Box::new(ours)));
        }
        Ok(Some(Self {
            provider: provider.build(),
        }))
    }

    /// Who makes spans of what the log's subscriber tells.
    pub(crate) fn tracer(&self) -> SdkTracer {
        self.provider.tracer("evergrant")
    }

    /// Sends what is left. The runtime must live until then.
    pub(crate) async fn flush(self) {
        let provider = self.provider;
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        // What could not be sent was said when it could not.
        let _ = timeout(FLUSH_TIMEOUT * 2, flushed).await;
    }
}

/// Whether somebody named a collector. `variable` is the environment.
fn is_asked_for(tracing: &evergrant_config::Tracing, variable: impl Fn(&str) -> Option<String>) -> bool {
    let says =
        |name: &str, word: &str| variable(name).is_some_and(|value| value.trim().eq_ignore_ascii_case(word));
    let names = |name: &str| variable(name).is_some_and(|value| !value.trim().is_empty());
    let is_off = says("OTEL_SDK_DISABLED", "true") || says("OTEL_TRACES_EXPORTER", "none");
    let is_named = tracing.otlp_endpoint.is_some()
        || names("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        || names("OTEL_EXPORTER_OTLP_ENDPOINT");
    is_named && !is_off
}

/// Where the callers' traces say that a call belongs.
pub(crate) struct Parents;

impl Traces for Parents {
    fn adopt(&self, span: &Span, headers: &HeaderMap) -> Option<String> {
        let parent = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
        // It has just been made: nothing else can have begun it.
        let _ = span.set_parent(parent);
        let context = span.context();
        let context = context.span().span_context().clone();
        context.is_sampled().then(|| context.trace_id().to_string())
    }
}

/// Sends batches by the client that the command line sends by. The thread that asks has no runtime of its own.
#[derive(Debug)]
struct Sender {
    client: HttpClient,
    runtime: Handle,
    /// Whether the last batch was lost: said once, until one is taken again.
    is_away: AtomicBool,
}

impl Sender {
    fn note(&self, sent: &Result<Response<Bytes>, HttpError>) {
        let why = match sent {
            Ok(response) if response.status().is_success() => {
                if self.is_away.swap(false, Ordering::Relaxed) {
                    tracing::info!(event = "traces_taken", "the collector takes traces again");
                }
                return;
            }
            Ok(response) => format!("it answers {}", response.status().as_u16()),
            Err(error) => network::root_cause(&**error),
        };
        if !self.is_away.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                event = "traces_lost",
                "the collector does not take traces, and spans are lost until it does: {why}"
            );
        }
    }
}

#[async_trait]
impl opentelemetry_http::HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let exchange = async move {
            let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, ANSWER_MAX).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(head, body))
        };
        // A timeout, too, wants to be made on a runtime.
        let in_time = async move { timeout(EXPORT_TIMEOUT, exchange).await };
        let sent = self.runtime.spawn(in_time).await;
        let sent = match sent {
            Ok(Ok(sent)) => sent,
            Ok(Err(elapsed)) => Err(elapsed.into()),
            Err(ended) => Err(ended.into()),
        };
        self.note(&sent);
        sent
    }
}

/// The service's door for [`Parents`].
pub(crate) fn parents() -> Arc<dyn Traces> {
    Arc::new(Parents)
}

#[cfg(test)]
mod tests {
    use evergrant_config::Tracing;

    use super::*;

    fn check(endpoint: Option<&str>, variables: &[(&str, &str)], expected: bool) {
        let tracing = Tracing {
            otlp_endpoint: endpoint.map(|endpoint| endpoint.parse().expect("a literal URL")),
            sample_ratio: None,
        };
        let variable = |name: &str| {
            let found = variables.iter().find(|(there, _)| *there == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        assert_eq!(
            is_asked_for(&tracing, variable),
            expected,
            "{endpoint:?} {variables:?}"
        );
    }

    #[test]
    fn traces_are_sent_only_where_a_collector_is_named_and_nobody_switches_them_off() {
        let here = Some("http://localhost:4318/v1/traces");
        let there = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        check(None, &[], false);
        check(here, &[], true);
        check(None, &[there], true);
        check(
            None,
            &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c/v1/traces")],
            true,
        );
        check(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], false);
        check(here, &[("OTEL_SDK_DISABLED", "true")], false);
        check(None, &[there, ("OTEL_TRACES_EXPORTER", "none")], false);
        check(None, &[there, ("OTEL_TRACES_EXPORTER", "otlp")], true);
    }
}
