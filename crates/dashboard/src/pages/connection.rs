//! One connection: what it is, how it stands, what happened, what can be done.

use std::fmt::Write as _;
use std::time::Duration;

use askama::Template;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::connections::{self, Standing};
use super::{Frame, Query, Reply, Rights, Visitor, diagnosis, query_of, show};
use crate::api::{Api, Refused, get, post, read};
use crate::chart::Gauge;
use crate::notice::Notice;
use crate::records::{self, App, Budget, Connection, Diagnosis, Ended, Link, List, Refreshed};
use crate::words::{Piece, Tone, When, counted, event, name_of, number, prose, span};

/// Lines of the history on the page.
const EVENTS: u32 = 100;
/// How long a link may last that is offered, in days. The first is what nobody asked for otherwise.
const LINK_DAYS: [u32; 3] = [7, 1, 30];

#[derive(Template)]
#[template(path = "connection.html")]
struct Page<'a> {
    frame: Frame<'a>,
    it: Connection,
    standing: Standing,
    status_since: Option<When>,
    gauge: Option<Gauge>,
    issued: Option<When>,
    expires: Option<When>,
    facts: Facts,
    soft: Option<When>,
    hard: Option<When>,
    scopes: Vec<Scope>,
    timeline: Vec<Line>,
    /// Where the history goes on, and where it begins if not here.
    older: Option<String>,
    newest: Option<String>,
    link: Option<OfferedLink>,
    no_link_because: String,
    diagnosis: Option<Shown>,
    /// When it was made.
    examined: String,
    may_refresh: bool,
    may_disconnect: bool,
    needs_reconnecting: bool,
}

struct Facts {
    created: Option<When>,
    connected: Option<When>,
    last_call: Option<When>,
    last_success: Option<When>,
    last_refresh: Option<When>,
    next_refresh: Option<When>,
    last_unauthorized: Option<When>,
    last_forbidden: Option<When>,
    last_rate_limited: Option<When>,
    refresh_rate: Option<String>,
    lease: Option<When>,
    attempt: Option<String>,
    budget: Vec<String>,
}

struct Scope {
    name: String,
    is_granted: bool,
    is_needed: bool,
}

/// What stands in the timeline.
enum Line {
    One(Entry),
    /// Refreshes in a row that worked are one line, so that what matters is not lost among them.
    Refreshes {
        /// The oldest of them, by which the line is known when it grows.
        id: i64,
        summary: String,
        entries: Vec<Entry>,
    },
}

/// Something that happened.
struct Entry {
    id: i64,
    is_refresh: bool,
    name: String,
    tone: Tone,
    detail: Vec<Piece>,
    when: Option<When>,
    /// The version that stands from here on, where it is another than before.
    version: Option<i64>,
    /// What else is known of it, as one line.
    notes: String,
    correlation_id: Option<String>,
    request_id: Option<String>,
}

/// A link to send to the customer.
struct OfferedLink {
    url: String,
    expires: Option<When>,
    days: u32,
    others: Vec<(u32, String)>,
}

/// A diagnosis as it is shown.
struct Shown {
    verdict: String,
    tone: Tone,
    summary: Vec<Piece>,
    action: Option<Vec<Piece>>,
    /// What the state above may seem to contradict.
    aside: &'static str,
    checks: Vec<ShownCheck>,
    /// What the checks say that found nothing, which are shown when somebody asks; empty where each found something.
    without: String,
    /// Where there is none: why.
    missing: Option<String>,
}

impl Shown {
    fn found_any(&self) -> bool {
        self.checks.iter().any(|check| check.has_found)
    }
}

struct ShownCheck {
    name: String,
    result: String,
    tone: Tone,
    evidence: Vec<Piece>,
    has_found: bool,
}

