//! What happened and how often: events as a list and as a stream, tallies, the export for a provider's support, the overview.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use evergrant_domain::access::{Limits, Role};
use evergrant_domain::app::AppHealth;
use evergrant_domain::event::EventKind;
use evergrant_domain::redemption::QUIET_TIME;
use evergrant_domain::tally::{Counted, Seconds, Tally};
use evergrant_domain::{AppName, ConnectionId, Customer, Health, Timestamp, Version};
use evergrant_store::contract::{
    ConnectionFilter, DeadLetters, EventOrder, EventPage, EventQuery, HealthAsked, Sort, SortBy, StoredEvent,
    Tallied,
};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, header};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep, timeout};
use utoipa::ToSchema;

use crate::access::Caller;
use crate::input::{NoQuery, PathId, Query};
use crate::lists::{limit, not_a_cursor};
use crate::problem::{Code, Problem, ProblemView};
use crate::service::Shared;
use crate::views::{EventView, Record, time};

/// How long the tallies of a connection and of an app are shown: as long as they are kept.
const HOURS: Duration = Duration::from_secs(48 * 3600);
const A_DAY: Duration = Duration::from_secs(24 * 3600);
const AN_HOUR: Duration = Duration::from_secs(3600);

/// How many events an export holds at most.
const EXPORTED: u32 = 1000;
/// How many connections the overview names that need a person.
const NAMED: u32 = 20;

/// How often a stream looks for what is new.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A comment so often, where nothing happens: what lies between would take a silent connection for a dead one.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Who does not read for so long is let go: what is new comes again from where it stopped.
const READER_WAITS: Duration = Duration::from_secs(30);
/// How many events wait for a reader.
const AHEAD: usize = 64;
/// How many events one look of a stream brings.
const AT_ONCE: u32 = 500;

/// A page of events.
#[derive(Serialize, ToSchema)]
pub(crate) struct EventList {
    items: Vec<EventView>,
    /// For the next page; `null` where there is none yet.
    next_cursor: Option<String>,
    /// Only with `after`: where to read on to miss nothing that comes later, also where nothing here was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_to: Option<i64>,
}

/// A connection's history.
///
/// Newest first.
///
/// Role: `support`.
#[utoipa::path(
    get, path = "/v1/connections/{id}/events", operation_id = "listConnectionEvents", tag = "history",
    params(("id" = String, Path), ("type" = Option<Vec<String>>, Query), ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = EventList), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn of_connection(
    State(shared): State<Shared>,
    caller: Caller,
    PathId(id): PathId,
    mut query: Query,
) -> Result<Json<EventList>, Problem> {
    caller.connection(shared.keeper(), &id, Role::Support).await?;
    let kinds = query.each("type", read_kind)?;
    let limit = limit(&mut query)?;
    let before = query
        .one("cursor")?
        .map(|cursor| read_number(&cursor))
        .transpose()?;
    query.done()?;
    let asked = EventQuery {
        connections: vec![id],
        kinds,
        ..EventQuery::all(EventOrder::NewestFirst { before }, limit)
    };
    let page = shared.keeper().store().find_events(asked).await?;
    Ok(Json(shown(page, None)))
}

