//! Those who use the fleet while things happen to it.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::consent::consents;
use crate::fleet::{Fleet, id, portal};
use crate::plan::{CONNECTIONS, PROCESSES, Random};
use crate::witness::{AFTERSHOCK, Kind, Seen};

/// How long a caller waits whose call failed.
const AFTER_A_FAILURE: Duration = Duration::from_millis(250);

/// Everybody, until the fleet ends.
pub(crate) fn begin(fleet: &Arc<Fleet>) -> JoinSet<()> {
    let mut users = JoinSet::new();
    for process in 0..PROCESSES {
        for connection in 0..CONNECTIONS {
            users.spawn(calls(fleet.clone(), process, connection));
        }
        users.spawn(fetches_tokens(fleet.clone(), process));
    }
    users.spawn(refreshes(fleet.clone()));
    users.spawn(comes_and_goes(fleet.clone()));
    users.spawn(consents_anew(fleet.clone()));
    users.spawn(consents_where_needed(fleet.clone()));
    users
}

fn chance(fleet: &Fleet, user: usize) -> Random {
    Random(fleet.plan.seed ^ (user as u64) << 32)
}

async fn calls(fleet: Arc<Fleet>, process: usize, connection: usize) {
    let mut chance = chance(&fleet, process * CONNECTIONS + connection);
    while fleet.goes_on() {
        let served = call(&fleet, process, connection).await;
        sleep(if served {
            chance.millis(40, 160)
        } else {
            AFTER_A_FAILURE
        })
        .await;
    }
}

/// One call through the gateway of a process.
pub(crate) async fn call(fleet: &Fleet, process: usize, connection: usize) -> bool {
    let path = format!("/gateway/{}/crm/v3/objects/contacts?limit=1", id(connection));
    let seen = &fleet.seen[connection];
    let call = seen.begin(process, Kind::Gateway, fleet);
    let answer = fleet.ask(process, Method::GET, &path, None).await;
    seen.end(fleet, portal(connection), &call, &answer)
}

async fn fetches_tokens(fleet: Arc<Fleet>, process: usize) {
    for connection in (0..CONNECTIONS).cycle() {
        if !fleet.goes_on() {
            return;
        }
        let seen = &fleet.seen[connection];
        let served = fetch_token(&fleet, process, &id(connection), portal(connection), seen).await;
        sleep(if served {
            Duration::from_millis(50)
        } else {
            AFTER_A_FAILURE
        })
        .await;
    }
}

/// One token of a process.
pub(crate) async fn fetch_token(fleet: &Fleet, process: usize, id: &str, portal: u64, seen: &Seen) -> bool {
    let path = format!("/v1/connections/{id}/token");
    let call = seen.begin(process, Kind::Token, fleet);
    let answer = fleet.ask(process, Method::GET, &path, None).await;
    seen.end(fleet, portal, &call, &answer)
}

async fn refreshes(fleet: Arc<Fleet>) {
    let mut chance = chance(&fleet, 1000);
    while fleet.goes_on() {
        let (process, connection) = (chance.below(PROCESSES), chance.below(CONNECTIONS));
        let path = format!("/v1/connections/{}/refresh", id(connection));
        let body = json!({"force": chance.below(2) == 0});
        let seen = &fleet.seen[connection];
        let call = seen.begin(process, Kind::Refresh, &fleet);
        let answer = fleet.ask(process, Method::POST, &path, Some(body)).await;
        seen.end(&fleet, portal(connection), &call, &answer);
        sleep(chance.millis(300, 900)).await;
    }
}

/// One customer consents again every now and then, although nothing is wrong. The others' books stay free of what that may explain.
async fn consents_anew(fleet: Arc<Fleet>) {
    const CONNECTION: usize = CONNECTIONS - 1;
    let mut chance = chance(&fleet, 3000);
    while fleet.goes_on() {
        if consents(&fleet, chance.below(PROCESSES), CONNECTION).await {
            fleet.tally.count(|counts| counts.consents += 1);
        }
        sleep(chance.millis(2000, 6000)).await;
    }
}

/// Customers come back whose connection was given up.
async fn consents_where_needed(fleet: Arc<Fleet>) {
    let mut chance = chance(&fleet, 4000);
    for connection in (0..CONNECTIONS).cycle() {
        let mut is_new = true;
        while fleet.goes_on() && is_given_up(&fleet, chance.below(PROCESSES), connection).await {
            if is_new {
                fleet.books.given_up(portal(connection));
                is_new = false;
            }
            if consents(&fleet, chance.below(PROCESSES), connection).await {
                fleet.tally.count(|counts| counts.consents += 1);
            }
            sleep(AFTER_A_FAILURE).await;
        }
        if !fleet.goes_on() {
            return;
        }
        sleep(AFTER_A_FAILURE).await;
    }
}

async fn is_given_up(fleet: &Fleet, process: usize, connection: usize) -> bool {
    let path = format!("/v1/connections/{}", id(connection));
    let record = fleet.ask(process, Method::GET, &path, None).await;
    record.is_ok_and(|record| record.status == 200 && record.json()["status"] == "reconnect_required")
}

/// Connections are made at one process, used at all of them, ended at another one, and served nowhere from then on.
async fn comes_and_goes(fleet: Arc<Fleet>) {
    let mut chance = chance(&fleet, 2000);
    for number in 0.. {
        if !fleet.goes_on() {
            return;
        }
        let (id, portal) = (format!("passing-{number}"), 100_000 + number);
        let seen = Seen::default();
        if comes(&fleet, &id, portal, &seen, &mut chance).await {
            goes(&fleet, &id, portal, &seen, &mut chance).await;
        }
        sleep(chance.millis(500, 1500)).await;
    }
}

async fn comes(fleet: &Fleet, id: &str, portal: u64, seen: &Seen, chance: &mut Random) -> bool {
    let process = chance.below(PROCESSES);
    let call = seen.begin(process, Kind::Refresh, fleet);
    let made = fleet.import(process, id, portal).await;
    if !made.as_ref().is_ok_and(|made| made.status == 201) {
        seen.end(fleet, portal, &call, &made);
        return false;
    }
    fleet.tally.count(|counts| counts.connected += 1);
    for process in 0..PROCESSES {
        fetch_token(fleet, process, id, portal, seen).await;
    }
    true
}

async fn goes(fleet: &Fleet, id: &str, portal: u64, seen: &Seen, chance: &mut Random) {
    /// The feed is read twice a second.
    const TOLD: Duration = Duration::from_secs(2);
    let process = chance.below(PROCESSES);
    let path = format!("/v1/connections/{id}");
    let began = Instant::now();
    let call = seen.begin(process, Kind::Refresh, fleet);
    let ended = fleet.ask(process, Method::DELETE, &path, None).await;
    if !ended.as_ref().is_ok_and(|ended| ended.status == 202) {
        seen.end(fleet, portal, &call, &ended);
        return;
    }
    fleet.tally.count(|counts| counts.disconnected += 1);
    fleet.books.disconnected(portal);
    sleep(TOLD).await;
    for process in 0..PROCESSES {
        let path = format!("/v1/connections/{id}/token");
        let answer = fleet.ask(process, Method::GET, &path, None).await;
        if answer.is_ok_and(|answer| answer.status == 200)
            && !fleet.troubles.store_since(process, began, AFTERSHOCK)
        {
            fleet
                .tally
                .wrong(format!("process {process} served {id} after it was disconnected"));
        }
    }
}