/// `with_diagnosis`: whether the doctor is asked, who looks at the live system for it.
pub(crate) async fn page(
    api: &impl Api,
    visitor: &Visitor<'_>,
    id: &str,
    query: &Query,
    with_diagnosis: bool,
) -> Reply {
    let it: Connection = match get(api, &format!("/v1/connections/{id}")).await {
        Ok(it) => it,
        Err(refused) => return refused.page(visitor),
    };
    let now = visitor.now;
    let cursor = query.one("older").unwrap_or_default();
    let limit = EVENTS.to_string();
    let asked = query_of([("limit", limit.as_str()), ("cursor", cursor)]);
    let events = get::<List<records::Event>>(api, &format!("/v1/connections/{id}/events?{asked}")).await;
    let (events, older) = events.map_or((Vec::new(), None), |list| (list.items, list.next_cursor));
    let apps = get::<List<App>>(api, "/v1/apps?limit=1000").await;
    let app = apps
        .ok()
        .and_then(|apps| apps.items.into_iter().find(|app| app.name == it.app));
    let (link, no_link_because) = match offered_link(api, id, &it, query, now).await {
        Ok(link) => (Some(link), String::new()),
        Err(because) => (None, because),
    };
    let diagnosis = if with_diagnosis {
        Some(
            match get::<Diagnosis>(api, &format!("/v1/connections/{id}/diagnosis")).await {
                Ok(diagnosis) => shown(diagnosis, &it, now),
                Err(refused) => without_diagnosis(&refused),
            },
        )
    } else {
        None
    };
    let live = format!("/dashboard/live?{}", query_of([("connection", id)]));
    let title = format!("{} · {}", it.customer, it.id);
    show(&Page {
        frame: Frame::new(visitor, "connections", title).live(live, 10),
        standing: connections::standing(&it, app.as_ref(), now),
        status_since: When::maybe(it.status_since, now),
        gauge: connections::gauge(&it, now),
        issued: When::maybe(it.issued_at, now),
        expires: When::maybe(it.expires_at, now),
        facts: facts(&it, now),
        scopes: scopes(&it, app.as_ref()),
        soft: When::maybe(it.soft_expires_at, now),
        hard: When::maybe(it.hard_expires_at, now),
        timeline: timeline(events, now),
        older: older.map(|cursor| {
            let query = query_of([("older", cursor.as_str())]);
            format!("/dashboard/connections/{id}?{query}#timeline")
        }),
        newest: (!cursor.is_empty()).then(|| format!("/dashboard/connections/{id}#timeline")),
        link,
        no_link_because,
        diagnosis,
        examined: now.strftime("%H:%M:%S UTC").to_string(),
        may_refresh: it.is_oauth() && !it.is_disconnected(),
        may_disconnect: visitor.rights == Rights::Admin && !it.is_disconnected(),
        needs_reconnecting: it.status == "reconnect_required",
        it,
    })
}

fn facts(it: &Connection, now: Timestamp) -> Facts {
    let when = |at: Option<Timestamp>| When::maybe(at, now);
    Facts {
        created: when(it.created_at),
        connected: when(it.connected_at),
        last_call: when(it.last_call_at),
        last_success: when(it.last_success_at),
        last_refresh: when(it.last_refresh_at),
        next_refresh: when(it.next_refresh_attempt_at),
        last_unauthorized: when(it.last_unauthorized_at),
        last_forbidden: when(it.last_forbidden_at),
        last_rate_limited: when(it.last_rate_limited_at),
        refresh_rate: it
            .refresh_success_rate_24h
            .map(|rate| format!("{:.0} %", rate * 100.0)),
        lease: when(it.refresh_in_progress_until),
        attempt: it.redemption.as_ref().map(|open| {
            let since = when(open.first_at)
                .map(|since| format!(", first {}", since.relative))
                .unwrap_or_default();
            let last = match (open.first_at, open.last_at) {
                (first, Some(last)) if first != Some(last) => {
                    format!(", last {}", When::new(last, now).relative)
                }
                _ => String::new(),
            };
            format!(
                "{} on version {}{since}{last}",
                counted(open.attempts.into(), "attempt"),
                open.version
            )
        }),
        budget: it
            .budget
            .iter()
            .flat_map(|budgets| [("Calls", &budgets.calls), ("Searches", &budgets.searches)])
            .filter_map(|(what, budget)| Some(format!("{what}: {}", left(budget.as_ref()?, now)?)))
            .collect(),
    }
}

