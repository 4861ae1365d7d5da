//! Carries out what was planned.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hubspot_sim::FaultKind;
use rustix::process::Signal;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};

use crate::fleet::{Fleet, connection_of, portal};
use crate::plan::{Endpoint, Fault};

/// How long a redemption takes at most from the provider's yes until its answer is safe, on a machine that is busy: the store alone is
/// waited for for a second, then the lifeboat is written beside.
const BETWEEN_ANSWER_AND_SAFETY: Duration = Duration::from_secs(3);
/// How long a token request is on its way at most.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// From here on a holder's lease may be somebody else's when it goes on.
const LEASE: Duration = Duration::from_secs(30);

/// One fault from its beginning to its end.
pub(crate) async fn carry_out(fleet: Arc<Fleet>, fault: Fault) {
    fleet.tally.write_down(&format!("{fault:?} begins"));
    happen(&fleet, fault).await;
    fleet.tally.write_down(&format!("{fault:?} is over"));
}

async fn happen(fleet: &Arc<Fleet>, fault: Fault) {
    let troubles = &fleet.troubles;
    match fault {
        Fault::Kill {
            process,
            in_refresh_of,
            away,
        } => {
            let mut running = fleet.turn(process).await;
            if let Some(connection) = in_refresh_of {
                fleet.in_refresh_of(process, connection).await;
            }
            let killed = Instant::now();
            fleet.kill(process, &mut running, Signal::KILL).await;
            explain_losses(fleet, process, killed).await;
            sleep(away).await;
            fleet.revive(process, &mut running).await;
        }
        Fault::Replace { process } => {
            let mut running = fleet.turn(process).await;
            fleet.kill(process, &mut running, Signal::TERM).await;
            fleet.revive(process, &mut running).await;
        }
        Fault::Stop {
            process,
            in_refresh_of,
            lasts,
        } => {
            let running = fleet.turn(process).await;
            if let Some(connection) = in_refresh_of {
                fleet.in_refresh_of(process, connection).await;
            }
            let service = running.as_ref().unwrap();
            troubles.stopped[process].begin();
            service.signal(Signal::STOP);
            if lasts >= LEASE {
                explain_losses(fleet, process, Instant::now()).await;
            }
            sleep(lasts).await;
            service.signal(Signal::CONT);
            troubles.stopped[process].end();
            if lasts >= LEASE {
                // It may have been stopped between the last check and the first byte.
                explain_losses(fleet, process, Instant::now()).await;
            }
        }
        Fault::Database {
            crash,
            in_refresh_of,
            away,
        } => lose_database(fleet, crash, in_refresh_of, away).await,
        Fault::Castaway {
            process,
            in_refresh_of,
        } => cast_away(fleet, process, in_refresh_of).await,
        Fault::Cut { process } => {
            troubles.cut_off[process].mark();
            fleet.proxy(process).unwrap().cut();
        }
        Fault::Silence { process, lasts } => {
            let _running = fleet.turn(process).await;
            let proxy = fleet.proxy(process).unwrap();
            troubles.cut_off[process].begin();
            proxy.silence();
            sleep(lasts).await;
            proxy.let_pass();
            troubles.cut_off[process].end();
        }
        Fault::Endpoint { connection, how } => {
            troubles.endpoint[connection].mark();
            if how.loses_answers() {
                fleet.books.answer_lost(portal(connection));
            }
            let fault = hubspot_sim::Fault::token(kind(how)).hub(portal(connection));
            fleet.installation.hubspot.arm(fault);
        }
        Fault::Flush => block_in_place(|| fleet.redis.as_ref().unwrap().flush()),
        Fault::Redis { away } => {
            let redis = fleet.redis.as_ref().unwrap();
            block_in_place(|| redis.stop());
            sleep(away).await;
            block_in_place(|| redis.start());
        }
    }
}

async fn lose_database(fleet: &Arc<Fleet>, crash: bool, in_refresh_of: Option<usize>, away: Duration) {
    let database = fleet.database.as_ref().unwrap();
    let _turn = database.turn.lock().await;
    if let Some(connection) = in_refresh_of {
        fleet.in_refresh_of(0, connection).await;
    }
    fleet.troubles.store.begin();
    block_in_place(|| {
        if crash {
            database.server.crash();
        } else {
            database.server.stop();
        }
    });
    sleep(away).await;
    block_in_place(|| database.server.start());
    fleet.troubles.store.end();
}

/// Nothing explains a loss here: what the provider has issued is in the lifeboat when the process is killed.
async fn cast_away(fleet: &Arc<Fleet>, process: usize, connection: usize) {
    /// The slowest answer, 2.5 s, then the second for which the store alone is waited for, and the machine's own slowness.
    const IN_THE_LIFEBOAT: Duration = Duration::from_secs(6);
    let database = fleet.database.as_ref().unwrap();
    let mut running = fleet.turn(process).await;
    let _turn = database.turn.lock().await;
    fleet.in_refresh_of(process, connection).await;
    fleet.troubles.store.begin();
    block_in_place(|| database.server.stop());
    sleep(IN_THE_LIFEBOAT).await;
    fleet.kill(process, &mut running, Signal::KILL).await;
    block_in_place(|| database.server.start());
    fleet.troubles.store.end();
    fleet.revive(process, &mut running).await;
}

fn kind(how: Endpoint) -> FaultKind {
    match how {
        Endpoint::AnswerLost => FaultKind::AnswerLostAfterIssue,
        Endpoint::Truncated => FaultKind::TruncatedJsonAfterIssue,
        Endpoint::Empty => FaultKind::EmptyBody,
        Endpoint::FailsAfter => FaultKind::StatusAfterIssue { code: 500 },
        Endpoint::Slow => FaultKind::Slow { delay_ms: 2500 },
        Endpoint::Fails => FaultKind::Status {
            code: 500,
            location: None,
        },
        Endpoint::RateLimited => FaultKind::RateLimited {
            policy: hubspot_sim::RateLimitPolicy::default(),
            retry_after: Some(1),
        },
        Endpoint::Cut => FaultKind::CutBeforeIssue,
    }
}

/// A process has just been killed or stopped: every connection with an answer that is unsettled may have lost it. While the store
/// is away, answers wait in memory.
async fn explain_losses(fleet: &Fleet, process: usize, lost: Instant) {
    // It may have taken a while until it was gone.
    let mut before = BETWEEN_ANSWER_AND_SAFETY + lost.elapsed();
    if let Some(began) = fleet.troubles.store_away_since(process) {
        before += began.elapsed();
    }
    // Two may be lost of one account: what was accepted and not seen yet, and what arrives although its holder is gone.
    let accepted = unsettled(fleet, before);
    sleep(ON_ITS_WAY).await;
    let arrived = unsettled(fleet, ON_ITS_WAY);
    for portal in accepted.into_iter().chain(arrived) {
        fleet.books.holder_lost(portal);
    }
}

/// The accounts whose refresh token the provider has, or has accepted within this time without the versions for that being seen
/// since.
fn unsettled(fleet: &Fleet, within: Duration) -> BTreeSet<u64> {
    let hot = fleet.books.hot(&fleet.installation.hubspot, within);
    let is_settled = |portal, accepted: &[Instant]| {
        let Some((first, connection)) = accepted.first().zip(connection_of(portal)) else {
            return false;
        };
        fleet.seen[connection].grown_since(*first) >= accepted.len() as u64
    };
    hot.into_iter()
        .filter(|(portal, accepted)| !is_settled(*portal, accepted))
        .map(|(portal, _)| portal)
        .collect()
}
