//! The processes, their store, and the ways between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use hubspot_sim::{RateLimits, SimConfig};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};

use crate::installation::{Answer, CLIENT, Installation, Service, free_port};
use crate::plan::{CONNECTIONS, PROCESSES, Plan, Rotation, Store};
use crate::proxy::Proxy;
use crate::spells::Troubles;
use crate::verdict::Books;
use crate::witness::{Seen, Tally};

/// Short enough for many expiries, long enough that a token outlives a slow moment of the machine.
pub(crate) const LIFETIME: Duration = Duration::from_secs(4);
/// Longer than anything here goes on, so that what is lost is the fleet's fault.
const GRACE: Duration = Duration::from_secs(120);

/// Which connection that stays an account belongs to.
pub(crate) fn connection_of(portal: u64) -> Option<usize> {
    (0..CONNECTIONS).find(|connection| self::portal(*connection) == portal)
}

/// Several services on one store.
pub(crate) struct Fleet {
    pub(crate) plan: Plan,
    pub(crate) installation: Installation,
    pub(crate) key: String,
    pub(crate) troubles: Troubles,
    pub(crate) books: Books,
    pub(crate) tally: Tally,
    /// What callers saw of each connection that stays.
    pub(crate) seen: [Seen; CONNECTIONS],
    pub(crate) database: Option<Database>,
    pub(crate) redis: Option<test_redis::Server>,
    processes: Vec<Process>,
    ends: AtomicBool,
}

/// The database, and whose turn it is to hurt it.
pub(crate) struct Database {
    pub(crate) server: test_postgres::Server,
    pub(crate) turn: Mutex<()>,
}

struct Process {
    port: u16,
    address: String,
    store: String,
    proxy: Option<Proxy>,
    /// Whoever holds it may hurt the process.
    running: Mutex<Option<Service>>,
}

/// What an entry of a lifeboat is called.
const ENTRY: &str = ".entry";

/// The callers ask for more than HubSpot's 110 calls in 10 s, and what is proved here is about tokens: there is budget enough, and
/// every process counts on it and asks the store for its share.
const CALLS_MAX: u32 = 100_000;

/// The provider's account of a connection that stays.
pub(crate) fn portal(connection: usize) -> u64 {
    1001 + connection as u64
}

impl Fleet {
    /// Starts everything, with all connections made.
    pub(crate) async fn start(plan: Plan) -> Arc<Self> {
        let rotation = match plan.rotation {
            Rotation::Never => hubspot_sim::Rotation::Never,
            Rotation::Grace => hubspot_sim::Rotation::Grace(GRACE),
            Rotation::SingleUse => hubspot_sim::Rotation::Always,
        };
        let config = SimConfig {
            seed: plan.seed,
            token_ttl: LIFETIME,
            rotation,
            ..SimConfig::default()
        };
        let installation = match plan.rotation {
            Rotation::Never => {
                Installation::with_app(config, |base| {
                    format!("provider = \"hubspot\"\noauth_base = \"{base}\"\n")
                })
                .await
            }
            Rotation::Grace => {
                let grace = format!(
                    "rotation = \"grace\"\nrotation_grace = \"{}s\"\n",
                    GRACE.as_secs()
                );
                Installation::with_app(config, |base| rotating(base) + &grace).await
            }
            Rotation::SingleUse => {
                Installation::with_app(config, |base| rotating(base) + "rotation = \"single_use\"\n").await
            }
        };
        installation.hubspot.set_rate_limits(RateLimits {
            calls_max: CALLS_MAX,
            ..RateLimits::default()
        });
        let database = (plan.store == Store::Postgres).then(|| Database {
            server: block_in_place(test_postgres::Server::new),
            turn: Mutex::default(),
        });
        let name = database.as_ref().map(|database| database.server.database());
        let redis = plan
            .mode
            .needs_redis()
            .then(|| block_in_place(test_redis::Server::new));
        let mut processes = Vec::new();
        for _ in 0..PROCESSES {
            let port = free_port();
            let (store, proxy) = match (&database, &name) {
                (Some(database), Some(name)) => {
                    let proxy = Proxy::before(database.server.socket()).await;
                    (proxy.url(name), Some(proxy))
                }
                _ => ("sqlite://evergrant.db".to_owned(), None),
            };
            processes.push(Process {
                port,
                address: format!("http://127.0.0.1:{port}"),
                store,
                proxy,
                running: Mutex::default(),
            });
        }
        let key = admin_key(&installation, &processes[0].store);
        let fleet = Arc::new(Self {
            plan,
            installation,
            key,
            troubles: Troubles::default(),
            books: Books::default(),
            tally: Tally::default(),
            seen: Default::default(),
            database,
            redis,
            processes,
            ends: AtomicBool::new(false),
        });
        for process in 0..PROCESSES {
            fleet.troubles.down[process].begin();
            let mut running = fleet.turn(process).await;
            fleet.revive(process, &mut running).await;
        }
        for connection in 0..CONNECTIONS {
            let made = fleet.import(0, &id(connection), portal(connection)).await;
            assert_eq!(
                made.as_ref().map(|made| made.status.as_u16()),
                Ok(201),
                "{made:?}"
            );
        }
        fleet
    }

    /// `evergrant` on the fleet's store.
    pub(crate) fn command(&self) -> std::process::Command {
        let mut command = self.installation.evergrant();
        command.env("EVERGRANT_STORE__URL", &self.processes[0].store);
        command
    }

