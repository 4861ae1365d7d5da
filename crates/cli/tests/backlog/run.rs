//! One run, from the first connection to the verdict.

use std::fmt::{self, Display, Formatter};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use http::Method;
use hubspot_sim::{Ledger, RateLimits, SimConfig, Switch};
use serde_json::{Value, json};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};

use crate::installation::{CLIENT, Installation, Service, free_port};
use crate::plan::{Budgets, Plan};
use crate::prepared::{client_script, prepared};
use crate::queue::{Job, Outcomes, Queue};

/// How long the backlog has waited.
const ENQUEUED_AGO: Duration = Duration::from_secs(3600);
/// A connection whose customer has uninstalled the app meanwhile; each of so many jobs is its.
const GONE: &str = "gone";
const ONE_IS_GONE_IN: usize = 200;
/// What a job does, in this proportion.
const WORKS: [(&str, usize); 4] = [("list", 55), ("update", 30), ("create", 10), ("search", 5)];
/// A refused call in so many is about none.
const CALLS_FOR_A_REFUSAL: u64 = 1000;

/// Lines of a failure that say what the services said last, and creates that it names.
const PRINTED: usize = 10;

/// What came of a run.
pub(crate) struct Report {
    plan: Plan,
    took: Duration,
    outcomes: Outcomes,
    ledger: Ledger,
    /// By how much the versions of all connections grew together.
    versions_grown: u64,
    /// Creates that were done, and those of them that HubSpot did not create exactly once.
    creates_wrong: Vec<(usize, usize)>,
    printed: String,
    unfinished: usize,
}

/// Works through the backlog and holds the books of both sides against each other.
pub(crate) async fn run(plan: &Plan) -> Report {
    println!("{}", plan.command());
    let fleet = Fleet::start(plan).await;
    let jobs = fleet.jobs(plan);
    let now = jiff::Timestamp::now();
    let enqueued_at = now
        .checked_sub(jiff::SignedDuration::try_from(ENQUEUED_AGO).unwrap())
        .unwrap();
    let queue = Queue::new(jobs.clone(), enqueued_at.to_string());
    let address = queue.clone().listen().await;
    let began = Instant::now();
    let mut workers: Vec<Worker> = (0..plan.processes)
        .map(|worker| fleet.worker(worker, plan.threads, &address))
        .collect();
    let mut said = Instant::now();
    while queue.open() > 0 && workers.iter_mut().any(Worker::is_running) {
        sleep(Duration::from_millis(50)).await;
        if said.elapsed() > Duration::from_secs(15) {
            said = Instant::now();
            let refused = fleet.installation.hubspot.ledger().rate_limited;
            println!(
                "{} s: {} open, {refused:?}",
                began.elapsed().as_secs(),
                queue.open()
            );
        }
    }
    let took = began.elapsed();
    let unfinished = queue.open();
    let versions_grown = fleet.versions_grown().await;
    let hubspot = &fleet.installation.hubspot;
    let creates_wrong = jobs
        .iter()
        .enumerate()
        .filter(|(_, job)| job.work == "create" && job.connection != GONE)
        .map(|(index, job)| {
            let portal = portal_of(&job.connection);
            (
                index,
                hubspot.created(portal, "companies", "name", &format!("job-{index}")),
            )
        })
        .filter(|(_, created)| *created != 1)
        .collect();
    Report {
        plan: *plan,
        took,
        outcomes: queue.outcomes(),
        ledger: hubspot.ledger(),
        versions_grown,
        creates_wrong,
        printed: fleet.installation.printed(),
        unfinished,
    }
}

/// Killed when dropped.
struct Worker(Child);

impl Worker {
    fn is_running(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|ended| ended.is_none())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Services on one PostgreSQL, and the connections whose jobs wait.
struct Fleet {
    installation: Installation,
    services: Vec<Service>,
    /// With a company in each to work on.
    connections: Vec<(String, String)>,
    key: String,
    _database: test_postgres::Server,
}

impl Fleet {
    async fn start(plan: &Plan) -> Self {
        let config = SimConfig {
            seed: plan.seed,
            token_ttl: plan.token_ttl,
            ..SimConfig::default()
        };
        let mut installation = Installation::new(config).await;
        let database = block_in_place(test_postgres::Server::new);
        let store = database.url(&database.database());
        installation.admin_key = admin_key(&installation, &store);
        let mut services = Vec::new();
        for number in 0..plan.services {
            let port = free_port();
            let mut command = installation.evergrant();
            command
                .env("EVERGRANT_SERVER__LISTEN", format!("127.0.0.1:{port}"))
                .env("EVERGRANT_STORE__URL", &store)
                .env("EVERGRANT_LIFEBOAT__DIR", format!("lifeboat-{number}"))
                .env("EVERGRANT_LOG__CALLS", "failures");
            if plan.budgets == Budgets::Off {
                command.env("EVERGRANT_APPS__CRM__BUDGET", "off");
            }
            services.push(block_in_place(|| installation.try_serve(&mut command, port)).unwrap());
        }
        let key = installation.key(&services[0], "gateway").await;
        let mut connections = Vec::new();
        for number in 0..plan.connections {
            let id = format!("acme-{number}");
            let portal = portal_of(&id);
            installation.connected(&services[0], &id, portal).await;
            connections.push((id, company(&installation, &services[0], number).await));
        }
        let gone = portal_of(GONE);
        installation.connected(&services[0], GONE, gone).await;
        installation.hubspot.uninstall(CLIENT, gone);
        installation.hubspot.set_rate_limits(RateLimits {
            calls_max: plan.calls_max,
            ..RateLimits::default()
        });
        installation.hubspot.turn_on(Switch::EnforceRateLimits);
        Self {
            installation,
            services,
            connections,
            key,
            _database: database,
        }
    }

