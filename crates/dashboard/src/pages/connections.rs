//! The list: search, filter, sort, one page after the other.

use askama::Template;
use jiff::Timestamp;

use super::{Frame, Query, Reply, Visitor, query_of, show};
use crate::api::{Api, get};
use crate::chart::Gauge;
use crate::records::{App, Connection, List};
use crate::words::{HEALTHS, Tone, When, health, sentence};

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
    pub(crate) health: &'static str,
    pub(crate) tone: Tone,
    pub(crate) why: String,
    pub(crate) gauge: Option<Gauge>,
    pub(crate) last_refresh: Option<When>,
    pub(crate) last_success: Option<When>,
    pub(crate) failures: u32,
}

impl Row {
    pub(crate) fn new(connection: Connection, app: Option<&App>, now: Timestamp) -> Self {
        let (health, tone) = health(connection.health.as_deref());
        let (account, domain) = match connection.account.clone() {
            Some(account) => (Some(account.id), account.domain),
            None => (None, None),
        };
        Self {
            health,
            tone,
            why: why(&connection, app, now),
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

/// Why it stands as it does, in one sentence, whatever its health.
pub(crate) fn why(connection: &Connection, app: Option<&App>, now: Timestamp) -> String {
    if let Some(app) = app
        && app.health.is_rejected()
        && connection.status == "active"
    {
        return format!(
            "The provider refuses the credentials of app {}, so no token can be refreshed.",
            app.name
        );
    }
    if let Some(why) = &connection.why {
        return sentence(why);
    }
    match connection.missing_scopes.len() {
        0 => {}
        1 => return "One scope that the app needs was not granted.".to_owned(),
        count => return format!("{count} scopes that the app needs were not granted."),
    }
    match connection.last_success_at {
        Some(at) => format!("The last call succeeded {}.", When::new(at, now).relative),
        None => "Nothing stands against it.".to_owned(),
    }
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

    fn apps() -> Value {
        json!({"items": [{"name": "crm", "health": {"status": "ok"}}], "next_cursor": null})
    }

    #[test]
    fn a_list_shows_names_as_text_and_leads_on_with_its_filters() {
        let hostile = "<img src=x onerror=alert(1)>\"'";
        let row = json!({
            "id": "c1", "app": "crm", "customer": hostile, "kind": "oauth", "status": "active", "health": "degraded",
            "why": "refreshing failed <b>2</b> time(s)", "account": {"id": "1001", "domain": "<svg/onload=x>"},
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
