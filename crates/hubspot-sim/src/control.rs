//! The control API under `/_sim/`: everything that [`crate::Simulator`] can do, for other processes.
//!
//! It needs no credentials: whoever reaches the simulator may steer it.

use std::time::Duration;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::config::{Rotation, SimApp};
use crate::crm::UniqueProperty;
use crate::faults::Fault;
use crate::limits::RetryAfter;
use crate::oauth::{TokenUse, Version, token_answer};
use crate::serve::Call;
use crate::world::World;
use crate::{Shared, clock};

const INDEX: &str = "\
hubspot-sim: HubSpot as seen from outside

OAuth   /oauth/authorize                     consent page; add _sim_hub_id=1001 to pass it at once
        /oauth/{v1,v3,2026-03,2026-09}/token  and /token/introspect, /token/revoke (not v1)
CRM     /crm/v3/objects/{type}, /crm/objects/{2026-03,2026-09}/{type}
        .../{type}/{id}/associations/... of v4 and dated, and batch/read of /crm/v4/associations/{from}/{to}
Other   /account-info/v3/details   /appinstalls/v3/external-install   /echo/... (tells what arrived)
        /webhooks-journal/subscriptions/2026-03, /webhooks-journal/journal/2026-03/{earliest,latest,offset/{o}/next}: uninstalls

