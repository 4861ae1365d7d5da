//! Three mistakes as they are made in production, each by a customer of its own, and what the doctor says of them.
//!
//! None of their calls is counted: they fail because of what their programs do, and that is what is to be seen.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::demo::summary::Named;
use crate::demo::world::{Customer, TOKEN_TTL, World, authorized, request};
use crate::failure::Failure;
use crate::output::text;

/// How long the doctor may take to name what was planted.
const NAMED_WITHIN: Duration = Duration::from_secs(15);

/// How long jobs have waited that are made with a token of seconds.
const QUEUED_FOR: Duration = Duration::from_secs(400);

const CONTACTS: &str = "/crm/v3/objects/contacts?limit=1";
/// Nobody has given this app the scope for deals.
const DEALS: &str = "/crm/v3/objects/deals?limit=1";

/// A mistake, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A worker keeps its access token and calls HubSpot with it past Evergrant.
    KeepsItsToken,
    /// Jobs wait for longer than a token lives.
    WaitsInAQueue,
    /// Calls need a scope that nobody asked for.
    LacksAScope,
}

impl Fault {
    /// Every one, in the order in which they are told.
    pub(crate) const ALL: [Self; 3] = [Self::KeepsItsToken, Self::WaitsInAQueue, Self::LacksAScope];

    /// Who makes it.
    pub(crate) fn customer(self) -> (&'static str, u64) {
        match self {
            Self::KeepsItsToken => ("stark", 1005),
            Self::WaitsInAQueue => ("wonka", 1006),
            Self::LacksAScope => ("wayne", 1007),
        }
    }

    /// What it is, for a person who looks.
    fn meaning(self) -> &'static str {
        match self {
            Self::KeepsItsToken => "a worker keeps its access token",
            Self::WaitsInAQueue => "jobs wait longer than a token lives",
            Self::LacksAScope => "calls need a scope that nobody asked for",
        }
    }

    /// What the doctor has to call it.
    fn cause(self) -> &'static str {
        match self {
            Self::KeepsItsToken => "stale_token_reuse",
            Self::WaitsInAQueue => "queue_delay",
            Self::LacksAScope => "missing_scopes",
        }
    }
}

/// Makes the mistakes.
pub(crate) async fn plant(world: &World) -> Result<(), Failure> {
    for (fault, customer) in Fault::ALL.into_iter().zip(&world.mistaken) {
        match fault {
            Fault::KeepsItsToken => keep_a_token(world, customer).await?,
            Fault::WaitsInAQueue => call_late(world, customer).await?,
            Fault::LacksAScope => {
                through_the_gateway(world, customer, DEALS, None).await?;
            }
        }
    }
    Ok(())
}

async fn keep_a_token(world: &World, customer: &Customer) -> Result<(), Failure> {
    let path = format!("/v1/connections/{}/token", customer.name);
    let (_, kept) = answer(world, authorized(world, Method::GET, &path, None)?).await?;
    // Another part of the same program goes through the gateway meanwhile, which replaces it.
    sleep(TOKEN_TTL).await;
    through_the_gateway(world, customer, CONTACTS, None).await?;
    sleep(TOKEN_TTL / 2).await;
    let mut late = request(
        Method::GET,
        &format!("{}{CONTACTS}", world.hubspot.base_url().trim_end_matches('/')),
        None,
    )?;
    let bearer = format!("Bearer {}", text(&kept, "/access_token"));
    let mut bearer = HeaderValue::try_from(bearer).map_err(Failure::failed)?;
    bearer.set_sensitive(true);
    late.headers_mut().insert(AUTHORIZATION, bearer);
    let (status, _) = answer(world, late).await?;
    let report = json!({"version": kept["version"], "status": status.as_u16()});
    let path = format!("{path}/rejected");
    answer(world, authorized(world, Method::POST, &path, Some(&report))?).await?;
    Ok(())
}

async fn call_late(world: &World, customer: &Customer) -> Result<(), Failure> {
    let enqueued_at = world.clock.now().before(QUEUED_FOR).millis().to_string();
    for _ in 0..5 {
        through_the_gateway(world, customer, CONTACTS, Some(&enqueued_at)).await?;
    }
    Ok(())
}

async fn through_the_gateway(
    world: &World,
    customer: &Customer,
    path: &str,
    enqueued_at: Option<&str>,
) -> Result<(), Failure> {
    let path = format!("/gateway/{}{path}", customer.name);
    let mut call = authorized(world, Method::GET, &path, None)?;
    if let Some(at) = enqueued_at {
        let at = HeaderValue::try_from(at).map_err(Failure::failed)?;
        call.headers_mut().insert("evergrant-enqueued-at", at);
    }
    answer(world, call).await?;
    Ok(())
}

async fn answer(world: &World, request: Request<Full<Bytes>>) -> Result<(StatusCode, Value), Failure> {
    let answer = world.client.request(request).await.map_err(Failure::failed)?;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.map_err(Failure::failed)?.to_bytes();
    Ok((parts.status, serde_json::from_slice(&body).unwrap_or_default()))
}

/// Asks the doctor until it has named each of them, or for as long as that may take.
pub(crate) async fn ask_the_doctor(world: &World) -> Result<Vec<Named>, Failure> {
    let deadline = Instant::now() + NAMED_WITHIN;
    let mut named = Vec::new();
    for (fault, customer) in Fault::ALL.into_iter().zip(&world.mistaken) {
        let diagnosis = loop {
            let diagnosis = world.diagnosis(customer).await?;
            if diagnosis["cause"] == fault.cause() || Instant::now() > deadline {
                break diagnosis;
            }
            sleep(Duration::from_millis(200)).await;
        };
        note_token_sets(world, customer).await?;
        named.push(Named {
            connection: customer.name.to_owned(),
            planted: fault.meaning(),
            as_planted: diagnosis["cause"] == fault.cause(),
            cause: diagnosis["cause"].as_str().map(str::to_owned),
            action: text(&diagnosis, "/action"),
        });
    }
    Ok(named)
}

/// What the mistaken used of their grants is counted like everybody's.
async fn note_token_sets(world: &World, customer: &Arc<Customer>) -> Result<(), Failure> {
    let record = world.record(customer).await?;
    if let Some(version) = record["version"].as_i64() {
        customer.tally.note_version(version);
    }
    Ok(())
}
