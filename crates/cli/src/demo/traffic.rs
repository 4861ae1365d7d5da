//! The calls: contacts created, listed, found, read and changed by several customers, through the gateway.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::demo::summary::Stampede;
use crate::demo::world::{self, Customer, World};
use crate::failure::Failure;
use crate::network::HttpClient;

/// Each customer calls this often: some sixty calls a second in all.
const CALL_EVERY: Duration = Duration::from_millis(65);

/// Calls of one customer at a time. Whoever waits for an answer that long makes no further calls.
const CALLS_AT_ONCE: usize = 40;

/// How many contacts a customer remembers to come back to.
const REMEMBERED: usize = 50;

/// What Evergrant says where it has no token for a call.
const WITHOUT_TOKEN: [&str; 7] = [
    "reconnect_required",
    "connection_unreadable",
    "disconnected",
    "app_credentials_rejected",
    "app_not_configured",
    "provider_unavailable",
    "unknown_connection",
];

/// What became of a customer's calls.
#[derive(Default)]
pub(crate) struct Tally {
    calls: AtomicU64,
    failed_because_of_token: AtomicU64,
    failed_otherwise: AtomicU64,
    repeated: AtomicU64,
    is_revoked: AtomicBool,
    refused_after_revocation: AtomicU64,
    /// The version of the first token set, and the newest that a call was made with.
    version_first: AtomicI64,
    version_last: AtomicI64,
    contacts: Mutex<Vec<String>>,
}

impl Tally {
    /// Calls that were answered, however.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub(crate) fn failed_because_of_token(&self) -> u64 {
        self.failed_because_of_token.load(Ordering::Relaxed)
    }

    pub(crate) fn failed_otherwise(&self) -> u64 {
        self.failed_otherwise.load(Ordering::Relaxed)
    }

    /// Calls that Evergrant repeated after a 401.
    pub(crate) fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Calls that had no token because there is no grant any more, which is as it must be.
    pub(crate) fn refused_after_revocation(&self) -> u64 {
        self.refused_after_revocation.load(Ordering::Relaxed)
    }

    /// Notes the version that consent brought.
    pub(crate) fn begin_at(&self, version: i64) {
        self.version_first.store(version, Ordering::Relaxed);
        self.version_last.store(version, Ordering::Relaxed);
    }

    /// Notes the newest version, as the record says.
    pub(crate) fn note_version(&self, version: i64) {
        self.version_last.fetch_max(version, Ordering::Relaxed);
    }

    /// Token sets that ended: each was followed by a newer one that calls were made with.
    pub(crate) fn expiries(&self) -> u64 {
        let (first, last) = (
            self.version_first.load(Ordering::Relaxed),
            self.version_last.load(Ordering::Relaxed),
        );
        u64::try_from(last - first).unwrap_or(0)
    }

    /// Which token set the last calls were made with.
    pub(crate) fn version(&self) -> i64 {
        self.version_last.load(Ordering::Relaxed)
    }

    /// From here on its calls may be refused.
    pub(crate) fn note_revocation(&self) {
        self.is_revoked.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.is_revoked.load(Ordering::SeqCst)
    }

    fn count(&self, status: StatusCode, headers: &HeaderMap) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let number = |name: &str| headers.get(name)?.to_str().ok()?.parse::<i64>().ok();
        if let Some(version) = number("evergrant-token-version") {
            self.note_version(version);
        }
        if number("evergrant-attempts").is_some_and(|attempts| attempts > 1) {
            self.repeated.fetch_add(1, Ordering::Relaxed);
        }
        let refused = headers.get("evergrant-error").and_then(|code| code.to_str().ok());
        let has_no_token =
            status == StatusCode::UNAUTHORIZED || refused.is_some_and(|code| WITHOUT_TOKEN.contains(&code));
        if has_no_token && self.is_revoked() {
            self.refused_after_revocation.fetch_add(1, Ordering::Relaxed);
        } else if has_no_token {
            self.failed_because_of_token.fetch_add(1, Ordering::Relaxed);
        } else if !status.is_success() {
            self.failed_otherwise.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn count_unanswered(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.failed_otherwise.fetch_add(1, Ordering::Relaxed);
    }

    fn remember(&self, contact: String) {
        let mut contacts = self.contacts.lock().unwrap_or_else(PoisonError::into_inner);
        if contacts.len() == REMEMBERED {
            contacts.remove(0);
        }
        contacts.push(contact);
    }

    fn some_contact(&self, number: u64) -> Option<String> {
        let contacts = self.contacts.lock().unwrap_or_else(PoisonError::into_inner);
        let index = usize::try_from(number).unwrap_or(0) % contacts.len().max(1);
        contacts.get(index).cloned()
    }
}

