//! The API behind access tokens: who calls, whether that one may, and which call it is.
//!
//! A call is refused before it is executed: 401 for the token, 429 for the pace, 403 for the scopes.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, StatusCode};
use serde_json::json;

use crate::Shared;
use crate::answer::{self, Answer, Cut};
use crate::faults::{self, Circumstances, FaultKind, Place, RateLimitPolicy, Target};
use crate::limits::{CALLS_INTERVAL, OverLimit, RateLimits};
use crate::serve::Call;
use crate::world::{AccessToken, Holder, Presented, World, hub_domain, hublet};
use crate::{associations, crm};

/// The header by which tests follow one logical call through its deliveries.
const REQUEST_ID: &str = "x-req-id";

/// Answers everything that is neither OAuth nor the control API.
pub(crate) async fn answer(shared: Arc<Shared>, call: Call) -> Result<Answer, Cut> {
    let now = shared.clock.now();
    let access_token = bearer(&call.headers);
    let fault;
    let arrived;
    {
        let mut world = shared.world.lock();
        arrived = Arrived::of(access_token.map(|token| world.access_token(now, token)));
        arrived.record(&mut world, &call);
        fault = world.faults.meet(&Target {
            place: Place::Api,
            method: &call.method,
            path: &call.path,
            client_id: arrived.holder.as_ref().and_then(Holder::client_id),
            hub_id: arrived.holder.as_ref().and_then(Holder::hub_id),
            token_valid: arrived.valid,
            only_by_path: false,
        });
        if let Some(fault) = &fault {
            world.ledger.faults_met += 1;
            record_injected(&mut world, fault, arrived.holder.as_ref());
        }
        if fault == Some(FaultKind::ExpireMidRequest)
            && let Some(access_token) = access_token
        {
            world.expire_access_token(now, access_token);
        }
    }
    let circumstances = Circumstances {
        gate: &shared.gate,
        correlation_id: &call.correlation_id,
        now,
    };
    faults::under(fault, circumstances, || async { execute(&shared, &call) }).await
}

/// A call as it arrived, before any fault.
struct Arrived {
    holder: Option<Holder>,
    valid: bool,
    expired: bool,
}

impl Arrived {
    fn of(presented: Option<Presented>) -> Self {
        let (holder, valid, expired) = match presented {
            Some(Presented::Valid(token)) => (Some(token.holder), true, false),
            Some(Presented::Expired { holder, .. }) => (Some(holder), false, true),
            Some(Presented::Killed(holder)) => (Some(holder), false, false),
            Some(Presented::Garbage) | None => (None, false, false),
        };
        Self {
            holder,
            valid,
            expired,
        }
    }

    fn record(&self, world: &mut World, call: &Call) {
        world.ledger.api_calls += 1;
        if let Some(Holder::Install { client_id, hub_id }) = &self.holder {
            let grant = world.ledger.grant_mut(client_id, *hub_id);
            grant.api_calls += 1;
            grant.arrived_expired += u64::from(self.expired);
        }
        if let Some(id) = request_id(&call.headers) {
            world.ledger.requests.entry(id.to_owned()).or_default().deliveries += 1;
        }
    }
}

fn record_injected(world: &mut World, fault: &FaultKind, holder: Option<&Holder>) {
    if fault.limits_rate() {
        world.ledger.rate_limited.injected += 1;
        record_rate_limited(world, holder);
    }
    if !matches!(
        fault,
        FaultKind::UnauthorizedEarly | FaultKind::AlwaysUnauthorized | FaultKind::ExpireMidRequest
    ) {
        return;
    }
    world.ledger.unauthorized.injected += 1;
    record_unauthorized(world, holder);
}

fn record_unauthorized(world: &mut World, holder: Option<&Holder>) {
    if let Some(Holder::Install { client_id, hub_id }) = holder {
        world.ledger.grant_mut(client_id, *hub_id).unauthorized += 1;
    }
}

fn record_rate_limited(world: &mut World, holder: Option<&Holder>) {
    if let Some(Holder::Install { client_id, hub_id }) = holder {
        world.ledger.grant_mut(client_id, *hub_id).rate_limited += 1;
    }
}

