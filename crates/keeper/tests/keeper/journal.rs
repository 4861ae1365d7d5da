//! Uninstalls that HubSpot's journal tells of.

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::app::AppHealth;
use evergrant_domain::event::EventKind;
use evergrant_domain::{AppName, Connection, ConnectionStatus, ReconnectReason};
use evergrant_keeper::{Clock as _, KeepError, Keeper};
use hubspot_sim::{Fault, FaultKind};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use url::Url;

use crate::connecting::consented;
use crate::steps::Steps;
use crate::world::{self, CLIENT, HUB, PAST_EXPIRY, World};

/// Past one process's turn at a journal.
const PAST_TURN: Duration = Duration::from_secs(31);

async fn reader(world: &World) -> Keeper {
    let keeper = world.keeper().await;
    keeper.read_journals_of(vec![AppName::parse("crm").unwrap()]);
    keeper
}

async fn read(world: &World, keeper: &Keeper) {
    world.pass(PAST_TURN);
    keeper.read_journals().await.unwrap();
}

async fn stored(keeper: &Keeper, connection: &Connection) -> Connection {
    keeper.store().connection(&connection.id).await.unwrap().unwrap()
}

#[tokio::test]
async fn an_uninstall_that_the_journal_tells_of_ends_the_grant_without_a_redemption() {
    let world = World::new().await;
    let keeper = reader(&world).await;
    read(&world, &keeper).await;
    assert_eq!(world.hubspot.ledger().journal_subscriptions, 1);
    let connection = consented(&world, &keeper, HUB, None).await.unwrap();
    let elsewhere = consented(&world, &keeper, 2002, None).await.unwrap();
    world.hubspot.uninstall(CLIENT, HUB);
    read(&world, &keeper).await;
    // At once: the token that was at hand a moment ago is not, too.
    let error = keeper.current(&connection.id, None).await.unwrap_err();
    assert!(
        matches!(
            error,
            KeepError::ReconnectRequired {
                reason: ReconnectReason::Uninstalled,
                ..
            }
        ),
        "{error:?}"
    );
    keeper
        .current(&elsewhere.id, None)
        .await
        .expect("another account's");
    world.pass(PAST_EXPIRY);
    keeper.current(&connection.id, None).await.unwrap_err();
    let ledger = world.hubspot.ledger();
    assert_eq!((ledger.refreshes_accepted, ledger.refreshes_refused), (0, 0));
    assert_eq!(
        (ledger.journal_subscriptions, ledger.journal_pages),
        (1, 1),
        "once each"
    );
    consented(&world, &keeper, HUB, Some(&connection.id))
        .await
        .unwrap();
    keeper
        .current(&connection.id, None)
        .await
        .expect("the customer is back");
}

#[tokio::test]
async fn an_uninstall_that_the_customer_came_back_after_changes_nothing() {
    let world = World::new().await;
    let keeper = reader(&world).await;
    let connection = consented(&world, &keeper, HUB, None).await.unwrap();
    read(&world, &keeper).await;
    world.hubspot.uninstall(CLIENT, HUB);
    world.pass(Duration::from_secs(60));
    let back = consented(&world, &keeper, HUB, None).await.unwrap();
    assert_eq!(back.id, connection.id);
    world.pass(Duration::from_secs(24 * 3600));
    read(&world, &keeper).await;
    assert_eq!(world.hubspot.ledger().journal_pages, 1, "it was told of");
    assert_eq!(
        stored(&keeper, &connection).await.status,
        ConnectionStatus::Active
    );
    let events = keeper.store().events(&connection.id, 9).await.unwrap();
    let ignored: Vec<_> = events
        .iter()
        .filter(|event| event.kind == EventKind::UninstallIgnored.as_str())
        .map(|event| event.detail.as_str())
        .collect();
    // By the times alone: whether the grant lives need not be asked.
    assert_eq!(
        ignored,
        ["the provider's journal tells of an uninstall, and the customer has installed the app since"]
    );
}

#[tokio::test]
async fn a_clock_that_runs_behind_the_providers_gives_no_living_grant_up() {
    let world = World::new().await;
    let keeper = reader(&world).await;
    consented(&world, &keeper, HUB, None).await.unwrap();
    read(&world, &keeper).await;
    // From here on the provider's clock is an hour ahead of ours.
    world.hubspot.advance(Duration::from_secs(3600));
    world.hubspot.uninstall(CLIENT, HUB);
    let back = consented(&world, &keeper, HUB, None).await.unwrap();
    // By the provider's clock the journal's own token has ended: it is refused once, and another one is asked for.
    read(&world, &keeper).await;
    assert_eq!(world.hubspot.ledger().journal_pages, 0);
    read(&world, &keeper).await;
    assert_eq!(world.hubspot.ledger().journal_pages, 1);
    assert_eq!(
        stored(&keeper, &back).await.status,
        ConnectionStatus::Active,
        "its refresh token lives"
    );
}

