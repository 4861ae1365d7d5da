//! One run, from the first process to the verdict.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::faults::carry_out;
use crate::fleet::{Fleet, id, portal};
use crate::load;
use crate::plan::{CONNECTIONS, Fault, PROCESSES, Plan};
use crate::verdict::Report;

/// How long after the last fault every connection works again at the latest, through every process: the lease of a holder that
/// died at last, the wait after a few failures, an exchange.
pub(crate) const HEALS_WITHIN: Duration = Duration::from_secs(60);

/// Lines of a short run's failure that say what the processes said last; that of a long one says all.
const PRINTED: usize = 60;

/// Carries out a plan and judges what came of it.
pub(crate) async fn run(plan: Plan) -> Report {
    println!("{}", plan.command());
    let began = Instant::now();
    let fleet = Fleet::start(plan).await;
    let before = versions(&fleet).await;
    let watching = tokio::spawn(watch(fleet.clone()));
    let mut users = load::begin(&fleet);

    let mut report = Report {
        command: plan.command(),
        ..Report::default()
    };
    let mut happening = JoinSet::new();
    let storm = Instant::now();
    for planned in plan.schedule() {
        sleep_until(storm + planned.at).await;
        *report.faults.entry(name(planned.fault)).or_default() += 1;
        happening.spawn(carry_out(fleet.clone(), planned.fault));
        while let Some(over) = happening.try_join_next() {
            over.unwrap();
        }
    }
    while let Some(over) = happening.join_next().await {
        over.unwrap();
    }
    fleet.installation.hubspot.clear_faults();

    let healing = Instant::now();
    for connection in 0..CONNECTIONS {
        if timeout(
            HEALS_WITHIN.saturating_sub(healing.elapsed()),
            heals(&fleet, connection),
        )
        .await
        .is_err()
        {
            report.lost_grants += 1;
            let record = fleet
                .ask(
                    0,
                    Method::GET,
                    &format!("/v1/connections/{}", id(connection)),
                    None,
                )
                .await;
            report
                .wrong
                .push(format!("{} does not work again: {record:?}", id(connection)));
        }
    }
    report.healed_in = healing.elapsed();
    fleet.end();
    while let Some(user) = users.join_next().await {
        user.unwrap();
    }
    for portal in unrevoked(&fleet).await {
        report
            .wrong
            .push(format!("portal {portal} was disconnected and its grant lives"));
    }
    watching.await.unwrap();
    for process in 0..PROCESSES {
        let mut running = fleet.turn(process).await;
        fleet.kill(process, &mut running, Signal::TERM).await;
    }
    bring_ashore(&fleet).await;

    let after = versions(&fleet).await;
    let grown = after
        .iter()
        .map(|(connection, version)| (portal(*connection), version - before[connection]))
        .collect();
    let ledger = fleet.books.look(&fleet.installation.hubspot);
    report.judge(&fleet.books, &ledger, &grown);
    report.counts = fleet.tally.counts.lock().unwrap().clone();
    report.wrong.append(&mut fleet.tally.wrong.lock().unwrap());
    let printed = fleet.installation.printed();
    for line in printed.lines().filter(|line| holds_a_secret(line)) {
        report
            .wrong
            .push(format!("printed: {}…", &line[..line.len().min(80)]));
    }
    let lines: Vec<_> = printed.lines().collect();
    let shown = plan.minutes.map_or(PRINTED, |_| lines.len());
    report.printed = lines[lines.len().saturating_sub(shown)..].join("\n");
    report.diary = fleet.tally.diary.lock().unwrap().join("\n");
    report.took = began.elapsed();
    report
}

/// A process that goes down while its store is slow leaves what it has in its lifeboat, for the next one. Here is the next one.
async fn bring_ashore(fleet: &Fleet) {
    const AGAIN: Duration = Duration::from_millis(200);
    for process in 0..PROCESSES {
        if !fleet.has_lifeboat_entries(process) {
            continue;
        }
        let mut running = fleet.turn(process).await;
        fleet.revive(process, &mut running).await;
        let landing = timeout(HEALS_WITHIN, async {
            while fleet.has_lifeboat_entries(process) {
                sleep(AGAIN).await;
            }
        });
        landing.await.expect("what is in a lifeboat lands");
        fleet.kill(process, &mut running, Signal::TERM).await;
    }
}

