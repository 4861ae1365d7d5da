//! The store of one simulated process: the real statements, behind a network that fails.
//!
//! Each step can be slow, be lost on the way there or on the way back, and be the last one of its process.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use evergrant_domain::access::Limits;
use evergrant_domain::breaker::Breaker;
use evergrant_domain::call_budget::{Claim, Grant};
use evergrant_domain::connection::{Account, RefreshTrouble};
use evergrant_domain::event::Event;
use evergrant_domain::refresh_policy::Jitter;
use evergrant_domain::{
    AppName, Connection, ConnectionId, Customer, ReconnectReason, RefreshToken, Timestamp, TokenSet, Version,
};
use evergrant_store::SqliteStore;
use evergrant_store::contract::{
    ApiKey, AppState, Authorization, BudgetName, Change, ConnectSession, Connected, ConnectionCount,
    ConnectionFilter, CooldownAnswer, CredentialsRejected, DueQuery, EventPage, EventQuery, EventTrim, Held,
    Landed, Lease, LeaseAnswer, LeaseOn, NewConnection, Presented, Pulse, RefreshCount, Refreshed, Reserved,
    Revocation, RevocationState, Revoke, SessionOutcome, Store, StoreError, Tallied, Usage, WriteEnd,
    WriteReservation, WriteTicket,
};
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::dice::Dice;
use crate::gate::Gate;
use crate::process::connection_id;
use crate::witness::Witness;

/// The way to the store of one process.
pub(crate) struct FaultyStore {
    pub(crate) process: String,
    pub(crate) store: SqliteStore,
    pub(crate) gate: Gate,
    pub(crate) dice: Dice,
    pub(crate) witness: Witness,
    pub(crate) link: Arc<Link>,
}

/// How the way between a process and the store is.
pub(crate) struct Link(Mutex<LinkState>);

struct LinkState {
    cut: bool,
    /// Nothing goes wrong: before the faults, and after them.
    calm: bool,
    /// When a step last failed or took long, and how many are about it.
    bad_at: Option<Duration>,
    hanging: u32,
}

/// A step that takes long.
struct Hanging<'a>(&'a Link, &'a Witness);

impl<'a> Hanging<'a> {
    fn on(link: &'a Link, witness: &'a Witness) -> Self {
        link.0.lock().hanging += 1;
        Self(link, witness)
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.0.lock().hanging -= 1;
        self.0.went_badly(self.1.now());
    }
}

impl Link {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(LinkState {
            cut: false,
            calm: true,
            bad_at: None,
            hanging: 0,
        }))
    }

    /// From now on things go wrong.
    pub(crate) fn trouble(&self) {
        self.0.lock().calm = false;
    }

    pub(crate) fn cut(&self) {
        self.0.lock().cut = true;
    }

    pub(crate) fn mend(&self) {
        self.0.lock().cut = false;
    }

    /// From now on everything goes well.
    pub(crate) fn heal(&self) {
        let mut state = self.0.lock();
        state.cut = false;
        state.calm = true;
    }

    fn is_cut(&self) -> bool {
        self.0.lock().cut
    }

    fn is_calm(&self) -> bool {
        self.0.lock().calm
    }

    fn went_badly(&self, now: Duration) {
        self.0.lock().bad_at = Some(now);
    }

    /// Whether every step since then was quick and did what it was asked.
    pub(crate) fn was_good_since(&self, since: Duration) -> bool {
        let state = self.0.lock();
        !state.cut && state.hanging == 0 && state.bad_at.is_none_or(|at| at < since)
    }
}

const QUICK: Duration = Duration::from_millis(20);
const SLOW: Duration = Duration::from_secs(3);
/// How long a step waits for a store that it cannot reach.
const GIVES_UP: Duration = Duration::from_secs(5);

/// Between its evaluation and the first byte of a request nothing may come: what the guarantees rest on.
const LAST_CHECK: &str = "lease_lasts";

/// Steps after which what is stored is looked at.
const CHANGE: [&str; 8] = [
    "create",
    "reconnect",
    "land",
    "restore",
    "condemn",
    "disconnect",
    "purge",
    "give_up",
];