#[tokio::test]
async fn one_process_reads_and_the_next_goes_on_where_it_was() {
    let world = World::new().await;
    let (a, b) = (reader(&world).await, reader(&world).await);
    consented(&world, &a, HUB, None).await.unwrap();
    read(&world, &a).await;
    b.read_journals().await.unwrap();
    assert_eq!(
        world.hubspot.ledger().journal_reads,
        1,
        "it is the first one's turn"
    );
    world.hubspot.uninstall(CLIENT, HUB);
    read(&world, &a).await;
    read(&world, &b).await;
    assert_eq!(
        world.hubspot.ledger().journal_pages,
        1,
        "the other one has read it"
    );
    world.hubspot.uninstall(CLIENT, 2002);
    read(&world, &b).await;
    assert_eq!(world.hubspot.ledger().journal_pages, 2);
}

#[tokio::test]
async fn a_place_that_is_past_what_is_kept_is_given_up_for_the_beginning() {
    let world = World::new().await;
    let keeper = reader(&world).await;
    let connection = consented(&world, &keeper, HUB, None).await.unwrap();
    read(&world, &keeper).await;
    world.hubspot.uninstall(CLIENT, 2002);
    read(&world, &keeper).await;
    world.pass(Duration::from_secs(4 * 24 * 3600));
    world.hubspot.uninstall(CLIENT, HUB);
    read(&world, &keeper).await;
    let status = stored(&keeper, &connection).await.status;
    assert!(
        matches!(
            status,
            ConnectionStatus::ReconnectRequired {
                reason: ReconnectReason::Uninstalled,
                ..
            }
        ),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_journal_that_may_not_be_read_is_left_alone_for_a_while() {
    let world = World::new().await;
    let keeper = reader(&world).await;
    world.hubspot.set_client_secret(CLIENT, "another");
    read(&world, &keeper).await;
    let asked = world.hubspot.ledger().token_requests;
    assert_eq!(asked, 1);
    read(&world, &keeper).await;
    assert_eq!(world.hubspot.ledger().token_requests, asked);
    world.hubspot.set_client_secret(CLIENT, "sim-secret");
    world.pass(Duration::from_secs(16 * 60));
    keeper.read_journals().await.unwrap();
    assert_eq!(world.hubspot.ledger().journal_subscriptions, 1);
}

/// A status and a body.
type Answer = (u16, String);

/// An API that answers what a test says; the tokens still come from the simulator.
struct Scripted {
    base: Url,
    /// What was asked, in its order: method and path, and `bare` where no credentials came along.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    /// `script` is given the base and what was asked.
    async fn new(script: impl Fn(&Url, &str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        tokio::spawn({
            let (base, asked) = (base.clone(), asked.clone());
            async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let mut head = String::new();
                    while !head.contains("\r\n\r\n") {
                        let mut buffer = [0; 4096];
                        let read = stream.read(&mut buffer).await.unwrap();
                        head.push_str(&String::from_utf8_lossy(&buffer[..read]));
                    }
                    let line = head.split(" HTTP/1.1").next().unwrap().to_owned();
                    let (status, body) = script(&base, &line);
                    let is_bare = !head.to_ascii_lowercase().contains("\r\nauthorization: ");
                    asked
                        .lock()
                        .push(if is_bare { format!("{line} bare") } else { line });
                    let length = body.len();
                    let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n\r\n{body}");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        Self { base, asked }
    }

    /// Who reads the journal there.
    async fn reader(&self, world: &World) -> Keeper {
        let mut app = world.app();
        app.provider.api_base = self.base.clone();
        let keeper = world.keeper_of(app).await;
        keeper.read_journals_of(vec![AppName::parse("crm").unwrap()]);
        keeper
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

const SUBSCRIBE: &str = "POST /webhooks-journal/subscriptions/2026-03";

#[tokio::test]
async fn every_page_that_is_there_is_read_and_one_that_is_none_is_passed_over() {
    let world = World::new().await;
    let at = world.clock.now().after(Duration::from_secs(1)).millis();
    let api = Scripted::new(move |base, asked| {
        let page = |url: &str, place: &str| (200, format!(r#"{{"url":"{url}","currentOffset":"{place}"}}"#));
        match asked.rsplit_once("2026-03/").map_or(asked, |(_, place)| place) {
            "earliest" => page("http://169.254.169.254/latest/meta-data", "a"),
            "offset/a/next" => page(&format!("{base}broken"), "b"),
            "offset/b/next" => page(&format!("{base}page?sig=x"), "c"),
            "offset/c/next" => (204, String::new()),
            "GET /broken" => (200, "<html>".to_owned()),
            "GET /page?sig=x" => {
                let uninstall = format!(r#"{{"action":"APP_UNINSTALL","portalId":{HUB},"occurredAt":{at}}}"#);
                (200, format!(r#"{{"journalEvents":[{uninstall}]}}"#))
            }
            // Subscribed before, by an installation that is gone.
            _ => (409, "{}".to_owned()),
        }
    })
    .await;
    let keeper = api.reader(&world).await;
    let connection = consented(&world, &keeper, HUB, None).await.unwrap();
    world.hubspot.uninstall(CLIENT, HUB);
    read(&world, &keeper).await;
    let next = |place: &str| format!("GET /webhooks-journal/journal/2026-03/{place}");
    assert_eq!(
        api.asked(),
        [
            SUBSCRIBE.to_owned(),
            next("earliest"),
            // Nobody goes to where clouds keep secrets.
            next("offset/a/next"),
            "GET /broken bare".to_owned(),
            next("offset/b/next"),
            // Its address is all that a page takes.
            "GET /page?sig=x bare".to_owned(),
            next("offset/c/next"),
        ]
    );
    let status = stored(&keeper, &connection).await.status;
    assert!(
        matches!(
            status,
            ConnectionStatus::ReconnectRequired {
                reason: ReconnectReason::Uninstalled,
                ..
            }
        ),
        "{status:?}"
    );
    // Another process goes on from there, and asks for no subscription again.
    let another = api.reader(&world).await;
    read(&world, &another).await;
    read(&world, &another).await;
    assert_eq!(api.asked()[7..], [next("offset/c/next"), next("offset/c/next")]);
}

#[tokio::test]
async fn an_app_that_may_not_read_it_is_left_alone_for_a_while_wherever_it_is_told_so() {
    for (forbidden, asks) in [
        (SUBSCRIBE, 1),
        ("GET /webhooks-journal/journal/2026-03/earliest", 2),
    ] {
        let world = World::new().await;
        let api =
            Scripted::new(move |_, asked| (if asked == forbidden { 403 } else { 201 }, "{}".to_owned()))
                .await;
        let keeper = api.reader(&world).await;
        read(&world, &keeper).await;
        assert_eq!(api.asked().len(), asks, "{forbidden}");
        read(&world, &keeper).await;
        assert_eq!(api.asked().len(), asks, "{forbidden}");
        world.pass(Duration::from_secs(16 * 60));
        keeper.read_journals().await.unwrap();
        // The subscription is there by now, where it could be had.
        assert_eq!(api.asked().len(), asks + 1, "{forbidden}");
    }
}

#[tokio::test]
async fn an_app_without_the_journals_scopes_is_asked_for_them_seldom_and_its_credentials_are_fine() {
    let world = World::new().await;
    let keeper = reader(&world).await;
    let refused = FaultKind::CustomBody {
        code: 400,
        body: r#"{"status":"BAD_SCOPES","message":"scopes are not valid for this app"}"#.to_owned(),
        content_type: None,
    };
    world.hubspot.arm(Fault::token(refused).times(0));
    read(&world, &keeper).await;
    read(&world, &keeper).await;
    assert_eq!(world.hubspot.ledger().token_requests, 1);
    let health = keeper.app_health(&AppName::parse("crm").unwrap()).await.unwrap();
    assert!(matches!(health, AppHealth::Ok), "{health:?}");
    world.pass(Duration::from_secs(16 * 60));
    keeper.read_journals().await.unwrap();
    assert_eq!(world.hubspot.ledger().token_requests, 2);
}

#[tokio::test]
async fn who_was_stopped_while_reading_neither_repeats_a_verdict_nor_takes_the_place_back() {
    let world = World::new().await;
    let (store, vault) = world.store().await;
    let permits = Arc::new(Semaphore::new(0));
    let store = Steps::gated(store, "advance_journal", permits.clone());
    let stopped = world::keeper(world.app(), store, vault, world.clock.clone());
    stopped.read_journals_of(vec![AppName::parse("crm").unwrap()]);
    let keeper = reader(&world).await;
    let connection = consented(&world, &keeper, HUB, None).await.unwrap();
    consented(&world, &keeper, 2002, None).await.unwrap();
    read(&world, &keeper).await;
    world.hubspot.uninstall(CLIENT, HUB);
    world.pass(PAST_TURN);
    let reading = tokio::spawn(async move { stopped.read_journals().await });
    while world.hubspot.ledger().journal_pages == 0 {
        tokio::task::yield_now().await;
    }
    // Its turn is over, and what it read is read again, and more.
    world.hubspot.uninstall(CLIENT, 2002);
    read(&world, &keeper).await;
    assert_eq!(world.hubspot.ledger().journal_pages, 3);
    let back = consented(&world, &keeper, HUB, None).await.unwrap();
    assert_eq!(back.id, connection.id);
    permits.add_permits(9);
    reading.await.unwrap().unwrap();
    assert_eq!(
        stored(&keeper, &connection).await.status,
        ConnectionStatus::Active
    );
    let events = keeper.store().events(&connection.id, 99).await.unwrap();
    let told = |kind: EventKind| events.iter().filter(|event| event.kind == kind.as_str()).count();
    assert_eq!(told(EventKind::ReconnectRequired), 1, "{events:?}");
    read(&world, &keeper).await;
    assert_eq!(world.hubspot.ledger().journal_pages, 3, "all of it was read");
}
