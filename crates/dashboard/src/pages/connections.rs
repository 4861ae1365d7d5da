//! The list: search, filter, sort, one page after the other.

use askama::Template;
use jiff::Timestamp;

use super::{Frame, Query, Reply, Visitor, query_of, show};
use crate::api::{Api, get};
use crate::chart::Gauge;
use crate::records::{App, Connection, List};
use crate::words::{HEALTHS, Piece, Tone, When, health, prose, told};

/// Rows on one page.
const ROWS: &str = "50";

/// By what the list can be sorted: the API's word, and what it is called.
const SORTS: [(&str, &str); 6] = [
    ("", "Oldest first"),
    ("-created", "Newest first"),
    ("customer", "Customer"),
    ("expires_at", "Time left"),
    ("-last_call_at", "Last call"),
    ("-status_since", "Last change of status"),
];

const STATUSES: [(&str, &str); 3] = [
    ("active", "Active"),
    ("reconnect_required", "Reconnect needed"),
    ("disconnected", "Disconnected"),
];

#[derive(Template)]
#[template(path = "connections.html")]
struct Page<'a> {
    frame: Frame<'a>,
    q: &'a str,
    /// The app that is asked for, or none.
    app: &'a str,
    /// Where the doctor looks at all of them.
    examine: String,
    apps: Vec<Choice>,
    statuses: Vec<Choice>,
    sorts: Vec<Choice>,
    healths: Vec<Pill>,
    /// The health that is kept when the form is sent.
    health: &'a str,
    rows: Vec<Row>,
    is_filtered: bool,
    first: Option<String>,
    next: Option<String>,
}

/// One of the things that a list of choices offers.
struct Choice {
    value: String,
    name: String,
    is_chosen: bool,
}

/// A health to filter by.
struct Pill {
    name: &'static str,
    tone: Option<Tone>,
    href: String,
    is_chosen: bool,
}

/// One connection in the list.
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) customer: String,
    pub(crate) app: String,
    pub(crate) account: Option<String>,
    pub(crate) domain: Option<String>,
    pub(crate) standing: Standing,
    pub(crate) gauge: Option<Gauge>,
    pub(crate) last_refresh: Option<When>,
    pub(crate) last_success: Option<When>,
    pub(crate) failures: u32,
}

impl Row {
    pub(crate) fn new(connection: Connection, app: Option<&App>, now: Timestamp) -> Self {
        let (account, domain) = match connection.account.clone() {
            Some(account) => (Some(account.id), account.domain),
            None => (None, None),
        };
        Self {
            standing: standing(&connection, app, now),
            gauge: gauge(&connection, now),
            last_refresh: When::maybe(connection.last_refresh_at, now),
            last_success: When::maybe(connection.last_success_at, now),
            failures: connection.failures_since_success,
            id: connection.id,
            customer: connection.customer,
            app: connection.app,
            account,
            domain,
        }
    }
}

/// What is left of its token; nothing where nobody knows its end.
pub(crate) fn gauge(connection: &Connection, now: Timestamp) -> Option<Gauge> {
    connection.expires_at.map(|expires| {
        Gauge::new(
            connection.issued_at,
            connection.soft_expires_at,
            connection.hard_expires_at,
            expires,
            now,
        )
    })
}

/// How a connection stands: a word, how that is to be taken, and why in one sentence.
pub(crate) struct Standing {
    pub(crate) name: String,
    pub(crate) tone: Tone,
    pub(crate) why: Vec<Piece>,
}

/// The API's health as it is shown. It speaks of the connection alone, so what its app does to it is added here.
pub(crate) fn standing(connection: &Connection, app: Option<&App>, now: Timestamp) -> Standing {
    if let Some(app) = app
        && app.health.is_rejected()
        && connection.status == "active"
        && connection.is_oauth()
    {
        return without_its_app(connection, app, now);
    }
    let (name, tone) = health(connection.health.as_deref());
    Standing {
        name: name.to_owned(),
        tone,
        why: why(connection, now),
    }
}

/// Its token is the last until the app's credentials are right again.
fn without_its_app(connection: &Connection, app: &App, now: Timestamp) -> Standing {
    match connection.expires_at.filter(|end| *end > now) {
        Some(end) => Standing {
            name: format!("Healthy until {}", end.strftime("%H:%M")),
            tone: Tone::Warn,
            why: told(
                "It stops ",
                end,
                &format!(
                    ", when its token ends: the provider refuses the credentials of app {}.",
                    app.name
                ),
                now,
            ),
        },
        None => Standing {
            name: "Stopped by its app".to_owned(),
            tone: Tone::Bad,
            why: prose(
                &format!(
                    "its token has ended and cannot be refreshed: the provider refuses the credentials of app {}",
                    app.name
                ),
                now,
            ),
        },
    }
}

