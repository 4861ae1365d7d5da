//! Notices on their way: made of the history, signed, sent, tried again, to receivers that take them or do not.

#![expect(clippy::unwrap_used, reason = "a claim that cannot be made ends its test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use evergrant_domain::app::{ClientAuth, Dialect};
use evergrant_domain::event::{Circumstances, Event, EventKind};
use evergrant_domain::webhook::{Endpoint, Notice, WebhookSecret};
use evergrant_domain::{
    AccessToken, AccountId, App, AppName, ClientSecret, Connection, ConnectionId, Customer, KeepFresh,
    Provider, RefreshPolicy, RefreshToken, Rotation, Timestamp,
};
use evergrant_keeper::{Clock, Import, ImportTokens, Keeper, KeeperParts, Surroundings, SystemClock};
use evergrant_metrics::Exposition;
use evergrant_oauth::{TlsRoots, TokenEndpoint};
use evergrant_store::contract::{Delivery, DeliveryFilter, DeliveryState, Revoke};
use evergrant_store::{ByLease, SqliteStore, Vault, VaultKey};
use evergrant_webhooks::{Describe, Webhooks, signature};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use url::Url;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A clock that goes only where it is told to.
#[derive(Default)]
struct MovedClock(AtomicI64);

impl MovedClock {
    fn pass(&self, time: Duration) {
        self.0
            .fetch_add(i64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }

    fn ahead(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.load(Ordering::SeqCst)).unwrap())
    }
}

impl Clock for MovedClock {
    fn now(&self) -> Timestamp {
        SystemClock.now().after(self.ahead())
    }

    fn boot(&self) -> Duration {
        SystemClock.boot() + self.ahead()
    }
}

struct Shown;

impl Describe for Shown {
    fn connection(&self, connection: &Connection) -> Value {
        json!({"id": connection.id.as_str(), "status": connection.status.as_str()})
    }

    fn app(&self, name: &AppName, _: Option<&App>) -> Value {
        json!({"name": name.as_str()})
    }

    fn reconnect_url(&self, connection: &ConnectionId) -> String {
        format!("https://evergrant.example/connect/r.{connection}")
    }
}

/// A fleet's store, and processes on it.
struct World {
    folder: TempDir,
    key: String,
    clock: Arc<MovedClock>,
}

impl World {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            key: VaultKey::generate().to_base64().to_string(),
            clock: Arc::default(),
        }
    }

    async fn keeper(&self) -> Keeper {
        let vault = Arc::new(Vault::new(VaultKey::from_base64(&self.key).unwrap()));
        let store = SqliteStore::open(&self.folder.path().join("evergrant.db"), vault.clone())
            .await
            .unwrap();
        Keeper::new(KeeperParts {
            apps: vec![app()],
            store: Arc::new(store),
            vault,
            endpoint: TokenEndpoint::new(TlsRoots::Only(vec![])),
            surroundings: Surroundings {
                clock: self.clock.clone(),
                ..Surroundings::default()
            },
            coordination: Arc::new(ByLease),
            lifeboat: None,
            max_stale: Duration::from_secs(60),
        })
    }

    /// A process that tells these.
    async fn process(&self, receivers: &[&Receiver]) -> (Keeper, Webhooks) {
        let keeper = self.keeper().await;
        let webhooks = Webhooks::new(keeper.clone(), Arc::new(Shown));
        webhooks.tell(receivers.iter().map(|receiver| receiver.endpoint()).collect());
        (keeper, webhooks)
    }
}