/// Copies the provider's books often enough to know when what was accepted.
async fn watch(fleet: Arc<Fleet>) {
    while fleet.goes_on() {
        fleet.books.look(&fleet.installation.hubspot);
        sleep(Duration::from_millis(25)).await;
    }
}

/// Returns once a connection works through every process, and can be refreshed.
async fn heals(fleet: &Fleet, connection: usize) {
    const AGAIN: Duration = Duration::from_millis(200);
    for process in 0..PROCESSES {
        while !load::call(fleet, process, connection).await
            || !load::fetch_token(
                fleet,
                process,
                &id(connection),
                portal(connection),
                &fleet.seen[connection],
            )
            .await
        {
            sleep(AGAIN).await;
        }
    }
    let path = format!("/v1/connections/{}/refresh", id(connection));
    loop {
        let forced = Some(json!({"force": true}));
        let answer = fleet
            .ask(connection % PROCESSES, Method::POST, &path, forced)
            .await;
        if answer.is_ok_and(|answer| answer.status == 200) {
            return;
        }
        sleep(AGAIN).await;
    }
}

/// The accounts whose connection was ended and whose grant still lives, although there was time to revoke it.
async fn unrevoked(fleet: &Fleet) -> Vec<u64> {
    /// Whoever claims a revocation and dies leaves it to the next one, a minute later.
    const REVOKED_WITHIN: Duration = Duration::from_secs(75);
    const AGAIN: Duration = Duration::from_millis(200);
    let since = Instant::now();
    loop {
        let ledger = fleet.books.look(&fleet.installation.hubspot);
        let unrevoked = fleet.books.unrevoked(&ledger);
        if unrevoked.is_empty() || since.elapsed() > REVOKED_WITHIN {
            return unrevoked;
        }
        sleep(AGAIN).await;
    }
}

/// The version of each connection that stays, as the command line reads it from the store.
async fn versions(fleet: &Fleet) -> BTreeMap<usize, u64> {
    let mut versions = BTreeMap::new();
    for connection in 0..CONNECTIONS {
        let mut command = fleet.command();
        command.args(["connections", "show", &id(connection), "--json"]);
        let shown = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
            .unwrap();
        assert!(
            shown.status.success(),
            "{}",
            String::from_utf8_lossy(&shown.stderr)
        );
        let record: Value = serde_json::from_slice(&shown.stdout).unwrap();
        versions.insert(connection, record["version"].as_u64().unwrap());
    }
    versions
}

/// Whether a line has anything in it that looks like an access token, a refresh token, an API key or the app's secret.
fn holds_a_secret(line: &str) -> bool {
    let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    let is_grant = |word: &str| word.split('-').map(str::len).eq([3, 4, 4, 4, 4, 12]);
    words
        .into_iter()
        .any(|word| word.len() >= 48 || word.starts_with("evg_") || word == "sim-secret" || is_grant(word))
}

fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::Kill { in_refresh_of, .. } => in_refresh_of.map_or("killed", |_| "killed in a refresh"),
        Fault::Replace { .. } => "replaced",
        Fault::Stop { in_refresh_of, .. } => in_refresh_of.map_or("stopped", |_| "stopped in a refresh"),
        Fault::Database { crash: true, .. } => "database crashed",
        Fault::Database { crash: false, .. } => "database restarted",
        Fault::Castaway { .. } => "killed with an answer in hand",
        Fault::Cut { .. } => "cut off",
        Fault::Silence { .. } => "silence",
        Fault::Endpoint { how, .. } => how.name(),
        Fault::Flush => "Redis emptied",
        Fault::Redis { .. } => "Redis restarted",
    }
}

#[test]
fn what_looks_like_a_secret_is_found_and_ids_are_not() {
    for secret in [
        format!("token C{} leaked", "x".repeat(60)),
        "{\"refresh_token\":\"na1-0123-4567-89ab-cdef-0123456789ab\"}".to_owned(),
        "Bearer evg_AAAA".to_owned(),
        "secret=sim-secret".to_owned(),
    ] {
        assert!(holds_a_secret(&secret), "{secret}");
    }
    assert!(!holds_a_secret(
        "{\"request_id\":\"0198c6e2-7a5b-7000-8000-000000000000\",\"connection_id\":\"steady-1\"}"
    ));
}
