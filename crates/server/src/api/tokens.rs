//! Access tokens for callers that make their calls themselves.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use evergrant_domain::access::Role;
use evergrant_domain::api_answer::{ApiAnswer, Class, judge};
use evergrant_domain::event::{Circumstances, Event, EventKind};
use evergrant_domain::tally::Counted;
use evergrant_domain::{Connection, ConnectionId, Kind, Version};
use evergrant_keeper::{AfterRejection, Asker, Current, Moment, Renewal};
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::access::Caller;
use crate::answer::{Answer, AnswerBody};
use crate::input::{self, NoQuery, OptionalJson, PathId, Query, parse_id, parse_id_in_path};
use crate::problem::{Problem, ProblemView};
use crate::router::Endpoint;
use crate::service::{Inner, Shared, no_store};
use crate::views::TokenView;

/// What HTTP knows as a status (RFC 9110 §15).
const STATUSES: RangeInclusive<u16> = 100..=599;
/// Tokens of one batch.
const BATCH_MAX: usize = 1000;
/// Tokens of a batch that are looked for at a time: most are at hand, and those that are not must not flood the store.
const BATCH_AT_ONCE: usize = 32;

/// A valid access token.
///
/// Valid now, refreshed once if it was not. `min_ttl` asks for a remaining lifetime; at most half the lifetime is granted, and
/// the answer states the true one.
///
/// Role: `tokens`.
#[utoipa::path(
    get, path = "/v1/connections/{id}/token", operation_id = "getToken", tag = "tokens",
    params(("id" = String, Path), ("min_ttl" = Option<u32>, Query, description = "Seconds it should still live.")),
    responses((status = 200, body = TokenView<'_>), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn token(
    shared: &Shared,
    caller: &Caller,
    request_id: &str,
    id: &str,
    query: Option<&str>,
    headers: HeaderMap,
) -> Answer {
    let answer = async {
        let id = parse_id_in_path(id)?;
        let mut query = Query::parse(query);
        let min_ttl = query.seconds("min_ttl")?;
        query.done()?;
        hand_out(shared, caller, caller.asker(Some(request_id)), &id, min_ttl).await
    };
    let answer = match answer.await {
        Ok((token, at)) => Answer::new(show(&token, at, headers)),
        Err(problem) => problem.into(),
    };
    Answer {
        endpoint: Some(Endpoint::Known("/v1/connections/{id}/token")),
        ..answer
    }
}

/// `headers`: an empty map, which has room if it was used before.
fn show(token: &Current, at: Moment, mut headers: HeaderMap) -> http::Response<AnswerBody> {
    let json = TokenView::written(token, at.now);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    no_store(&mut headers);
    let mut response = http::Response::new(AnswerBody::from(json));
    *response.headers_mut() = headers;
    response
}

/// A token for a caller that may have it, and when it was handed out.
async fn hand_out(
    shared: &Inner,
    caller: &Caller,
    asker: Asker<'_>,
    id: &ConnectionId,
    min_ttl: Option<Duration>,
) -> Result<(Arc<Current>, Moment), Problem> {
    let keeper = shared.keeper();
    caller.admit(keeper, id, Role::Tokens).await?;
    let boot = caller.seen_at().unwrap_or_else(|| keeper.clock().boot());
    let (token, at) = if let Some(token) = keeper.at_once(boot, asker, id, min_ttl) {
        (token, keeper.moment_at(boot))
    } else {
        let token = keeper
            .current_for(asker, id, min_ttl)
            .await
            .map_err(|error| shared.problem(Problem::keep(error, id)))?;
        (token, keeper.moment())
    };
    note_handed_out(shared, caller, asker, &token, at);
    Ok((token, at))
}

fn note_handed_out(shared: &Inner, caller: &Caller, asker: Asker<'_>, token: &Current, at: Moment) {
    shared.keeper().note_handed_out(token, at, || {
        let detail = format!("an access token was handed to {}", caller.shown());
        Event::new(EventKind::TokenHandedOut, detail).during(Circumstances {
            seconds_remaining: Some(token.seconds_remaining(at.now)),
            token_version: Some(token.version),
            ..asker.circumstances()
        })
    });
}

/// Which tokens are wanted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Batch {
    /// Ids of connections, up to 1,000.
    connections: Vec<String>,
    /// Seconds each should still live.
    min_ttl: Option<u32>,
}

