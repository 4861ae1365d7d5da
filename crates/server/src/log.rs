//! One line a call, in the words of the interface. Never a token, a header, a body or a query.

use std::net::IpAddr;

use evergrant_config::{LogCalls, Network};
use evergrant_domain::ConnectionId;
use evergrant_gateway::CallRecord;
use http::request::Parts;
use http::{HeaderMap, HeaderName};
use tokio::time::Instant;

use crate::answer::Answer;
use crate::router::Endpoint;
use crate::service::{Peer, ServiceSettings};
use crate::trace::Trace;
use crate::views::time;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What of the gateway's doing goes into the log; travels beside its answer.
pub(crate) struct GatewayCall {
    pub(crate) connection: ConnectionId,
    pub(crate) record: Box<CallRecord>,
}

/// A line that is being written while its call is answered.
pub(crate) struct Line {
    calls: LogCalls,
    method: http::Method,
    /// What stands for the path where nobody looked at it: the key was refused before.
    door: &'static str,
    client: Option<IpAddr>,
    started: Instant,
}

impl Line {
    pub(crate) fn begin(
        settings: &ServiceSettings,
        head: &Parts,
        peer: Option<Peer>,
        started: Instant,
    ) -> Self {
        Self {
            calls: settings.calls,
            method: head.method.clone(),
            door: match head.uri.path() {
                path if path.starts_with("/gateway/") => "/gateway/{connection_id}/{path}",
                path if path.starts_with("/v1/") => "/v1/{path}",
                _ => "/{path}",
            },
            client: peer.map(|peer| client(peer.address, &head.headers, &settings.trusted_proxies)),
            started,
        }
    }

    /// Writes it, where this call is one of those that get a line.
    pub(crate) fn end(self, answer: &Answer, trace: &Trace) {
        let call = answer.call.as_ref();
        let failed = is_failure(answer.response.status().as_u16())
            || call.is_some_and(|call| is_trouble(&call.record));
        match self.calls {
            LogCalls::Off => return,
            LogCalls::Failures if !failed => return,
            LogCalls::Failures | LogCalls::All => {}
        }
        match call {
            Some(call) => self.gateway(call, answer, trace, failed),
            None => self.api(answer, trace, failed),
        }
    }
}

impl Line {
    fn gateway(&self, call: &GatewayCall, answer: &Answer, trace: &Trace, failed: bool) {
        let record = &call.record;
        let endpoint = record.endpoint();
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    event = "call",
                    connection_id = %call.connection,
                    app = record.app.as_ref().map(tracing::field::display),
                    endpoint = %endpoint,
                    method = %self.method,
                    status_code = answer.response.status().as_u16(),
                    class = record.class.as_str(),
                    attempt = record.attempts,
                    refresh_attempt = u32::from(record.refreshed),
                    expires_at = record.expires_at.map(|at| tracing::field::display(time(at))),
                    seconds_remaining = record.seconds_remaining,
                    version = record.version.map(evergrant_domain::Version::number),
                    request_id = trace.request_id(),
                    provider_correlation_id = record.provider_correlation_id.as_deref(),
                    trace_id = trace.trace_id.as_deref(),
                    duration_ms = millis(self.started),
                    client = self.client.map(tracing::field::display),
                    "{} {endpoint}", record.class.as_str()
                )
            };
        }
        if failed { line!(warn) } else { line!(info) }
    }

    fn api(&self, answer: &Answer, trace: &Trace, failed: bool) {
        let endpoint = answer.endpoint.as_ref().map_or(self.door, Endpoint::as_str);
        let code = answer.problem.as_ref().map(|problem| problem.code().as_str());
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    event = "request",
                    endpoint,
                    method = %self.method,
                    status_code = answer.response.status().as_u16(),
                    code,
                    request_id = trace.request_id(),
                    trace_id = trace.trace_id.as_deref(),
                    duration_ms = millis(self.started),
                    client = self.client.map(tracing::field::display),
                    "{} {}", self.method, endpoint
                )
            };
        }
        if failed { line!(warn) } else { line!(info) }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn is_failure(status: u16) -> bool {
    matches!(status, 401 | 403 | 429 | 500..)
}

/// What counts as a failure whatever the status: it was repeated, left with an expired token, or may have been carried out.
fn is_trouble(record: &CallRecord) -> bool {
    record.outcome_unknown
        || record.attempts > 1
        || record.seconds_remaining.is_some_and(|seconds| seconds < 0)
}

/// Who asked: the last address in `X-Forwarded-For` that no trusted proxy wrote about itself.
pub(crate) fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer;
    if !is_trusted(peer) {
        return client;
    }
    let hops: Vec<&str> = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    for hop in hops.into_iter().rev() {
        let Ok(address) = hop.parse() else { break };
        client = address;
        if !is_trusted(address) {
            break;
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn forwarded_for_is_believed_only_as_far_as_trusted_proxies_wrote_it() {
        let trusted: Vec<Network> = vec!["10.0.0.0/8".parse().expect("a literal network")];
        let check = |peer: &str, forwarded: &[&'static str], expected: &str| {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append(FORWARDED_FOR, HeaderValue::from_static(value));
            }
            let found = client(peer.parse().expect("a literal address"), &headers, &trusted);
            assert_eq!(found.to_string(), expected, "{peer} {forwarded:?}");
        };
        check("203.0.113.9", &["198.51.100.1"], "203.0.113.9");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["198.51.100.1"], "198.51.100.1");
        check("10.0.0.1", &["1.2.3.4, 198.51.100.1, 10.0.0.2"], "198.51.100.1");
        check("10.0.0.1", &["1.2.3.4", "198.51.100.1"], "198.51.100.1");
        check("10.0.0.1", &["198.51.100.1, nonsense"], "10.0.0.1");
    }
}
