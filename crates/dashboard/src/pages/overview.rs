//! The first page: what needs a person, and how everything stands.

use std::collections::BTreeMap;

use askama::Template;
use jiff::Timestamp;

use super::{Frame, Reply, Visitor, query_of, show};
use crate::api::{Api, get};
use crate::chart::{Columns, Series, Share, shares};
use crate::records::{App, Connection, Event, List, Overview, Tallied};
use crate::words::{HEALTHS, Tone, When, counted, number, sentence};

/// How much of what needs a person is shown; the rest is a link away.
const SHOWN: usize = 8;

/// How many connections are named in whose calls something goes wrong.
const NOTED: usize = 5;
/// How far back that is looked for, in seconds: a day.
const NOTED_WITHIN: i64 = 86_400;
/// What the history calls that. A refresh does not help with any of it, and no health tells of it.
const NOTED_KINDS: [&str; 5] = [
    "account_mismatch",
    "double_redemption",
    "outcome_unknown",
    "permission_denied",
    "token_reported",
];
/// Calls whose jobs had waited for so long that a token in them may have ended. The words are the API's.
const LONG_DELAYS: [&str; 3] = ["delay:below_600", "delay:below_1800", "delay:more"];

/// How long access tokens still lived when calls left with them, from the least. The words are the API's.
const LIVES: [(&str, Series); 7] = [
    (
        "ttl:below_0",
        Series {
            name: "ended",
            class: "life-0",
        },
    ),
    (
        "ttl:below_30",
        Series {
            name: "under 30 s",
            class: "life-1",
        },
    ),
    (
        "ttl:below_120",
        Series {
            name: "under 2 min",
            class: "life-2",
        },
    ),
    (
        "ttl:below_300",
        Series {
            name: "under 5 min",
            class: "life-3",
        },
    ),
    (
        "ttl:below_600",
        Series {
            name: "under 10 min",
            class: "life-4",
        },
    ),
    (
        "ttl:below_1800",
        Series {
            name: "under 30 min",
            class: "life-5",
        },
    ),
    (
        "ttl:more",
        Series {
            name: "longer",
            class: "life-6",
        },
    ),
];

const REDEMPTIONS: [Series; 2] = [
    Series {
        name: "brought a token set",
        class: "stored",
    },
    Series {
        name: "brought none",
        class: "without",
    },
];

#[derive(Template)]
#[template(path = "overview.html")]
struct Page<'a> {
    frame: Frame<'a>,
    needed: Vec<Need>,
    needed_count: String,
    /// Whether there are more connections to reconnect than are shown.
    more: bool,
    /// What goes wrong in calls of connections that are healthy.
    noted: Vec<Need>,
    counts: Option<Counts>,
    charts: Vec<Chart>,
}

/// One thing that does not mend itself.
struct Need {
    tone: Tone,
    title: String,
    text: String,
    since: Option<When>,
    /// The one action, and where it is.
    action: &'static str,
    href: String,
}

/// How many connections stand how.
struct Counts {
    total: String,
    shares: Vec<Share>,
    tiles: Vec<Tile>,
    /// By name, each with a count for every tile.
    apps: Vec<(String, Vec<String>)>,
}

struct Tile {
    name: &'static str,
    tone: Tone,
    count: String,
    href: String,
}

struct Chart {
    id: &'static str,
    title: &'static str,
    /// What it is good for.
    says: &'static str,
    /// What stands there while there is nothing.
    none: &'static str,
    columns: Columns,
    width: u32,
}

pub(crate) async fn page(api: &impl Api, visitor: &Visitor<'_>) -> Reply {
    let apps: List<App> = match get(api, "/v1/apps?limit=1000").await {
        Ok(apps) => apps,
        Err(refused) => return refused.page(visitor),
    };
    let path = format!("/v1/connections?status=reconnect_required&limit={}", SHOWN + 1);
    let waiting: List<Connection> = match get(api, &path).await {
        Ok(waiting) => waiting,
        Err(refused) => return refused.page(visitor),
    };
    // An older process of the fleet has none.
    let overview = get::<Overview>(api, "/v1/overview").await.ok();
    let noted = noted(api, &waiting, overview.as_ref(), visitor.now).await;
    let more = waiting.items.len() > SHOWN;
    let needed = needed(&apps, &waiting, overview.as_ref(), visitor.now);
    show(&Page {
        frame: Frame::new(visitor, "overview", "Overview").live("/dashboard/live", 5),
        needed_count: needed.len().to_string() + if more { "+" } else { "" },
        needed,
        more,
        noted,
        counts: overview.as_ref().map(counts),
        charts: overview
            .as_ref()
            .map(|overview| charts(overview, visitor.now))
            .unwrap_or_default(),
    })
}