    /// The backlog, every kind of work of every connection mixed, as the seed says.
    fn jobs(&self, plan: &Plan) -> Vec<Job> {
        let mut dice = Dice(plan.seed);
        let works: Vec<_> = WORKS
            .iter()
            .flat_map(|(work, share)| std::iter::repeat_n(*work, *share))
            .collect();
        let mut jobs: Vec<_> = (0..plan.jobs)
            .map(|number| {
                let (connection, company) = &self.connections[number % self.connections.len()];
                let gone = number % ONE_IS_GONE_IN == ONE_IS_GONE_IN - 1;
                Job {
                    connection: if gone { GONE.to_owned() } else { connection.clone() },
                    work: works[dice.below(works.len())],
                    company: Some(company.clone()),
                }
            })
            .collect();
        for last in (1..jobs.len()).rev() {
            jobs.swap(last, dice.below(last + 1));
        }
        jobs
    }

    fn worker(&self, number: usize, threads: usize, queue: &str) -> Worker {
        let service = &self.services[number % self.services.len()];
        let mut python = Command::new(prepared("EVERGRANT_TEST_PYTHON"));
        python
            .arg(client_script("python/worker.py"))
            .env("QUEUE", queue)
            .env("GATEWAY", &service.address)
            .env("API_KEY", &self.key)
            .env("THREADS", threads.to_string())
            .stdin(Stdio::null());
        Worker(python.spawn().unwrap())
    }

    /// What came after the first version of every connection, which its import made.
    async fn versions_grown(&self) -> u64 {
        let mut grown = 0;
        for id in self.connections.iter().map(|(id, _)| id.as_str()).chain([GONE]) {
            let path = format!("/v1/connections/{id}");
            let admin_key = &self.installation.admin_key;
            let record = self
                .installation
                .send(&self.services[0], Method::GET, &path, admin_key, None)
                .await;
            grown += record.json()["version"].as_u64().unwrap() - 1;
        }
        grown
    }
}

impl Report {
    /// Prints what came of it, and fails if something that must hold does not.
    pub(crate) fn assert_holds(&self) {
        println!("{self}");
        let wrong = self.wrong();
        if !wrong.is_empty() {
            let lines: Vec<_> = self.printed.lines().rev().take(PRINTED).collect();
            for line in lines.iter().rev() {
                println!("{line}");
            }
            panic!("{}\n{}", wrong.join("\n"), self.plan.command());
        }
    }

    /// Fails unless HubSpot had to refuse calls, and nothing else went wrong for it.
    pub(crate) fn assert_refused(&self) {
        println!("{self}");
        let wrong = self.wrong();
        assert!(
            wrong.len() == 1 && wrong[0].starts_with("HubSpot refused"),
            "{}",
            wrong.join("\n")
        );
    }