/// A token or a problem.
#[derive(Serialize, ToSchema)]
#[schema(as = BatchItem)]
pub(crate) struct BatchItem<'a> {
    connection: &'a str,
    #[serde(flatten)]
    outcome: BatchOutcome<'a>,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum BatchOutcome<'a> {
    Token(TokenView<'a>),
    Problem(ProblemView<'a>),
}

/// The answer to a batch.
#[derive(Serialize, ToSchema)]
#[schema(as = BatchAnswer)]
pub(crate) struct BatchAnswer<'a> {
    /// In the order of the request.
    items: Vec<BatchItem<'a>>,
}

/// Many access tokens at once.
///
/// Always 200: each item is a token or a problem, and names its connection.
///
/// Role: `tokens`.
#[utoipa::path(
    post, path = "/v1/tokens/batch", operation_id = "getTokens", tag = "tokens", request_body = Batch,
    responses((status = 200, body = BatchAnswer<'_>), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn batch(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    input::Json(batch): input::Json<Batch>,
) -> Result<Response, Problem> {
    caller.require(Role::Tokens)?;
    if batch.connections.len() > BATCH_MAX {
        return Err(Problem::bad_request(format!(
            "`connections`: expected at most {BATCH_MAX}"
        )));
    }
    let min_ttl = batch.min_ttl.map(|seconds| Duration::from_secs(seconds.into()));
    let outcomes: Vec<Result<(Arc<Current>, Moment), Problem>> = stream::iter(batch.connections.clone())
        .map(|id| {
            let (shared, caller) = (shared.clone(), caller.clone());
            async move { hand_out(&shared, &caller, caller.asked(), &parse_id(&id)?, min_ttl).await }
        })
        .buffered(BATCH_AT_ONCE)
        .collect()
        .await;
    let now = shared.now();
    let items = batch
        .connections
        .iter()
        .zip(&outcomes)
        .map(|(connection, outcome)| BatchItem {
            connection,
            outcome: match outcome {
                Ok((token, _)) => BatchOutcome::Token(TokenView::new(token, now)),
                Err(problem) => BatchOutcome::Problem(problem.item()),
            },
        })
        .collect();
    let mut response = Json(BatchAnswer { items }).into_response();
    no_store(response.headers_mut());
    Ok(response)
}

/// The answer that a caller got for a token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rejected {
    /// Which version of the token; none that is newer than the stored one.
    version: i64,
    /// The HTTP status that came back, 100 to 599.
    status: u16,
    /// The body that came back: as text, or as the JSON it was.
    #[serde(default)]
    body: serde_json::Value,
}

/// What follows from it. The token's members are there where the call should be repeated with it.
#[derive(Serialize, ToSchema)]
#[schema(as = RejectedAnswer)]
#[expect(
    clippy::option_option,
    reason = "without a token a member is left out, without an end it is null"
)]
pub(crate) struct RejectedAnswer<'a> {
    /// What the answer meant.
    class: &'static str,
    /// One sentence.
    why: &'a str,
    /// Repeat the call with this token. Without one, repeating it would not help.
    #[serde(skip_serializing_if = "Option::is_none")]
    access_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_type: Option<&'a str>,
    /// `null` for a static token, whose end nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    expires_at: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    seconds_remaining: Option<Option<i64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<i64>,
}

impl<'a> RejectedAnswer<'a> {
    fn new(class: Class, why: &'a str, token: Option<TokenView<'a>>) -> Self {
        let mut answer = Self {
            class: class.as_str(),
            why,
            access_token: None,
            token_type: None,
            expires_at: None,
            seconds_remaining: None,
            version: None,
        };
        if let Some(token) = token {
            answer.access_token = Some(token.access_token);
            answer.token_type = Some(token.token_type);
            answer.expires_at = Some(token.expires_at);
            answer.seconds_remaining = Some(token.seconds_remaining);
            answer.version = Some(token.version);
        }
        answer
    }
}