fn needed(
    apps: &List<App>,
    waiting: &List<Connection>,
    overview: Option<&Overview>,
    now: Timestamp,
) -> Vec<Need> {
    let mut needed: Vec<Need> = apps
        .items
        .iter()
        .filter(|app| app.health.is_rejected())
        .map(|app| Need {
            tone: Tone::Bad,
            title: format!("App {}: the provider refuses its credentials", app.name),
            text: "None of its tokens can be refreshed until client id and secret are right.".to_owned(),
            since: When::maybe(app.health.since, now),
            action: "Check credentials",
            href: "/dashboard/apps".to_owned(),
        })
        .collect();
    let entries = overview
        .and_then(|overview| overview.lifeboat_entries)
        .unwrap_or(0);
    if entries > 0 {
        needed.push(Need {
            tone: Tone::Bad,
            title: format!("{} in the lifeboat", counted(entries, "answer")),
            text: "New tokens wait for the store to take them: see that it answers, and keep the lifeboat's folder.".to_owned(),
            since: None,
            action: "",
            href: String::new(),
        });
    }
    let dead = overview.map(|overview| &overview.dead_letters);
    if let Some(dead) = dead.filter(|dead| dead.count > 0) {
        needed.push(Need {
            tone: Tone::Warn,
            title: format!("{} could not be delivered", counted(dead.count, "webhook")),
            text: "Their receiver did not take them in 24 hours.".to_owned(),
            since: When::maybe(dead.oldest_at, now),
            action: "Look and resend",
            href: "/dashboard/webhooks".to_owned(),
        });
    }
    needed.extend(waiting.items.iter().take(SHOWN).map(|connection| {
        Need {
            tone: Tone::Bad,
            title: connection.customer.clone(),
            text: sentence(
                connection
                    .why
                    .as_deref()
                    .unwrap_or("the customer must connect again"),
            ),
            since: When::maybe(connection.status_since, now),
            action: "Get reconnect link",
            href: format!("/dashboard/connections/{}#reconnect", connection.id),
        }
    }));
    needed
}

/// Connections whose calls go wrong though their grants live: what to look at next.
async fn noted(
    api: &impl Api,
    waiting: &List<Connection>,
    overview: Option<&Overview>,
    now: Timestamp,
) -> Vec<Need> {
    let kinds = NOTED_KINDS.map(|kind| ("type", kind));
    let query = query_of(kinds.into_iter().chain([("limit", "200")]));
    let events = get::<List<Event>>(api, &format!("/v1/events?{query}")).await;
    let since = now.as_second() - NOTED_WITHIN;
    let mut latest: Vec<(String, Event, u64)> = Vec::new();
    for event in events.map(|list| list.items).unwrap_or_default() {
        let Some(connection) = event.connection.clone() else {
            continue;
        };
        if event.at.is_none_or(|at| at.as_second() < since)
            || waiting.items.iter().any(|waits| waits.id == connection)
        {
            continue;
        }
        match latest.iter_mut().find(|(known, ..)| *known == connection) {
            Some((_, first, count)) => *count += u64::from(first.kind == event.kind),
            None => latest.push((connection, event, 1)),
        }
    }
    let mut noted = Vec::new();
    for (id, event, count) in latest.into_iter().take(NOTED) {
        let Ok(connection) = get::<Connection>(api, &format!("/v1/connections/{id}")).await else {
            continue;
        };
        // One that ended, or that stands among those that wait.
        if connection.status != "active" {
            continue;
        }
        let (_, tone) = crate::words::event(&event.kind);
        let times = match count {
            1 => String::new(),
            count => format!(" {} times in a day.", number(count)),
        };
        noted.push(Need {
            tone,
            title: connection.customer,
            text: sentence(&event.detail) + &times,
            since: When::maybe(event.at, now),
            action: "Diagnose",
            href: format!("/dashboard/connections/{id}/diagnosis#diagnosis"),
        });
    }
    for app in overview.iter().flat_map(|overview| &overview.apps) {
        let late: u64 = LONG_DELAYS
            .iter()
            .filter_map(|word| app.last_day.get(*word))
            .sum();
        if late > 0 {
            noted.push(Need {
                tone: Tone::Warn,
                title: format!("App {}", app.app),
                text: format!(
                    "{} of the last day came from jobs that had waited over 5 minutes. A job that carries a token may find it ended; one that carries the connection's id does not.",
                    counted(late, "call")
                ),
                since: None,
                action: "Examine its connections",
                href: format!("/dashboard/diagnosis?{}", query_of([("app", app.app.as_str())])),
            });
        }
    }
    noted
}

