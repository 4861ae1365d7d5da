//! The server: connections, requests, and which part of the simulator answers them.
//!
//! It stands below any web framework on purpose: a fault may end a connection without an answer.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::answer::{self, Answer, Body, Cut};
use crate::clock::httpdate;
use crate::oauth::{self, Version};
use crate::{api_auth, consent, control, journal, random};

/// The largest request body that is taken.
const BODY_MAX: usize = 256 * 1024 * 1024;
const CORRELATION_ID: &str = "x-hubspot-correlation-id";

/// A request, read to its end.
pub(crate) struct Call {
    pub(crate) method: Method,
    /// As it stood in the request, still percent-encoded.
    pub(crate) path: String,
    /// The path's segments, decoded.
    pub(crate) segments: Vec<String>,
    pub(crate) raw_query: Option<String>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Of the answer to come.
    pub(crate) correlation_id: String,
}

impl Call {
    /// The first value of a query parameter.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn query_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.query
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Takes connections until it is stopped. Stopping drops those that are open.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(
                    stop.clone()
                        .run_until_cancelled_owned(converse(stream, shared.clone())),
                );
            }
            Err(error) => {
                tracing::warn!(%error, "simulator could not accept a connection");
                // Out of file descriptors, most likely: spinning would not free any.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

/// Whether the body says that it is a form.
pub(crate) fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default();
    media_type
        .trim()
        .eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

pub(crate) fn form_fields(form: &[u8]) -> Vec<(String, String)> {
    url::form_urlencoded::parse(form).into_owned().collect()
}

const HEADERS_MAX: usize = 512;

async fn converse(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| respond(request, shared.clone()));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // A hundred, as the library has it, is less than what proxies add up to; HubSpot's own limit is not known.
    builder.http1().max_headers(HEADERS_MAX);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(error, "simulated connection ended early");
    }
}

async fn respond(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, Cut> {
    let correlation_id = shared.correlation_id();
    let (parts, body) = request.into_parts();
    let answer = match Limited::new(body, BODY_MAX).collect().await {
        Ok(body) => {
            let call = Call {
                path: parts.uri.path().to_owned(),
                segments: segments(parts.uri.path()),
                raw_query: parts.uri.query().map(str::to_owned),
                query: form_fields(parts.uri.query().unwrap_or_default().as_bytes()),
                method: parts.method,
                headers: parts.headers,
                body: body.to_bytes(),
                correlation_id: correlation_id.clone(),
            };
            // A task of its own: a caller who hangs up does not stop HubSpot from finishing what it began.
            match tokio::spawn(route(shared.clone(), call)).await {
                Ok(answer) => answer?,
                Err(error) => {
                    tracing::error!(%error, "simulator failed to answer");
                    Answer::text(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "the simulator itself failed".to_owned(),
                    )
                }
            }
        }
        Err(_) => answer::api_error(
            StatusCode::PAYLOAD_TOO_LARGE,
            "VALIDATION_ERROR",
            "request body unreadable or too large",
            &correlation_id,
        ),
    };
    let answer = answer.header(CORRELATION_ID, &correlation_id);
    let mut response = answer.into_response();
    if let Some(date) = shared.date() {
        response.headers_mut().insert(DATE, date);
    }
    Ok(response)
}

async fn route(shared: Arc<Shared>, call: Call) -> Result<Answer, Cut> {
    let segments: Vec<_> = call.segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["_sim", rest @ ..] => Ok(control::answer(&shared, &call, rest)),
        ["oauth", "authorize"] => Ok(consent::answer(&shared, &call, None)),
        ["oauth", account, "authorize"] => Ok(consent::answer(&shared, &call, Some(account))),
        ["oauth", version, rest @ ..] => {
            let version = Version::from_segment(version)
                .filter(|version| *version != Version::V1 || !shared.world.lock().settings.v1_retired);
            match (version, rest) {
                (Some(version), ["token"]) => oauth::token(shared, call, version).await,
                (Some(Version::V3 | Version::Dated), ["token", "introspect"]) => {
                    oauth::introspect(shared, call).await
                }
                (Some(Version::V3 | Version::Dated), ["token", "revoke"]) => {
                    oauth::revoke(shared, call).await
                }
                (Some(Version::V1), ["access-tokens", token]) => {
                    Ok(oauth::v1_access_token(&shared, &call, token))
                }
                (Some(Version::V1), ["refresh-tokens", token]) => {
                    Ok(oauth::v1_refresh_token(&shared, &call, token))
                }
                _ => Ok(answer::not_found(&call.correlation_id)),
            }
        }
        ["webhooks-journal", rest @ ..] => Ok(journal::answer(&shared, &call, rest)),
        ["journal-pages", secret] => Ok(journal::page(&shared, &call, secret)),
        [] => Ok(Answer::redirect(StatusCode::FOUND, "/_sim/")),
        _ => api_auth::answer(shared, call).await,
    }
}

impl Shared {
    /// One for every answer; the seed and the order decide it.
    fn correlation_id(&self) -> String {
        let number = self.answers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        random::uuid(self.config.seed, number)
    }

    /// The `Date` header by the simulator's clock; `None` leaves it to real time.
    fn date(&self) -> Option<HeaderValue> {
        if self.clock.offset().is_zero() || !self.world.lock().settings.date_follows_clock {
            return None;
        }
        let date = httpdate(self.clock.now());
        HeaderValue::from_str(&date).ok()
    }
}

/// The decoded segments; empty ones at the end do not count.
fn segments(path: &str) -> Vec<String> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let mut segments: Vec<_> = path.split('/').map(percent_decode).collect();
    while segments.last().is_some_and(String::is_empty) {
        segments.pop();
    }
    segments
}

fn percent_decode(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let [byte, rest @ ..] = bytes {
        let escaped = match (byte, rest) {
            (b'%', [high, low, ..]) => {
                let digits = [char::from(*high).to_digit(16), char::from(*low).to_digit(16)];
                if let [Some(high), Some(low)] = digits {
                    u8::try_from(high * 16 + low).ok()
                } else {
                    None
                }
            }
            _ => None,
        };
        decoded.push(escaped.unwrap_or(*byte));
        bytes = if escaped.is_some() { &rest[2..] } else { rest };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_segments_are_decoded_one_by_one() {
        assert_eq!(
            segments("/crm/v3/objects/contacts/ada%40example.com"),
            ["crm", "v3", "objects", "contacts", "ada@example.com"]
        );
        assert_eq!(segments("/a%2Fb/100%/%zz/"), ["a/b", "100%", "%zz"]);
        assert!(segments("/").is_empty());
    }
}