/// Every event, as a list or as a stream.
///
/// Newest first; with `after` as they came, from behind that id on. A repeated filter means OR, different filters AND. A page may
/// hold fewer events than there are, or none, and still name a next one: one look goes through a bounded number of them.
///
/// With `Accept: text/event-stream` the answer is a stream of the same events with the same ids (server-sent events): it begins behind
/// `Last-Event-ID`, else behind `after`, else with what comes from now on, and ends with the service, with the key, and for who does
/// not read.
///
/// Role: `support`.
#[utoipa::path(
    get, path = "/v1/events", operation_id = "listEvents", tag = "history",
    params(
        ("after" = Option<i64>, Query), ("connection" = Option<Vec<String>>, Query), ("customer" = Option<Vec<String>>, Query),
        ("app" = Option<Vec<String>>, Query), ("since" = Option<String>, Query, description = "Recorded then or later; RFC 3339."),
        ("type" = Option<Vec<String>>, Query), ("request_id" = Option<Vec<String>>, Query),
        ("provider_correlation_id" = Option<Vec<String>>, Query),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000), ("cursor" = Option<String>, Query),
        ("Last-Event-ID" = Option<i64>, Header),
    ),
    responses((status = 200, body = EventList), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn all(
    State(shared): State<Shared>,
    caller: Caller,
    headers: HeaderMap,
    mut query: Query,
) -> Result<Response, Problem> {
    caller.require(Role::Support)?;
    let after = query.number::<i64>("after", "the id of an event")?;
    let cursor = query
        .one("cursor")?
        .map(|cursor| read_number(&cursor))
        .transpose()?;
    let order = match (after, cursor) {
        (Some(_), Some(after)) | (Some(after), None) => EventOrder::OldestFirst { after },
        (None, before) => EventOrder::NewestFirst { before },
    };
    let asked = EventQuery {
        connections: query.each("connection", ConnectionId::parse)?,
        customers: query.each("customer", Customer::parse)?,
        apps: query.each("app", AppName::parse)?,
        since: query.one("since")?.as_deref().map(read_since).transpose()?,
        kinds: query.each("type", read_kind)?,
        request_ids: query.all("request_id"),
        provider_correlation_ids: query.all("provider_correlation_id"),
        limits: caller.filter(),
        ..EventQuery::all(order, limit(&mut query)?)
    };
    query.done()?;
    if wants_a_stream(&headers) {
        return streamed(&shared, caller, &headers, asked, after).await;
    }
    let page = shared.keeper().store().find_events(asked.clone()).await?;
    Ok(Json(shown(page, after.map(|_| asked.limit))).into_response())
}

/// `feed` is how many were asked for as they came.
fn shown(page: EventPage, feed: Option<u32>) -> EventList {
    let full = feed.is_none_or(|limit| u32::try_from(page.events.len()).is_ok_and(|found| found >= limit));
    EventList {
        // A feed that was read to its end for now has no next page yet.
        next_cursor: page.read_on.filter(|_| full).map(|id| id.to_string()),
        read_to: feed.and(page.read_on),
        items: page.events.into_iter().map(EventView::from).collect(),
    }
}

fn read_kind(word: &str) -> Result<String, String> {
    if EventKind::from_word(word).is_some() {
        return Ok(word.to_owned());
    }
    let known = EventKind::ALL.map(EventKind::as_str).join(", ");
    Err(format!("expected one of {known}"))
}

fn read_since(text: &str) -> Result<Timestamp, Problem> {
    let at = text.parse::<jiff::Timestamp>().ok();
    at.map(|at| Timestamp::from_millis(at.as_millisecond()))
        .ok_or_else(|| Problem::bad_request("`since`: expected a time like 2026-11-24T18:00:00Z"))
}

fn read_number(text: &str) -> Result<i64, Problem> {
    text.parse().map_err(|_| not_a_cursor())
}

fn wants_a_stream(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|kind| {
            let kind = kind.split(';').next().unwrap_or_default();
            kind.trim().eq_ignore_ascii_case("text/event-stream")
        })
}

