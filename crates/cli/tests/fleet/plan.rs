//! What is going to happen, decided by a seed.

use std::fmt;
use std::time::Duration;

/// Where the fleet keeps its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Postgres,
    Sqlite,
}

/// Who waits how for their turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Lease,
    RowLock,
    Redis,
    /// Every process another one.
    Mixed,
}

impl Mode {
    const ALL: [(&'static str, Self); 4] = [
        ("lease", Self::Lease),
        ("row_lock", Self::RowLock),
        ("redis", Self::Redis),
        ("mixed", Self::Mixed),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, mode)| *mode == self).unwrap().0
    }

    /// What a process is told. Rows are locked in PostgreSQL only.
    pub(crate) fn of(self, process: usize, store: Store) -> &'static str {
        let mixed: &[Self] = match store {
            Store::Postgres => &[Self::Lease, Self::RowLock, Self::Redis],
            Store::Sqlite => &[Self::Lease, Self::Redis],
        };
        match self {
            Self::Mixed => mixed[process % mixed.len()].name(),
            own => own.name(),
        }
    }

    pub(crate) fn needs_redis(self) -> bool {
        matches!(self, Self::Redis | Self::Mixed)
    }
}

/// What the provider does with refresh tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rotation {
    Never,
    Grace,
    SingleUse,
}

impl Rotation {
    const ALL: [(&'static str, Self); 3] = [
        ("never", Self::Never),
        ("grace", Self::Grace),
        ("single_use", Self::SingleUse),
    ];

    fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, rotation)| *rotation == self)
            .unwrap()
            .0
    }
}

/// A run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) store: Store,
    pub(crate) mode: Mode,
    pub(crate) rotation: Rotation,
    pub(crate) seed: u64,
    /// How long faults happen; `None` in the short form, where each kind happens once or twice.
    pub(crate) minutes: Option<u64>,
}

pub(crate) const PROCESSES: usize = 3;
pub(crate) const CONNECTIONS: usize = 6;

impl Plan {
    /// The short form, or what the environment says: `cargo xtask faults` sets it.
    pub(crate) fn new(store: Store) -> Self {
        let mut plan = Self {
            store,
            mode: Mode::Lease,
            rotation: match store {
                Store::Postgres => Rotation::Grace,
                Store::Sqlite => Rotation::Never,
            },
            seed: 1,
            minutes: None,
        };
        let told = std::env::var("EVERGRANT_TEST_FAULTS").unwrap_or_default();
        for word in told.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "seed" => plan.seed = value.parse().unwrap(),
                "minutes" => plan.minutes = Some(value.parse().unwrap()).filter(|minutes| *minutes > 0),
                "mode" => plan.mode = Mode::ALL.iter().find(|(name, _)| *name == value).unwrap().1,
                "rotation" => {
                    plan.rotation = Rotation::ALL.iter().find(|(name, _)| *name == value).unwrap().1;
                }
                _ => panic!("EVERGRANT_TEST_FAULTS: {word}"),
            }
        }
        plan
    }

    /// The command that does it again.
    pub(crate) fn command(&self) -> String {
        let minutes = self.minutes.unwrap_or(0);
        format!("cargo xtask faults --minutes {minutes} {self}")
    }

    pub(crate) fn schedule(&self) -> Vec<Planned> {
        Drawing::new(self).draw()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let store = match self.store {
            Store::Postgres => "postgres",
            Store::Sqlite => "sqlite",
        };
        write!(
            f,
            "--store {store} --mode {} --rotation {} --seed {}",
            self.mode.name(),
            self.rotation.name(),
            self.seed
        )
    }
}

/// A fault and when it begins, counted from the beginning.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
}

