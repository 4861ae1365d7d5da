//! What goes wrong in a run, and how each of it ends in its time.

use std::time::Duration;

use tokio::time::sleep;

use super::{World, run_for};
use crate::provider::Outage;

impl World {
    pub(super) async fn misfortunes(&mut self, passed: Duration) {
        let faults = self.shared.scenario.faults.clone();
        let now = self.now();
        let slot = self.dice.below(self.slots.len());
        let connection = self.dice.below(self.shared.scenario.connections);
        if self.strikes(faults.kills_every, passed)
            && let Some(process) = &self.processes[slot]
        {
            self.note(&process.name, "is killed");
            process.kill();
        }
        if self.strikes(faults.stops_every, passed)
            && let Some(process) = &self.processes[slot]
        {
            self.note(&process.name, "is stopped");
            process.gate.stop();
        }
        if self.strikes(faults.partitions_every, passed) && self.cut_ends[slot].is_none() {
            let all = self.dice.happens(0.3);
            let ends = now + self.dice.mostly_short(Duration::from_secs(90));
            for other in 0..self.slots.len() {
                if all || other == slot {
                    self.note("network", &format!("cuts slot {other} off from the store"));
                    self.slots[other].link.cut();
                    self.cut_ends[other] = Some(ends);
                }
            }
        }
        if self.strikes(faults.disk_fails_every, passed) {
            self.note("disk", "is full from now on");
            self.slots[slot].disk.fails(true);
            self.disk_mends = Some(now + self.dice.mostly_short(Duration::from_secs(60)));
        }
        if self.strikes(faults.outages_every, passed) && self.outage_ends.is_none() {
            self.shared.provider.suffers(Some(self.dice.one_of(&Outage::ALL)));
            self.outage_ends = Some(now + self.dice.mostly_short(Duration::from_secs(60)));
        }
        if self.strikes(faults.clock_set_every, passed) {
            let millis = self.dice.between(Duration::ZERO, Duration::from_secs(120));
            let millis = i64::try_from(millis.as_millis()).unwrap_or(0);
            let millis = if self.dice.happens(0.3) { -millis } else { millis };
            self.note(
                "somebody",
                &format!("sets the clock of slot {slot} by {millis} ms"),
            );
            self.slots[slot].clocks.set_forward(millis);
        }
        if self.strikes(faults.uninstalls_every, passed) {
            self.shared.provider.uninstalls(connection);
        }
        if self.strikes(faults.leaves_every, passed) {
            self.leaves_or_returns(slot, connection);
        }
        if self.strikes(faults.failover_every, passed) {
            self.fail_over().await;
        }
    }

    fn leaves_or_returns(&mut self, slot: usize, connection: usize) {
        let Some(caller) = self.caller(slot) else {
            return;
        };
        let gate = caller.process.gate.clone();
        let patience = Duration::from_secs(120);
        if self.dice.happens(0.5) {
            self.note("owner", &format!("leaves connection {connection}"));
            run_for(&gate, patience, caller.clone().disconnect(connection));
            self.returns[connection] = Some(self.now() + self.dice.mostly_short(Duration::from_secs(60)));
            if self.dice.happens(0.1) {
                self.erased[connection] = true;
                run_for(&gate, patience, caller.purge(connection));
            }
        } else {
            self.returns(slot, connection);
        }
    }

    fn returns(&self, slot: usize, connection: usize) {
        if self.erased[connection] {
            return;
        }
        let Some(caller) = self.caller(slot) else {
            return;
        };
        self.note("customer", &format!("consents to connection {connection}"));
        let gate = caller.process.gate.clone();
        let code = self.shared.provider.new_code(connection);
        run_for(&gate, Duration::from_secs(120), async move {
            caller.consent(connection, code).await;
        });
    }

    /// A replica takes over that lacks the last commits.
    async fn fail_over(&mut self) {
        let replica = self.shared.database.snapshot();
        let behind = self.dice.mostly_short(Duration::from_secs(3));
        sleep(behind).await;
        self.shared.database.restore_snapshot(&replica);
        self.note(
            "database",
            &format!("fails over to a replica that is {behind:?} behind"),
        );
        self.shared.witness.loses_commits();
        self.look(true).await;
    }

    /// What was killed starts again, what was stopped goes on, what ails ends, each in its time.
    pub(super) fn supervise(&mut self) {
        let now = self.now();
        for slot in 0..self.slots.len() {
            let is_over = self.processes[slot]
                .as_ref()
                .is_some_and(|process| process.gate.is_killed());
            if is_over && let Some(process) = self.processes[slot].take() {
                process.kill();
                self.due[slot] = Some(now + self.dice.mostly_short(Duration::from_secs(40)));
            }
            let is_stopped = self.processes[slot]
                .as_ref()
                .is_some_and(|process| process.gate.is_stopped());
            if is_stopped && self.due[slot].is_none() {
                self.due[slot] = Some(now + self.dice.mostly_short(Duration::from_secs(70)));
            }
            if self.due[slot].is_some_and(|due| due <= now) {
                self.due[slot] = None;
                match &self.processes[slot] {
                    Some(process) => {
                        self.note(&process.name, "goes on");
                        process.gate.go_on();
                    }
                    None => self.start(slot),
                }
            }
            if self.cut_ends[slot].is_some_and(|ends| ends <= now) {
                self.note("network", &format!("lets slot {slot} reach the store"));
                self.cut_ends[slot] = None;
                self.slots[slot].link.mend();
            }
        }
        if self.outage_ends.is_some_and(|ends| ends <= now) {
            self.outage_ends = None;
            self.shared.provider.suffers(None);
        }
        if self.disk_mends.is_some_and(|mends| mends <= now) {
            self.disk_mends = None;
            for slot in &self.slots {
                slot.disk.fails(false);
            }
        }
        for connection in 0..self.returns.len() {
            if self.returns[connection].is_some_and(|at| at <= now) {
                self.returns[connection] = None;
                self.returns(self.dice.below(self.slots.len()), connection);
            }
        }
    }

    fn strikes(&self, every: Option<Duration>, passed: Duration) -> bool {
        every.is_some_and(|every| self.dice.happens(passed.as_secs_f64() / every.as_secs_f64()))
    }
}