fn execute(shared: &Shared, call: &Call) -> Answer {
    let now = shared.clock.now();
    let correlation_id = call.correlation_id.as_str();
    let mut world = shared.world.lock();
    let token = match authenticate(&mut world, now, call) {
        Ok(token) => token,
        Err(refused) => return *refused,
    };
    let route = Route::of(call);
    let hub_id = token.holder.hub_id();

    let RateLimits {
        calls_max,
        searches_max,
        retry_after,
    } = world.settings.rate_limits;
    let policy = route.rate_limit();
    let counted = match policy {
        RateLimitPolicy::Secondly => world.traffic.search(now, hub_id.unwrap_or(0), searches_max),
        _ => world.traffic.call(now, &token.holder, calls_max),
    };
    // Searches are told nothing about limits.
    let told = |answer: Answer| match policy {
        RateLimitPolicy::Secondly => answer,
        _ => with_rate_limit(answer, calls_max, counted.as_ref().copied().unwrap_or(0)),
    };
    if let Err(OverLimit { free_in }) = counted
        && world.settings.enforce_rate_limits
    {
        match policy {
            RateLimitPolicy::Secondly => world.ledger.rate_limited.secondly += 1,
            _ => world.ledger.rate_limited.ten_secondly += 1,
        }
        record_rate_limited(&mut world, Some(&token.holder));
        let refused = answer::rate_limited(policy, correlation_id).retry_after(retry_after, free_in, now);
        return told(refused);
    }

    let required = route.required_scopes();
    let answer = if !required.is_empty() && !required.iter().any(|scope| token.scopes.contains(scope)) {
        answer::missing_scopes(&required, correlation_id)
    } else {
        perform(&mut world, now, &token, &route, call)
    };
    told(answer)
}

/// The 401s. An expired token tells since when; garbage claims to have expired in 1970.
fn authenticate(world: &mut World, now: jiff::Timestamp, call: &Call) -> Result<AccessToken, Box<Answer>> {
    let correlation_id = call.correlation_id.as_str();
    let Some(access_token) = bearer(&call.headers) else {
        world.ledger.unauthorized.missing += 1;
        return Err(Box::new(answer::invalid_authentication(correlation_id)));
    };
    match world.access_token(now, access_token) {
        Presented::Valid(token) => Ok(token),
        Presented::Expired { holder, expired_at } => {
            world.ledger.unauthorized.expired += 1;
            record_unauthorized(world, Some(&holder));
            Err(Box::new(answer::expired_authentication(
                expired_at,
                now,
                correlation_id,
            )))
        }
        Presented::Killed(holder) => {
            // What HubSpot answers after an uninstall is not documented; this is the 401 that gives no reason.
            world.ledger.unauthorized.killed += 1;
            record_unauthorized(world, Some(&holder));
            Err(Box::new(answer::invalid_authentication(correlation_id)))
        }
        Presented::Garbage => {
            world.ledger.unauthorized.garbage += 1;
            Err(Box::new(answer::garbage_authentication(now, correlation_id)))
        }
    }
}

/// The access token of `Authorization: Bearer …`; `None` for anything malformed, `Bearer Bearer x` included.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    let well_formed = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' ');
    well_formed.then_some(token)
}

fn request_id(headers: &HeaderMap) -> Option<&str> {
    headers.get(REQUEST_ID)?.to_str().ok()
}

fn with_rate_limit(answer: Answer, calls_max: u32, remaining: u32) -> Answer {
    answer
        .header("x-hubspot-ratelimit-max", &calls_max.to_string())
        .header("x-hubspot-ratelimit-remaining", &remaining.to_string())
        .header(
            "x-hubspot-ratelimit-interval-milliseconds",
            &CALLS_INTERVAL.as_millis().to_string(),
        )
}

/// The calls that there are.
enum Route {
    Objects {
        object_type: String,
        operation: crm::Operation,
    },
    Associations {
        from_type: String,
        operation: associations::Operation,
    },
    AccountDetails,
    ExternalInstall,
    /// Not HubSpot's: tells what arrived, for tests of whatever stands in between.
    Echo,
    Unknown,
}

impl Route {
    fn of(call: &Call) -> Self {
        let segments: Vec<_> = call.segments.iter().map(String::as_str).collect();
        match segments.as_slice() {
            ["crm", "v4", "objects", from_type, rest @ ..]
            | ["crm", "objects", "2026-03" | "2026-09", from_type, rest @ ..]
                if rest.get(1) == Some(&"associations") =>
            {
                Self::associations(from_type, associations::Operation::of(&call.method, rest))
            }
            ["crm", "v4", "associations", from_type, to_type, rest @ ..]
            | [
                "crm",
                "associations",
                "2026-03" | "2026-09",
                from_type,
                to_type,
                rest @ ..,
            ] => {
                let operation = associations::Operation::of_types(&call.method, to_type, rest);
                Self::associations(from_type, operation)
            }
            ["crm", "v3", "objects", object_type, rest @ ..]
            | ["crm", "objects", "2026-03" | "2026-09", object_type, rest @ ..] => {
                match crm::Operation::of(&call.method, rest) {
                    Some(operation) => Self::Objects {
                        object_type: crm::type_name(object_type),
                        operation,
                    },
                    None => Self::Unknown,
                }
            }
            ["account-info", "v3" | "2026-03" | "2026-09", "details"] if call.method == Method::GET => {
                Self::AccountDetails
            }
            ["appinstalls", "v3" | "2026-03" | "2026-09", "external-install"]
                if call.method == Method::DELETE =>
            {
                Self::ExternalInstall
            }
            ["echo", ..] => Self::Echo,
            _ => Self::Unknown,
        }
    }

