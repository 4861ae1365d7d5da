//! A stage on which time passes at once: the clock is the paused runtime's, the store is in memory, and the provider is a script
//! behind a pipe. What takes minutes elsewhere is over as soon as nobody has anything left to do.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use evergrant_domain::refresh_policy::Jitter;
use evergrant_domain::{
    AccessToken, App, ConnectionId, Customer, KeepFresh, Kind, RefreshToken, Timestamp, TokenSet,
};
use evergrant_keeper::{Clock, Keeper, KeeperParts, Surroundings};
use evergrant_oauth::{Network, Stream, TokenEndpoint};
use evergrant_store::contract::{Connected, NewConnection};
use evergrant_store::sqlite::simulated::{Clocks, Like, SimulatedDatabase};
use evergrant_store::{ByLease, Coordination, SqliteStore, Store, Vault, VaultKey};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::{Instant, sleep};
use url::Url;

/// What the provider makes of a refresh token that is presented.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reply {
    /// How long it takes to be connected to.
    pub(crate) connects_after: Duration,
    /// How long it takes to answer.
    pub(crate) after: Duration,
    /// Anything but 200 issues nothing.
    pub(crate) status: u16,
    pub(crate) retry_after: Option<u64>,
}

pub(crate) const ISSUES: Reply = Reply {
    connects_after: Duration::ZERO,
    after: Duration::ZERO,
    status: 200,
    retry_after: None,
};

/// One refresh token as it was presented.
#[derive(Debug, Clone)]
pub(crate) struct Presented {
    pub(crate) at: Duration,
    pub(crate) token: String,
}

/// A provider that never rotates and answers as it is told.
pub(crate) struct Provider {
    raised: Instant,
    reply: Mutex<Reply>,
    presented: Arc<Mutex<Vec<Presented>>>,
}

#[async_trait]
impl Network for Provider {
    async fn connect(&self, _url: &Url, _deadline: Instant) -> Result<Box<dyn Stream>, &'static str> {
        let reply = *self.reply.lock();
        sleep(reply.connects_after).await;
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(theirs, self.raised, reply, self.presented.clone()));
        Ok(Box::new(ours))
    }
}

async fn serve(
    mut stream: DuplexStream,
    raised: Instant,
    reply: Reply,
    presented: Arc<Mutex<Vec<Presented>>>,
) {
    let mut request = vec![0; 16 * 1024];
    let mut length = 0;
    let token = loop {
        let Ok(read @ 1..) = stream.read(&mut request[length..]).await else {
            return;
        };
        length += read;
        let text = String::from_utf8_lossy(&request[..length]).into_owned();
        // The name of the token is as long as it is: the body is short and comes in one piece.
        if let Some((_, token)) = text.split_once("refresh_token=") {
            break token.split('&').next().unwrap_or_default().to_owned();
        }
    };
    let at = raised.elapsed();
    presented.lock().push(Presented {
        at,
        token: token.clone(),
    });
    sleep(reply.after).await;
    let body = match reply.status {
        200 => format!(
            r#"{{"access_token":"{token}-at-{}","refresh_token":"{token}","expires_in":1800,"token_type":"bearer"}}"#,
            at.as_nanos()
        ),
        401 => {
            r#"{"status":"BAD_CLIENT_ID","message":"missing or unknown client id","error":"invalid_client"}"#
                .to_owned()
        }
        _ => String::new(),
    };
    let retry_after = reply
        .retry_after
        .map_or_else(String::new, |seconds| format!("retry-after: {seconds}\r\n"));
    let answer = format!(
        "HTTP/1.1 {} X\r\n{retry_after}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        reply.status,
        body.len()
    );
    let _ = stream.write_all(answer.as_bytes()).await;
    // Stays until the other side has read it.
    let _ = stream.read(&mut request).await;
}

/// The runtime's time as a clock.
struct Paused(Instant);

impl Clock for Paused {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000).after(self.0.elapsed())
    }

    fn boot(&self) -> Duration {
        Duration::from_secs(3600) + self.0.elapsed()
    }
}