/// What happens. Where a connection is named, it happens while the provider has that connection's refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL, and started again.
    Kill {
        process: usize,
        in_refresh_of: Option<usize>,
        away: Duration,
    },
    /// SIGTERM, and started again once it has gone.
    Replace { process: usize },
    /// SIGSTOP, then SIGCONT.
    Stop {
        process: usize,
        in_refresh_of: Option<usize>,
        lasts: Duration,
    },
    /// The database goes down, and comes back.
    Database {
        crash: bool,
        in_refresh_of: Option<usize>,
        away: Duration,
    },
    /// The database goes away while the provider answers, the process is killed with what it then has in hand, and both come
    /// back. The answer is in the lifeboat: nothing may be lost.
    Castaway { process: usize, in_refresh_of: usize },
    /// All connections of a process to the database are cut, once.
    Cut { process: usize },
    /// Nothing passes between a process and the database, and nobody is told.
    Silence { process: usize, lasts: Duration },
    /// The token endpoint fails.
    Endpoint { connection: usize, how: Endpoint },
    /// Redis loses everything.
    Flush,
    /// Redis goes away, and comes back empty.
    Redis { away: Duration },
}

/// How the token endpoint fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// Issues, and the answer is cut off.
    AnswerLost,
    /// Issues, and half of the answer comes.
    Truncated,
    /// Issues, and the answer is empty.
    Empty,
    /// Issues, and a proxy answers 500.
    FailsAfter,
    /// Issues, and takes its time.
    Slow,
    /// 500, and nothing is issued.
    Fails,
    /// 429 with Retry-After, and nothing is issued.
    RateLimited,
    /// The connection is cut before anything is issued.
    Cut,
}

impl Endpoint {
    const ALL: [Self; 8] = [
        Self::AnswerLost,
        Self::Truncated,
        Self::Empty,
        Self::FailsAfter,
        Self::Slow,
        Self::Fails,
        Self::RateLimited,
        Self::Cut,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AnswerLost => "answer lost",
            Self::Truncated => "answer truncated",
            Self::Empty => "answer empty",
            Self::FailsAfter => "500 after issuing",
            Self::Slow => "answer slow",
            Self::Fails => "500",
            Self::RateLimited => "429",
            Self::Cut => "endpoint cut off",
        }
    }

    /// Whether tokens are issued that nobody gets.
    pub(crate) fn loses_answers(self) -> bool {
        matches!(
            self,
            Self::AnswerLost | Self::Truncated | Self::Empty | Self::FailsAfter
        )
    }
}

/// A kind of fault, before it is decided whom it happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Card {
    Kill,
    KillInRefresh,
    Replace,
    Stop,
    StopInRefresh,
    StopPastLease,
    ShutDown,
    Crash,
    CrashInRefresh,
    Castaway,
    Cut,
    Silence,
    Endpoint,
    Flush,
    Redis,
}

/// Longer than a lease, which lasts 30 s.
const PAST_THE_LEASE: Duration = Duration::from_secs(33);

struct Drawing {
    random: Random,
    cards: Vec<Card>,
    lasts: Option<Duration>,
    now: Duration,
    /// From when on each process may be hit again.
    free: [Duration; PROCESSES],
    planned: Vec<Planned>,
}

impl Drawing {
    fn new(plan: &Plan) -> Self {
        let mut cards = vec![
            Card::KillInRefresh,
            Card::Kill,
            Card::Stop,
            Card::StopInRefresh,
            Card::Replace,
            Card::Endpoint,
            Card::Endpoint,
            Card::Endpoint,
        ];
        if plan.store == Store::Postgres {
            cards.extend([
                Card::ShutDown,
                Card::CrashInRefresh,
                Card::Castaway,
                Card::Cut,
                Card::Silence,
            ]);
        }
        if plan.store == Store::Postgres && plan.minutes.is_some() {
            cards.push(Card::Crash);
        }
        if plan.mode.needs_redis() {
            cards.extend([Card::Flush, Card::Redis]);
        }
        // In the short form once, where there is time beside the leases of those that are killed.
        if plan.minutes.is_some() || plan.store == Store::Sqlite {
            cards.push(Card::StopPastLease);
        }
        Self {
            random: Random(plan.seed),
            cards,
            lasts: plan.minutes.map(|minutes| Duration::from_secs(60 * minutes)),
            now: Duration::from_secs(1),
            free: [Duration::ZERO; PROCESSES],
            planned: Vec::new(),
        }
    }

