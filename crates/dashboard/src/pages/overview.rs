//! The first page: what needs a person, and how everything stands.

use askama::Template;

use super::{Frame, Reply, Visitor, show};
use crate::api::{Api, get};
use crate::records::{App, Connection, List};
use crate::words::{Tone, When, sentence};

/// How much of what needs a person is shown; the rest is a link away.
const SHOWN: usize = 8;

#[derive(Template)]
#[template(path = "overview.html")]
struct Page<'a> {
    frame: Frame<'a>,
    needed: Vec<Need>,
    /// Whether there are more connections to reconnect than are shown.
    more: bool,
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
    let now = visitor.now;
    let refused = apps
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
        });
    let more = waiting.items.len() > SHOWN;
    let lost = waiting.items.iter().take(SHOWN).map(|connection| Need {
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
    });
    show(&Page {
        frame: Frame::new(visitor, "overview", "Overview").live("/dashboard/live", 5),
        needed: refused.chain(lost).collect(),
        more,
    })
}