/// The same events as they come.
async fn streamed(
    shared: &Shared,
    caller: Caller,
    headers: &HeaderMap,
    mut asked: EventQuery,
    after: Option<i64>,
) -> Result<Response, Problem> {
    let place = shared.streams.clone().try_acquire_owned().map_err(|_| {
        let why =
            "as many streams of events as there may be are open: come again, or ask for pages with `after`";
        Problem::because(Code::Overloaded, why).retry_after(LOOK_EVERY)
    })?;
    let last = headers
        .get("last-event-id")
        .map(|value| {
            let id = value.to_str().ok().and_then(|text| text.parse().ok());
            id.ok_or_else(|| Problem::bad_request("`Last-Event-ID`: expected the id of an event"))
        })
        .transpose()?;
    let after = match last.or(after) {
        Some(after) => after,
        None => shared.keeper().store().event_head().await?,
    };
    asked.order = EventOrder::OldestFirst { after };
    asked.limit = AT_ONCE;
    let (events, waiting) = mpsc::channel(AHEAD);
    let feed = OfCaller {
        shared: shared.clone(),
        caller,
        generation: None,
        _place: place,
    };
    tokio::spawn(follow(feed, asked, events));
    let frames = stream::unfold(waiting, |mut waiting| async {
        waiting
            .recv()
            .await
            .map(|frame| (Ok::<Bytes, Infallible>(frame), waiting))
    });
    let mut response = Body::from_stream(frames).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Some proxies keep an answer until it is whole.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// What a stream reads from.
trait Feed: Send {
    /// Whether who reads it may go on, and the service does.
    fn goes_on(&mut self) -> impl Future<Output = bool> + Send;
    /// What is there now; nothing where the store does not say.
    fn look(&mut self, asked: EventQuery) -> impl Future<Output = Option<EventPage>> + Send;
}

/// The store's events, for a caller.
struct OfCaller {
    shared: Shared,
    caller: Caller,
    generation: Option<u64>,
    _place: OwnedSemaphorePermit,
}

impl Feed for OfCaller {
    async fn goes_on(&mut self) -> bool {
        !self.shared.is_draining()
            && self
                .caller
                .lives(self.shared.keeper(), &mut self.generation)
                .await
    }

    async fn look(&mut self, asked: EventQuery) -> Option<EventPage> {
        self.shared.keeper().store().find_events(asked).await.ok()
    }
}

/// Brings what is new until nobody reads, nobody may, or the service ends.
async fn follow(mut feed: impl Feed, mut asked: EventQuery, events: mpsc::Sender<Bytes>) {
    // At once: who waits for an answer's head has one.
    let mut heard_at = None;
    while feed.goes_on().await {
        // A store that is away for a moment ends no stream: what happened meanwhile comes later.
        let page = feed.look(asked.clone()).await;
        let mut more = false;
        if let Some(page) = page {
            more = u32::try_from(page.events.len()).is_ok_and(|found| found >= asked.limit);
            for event in page.events {
                let Some(frame) = frame(event) else { continue };
                if !is_read(&events, frame).await {
                    return;
                }
                heard_at = Some(Instant::now());
            }
            if let Some(after) = page.read_on {
                asked.order = EventOrder::OldestFirst { after };
            }
        }
        if heard_at.is_none_or(|heard_at: Instant| heard_at.elapsed() >= HEARTBEAT) {
            if !is_read(&events, Bytes::from_static(b": still here\n\n")).await {
                return;
            }
            heard_at = Some(Instant::now());
        }
        if !more {
            tokio::select! {
                () = events.closed() => return,
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }
}

/// Hands a frame to who reads. `false` where nobody does, or not for so long that somebody else should have the place.
async fn is_read(events: &mpsc::Sender<Bytes>, frame: Bytes) -> bool {
    matches!(timeout(READER_WAITS, events.send(frame)).await, Ok(Ok(())))
}

/// One event, as a stream tells it. JSON holds no line's end.
fn frame(event: StoredEvent) -> Option<Bytes> {
    let (id, kind) = (event.id, event.kind.clone());
    let data = serde_json::to_string(&EventView::from(event)).ok()?;
    Some(format!("id: {id}\nevent: {kind}\ndata: {data}\n\n").into())
}

/// What was counted in an hour, or in a minute.
#[derive(Serialize, ToSchema)]
pub(crate) struct TallyView {
    /// When that began.
    at: String,
    /// How often, by what: `class:ok`, `refused:unavailable`, `ttl:below_120`, `delay:below_300`, `status:403`, `handed_out`, `rejected_report:401`,
    /// `refresh_forced`, `redeemed`, `stored`.
    counts: BTreeMap<String, u32>,
}

impl TallyView {
    fn of(tallied: &Tallied) -> Self {
        Self {
            at: time(tallied.at),
            counts: counts(&tallied.tally),
        }
    }
}

fn counts(tally: &Tally) -> BTreeMap<String, u32> {
    tally
        .iter()
        .map(|(counted, times)| (counted.word(), times))
        .collect()
}

/// What was counted of a connection.
#[derive(Serialize, ToSchema)]
pub(crate) struct Tallies {
    connection: String,
    /// Of the last 48 hours, the oldest first; hours in which nothing was counted are missing. Written every few seconds.
    hours: Vec<TallyView>,
}

/// What calls of a connection did, counted by the hour.
///
/// Role: `support`.
#[utoipa::path(
    get, path = "/v1/connections/{id}/tallies", operation_id = "readTallies", tag = "history",
    params(("id" = String, Path)),
    responses((status = 200, body = Tallies), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn tallies(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    PathId(id): PathId,
) -> Result<Json<Tallies>, Problem> {
    caller.connection(shared.keeper(), &id, Role::Support).await?;
    shared.keeper().flush_soon().await;
    let hours = shared
        .keeper()
        .store()
        .tallies(&id, shared.now().before(HOURS))
        .await?;
    Ok(Json(Tallies {
        connection: id.to_string(),
        hours: hours.iter().map(TallyView::of).collect(),
    }))
}

/// One version of a connection's token set, as its history tells of it.
#[derive(Serialize, ToSchema)]
struct VersionView {
    version: i64,
    since: String,
    #[serde(rename = "type")]
    kind: String,
    fingerprint: Option<String>,
    request_id: Option<String>,
    provider_correlation_id: Option<String>,
}

/// What may be given to a provider's support: no token, and nothing about the customer unless that was asked for.
#[derive(Serialize, ToSchema)]
pub(crate) struct Export {
    exported_at: String,
    evergrant_version: &'static str,
    /// The record, without its reconnect link, and, unless asked for, without customer, labels and the account's user.
    connection: serde_json::Value,
    /// Newest first, as far as the events below reach.
    versions: Vec<VersionView>,
    /// Newest first, up to 1,000.
    events: Vec<EventView>,
    tallies: Vec<TallyView>,
    /// What to quote to the provider's support, newest first.
    provider_correlation_ids: Vec<String>,
}

/// One document about a connection for the provider's support.
///
/// Holds no token. `customer=true` leaves in what names your customer.
///
/// Role: `support`.
#[utoipa::path(
    get, path = "/v1/connections/{id}/export", operation_id = "exportConnection", tag = "history",
    params(("id" = String, Path), ("customer" = Option<bool>, Query)),
    responses((status = 200, body = Export), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn export(
    State(shared): State<Shared>,
    caller: Caller,
    PathId(id): PathId,
    mut query: Query,
) -> Result<Json<Export>, Problem> {
    let connection = caller.connection(shared.keeper(), &id, Role::Support).await?;
    let with_customer = query.flag("customer")?;
    query.done()?;
    shared.keeper().flush_soon().await;
    let store = shared.keeper().store();
    let now = shared.now();
    let events = store.events(&id, EXPORTED).await?;
    let refreshes = store.count_refreshes(&id, now.before(A_DAY)).await?;
    let tallies = store.tallies(&id, now.before(HOURS)).await?;
    let record = shared.record_alone(connection).await.with_refreshes(refreshes);
    let mut ids: Vec<String> = Vec::new();
    let correlated = events
        .iter()
        .filter_map(|event| event.circumstances.provider_correlation_id.as_ref());
    for id in correlated {
        if !ids.contains(id) {
            ids.push(id.clone());
        }
    }
    let versions = events
        .iter()
        .filter(|event| event.version.is_some() && event.version != event.version_before)
        .map(|event| VersionView {
            version: event.version.map_or(0, Version::number),
            since: time(event.at),
            kind: event.kind.clone(),
            fingerprint: event.fingerprint.clone(),
            request_id: event.circumstances.request_id.clone(),
            provider_correlation_id: event.circumstances.provider_correlation_id.clone(),
        })
        .collect();
    Ok(Json(Export {
        exported_at: time(now),
        evergrant_version: env!("CARGO_PKG_VERSION"),
        connection: redacted(&record, with_customer)?,
        versions,
        events: events.into_iter().map(EventView::from).collect(),
        tallies: tallies.iter().map(TallyView::of).collect(),
        provider_correlation_ids: ids,
    }))
}

fn redacted(record: &Record, with_customer: bool) -> Result<serde_json::Value, Problem> {
    let mut shown = serde_json::to_value(record).map_err(|_| Problem::new(Code::Internal))?;
    if let Some(fields) = shown.as_object_mut() {
        // A link gives a right.
        fields.remove("reconnect_url");
        if !with_customer {
            fields.remove("customer");
            fields.remove("labels");
            if let Some(account) = fields
                .get_mut("account")
                .and_then(|account| account.as_object_mut())
            {
                account.remove("user");
            }
        }
    }
    Ok(shown)
}

/// An app on the overview.
#[derive(Serialize, ToSchema)]
struct AppOverview {
    app: String,
    /// `ok`, `credentials_rejected`, or `not_configured` any more.
    health: &'static str,
    /// How many connections do how; `disconnected` beside them.
    connections: BTreeMap<&'static str, u64>,
    /// Calls by the remaining lifetime of their token when they were sent, in seconds, by the minute of the last hour, oldest first.
    calls_by_ttl_last_hour: Vec<TallyView>,
    /// Refresh tokens presented (`redeemed`) and token sets that they brought (`stored`), by the minute of the last hour, oldest first.
    refreshes_last_hour: Vec<TallyView>,
    /// The calls of the last day by remaining lifetime, added up.
    calls_by_ttl_last_day: BTreeMap<&'static str, u64>,
    /// All that was counted in the last day.
    last_day: BTreeMap<String, u32>,
    /// Refresh tokens presented in the last day, and token sets that refreshes brought and the store has.
    redeemed_last_day: u32,
    stored_last_day: u32,
}

/// A connection that needs a person.
#[derive(Serialize, ToSchema)]
struct NeedsAPerson {
    connection: String,
    app: String,
    customer: String,
    reason: Option<String>,
    since: Option<String>,
}

/// Webhooks that were given up: `GET /v1/webhooks/deliveries?state=dead` lists them.
#[derive(Serialize, ToSchema)]
struct DeadLettersView {
    count: u64,
    /// When the first of them was given up; `null` where there is none.
    oldest_at: Option<String>,
}

impl From<DeadLetters> for DeadLettersView {
    fn from(letters: DeadLetters) -> Self {
        Self {
            count: letters.count,
            oldest_at: letters.oldest_at.map(time),
        }
    }
}

/// How everything does.
#[derive(Serialize, ToSchema)]
pub(crate) struct Overview {
    at: String,
    apps: Vec<AppOverview>,
    /// How many connections need reconnecting, and the latest of them.
    reconnect_required: u64,
    reconnect_required_latest: Vec<NeedsAPerson>,
    /// Apps whose credentials the provider refuses.
    apps_rejected: Vec<String>,
    /// Notices that a receiver of webhooks did not take and that are not tried again.
    dead_letters: DeadLettersView,
    /// Token sets in this process's lifeboat, which the store has not taken; `null` where there is none or it cannot be read.
    lifeboat_entries: Option<usize>,
}

/// How the connections and apps do, and what needs a person now.
///
/// What lies outside the key's limits is not counted; what is counted of calls is counted by app.
///
/// Role: `support`.
#[utoipa::path(
    get, path = "/v1/overview", operation_id = "readOverview", tag = "history",
    responses((status = 200, body = Overview), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn overview(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
) -> Result<Json<Overview>, Problem> {
    caller.require(Role::Support)?;
    let keeper = shared.keeper();
    keeper.flush_soon().await;
    let store = keeper.store();
    let now = shared.now();
    let limits = caller.filter();
    let counted = store.count_connections(limits.clone(), QUIET_TIME, now).await?;
    let mut reconnect_required = 0;
    let mut by_app: BTreeMap<AppName, BTreeMap<&'static str, u64>> = keeper
        .apps()
        .iter()
        .filter(|app| caller.sees_app(&app.name))
        .map(|app| (app.name.clone(), BTreeMap::new()))
        .collect();
    for count in counted {
        if count.health == Some(Health::ReconnectRequired) {
            reconnect_required += count.count;
        }
        let word = count.health.map_or("disconnected", Health::as_str);
        by_app.entry(count.app).or_default().insert(word, count.count);
    }
    let mut apps = Vec::with_capacity(by_app.len());
    let mut apps_rejected = Vec::new();
    // Calls are counted by app: who sees only some of an app's connections is not told of the others'.
    let sees_whole_apps = limits.customers.is_empty() && limits.connections.is_empty();
    for (app, connections) in by_app {
        let health = match keeper.app_health(&app).await {
            Ok(AppHealth::Ok) => "ok",
            Ok(AppHealth::CredentialsRejected { .. }) => {
                apps_rejected.push(app.to_string());
                "credentials_rejected"
            }
            Err(_) => "not_configured",
        };
        let minutes = if sees_whole_apps {
            store.app_tallies(&app, now.before(A_DAY)).await?
        } else {
            Vec::new()
        };
        apps.push(AppOverview::new(&app, health, connections, &minutes, now));
    }
    let dead_letters = store.dead_letters(limits.clone()).await?.into();
    Ok(Json(Overview {
        at: time(now),
        apps,
        reconnect_required,
        reconnect_required_latest: latest(&shared, limits, now).await?,
        apps_rejected,
        dead_letters,
        lifeboat_entries: keeper.lifeboat_entries().await,
    }))
}

impl AppOverview {
    fn new(
        app: &AppName,
        health: &'static str,
        connections: BTreeMap<&'static str, u64>,
        minutes: &[Tallied],
        now: Timestamp,
    ) -> Self {
        let mut day = Tally::default();
        for minute in minutes {
            day.merge(&minute.tally);
        }
        let hour_ago = now.before(AN_HOUR);
        let of_the_last_hour = |is_meant: fn(&Counted) -> bool| -> Vec<TallyView> {
            let view = |minute: &Tallied| TallyView {
                at: time(minute.at),
                counts: minute
                    .tally
                    .iter()
                    .filter(|(counted, _)| is_meant(counted))
                    .map(|(counted, times)| (counted.word(), times))
                    .collect(),
            };
            minutes
                .iter()
                .filter(|minute| minute.at >= hour_ago)
                .map(view)
                .collect()
        };
        Self {
            app: app.to_string(),
            health,
            connections,
            calls_by_ttl_last_hour: of_the_last_hour(|counted| matches!(counted, Counted::Ttl(_))),
            refreshes_last_hour: of_the_last_hour(|counted| {
                matches!(counted, Counted::Redeemed | Counted::Stored)
            }),
            calls_by_ttl_last_day: Seconds::ALL
                .into_iter()
                .map(|seconds| (seconds.as_str(), u64::from(day.times(Counted::Ttl(seconds)))))
                .collect(),
            redeemed_last_day: day.times(Counted::Redeemed),
            stored_last_day: day.times(Counted::Stored),
            last_day: counts(&day),
        }
    }
}

/// The connections that came to need reconnecting last.
async fn latest(shared: &Shared, limits: Limits, now: Timestamp) -> Result<Vec<NeedsAPerson>, Problem> {
    let filter = ConnectionFilter {
        healths: Some(HealthAsked {
            any_of: vec![Health::ReconnectRequired],
            now,
            quiet_time: QUIET_TIME,
        }),
        sort: Sort {
            by: SortBy::StatusSince,
            descending: true,
        },
        limits,
        limit: NAMED,
        ..ConnectionFilter::default()
    };
    let found = shared.keeper().store().list(filter).await?;
    let shown = found.into_iter().map(|connection| {
        use evergrant_domain::ConnectionStatus;
        let (reason, since) = match connection.status {
            ConnectionStatus::ReconnectRequired { reason, since } => {
                (Some(reason.as_str().to_owned()), Some(time(since)))
            }
            ConnectionStatus::Active | ConnectionStatus::Disconnected { .. } => (None, None),
        };
        NeedsAPerson {
            connection: connection.id.to_string(),
            app: connection.app.to_string(),
            customer: connection.customer.to_string(),
            reason,
            since,
        }
    });
    Ok(shown.collect())
}

#[cfg(test)]
mod tests {
    use evergrant_domain::event::Circumstances;

    use super::*;

    /// A feed of so many events, of which a look brings so many, and which the store does not tell of at times.
    struct Told {
        events: i64,
        /// Every so-manieth look finds the store away.
        away_every: usize,
        looks: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    }

    impl Feed for Told {
        async fn goes_on(&mut self) -> bool {
            true
        }

        async fn look(&mut self, asked: EventQuery) -> Option<EventPage> {
            let look = self.looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            if look.is_multiple_of(self.away_every) {
                return None;
            }
            let EventOrder::OldestFirst { after } = asked.order else {
                panic!("a stream goes on and on");
            };
            let to = self.events.min(after + i64::from(asked.limit));
            Some(EventPage {
                events: (after + 1..=to).map(event).collect(),
                read_on: Some(to),
            })
        }
    }

    fn event(id: i64) -> StoredEvent {
        StoredEvent {
            id,
            at: Timestamp::from_millis(id),
            connection: ConnectionId::parse("c1").ok(),
            app: AppName::parse("crm").expect("a literal name"),
            kind: "refreshed".into(),
            detail: String::new(),
            version_before: None,
            version: None,
            fingerprint: None,
            process: None,
            circumstances: Circumstances::default(),
        }
    }

    fn asked() -> EventQuery {
        EventQuery::all(EventOrder::OldestFirst { after: 3 }, 10)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_tells_every_event_once_and_in_order_whatever_the_store_does_between() {
        let (events, mut read) = mpsc::channel(2);
        let feed = Told {
            events: 45,
            away_every: 2,
            looks: std::sync::Arc::default(),
        };
        let following = tokio::spawn(follow(feed, asked(), events));
        let mut told = Vec::new();
        while told.len() < 42 {
            let frame = read.recv().await.expect("there is more");
            let text = String::from_utf8(frame.to_vec()).expect("UTF-8");
            told.extend(
                text.strip_prefix("id: ")
                    .and_then(|text| text.split('\n').next())
                    .map(|id| id.parse::<i64>().expect("a number")),
            );
        }
        assert_eq!(told, (4..=45).collect::<Vec<_>>());
        drop(read);
        following.await.expect("it ends with who reads it");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_let_go_and_nothing_is_put_by_for_them() {
        let (events, read) = mpsc::channel(AHEAD);
        let looks = std::sync::Arc::default();
        let feed = Told {
            events: 100_000,
            away_every: usize::MAX,
            looks: std::sync::Arc::clone(&looks),
        };
        let began = Instant::now();
        let asked = EventQuery {
            limit: AT_ONCE,
            ..asked()
        };
        let following = timeout(HEARTBEAT * 100, follow(feed, asked, events));
        following.await.expect("it does not wait for ever");
        assert_eq!(began.elapsed(), READER_WAITS);
        assert_eq!(read.len(), AHEAD, "no more than that waits for anybody");
        assert_eq!(
            looks.load(std::sync::atomic::Ordering::Relaxed),
            1,
            "and nothing more was read"
        );
    }
}