Control (JSON in, JSON out, no credentials; client_id may be left out while there is one app)
GET    /_sim/ledger            what was seen: redemptions, replays, overlaps, calls, 401s
GET    /_sim/clock             POST {\"advance_seconds\": 1800}
GET    /_sim/config            POST {\"token_ttl_seconds\": 60, \"rotation\": \"never|always|grace|grace:<s>|omit\",
                               \"family_revocation\", \"v1_retired\", \"old_error_format\",
                               \"enforce_rate_limits\", \"date_follows_clock\": true|false,
                               \"calls_max\": 110, \"searches_max\": 5, \"retry_after\": \"absent|seconds|date\"}
GET    /_sim/faults            POST {\"at\": \"token|api\", \"fault\": \"rate_limited\", \"times\": 1, ...}; DELETE clears all
POST   /_sim/faults/release    lets held requests go
POST   /_sim/expire            {\"hub_id\": 1001}  its access tokens are expired from now on
POST   /_sim/uninstall         {\"client_id\", \"hub_id\"}
POST   /_sim/secret            {\"client_id\", \"client_secret\"}  the new one
POST   /_sim/portals/delete    {\"hub_id\"}  its refresh tokens answer BAD_HUB
GET    /_sim/apps              POST {\"client_id\", \"client_secret\", \"redirect_uris\", \"scopes\", \"app_id\"}
POST   /_sim/grants            {\"client_id\", \"hub_id\", \"scopes\"}  issues tokens without consent
POST   /_sim/unique            {\"object_type\": \"deals\", \"property\": \"order_number\"}  unique from now on
GET    /_sim/created?hub_id=1001&object_type=deals&property=dealname&value=Acme  how many were created so
POST   /_sim/static-tokens     {\"hub_id\", \"scopes\"}  a private app's token
POST   /_sim/static-tokens/revoke  {\"token\"}
POST   /_sim/reset             everything back to the start
";

/// Answers `/_sim/{rest}`.
pub(crate) fn answer(shared: &Shared, call: &Call, rest: &[&str]) -> Answer {
    match act(shared, call, rest) {
        Ok(answer) => answer,
        Err(problem) => Answer::json(
            problem.status,
            &json!({"error": problem.message, "see": "/_sim/"}),
        ),
    }
}

struct Problem {
    status: StatusCode,
    message: String,
}

impl Problem {
    fn bad_request(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            message: message.into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    advance_seconds: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSettings {
    token_ttl_seconds: Option<u64>,
    rotation: Option<Rotation>,
    family_revocation: Option<bool>,
    v1_retired: Option<bool>,
    old_error_format: Option<bool>,
    enforce_rate_limits: Option<bool>,
    date_follows_clock: Option<bool>,
    calls_max: Option<u32>,
    searches_max: Option<u32>,
    retry_after: Option<RetryAfter>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unique {
    object_type: String,
    property: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Install {
    client_id: Option<String>,
    hub_id: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    client_id: Option<String>,
    client_secret: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Portal {
    hub_id: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    client_id: Option<String>,
    hub_id: u64,
    scopes: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StaticGrant {
    hub_id: u64,
    scopes: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StaticToken {
    token: String,
}

fn act(shared: &Shared, call: &Call, rest: &[&str]) -> Result<Answer, Problem> {
    if call.method == Method::GET {
        return look(shared, call, rest).ok_or_else(|| unknown_route(call));
    }
    steer(shared, call, rest)
}

/// What changes nothing.
fn look(shared: &Shared, call: &Call, rest: &[&str]) -> Option<Answer> {
    Some(match rest {
        [] => Answer::text(StatusCode::OK, INDEX.to_owned()),
        ["ledger"] => {
            let ledger = shared.world.lock().ledger.clone();
            ok(&json!(ledger))
        }
        ["clock"] => ok(&clock_view(shared)),
        ["config"] => ok(&settings_view(&shared.world.lock())),
        ["faults"] => ok(&faults_view(shared)),
        ["apps"] => ok(&apps_view(&shared.world.lock())),
        ["created"] => {
            let hub_id = call.query("hub_id")?.parse().ok()?;
            let (object_type, property) = (call.query("object_type")?, call.query("property")?);
            let mut world = shared.world.lock();
            let records = world.records_mut(hub_id);
            let created = records.created(object_type, property, call.query("value")?);
            ok(&json!({"created": created}))
        }
        _ => return None,
    })
}

/// The simulator itself: clock, switches, faults.
fn steer(shared: &Shared, call: &Call, rest: &[&str]) -> Result<Answer, Problem> {
    Ok(match (call.method.as_str(), rest) {
        ("POST", ["clock"]) => {
            let step: Advance = read(call)?;
            let step = Duration::try_from_secs_f64(step.advance_seconds)
                .map_err(|error| Problem::bad_request(format!("advance_seconds: {error}")))?;
            shared.clock.advance(step);
            ok(&clock_view(shared))
        }
        ("POST", ["config"]) => {
            let new_settings: NewSettings = read(call)?;
            let mut world = shared.world.lock();
            change(&mut world, &new_settings);
            ok(&settings_view(&world))
        }
        ("POST", ["faults"]) => {
            let fault = Fault::from_json(&read(call)?).map_err(Problem::bad_request)?;
            shared.world.lock().faults.arm(fault);
            ok(&faults_view(shared))
        }
        ("DELETE", ["faults"]) => {
            shared.world.lock().faults.clear();
            ok(&faults_view(shared))
        }
        ("POST", ["faults", "release"]) => {
            let released = shared.gate.waiting();
            shared.gate.release();
            ok(&json!({"released": released}))
        }
        ("POST", ["reset"]) => {
            shared.reset();
            ok(&json!({"reset": true}))
        }
        ("POST", rest) => return intervene(shared, call, rest),
        _ => return Err(unknown_route(call)),
    })
}

/// What happens to apps, portals and grants.
fn intervene(shared: &Shared, call: &Call, rest: &[&str]) -> Result<Answer, Problem> {
    let now = shared.clock.now();
    Ok(match rest {
        ["expire"] => {
            let portal: Portal = read(call)?;
            ok(&json!({"expired": shared.world.lock().expire_access_tokens(now, portal.hub_id)}))
        }
        ["uninstall"] => {
            let install: Install = read(call)?;
            let mut world = shared.world.lock();
            let client_id = client_id(&world, install.client_id)?;
            world.uninstall(now, &client_id, install.hub_id);
            ok(&json!({"uninstalled": {"client_id": client_id, "hub_id": install.hub_id}}))
        }
        ["secret"] => {
            let secret: Secret = read(call)?;
            let mut world = shared.world.lock();
            let client_id = client_id(&world, secret.client_id)?;
            if let Some(app) = world.apps.get_mut(&client_id) {
                app.client_secret = secret.client_secret;
            }
            ok(&json!({"client_id": client_id}))
        }
        ["unique"] => {
            let Unique {
                object_type,
                property,
            } = read(call)?;
            let unique = UniqueProperty::new(&object_type, &property);
            shared.world.lock().declare_unique(unique);
            ok(&json!({"unique": {"object_type": object_type, "property": property}}))
        }
        ["portals", "delete"] => {
            let portal: Portal = read(call)?;
            shared.world.lock().delete_portal(portal.hub_id);
            ok(&json!({"deleted": portal.hub_id}))
        }
        ["apps"] => {
            let app: SimApp = read(call)?;
            let mut world = shared.world.lock();
            world
                .register(app)
                .map_err(|refused| Problem::bad_request(refused.to_string()))?;
            ok(&apps_view(&world))
        }
        ["grants"] => {
            let grant: Grant = read(call)?;
            let mut world = shared.world.lock();
            let client_id = client_id(&world, grant.client_id)?;
            let issued = world
                .grant(now, &client_id, grant.hub_id, grant.scopes)
                .map_err(|refusal| Problem::bad_request(refusal.message()))?;
            let mut body = token_answer(&issued, TokenUse::AccessToken, Version::Dated);
            body["client_id"] = json!(client_id);
            body["expires_at"] = json!(clock::iso(clock::after(now, issued.expires_in)));
            ok(&body)
        }
        ["static-tokens"] => {
            let grant: StaticGrant = read(call)?;
            let token = shared
                .world
                .lock()
                .issue_static_token(now, grant.hub_id, grant.scopes);
            ok(&json!({"access_token": token, "hub_id": grant.hub_id}))
        }
        ["static-tokens", "revoke"] => {
            let token: StaticToken = read(call)?;
            if !shared.world.lock().revoke_static_token(&token.token) {
                return Err(Problem::bad_request("this is no static token"));
            }
            ok(&json!({"revoked": true}))
        }
        _ => return Err(unknown_route(call)),
    })
}

fn unknown_route(call: &Call) -> Problem {
    Problem {
        status: StatusCode::NOT_FOUND,
        message: format!("there is no {} {} in the control API", call.method, call.path),
    }
}

/// The body as JSON; an empty one is an empty object.
fn read<T: DeserializeOwned>(call: &Call) -> Result<T, Problem> {
    let body = if call.body.is_empty() {
        b"{}".as_slice()
    } else {
        &call.body
    };
    serde_json::from_slice(body).map_err(|error| Problem::bad_request(error.to_string()))
}

/// The app named, or the only one there is.
fn client_id(world: &World, named: Option<String>) -> Result<String, Problem> {
    match named {
        Some(client_id) if world.apps.contains_key(&client_id) => Ok(client_id),
        Some(client_id) => Err(Problem::bad_request(format!(
            "there is no app with client_id {client_id:?}"
        ))),
        None => match world.apps.keys().collect::<Vec<_>>().as_slice() {
            [only] => Ok((*only).clone()),
            _ => Err(Problem::bad_request(
                "there are several apps: client_id is needed",
            )),
        },
    }
}

fn change(world: &mut World, new: &NewSettings) {
    let settings = &mut world.settings;
    if let Some(seconds) = new.token_ttl_seconds {
        settings.token_ttl = Duration::from_secs(seconds);
    }
    if let Some(rotation) = new.rotation {
        settings.rotation = rotation;
    }
    let limits = &mut settings.rate_limits;
    limits.calls_max = new.calls_max.unwrap_or(limits.calls_max);
    limits.searches_max = new.searches_max.unwrap_or(limits.searches_max);
    limits.retry_after = new.retry_after.unwrap_or(limits.retry_after);
    for (switch, new) in [
        (&mut settings.family_revocation, new.family_revocation),
        (&mut settings.v1_retired, new.v1_retired),
        (&mut settings.old_error_format, new.old_error_format),
        (&mut settings.enforce_rate_limits, new.enforce_rate_limits),
        (&mut settings.date_follows_clock, new.date_follows_clock),
    ] {
        if let Some(new) = new {
            *switch = new;
        }
    }
}

fn ok(body: &Value) -> Answer {
    Answer::json(StatusCode::OK, body)
}

fn clock_view(shared: &Shared) -> Value {
    json!({"now": clock::iso(shared.clock.now()), "ahead_seconds": shared.clock.offset().as_secs_f64()})
}

fn settings_view(world: &World) -> Value {
    json!(world.settings)
}

fn faults_view(shared: &Shared) -> Value {
    json!({"armed": shared.world.lock().faults.view(), "held": shared.gate.waiting()})
}

fn apps_view(world: &World) -> Value {
    json!({"apps": world.apps.values().collect::<Vec<_>>()})
}