/// What may be called still; nothing where nothing is known.
fn left(budget: &Budget, now: Timestamp) -> Option<String> {
    if let Some(until) = budget.rest_until.filter(|until| *until > now) {
        return Some(format!("none before {}, a 429 said", When::new(until, now).short));
    }
    let window = Duration::from_secs_f64(budget.per_seconds?.clamp(0.0, 1e9));
    Some(format!(
        "{} of {} left in {}",
        number(budget.left?),
        number(budget.limit?),
        span(i64::try_from(window.as_secs()).unwrap_or(i64::MAX))
    ))
}

/// Needed and missing first, then needed and granted, then what was granted besides.
fn scopes(it: &Connection, app: Option<&App>) -> Vec<Scope> {
    let scope = |name: &String, is_granted, is_needed| Scope {
        name: name.clone(),
        is_granted,
        is_needed,
    };
    let needed = |name: &String| app.is_some_and(|app| app.scopes.contains(name));
    let missing = it.missing_scopes.iter().map(|name| scope(name, false, true));
    let granted = it
        .scopes
        .iter()
        .filter(|name| needed(name))
        .map(|name| scope(name, true, true));
    let more = it
        .scopes
        .iter()
        .filter(|name| !needed(name))
        .map(|name| scope(name, true, false));
    missing.chain(granted).chain(more).collect()
}

/// How many refreshes in a row are shown as one line; the newest of them is always shown alone.
const FOLDED_FROM: usize = 3;

/// Newest first, as the API gives them. A version is shown where it came to be.
fn timeline(events: Vec<records::Event>, now: Timestamp) -> Vec<Line> {
    let versions: Vec<Option<i64>> = events.iter().map(|event| event.version).collect();
    let older = |index: usize| {
        versions
            .get(index + 1..)
            .and_then(|rest| rest.iter().flatten().next().copied())
    };
    let entries: Vec<Entry> = events
        .into_iter()
        .enumerate()
        .map(|(index, happened)| entry(happened, older(index), now))
        .collect();
    fold(entries)
}

fn entry(happened: records::Event, older: Option<i64>, now: Timestamp) -> Entry {
    let before = happened.version_before.or(older);
    let (name, tone) = event(&happened.kind);
    Entry {
        id: happened.id,
        is_refresh: happened.kind == "refreshed",
        name,
        tone,
        detail: prose(&happened.detail, now),
        when: When::maybe(happened.at, now),
        version: happened
            .version
            .filter(|version| before.is_some_and(|before| before != *version)),
        notes: notes(&happened),
        correlation_id: happened.provider_correlation_id,
        request_id: happened.request_id,
    }
}

fn fold(entries: Vec<Entry>) -> Vec<Line> {
    let mut lines = Vec::with_capacity(entries.len());
    let mut rest = entries.into_iter().peekable();
    while let Some(first) = rest.next() {
        let is_refresh = first.is_refresh;
        lines.push(Line::One(first));
        let mut run = Vec::new();
        while is_refresh && let Some(next) = rest.next_if(|next| next.is_refresh) {
            run.push(next);
        }
        match run.last() {
            Some(oldest) if run.len() + 1 >= FOLDED_FROM => lines.push(Line::Refreshes {
                id: oldest.id,
                summary: summary(&run, oldest),
                entries: run,
            }),
            _ => lines.extend(run.into_iter().map(Line::One)),
        }
    }
    lines
}

