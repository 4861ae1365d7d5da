//! The webhooks journal: uninstalls, to be read by the app itself, kept for three days.
//!
//! Source: HubSpot, "Webhooks journal" (2026-03). Each event is a page of its own here; HubSpot's pages hold many.

use std::collections::BTreeSet;
use std::time::Duration;

use http::header::{AUTHORIZATION, HOST};
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Shared;
use crate::answer::{self, Answer};
use crate::clock::{after, iso};
use crate::serve::Call;
use crate::world::{Holder, Presented, World};

const KEPT: Duration = Duration::from_secs(3 * 24 * 3600);
/// How long a page's address is good.
const ADDRESS_LASTS: Duration = Duration::from_secs(300);
const READ: &str = "developer.webhooks_journal.read";
const SUBSCRIBE: &str = "developer.webhooks_journal.subscriptions.write";
/// The event type of an uninstall.
const UNINSTALL: &str = "4-1916193";

/// What was subscribed to, and what was written.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    subscribed: BTreeSet<String>,
    pages: Vec<Page>,
}

#[derive(Debug)]
struct Page {
    client_id: String,
    offset: String,
    secret: String,
    written_at: Timestamp,
    events: Value,
}

impl Journal {
    /// Writes an uninstall, where the app has subscribed to them. `secret` is what its page is fetched by.
    pub(crate) fn uninstalled(&mut self, client_id: &str, hub_id: u64, at: Timestamp, secret: String) {
        if !self.subscribed.contains(client_id) {
            return;
        }
        let offset = format!("{:08}-{:04x}", self.pages.len() + 1, 0x2026);
        let events = json!([{
            "type": "app_lifecycle_event", "action": "APP_UNINSTALL", "portalId": hub_id, "occurredAt": iso(at),
        }]);
        self.pages.push(Page {
            client_id: client_id.to_owned(),
            offset,
            secret,
            written_at: at,
            events,
        });
    }

    fn kept(&self, client_id: &str, now: Timestamp) -> impl DoubleEndedIterator<Item = &Page> {
        self.pages
            .iter()
            .filter(move |page| page.client_id == client_id && after(page.written_at, KEPT) > now)
    }
}

/// `/webhooks-journal/…`: subscriptions, and where pages are.
pub(crate) fn answer(shared: &Shared, call: &Call, rest: &[&str]) -> Answer {
    let now = shared.clock.now();
    let mut world = shared.world.lock();
    let id = call.correlation_id.as_str();
    let needed = match rest {
        ["subscriptions", ..] => SUBSCRIBE,
        _ => READ,
    };
    let client_id = match client(&mut world, now, call, needed) {
        Ok(client_id) => client_id,
        Err(refused) => return *refused,
    };
    match (&call.method, rest) {
        (&Method::POST, ["subscriptions", "2026-03"]) => {
            let wish: Value = serde_json::from_slice(&call.body).unwrap_or_default();
            if wish["subscriptionType"] != "APP_LIFECYCLE_EVENT" || wish["eventTypeId"] != UNINSTALL {
                return answer::api_error(
                    StatusCode::BAD_REQUEST,
                    "VALIDATION_ERROR",
                    "the simulator writes uninstalls alone",
                    id,
                );
            }
            world.ledger.journal_subscriptions += 1;
            if !world.journal.subscribed.insert(client_id) {
                return answer::api_error(StatusCode::CONFLICT, "CONFLICT", "the subscription exists", id);
            }
            Answer::json(
                StatusCode::CREATED,
                &json!({"id": 1, "subscriptionType": "APP_LIFECYCLE_EVENT"}),
            )
        }
        (&Method::GET, ["journal", "2026-03", place @ ..]) => {
            world.ledger.journal_reads += 1;
            let journal = &world.journal;
            let page = match place {
                ["earliest"] => journal.kept(&client_id, now).next(),
                ["latest"] => journal.kept(&client_id, now).next_back(),
                ["offset", offset, "next"] => {
                    if !journal.kept(&client_id, now).any(|page| page.offset == *offset) {
                        return answer::not_found(id);
                    }
                    journal
                        .kept(&client_id, now)
                        .find(|page| page.offset.as_str() > *offset)
                }
                _ => return answer::not_found(id),
            };
            let Some(page) = page else {
                return Answer::empty(StatusCode::NO_CONTENT);
            };
            let host = call
                .headers
                .get(HOST)
                .and_then(|host| host.to_str().ok())
                .unwrap_or("localhost");
            Answer::json(
                StatusCode::OK,
                &json!({
                    "url": format!("http://{host}/journal-pages/{}", page.secret),
                    "expiresAt": iso(after(now, ADDRESS_LASTS)),
                    "currentOffset": page.offset,
                }),
            )
        }
        _ => answer::not_found(id),
    }
}

/// `/journal-pages/{secret}`: a page, at another place than the API. Its address is all that it takes; credentials are refused, as a
/// store of signed addresses does.
pub(crate) fn page(shared: &Shared, call: &Call, secret: &str) -> Answer {
    let mut world = shared.world.lock();
    if call.headers.contains_key(AUTHORIZATION) {
        return Answer::text(
            StatusCode::BAD_REQUEST,
            "only one way to authenticate is allowed".to_owned(),
        );
    }
    world.ledger.journal_pages += 1;
    match world.journal.pages.iter().find(|page| page.secret == secret) {
        Some(page) => Answer::json(
            StatusCode::OK,
            &json!({"offset": page.offset, "journalEvents": page.events, "publishedAt": iso(page.written_at)}),
        ),
        None => Answer::text(StatusCode::FORBIDDEN, "no such page".to_owned()),
    }
}

/// The app that calls with a token of its own.
fn client(world: &mut World, now: Timestamp, call: &Call, needed: &str) -> Result<String, Box<Answer>> {
    let id = call.correlation_id.as_str();
    let token = call
        .headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    match token.map(|token| world.access_token(now, token)) {
        Some(Presented::Valid(token)) => match token.holder {
            Holder::App { client_id } if token.scopes.iter().any(|scope| scope == needed) => Ok(client_id),
            _ => Err(Box::new(answer::missing_scopes(&[needed.to_owned()], id))),
        },
        Some(Presented::Expired { expired_at, .. }) => {
            Err(Box::new(answer::expired_authentication(expired_at, now, id)))
        }
        Some(Presented::Killed(_) | Presented::Garbage) | None => {
            Err(Box::new(answer::invalid_authentication(id)))
        }
    }
}