fn app() -> App {
    let url = |path: &str| Url::parse(&format!("http://127.0.0.1:1/{path}")).unwrap();
    App {
        name: AppName::parse("crm").unwrap(),
        provider: Provider {
            dialect: Dialect::Generic,
            authorize_url: url("authorize"),
            token_url: url("token"),
            introspect_url: None,
            revoke_url: None,
            api_base: url(""),
            client_auth: ClientAuth::Post,
            pkce: false,
            rotation: Rotation::Never,
            account_claim: "sub".into(),
        },
        client_id: "id".into(),
        client_secrets: vec![ClientSecret::new("secret")],
        redirect_uri: "http://localhost:8484/oauth/callback".into(),
        scopes: vec![],
        optional_scopes: vec![],
        refresh_policy: RefreshPolicy::Queue,
        keep_fresh: KeepFresh::Off,
        return_urls: vec![],
        display_name: None,
        support_url: None,
        public_install: false,
        budget: evergrant_domain::call_budget::Setting::Off,
        max_wait: None,
    }
}

async fn connect(keeper: &Keeper, id: &str) -> ConnectionId {
    let import = Import {
        id: Some(ConnectionId::parse(id).unwrap()),
        app: AppName::parse("crm").unwrap(),
        customer: Customer::parse("acme").unwrap(),
        tokens: ImportTokens::OAuth {
            refresh_token: RefreshToken::new(format!("canary-refresh-{id}")),
            access_token: Some(AccessToken::new(format!("canary-access-{id}"))),
            expires_at: Some(keeper.clock().now().after(Duration::from_secs(1800))),
            scopes: None,
        },
        account: Some(AccountId::parse(id).unwrap()),
        labels: vec![],
    };
    keeper.import(import).await.unwrap().id
}

/// Somebody who is told. Each request is answered with the next of its answers, the last one for ever.
struct Receiver {
    url: Url,
    seen: Arc<Mutex<Vec<Seen>>>,
    arrived: Arc<Semaphore>,
    /// So many of the requests that it lets wait are answered.
    let_go: Arc<Semaphore>,
    /// How much was written of answers without end.
    written: Arc<AtomicI64>,
}

#[derive(Debug, Clone)]
struct Seen {
    head: String,
    body: Value,
    bare_body: String,
}

impl Seen {
    fn header(&self, name: &str) -> String {
        let line = self.head.lines().find_map(|line| {
            let (header, value) = line.split_once(": ")?;
            header.eq_ignore_ascii_case(name).then(|| value.to_owned())
        });
        line.unwrap_or_default()
    }

    fn kind(&self) -> &str {
        self.body["type"].as_str().unwrap()
    }
}

impl Receiver {
    async fn answering(answers: &[&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!(
            "http://{}/in?key=canary-query",
            listener.local_addr().unwrap()
        ))
        .unwrap();
        let (seen, arrived) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Semaphore::new(0)));
        let let_go = Arc::new(Semaphore::new(0));
        let written: Arc<AtomicI64> = Arc::default();
        let answers = answers.to_vec();
        tokio::spawn({
            let (seen, arrived, written) = (seen.clone(), arrived.clone(), written.clone());
            let let_go = let_go.clone();
            async move {
                let mut asked = 0;
                while let Ok((mut stream, _)) = listener.accept().await {
                    let answer = answers[asked.min(answers.len() - 1)];
                    asked += 1;
                    let (seen, arrived, written) = (seen.clone(), arrived.clone(), written.clone());
                    let let_go = let_go.clone();
                    tokio::spawn(async move {
                        let one = read(&mut stream).await;
                        seen.lock().push(one);
                        arrived.add_permits(1);
                        if answer == "hang" {
                            std::future::pending::<()>().await;
                        }
                        if answer == "wait" {
                            let_go.acquire().await.unwrap().forget();
                            return stream.write_all(OK.as_bytes()).await.unwrap();
                        }
                        if answer == "endless" {
                            let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
                            stream.write_all(head.as_bytes()).await.unwrap();
                            // Who stops reading hangs up.
                            while stream.write_all(&[b'x'; 8 * 1024]).await.is_ok() {
                                written.fetch_add(8 * 1024, Ordering::SeqCst);
                            }
                            std::future::pending::<()>().await;
                        }
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    });
                }
            }
        });
        Self {
            url,
            seen,
            arrived,
            let_go,
            written,
        }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint {
            url: self.url.clone(),
            secrets: vec![WebhookSecret::parse(SECRET).unwrap()],
            notices: Notice::ALL.to_vec(),
            apps: vec![],
        }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    fn kinds(&self) -> Vec<String> {
        self.seen().iter().map(|seen| seen.kind().to_owned()).collect()
    }

    async fn wait_for(&self, requests: u32) {
        self.arrived.acquire_many(requests).await.unwrap().forget();
    }
}