/// A caller's call came back with an error.
///
/// For an older version than the stored one the current token is returned. Else the answer is judged, and where it says that
/// the token is dead, the refresh token is redeemed, at most once per connection and cooldown.
///
/// Role: `tokens`.
#[utoipa::path(
    post, path = "/v1/connections/{id}/token/rejected", operation_id = "reportRejectedToken", tag = "tokens", request_body = Rejected,
    params(("id" = String, Path)),
    responses((status = 200, body = RejectedAnswer<'_>), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn rejected(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    PathId(id): PathId,
    input::Json(rejected): input::Json<Rejected>,
) -> Result<Response, Problem> {
    let connection = caller.connection(shared.keeper(), &id, Role::Tokens).await?;
    if !STATUSES.contains(&rejected.status) {
        return Err(Problem::bad_request("`status`: expected an HTTP status, 100 to 599").about(&id));
    }
    // A version that was never issued is a mistake of the caller's, and no reason to redeem anything.
    let version = Version::new(rejected.version);
    if version < Version::FIRST || version > connection.version {
        return Err(Problem::bad_request("`version`: this connection has had no such version").about(&id));
    }
    let body = match rejected.body {
        serde_json::Value::Null => Vec::new(),
        serde_json::Value::String(text) => text.into_bytes(),
        json => json.to_string().into_bytes(),
    };
    let class = judge(ApiAnswer {
        status: rejected.status,
        body: &body,
        ..ApiAnswer::default()
    })
    .class;
    let counted = Counted::RejectedReport(rejected.status);
    shared.keeper().note_counted(&id, &connection.app, counted);
    note_report(&shared, &caller, &connection, (version, rejected.status), class).await;
    let outcome = match class {
        Class::Expired | Class::Rejected | Class::MalformedToken => shared
            .keeper()
            .rejected_for(caller.asked(), &id, version, class)
            .await
            .map_err(|error| shared.problem(Problem::keep(error, &id)))?,
        other => AfterRejection::Stays {
            class: other,
            why: about(other),
        },
    };
    let (class, why, token) = match &outcome {
        AfterRejection::Newer { token, class } => (
            *class,
            "there is a newer token: repeat the call with it",
            Some(token),
        ),
        AfterRejection::Stays { class, why } => (*class, *why, None),
    };
    shared.keeper().event_with(&id, EventKind::CallUnauthorized, || {
        let detail = format!(
            "a caller said that a token came back {}, {}: {why}",
            rejected.status,
            class.as_str()
        );
        Event::new(EventKind::CallUnauthorized, detail).during(Circumstances {
            class: Some(class),
            status_code: Some(rejected.status),
            token_version: Some(version),
            ..caller.asked().circumstances()
        })
    });
    if let Some(token) = token {
        note_handed_out(&shared, &caller, caller.asked(), token, shared.keeper().moment());
    }
    let token = token.map(|token| TokenView::new(token, shared.now()));
    let mut response = Json(RejectedAnswer::new(class, why, token)).into_response();
    no_store(response.headers_mut());
    Ok(response)
}

/// Which token a caller says was answered how: what callers do beside the gateway is known by this alone. On record before what
/// follows from it.
async fn note_report(
    shared: &Inner,
    caller: &Caller,
    connection: &Connection,
    (version, status): (Version, u16),
    class: Class,
) {
    let remaining = connection.ends.expires.seconds_from(shared.now());
    // When an older one ended is not known any more.
    let stands = version == connection.version && connection.kind == Kind::OAuth;
    let event = || {
        let detail = format!(
            "{} says that the provider answered {status} to the token of version {}",
            caller.shown(),
            version.number()
        );
        Event::new(EventKind::TokenReported, detail).during(Circumstances {
            class: Some(class),
            status_code: Some(status),
            token_version: Some(version),
            seconds_remaining: stands.then_some(remaining),
            ..caller.asked().circumstances()
        })
    };
    shared
        .keeper()
        .event_first(&connection.id, EventKind::TokenReported, event)
        .await;
}

/// Why an answer that is not about the token's life leads to no refresh.
fn about(class: Class) -> &'static str {
    match class {
        Class::Ok => "the provider did what it was asked; there is nothing to refresh",
        Class::PermissionDenied => {
            "the token is valid and lacks a right: refreshing would bring the same rights"
        }
        Class::RateLimited => "the provider limits the rate of calls: wait, refreshing would not help",
        Class::Unavailable | Class::Timeout => {
            "the provider itself is in trouble: try again later, refreshing would not help"
        }
        Class::ClientError => "the provider refuses the request, not the token",
        Class::StaleToken
        | Class::Expired
        | Class::Rejected
        | Class::RejectedAfterRefresh
        | Class::MalformedToken
        | Class::StaticRejected => "the token is not accepted",
    }
}

/// How to refresh.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Refresh {
    /// Only where this version still stands.
    if_version: Option<i64>,
    /// Whatever the token's age; at most once in 10 s.
    force: bool,
}

/// What a refresh spent.
#[derive(Serialize, ToSchema)]
pub(crate) struct Refreshed {
    /// Whether a refresh token was redeemed.
    redeemed: bool,
    version_before: i64,
    version: i64,
    /// Why nothing was redeemed.
    why: Option<&'static str>,
}

/// Refreshes a connection.
///
/// Joins a redemption that is on its way. Without `force` a token set younger than 60 s stays as it is.
/// Where an outcome was lost, the refresh token is presented once more.
///
/// Role: `support`.
#[utoipa::path(
    post, path = "/v1/connections/{id}/refresh", operation_id = "refresh", tag = "connections", request_body = Refresh,
    params(("id" = String, Path)),
    responses((status = 200, body = Refreshed), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn refresh(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    PathId(id): PathId,
    OptionalJson(refresh): OptionalJson<Refresh>,
) -> Result<Json<Refreshed>, Problem> {
    caller.connection(shared.keeper(), &id, Role::Support).await?;
    let renewal = if refresh.force {
        Renewal::Forced
    } else {
        Renewal::IfOld
    };
    let report = shared
        .keeper()
        .refresh_for(caller.asked(), &id, refresh.if_version.map(Version::new), renewal)
        .await
        .map_err(|error| shared.problem(Problem::keep(error, &id)))?;
    Ok(Json(Refreshed {
        redeemed: report.redeemed,
        version_before: report.version_before.number(),
        version: report.version.number(),
        why: report.why,
    }))
}