fn counts(overview: &Overview) -> Counts {
    let mut by_health: BTreeMap<&str, u64> = BTreeMap::new();
    for (health, count) in overview.apps.iter().flat_map(|app| &app.connections) {
        *by_health.entry(health).or_default() += count;
    }
    let of = |word: &str| by_health.get(word).copied().unwrap_or_default();
    let total: u64 = HEALTHS.iter().map(|(word, ..)| of(word)).sum();
    let from_good: Vec<(u64, &'static str)> = HEALTHS
        .iter()
        .rev()
        .map(|(word, _, tone)| (of(word), tone.as_str()))
        .collect();
    Counts {
        total: counted(total, "live connection"),
        shares: shares(&from_good),
        tiles: HEALTHS
            .iter()
            .rev()
            .map(|(word, name, tone)| Tile {
                name,
                tone: *tone,
                count: number(of(word)),
                href: format!("/dashboard/connections?{}", query_of([("health", *word)])),
            })
            .collect(),
        apps: overview
            .apps
            .iter()
            .map(|app| {
                let of = |word: &str| app.connections.get(word).copied().unwrap_or_default();
                let counts = HEALTHS.iter().rev().map(|(word, ..)| number(of(word)));
                (app.app.clone(), counts.collect())
            })
            .collect(),
    }
}

/// The minutes of the last hour, each with what all apps counted in it by these words.
fn by_minute<const N: usize>(
    tallies: impl Iterator<Item = impl IntoIterator<Item = Tallied>>,
    words: [&str; N],
    now: Timestamp,
) -> Vec<(Timestamp, Vec<u64>)> {
    const MINUTES: i64 = 60;
    let this = now.as_second().div_euclid(60);
    let mut minutes: Vec<(Timestamp, Vec<u64>)> = (this - MINUTES + 1..=this)
        .filter_map(|minute| Some((Timestamp::from_second(minute * 60).ok()?, vec![0; N])))
        .collect();
    for tallied in tallies.flatten() {
        let place = tallied.at.as_second().div_euclid(60) - (this - MINUTES + 1);
        let Some((_, counts)) = usize::try_from(place)
            .ok()
            .and_then(|place| minutes.get_mut(place))
        else {
            continue;
        };
        for (count, word) in counts.iter_mut().zip(words) {
            *count += tallied.counts.get(word).copied().unwrap_or_default();
        }
    }
    minutes
}

fn charts(overview: &Overview, now: Timestamp) -> Vec<Chart> {
    let lives = by_minute(
        overview.apps.iter().map(|app| app.calls_by_ttl_last_hour.clone()),
        LIVES.map(|(word, _)| word),
        now,
    );
    let mut redemptions = by_minute(
        overview.apps.iter().map(|app| app.refreshes_last_hour.clone()),
        ["stored", "redeemed"],
        now,
    );
    for (_, counts) in &mut redemptions {
        // What a minute presented may land in the next.
        counts[1] = counts[1].saturating_sub(counts[0]);
    }
    vec![
        Chart {
            id: "lives",
            title: "Calls by remaining lifetime",
            says: "How long a call's token still lived when it left. Nothing should be yellow or red.",
            none: "No call has come in the last hour. If one should have: look at the worker or trigger that makes it.",
            width: Columns::width(lives.len()),
            columns: Columns::new(&LIVES.map(|(_, series)| series), &lives),
        },
        Chart {
            id: "redemptions",
            title: "Redemptions and token sets",
            says: "Every refresh token that was presented should have brought a token set that was stored.",
            none: "Nothing had to be refreshed in the last hour.",
            width: Columns::width(redemptions.len()),
            columns: Columns::new(&REDEMPTIONS, &redemptions),
        },
    ]
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};

    use super::super::Rights;
    use super::super::tests::{Fake, ask, html};

    fn quiet() -> Fake {
        let none = json!({"items": [], "next_cursor": null});
        Fake::default()
            .with(
                "GET /v1/apps?limit=1000",
                200,
                json!({"items": [{"name": "crm", "health": {"status": "ok"}}], "next_cursor": null}),
            )
            .with("GET /v1/connections?status=reconnect_required&limit=9", 200, none)
    }

    fn overview() -> Value {
        json!({
            "apps": [
                {
                    "app": "crm", "connections": {"healthy": 12_480, "degraded": 3, "disconnected": 7},
                    "calls_by_ttl_last_hour": [
                        {"at": "2026-11-24T10:00:00Z", "counts": {"ttl:more": 9999}},
                        {"at": "2026-11-24T11:30:00Z", "counts": {"ttl:more": 40, "ttl:below_30": 2}},
                    ],
                    "refreshes_last_hour": [{"at": "2026-11-24T11:30:00Z", "counts": {"redeemed": 5, "stored": 4}}],
                },
                {"app": "other", "connections": {"reconnect_required": 2}},
            ],
            "dead_letters": {"count": 2, "oldest_at": "2026-11-24T09:00:00Z"},
            "lifeboat_entries": 1,
        })
    }

    #[test]
    fn where_nobody_is_needed_the_first_page_says_so() {
        let page = html(ask(&quiet(), Rights::Support, Method::GET, ""), 200);
        assert!(page.contains("nobody has to do anything"), "{page}");
    }

    #[test]
    fn what_needs_a_person_comes_first_each_with_its_one_action() {
        let waiting = |number: u32| json!({"id": format!("c{number}"), "customer": "<b>acme</b>", "status": "reconnect_required", "why": "the provider refused the grant", "status_since": "2026-11-24T11:00:00Z"});
        let many: Vec<Value> = (0..9).map(waiting).collect();
        let api = quiet()
            .with("GET /v1/apps?limit=1000", 200, json!({"items": [{"name": "crm", "health": {"status": "credentials_rejected", "code": "invalid_client"}}], "next_cursor": null}))
            .with("GET /v1/connections?status=reconnect_required&limit=9", 200, json!({"items": many, "next_cursor": "x"}))
            .with("GET /v1/overview", 200, overview());
        let page = html(ask(&api, Rights::Support, Method::GET, ""), 200);
        let order = [
            "App crm: the provider refuses",
            "1 answer in the lifeboat",
            "2 webhooks could not",
            "c0#reconnect",
            "c7#reconnect",
            "All connections that need",
            "id=\"health\"",
        ];
        let places: Vec<_> = order
            .iter()
            .map(|text| page.find(text).unwrap_or_else(|| panic!("{text}: {page}")))
            .collect();
        assert!(places.is_sorted(), "{places:?}");
        assert!(!page.contains("c8#") && !page.contains("<b>acme"), "{page}");
    }

    #[test]
    fn what_goes_wrong_in_calls_is_noted_beside_it() {
        let kinds = super::NOTED_KINDS.map(|kind| format!("type={kind}")).join("&");
        let event = |id: u32, connection: &str, kind: &str, at: &str| json!({"id": id, "connection": connection, "type": kind, "at": at, "detail": "a <call> came back 403"});
        let api = quiet()
            .with("GET /v1/connections?status=reconnect_required&limit=9", 200, json!({"items": [{"id": "lost", "customer": "lost", "status": "reconnect_required"}], "next_cursor": null}))
            .with(&format!("GET /v1/events?{kinds}&limit=200"), 200, json!({"items": [
                event(9, "lost", "token_reported", "2026-11-24T11:59:00Z"),
                event(8, "c1", "permission_denied", "2026-11-24T11:58:00Z"),
                event(7, "c1", "permission_denied", "2026-11-24T11:57:00Z"),
                event(6, "gone", "permission_denied", "2026-11-24T11:57:00Z"),
                event(5, "c2", "permission_denied", "2026-11-23T11:57:00Z"),
            ], "next_cursor": null}))
            .with("GET /v1/connections/c1", 200, json!({"id": "c1", "customer": "<b>wayne</b>", "status": "active"}))
            .with("GET /v1/connections/c2", 200, json!({"id": "c2", "customer": "yesterday", "status": "active"}))
            .with("GET /v1/connections/gone", 200, json!({"id": "gone", "customer": "gone", "status": "disconnected"}))
            .with("GET /v1/overview", 200, json!({"apps": [{"app": "crm", "last_day": {"delay:below_600": 4, "delay:more": 1, "delay:below_30": 9}}]}));
        let page = html(ask(&api, Rights::Support, Method::GET, ""), 200);
        for expected in [
            "A &#60;call&#62; came back 403. 2 times in a day.",
            "/dashboard/connections/c1/diagnosis",
            "5 calls of the last day came from jobs",
            "/dashboard/diagnosis?app=crm",
        ] {
            assert!(page.contains(expected), "{expected}: {page}");
        }
        for absent in ["lost/diagnosis", "yesterday", "gone/diagnosis", "<b>wayne"] {
            assert!(!page.contains(absent), "{absent}: {page}");
        }
    }

    #[test]
    fn counts_and_charts_show_the_apis_numbers_also_as_tables() {
        let api = quiet().with("GET /v1/overview", 200, overview());
        let page = html(ask(&api, Rights::Support, Method::GET, ""), 200);
        for expected in [
            "12\u{202f}485 live connections",
            "health=degraded",
            "app=other",
            "Calls by remaining lifetime",
            "under 30 s <strong>2</strong>",
            "longer <strong>40</strong>",
            "brought none <strong>1</strong>",
            "11:30",
        ] {
            assert!(page.contains(expected), "{expected}: {page}");
        }
    }
}