fn summary(run: &[Entry], oldest: &Entry) -> String {
    let count = number(run.len() as u64);
    let versions = match (oldest.version, run.first().and_then(|newest| newest.version)) {
        (Some(from), Some(to)) => format!(", versions {from} to {to}"),
        _ => String::new(),
    };
    let since = oldest
        .when
        .as_ref()
        .map(|when| format!(", the first {}", when.relative))
        .unwrap_or_default();
    format!("{count} earlier refreshes that worked{versions}{since}")
}

fn notes(event: &records::Event) -> String {
    let mut notes = Vec::new();
    if let Some(endpoint) = &event.endpoint {
        let method = event.method.as_deref().unwrap_or_default();
        notes.push(format!("{method} {endpoint}").trim().to_owned());
    }
    if let Some(status) = event.status_code {
        notes.push(format!("status {status}"));
    }
    if let Some(reason) = &event.reason {
        notes.push(format!("because {}", reason.replace('_', " ")));
    }
    if let Some(attempt) = event.attempt.filter(|attempt| *attempt > 1) {
        notes.push(format!("attempt {attempt}"));
    }
    match event.seconds_remaining {
        Some(seconds) if seconds < 0 => notes.push(format!("token had ended {} before", span(seconds))),
        Some(seconds) => notes.push(format!("token had {} left", span(seconds))),
        None => {}
    }
    if let Some(by) = &event.by {
        notes.push(format!("by {by}"));
    }
    if let Some(process) = &event.process {
        notes.push(format!("in process {process}"));
    }
    if let Some(fingerprint) = &event.fingerprint {
        notes.push(format!(
            "fingerprint {}",
            fingerprint.chars().take(12).collect::<String>()
        ));
    }
    notes.join(" · ")
}

/// The link is signed, not stored: making one for every look at the page costs nothing and spends nothing.
async fn offered_link(
    api: &impl Api,
    id: &str,
    it: &Connection,
    query: &Query,
    now: Timestamp,
) -> Result<OfferedLink, String> {
    if it.is_disconnected() {
        return Err("It was disconnected. A new connect session connects this customer again.".to_owned());
    }
    if !it.is_oauth() {
        return Err("A static token is not issued by consent: replace the token itself.".to_owned());
    }
    let asked = query.one("link_days").and_then(|days| days.parse().ok());
    let days = asked
        .filter(|days| LINK_DAYS.contains(days))
        .unwrap_or(LINK_DAYS[0]);
    let wish = json!({"expires_in": days * 86_400});
    let link: Link = post(api, &format!("/v1/connections/{id}/reconnect-link"), Some(wish))
        .await
        .map_err(|refused| refused.sentence())?;
    let mut others: Vec<u32> = LINK_DAYS.into_iter().filter(|other| *other != days).collect();
    others.sort_unstable();
    Ok(OfferedLink {
        url: link.url,
        expires: When::maybe(link.expires_at, now),
        days,
        others: others
            .into_iter()
            .map(|days| {
                (
                    days,
                    format!("/dashboard/connections/{id}?link_days={days}#reconnect"),
                )
            })
            .collect(),
    })
}

fn shown(diagnosis: Diagnosis, it: &Connection, now: Timestamp) -> Shown {
    let has_cause = diagnosis.verdict == "cause";
    let (verdict, tone) = diagnosis::verdict(&diagnosis);
    Shown {
        verdict,
        tone,
        summary: prose(&diagnosis.summary, now),
        action: diagnosis::action(&diagnosis, now),
        aside: if has_cause && it.health.as_deref() == Some("healthy") {
            "The connection itself is healthy: what is wrong lies in how it is used."
        } else {
            ""
        },
        without: without(&diagnosis),
        checks: diagnosis
            .checks
            .into_iter()
            .map(|check| ShownCheck {
                name: name_of(&check.id),
                tone: match check.result.as_str() {
                    "clear" => Tone::Good,
                    "found" => Tone::Bad,
                    _ => Tone::Quiet,
                },
                has_found: check.result == "found",
                result: name_of(&check.result),
                evidence: prose(&evidence(&check.evidence), now),
            })
            .collect(),
        missing: None,
    }
}