async fn read(stream: &mut tokio::net::TcpStream) -> Seen {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await.unwrap();
        bytes.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| {
                    line.to_ascii_lowercase()
                        .strip_prefix("content-length: ")
                        .map(str::to_owned)
                })
                .map_or(0, |length| length.parse::<usize>().unwrap());
            if body.len() >= length || read == 0 {
                return Seen {
                    head: head.to_owned(),
                    body: serde_json::from_str(body).unwrap(),
                    bare_body: body.to_owned(),
                };
            }
        }
        assert!(read > 0, "it was cut: {text}");
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n";

/// Looks, and waits for what was sent by it.
async fn look(webhooks: &Webhooks) {
    webhooks.look().await.unwrap();
    webhooks.settle().await;
}

async fn deliveries(keeper: &Keeper, state: DeliveryState) -> Vec<Delivery> {
    let filter = DeliveryFilter {
        states: vec![state],
        limit: 100,
        ..DeliveryFilter::default()
    };
    keeper.store().deliveries(filter).await.unwrap()
}

/// How often something was tried, by what came of it.
fn tried(keeper: &Keeper) -> [(&'static str, u32); 3] {
    let mut text = Exposition::new();
    keeper.metrics().write(&mut text);
    let text = text.into_text();
    ["delivered", "failed", "dead"].map(|outcome| {
        let series = format!("evergrant_webhook_deliveries_total{{outcome=\"{outcome}\"}} ");
        let count = text.lines().find_map(|line| line.strip_prefix(&series));
        (outcome, count.unwrap().parse().unwrap())
    })
}

#[tokio::test]
async fn what_happens_is_told_once_to_each_signed_and_without_a_secret() {
    let world = World::new();
    let (one, other) = (Receiver::answering(&[OK]).await, Receiver::answering(&[OK]).await);
    let (keeper, webhooks) = world.process(&[&one, &other]).await;
    connect(&keeper, "before").await;
    look(&webhooks).await;
    assert!(one.seen().is_empty(), "what was before is not told");
    connect(&keeper, "c1").await;
    look(&webhooks).await;
    look(&webhooks).await;
    for receiver in [&one, &other] {
        let seen = receiver.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        let told = &seen[0];
        assert!(
            told.head.starts_with("POST /in?key=canary-query HTTP/1.1"),
            "{}",
            told.head
        );
        assert_eq!(told.header("content-type"), "application/json");
        assert_eq!(told.kind(), "connection.connected");
        assert_eq!(told.body["data"]["connection"]["id"], "c1");
        assert_eq!(told.body["data"]["why"], "a record was imported");
        assert_eq!(
            told.body["data"]["reconnect_url"],
            "https://evergrant.example/connect/r.c1"
        );
        let seconds = told.header("webhook-timestamp").parse().unwrap();
        let expected = signature::signature(
            &[WebhookSecret::parse(SECRET).unwrap()],
            &told.header("webhook-id"),
            seconds,
            &told.bare_body,
        );
        assert_eq!(told.header("webhook-signature"), expected);
        assert!(!format!("{}{}", told.head, told.bare_body).contains("canary-access"));
        assert!(!told.bare_body.contains("canary"), "{}", told.bare_body);
    }
    assert_ne!(
        one.seen()[0].header("webhook-id"),
        other.seen()[0].header("webhook-id")
    );
    let kept = deliveries(&keeper, DeliveryState::Delivered).await;
    assert_eq!(kept.len(), 2);
    assert_eq!(tried(&keeper), [("delivered", 2), ("failed", 0), ("dead", 0)]);
    assert!(
        !format!("{kept:?}").contains("canary"),
        "neither token nor query is kept"
    );
}

#[tokio::test]
async fn only_what_was_asked_for_is_told() {
    let world = World::new();
    let receiver = Receiver::answering(&[OK]).await;
    let (keeper, webhooks) = world.process(&[]).await;
    let only = |notices: &[Notice], apps: &[&str]| Endpoint {
        notices: notices.to_vec(),
        apps: apps.iter().map(|app| AppName::parse(app).unwrap()).collect(),
        ..receiver.endpoint()
    };
    webhooks.tell(vec![only(&[Notice::Disconnected], &[])]);
    look(&webhooks).await;
    let id = connect(&keeper, "c1").await;
    look(&webhooks).await;
    assert!(receiver.seen().is_empty());
    keeper.disconnect(&id, Revoke::Auto).await.unwrap();
    look(&webhooks).await;
    assert_eq!(receiver.kinds(), ["connection.disconnected"]);
    assert_eq!(receiver.seen()[0].body["data"]["reconnect_url"], Value::Null);
    webhooks.tell(vec![only(&Notice::ALL, &["erp"])]);
    connect(&keeper, "c2").await;
    look(&webhooks).await;
    assert_eq!(receiver.seen().len(), 1, "of another app");
}

#[tokio::test]
async fn trouble_is_told_of_when_it_begins_and_when_it_ends() {
    let world = World::new();
    let receiver = Receiver::answering(&[OK]).await;
    let (keeper, webhooks) = world.process(&[&receiver]).await;
    look(&webhooks).await;
    let id = connect(&keeper, "c1").await;
    let happens = async |kind, failures_before| {
        let event = Event::new(kind, "a test").during(Circumstances {
            failures_before: Some(failures_before),
            ..Circumstances::default()
        });
        keeper
            .store()
            .note_event(&id, event, keeper.clock().now())
            .await
            .unwrap();
    };
    happens(EventKind::RefreshFailed, 0).await;
    happens(EventKind::RefreshFailed, 1).await;
    happens(EventKind::Refreshed, 2).await;
    happens(EventKind::Refreshed, 0).await;
    look(&webhooks).await;
    let mut kinds = receiver.kinds();
    kinds.sort();
    assert_eq!(
        kinds,
        [
            "connection.connected",
            "connection.degraded",
            "connection.recovered"
        ]
    );
}

#[tokio::test]
async fn what_was_not_taken_is_tried_again_under_the_same_id_until_it_is() {
    let world = World::new();
    let receiver = Receiver::answering(&[
        BUSY,
        "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\n\r\n",
        OK,
    ])
    .await;
    let (keeper, webhooks) = world.process(&[&receiver]).await;
    look(&webhooks).await;
    connect(&keeper, "c1").await;
    look(&webhooks).await;
    look(&webhooks).await;
    assert_eq!(receiver.seen().len(), 1, "not at once");
    world.clock.pass(Duration::from_secs(5));
    look(&webhooks).await;
    assert_eq!(
        deliveries(&keeper, DeliveryState::Pending).await[0].last_status,
        Some(302)
    );
    world.clock.pass(Duration::from_secs(30));
    look(&webhooks).await;
    let seen = receiver.seen();
    assert_eq!(seen.len(), 3, "a redirect is not followed");
    assert_eq!(seen[0].header("webhook-id"), seen[2].header("webhook-id"));
    assert_ne!(
        seen[0].header("webhook-signature"),
        seen[2].header("webhook-signature"),
        "its time is its own"
    );
    assert_eq!(deliveries(&keeper, DeliveryState::Delivered).await.len(), 1);
}

#[tokio::test]
async fn after_eight_tries_it_is_dead_and_may_be_sent_again() {
    let world = World::new();
    let receiver = Receiver::answering(&[BUSY]).await;
    let (keeper, webhooks) = world.process(&[&receiver]).await;
    look(&webhooks).await;
    connect(&keeper, "c1").await;
    for _ in 0..20 {
        look(&webhooks).await;
        world.clock.pass(Duration::from_secs(3 * 3600));
    }
    assert_eq!(receiver.seen().len(), 8);
    let dead = deliveries(&keeper, DeliveryState::Dead)
        .await
        .pop()
        .expect("it is dead");
    assert_eq!((dead.tries, dead.last_error.as_deref()), (8, Some("status 503")));
    keeper
        .store()
        .resend_delivery(&dead.id, keeper.clock().now())
        .await
        .unwrap();
    look(&webhooks).await;
    assert_eq!(receiver.seen().len(), 9);
    assert_eq!(receiver.seen()[8].header("webhook-id"), dead.id);
    assert_eq!(tried(&keeper), [("delivered", 0), ("failed", 8), ("dead", 1)]);
}

#[tokio::test]
async fn gone_ends_it_at_once_and_a_pause_that_is_asked_for_is_kept() {
    let world = World::new();
    let gone = Receiver::answering(&["HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n"]).await;
    let slow = Receiver::answering(&[
        "HTTP/1.1 429 Slow\r\nretry-after: 600\r\ncontent-length: 0\r\n\r\n",
        OK,
    ])
    .await;
    let (keeper, webhooks) = world.process(&[&gone, &slow]).await;
    look(&webhooks).await;
    connect(&keeper, "c1").await;
    look(&webhooks).await;
    world.clock.pass(Duration::from_secs(599));
    look(&webhooks).await;
    assert_eq!((gone.seen().len(), slow.seen().len()), (1, 1));
    assert_eq!(deliveries(&keeper, DeliveryState::Dead).await.len(), 1);
    world.clock.pass(Duration::from_secs(2));
    look(&webhooks).await;
    assert_eq!((gone.seen().len(), slow.seen().len()), (1, 2));
}

#[tokio::test]
async fn a_receiver_that_hangs_has_a_few_at_a_time_and_holds_up_no_other() {
    let world = World::new();
    let (hanging, other) = (
        Receiver::answering(&["hang"]).await,
        Receiver::answering(&[OK]).await,
    );
    let (keeper, webhooks) = world.process(&[&hanging, &other]).await;
    look(&webhooks).await;
    for number in 0..10 {
        connect(&keeper, &format!("c{number}")).await;
    }
    for already in (0..10).step_by(4) {
        webhooks.look().await.unwrap();
        other.wait_for(4.min(10 - already)).await;
        // Those that were taken are noted as such before there is room for the next.
        while deliveries(&keeper, DeliveryState::Delivered).await.len() < 10.min(already as usize + 4) {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(other.seen().len(), 10);
    assert_eq!(hanging.seen().len(), 4);
}

#[tokio::test]
async fn whoever_is_killed_forgets_nothing_and_a_fleet_tells_once() {
    let world = World::new();
    let receiver = Receiver::answering(&["hang", OK]).await;
    let (keeper, first) = world.process(&[&receiver]).await;
    look(&first).await;
    connect(&keeper, "c1").await;
    first.look().await.unwrap();
    receiver.wait_for(1).await;
    // The first one is as good as killed: it is never answered.
    let (_, second) = world.process(&[&receiver]).await;
    let (_, third) = world.process(&[&receiver]).await;
    look(&second).await;
    assert_eq!(receiver.seen().len(), 1, "somebody is at it");
    world.clock.pass(Duration::from_secs(61));
    tokio::join!(look(&second), look(&third));
    let seen = receiver.seen();
    assert_eq!(seen.len(), 2, "once more, by one of them");
    assert_eq!(seen[0].header("webhook-id"), seen[1].header("webhook-id"));
}

#[tokio::test]
async fn what_happened_while_nobody_ran_is_told_and_old_news_is_not() {
    let world = World::new();
    let receiver = Receiver::answering(&[OK]).await;
    let (keeper, webhooks) = world.process(&[&receiver]).await;
    look(&webhooks).await;
    connect(&keeper, "old").await;
    world.clock.pass(Duration::from_secs(25 * 3600));
    connect(&keeper, "new").await;
    let (_, later) = world.process(&[&receiver]).await;
    look(&later).await;
    let seen = receiver.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].body["data"]["connection"]["id"], "new");
}

#[tokio::test]
async fn what_is_for_nobody_any_more_is_given_up_and_said_so() {
    let world = World::new();
    let receiver = Receiver::answering(&[BUSY]).await;
    let (keeper, webhooks) = world.process(&[&receiver]).await;
    look(&webhooks).await;
    connect(&keeper, "c1").await;
    look(&webhooks).await;
    webhooks.tell(vec![]);
    webhooks.sweep().await.unwrap();
    assert_eq!(
        deliveries(&keeper, DeliveryState::Pending).await.len(),
        1,
        "it may be put back"
    );
    world.clock.pass(Duration::from_secs(25 * 3600));
    webhooks.sweep().await.unwrap();
    let dead = deliveries(&keeper, DeliveryState::Dead)
        .await
        .pop()
        .expect("given up");
    assert!(dead.last_error.unwrap().contains("not in the configuration"));
}

#[tokio::test]
async fn nothing_is_sent_to_where_clouds_keep_secrets() {
    let world = World::new();
    let (keeper, webhooks) = world.process(&[]).await;
    webhooks.tell(vec![Endpoint {
        url: Url::parse("https://169.254.169.254/latest/meta-data").unwrap(),
        secrets: vec![WebhookSecret::parse(SECRET).unwrap()],
        notices: Notice::ALL.to_vec(),
        apps: vec![],
    }]);
    look(&webhooks).await;
    connect(&keeper, "c1").await;
    look(&webhooks).await;
    let pending = deliveries(&keeper, DeliveryState::Pending).await.pop().unwrap();
    assert_eq!(pending.last_error.as_deref(), Some("address_refused"));
    let tried = webhooks.try_out().await;
    assert_eq!(tried[0].error.as_deref(), Some("address_refused"));
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let world = World::new();
    let receiver = Receiver::answering(&["endless"]).await;
    let (keeper, webhooks) = world.process(&[&receiver]).await;
    look(&webhooks).await;
    connect(&keeper, "c1").await;
    look(&webhooks).await;
    assert_eq!(
        deliveries(&keeper, DeliveryState::Delivered).await.len(),
        1,
        "its status said it all"
    );
    // What the system keeps for who does not read is all that left.
    assert!(receiver.written.load(Ordering::SeqCst) < 64 * 1024 * 1024);
}

#[tokio::test]
async fn receivers_that_want_different_things_are_each_told_of_theirs() {
    let world = World::new();
    let (comes, goes) = (Receiver::answering(&[OK]).await, Receiver::answering(&[OK]).await);
    let (keeper, webhooks) = world.process(&[]).await;
    let wants = |receiver: &Receiver, notice| Endpoint {
        notices: vec![notice],
        ..receiver.endpoint()
    };
    webhooks.tell(vec![
        wants(&comes, Notice::Connected),
        wants(&goes, Notice::Disconnected),
    ]);
    look(&webhooks).await;
    let id = connect(&keeper, "c1").await;
    keeper.disconnect(&id, Revoke::Auto).await.unwrap();
    look(&webhooks).await;
    assert_eq!(comes.kinds(), ["connection.connected"]);
    assert_eq!(goes.kinds(), ["connection.disconnected"]);
}

#[tokio::test]
async fn one_look_reads_everything_that_happened_however_much_of_it_nobody_wants() {
    let world = World::new();
    let receiver = Receiver::answering(&[OK]).await;
    let (keeper, webhooks) = world.process(&[]).await;
    webhooks.tell(vec![Endpoint {
        notices: vec![Notice::Disconnected],
        ..receiver.endpoint()
    }]);
    look(&webhooks).await;
    let id = connect(&keeper, "c1").await;
    // More than are read at once.
    for _ in 0..510 {
        let event = Event::new(EventKind::AccountMismatch, "a test");
        let now = keeper.clock().now();
        keeper.store().note_event(&id, event, now).await.unwrap();
    }
    keeper.disconnect(&id, Revoke::Auto).await.unwrap();
    look(&webhooks).await;
    assert_eq!(receiver.kinds(), ["connection.disconnected"]);
}

#[tokio::test]
async fn what_happens_right_after_the_beginning_is_told_though_nobody_has_looked_yet() {
    let world = World::new();
    let receiver = Receiver::answering(&[OK]).await;
    let (keeper, webhooks) = world.process(&[&receiver]).await;
    connect(&keeper, "before").await;
    webhooks.begin().await;
    connect(&keeper, "c1").await;
    look(&webhooks).await;
    let seen = receiver.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].body["data"]["connection"]["id"], "c1");
}

