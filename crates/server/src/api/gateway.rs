//! `ANY /gateway/{connection_id}/{path}`: an app's call, sent with the connection's access token.

use bytes::Bytes;
use evergrant_domain::ConnectionId;
use evergrant_domain::access::Role;
use evergrant_gateway::{CallRecord, outlives_its_caller};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::access::Caller;
use crate::answer::{Answer, AnswerBody};
use crate::in_flight::{Held, Place, Placed};
use crate::input::{parse_id, parse_id_in_path};
use crate::log::GatewayCall;
use crate::pace::Paced;
use crate::problem::{Problem, ProblemView};
use crate::service::Shared;

const CONNECTION: HeaderName = HeaderName::from_static("evergrant-connection");
const CLASS: HeaderName = HeaderName::from_static("evergrant-class");
const ATTEMPTS: HeaderName = HeaderName::from_static("evergrant-attempts");
const TOKEN_VERSION: HeaderName = HeaderName::from_static("evergrant-token-version");
const TOKEN_TTL: HeaderName = HeaderName::from_static("evergrant-token-ttl");

/// Calls the provider's API.
///
/// GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS. The path after the connection's id, the query, the body and end-to-end headers go to the app's API base as they
/// are; the answer comes back as it is. An answer of Evergrant's own carries `Evergrant-Error`. Instead of naming the connection
/// in the path, `/gateway/-/{path}` takes it from the header `Evergrant-Connection`.
///
/// Role: `gateway`.
#[utoipa::path(
    get, path = "/gateway/{connection_id}/{path}", operation_id = "call", tag = "gateway",
    params(
        ("connection_id" = String, Path), ("path" = String, Path),
        ("Evergrant-Connection" = Option<String>, Header, description = "The connection, where the path says `-`."),
        ("Evergrant-Min-Ttl" = Option<u32>, Header, description = "How many seconds the access token must still live when the call is sent; half its lifetime at most."),
        ("Evergrant-Enqueued-At" = Option<String>, Header, description = "When the job that makes the call was enqueued, RFC 3339 or milliseconds since 1970: counted, and nothing else."),
        ("Idempotency-Key" = Option<String>, Header, description = "Carries a write out once: the same key and request get the first answer again, for 24 hours. At most 255 visible ASCII characters."),
        ("Evergrant-Dedupe" = Option<String>, Header, description = "`fingerprint;window=60`: the same, without a key, for requests that are equal within so many seconds."),
        ("Evergrant-Guard" = Option<String>, Header, description = "`read-before-write;property=email`: looks first whether what a create or an association would bring is there."),
        ("Evergrant-Lane" = Option<String>, Header, description = "How urgent the call is where calls must wait for the account's budget: `interactive`, `sync` (the default) or `backfill`. What the key says counts first."),
        ("Evergrant-Max-Wait" = Option<u32>, Header, description = "How many seconds it may wait for that: 10 by default, 60 at most, and no more than key and app allow."),
    ),
    responses(
        (status = "default", description = "The provider's answer, or a problem with the header Evergrant-Error.", body = ProblemView<'_>, content_type = "application/problem+json",
            headers(
                ("Evergrant-Error" = Option<String>, description = "The code of the problem; on Evergrant's own answers only."),
                ("Evergrant-Class" = Option<String>, description = "Why the call was repeated or failed."),
                ("Evergrant-Attempts" = Option<u32>, description = "How often it was sent."),
                ("Evergrant-Token-Version" = Option<i64>, description = "The version of the token set that was used last."),
                ("Evergrant-Token-Ttl" = Option<i64>, description = "Seconds that the access token still lived."),
                ("Evergrant-Replayed" = Option<String>, description = "`true` or `status-only`: a guarded write was not sent for this answer."),
                ("Evergrant-Not-Repeated" = Option<String>, description = "`body-not-kept`: a newer token is at hand, but the body was too large to be sent again."),
                ("Evergrant-Outcome" = Option<String>, description = "`unknown`: a write that may have been carried out."),
                ("Evergrant-Request-Id" = String, description = "What the call is called in the log."),
                ("Retry-After" = Option<String>, description = "When it is worth another try; the provider's where the answer is."),
                ("Server-Timing" = Option<String>, description = "`token`, `budget` and `upstream`: how long each took, in milliseconds."),
                ("x-should-retry" = Option<bool>, description = "On Evergrant's own answers only."),
            ))
    )
)]
pub(crate) async fn call<B>(
    shared: &Shared,
    caller: &Caller,
    request_id: &str,
    parts: &Parts,
    body: B,
) -> Result<Answer, Problem>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (id, target) = destination(&parts.uri, &parts.headers)?;
    let limits = shared.settings().limits;
    let place = Place::take(&shared.in_flight, caller.in_flight(), &limits)?;
    let body = Paced::new(body, limits.body_timeout);
    caller.admit(shared.keeper(), &id, Role::Gateway).await?;
    let mut terms = caller.terms();
    // What goes on without its caller is in flight until it has ended.
    let place = if outlives_its_caller(&parts.method, &parts.headers) {
        let (held, of_the_call) = Held::with_the_call(place);
        terms.to_mut().held = Some(of_the_call);
        held
    } else {
        Held::alone(place)
    };
    let asker = caller.asker(Some(request_id));
    let gateway = shared.engine.gateway();
    Ok(
        match gateway.call_on(&terms, asker, &id, target, parts, body).await {
            Ok(answered) => {
                let response = answered.response.map(|body| {
                    let place = Some(place);
                    AnswerBody::call(Placed { body, place })
                });
                beside(Answer::new(response), id, answered.record)
            }
            Err(refusal) => {
                let problem = shared.problem(Problem::refusal(&refusal, &id));
                beside(problem.into(), id, refusal.record)
            }
        },
    )
}