/// `13 checks found nothing, 2 were skipped`
fn without(diagnosis: &Diagnosis) -> String {
    let of = |result: &str| {
        let checks = diagnosis.checks.iter();
        checks.filter(|check| check.result == result).count() as u64
    };
    let were = |count: u64| if count == 1 { "was" } else { "were" };
    match (of("clear"), of("skipped")) {
        (0, 0) => String::new(),
        (0, skipped) => format!("{} {} skipped", counted(skipped, "check"), were(skipped)),
        (clear, 0) => format!("{} found nothing", counted(clear, "check")),
        (clear, skipped) => format!(
            "{} found nothing, {skipped} {} skipped",
            counted(clear, "check"),
            were(skipped)
        ),
    }
}

fn without_diagnosis(refused: &Refused) -> Shown {
    let missing = if refused.is_missing() {
        "This service has no doctor yet; the history below tells what happened.".to_owned()
    } else {
        refused.sentence()
    };
    Shown {
        verdict: String::new(),
        tone: Tone::Quiet,
        summary: Vec::new(),
        action: None,
        aside: "",
        checks: Vec::new(),
        without: String::new(),
        missing: Some(missing),
    }
}

/// Evidence is text, or a few plain values by name.
fn evidence(value: &Value) -> String {
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "–".to_owned(),
        other => other.to_string(),
    };
    match value {
        Value::Null => String::new(),
        Value::Object(members) => {
            let mut text = String::new();
            for (name, value) in members {
                let apart = if text.is_empty() { "" } else { " · " };
                // Writing into a string never fails.
                let _ = write!(text, "{apart}{} {}", name.replace('_', " "), plain(value));
            }
            text
        }
        other => plain(other),
    }
}

/// Refreshes it, as a job that needs a new token would.
pub(crate) async fn refresh(api: &impl Api, id: &str) -> Reply {
    let wish = json!({"force": true});
    let refreshed = post::<Refreshed>(api, &format!("/v1/connections/{id}/refresh"), Some(wish)).await;
    let notice = match refreshed {
        Ok(Refreshed {
            redeemed: true,
            version_before,
            version,
        }) => Notice::done(format!(
            "Refreshed: version {version} took the place of version {version_before}."
        )),
        Ok(Refreshed {
            version_before,
            version,
            ..
        }) if version > version_before => Notice::done(format!(
            "Somebody else had just refreshed it: version {version} is in use."
        )),
        Ok(Refreshed { version, .. }) => Notice::done(format!(
            "Nothing was redeemed: version {version} was issued a moment ago and is in use."
        )),
        Err(refused) => Notice::failed(refused.sentence()),
    };
    back_to(id, notice)
}

#[derive(Template)]
#[template(path = "disconnect.html")]
struct DisconnectPage<'a> {
    frame: Frame<'a>,
    it: Connection,
    account: Option<String>,
}

/// Says what happens before it does.
pub(crate) async fn ask_before_disconnecting(api: &impl Api, visitor: &Visitor<'_>, id: &str) -> Reply {
    let it: Connection = match get(api, &format!("/v1/connections/{id}")).await {
        Ok(it) => it,
        Err(refused) => return refused.page(visitor),
    };
    if visitor.rights != Rights::Admin {
        let refused = Refused {
            status: 403,
            title: "Not with this key".to_owned(),
            detail: "disconnecting takes a key of the role admin".to_owned(),
            action: "Ask somebody who has one.".to_owned(),
            ..Refused::default()
        };
        return refused.page(visitor);
    }
    if it.is_disconnected() {
        return back_to(id, Notice::done("It is disconnected already."));
    }
    let account = it.account.as_ref().map(|account| match &account.domain {
        Some(domain) => format!("{domain} ({})", account.id),
        None => account.id.clone(),
    });
    show(&DisconnectPage {
        frame: Frame::new(visitor, "connections", format!("Disconnect {}", it.id)),
        it,
        account,
    })
}

