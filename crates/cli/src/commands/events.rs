//! `evergrant events`: what happened, as a list and as it happens.

use std::time::Duration;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use jiff::Timestamp;
use serde_json::Value;

use crate::api::{Api, Body, whole};
use crate::args::Events;
use crate::failure::{Exit, Failure, printable};
use crate::output::{Output, Tone, note, print_line, text, to_the_second};

/// What a page brings at most.
const PAGE: usize = 1000;
/// A stream that ended is asked for again so much later.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A single event is far smaller: whoever sends more without an end to it sends no events.
const EVENT_MAX: usize = 1024 * 1024;
/// A service that is well says something every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(60);

pub(crate) async fn run(api: Api, events: Events, output: Output) -> Result<(), Failure> {
    let mut last = None;
    for event in latest(&api, &events).await? {
        last = event["id"].as_i64().or(last);
        print(&event, output)?;
    }
    if events.follow {
        // Where nothing was found, nothing that the filters admit is older than what comes.
        follow(&api, &events, last.unwrap_or(0), output).await
    } else {
        if last.is_none() && !output.json {
            note("There are no such events.");
        }
        Ok(())
    }
}

/// Those that are asked for, the newest last.
async fn latest(api: &Api, events: &Events) -> Result<Vec<Value>, Failure> {
    // Everything since a time, however much that is; else the last few.
    let wanted = match (events.limit, events.since) {
        (Some(limit), _) => usize::try_from(limit).unwrap_or(usize::MAX),
        (None, Some(_)) => usize::MAX,
        (None, None) => 100,
    };
    let mut found = Vec::new();
    let mut cursor: Option<String> = None;
    while found.len() < wanted {
        let limit = PAGE.min(wanted - found.len());
        let mut query = filters(events);
        query.append_pair("limit", &limit.to_string());
        if let Some(cursor) = &cursor {
            query.append_pair("cursor", cursor);
        }
        let mut page = api.get(&format!("/v1/events?{}", query.finish())).await?;
        if let Value::Array(more) = page["items"].take() {
            found.extend(more);
        }
        match page["next_cursor"].take() {
            Value::String(next) => cursor = Some(next),
            _ => break,
        }
    }
    found.reverse();
    Ok(found)
}

fn filters(events: &Events) -> url::form_urlencoded::Serializer<'static, String> {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query
        .extend_pairs(events.connection.iter().map(|id| ("connection", id.as_str())))
        .extend_pairs(
            events
                .customer
                .iter()
                .map(|customer| ("customer", customer.as_str())),
        )
        .extend_pairs(events.app.iter().map(|app| ("app", app.as_str())))
        .extend_pairs(events.kind.iter().map(|kind| ("type", kind.as_str())));
    if let Some(since) = events.since {
        query.append_pair("since", &since.to_string());
    }
    query
}