/// The answer to a call, with what the log needs to know of it.
fn beside(answer: Answer, connection: ConnectionId, record: Box<CallRecord>) -> Answer {
    Answer {
        call: Some(GatewayCall { connection, record }),
        ..answer
    }
}

/// Says on an answer of Evergrant's own what was done before it. The provider's answers carry these headers from the gateway.
pub(crate) fn describe(record: &CallRecord, headers: &mut HeaderMap) {
    headers.insert(CLASS, HeaderValue::from_static(record.class.as_str()));
    if record.attempts > 0 {
        headers.insert(ATTEMPTS, record.attempts.into());
    }
    if let Some(version) = record.version {
        headers.insert(TOKEN_VERSION, version.number().into());
    }
    if let Some(seconds) = record.seconds_remaining {
        headers.insert(TOKEN_TTL, seconds.into());
    }
}

/// The connection that is meant, and what is asked of its provider: path and query, as they were written.
fn destination<'a>(uri: &'a http::Uri, headers: &HeaderMap) -> Result<(ConnectionId, &'a str), Problem> {
    let whole = uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    let rest = uri.path().strip_prefix("/gateway/").unwrap_or_default();
    // The slash is required: what follows the id directly must never become part of a host.
    let (name, _) = rest.split_once('/').ok_or_else(|| {
        Problem::bad_request("the path of the call must follow the connection: /gateway/{id}/{path}")
    })?;
    // Looked through: few requests have so many headers that hashing the name would be worth it.
    let mut named = headers.iter().filter(|(found, _)| **found == CONNECTION);
    let header = named.next().map(|(_, value)| value.to_str().unwrap_or_default());
    if named.next().is_some() {
        return Err(Problem::bad_request(
            "Evergrant-Connection is there more than once",
        ));
    }
    let id = match (name, header) {
        ("-", None) => {
            return Err(Problem::bad_request(
                "/gateway/-/ takes the connection from Evergrant-Connection, which is missing",
            ));
        }
        ("-", Some(header)) => parse_id(header)?,
        (name, None) => parse_id_in_path(name)?,
        (name, Some(header)) if name == header => parse_id(name)?,
        (_, Some(_)) => {
            return Err(Problem::bad_request(
                "the path and Evergrant-Connection name different connections",
            ));
        }
    };
    // From the slash after the name on, as it was written.
    Ok((id, &whole["/gateway/".len() + name.len()..]))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(uri: &str, header: Option<&str>, expected: Option<(&str, &str)>) {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert(
                CONNECTION,
                HeaderValue::from_str(header).expect("a literal value"),
            );
        }
        let asked = uri.parse().expect("a literal URI");
        let found = destination(&asked, &headers).ok();
        let found = found.as_ref().map(|(id, target)| (id.as_str(), *target));
        assert_eq!(found, expected, "{uri} {header:?}");
    }

    #[test]
    fn the_connection_and_the_target_are_taken_apart_as_they_were_written() {
        check(
            "/gateway/c1/crm/v3/x?a=%20b&a=c",
            None,
            Some(("c1", "/crm/v3/x?a=%20b&a=c")),
        );
        check("/gateway/-/crm/v3/x", Some("c1"), Some(("c1", "/crm/v3/x")));
        check("/gateway/c1/", None, Some(("c1", "/")));
        check("/gateway/c1//evil.test/x", None, Some(("c1", "//evil.test/x")));
        check("/gateway/c1/x", Some("c1"), Some(("c1", "/x")));
    }

    #[test]
    fn a_call_that_names_no_connection_or_two_is_refused() {
        for uri in [
            "/gateway",
            "/gateway/",
            "/gateway/c1",
            "/gateway/c1@evil.test/x",
            "/gateway/c1%2f/x",
            "/gateway//x",
        ] {
            check(uri, None, None);
        }
        check("/gateway/-/x", None, None);
        check("/gateway/c1/x", Some("c2"), None);
        check("/gateway/-/x", Some("c1, c2"), None);
    }
}