/// Ends it.
pub(crate) async fn disconnect(api: &impl Api, id: &str) -> Reply {
    let answer = api
        .call(Method::DELETE, &format!("/v1/connections/{id}"), None)
        .await;
    let notice = match read::<Ended>(answer) {
        Ok(ended) => {
            let revocation = match ended.revocation.as_str() {
                "done" => "the grant was revoked at the provider",
                "pending" => "the grant is being revoked at the provider",
                "shared" => "the grant was not revoked, because another live connection has this account",
                _ => "the provider cannot be told to revoke the grant",
            };
            let until = ended
                .access_tokens_valid_until
                .map(|until| {
                    format!(
                        " Access tokens that were handed out may serve until {}.",
                        until.strftime("%H:%M:%S UTC")
                    )
                })
                .unwrap_or_default();
            Notice::done(format!(
                "Disconnected: its tokens are erased, and {revocation}.{until}"
            ))
        }
        Err(refused) => Notice::failed(refused.sentence()),
    };
    back_to(id, notice)
}

/// Record and history in one file, for whoever helps from outside. Neither holds a token.
pub(crate) async fn export(api: &impl Api, visitor: &Visitor<'_>, id: &str) -> Reply {
    let export = match get::<Value>(api, &format!("/v1/connections/{id}/export")).await {
        Ok(export) => export,
        Err(refused) => return refused.page(visitor),
    };
    let mut body = serde_json::to_string_pretty(&export).expect("what came as JSON goes as JSON");
    body.push('\n');
    Reply::File {
        name: format!("evergrant-{id}.json"),
        body,
    }
}

