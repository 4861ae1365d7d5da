//! What the simulator answers: status, headers, body; and the error bodies of HubSpot's API.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::Frame;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::clock::{after, httpdate, iso};
use crate::faults::RateLimitPolicy;
use crate::limits::RetryAfter;

const JSON: HeaderValue = HeaderValue::from_static("application/json;charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html;charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain;charset=utf-8");

/// The connection ends here, without another byte.
#[derive(Debug)]
pub(crate) struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("connection cut by an armed fault")
    }
}

impl std::error::Error for Cut {}

/// An answer on its way out.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
}

impl Answer {
    /// An answer without a body.
    pub(crate) fn empty(status: StatusCode) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body: Body::whole(Bytes::new()),
        }
    }

    pub(crate) fn json(status: StatusCode, body: &Value) -> Self {
        Self::with_body(status, JSON, body.to_string())
    }

    pub(crate) fn html(status: StatusCode, page: String) -> Self {
        Self::with_body(status, HTML, page)
    }

    pub(crate) fn text(status: StatusCode, text: String) -> Self {
        Self::with_body(status, TEXT, text)
    }

    pub(crate) fn with_body(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Self {
        let mut answer = Self::empty(status);
        answer.headers.insert(CONTENT_TYPE, content_type);
        answer.body = Body::whole(body.into());
        answer
    }

    /// A redirect; a target that cannot stand in a header becomes a 400 that says so.
    pub(crate) fn redirect(status: StatusCode, location: &str) -> Self {
        match HeaderValue::from_str(location) {
            Ok(location) => {
                let mut answer = Self::empty(status);
                answer.headers.insert(LOCATION, location);
                answer
            }
            Err(_) => Self::text(
                StatusCode::BAD_REQUEST,
                "location is not a valid header value".into(),
            ),
        }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    /// Says when to come back, in one of the two forms of RFC 9110 §10.2.3; whole seconds, rounded up.
    pub(crate) fn retry_after(mut self, form: RetryAfter, delay: Duration, now: Timestamp) -> Self {
        let delay_s = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
        let value = match form {
            RetryAfter::Absent => return self,
            RetryAfter::Seconds => Ok(HeaderValue::from(delay_s)),
            RetryAfter::Date => HeaderValue::from_str(&httpdate(after(now, Duration::from_secs(delay_s)))),
        };
        if let Ok(value) = value {
            self.headers.insert(RETRY_AFTER, value);
        }
        self
    }

    /// Promises the whole body, delivers the first half, then cuts the connection.
    pub(crate) fn truncated(mut self) -> Self {
        if let Body::Whole(body) = &mut self.body {
            let whole = body.take().unwrap_or_default();
            self.headers
                .insert(CONTENT_LENGTH, HeaderValue::from(whole.len()));
            self.body = Body::Truncated(Some(whole.slice(..whole.len() / 2)));
        }
        self
    }

    /// A 200 whose JSON body comes one byte in each `interval` and never ends.
    pub(crate) fn trickle(interval: Duration) -> Self {
        let mut answer = Self::with_body(StatusCode::OK, JSON, Bytes::new());
        answer.body = Body::Trickle {
            interval,
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
        };
        answer
    }

    /// A 200 with a JSON string of `size` bytes.
    pub(crate) fn huge(size: u64) -> Self {
        let mut answer = Self::with_body(StatusCode::OK, JSON, Bytes::new());
        answer.body = Body::Huge {
            left: size,
            started: false,
        };
        answer
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// A response body, well-behaved or not.
#[derive(Debug)]
pub(crate) enum Body {
    Whole(Option<Bytes>),
    Truncated(Option<Bytes>),
    Trickle {
        interval: Duration,
        sleep: Pin<Box<tokio::time::Sleep>>,
    },
    Huge {
        left: u64,
        started: bool,
    },
}

impl Body {
    fn whole(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        static FILLER: [u8; 64 * 1024] = [b'x'; 64 * 1024];
        let data = |bytes| Poll::Ready(Some(Ok(Frame::data(bytes))));
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Truncated(bytes) => match bytes.take() {
                Some(bytes) => data(bytes),
                None => Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into()))),
            },
            Self::Trickle { interval, sleep } => {
                ready!(sleep.as_mut().poll(context));
                sleep.set(tokio::time::sleep(*interval));
                // White space never ends a JSON text and never breaks one.
                data(Bytes::from_static(b" "))
            }
            Self::Huge { left, started } => {
                if !*started {
                    *started = true;
                    return data(Bytes::from_static(b"\""));
                }
                if *left == 0 {
                    return Poll::Ready(None);
                }
                let size = usize::try_from(*left).map_or(FILLER.len(), |left| left.min(FILLER.len()));
                *left -= size as u64;
                if *left == 0 {
                    return data([&FILLER[..size], b"\""].concat().into());
                }
                data(Bytes::from_static(&FILLER[..size]))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Whole(bytes) => {
                http_body::SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            _ => http_body::SizeHint::default(),
        }
    }
}

/// An API error without anything special: `{"status":"error","message","correlationId","category"}`.
pub(crate) fn api_error(status: StatusCode, category: &str, message: &str, correlation_id: &str) -> Answer {
    Answer::json(
        status,
        &json!({"status": "error", "message": message, "correlationId": correlation_id, "category": category}),
    )
}

/// 400 for a request that HubSpot cannot make sense of.
pub(crate) fn validation_error(message: &str, correlation_id: &str) -> Answer {
    api_error(
        StatusCode::BAD_REQUEST,
        "VALIDATION_ERROR",
        message,
        correlation_id,
    )
}

/// 404 without a category, as HubSpot answers for records and routes that do not exist.
pub(crate) fn not_found(correlation_id: &str) -> Answer {
    Answer::json(
        StatusCode::NOT_FOUND,
        &json!({"status": "error", "message": "resource not found", "correlationId": correlation_id}),
    )
}

/// 401 for an access token past its time. The age is given in the largest unit that keeps a useful number.
///
/// Source: airbyte issue 74726 (body, "92 minute(s)"); units observed, thresholds not documented.
pub(crate) fn expired_authentication(expired_at: Timestamp, now: Timestamp, correlation_id: &str) -> Answer {
    expired(&age(expired_at, now), &iso(expired_at), correlation_id)
}

/// 401 for an access token that HubSpot cannot decode: it counts as expired since 1970.
///
/// Source: hubspot-api-php issue 363.
pub(crate) fn garbage_authentication(now: Timestamp, correlation_id: &str) -> Answer {
    let age = format!("{} day(s)", now.as_second() / 86_400);
    expired(&age, "1970-01-01T00:00:00Z", correlation_id)
}

/// 401 for a request without usable credentials.
pub(crate) fn invalid_authentication(correlation_id: &str) -> Answer {
    api_error(
        StatusCode::UNAUTHORIZED,
        "INVALID_AUTHENTICATION",
        "Authentication credentials not found. This API supports OAuth 2.0 authentication and you can find \
         more details at https://developers.hubspot.com/docs/methods/auth/oauth-overview",
        correlation_id,
    )
    .header("x-hubspot-auth-failure", "401 Unauthorized")
}

/// 403 for a grant that lacks every one of `required_scopes`.
pub(crate) fn missing_scopes(required_scopes: &[String], correlation_id: &str) -> Answer {
    Answer::json(
        StatusCode::FORBIDDEN,
        &json!({
            "status": "error",
            "message": "This app hasn't been granted all required scopes to make this call. Read more about \
                        required scopes here: https://developers.hubspot.com/scopes.",
            "correlationId": correlation_id,
            "errors": [{
                "message": "One or more of the following scopes are required.",
                "context": {"requiredGranularScopes": required_scopes},
            }],
            "links": {"scopes": "https://developers.hubspot.com/scopes"},
            "category": "MISSING_SCOPES",
        }),
    )
}

/// 429. HubSpot does not document `Retry-After` for it.
pub(crate) fn rate_limited(policy: RateLimitPolicy, correlation_id: &str) -> Answer {
    let (words, name) = match policy {
        RateLimitPolicy::TenSecondly => ("ten_secondly_rolling", "TEN_SECONDLY_ROLLING"),
        RateLimitPolicy::Secondly => ("secondly", "SECONDLY"),
        RateLimitPolicy::Daily => ("daily", "DAILY"),
    };
    let mut body = json!({
        "status": "error",
        "message": format!("You have reached your {words} limit."),
        "errorType": "RATE_LIMIT",
        "correlationId": correlation_id,
        "policyName": name,
        "groupName": format!("publicapi:app-api-calls-{}", words.replace('_', "-")),
    });
    if policy == RateLimitPolicy::Daily {
        body["requestId"] = json!(correlation_id);
    }
    Answer::json(StatusCode::TOO_MANY_REQUESTS, &body)
}

fn expired(age: &str, expire_time: &str, correlation_id: &str) -> Answer {
    Answer::json(
        StatusCode::UNAUTHORIZED,
        &json!({
            "status": "error",
            "message": format!("The OAuth token used to make this call expired {age} ago."),
            "correlationId": correlation_id,
            "category": "EXPIRED_AUTHENTICATION",
            "context": {"expire time": [expire_time]},
        }),
    )
}

fn age(expired_at: Timestamp, now: Timestamp) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    let seconds = ((now.as_millisecond() - expired_at.as_millisecond()) / 1000).max(0);
    match seconds {
        // "92 minute(s)" was seen, so a unit is kept until two of the next are full.
        0..120 => format!("{seconds} second(s)"),
        120..7_200 => format!("{} minute(s)", seconds / MINUTE),
        7_200..172_800 => format!("{} hour(s)", seconds / HOUR),
        _ => format!("{} day(s)", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_an_expired_token_is_told_in_hubspots_units() {
        let check = |seconds: i64, expected: &str| {
            let expired_at = Timestamp::from_second(1_000_000_000).unwrap();
            let now = Timestamp::from_second(1_000_000_000 + seconds).unwrap();
            assert_eq!(age(expired_at, now), expected);
        };
        check(-5, "0 second(s)");
        check(0, "0 second(s)");
        check(119, "119 second(s)");
        check(120, "2 minute(s)");
        check(92 * 60, "92 minute(s)");
        check(2 * 3600, "2 hour(s)");
        check(48 * 3600, "2 day(s)");
    }
}
