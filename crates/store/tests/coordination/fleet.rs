//! Processes of one or several modes on one PostgreSQL database, and what they do with a token that has ended.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use evergrant_domain::Version;
use evergrant_store::contract::{Landed, Lease, LeaseAnswer, LeaseOn};
use evergrant_store::coordination::{Guard, Turn};
use evergrant_store::{ByLease, ByRedis, ByRowLock, Coordination, PostgresStore, Store, Vault, VaultKey};

use crate::database::{Database, LEASE, NOW, id, refreshed};

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Long enough to ask, too short to be given what somebody else holds.
pub(crate) const SHORT: Duration = Duration::from_millis(300);

/// What another process of a fleet is told in its environment.
const SAYS: [&str; 5] = [
    "FLEET_MODE",
    "FLEET_URL",
    "FLEET_REDIS",
    "FLEET_KEY",
    "FLEET_NAME",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Lease,
    RowLock,
    Redis,
}

impl Mode {
    fn open(self, url: &str, redis: &str) -> Box<dyn Coordination> {
        match self {
            Self::Lease => Box::new(ByLease),
            Self::RowLock => Box::new(ByRowLock::open(url).unwrap().held_at_most(Duration::from_secs(1))),
            Self::Redis => Box::new(ByRedis::open(redis).unwrap()),
        }
    }
}

/// What the processes have in common.
pub(crate) struct Fleet {
    pub(crate) database: Database<'static>,
    redis: String,
    key: String,
    /// Each process has the next one of these.
    modes: &'static [Mode],
    /// The connection whose token has ended. Its name is nobody else's in this Redis.
    pub(crate) name: String,
}

impl Fleet {
    /// One connection and no process yet.
    pub(crate) async fn of(modes: &'static [Mode]) -> Self {
        Self::waiting_in(&test_redis::Server::shared().url(), modes).await
    }

    /// The same with a Redis of its own.
    pub(crate) async fn waiting_in(redis: &str, modes: &'static [Mode]) -> Self {
        Self::on(test_postgres::Server::shared(), redis, modes).await
    }

    pub(crate) async fn on(
        server: &'static test_postgres::Server,
        redis: &str,
        modes: &'static [Mode],
    ) -> Self {
        let key = VaultKey::generate().to_base64();
        let vault = Arc::new(Vault::new(VaultKey::from_base64(&key).unwrap()));
        let database = Database {
            vault,
            ..Database::on(server)
        };
        let name = format!("c-{}", database.name);
        let store = database.open().await;
        crate::database::create(&store, crate::database::new(&name)).await;
        Self {
            database,
            redis: redis.to_owned(),
            key: key.to_string(),
            modes,
            name,
        }
    }

    fn mode(&self, number: usize) -> Mode {
        self.modes[number % self.modes.len()]
    }

    pub(crate) async fn process(&self, number: usize) -> Process {
        Process {
            store: self.database.open().await,
            turns: self.mode(number).open(&self.database.url(), &self.redis),
            name: self.name.clone(),
        }
    }

    /// A process of the system's, which does what it is told; see [`obey`].
    pub(crate) fn other_process(&self, number: usize) -> Other {
        let mode = format!("{:?}", self.mode(number));
        let url = self.database.url();
        let says = [&mode, &url, &self.redis, &self.key, &self.name];
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_process_of_a_fleet", "--nocapture"])
            .envs(SAYS.into_iter().zip(says))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (words, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Other {
            child,
            words,
            answers: BufReader::new(answers),
        }
    }

    /// Lets every lease run out now, as it would by itself much later.
    pub(crate) fn end_leases(&self) {
        self.database.sql(
            "UPDATE connections SET lease_until = clock_timestamp() - interval '1 s' WHERE lease_until IS NOT NULL",
        );
    }
}

/// A process as the keeper sees it.
pub(crate) struct Process {
    pub(crate) store: PostgresStore,
    pub(crate) turns: Box<dyn Coordination>,
    pub(crate) name: String,
}

impl Process {
    pub(crate) async fn turn(&self, patience: Duration) -> Turn {
        self.turns.turn(&id(&self.name), patience).await
    }

