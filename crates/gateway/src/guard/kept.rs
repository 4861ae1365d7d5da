//! The answer to a guarded write: what is kept of it, and how it is given again.

use std::time::Duration;

use bytes::Bytes;
use evergrant_domain::api_answer::{ApiAnswer, judge};
use evergrant_store::contract::StoredAnswer;
use http::header::{
    CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LOCATION, CONTENT_TYPE, ETAG, LAST_MODIFIED, LOCATION,
    RETRY_AFTER,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use crate::answer_body::GatewayBody;
use crate::headers::said_replayed;
use crate::record::CallRecord;

/// Answers to writes are small. A larger one is given on, and kept without its body.
const BODY_MAX: usize = 256 * 1024;
/// How long the rest of an answer may take to be kept whole.
const READ_FOR: Duration = Duration::from_secs(10);

/// What says something about the content. Never a cookie, a limit of that moment, or what concerns one connection.
static KEPT: [HeaderName; 9] = [
    CONTENT_TYPE,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_LOCATION,
    ETAG,
    LAST_MODIFIED,
    LOCATION,
    RETRY_AFTER,
    HeaderName::from_static("x-hubspot-correlation-id"),
];

/// Reads an answer as far as it is kept. It stays whole for the caller.
pub(crate) async fn keep(response: &mut Response<GatewayBody>) -> StoredAnswer {
    let body = response.body_mut().read_whole(BODY_MAX, READ_FOR).await;
    let headers = response.headers();
    let kept = KEPT.iter().flat_map(|name| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
    });
    StoredAnswer {
        status: response.status().as_u16(),
        headers: kept.collect(),
        body: body.map(Vec::from),
    }
}

/// The answer, again.
pub(crate) fn replay(answer: StoredAnswer, record: &mut CallRecord) -> Response<GatewayBody> {
    let replayed = if answer.body.is_some() {
        "true"
    } else {
        "status-only"
    };
    let mut headers = HeaderMap::new();
    for (name, value) in &answer.headers {
        let pair = (name.parse::<HeaderName>(), HeaderValue::from_str(value));
        if let (Ok(name), Ok(value)) = pair {
            headers.append(name, value);
        }
    }
    given(
        answer.status,
        headers,
        answer.body.unwrap_or_default().into(),
        replayed,
        record,
    )
}

/// An answer that was not sent for.
pub(crate) fn given(
    status: u16,
    headers: HeaderMap,
    body: Bytes,
    replayed: &'static str,
    record: &mut CallRecord,
) -> Response<GatewayBody> {
    record.class = judge(ApiAnswer {
        status,
        body: &body,
        ..ApiAnswer::default()
    })
    .class;
    record.status_code = Some(status);
    record.replayed = true;
    record.outcome_unknown = false;
    let mut response = Response::new(GatewayBody::whole(body));
    // What is stored was a status once.
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = headers;
    said_replayed(response.headers_mut(), record.class, record.attempts, replayed);
    response
}