#[tokio::test]
async fn who_is_told_to_stop_waits_for_what_is_on_its_way_and_gives_up_what_is_for_nobody() {
    let world = World::new();
    let (old, receiver) = (
        Receiver::answering(&[BUSY]).await,
        Receiver::answering(&["wait"]).await,
    );
    let (keeper, webhooks) = world.process(&[&old]).await;
    look(&webhooks).await;
    connect(&keeper, "c1").await;
    look(&webhooks).await;
    world.clock.pass(Duration::from_secs(25 * 3600));
    webhooks.tell(vec![receiver.endpoint()]);
    connect(&keeper, "c2").await;
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (webhooks, stop) = (webhooks.clone(), stop.clone());
        async move { webhooks.run(stop).await }
    });
    receiver.wait_for(1).await;
    let given_up = async {
        while deliveries(&keeper, DeliveryState::Dead).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), given_up)
        .await
        .expect("it is given up");
    stop.cancel();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!running.is_finished(), "one is on its way");
    receiver.let_go.add_permits(1);
    running.await.unwrap();
    assert_eq!(deliveries(&keeper, DeliveryState::Delivered).await.len(), 1);
}

#[tokio::test]
async fn a_secret_is_changed_by_a_time_with_both() {
    let world = World::new();
    let receiver = Receiver::answering(&[OK]).await;
    let (keeper, webhooks) = world.process(&[&receiver]).await;
    let secret = |text| WebhookSecret::parse(text).unwrap();
    let (old, new) = (secret(SECRET), secret("new-new-new-new-new-new-new-"));
    look(&webhooks).await;
    let mut signed = Vec::new();
    for (id, secrets) in [
        ("c1", vec![old.clone()]),
        ("c2", vec![new.clone(), old.clone()]),
        ("c3", vec![new.clone()]),
    ] {
        // The address stays, and with it what is to be sent there.
        webhooks.tell(vec![Endpoint {
            secrets,
            ..receiver.endpoint()
        }]);
        connect(&keeper, id).await;
        look(&webhooks).await;
        let told = receiver.seen().pop().unwrap();
        let seconds = told.header("webhook-timestamp").parse().unwrap();
        let holds = |secret: &WebhookSecret| {
            let expected = signature::signature(
                std::slice::from_ref(secret),
                &told.header("webhook-id"),
                seconds,
                &told.bare_body,
            );
            told.header("webhook-signature")
                .split(' ')
                .any(|one| one == expected)
        };
        signed.push((holds(&old), holds(&new)));
    }
    assert_eq!(signed, [(true, false), (true, true), (false, true)]);
}