pub(crate) struct Stage {
    raised: Instant,
    clock: Arc<Paused>,
    database: SimulatedDatabase,
    vault: Arc<Vault>,
    provider: Arc<Provider>,
    pub(crate) app: App,
}

impl Stage {
    /// To be raised on a paused runtime.
    pub(crate) fn raise() -> Self {
        let raised = Instant::now();
        let clock = Arc::new(Paused(raised));
        let clocks = Clocks {
            boot: {
                let clock = clock.clone();
                Arc::new(move || i64::try_from(clock.boot().as_millis()).unwrap())
            },
            wall: {
                let clock = clock.clone();
                Arc::new(move || clock.now().millis())
            },
        };
        let provider = Provider {
            raised,
            reply: Mutex::new(ISSUES),
            presented: Arc::default(),
        };
        let mut app = crate::app::app("https://provider.test");
        app.keep_fresh = KeepFresh::Always;
        Self {
            raised,
            clock,
            database: SimulatedDatabase::new(clocks, Like::Postgres).unwrap(),
            vault: Arc::new(Vault::new(VaultKey::generate())),
            provider: Arc::new(provider),
            app,
        }
    }

    pub(crate) fn answers(&self, reply: Reply) {
        *self.provider.reply.lock() = reply;
    }

    pub(crate) fn presented(&self) -> Vec<Presented> {
        self.provider.presented.lock().clone()
    }

    /// Since the stage was raised.
    pub(crate) fn elapsed(&self) -> Duration {
        self.raised.elapsed()
    }

    /// Waits until so much time has passed since the stage was raised.
    pub(crate) async fn until(&self, seconds: f64) {
        tokio::time::sleep_until(self.raised + Duration::from_secs_f64(seconds)).await;
    }

    pub(crate) fn store(&self, process: &str) -> Arc<dyn Store> {
        let holder = self.database.holder(process);
        Arc::new(SqliteStore::simulated(&self.database, self.vault.clone(), &holder).unwrap())
    }

    pub(crate) fn keeper(&self, process: &str) -> Keeper {
        self.keeper_on(self.store(process), Arc::new(ByLease))
    }

    pub(crate) fn keeper_on(&self, store: Arc<dyn Store>, coordination: Arc<dyn Coordination>) -> Keeper {
        Keeper::new(KeeperParts {
            apps: vec![self.app.clone()],
            store,
            vault: self.vault.clone(),
            endpoint: TokenEndpoint::over(self.provider.clone()),
            surroundings: Surroundings {
                clock: self.clock.clone(),
                ..Surroundings::default()
            },
            coordination,
            lifeboat: None,
            max_stale: Duration::from_secs(60),
        })
    }

    /// A connection whose token was issued `age` ago.
    pub(crate) async fn connect(
        &self,
        store: &dyn Store,
        name: &str,
        age: Duration,
        jitter: Jitter,
    ) -> ConnectionId {
        let id = ConnectionId::parse(name).unwrap();
        let issued_at = self.clock.now().before(age);
        let new = NewConnection {
            id: id.clone(),
            app: self.app.name.clone(),
            customer: Customer::parse(name).unwrap(),
            kind: Kind::OAuth,
            account: None,
            tokens: TokenSet {
                access_token: AccessToken::new(format!("{name}-first")),
                refresh_token: Some(RefreshToken::new(name)),
                token_type: "bearer".into(),
                scopes: vec![],
                issued_at,
                ends: self
                    .app
                    .refresh_policy
                    .ends(issued_at, Duration::from_secs(1800), jitter),
                unproven: false,
            },
            labels: vec![],
            event: evergrant_domain::event::Event::new(
                evergrant_domain::event::EventKind::Connected,
                "on the stage",
            ),
        };
        let connected = store.create(new, self.clock.now()).await.unwrap();
        assert!(matches!(connected, Connected::Stored(_)), "{connected:?}");
        id
    }

    /// One whose token has ended.
    pub(crate) async fn ended(&self, store: &dyn Store, name: &str) -> ConnectionId {
        self.connect(store, name, Duration::from_secs(1900), Jitter::NONE)
            .await
    }
}