/// The customers' calls, until they are told to stop.
pub(crate) struct Calling(JoinSet<()>);

impl Calling {
    /// Waits until every call has its answer.
    pub(crate) async fn finish(mut self) {
        while self.0.join_next().await.is_some() {}
    }
}

/// Begins to call for every customer; the one that waits for the stampede begins after it.
pub(crate) fn begin(world: &World, stop: &CancellationToken) -> Calling {
    let mut calling = JoinSet::new();
    for customer in &world.customers {
        let caller = Caller::new(world, customer);
        let waits = Arc::ptr_eq(customer, world.idle());
        calling.spawn(caller.call_until(stop.clone(), waits));
    }
    Calling(calling)
}

/// Makes so many calls at once with the token of the idle customer, which has ended.
pub(crate) async fn stampede(world: &World, callers: usize) -> Result<Stampede, Failure> {
    let customer = world.idle();
    let held = |world: &World| world.ledger().refresh_tokens_of(customer.hub_id).last().cloned();
    let before = held(world).ok_or_else(|| Failure::failed("the simulator issued no refresh token"))?;
    let caller = Arc::new(Caller::new(world, customer));
    let mut calls = JoinSet::new();
    for number in 0..callers {
        let caller = caller.clone();
        calls.spawn(async move {
            caller
                .call(u64::try_from(number).unwrap_or(0) + 1, &Operation::List)
                .await
        });
    }
    let mut answered = 0;
    while let Some(call) = calls.join_next().await {
        answered += usize::from(matches!(call, Ok(true)));
    }
    let ledger = world.ledger();
    let redemptions = ledger
        .refresh_token(&before.label)
        .map_or(0, |after| after.presented - before.presented);
    Ok(Stampede {
        callers,
        answered,
        redemptions,
    })
}

/// One customer's program.
struct Caller {
    client: HttpClient,
    base: String,
    authorization: HeaderValue,
    customer: Arc<Customer>,
}

enum Operation {
    Create,
    List,
    Search,
    Read(String),
    ReadSeveral(String),
    Update(String),
}

impl Caller {
    fn new(world: &World, customer: &Arc<Customer>) -> Self {
        Self {
            client: world.client.clone(),
            base: format!("{}/gateway/{}/crm/v3/objects/contacts", world.base, customer.name),
            authorization: world.authorization.clone(),
            customer: customer.clone(),
        }
    }

    async fn call_until(self, stop: CancellationToken, waits: bool) {
        let caller = Arc::new(self);
        let mut calls = JoinSet::new();
        let mut ticks = interval(CALL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut number = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            while calls.try_join_next().is_some() {}
            // Before the stampede its customer has made no call.
            if calls.len() >= CALLS_AT_ONCE || (waits && caller.customer.tally.calls() == 0) {
                continue;
            }
            let operation = caller.operation(number);
            let caller = caller.clone();
            calls.spawn(async move { caller.call(number, &operation).await });
            number += 1;
        }
        while calls.join_next().await.is_some() {}
    }

    /// What programs do with contacts, in turn.
    fn operation(&self, number: u64) -> Operation {
        let contact = self.customer.tally.some_contact(number);
        match (number % 8, contact) {
            (0 | 3, _) | (_, None) => Operation::Create,
            (1 | 5, _) => Operation::List,
            (2, _) => Operation::Search,
            (4, Some(contact)) => Operation::ReadSeveral(contact),
            (6, Some(contact)) => Operation::Update(contact),
            (_, Some(contact)) => Operation::Read(contact),
        }
    }

