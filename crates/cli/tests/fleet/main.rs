//! Real faults, real processes: several `evergrant serve` on one store, under load, while the machine does its worst to them.
//! Processes get SIGKILL, SIGTERM and SIGSTOP, the database is shut down and crashes, the way to it is cut and falls silent, the
//! provider's token endpoint loses answers. Then everything heals, and what is judged is judged from outside: by the
//! simulator's ledger and by what callers got.
//!
//! `plan` makes the schedule of faults from a seed, `faults` carries it out on a `fleet`, `load` calls, `witness` judges every
//! answer, `verdict` holds the books of both sides against each other. Start reading at `run`.
//!
//! # What counts as lost, doubled, avoidable
//!
//! A **lost grant** is a connection that does not work again through every process within [`run::HEALS_WITHIN`] after the last fault.
//!
//! A **double redemption** is one that the provider accepted, that no version stands for, and that nothing explains. What
//! explains one: an answer that the simulator was told to lose, a holder that was killed, or stopped past its lease, while the
//! provider had its connection's refresh token or had answered less than a moment before, or a customer who consented anew.
//!
//! A **failed call** is an app's call through the gateway, or for a token, that is not answered 200. It was **unavoidable** only
//! if one of these holds, and avoidable in every other case:
//!
//! 1. *dead*: there is no answer, and the process was killed, going down or stopped at some moment of the call;
//! 2. *no store*: 503 `store_unavailable` with `Retry-After`, the process could not reach its store at some moment of the call or up
//!    to [`witness::AFTERSHOCK`] before it began, and had no token at hand that still served. A process has one at hand if it
//!    served one before, which nobody has replaced since and which has not ended, unless its store was away for longer than
//!    `max_stale`. A stopped process may hold a lock, so then nobody is sure to reach the store. Without its store a process has half
//!    of the budget that it used, so then a call through the gateway may also wait for its turn, find none (429 `budget_exhausted`), or
//!    find its token past its end;
//! 3. *no token*: 503 `provider_unavailable` or `overloaded` with `Retry-After`, every token that anybody has seen of the connection had
//!    ended or the process itself was stopped at some moment of the call, and up to [`witness::STANDSTILL`] before there was
//!    what keeps everybody from another one: the token endpoint failed, or a process died or was stopped, maybe with the lease;
//! 4. *no grant*: 424 `reconnect_required`, the provider takes a refresh token once, and an answer of this very connection may
//!    have been lost. Its customer then consents again; a connection is given up no more often than answers may have been lost.
//!
//! Besides, no process may ever serve a lower version than it has served before, nor any process two token sets under one
//! version, unless the first was in a lifeboat only when it was served, and its process was then killed or stopped; a
//! disconnected connection is served nowhere once the feed has told of it, and its grant is revoked in the end; and nothing that
//! is printed may look like a token.
//!
//! # Longer, and again
//!
//! `cargo xtask faults` runs the same for as long as it is told. A failure prints the command with its seed. The seed decides what
//! happens to whom and when; which instruction it meets is the machine's own doing.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod consent;
mod faults;
mod fleet;
#[expect(dead_code, reason = "the rest of it is for the other whole-system tests")]
#[path = "../system/installation.rs"]
mod installation;
mod load;
mod plan;
mod proxy;
mod run;
mod spells;
mod verdict;
mod witness;

use crate::plan::{Plan, Store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_on_postgresql_survives_what_happens_to_it() {
    run::run(Plan::new(Store::Postgres)).await.assert_holds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_on_sqlite_survives_what_happens_to_it() {
    run::run(Plan::new(Store::Sqlite)).await.assert_holds();
}
