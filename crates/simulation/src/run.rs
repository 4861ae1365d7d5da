//! One run: things go wrong for a while, then they heal, and everything must be well again.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::ConnectionStatus;
use evergrant_keeper::Renewal;
use evergrant_store::sqlite::simulated::{Clocks as DatabaseClocks, Like, SimulatedDatabase};
use evergrant_store::{SqliteStore, Store as _, Vault, VaultKey};
use tokio::time::sleep;

use crate::calls::Caller;
use crate::clocks::Clocks;
use crate::dice::Dice;
use crate::disk::Disk;
use crate::log::Captured;
use crate::process::{Process, Shared, Slot, app, connection_id};
use crate::provider::{Outage, Provider};
use crate::scenario::{Class, Scenario};
use crate::store::Link;
use crate::trace::Trace;
use crate::violation::{Oracle, Violation};
use crate::witness::Witness;

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// The seed that decided it.
    pub seed: u64,
    /// What went wrong in it.
    pub class: Class,
    /// The run in one line.
    pub what: String,
    /// What must never be, and was.
    pub violations: Vec<Violation>,
    /// One number for everything that happened.
    pub hash: u64,
    /// Everything that happened, where it was asked for.
    pub trace: Vec<String>,
    /// Refresh tokens that were redeemed.
    pub redeemed: usize,
}

/// Whether a run writes down what happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracing {
    /// For people to read.
    Kept,
    /// For its hash alone.
    Hashed,
}

/// Runs what `seed` stands for; as one of `class`, where that is named.
///
/// # Panics
///
/// Where the machine has no memory for a database.
pub fn run(seed: u64, class: Option<Class>, tracing: Tracing) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without input and output needs nothing");
    runtime.block_on(async {
        let scenario = Arc::new(Scenario::new(seed, class));
        let trace = Trace::begin(tracing == Tracing::Kept);
        let captured = Captured::new(&trace);
        let _log = tracing::subscriber::set_default(captured.clone());
        let mut world = World::new(&scenario, &trace);
        world.go_through().await;
        if let Some(line) = captured.leaked() {
            world.shared.witness.blame(Oracle::Secrets, line);
        }
        let redeemed = {
            let witnessed = world.shared.witness.seen();
            let exchanges = witnessed.exchanges.iter();
            exchanges.filter(|exchange| exchange.brought_tokens()).count()
        };
        Report {
            seed,
            class: scenario.class,
            what: scenario.to_string(),
            violations: world.shared.witness.violations(),
            hash: trace.hash(),
            trace: trace.lines(),
            redeemed,
        }
    })
}

/// After the faults have healed, so much time until everything must be well.
const HEALS_WITHIN: Duration = Duration::from_secs(20 * 60);
const LOOKS_EVERY: Duration = Duration::from_secs(4);

struct World {
    shared: Shared,
    dice: Dice,
    slots: Vec<Slot>,
    /// The processes, by slot; `None` while it is down.
    processes: Vec<Option<Process>>,
    /// When the next thing is done to a slot: a start, or a SIGCONT.
    due: Vec<Option<Duration>>,
    /// Looks at the store from nowhere.
    eye: SqliteStore,
    outage_ends: Option<Duration>,
    cut_ends: Vec<Option<Duration>>,
    disk_mends: Option<Duration>,
    /// Connections that were left, and come back.
    returns: Vec<Option<Duration>>,
    /// Connections that were left for good.
    erased: Vec<bool>,
}

impl World {
    fn new(scenario: &Arc<Scenario>, trace: &Trace) -> Self {
        let dice = Dice::new(scenario.seed);
        let witness = Witness::new(trace, scenario);
        let machine = Clocks::new(trace, Duration::from_secs(1000), 0, 0);
        let database =
            SimulatedDatabase::new(database_clocks(&machine), scenario.like).expect("a database in memory");
        let key = VaultKey::from_base64(VAULT_KEY).expect("a literal key");
        let vault = Arc::new(Vault::new(key));
        let holder = database.holder("witness");
        let eye = SqliteStore::simulated(&database, Arc::clone(&vault), &holder).expect("it has this key");
        let disk = Disk::new(trace, &dice, "disk");
        let slots: Vec<Slot> = (0..scenario.processes)
            .map(|number| Slot {
                number,
                clocks: clocks_of(scenario, trace, &machine, &dice, number),
                disk: if scenario.own_lifeboats {
                    Disk::new(trace, &dice, &format!("disk-{number}"))
                } else {
                    disk.clone()
                },
                link: Arc::new(Link::new()),
                starts: 0,
            })
            .collect();
        let provider = Arc::new(Provider::new(&witness, &dice));
        let shared = Shared {
            scenario: Arc::clone(scenario),
            witness,
            dice: dice.of("processes"),
            provider,
            database,
            vault,
            app: app(scenario, &dice.of("app")),
        };
        Self {
            dice: dice.of("world"),
            processes: slots.iter().map(|_| None).collect(),
            due: slots.iter().map(|_| None).collect(),
            cut_ends: slots.iter().map(|_| None).collect(),
            returns: (0..scenario.connections).map(|_| None).collect(),
            erased: vec![false; scenario.connections],
            slots,
            shared,
            eye,
            outage_ends: None,
            disk_mends: None,
        }
    }