    /// Makes a call and counts its answer; says whether the provider did what it was asked.
    async fn call(&self, number: u64, operation: &Operation) -> bool {
        let tally = &self.customer.tally;
        let Ok((status, headers, body)) = self.send(number, operation).await else {
            tally.count_unanswered();
            return false;
        };
        tally.count(status, &headers);
        if matches!(operation, Operation::Create)
            && let Some(contact) = body["id"].as_str()
        {
            tally.remember(contact.to_owned());
        }
        status.is_success()
    }

    async fn send(
        &self,
        number: u64,
        operation: &Operation,
    ) -> Result<(StatusCode, HeaderMap, Value), Failure> {
        let base = &self.base;
        let name = self.customer.name;
        let (method, uri, body) = match operation {
            Operation::Create => {
                let email = format!("contact-{number}@{name}.example");
                let contact = json!({"properties": {"email": email, "firstname": "Ada", "lastname": name}});
                (Method::POST, base.clone(), Some(contact))
            }
            Operation::List => (Method::GET, format!("{base}?limit=10"), None),
            Operation::Search => {
                let filter = json!({"propertyName": "lastname", "operator": "EQ", "value": name});
                let search = json!({"filterGroups": [{"filters": [filter]}], "limit": 5});
                (Method::POST, format!("{base}/search"), Some(search))
            }
            Operation::Read(contact) => (Method::GET, format!("{base}/{contact}"), None),
            Operation::ReadSeveral(contact) => {
                let read = json!({"properties": ["email"], "inputs": [{"id": contact}]});
                (Method::POST, format!("{base}/batch/read"), Some(read))
            }
            Operation::Update(contact) => {
                let change = json!({"properties": {"firstname": format!("Ada {number}")}});
                (Method::PATCH, format!("{base}/{contact}"), Some(change))
            }
        };
        let mut request = world::request(method, &uri, body.as_ref())?;
        request
            .headers_mut()
            .insert(http::header::AUTHORIZATION, self.authorization.clone());
        let answer = self.client.request(request).await.map_err(Failure::failed)?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(Failure::failed)?.to_bytes();
        Ok((
            parts.status,
            parts.headers,
            serde_json::from_slice(&body).unwrap_or_default(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(tally: &Tally, status: u16, headers: &[(&'static str, &'static str)]) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        tally.count(StatusCode::from_u16(status).expect("a literal status"), &map);
    }

    #[test]
    fn a_call_without_a_token_is_a_failure_unless_the_grant_was_revoked() {
        let tally = Tally::default();
        answer(&tally, 200, &[]);
        answer(&tally, 401, &[]);
        answer(&tally, 424, &[("evergrant-error", "reconnect_required")]);
        answer(&tally, 504, &[("evergrant-error", "upstream_timeout")]);
        assert_eq!(
            (
                tally.calls(),
                tally.failed_because_of_token(),
                tally.failed_otherwise()
            ),
            (4, 2, 1)
        );
        tally.note_revocation();
        answer(&tally, 424, &[("evergrant-error", "reconnect_required")]);
        assert_eq!(
            (tally.failed_because_of_token(), tally.refused_after_revocation()),
            (2, 1)
        );
    }

    #[test]
    fn a_token_set_has_ended_once_a_newer_one_was_used() {
        let tally = Tally::default();
        tally.begin_at(1);
        assert_eq!(tally.expiries(), 0);
        for version in ["2", "1", "3", "3", "2"] {
            answer(&tally, 200, &[("evergrant-token-version", version)]);
        }
        assert_eq!(tally.expiries(), 2);
    }

    #[test]
    fn a_call_that_was_repeated_is_counted_as_one() {
        let tally = Tally::default();
        answer(&tally, 200, &[("evergrant-attempts", "1")]);
        answer(&tally, 200, &[("evergrant-attempts", "2")]);
        assert_eq!((tally.calls(), tally.repeated()), (2, 1));
    }
}
