//! A backlog that a fleet works through: jobs that were enqueued an hour ago, Python processes with HubSpot's own client, services
//! on one PostgreSQL, and a HubSpot with its real limits and tokens that do not last.
//!
//! `plan` says how much, `queue` hands out jobs and books what became of them, `run` starts everything and judges it by the
//! simulator's ledger. What must hold:
//!
//! - no call arrives with an expired token, and none is answered 401;
//! - HubSpot refuses at most one call in a thousand with 429, since the fleet shares its budgets;
//! - every redemption is one that a connection's version stands for, none is repeated, and there are no more of them than tokens
//!   that were about to end;
//! - every job is done once: creates are counted by what HubSpot created; and jobs of a connection whose grant is gone are parked
//!   at their first run.
//!
//! `cargo xtask backlog` runs the same as long as it is told, with 50,000 jobs and 16 processes if it is told nothing.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

#[expect(dead_code, reason = "the rest of it is for the other whole-system tests")]
#[path = "../system/installation.rs"]
mod installation;
mod plan;
#[expect(dead_code, reason = "the rest of it is for the other whole-system tests")]
#[path = "../system/prepared.rs"]
mod prepared;
mod queue;
mod run;

use crate::plan::Plan;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_worked_through_without_an_expired_call_and_within_hubspots_limits() {
    run::run(&Plan::new()).await.assert_holds();
}

/// What the run above is worth: it is the budgets that hold the limits, not the machine that is too slow for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_budgets_hubspot_has_to_refuse_and_no_job_is_lost_all_the_same() {
    run::run(&Plan::without_budgets()).await.assert_refused();
}
