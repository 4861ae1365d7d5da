//! The webhooks: what could not be delivered, and what else was sent lately.

use askama::Template;

use super::{Frame, Query, Reply, Visitor, query_of, show};
use crate::api::{Api, get, post};
use crate::notice::Notice;
use crate::records::{Delivery, List};
use crate::words::{Tone, When, name_of, sentence};

/// Rows on one page.
const ROWS: &str = "50";

const STATES: [(&str, &str); 4] = [
    ("dead", "Could not be delivered"),
    ("pending", "On its way"),
    ("delivered", "Delivered"),
    ("all", "All"),
];

#[derive(Template)]
#[template(path = "webhooks.html")]
struct Page<'a> {
    frame: Frame<'a>,
    /// Name, address, whether it is this one.
    states: Vec<(&'static str, String, bool)>,
    state: &'a str,
    rows: Vec<Row>,
    next: Option<String>,
    /// Where there are none at all: why.
    missing: Option<String>,
}

struct Row {
    id: String,
    what: String,
    url: String,
    connection: Option<String>,
    whose: String,
    tone: Tone,
    state: &'static str,
    why: String,
    at: Option<When>,
    next_try: Option<When>,
    tries: u32,
    may_resend: bool,
}

pub(crate) async fn page(api: &impl Api, visitor: &Visitor<'_>, query: &Query) -> Reply {
    let state = query
        .one("state")
        .filter(|state| STATES.iter().any(|(known, _)| known == state))
        .unwrap_or(STATES[0].0);
    let cursor = query.one("cursor").unwrap_or_default();
    let asked = if state == "all" { "" } else { state };
    let path = query_of([("state", asked), ("limit", ROWS), ("cursor", cursor)]);
    let list = get::<List<Delivery>>(api, &format!("/v1/webhooks/deliveries?{path}")).await;
    let (rows, next, missing) = match list {
        Ok(list) => {
            let next = list.next_cursor.map(|cursor| {
                format!(
                    "/dashboard/webhooks?{}",
                    query_of([("state", state), ("cursor", &cursor)])
                )
            });
            (
                list.items
                    .into_iter()
                    .map(|delivery| row(delivery, visitor))
                    .collect(),
                next,
                None,
            )
        }
        Err(refused) if refused.is_missing() => (
            Vec::new(),
            None,
            Some("This service sends no webhooks.".to_owned()),
        ),
        Err(refused) => return refused.page(visitor),
    };
    show(&Page {
        frame: Frame::new(visitor, "webhooks", "Webhooks").live("", 15),
        states: STATES
            .iter()
            .map(|(word, name)| {
                let href = format!("/dashboard/webhooks?{}", query_of([("state", *word)]));
                (*name, href, *word == state)
            })
            .collect(),
        state,
        rows,
        next,
        missing,
    })
}

fn row(delivery: Delivery, visitor: &Visitor<'_>) -> Row {
    let (tone, state) = match delivery.state.as_str() {
        "delivered" => (Tone::Good, "Delivered"),
        "dead" => (Tone::Bad, "Not delivered"),
        _ if delivery.tries > 0 => (Tone::Warn, "Tried again"),
        _ => (Tone::Quiet, "On its way"),
    };
    let why = match (&delivery.last_error, delivery.last_status) {
        (Some(error), _) => sentence(error),
        (None, Some(status)) => format!("The receiver answered {status}."),
        (None, None) => String::new(),
    };
    Row {
        what: delivery
            .kind
            .rsplit_once('.')
            .map_or_else(|| name_of(&delivery.kind), |(_, what)| name_of(what)),
        whose: delivery
            .customer
            .unwrap_or_else(|| format!("app {}", delivery.app)),
        id: delivery.id,
        url: delivery.url,
        connection: delivery.connection,
        tone,
        state,
        why,
        at: When::maybe(delivery.at, visitor.now),
        next_try: When::maybe(delivery.next_try_at, visitor.now),
        tries: delivery.tries,
        may_resend: delivery.state == "dead",
    }
}

/// Has one sent again.
pub(crate) async fn resend(api: &impl Api, id: &str) -> Reply {
    let sent = post::<Delivery>(api, &format!("/v1/webhooks/deliveries/{id}/resend"), None).await;
    let notice = match sent {
        Ok(_) => Notice::done("It is sent again, from its first try on."),
        Err(refused) => Notice::failed(refused.sentence()),
    };
    Reply::GoTo {
        location: "/dashboard/webhooks".to_owned(),
        notice,
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::super::Rights;
    use super::super::tests::{Fake, ask, html};
    use super::*;

    #[test]
    fn dead_letters_are_listed_with_why_and_can_be_sent_again() {
        let api = Fake::default()
            .with(
                "GET /v1/webhooks/deliveries?state=dead&limit=50",
                200,
                json!({"items": [{
                    "id": "msg_1", "type": "connection.reconnect_required", "url": "https://hooks.example/<in>", "state": "dead", "app": "crm",
                    "connection": "c1", "customer": "acme", "at": "2026-11-24T10:00:00Z", "tries": 8, "last_status": 500, "last_error": null,
                }], "next_cursor": "msg_1"}),
            )
            .with("POST /v1/webhooks/deliveries/msg_1/resend", 200, json!({"id": "msg_1", "state": "pending"}));
        let page = html(ask(&api, Rights::Support, Method::GET, "/webhooks"), 200);
        for expected in [
            "Reconnect required",
            "The receiver answered 500.",
            "/dashboard/webhooks/msg_1/resend",
            "/dashboard/connections/c1",
            "cursor=msg_1",
        ] {
            assert!(page.contains(expected), "{expected}: {page}");
        }
        assert!(!page.contains("<in>"), "{page}");
        match ask(&api, Rights::Support, Method::POST, "/webhooks/msg_1/resend") {
            Reply::GoTo { notice, .. } => assert!(notice.good, "{notice:?}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_service_without_webhooks_says_so() {
        let page = html(
            ask(&Fake::default(), Rights::Support, Method::GET, "/webhooks"),
            200,
        );
        assert!(page.contains("sends no webhooks"), "{page}");
    }
}