    async fn go_through(&mut self) {
        for slot in 0..self.slots.len() {
            self.start(slot);
        }
        self.connect_all().await;
        self.go_wrong().await;
        self.heal().await;
        self.shared.witness.judge_what_was_lost();
        self.judge_the_history().await;
    }

    /// Every connection is made before anything goes wrong.
    async fn connect_all(&self) {
        for connection in 0..self.shared.scenario.connections {
            let caller = self.caller(0).expect("nothing was killed yet");
            let code = self.shared.provider.new_code(connection);
            assert!(caller.consent(connection, code).await, "nothing goes wrong yet");
        }
    }

    async fn go_wrong(&mut self) {
        for slot in &self.slots {
            slot.link.trouble();
        }
        self.shared.provider.trouble();
        let ends = self.now() + self.shared.scenario.lasts;
        while self.now() < ends {
            let pause = self
                .dice
                .between(Duration::from_millis(20), Duration::from_millis(600));
            sleep(pause).await;
            self.supervise();
            self.misfortunes(pause).await;
            if self.dice.happens(0.7) {
                self.ask();
            }
        }
    }

    /// One caller asks one process for something.
    fn ask(&self) {
        let connection = self.dice.below(self.shared.scenario.connections);
        let Some(caller) = self.caller(self.dice.below(self.slots.len())) else {
            return;
        };
        let gate = caller.process.gate.clone();
        // Now and then it goes away before it has its answer.
        let patience = if self.dice.happens(0.1) {
            self.dice.mostly_short(Duration::from_secs(20))
        } else {
            Duration::from_secs(120)
        };
        let what = self.dice.below(100);
        let at_once = 1 + self.dice.below(3);
        match what {
            0..2 => run_for(&gate, patience, caller.refresh(connection, Renewal::Forced)),
            2..6 => run_for(&gate, patience, caller.refresh(connection, Renewal::IfOld)),
            _ => {
                for _ in 0..at_once {
                    run_for(&gate, patience, caller.clone().call(connection));
                }
            }
        }
    }