/// Prints what comes, behind event `last` on, until somebody ends it or may not go on. A stream that ends goes on where it stopped.
async fn follow(api: &Api, events: &Events, mut last: i64, output: Output) -> Result<(), Failure> {
    let path = format!("/v1/events?{}", filters(events).finish());
    let mut is_lost = false;
    loop {
        let ended = match open(api, &path, last).await {
            Ok(answer) => {
                if std::mem::take(&mut is_lost) {
                    note(format_args!("evergrant: goes on behind event {last}"));
                }
                read(answer, &mut last, output).await?;
                "the stream ended".to_owned()
            }
            Err(failure) if failure.exit == Exit::Unavailable => failure.to_string(),
            Err(failure) => return Err(failure),
        };
        if !std::mem::replace(&mut is_lost, true) {
            note(format_args!("{ended}: asking again until it goes on"));
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

async fn open(api: &Api, path: &str, last: i64) -> Result<Response<Body>, Failure> {
    let mut request = Request::new(Full::<Bytes>::default());
    *request.uri_mut() = path
        .parse()
        .map_err(|error| Failure::usage(format!("{path}: {error}")))?;
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
    headers.insert("last-event-id", HeaderValue::from(last));
    let answer = api.send(request).await?;
    if answer.status() == StatusCode::OK {
        Ok(answer)
    } else {
        Err(Failure::answered(&whole(answer).await?))
    }
}

/// Until the stream ends, breaks off or falls silent. What was printed is what `last` names.
async fn read(answer: Response<Body>, last: &mut i64, output: Output) -> Result<(), Failure> {
    let mut body = answer.into_body();
    let mut unread = Vec::new();
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE_MAX, body.frame()).await {
        if let Some(data) = frame.data_ref() {
            unread.extend_from_slice(data);
        }
        while let Some(event) = next_event(&mut unread) {
            // Whatever a proxy may repeat is told once.
            if let Some(id) = event["id"].as_i64().filter(|id| *id > *last) {
                print(&event, output)?;
                *last = id;
            }
        }
        if unread.len() > EVENT_MAX {
            return Err(Failure::new(
                Exit::Failed,
                "what came is no stream of events of Evergrant's",
            ));
        }
    }
    Ok(())
}

/// Takes what is whole off the beginning, up to the first event; comments are passed over.
fn next_event(unread: &mut Vec<u8>) -> Option<Value> {
    while let Some(end) = unread.windows(2).position(|two| two == b"\n\n") {
        let block: Vec<u8> = unread.drain(..end + 2).collect();
        let data = block
            .split(|byte| *byte == b'\n')
            .find_map(|line| line.strip_prefix(b"data: "));
        if let Some(event) = data.and_then(|data| serde_json::from_slice(data).ok()) {
            return Some(event);
        }
    }
    None
}

fn print(event: &Value, output: Output) -> Result<(), Failure> {
    if output.json {
        return print_line(event);
    }
    let member = |pointer: &str| printable(&text(event, pointer)).replace('\n', " ");
    let kind = member("/type");
    let whose = match (member("/connection"), member("/app")) {
        (connection, app) if connection.is_empty() => format!("app {app}"),
        (connection, _) => connection,
    };
    let tone = match kind.as_str() {
        "reconnect_required"
        | "refresh_failed"
        | "account_mismatch"
        | "double_redemption"
        | "store_regressed"
        | "credentials_rejected" => Tone::Bad,
        "call_unauthorized" | "permission_denied" | "rate_limited" | "outcome_unknown" | "token_reported"
        | "lease_taken_over" => Tone::Warning,
        "connected" | "reconnected" | "refreshed" | "credentials_accepted" => Tone::Good,
        _ => Tone::Faint,
    };
    let by = match member("/by") {
        by if by.is_empty() => String::new(),
        by => output.paint(Tone::Faint, &format!(" (by {by})")),
    };
    print_line(format_args!(
        "{}  {}  {whose}  {}{by}",
        to_the_second(&member("/at")),
        output.paint(tone, &format!("{kind:18}")),
        member("/detail"),
    ))
}

/// A time, or how long ago: `2026-11-24T18:00:00Z`, `2h`.
pub(crate) fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let ago = evergrant_config::duration::parse(text).map_err(|_| {
        "write a time like 2026-11-24T18:00:00Z, or how long ago, like 30m, 2h or 7d".to_owned()
    })?;
    let ago = jiff::SignedDuration::try_from(ago).map_err(|_| "that is too long ago".to_owned())?;
    Timestamp::now()
        .checked_sub(ago)
        .map_err(|_| "that is too long ago".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_off_a_stream_however_it_is_cut() {
        let stream = b": still here\n\nid: 1\nevent: connected\ndata: {\"id\":1,\"detail\":\"\xc3\xa4\"}\n\n\
            id: 2\nevent: refreshed\ndata: {\"id\":2}\n\nid: 3\n";
        for piece in 1..stream.len() {
            let (mut unread, mut found) = (Vec::new(), Vec::new());
            for piece in stream.chunks(piece) {
                unread.extend_from_slice(piece);
                found.extend(std::iter::from_fn(|| next_event(&mut unread)));
            }
            let ids: Vec<_> = found.iter().map(|event| event["id"].as_i64()).collect();
            assert_eq!(ids, [Some(1), Some(2)], "in pieces of {piece}");
            assert_eq!(found[0]["detail"], "ä");
            assert_eq!(unread, b"id: 3\n", "what is not whole waits");
        }
    }

    #[test]
    fn since_is_a_time_or_how_long_ago() {
        let said = "2026-11-24T18:00:00Z";
        assert_eq!(since(said).map(|at| at.to_string()), Ok(said.to_owned()));
        let then = since("2h").expect("two hours");
        let ago = Timestamp::now().duration_since(then);
        assert!((7200..7260).contains(&ago.as_secs()), "{ago}");
        assert!(since("yesterday").is_err() && since("2").is_err());
    }
}
