//! What is asked for: how many jobs, how many workers, how fast.

use std::time::Duration;

/// One backlog and who works through it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) jobs: usize,
    /// Worker processes, and what each does at a time.
    pub(crate) processes: usize,
    pub(crate) threads: usize,
    pub(crate) services: usize,
    pub(crate) connections: usize,
    pub(crate) token_ttl: Duration,
    /// HubSpot's limit of calls in 10 s.
    pub(crate) calls_max: u32,
    /// Decides the order of the jobs.
    pub(crate) seed: u64,
    pub(crate) budgets: Budgets,
}

/// Whether the services count calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Budgets {
    Shared,
    /// As every program does that has no gateway.
    Off,
}

impl Plan {
    /// As short as a test may be; or as told by `cargo xtask backlog`.
    pub(crate) fn new() -> Self {
        let mut plan = Self {
            jobs: 1_000,
            processes: 4,
            threads: 2,
            services: 2,
            connections: 4,
            token_ttl: Duration::from_secs(8),
            calls_max: 110,
            seed: 1,
            budgets: Budgets::Shared,
        };
        let told = std::env::var("EVERGRANT_TEST_BACKLOG").unwrap_or_default();
        for word in told.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let number: u32 = value
                .parse()
                .unwrap_or_else(|_| panic!("EVERGRANT_TEST_BACKLOG: {word}"));
            let count = number as usize;
            match key {
                "jobs" => plan.jobs = count,
                "processes" => plan.processes = count,
                "threads" => plan.threads = count,
                "services" => plan.services = count,
                "connections" => plan.connections = count,
                "token-ttl" => plan.token_ttl = Duration::from_secs(number.into()),
                "calls-max" => plan.calls_max = number,
                "seed" => plan.seed = number.into(),
                _ => panic!("EVERGRANT_TEST_BACKLOG: {word}"),
            }
        }
        plan
    }

    /// So little that it takes seconds, and more than one account takes at once.
    pub(crate) fn without_budgets() -> Self {
        Self {
            jobs: 200,
            processes: 2,
            threads: 4,
            services: 2,
            connections: 1,
            token_ttl: Duration::from_secs(60),
            calls_max: 110,
            seed: 1,
            budgets: Budgets::Off,
        }
    }

    /// The least that the limits alone let the run take: what a connection's share comes to, but for its first burst.
    pub(crate) fn shortest(&self) -> Duration {
        let share = self.jobs.div_ceil(self.connections);
        let calls_max = self.calls_max as usize;
        let rest = share.saturating_sub(calls_max);
        Duration::from_secs((rest * 10 / calls_max) as u64)
    }

    pub(crate) fn command(&self) -> String {
        let Self {
            jobs,
            processes,
            threads,
            services,
            connections,
            token_ttl,
            calls_max,
            seed,
            budgets: _,
        } = self;
        let token_ttl = token_ttl.as_secs();
        format!(
            "cargo xtask backlog --jobs {jobs} --processes {processes} --threads {threads} --services {services} \
             --connections {connections} --token-ttl {token_ttl} --calls-max {calls_max} --seed {seed}"
        )
    }
}