/// Why it stands as it does, in one sentence, whatever its health.
fn why(connection: &Connection, now: Timestamp) -> Vec<Piece> {
    let last_said = what_the_last_call_said(connection);
    let is_unverified = connection.health.as_deref() == Some("unverified");
    match (&connection.why, last_said) {
        // That no call has succeeded yet has a reason.
        (Some(_), Some((at, what))) if is_unverified => told(
            "No call has succeeded yet: the last one came back ",
            at,
            what,
            now,
        ),
        (Some(why), _) => prose(why, now),
        (None, Some((at, what))) => told("The last call came back ", at, what, now),
        (None, None) => match (connection.missing_scopes.len(), connection.last_success_at) {
            (0, Some(at)) => told("The last call succeeded ", at, ".", now),
            (0, None) => prose("nothing stands against it", now),
            (1, _) => prose("one scope that the app needs was not granted", now),
            (count, _) => prose(
                &format!("{count} scopes that the app needs were not granted"),
                now,
            ),
        },
    }
}

/// What the provider had against the last call, where none has succeeded since.
fn what_the_last_call_said(connection: &Connection) -> Option<(Timestamp, &'static str)> {
    let forbidden = (
        connection.last_forbidden_at,
        " with 403: a permission is missing.",
    );
    let limited = (
        connection.last_rate_limited_at,
        " with 429: there were too many at a time.",
    );
    let (at, what) = forbidden.max(limited);
    at.filter(|at| connection.last_success_at.is_none_or(|success| success < *at))
        .map(|at| (at, what))
}