    fn associations(from_type: &str, operation: Option<associations::Operation>) -> Self {
        match operation {
            Some(operation) => Self::Associations {
                from_type: crm::type_name(from_type),
                operation,
            },
            None => Self::Unknown,
        }
    }

    /// Which limit a call counts towards.
    fn rate_limit(&self) -> RateLimitPolicy {
        match self {
            Self::Objects { operation, .. } if operation.is_search() => RateLimitPolicy::Secondly,
            _ => RateLimitPolicy::TenSecondly,
        }
    }

    /// One of these is needed. None at all: the token is enough.
    fn required_scopes(&self) -> Vec<String> {
        let (object_type, writes) = match self {
            Self::Objects {
                object_type,
                operation,
            } => (object_type, operation.writes()),
            Self::Associations { from_type, operation } => (from_type, operation.writes()),
            Self::AccountDetails | Self::ExternalInstall | Self::Echo | Self::Unknown => return Vec::new(),
        };
        let access = if writes { "write" } else { "read" };
        let mut scopes = vec![format!("crm.objects.{object_type}.{access}")];
        if !["contacts", "companies", "deals"].contains(&object_type.as_str()) {
            scopes.push(format!("crm.objects.custom.{access}"));
        }
        scopes
    }
}

fn perform(
    world: &mut World,
    now: jiff::Timestamp,
    token: &AccessToken,
    route: &Route,
    call: &Call,
) -> Answer {
    let correlation_id = call.correlation_id.as_str();
    let Some(hub_id) = token.holder.hub_id() else {
        return answer::missing_scopes(&["oauth".to_owned()], correlation_id);
    };
    let mut created = 0;
    let answer = match route {
        Route::Objects {
            object_type,
            operation,
        } => {
            let request = crm::Request {
                now,
                object_type,
                call,
            };
            let done = request.perform(world.records_mut(hub_id), operation);
            created = done.created;
            done.answer
        }
        Route::Associations { from_type, operation } => {
            let request = associations::Request { now, from_type, call };
            request.perform(world.records_mut(hub_id), operation)
        }
        Route::AccountDetails => Answer::json(
            StatusCode::OK,
            &json!({
                "portalId": hub_id, "accountType": "STANDARD", "timeZone": "US/Eastern", "companyCurrency": "USD",
                "additionalCurrencies": [], "utcOffset": "-05:00", "utcOffsetMilliseconds": -18_000_000,
                "uiDomain": "app.hubspot.com", "dataHostingLocation": hublet(hub_id),
                "hubDomain": hub_domain(hub_id),
            }),
        ),
        Route::ExternalInstall => match token.holder.client_id() {
            Some(client_id) => {
                let client_id = client_id.to_owned();
                world.uninstall(now, &client_id, hub_id);
                Answer::empty(StatusCode::NO_CONTENT)
            }
            None => answer::api_error(
                StatusCode::FORBIDDEN,
                "FORBIDDEN",
                "only an app can uninstall itself",
                correlation_id,
            ),
        },
        Route::Echo => echo(call, token),
        Route::Unknown => answer::not_found(correlation_id),
    };
    record_execution(world, token, call, created);
    answer
}

fn record_execution(world: &mut World, token: &AccessToken, call: &Call, created: u64) {
    let ledger = &mut world.ledger;
    ledger.api_executed += 1;
    ledger.creates_executed += created;
    if let Holder::Install { client_id, hub_id } = &token.holder {
        let grant = ledger.grant_mut(client_id, *hub_id);
        grant.api_executed += 1;
        grant.creates_executed += created;
    }
    if let Some(id) = request_id(&call.headers) {
        let request = ledger.requests.entry(id.to_owned()).or_default();
        request.executed += 1;
        request.creates_executed += created;
    }
}

/// What arrived: everything but the access token, of which only the portal and the age are told.
fn echo(call: &Call, token: &AccessToken) -> Answer {
    let headers: Vec<_> = call
        .headers
        .iter()
        .filter(|(name, _)| *name != AUTHORIZATION)
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    Answer::json(
        StatusCode::OK,
        &json!({
            "method": call.method.as_str(),
            "path": call.path,
            "query": call.raw_query,
            "headers": headers,
            "body": String::from_utf8_lossy(&call.body),
            "body_bytes": call.body.len(),
            "hub_id": token.holder.hub_id(),
            "access_token_issued_at": crate::clock::iso(token.issued_at),
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_well_formed_bearer_header_is_a_credential() {
        let check = |values: &[&'static str], expected: Option<&str>| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, http::HeaderValue::from_static(value));
            }
            assert_eq!(bearer(&headers), expected, "{values:?}");
        };
        check(&["Bearer abc"], Some("abc"));
        check(&["bearer abc"], Some("abc"));
        check(&["Bearer Bearer abc"], None);
        check(&["Bearer"], None);
        check(&["Bearer "], None);
        check(&["Basic abc"], None);
        check(&["abc"], None);
        check(&["Bearer abc", "Bearer abc"], None);
        check(&[], None);
    }
}