    /// Whether callers go on.
    pub(crate) fn goes_on(&self) -> bool {
        !self.ends.load(Ordering::SeqCst)
    }

    pub(crate) fn end(&self) {
        self.ends.store(true, Ordering::SeqCst);
    }

    /// One request to one process.
    pub(crate) async fn ask(
        &self,
        process: usize,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, String> {
        /// Nothing waits for longer: not for a lease, and not for a process that is stopped.
        const PATIENCE: Duration = Duration::from_secs(120);
        let address = &self.processes[process].address;
        let asked = self.installation.ask(address, method, path, &self.key, body);
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer for two minutes".to_owned()),
        }
    }

    /// Where a process has what the customers' links lead to.
    pub(crate) fn address_of(&self, process: usize, link: &str) -> String {
        link.replacen(
            &self.installation.public_url(),
            &self.processes[process].address,
            1,
        )
    }

    /// Makes a connection of a new grant.
    pub(crate) async fn import(&self, process: usize, id: &str, portal: u64) -> Result<Answer, String> {
        let grant = self.installation.hubspot.grant(CLIENT, portal).unwrap();
        let record = json!({
            "id": id, "app": "crm", "customer": format!("customer-{portal}"), "account": portal.to_string(),
            "refresh_token": grant.refresh_token,
        });
        self.ask(process, Method::POST, "/v1/connections", Some(record))
            .await
    }

    /// Whether something waits in the lifeboat of a process to be stored.
    pub(crate) fn has_lifeboat_entries(&self, process: usize) -> bool {
        let name = match self.plan.store {
            Store::Postgres => format!("lifeboat-{process}"),
            Store::Sqlite => "lifeboat".to_owned(),
        };
        let Ok(files) = std::fs::read_dir(self.installation.folder().join(name)) else {
            return false;
        };
        files
            .flatten()
            .any(|file| file.file_name().to_string_lossy().ends_with(ENTRY))
    }

    /// Waits until nobody else hurts this process.
    pub(crate) async fn turn(&self, process: usize) -> MutexGuard<'_, Option<Service>> {
        self.processes[process].running.lock().await
    }

    pub(crate) fn proxy(&self, process: usize) -> Option<&Proxy> {
        self.processes[process].proxy.as_ref()
    }

    /// Ends a process with this signal, and waits until it is gone.
    pub(crate) async fn kill(&self, process: usize, running: &mut Option<Service>, signal: Signal) {
        let service = running.take().unwrap();
        self.troubles.down[process].begin();
        service.signal(signal);
        tokio::task::spawn_blocking(move || service.ended())
            .await
            .unwrap();
    }

    /// Starts a process, again and again until the store lets it.
    pub(crate) async fn revive(&self, process: usize, running: &mut Option<Service>) {
        const AGAIN: Duration = Duration::from_millis(200);
        let Process { port, store, .. } = &self.processes[process];
        let service = loop {
            let mut command = self.installation.evergrant();
            command
                .env("EVERGRANT_SERVER__LISTEN", format!("127.0.0.1:{port}"))
                .env("EVERGRANT_STORE__URL", store)
                .env(
                    "EVERGRANT_COORDINATION__MODE",
                    self.plan.mode.of(process, self.plan.store),
                )
                .env("EVERGRANT_LOG__CALLS", "failures");
            // Processes on one database have machines of their own, those on one file share one.
            if self.plan.store == Store::Postgres {
                command.env("EVERGRANT_LIFEBOAT__DIR", format!("lifeboat-{process}"));
            }
            if let Some(redis) = &self.redis {
                command.env("EVERGRANT_COORDINATION__REDIS_URL", redis.url());
            }
            match block_in_place(|| self.installation.try_serve(&mut command, *port)) {
                Ok(service) => break service,
                Err(_) => sleep(AGAIN).await,
            }
        };
        *running = Some(service);
        self.troubles.down[process].end();
    }

    /// Waits until the provider has a refresh token of this connection; it will take a moment to answer. Or until that does not
    /// come about.
    pub(crate) async fn in_refresh_of(self: &Arc<Self>, process: usize, connection: usize) {
        const TAKES_MS: u64 = 1500;
        const PATIENCE: Duration = Duration::from_secs(4);
        let portal = portal(connection);
        self.troubles.endpoint[connection].mark();
        let slow = hubspot_sim::FaultKind::Slow { delay_ms: TAKES_MS };
        self.installation
            .hubspot
            .arm(hubspot_sim::Fault::token(slow).hub(portal));
        let fleet = self.clone();
        tokio::spawn(async move {
            let path = format!("/v1/connections/{}/refresh", id(connection));
            let _ = fleet
                .ask(process, Method::POST, &path, Some(json!({"force": true})))
                .await;
        });
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && !self.books.is_in_flight(&self.installation.hubspot, portal) {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(crate) fn id(connection: usize) -> String {
    format!("steady-{connection}")
}

/// A provider that rotates refresh tokens, in the simulator's words.
fn rotating(base: &str) -> String {
    let token = format!("{base}/oauth/2026-09/token");
    format!(
        "provider = \"generic\"\ntoken_url = \"{token}\"\nintrospect_url = \"{token}/introspect\"\nrevoke_url = \"{token}/revoke\"\n\
         client_auth = \"post\"\naccount_claim = \"hub_id\"\n"
    )
}

fn admin_key(installation: &Installation, store: &str) -> String {
    let made = installation
        .evergrant()
        .args(["keys", "create", "--name", "fleet", "--role", "admin"])
        .env("EVERGRANT_STORE__URL", store)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}