pub(crate) async fn page(api: &impl Api, visitor: &Visitor<'_>, query: &Query) -> Reply {
    let known = |name: &str, words: &[&str]| {
        query
            .one(name)
            .filter(|word| words.contains(word))
            .unwrap_or_default()
    };
    let q = query.one("q").unwrap_or_default();
    let app = query.one("app").unwrap_or_default();
    let status = known("status", &STATUSES.map(|(word, _)| word));
    let health = known("health", &HEALTHS.map(|(word, ..)| word));
    let sort = known("sort", &SORTS.map(|(word, _)| word));
    let cursor = query.one("cursor").unwrap_or_default();
    let asked = [
        ("q", q),
        ("app", app),
        ("status", status),
        ("health", health),
        ("sort", sort),
    ];

    let path = query_of(asked.into_iter().chain([("limit", ROWS), ("cursor", cursor)]));
    let apps = match get::<List<App>>(api, "/v1/apps?limit=1000").await {
        Ok(apps) => apps.items,
        Err(refused) => return refused.page(visitor),
    };
    let list: List<Connection> = match get(api, &format!("/v1/connections?{path}")).await {
        Ok(list) => list,
        Err(refused) => return refused.page(visitor),
    };
    let here = |change: &[(&'static str, &str)]| {
        let pairs = asked
            .into_iter()
            .filter(|(name, _)| !change.iter().any(|(changed, _)| changed == name));
        let query = query_of(pairs.chain(change.iter().copied()));
        format!(
            "/dashboard/connections{}{query}",
            if query.is_empty() { "" } else { "?" }
        )
    };
    let choices = |all: &[(&str, &str)], chosen: &str| {
        all.iter()
            .map(|(value, name)| Choice {
                value: (*value).to_owned(),
                name: (*name).to_owned(),
                is_chosen: *value == chosen,
            })
            .collect()
    };
    let all = Pill {
        name: "All",
        tone: None,
        href: here(&[("health", "")]),
        is_chosen: health.is_empty(),
    };
    let healths = HEALTHS.map(|(word, name, tone)| Pill {
        name,
        tone: Some(tone),
        href: here(&[("health", word)]),
        is_chosen: word == health,
    });
    let is_first = cursor.is_empty();
    let next = list
        .next_cursor
        .as_deref()
        .map(|cursor| here(&[("cursor", cursor)]));
    let rows = list
        .items
        .into_iter()
        .map(|connection| {
            let app = apps.iter().find(|app| app.name == connection.app);
            Row::new(connection, app, visitor.now)
        })
        .collect();
    show(&Page {
        frame: Frame::new(visitor, "connections", "Connections").live("/dashboard/live", 15),
        q,
        app,
        examine: format!("/dashboard/diagnosis?{}", query_of([("app", app)])),
        apps: apps
            .iter()
            .map(|known| Choice {
                value: known.name.clone(),
                name: known.name.clone(),
                is_chosen: known.name == app,
            })
            .collect(),
        statuses: choices(&STATUSES, status),
        sorts: choices(&SORTS, sort),
        healths: std::iter::once(all).chain(healths).collect(),
        health,
        rows,
        is_filtered: asked[..4].iter().any(|(_, value)| !value.is_empty()),
        first: (!is_first).then(|| here(&[])),
        next,
    })
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};

    use super::super::Rights;
    use super::super::tests::{Fake, ask, html};
    use super::*;

    fn apps() -> Value {
        json!({"items": [{"name": "crm", "health": {"status": "ok"}}], "next_cursor": null})
    }

    #[test]
    fn a_list_shows_names_as_text_and_leads_on_with_its_filters() {
        let hostile = "<img src=x onerror=alert(1)>\"'";
        let row = json!({
            "id": "c1", "app": "crm", "customer": hostile, "kind": "oauth", "status": "active", "health": "degraded",
            "why": "refreshing failed <b>2</b> times", "account": {"id": "1001", "domain": "<svg/onload=x>"},
            "issued_at": "2026-11-24T11:50:00Z", "soft_expires_at": "2026-11-24T12:15:00Z",
            "hard_expires_at": "2026-11-24T12:19:55Z", "expires_at": "2026-11-24T12:20:00Z", "failures_since_success": 2,
        });
        let api = Fake::default().with("GET /v1/apps?limit=1000", 200, apps()).with(
            "GET /v1/connections?q=a+%26b&health=degraded&limit=50&cursor=CUR",
            200,
            json!({"items": [row], "next_cursor": "NEXT"}),
        );
        let reply = ask(
            &api,
            Rights::Support,
            Method::GET,
            "/connections?q=a+%26b&health=degraded&cursor=CUR&status=nonsense",
        );
        let page = html(reply, 200);
        for inert in ["<img", "<b>2", "<svg/onload"] {
            assert!(!page.contains(inert), "{inert}: {page}");
        }
        for expected in [
            "20 min left",
            "/dashboard/connections/c1",
            "Degraded",
            "cursor=NEXT",
            "q=a+%26b",
        ] {
            assert!(page.contains(expected), "{expected}: {page}");
        }
    }

    #[test]
    fn why_a_connection_stands_as_it_does_is_one_sentence() {
        let check = |app: Value, more: Value, name: &str, says: &str| {
            let mut record = json!({"id": "c1", "app": "crm", "customer": "acme", "kind": "oauth", "status": "active", "health": "healthy"});
            for (member, value) in more.as_object().expect("members") {
                record[member] = value.clone();
            }
            let record: Connection = serde_json::from_value(record).expect("a record");
            let app: App = serde_json::from_value(app).expect("an app");
            let now = "2026-11-24T12:00:00Z".parse().expect("a literal time");
            let standing = standing(&record, Some(&app), now);
            let why: String = standing
                .why
                .iter()
                .map(|piece| match piece {
                    Piece::Words(words) => words.clone(),
                    Piece::Time(at) | Piece::Ago(at) => at.relative.clone(),
                })
                .collect();
            assert_eq!((standing.name.as_str(), why.as_str()), (name, says));
        };
        let ok = json!({"name": "crm", "health": {"status": "ok"}});
        let refused = json!({"name": "crm", "health": {"status": "credentials_rejected"}});
        let at = |minute: u32| format!("2026-11-24T11:{minute:02}:00Z");

        check(ok.clone(), json!({}), "Healthy", "Nothing stands against it.");
        check(
            ok.clone(),
            json!({"last_success_at": at(57)}),
            "Healthy",
            "The last call succeeded 3 min ago.",
        );
        check(
            ok.clone(),
            json!({"last_success_at": at(50), "last_403_at": at(57)}),
            "Healthy",
            "The last call came back 3 min ago with 403: a permission is missing.",
        );
        check(
            ok.clone(),
            json!({"last_success_at": at(58), "last_403_at": at(57)}),
            "Healthy",
            "The last call succeeded 2 min ago.",
        );
        check(
            ok.clone(),
            json!({"health": "unverified", "why": "no call has succeeded since", "last_429_at": at(58), "last_403_at": at(57)}),
            "Not yet verified",
            "No call has succeeded yet: the last one came back 2 min ago with 429: there were too many at a time.",
        );
        check(
            ok.clone(),
            json!({"missing_scopes": ["a", "b"]}),
            "Healthy",
            "2 scopes that the app needs were not granted.",
        );
        check(
            ok,
            json!({"status": "disconnected", "health": null, "why": "somebody ended it", "last_403_at": at(57)}),
            "Disconnected",
            "Somebody ended it.",
        );
        check(
            refused.clone(),
            json!({"expires_at": "2026-11-24T12:15:00Z"}),
            "Healthy until 12:15",
            "It stops in 15 min, when its token ends: the provider refuses the credentials of app crm.",
        );
        check(
            refused.clone(),
            json!({"expires_at": at(59)}),
            "Stopped by its app",
            "Its token has ended and cannot be refreshed: the provider refuses the credentials of app crm.",
        );
        check(
            refused,
            json!({"status": "reconnect_required", "health": "reconnect_required", "why": "the grant is gone"}),
            "Reconnect needed",
            "The grant is gone.",
        );
    }

    #[test]
    fn an_empty_list_says_why_it_is_empty() {
        let empty = json!({"items": [], "next_cursor": null});
        let api = Fake::default()
            .with("GET /v1/apps?limit=1000", 200, apps())
            .with("GET /v1/connections?limit=50", 200, empty.clone())
            .with("GET /v1/connections?q=zzz&limit=50", 200, empty);
        let none = html(ask(&api, Rights::Support, Method::GET, "/connections"), 200);
        assert!(none.contains("Nobody is connected yet"), "{none}");
        let filtered = html(ask(&api, Rights::Support, Method::GET, "/connections?q=zzz"), 200);
        assert!(filtered.contains("Nothing matches"), "{filtered}");
    }
}