    /// All cards in some order; in the long form again and again.
    fn draw(mut self) -> Vec<Planned> {
        loop {
            let mut cards = self.cards.clone();
            while !cards.is_empty() {
                // In the short form, what takes a lease's time begins first.
                let takes_long = |card: &Card| matches!(card, Card::StopPastLease | Card::KillInRefresh);
                let first = cards
                    .iter()
                    .rposition(takes_long)
                    .filter(|_| self.lasts.is_none());
                let card = first.unwrap_or_else(|| self.random.below(cards.len()));
                let card = cards.swap_remove(card);
                self.play(card);
                if self.lasts.is_some_and(|lasts| self.now >= lasts) {
                    return self.planned;
                }
            }
            if self.lasts.is_none() {
                return self.planned;
            }
        }
    }

    fn play(&mut self, card: Card) {
        let away = self.random.millis(300, 1500);
        let fault = match card {
            Card::Kill | Card::KillInRefresh => Fault::Kill {
                process: self.process(away),
                in_refresh_of: (card == Card::KillInRefresh).then(|| self.connection()),
                away,
            },
            Card::Replace => Fault::Replace {
                process: self.process(Duration::from_secs(2)),
            },
            Card::Stop | Card::StopInRefresh | Card::StopPastLease => {
                let lasts = match card {
                    Card::StopPastLease => PAST_THE_LEASE,
                    _ => self.random.millis(1000, 3000),
                };
                Fault::Stop {
                    process: self.process(lasts),
                    in_refresh_of: (card != Card::Stop).then(|| self.connection()),
                    lasts,
                }
            }
            Card::ShutDown | Card::Crash | Card::CrashInRefresh => Fault::Database {
                crash: card != Card::ShutDown,
                in_refresh_of: (card == Card::CrashInRefresh).then(|| self.connection()),
                away: if self.lasts.is_some() {
                    self.random.millis(100, 12_000)
                } else {
                    away
                },
            },
            Card::Castaway => Fault::Castaway {
                process: self.process(Duration::from_secs(8)),
                in_refresh_of: self.connection(),
            },
            Card::Cut => Fault::Cut {
                process: self.process(Duration::ZERO),
            },
            Card::Silence => {
                let lasts = if self.lasts.is_some() {
                    self.random.millis(1000, 20_000)
                } else {
                    self.random.millis(1000, 3000)
                };
                Fault::Silence {
                    process: self.process(lasts),
                    lasts,
                }
            }
            Card::Endpoint => Fault::Endpoint {
                connection: self.connection(),
                how: Endpoint::ALL[self.random.below(Endpoint::ALL.len())],
            },
            Card::Flush => Fault::Flush,
            Card::Redis => Fault::Redis { away },
        };
        self.planned.push(Planned { at: self.now, fault });
        self.now += match self.lasts {
            Some(_) => self.random.millis(500, 6000),
            None => self.random.millis(800, 1600),
        };
    }

    /// The one that was left alone for longest, with a little luck, and for how long it is busy now.
    fn process(&mut self, lasts: Duration) -> usize {
        let first = self.random.below(PROCESSES);
        let rested = (0..PROCESSES).map(|step| (first + step) % PROCESSES);
        let process = rested
            .min_by_key(|process| self.free[*process].max(self.now))
            .unwrap();
        self.free[process] = self.now + lasts + Duration::from_secs(1);
        process
    }

    fn connection(&mut self) -> usize {
        self.random.below(CONNECTIONS)
    }
}

/// Chance, decided by the seed (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.next() % (to - from))
    }
}
