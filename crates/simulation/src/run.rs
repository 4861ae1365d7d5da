//! One run: things go wrong for a while, then they heal, and everything must be well again.

mod misfortunes;
mod verdict;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use evergrant_keeper::Renewal;
use evergrant_store::sqlite::simulated::{Clocks as DatabaseClocks, Like, SimulatedDatabase};
use evergrant_store::{SqliteStore, Vault, VaultKey};
use tokio::time::sleep;

use crate::calls::Caller;
use crate::clocks::Clocks;
use crate::dice::Dice;
use crate::disk::Disk;
use crate::log::Captured;
use crate::process::{Process, Shared, Slot, app};
use crate::provider::Provider;
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