    /// A turn that comes within any patience.
    pub(crate) async fn turn_at_last(&self) -> Guard {
        match self.turn(LONG).await {
            Turn::Mine(guard) => guard,
            Turn::NotYet => panic!("a turn never came"),
        }
    }

    pub(crate) async fn take(&self, version: Version) -> LeaseAnswer {
        let id = id(&self.name);
        let asked = self.store.take_lease(&id, version, LEASE, LeaseOn::Active, NOW);
        asked.await.unwrap()
    }

    pub(crate) async fn land(&self, lease: &Lease) -> Landed {
        let next = format!("{}-{}", self.name, lease.version().number() + 1);
        self.store.land(lease, refreshed(&next), NOW).await.unwrap()
    }

    pub(crate) async fn version(&self) -> Version {
        let connection = self.store.connection(&id(&self.name)).await.unwrap();
        connection.unwrap().version
    }

    /// A call that needs another token set than `version`: as the keeper does it. Says whether it was this one that redeemed.
    pub(crate) async fn call(&self, version: Version, redeeming: &AtomicUsize) -> bool {
        loop {
            // Whoever waited in vain looks first, and goes nowhere without the lease.
            if self.version().await != version {
                return false;
            }
            let Turn::Mine(_guard) = self.turn(SHORT).await else {
                continue;
            };
            match self.take(version).await {
                LeaseAnswer::Taken { lease, .. } => {
                    assert_eq!(redeeming.fetch_add(1, Ordering::SeqCst), 0, "two hold the lease");
                    // What a redemption takes, among them ways to the store.
                    for _ in 0..5 {
                        assert!(self.store.lease_lasts(&lease, Duration::ZERO).await.unwrap());
                    }
                    redeeming.fetch_sub(1, Ordering::SeqCst);
                    let landed = self.land(&lease).await;
                    assert!(matches!(landed, Landed::Stored(_)), "{landed:?}");
                    return true;
                }
                LeaseAnswer::Busy => tokio::time::sleep(Duration::from_millis(20)).await,
                LeaseAnswer::Moved(_) => return false,
                LeaseAnswer::Missing => panic!("it was created"),
            }
        }
    }
}

/// A process of the system's.
pub(crate) struct Other {
    child: Child,
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Other {
    /// Tells it to do something, and returns what came of it.
    pub(crate) fn say(&mut self, word: &str) -> String {
        writeln!(self.words, "{word}").unwrap();
        let mut line = String::new();
        // The test harness says something, too.
        while !line.starts_with("fleet: ") {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "it is gone");
        }
        line["fleet: ".len()..].trim_end().to_owned()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    pub(crate) fn kill(self) {
        drop(self);
    }
}

/// Whatever it is doing.
impl Drop for Other {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// What a process of a fleet does that was started as one: each word on its standard input, one after the other.
pub(crate) async fn obey() {
    let Ok(said) = SAYS.map(std::env::var).into_iter().collect::<Result<Vec<_>, _>>() else {
        // A test like any other: nobody said anything.
        assert!(std::env::var(SAYS[0]).is_err());
        return;
    };
    let [mode, url, redis, key, name] = &said[..] else {
        unreachable!("they are as many")
    };
    let modes = [Mode::Lease, Mode::RowLock, Mode::Redis];
    let mode = modes.into_iter().find(|known| format!("{known:?}") == *mode);
    let vault = Arc::new(Vault::new(VaultKey::from_base64(key).unwrap()));
    let process = Process {
        store: PostgresStore::open(url, vault).await.unwrap(),
        turns: mode.unwrap().open(url, redis),
        name: name.clone(),
    };
    let mut held = None;
    for word in std::io::stdin().lines() {
        let answer = match word.unwrap().as_str() {
            "take" => {
                let guard = process.turn_at_last().await;
                match process.take(Version::FIRST).await {
                    LeaseAnswer::Taken { lease, .. } => {
                        held = Some((guard, lease));
                        "taken"
                    }
                    _ => "not taken",
                }
            }
            "land" => {
                let (_, lease) = held.as_ref().unwrap();
                match process.land(lease).await {
                    Landed::Stored(_) => "stored",
                    _ => "too late",
                }
            }
            other => panic!("{other} is no word"),
        };
        println!("fleet: {answer}");
        std::io::stdout().flush().unwrap();
    }
}