fn back_to(id: &str, notice: Notice) -> Reply {
    Reply::GoTo {
        location: format!("/dashboard/connections/{id}"),
        notice,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fake, ask, html};
    use super::*;

    fn record() -> Value {
        json!({
            "id": "c1", "app": "crm", "customer": "acme <corp>", "kind": "oauth", "status": "active", "health": "healthy",
            "account": {"id": "1001", "domain": "acme.example", "user": "ann@acme.example"}, "version": 7,
            "scopes": ["oauth", "extra.read"], "missing_scopes": ["crm.objects.contacts.write"],
            "issued_at": "2026-11-24T11:45:00Z", "soft_expires_at": "2026-11-24T12:10:00Z",
            "hard_expires_at": "2026-11-24T12:14:55Z", "expires_at": "2026-11-24T12:15:00Z",
            "refresh_in_progress_until": "2026-11-24T12:00:20Z",
            "redemption": {"version": 7, "attempts": 2, "first_at": "2026-11-24T11:59:00Z", "last_at": "2026-11-24T11:59:50Z"},
            "budget": {
                "calls": {"limit": 110, "left": 87, "per_seconds": 10.0, "rest_until": "2026-11-24T11:59:00Z"},
                "searches": {"limit": 5, "left": 5, "per_seconds": 1.0, "rest_until": "2026-11-24T12:00:30Z"},
            },
            "last_success_at": "2026-11-24T11:59:00Z", "labels": {"tier": "gold"},
        })
    }

    fn api() -> Fake {
        Fake::default()
            .with("GET /v1/connections/c1", 200, record())
            .with("GET /v1/apps?limit=1000", 200, json!({"items": [{"name": "crm", "scopes": ["oauth", "crm.objects.contacts.write"]}], "next_cursor": null}))
            .with("POST /v1/connections/c1/reconnect-link", 200, json!({"url": "https://x.example/connect/r.abc.def", "expires_at": "2026-12-01T12:00:00Z"}))
            .with("GET /v1/connections/c1/events?limit=100", 200, json!({"items": [
                {"id": 9, "at": "2026-11-24T11:59:00Z", "type": "refresh_failed", "detail": "the token endpoint answered <503>", "version": 7, "status_code": 503, "provider_correlation_id": "corr-1"},
                {"id": 8, "at": "2026-11-24T11:45:00Z", "type": "refreshed", "detail": "due", "version": 7},
                {"id": 7, "at": "2026-11-24T11:15:00Z", "type": "refreshed", "detail": "due", "version": 6},
            ], "next_cursor": null}))
    }

    #[test]
    fn one_page_tells_how_it_stands_what_happened_and_how_to_repair_it() {
        let page = html(ask(&api(), Rights::Support, Method::GET, "/connections/c1"), 200);
        for expected in [
            "15 min left",
            "acme.example",
            "crm.objects.contacts.write",
            "Missing",
            "corr-1",
            "status 503",
            "Version 7",
            "https://x.example/connect/r.abc.def",
            "in 7 d",
            "/dashboard/connections/c1/refresh",
            "/dashboard/connections/c1/export",
            "2 attempts on version 7",
            "Calls: 87 of 110 left in 10 s",
            "Searches: none before 12:00:30 UTC, a 429 said",
            "link_days=30",
            "gold",
            "in 20 s",
        ] {
            assert!(page.contains(expected), "{expected}: {page}");
        }
        for inert in ["<corp>", "<503>"] {
            assert!(!page.contains(inert), "{inert}");
        }
        assert!(
            !page.contains("Version 6"),
            "nobody knows whether that began there: {page}"
        );
    }

    #[test]
    fn what_a_key_may_not_do_is_not_offered() {
        let offered = |rights| {
            html(ask(&api(), rights, Method::GET, "/connections/c1"), 200)
                .contains("/connections/c1/disconnect")
        };
        assert!(!offered(Rights::Support));
        assert!(offered(Rights::Admin));
        let page = html(
            ask(&api(), Rights::Support, Method::GET, "/connections/c1/disconnect"),
            403,
        );
        assert!(page.contains("role admin"), "{page}");
    }

    #[test]
    fn nothing_can_be_done_with_what_is_disconnected_and_the_page_says_why() {
        let mut ended = record();
        ended["status"] = json!("disconnected");
        ended["health"] = Value::Null;
        let api = api().with("GET /v1/connections/c1", 200, ended);
        let page = html(ask(&api, Rights::Admin, Method::GET, "/connections/c1"), 200);
        for gone in ["/c1/refresh", "/c1/disconnect", "/connect/r."] {
            assert!(!page.contains(gone), "{gone}: {page}");
        }
        assert!(page.contains("A new connect session"), "{page}");
    }

    #[test]
    fn forms_say_what_they_did_or_why_not() {
        let done = |route: &str, status, body: Value, path: &str| {
            let api = api().with(route, status, body);
            match ask(&api, Rights::Admin, Method::POST, path) {
                Reply::GoTo { location, notice } => {
                    assert_eq!(location, "/dashboard/connections/c1");
                    (notice.good, notice.text)
                }
                other => panic!("{other:?}"),
            }
        };
        let refresh = |status, body| {
            done(
                "POST /v1/connections/c1/refresh",
                status,
                body,
                "/connections/c1/refresh",
            )
        };
        let (good, text) = refresh(200, json!({"redeemed": true, "version_before": 7, "version": 8}));
        assert!(
            good && text.contains("version 8 took the place of version 7"),
            "{text}"
        );
        let (good, text) = refresh(200, json!({"redeemed": false, "version_before": 7, "version": 7}));
        assert!(good && text.contains("Nothing was redeemed"), "{text}");
        let (good, text) = refresh(
            424,
            json!({"title": "t", "detail": "the grant is gone", "action": "Reconnect it."}),
        );
        assert_eq!((good, text.as_str()), (false, "The grant is gone. Reconnect it."));
        let (good, text) = done(
            "DELETE /v1/connections/c1",
            202,
            json!({"revocation": "shared", "access_tokens_valid_until": "2026-11-24T12:15:00Z"}),
            "/connections/c1/disconnect",
        );
        assert!(
            good && text.contains("another live connection") && text.contains("12:15:00 UTC"),
            "{text}"
        );
    }

    #[test]
    fn a_diagnosis_is_shown_check_by_check() {
        let api = api().with("GET /v1/connections/c1/diagnosis", 200, json!({
            "verdict": "cause", "cause": "clock_skew", "summary": "this machine's clock is 93 s ahead", "action": "Set the clock.",
            "checks": [
                {"id": "clock_skew", "result": "found", "evidence": {"offset_seconds": 93, "peer": "<db>"}},
                {"id": "queue_delay", "result": "clear", "evidence": "no call waited"},
            ],
        }));
        let page = html(
            ask(&api, Rights::Support, Method::GET, "/connections/c1/diagnosis"),
            200,
        );
        for expected in [
            "Clock skew",
            "93 s ahead",
            "Set the clock.",
            "Offset seconds 93",
            "No call waited",
            "1 check found nothing",
            "what is wrong lies in how it is used",
            "Queue delay",
        ] {
            assert!(page.contains(expected), "{expected}: {page}");
        }
        assert!(!page.contains("<db>"), "{page}");
        let without = html(
            ask(
                &self::api(),
                Rights::Support,
                Method::GET,
                "/connections/c1/diagnosis",
            ),
            200,
        );
        assert!(without.contains("no doctor"), "{without}");
    }

    #[test]
    fn refreshes_in_a_row_are_one_line_and_nothing_else_is() {
        let event = |id: i64, kind: &str| json!({"id": id, "at": "2026-11-24T11:00:00Z", "type": kind, "detail": "due", "version_before": id - 1, "version": id});
        let kinds = [
            (9, "refreshed"),
            (8, "refreshed"),
            (7, "refreshed"),
            (6, "refresh_failed"),
            (5, "refreshed"),
            (4, "refreshed"),
            (3, "connected"),
        ];
        let events: Vec<Value> = kinds.iter().map(|(id, kind)| event(*id, kind)).collect();
        let api = api()
            .with(
                "GET /v1/connections/c1/events?limit=100",
                200,
                json!({"items": events, "next_cursor": "3"}),
            )
            .with(
                "GET /v1/connections/c1/events?limit=100&cursor=3",
                200,
                json!({"items": [event(2, "refreshed")], "next_cursor": null}),
            );
        let page = html(ask(&api, Rights::Support, Method::GET, "/connections/c1"), 200);
        let places: Vec<_> = [
            "event-9",
            "folded-7",
            "2 earlier refreshes that worked, versions 7 to 8, the first 1 h ago",
            "event-8",
            "event-7",
            "</details>",
            "event-6",
            "event-5",
            "event-4",
            "event-3",
            "/dashboard/connections/c1?older=3#timeline",
        ]
        .iter()
        .map(|text| page.find(text).unwrap_or_else(|| panic!("{text}: {page}")))
        .collect();
        let details = page.find("<details id=\"folded-7\"").expect("a folded line");
        let end = details + page[details..].find("</details>").expect("its end");
        assert!(
            details < places[3] && places[4] < end && end < places[6],
            "{page}"
        );
        assert_eq!(page.matches("folded-").count(), 1, "{page}");
        let page = html(
            ask(&api, Rights::Support, Method::GET, "/connections/c1?older=3"),
            200,
        );
        assert!(page.contains("event-2") && !page.contains("event-9"), "{page}");
        assert!(page.contains("Newest") && !page.contains("older="), "{page}");
    }

    #[test]
    fn an_export_is_a_file_of_the_connections_name() {
        let api = api().with(
            "GET /v1/connections/c1/export",
            200,
            json!({"record": {"id": "c1"}}),
        );
        match ask(&api, Rights::Support, Method::GET, "/connections/c1/export") {
            Reply::File { name, body } => {
                assert_eq!(name, "evergrant-c1.json");
                assert!(body.contains("\"id\": \"c1\""), "{body}");
            }
            other => panic!("{other:?}"),
        }
    }
}