    /// What does not hold.
    fn wrong(&self) -> Vec<String> {
        let ledger = &self.ledger;
        let mut wrong = Vec::new();
        let mut hold = |holds: bool, otherwise: String| {
            if !holds {
                wrong.push(otherwise);
            }
        };
        hold(
            self.unfinished == 0,
            format!("{} jobs are not finished", self.unfinished),
        );
        hold(
            self.outcomes.failed.is_empty(),
            format!("jobs failed: {:?}", self.outcomes.failed),
        );
        // The customer who is gone took a token along that looked well until then.
        let of_the_gone = self.plan.services as u64;
        hold(
            ledger.arrived_expired() == 0
                && ledger.unauthorized.killed <= of_the_gone
                && ledger.unauthorized_total() == ledger.unauthorized.killed,
            format!(
                "{} calls came expired, {:?}",
                ledger.arrived_expired(),
                ledger.unauthorized
            ),
        );
        hold(
            ledger.rate_limited.total() <= ledger.api_calls / CALLS_FOR_A_REFUSAL,
            format!(
                "HubSpot refused {:?} of {} calls",
                ledger.rate_limited, ledger.api_calls
            ),
        );
        hold(
            ledger.refreshes_accepted == self.versions_grown
                && ledger.replays == 0
                && ledger.grant_overlaps_max <= 1,
            format!(
                "{} redemptions for {} versions, {} replays, {} at once",
                ledger.refreshes_accepted, self.versions_grown, ledger.replays, ledger.grant_overlaps_max
            ),
        );
        hold(
            ledger.refreshes_accepted <= self.redemptions_max(),
            format!(
                "{} redemptions, and at most {} tokens were about to end",
                ledger.refreshes_accepted,
                self.redemptions_max()
            ),
        );
        let gone = self.plan.jobs / ONE_IS_GONE_IN;
        let parked: usize = self.outcomes.parked.values().sum();
        hold(
            parked == gone
                && self
                    .outcomes
                    .parked
                    .keys()
                    .all(|told| told == "424 reconnect_required"),
            format!("{gone} jobs were to be parked: {:?}", self.outcomes.parked),
        );
        hold(
            self.outcomes.done + parked == self.plan.jobs,
            format!("{} of {} jobs are done", self.outcomes.done, self.plan.jobs),
        );
        hold(
            self.creates_wrong.is_empty(),
            format!(
                "{} creates were not executed once, such as (job, times) {:?}",
                self.creates_wrong.len(),
                &self.creates_wrong[..self.creates_wrong.len().min(PRINTED)]
            ),
        );
        wrong
    }

    /// A token is replaced when most of its time is over, at the earliest after half of it, and once at the end.
    fn redemptions_max(&self) -> u64 {
        let halves = self.took.as_secs_f64() / (self.plan.token_ttl.as_secs_f64() / 2.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small positive number"
        )]
        let of_each = halves.ceil() as u64 + 1;
        of_each * self.plan.connections as u64
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut took = self.outcomes.took_ms.clone();
        took.sort_unstable();
        let at = |share: usize| {
            took.get(took.len().saturating_sub(1) * share / 100)
                .copied()
                .unwrap_or(0)
        };
        let again: usize = self.outcomes.again.values().sum();
        writeln!(
            f,
            "jobs            {} done, {:?} parked, {again} went back: {:?}",
            self.outcomes.done, self.outcomes.parked, self.outcomes.again
        )?;
        writeln!(f, "of these        {:?}", self.outcomes.works)?;
        writeln!(f, "failed          {:?}", self.outcomes.failed)?;
        writeln!(
            f,
            "took            {:.1} s; the limits alone make it {} s",
            self.took.as_secs_f64(),
            self.plan.shortest().as_secs()
        )?;
        writeln!(
            f,
            "a call took     {} ms (half), {} ms (99 in 100), {} ms (at most)",
            at(50),
            at(99),
            at(100)
        )?;
        let ledger = &self.ledger;
        writeln!(
            f,
            "HubSpot saw     {} calls, executed {}",
            ledger.api_calls, ledger.api_executed
        )?;
        writeln!(f, "with 429        {:?}", ledger.rate_limited)?;
        writeln!(
            f,
            "expired         {} arrived, {:?}",
            ledger.arrived_expired(),
            ledger.unauthorized
        )?;
        writeln!(
            f,
            "redemptions     {} for {} new versions of {} connections, tokens of {} s",
            ledger.refreshes_accepted,
            self.versions_grown,
            self.plan.connections,
            self.plan.token_ttl.as_secs()
        )
    }
}

/// Enough chance for the order of jobs (`SplitMix64`).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((word ^ (word >> 31)) % limit as u64).unwrap()
    }
}

/// The account of a connection.
fn portal_of(connection: &str) -> u64 {
    connection
        .rsplit_once('-')
        .map_or(999, |(_, number)| 1001 + number.parse::<u64>().unwrap())
}

/// Makes the company that updates change.
async fn company(installation: &Installation, service: &Service, number: usize) -> String {
    let path = format!("/gateway/acme-{number}/crm/v3/objects/companies");
    let body: Value = json!({"properties": {"name": "Acme"}});
    let made = installation
        .send(service, Method::POST, &path, &installation.admin_key, Some(body))
        .await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()["id"].as_str().unwrap().to_owned()
}

fn admin_key(installation: &Installation, store: &str) -> String {
    let made = installation
        .evergrant()
        .args(["keys", "create", "--name", "backlog", "--role", "admin"])
        .env("EVERGRANT_STORE__URL", store)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}
