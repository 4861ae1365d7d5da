//! What a run is made of: everything here is decided by its seed and, where one is named, by its class.

use std::fmt;
use std::time::Duration;

use evergrant_domain::app::Dialect;
use evergrant_store::sqlite::simulated::Like;

use crate::dice::Dice;

/// What goes wrong in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Nothing, or nearly: what should happen does.
    Calm,
    /// Answers are lost, late, truncated, doubled, refused.
    Wire,
    /// The store hangs, fails, or does what it was asked and does not say so; partitions.
    Store,
    /// Processes are killed.
    Kills,
    /// Processes are stopped, and go on long after.
    Stops,
    /// Wall clocks are set; where there are several machines, each has its own and they drift.
    Clocks,
    /// Owners leave and come back in the middle of everything.
    Leaving,
    /// The database fails over to a replica that lacks the last commits.
    Failover,
    /// All of it but failovers and clocks.
    Storm,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 9] = [
        Self::Calm,
        Self::Wire,
        Self::Store,
        Self::Kills,
        Self::Stops,
        Self::Clocks,
        Self::Leaving,
        Self::Failover,
        Self::Storm,
    ];

    /// Its name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Wire => "wire",
            Self::Store => "store",
            Self::Kills => "kills",
            Self::Stops => "stops",
            Self::Clocks => "clocks",
            Self::Leaving => "leaving",
            Self::Failover => "failover",
            Self::Storm => "storm",
        }
    }

    /// Reads that name.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == word)
    }
}

/// What the provider does with a refresh token that was redeemed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Never,
    /// It may be presented again for this long.
    Grace(Duration),
    SingleUse,
}

/// One run, before it begins.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is drawn by itself, and all of them are told"
)]
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) class: Class,
    pub(crate) like: Like,
    pub(crate) processes: usize,
    pub(crate) connections: usize,
    pub(crate) kind: Kind,
    /// Whether presenting a dead refresh token kills the whole grant.
    pub(crate) family: bool,
    /// Whether the configuration says `never` although the provider rotates.
    pub(crate) rotation_unknown: bool,
    pub(crate) introspects: bool,
    pub(crate) dialect: Dialect,
    pub(crate) lifetime: Duration,
    /// Whether each process has a lifeboat of its own, instead of one for all.
    pub(crate) own_lifeboats: bool,
    /// How long things go wrong.
    pub(crate) lasts: Duration,
    pub(crate) faults: Faults,
}

/// How often what goes wrong: shares of all cases, or the usual time between two.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Of all answers of the provider.
    pub(crate) wire: f64,
    /// Requests may arrive late, though before their deadline.
    pub(crate) slow_requests: bool,
    /// Of all steps of the store: fails before it is done.
    pub(crate) store_before: f64,
    /// Is done, and the outcome is not told.
    pub(crate) store_after: f64,
    /// Of all steps of the store: takes seconds.
    pub(crate) store_slow: f64,
    pub(crate) partitions_every: Option<Duration>,
    pub(crate) kills_every: Option<Duration>,
    /// Of all steps of the store: the process dies there.
    pub(crate) kill_at_step: f64,
    pub(crate) stops_every: Option<Duration>,
    pub(crate) stop_at_step: f64,
    pub(crate) clock_set_every: Option<Duration>,
    pub(crate) failover_every: Option<Duration>,
    pub(crate) leaves_every: Option<Duration>,
    /// The customer ends the grant at the provider.
    pub(crate) uninstalls_every: Option<Duration>,
    pub(crate) disk_fails_every: Option<Duration>,
    pub(crate) outages_every: Option<Duration>,
}