    async fn misfortunes(&mut self, passed: Duration) {
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
    fn supervise(&mut self) {
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

    /// Everything that went wrong ends; then I8.
    async fn heal(&mut self) {
        self.note("world", "heals");
        self.shared.provider.heal();
        for slot in 0..self.slots.len() {
            self.slots[slot].link.heal();
            self.slots[slot].disk.heal();
            self.cut_ends[slot] = None;
            match &self.processes[slot] {
                Some(process) if process.gate.is_killed() => {
                    process.kill();
                    self.start(slot);
                }
                Some(process) => process.gate.go_on(),
                None => self.start(slot),
            }
        }
        let ends = self.now() + HEALS_WITHIN;
        let mut well_since = None;
        let mut last = Vec::new();
        while self.now() < ends {
            self.ask_everybody();
            sleep(LOOKS_EVERY).await;
            last = self.what_is_not_well().await;
            if !last.is_empty() {
                well_since = None;
                continue;
            }
            // Once more a whole lifetime, so that a refresh of each has been seen.
            let since = *well_since.get_or_insert(self.now());
            if self.now() > since + self.shared.scenario.lifetime {
                return;
            }
        }
        for what in last {
            self.shared.witness.blame(Oracle::Heals, what);
        }
    }

    fn ask_everybody(&self) {
        for slot in 0..self.slots.len() {
            for connection in 0..self.shared.scenario.connections {
                if let Some(caller) = self.caller(slot) {
                    let gate = caller.process.gate.clone();
                    run_for(&gate, Duration::from_secs(120), caller.call(connection));
                }
            }
        }
    }

    /// What stands in the way of "every connection works or says why not, and nothing is left behind".
    async fn what_is_not_well(&self) -> Vec<String> {
        let mut not_well = Vec::new();
        let now = self.now();
        for connection in 0..self.shared.scenario.connections {
            let held = self.eye.held(&connection_id(connection)).await;
            let Ok(Some(held)) = held else {
                continue;
            };
            let seen = self.shared.witness.seen();
            let tokens = held.tokens.as_ref();
            let refresh_token = tokens.and_then(|tokens| tokens.refresh_token.as_ref());
            match &held.connection.status {
                ConnectionStatus::Active => {
                    let redeems = refresh_token.is_some_and(|token| seen.grants.redeems(token.expose(), now));
                    let serves =
                        tokens.is_some_and(|tokens| seen.grants.serves(tokens.access_token.expose(), now));
                    if !redeems || !serves {
                        not_well.push(format!(
                            "connection {connection} is active; its refresh token redeems: {redeems}, its access token serves: {serves}, trouble: {:?}",
                            held.connection.trouble
                        ));
                    }
                }
                ConnectionStatus::ReconnectRequired { .. } => {}
                ConnectionStatus::Disconnected { .. } => {
                    for token in seen.held_and_alive(connection, now) {
                        not_well.push(format!(
                            "connection {connection} is disconnected, and {token} still redeems"
                        ));
                    }
                }
            }
            let open = held
                .connection
                .intent
                .as_ref()
                .is_some_and(|intent| intent.attempts > 0);
            if open && held.connection.status == ConnectionStatus::Active {
                not_well.push(format!(
                    "connection {connection} has an open intent: {:?}",
                    held.connection.intent
                ));
            }
        }
        let kept: usize = self.slots.iter().map(|slot| slot.disk.names().len()).sum();
        if kept > 0 {
            not_well.push(format!("{kept} entries lie in lifeboats"));
        }
        not_well
    }

    /// I7, and what panicked.
    async fn judge_the_history(&self) {
        let witness = &self.shared.witness;
        for process in self.processes.iter().flatten() {
            if process.gate.panics() > 0 {
                witness.blame(Oracle::NoPanic, format!("a task of {} panicked", process.name));
            }
        }
        for connection in 0..self.shared.scenario.connections {
            let events = self
                .eye
                .events(&connection_id(connection), 10_000)
                .await
                .unwrap_or_default();
            if let Some(event) = events
                .iter()
                .find(|event| event.detail.contains(crate::grants::CANARY))
            {
                witness.blame(Oracle::Secrets, format!("an event says {:?}", event.detail));
            }
            let history = {
                let seen = witness.seen();
                let watched = &seen.connections[connection];
                if watched.purged || self.shared.scenario.class == Class::Failover {
                    continue;
                }
                watched.history.clone()
            };
            for stored in &history {
                let told = events.iter().any(|event| {
                    let tells: &[&str] = match stored.status {
                        ConnectionStatus::Active => &["connected", "refreshed", "reconnected"],
                        ConnectionStatus::ReconnectRequired { .. } => {
                            &["reconnect_required", "account_mismatch"]
                        }
                        ConnectionStatus::Disconnected { .. } => &["disconnected"],
                    };
                    event.version == stored.version && tells.contains(&event.kind.as_str())
                });
                if !told {
                    let what = format!(
                        "no event tells that connection {connection} came to version {} ({})",
                        stored.version,
                        stored.status.as_str()
                    );
                    witness.blame(Oracle::History, what);
                }
            }
        }
    }

    async fn look(&self, lost_commits: bool) {
        for connection in 0..self.shared.scenario.connections {
            if let Ok(held) = self.eye.held(&connection_id(connection)).await {
                self.shared
                    .witness
                    .stores(connection, held.as_ref(), "database", lost_commits);
            }
        }
    }

    fn start(&mut self, slot: usize) {
        self.processes[slot] = Some(Process::start(&self.shared, &mut self.slots[slot]));
    }

    fn caller(&self, slot: usize) -> Option<Caller> {
        let process = self.processes[slot].as_ref()?;
        process.gate.is_running().then(|| Caller {
            process: process.clone(),
            witness: self.shared.witness.clone(),
            dice: self.dice.clone(),
            app: self.shared.app.name.clone(),
        })
    }

    fn strikes(&self, every: Option<Duration>, passed: Duration) -> bool {
        every.is_some_and(|every| self.dice.happens(passed.as_secs_f64() / every.as_secs_f64()))
    }

    fn now(&self) -> Duration {
        self.shared.witness.now()
    }

    fn note(&self, who: &str, what: &str) {
        self.shared.witness.trace.note(who, what);
    }
}

/// Nobody's key but the simulation's.
const VAULT_KEY: &str = "c2ltdWxhdGlvbiBzaW11bGF0aW9uIHNpbXVsYXRpb24=";

fn run_for(gate: &crate::gate::Gate, patience: Duration, work: impl Future<Output = ()> + Send + 'static) {
    gate.run(async move {
        // Whoever loses patience is gone; what it asked for goes on or not, as the keeper likes.
        let _ = tokio::time::timeout(patience, work).await;
    });
}

fn database_clocks(machine: &Clocks) -> DatabaseClocks {
    let (boot, wall) = (machine.clone(), machine.clone());
    DatabaseClocks {
        boot: Arc::new(move || boot.boot_millis()),
        wall: Arc::new(move || wall.wall_millis()),
    }
}

/// On SQLite all processes share a machine; on PostgreSQL each has one of its own.
fn clocks_of(scenario: &Scenario, trace: &Trace, machine: &Clocks, dice: &Dice, number: usize) -> Clocks {
    if scenario.like == Like::Sqlite {
        return machine.clone();
    }
    let dice = dice.of(&format!("clocks-{number}"));
    let (drift_ppm, ahead) = match scenario.class {
        Class::Clocks => (dice.below(401), dice.below(120_000)),
        _ => (dice.below(101), dice.below(3000)),
    };
    let signed = |number: usize| i64::try_from(number).unwrap_or(0);
    let half = |number: usize, range: i64| signed(number) - range / 2;
    let (drift_ppm, ahead) = match scenario.class {
        Class::Clocks => (half(drift_ppm, 400), half(ahead, 120_000)),
        _ => (half(drift_ppm, 100), half(ahead, 3000)),
    };
    Clocks::new(
        trace,
        Duration::from_secs(77 * (1 + dice.below(1000) as u64)),
        drift_ppm,
        ahead,
    )
}