impl FaultyStore {
    async fn before(&self, step: &'static str) -> Result<(), StoreError> {
        let faults = &self.witness.scenario.faults;
        if !self.link.is_calm() {
            if self.dice.happens(faults.kill_at_step) {
                self.witness
                    .trace
                    .note(&self.process, format_args!("is killed before {step}"));
                self.gate.kill();
            }
            if self.dice.happens(faults.stop_at_step) {
                self.witness
                    .trace
                    .note(&self.process, format_args!("is stopped before {step}"));
                self.gate.stop();
            }
            self.gate.pass().await;
            if self.dice.happens(faults.store_slow) {
                let _hanging = Hanging::on(&self.link, &self.witness);
                sleep(self.dice.between(QUICK, SLOW)).await;
            }
            if self.dice.happens(faults.store_before) {
                self.went_wrong(step, "fails");
                return Err(away(false));
            }
        }
        sleep(self.dice.mostly_short(QUICK)).await;
        if self.link.is_cut() {
            self.went_wrong(step, "does not reach the store");
            // Some networks say so, others say nothing.
            if self.dice.happens(0.5) {
                let _hanging = Hanging::on(&self.link, &self.witness);
                sleep(self.dice.between(QUICK, GIVES_UP)).await;
            }
            return Err(away(false));
        }
        Ok(())
    }

    async fn after(&self, step: &'static str) -> Result<(), StoreError> {
        if CHANGE.contains(&step) {
            self.look().await;
        }
        if step == LAST_CHECK {
            return Ok(());
        }
        let faults = &self.witness.scenario.faults;
        if !self.link.is_calm() {
            if self.dice.happens(faults.kill_at_step) {
                self.witness
                    .trace
                    .note(&self.process, format_args!("is killed after {step}"));
                self.gate.kill();
            }
            if self.dice.happens(faults.stop_at_step) {
                self.witness
                    .trace
                    .note(&self.process, format_args!("is stopped after {step}"));
                self.gate.stop();
            }
            self.gate.pass().await;
            if self.dice.happens(faults.store_after) || self.link.is_cut() {
                self.went_wrong(step, "is done, and nobody says so");
                if self.dice.happens(0.5) {
                    let _hanging = Hanging::on(&self.link, &self.witness);
                    sleep(self.dice.between(QUICK, GIVES_UP)).await;
                }
                return Err(away(true));
            }
        }
        sleep(self.dice.mostly_short(QUICK)).await;
        Ok(())
    }

    fn went_wrong(&self, step: &'static str, how: &str) {
        self.link.went_badly(self.witness.now());
        self.witness
            .trace
            .note(&self.process, format_args!("{step} {how}"));
    }

    /// What stands in the store now, for the witness.
    async fn look(&self) {
        for connection in 0..self.witness.scenario.connections {
            if let Ok(held) = self.store.held(&connection_id(connection)).await {
                self.witness
                    .stores(connection, held.as_ref(), &self.process, false);
            }
        }
    }
}

fn away(outcome_unknown: bool) -> StoreError {
    StoreError::Unavailable {
        what: "the simulation says so".to_owned(),
        outcome_unknown,
    }
}

macro_rules! steps {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for FaultyStore {
            async fn take_lease(
                &self,
                id: &ConnectionId,
                version: Version,
                lasts: Duration,
                on: LeaseOn,
                now: Timestamp,
            ) -> Result<LeaseAnswer, StoreError> {
                self.before("take_lease").await?;
                let answer = self.store.take_lease(id, version, lasts, on, now).await;
                let taken = match &answer {
                    Ok(LeaseAnswer::Taken { held, .. }) => held.tokens.as_ref(),
                    _ => None,
                };
                let token = taken.and_then(|tokens| tokens.refresh_token.clone());
                if let Some(token) = &token {
                    self.witness.takes(token.expose(), &self.gate, on);
                }
                let told = self.after("take_lease").await;
                if let (Some(token), Err(_)) = (&token, &told) {
                    self.witness.excuses_an_attempt(token.expose());
                }
                told?;
                answer
            }

            async fn give_up(
                &self,
                lease: &Lease,
                presented: Presented,
                trouble: Option<RefreshTrouble>,
                event: Option<Event>,
                now: Timestamp,
            ) -> Result<(), StoreError> {
                let asked = async {
                    self.before("give_up").await?;
                    let answer = self.store.give_up(lease, presented, trouble, event, now).await;
                    self.after("give_up").await?;
                    answer
                };
                let answer = asked.await;
                if answer.is_err()
                    && let Some(token) = self.witness.stored_refresh_token(lease.connection())
                {
                    self.witness.excuses_an_attempt(&token);
                }
                answer
            }

            $(async fn $name(&self, $($arg: $type),*) -> Result<$answer, StoreError> {
                self.before(stringify!($name)).await?;
                let answer = self.store.$name($($arg),*).await;
                self.after(stringify!($name)).await?;
                answer
            })*

            async fn hint(&self) {
                self.store.hint().await;
            }
        }
    };
}

evergrant_store::for_plain_methods! { steps! {
    fn renew_lease(lease: &Lease, lasts: Duration) -> bool;
    fn pulse() -> Pulse;
    fn lease_lasts(lease: &Lease, at_least: Duration) -> bool;
} }