impl Scenario {
    /// The run that `seed` stands for.
    pub(crate) fn new(seed: u64, named: Option<Class>) -> Self {
        let dice = Dice::new(seed).of("scenario");
        let drawn = dice.one_of(&Class::ALL);
        let class = named.unwrap_or(drawn);
        let second = Duration::from_secs(1);
        let kind = match dice.below(6) {
            0 => Kind::Never,
            1 | 2 => Kind::Grace(dice.between(5 * second, 40 * second)),
            _ => Kind::SingleUse,
        };
        let like = dice.one_of(&[Like::Sqlite, Like::Postgres]);
        Self {
            seed,
            class,
            like,
            processes: 2 + dice.below(3),
            connections: 1 + dice.below(3),
            kind,
            family: dice.happens(0.5),
            rotation_unknown: kind == Kind::SingleUse && dice.happens(0.1),
            introspects: dice.happens(0.4),
            dialect: dice.one_of(&[Dialect::Generic, Dialect::HubSpot]),
            lifetime: dice.between(20 * second, 90 * second),
            own_lifeboats: dice.happens(0.5),
            lasts: dice.between(120 * second, 240 * second),
            faults: Faults::of(class, &dice),
        }
    }

    /// Whether wall time is what every process goes by, and somebody sets it.
    pub(crate) fn wall_time_jumps(&self) -> bool {
        self.like == Like::Sqlite && self.faults.clock_set_every.is_some()
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} processes like {:?}, {} connections, {:?}{}{}{}, tokens of {:?}",
            self.class.as_str(),
            self.processes,
            self.like,
            self.connections,
            self.kind,
            if self.family { ", families are revoked" } else { "" },
            if self.rotation_unknown {
                ", configured as never"
            } else {
                ""
            },
            if self.introspects { ", introspects" } else { "" },
            self.lifetime,
        )
    }
}

impl Faults {
    fn of(class: Class, dice: &Dice) -> Self {
        let every =
            |least: u64, most: u64| Some(dice.between(Duration::from_secs(least), Duration::from_secs(most)));
        // A little of the wire's and the owners' own troubles is in every run.
        let some = Self {
            wire: 0.05,
            uninstalls_every: every(120, 600),
            leaves_every: every(60, 240),
            ..Self::default()
        };
        match class {
            Class::Calm => Self { wire: 0.0, ..some },
            Class::Wire => Self {
                wire: 0.35,
                slow_requests: true,
                outages_every: every(20, 60),
                ..some
            },
            Class::Store => Self {
                wire: 0.1,
                store_before: 0.02,
                store_after: 0.03,
                store_slow: 0.02,
                partitions_every: every(10, 40),
                disk_fails_every: every(30, 120),
                ..some
            },
            Class::Kills => Self {
                wire: 0.1,
                slow_requests: true,
                store_after: 0.01,
                kills_every: every(8, 40),
                kill_at_step: 0.004,
                partitions_every: every(20, 60),
                ..some
            },
            Class::Stops => Self {
                wire: 0.1,
                slow_requests: true,
                stops_every: every(8, 40),
                stop_at_step: 0.004,
                ..some
            },
            Class::Clocks => Self {
                clock_set_every: every(10, 40),
                kills_every: every(20, 60),
                ..some
            },
            Class::Leaving => Self {
                wire: 0.1,
                slow_requests: true,
                store_after: 0.01,
                leaves_every: every(4, 15),
                uninstalls_every: every(40, 120),
                kills_every: every(30, 60),
                ..some
            },
            Class::Failover => Self {
                failover_every: every(15, 60),
                ..some
            },
            Class::Storm => Self {
                wire: 0.2,
                slow_requests: true,
                store_before: 0.01,
                store_after: 0.02,
                store_slow: 0.01,
                partitions_every: every(15, 60),
                kills_every: every(10, 60),
                kill_at_step: 0.002,
                stops_every: every(10, 60),
                stop_at_step: 0.002,
                leaves_every: every(15, 60),
                uninstalls_every: every(60, 240),
                disk_fails_every: every(60, 200),
                outages_every: every(30, 100),
                ..Self::default()
            },
        }
    }
}
