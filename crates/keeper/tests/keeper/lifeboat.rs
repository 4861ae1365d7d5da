//! An answer that the store does not take is not lost: PROTOCOL rule 17.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use evergrant_domain::{AccessToken, App, Connection, RefreshToken, Rotation, Version};
use evergrant_keeper::{KeepError, Keeper, Lifeboat, LifeboatFolder, Renewal};
use evergrant_store::Store;
use evergrant_store::contract::Revoke;
use hubspot_sim::{Fault, FaultKind};
use tokio::sync::Semaphore;

use crate::steps::{Moment, Steps, gone};
use crate::world::{self, CLIENT, HUB, PAST_EXPIRY, World, assert_redeemed_once};

/// What has not happened after so long never does.
const FOR_EVER: Duration = Duration::from_secs(120);

/// A world whose provider replaces every refresh token, and kills the whole grant where one is presented again.
async fn rotating() -> World {
    World::with(hubspot_sim::Rotation::Always).await
}

fn single_use(world: &World) -> App {
    let mut app = world.app();
    app.provider.rotation = Rotation::SingleUse;
    app
}

fn folder(world: &World) -> Arc<dyn Lifeboat> {
    Arc::new(LifeboatFolder::open(world.lifeboat()).unwrap())
}

fn keeper_on(world: &World, store: Arc<dyn Store>, lifeboat: Option<Arc<dyn Lifeboat>>) -> Keeper {
    let vault = Arc::new(evergrant_store::Vault::new(
        evergrant_store::VaultKey::from_base64(world.key()).unwrap(),
    ));
    world::keeper_with(single_use(world), store, vault, world.clock.clone(), lifeboat)
}

/// A keeper as the process that comes next has it.
async fn next(world: &World) -> Keeper {
    let (store, _) = world.store().await;
    keeper_on(world, store, Some(folder(world)))
}

/// What a process leaves behind that ended with an answer in hand: the answer, in the lifeboat.
async fn left_behind(world: &World) -> (Connection, AccessToken) {
    let (store, _) = world.store().await;
    let store = Steps::failing(store, "land", usize::MAX, Moment::Before);
    let keeper = keeper_on(world, store, Some(folder(world)));
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    let token = keeper.current(&connection.id, None).await.unwrap();
    keeper.shutdown().await;
    assert_eq!(entries(world).await, 1);
    (connection, token.access_token.clone())
}

async fn entries(world: &World) -> usize {
    folder(world).entries().await.unwrap().len()
}

/// Waits until nothing is in the lifeboat any more.
async fn until_empty(world: &World) {
    let empty = async {
        while entries(world).await > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(FOR_EVER, empty).await.expect("it empties");
}

/// Waits until something was tried so often.
async fn until_tried(times: &AtomicUsize, at_least: usize) {
    let tried = async {
        while times.load(Ordering::SeqCst) < at_least {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(FOR_EVER, tried).await.expect("it is tried");
}

async fn version(keeper: &Keeper, connection: &Connection) -> Version {
    let stored = keeper.store().connection(&connection.id).await.unwrap();
    stored.unwrap().version
}

fn alive(world: &World) -> usize {
    let tokens = world.hubspot.ledger().refresh_tokens;
    tokens
        .iter()
        .filter(|token| !token.dead && !token.superseded)
        .count()
}

#[tokio::test]
async fn while_the_store_is_away_whoever_waits_gets_the_token_and_it_lands_later() {
    let world = rotating().await;
    let (store, _) = world.store().await;
    let away = Arc::new(AtomicBool::new(false));
    let still = away.clone();
    let store = Steps::watched(store, move |_, _| {
        if still.load(Ordering::SeqCst) {
            return Err(gone(false));
        }
        Ok(())
    });
    let keeper = keeper_on(&world, store, Some(folder(&world)));
    let connection = world.connected(&keeper).await;
    world.hubspot.arm(Fault::token(FaultKind::HoldAfterIssue));
    let caller = tokio::spawn({
        let (keeper, id) = (keeper.clone(), connection.id.clone());
        async move { keeper.refresh(&id, None, Renewal::Forced).await }
    });
    world.hubspot.wait_for_held(1).await;
    away.store(true, Ordering::SeqCst);
    world.hubspot.release_held();
    let report = caller.await.unwrap().unwrap();
    assert_eq!(report.version, connection.version.next());
    assert_eq!(entries(&world).await, 1);
    // It serves like any other, without the store for a while and no longer.
    world.pass(Duration::from_secs(45));
    let token = keeper.current(&connection.id, None).await.unwrap();
    assert_eq!(token.version, report.version);
    assert!(world.accepts(&token.access_token).await);
    world.pass(Duration::from_secs(16));
    let error = keeper.current(&connection.id, None).await.unwrap_err();
    assert!(matches!(error, KeepError::StoreUnavailable { .. }), "{error:?}");
    away.store(false, Ordering::SeqCst);
    until_empty(&world).await;
    let other = next(&world).await.current(&connection.id, None).await.unwrap();
    assert_eq!(other.access_token.expose(), token.access_token.expose());
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
    assert_redeemed_once(&world.hubspot);
}

#[tokio::test]
async fn a_commit_that_takes_over_a_second_does_not_let_anybody_wait() {
    let world = rotating().await;
    let (store, _) = world.store().await;
    let permits = Arc::new(Semaphore::new(0));
    let keeper = keeper_on(
        &world,
        Steps::gated(store, "land", permits.clone()),
        Some(folder(&world)),
    );
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    // Well before the try itself is given up.
    let waits = tokio::time::timeout(Duration::from_secs(9), keeper.current(&connection.id, None));
    let token = waits.await.expect("nobody waits for the commit").unwrap();
    assert!(world.accepts(&token.access_token).await);
    assert_eq!(version(&keeper, &connection).await, connection.version);
    assert_eq!(entries(&world).await, 1);
    permits.add_permits(9);
    until_empty(&world).await;
    assert_eq!(version(&keeper, &connection).await, token.version);
    assert_redeemed_once(&world.hubspot);
}

#[tokio::test]
async fn a_process_that_ends_with_an_answer_in_hand_leaves_it_to_the_next_one() {
    let world = rotating().await;
    let (connection, token) = left_behind(&world).await;
    let keeper = next(&world).await;
    // Nobody landed it yet: the open attempt is not judged before the lifeboat is looked into.
    let current = keeper.current(&connection.id, None).await.unwrap();
    assert_eq!(current.access_token.expose(), token.expose());
    assert_eq!(entries(&world).await, 0);
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
    assert_redeemed_once(&world.hubspot);
}

#[tokio::test]
async fn every_process_lands_what_it_finds_when_it_starts() {
    let world = rotating().await;
    let (connection, _) = left_behind(&world).await;
    let keeper = next(&world).await;
    keeper.start();
    until_empty(&world).await;
    keeper.shutdown().await;
    assert_eq!(version(&keeper, &connection).await, connection.version.next());
}

#[tokio::test]
async fn what_is_in_hand_counts_although_the_store_shows_the_old_token_set() {
    let world = rotating().await;
    let (store, _) = world.store().await;
    // It answers everything and takes no answer: a lock that is not given back, say.
    let stuck = Arc::new(AtomicBool::new(true));
    let still = stuck.clone();
    let store = Steps::watched(store, move |step, _| match step {
        "land" if still.load(Ordering::SeqCst) => Err(gone(false)),
        _ => Ok(()),
    });
    let keeper = keeper_on(&world, store, Some(folder(&world)));
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    let token = keeper.current(&connection.id, None).await.unwrap();
    // Nothing at hand serves before the store was read, and the store shows a set that has ended.
    keeper.set_apps(vec![single_use(&world)]);
    let again = keeper.current(&connection.id, None).await.unwrap();
    assert_eq!(again.access_token.expose(), token.access_token.expose());
    let report = keeper
        .refresh(&connection.id, Some(connection.version), Renewal::Forced)
        .await
        .unwrap();
    assert!(!report.redeemed, "{report:?}");
    assert_eq!(world.hubspot.ledger().token_requests, 1);
    stuck.store(false, Ordering::SeqCst);
    until_empty(&world).await;
    assert_eq!(version(&keeper, &connection).await, token.version);
    let events = keeper.store().events(&connection.id, 9).await.unwrap();
    assert!(
        events.iter().all(|event| event.kind != "store_regressed"),
        "{events:?}"
    );
    assert_redeemed_once(&world.hubspot);
}

#[tokio::test]
async fn a_commit_that_had_happened_is_found_out_and_its_entry_removed() {
    let world = rotating().await;
    let (store, _) = world.store().await;
    let store = Steps::failing(store, "land", 1, Moment::After);
    let keeper = keeper_on(&world, store, Some(folder(&world)));
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    let token = keeper.current(&connection.id, None).await.unwrap();
    until_empty(&world).await;
    assert_eq!(version(&keeper, &connection).await, connection.version.next());
    assert_eq!(token.version, connection.version.next());
    let events = keeper.store().events(&connection.id, 9).await.unwrap();
    let refreshed = events.iter().filter(|event| event.kind == "refreshed").count();
    assert_eq!(refreshed, 1, "{events:?}");
}

#[tokio::test]
async fn an_entry_stays_until_a_read_shows_that_it_has_landed() {
    let world = rotating().await;
    let (store, _) = world.store().await;
    let (tries, looks, blind) = (
        AtomicUsize::new(0),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(true)),
    );
    let (looked, still) = (looks.clone(), blind.clone());
    let store = Steps::watched(store, move |step, moment| match (step, moment) {
        ("land", Moment::Before) if tries.fetch_add(1, Ordering::SeqCst) == 0 => Err(gone(false)),
        // It says that it has committed, and shows nothing of it.
        ("connection", Moment::Before)
            if tries.load(Ordering::SeqCst) > 1 && still.load(Ordering::SeqCst) =>
        {
            looked.fetch_add(1, Ordering::SeqCst);
            Err(gone(false))
        }
        _ => Ok(()),
    });
    let keeper = keeper_on(&world, store, Some(folder(&world)));
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    keeper.current(&connection.id, None).await.unwrap();
    until_tried(&looks, 2).await;
    assert_eq!(entries(&world).await, 1);
    blind.store(false, Ordering::SeqCst);
    until_empty(&world).await;
    assert_eq!(version(&keeper, &connection).await, connection.version.next());
    assert_redeemed_once(&world.hubspot);
}

/// A disk with no room, until there is.
struct Full {
    room: AtomicBool,
    tries: AtomicUsize,
    disk: Arc<dyn Lifeboat>,
}

#[async_trait]
impl Lifeboat for Full {
    async fn keep(&self, name: &str, sealed: &[u8]) -> io::Result<()> {
        self.tries.fetch_add(1, Ordering::SeqCst);
        if !self.room.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.disk.keep(name, sealed).await
    }

    async fn entries(&self) -> io::Result<Vec<(String, Vec<u8>)>> {
        self.disk.entries().await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name).await
    }
}

#[tokio::test]
async fn with_store_and_lifeboat_away_the_token_serves_and_both_are_tried_until_one_does() {
    let world = rotating().await;
    let (store, _) = world.store().await;
    let away = Arc::new(AtomicBool::new(true));
    let gone_still = away.clone();
    let store = Steps::watched(store, move |step, _| match step {
        "land" if gone_still.load(Ordering::SeqCst) => Err(gone(false)),
        _ => Ok(()),
    });
    let full = Arc::new(Full {
        room: AtomicBool::new(false),
        tries: AtomicUsize::new(0),
        disk: folder(&world),
    });
    let keeper = keeper_on(&world, store, Some(full.clone()));
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    let token = keeper.current(&connection.id, None).await.unwrap();
    assert!(world.accepts(&token.access_token).await);
    assert_eq!(entries(&world).await, 0);
    // A process that is told to stop does not, with the only copy in its memory.
    let stopped = tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.shutdown().await }
    });
    until_tried(&full.tries, 3).await;
    assert!(!stopped.is_finished());
    full.room.store(true, Ordering::SeqCst);
    stopped.await.unwrap();
    assert_eq!(entries(&world).await, 1);
    // Its lease goes with it.
    drop(keeper);
    let after = next(&world).await;
    let current = after.current(&connection.id, None).await.unwrap();
    assert_eq!(current.access_token.expose(), token.access_token.expose());
    assert_redeemed_once(&world.hubspot);
}

#[tokio::test]
async fn two_processes_that_find_the_same_entry_land_it_once() {
    let world = rotating().await;
    let (connection, token) = left_behind(&world).await;
    let (one, two) = (next(&world).await, next(&world).await);
    let (first, second) = tokio::join!(one.land_lifeboats(None), two.land_lifeboats(None));
    assert!(first.unwrap() + second.unwrap() >= 1);
    assert_eq!(entries(&world).await, 0);
    assert_eq!(version(&one, &connection).await, connection.version.next());
    let current = two.current(&connection.id, None).await.unwrap();
    assert_eq!(current.access_token.expose(), token.expose());
    let events = one.store().events(&connection.id, 9).await.unwrap();
    let refreshed = events.iter().filter(|event| event.kind == "refreshed").count();
    assert_eq!(refreshed, 1, "{events:?}");
}

#[tokio::test]
async fn an_entry_of_a_connection_that_was_disconnected_since_is_revoked() {
    let world = rotating().await;
    let (connection, _) = left_behind(&world).await;
    let keeper = next(&world).await;
    keeper.disconnect(&connection.id, Revoke::Auto).await.unwrap();
    assert_eq!(keeper.land_lifeboats(None).await.unwrap(), 1);
    assert_eq!(entries(&world).await, 0);
    keeper.shutdown().await;
    assert_eq!(alive(&world), 0, "{:?}", world.hubspot.ledger());
    let error = keeper.current(&connection.id, None).await.unwrap_err();
    assert!(matches!(error, KeepError::Disconnected), "{error:?}");
}

#[tokio::test]
async fn an_entry_of_a_connection_that_was_purged_since_is_revoked() {
    let world = rotating().await;
    let (connection, _) = left_behind(&world).await;
    let keeper = next(&world).await;
    keeper.disconnect(&connection.id, Revoke::Auto).await.unwrap();
    keeper.store().purge(&connection.id).await.unwrap();
    assert_eq!(keeper.land_lifeboats(None).await.unwrap(), 1);
    assert_eq!(entries(&world).await, 0);
    keeper.shutdown().await;
    assert_eq!(alive(&world), 0, "{:?}", world.hubspot.ledger());
}

#[tokio::test]
async fn an_entry_does_not_land_on_another_connection_that_has_the_id_now() {
    let world = rotating().await;
    let (connection, old) = left_behind(&world).await;
    let keeper = next(&world).await;
    keeper.disconnect(&connection.id, Revoke::Auto).await.unwrap();
    keeper.store().purge(&connection.id).await.unwrap();
    world.pass(Duration::from_secs(1));
    let new = world.connected(&keeper).await;
    assert_eq!((&new.id, new.version), (&connection.id, connection.version));
    assert_eq!(keeper.land_lifeboats(None).await.unwrap(), 1);
    assert_eq!(entries(&world).await, 0);
    assert_eq!(version(&keeper, &new).await, new.version);
    let current = keeper.current(&new.id, None).await.unwrap();
    assert_ne!(current.access_token.expose(), old.expose());
}

#[tokio::test]
async fn an_entry_of_a_connection_that_was_reconnected_since_gives_way() {
    let world = rotating().await;
    let (connection, old) = left_behind(&world).await;
    let keeper = next(&world).await;
    let grant = world.hubspot.grant(CLIENT, HUB).unwrap();
    let held = keeper.store().held(&connection.id).await.unwrap().unwrap();
    let mut tokens = held.tokens.unwrap();
    tokens.access_token = AccessToken::new(grant.access_token.clone());
    tokens.refresh_token = Some(RefreshToken::new(grant.refresh_token));
    let event =
        evergrant_domain::event::Event::new(evergrant_domain::event::EventKind::Reconnected, "a test");
    let now = evergrant_keeper::Clock::now(&*world.clock);
    keeper
        .store()
        .reconnect(&connection.id, None, tokens, event, now)
        .await
        .unwrap();
    let reconnected = version(&keeper, &connection).await;
    assert_eq!(keeper.land_lifeboats(None).await.unwrap(), 1);
    assert_eq!(entries(&world).await, 0);
    assert_eq!(version(&keeper, &connection).await, reconnected);
    let stored = keeper.store().held(&connection.id).await.unwrap().unwrap();
    let stored = stored.tokens.unwrap().access_token;
    assert_eq!(stored.expose(), grant.access_token);
    assert_ne!(stored.expose(), old.expose());
}

#[tokio::test]
async fn a_rotation_that_nobody_expected_is_noted_by_whoever_lands_it() {
    let world = rotating().await;
    let (store, vault) = world.store().await;
    let store = Steps::failing(store, "land", usize::MAX, Moment::Before);
    let keeper = world::keeper_with(
        world.app(),
        store,
        vault,
        world.clock.clone(),
        Some(folder(&world)),
    );
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    keeper.current(&connection.id, None).await.unwrap();
    keeper.shutdown().await;
    let (store, vault) = world.store().await;
    let after = world::keeper_with(
        world.app(),
        store,
        vault,
        world.clock.clone(),
        Some(folder(&world)),
    );
    assert_eq!(after.land_lifeboats(None).await.unwrap(), 1);
    let app = after.store().app_state(&connection.app).await.unwrap();
    assert!(app.single_use_since.is_some(), "{app:?}");
}

#[tokio::test]
async fn what_cannot_be_read_is_kept_and_hinders_nothing_else() {
    let world = rotating().await;
    let elsewhere = rotating().await;
    left_behind(&elsewhere).await;
    let (connection, token) = left_behind(&world).await;
    let ours = only_entry(&world.lifeboat());
    let whole = std::fs::read(&ours).unwrap();
    // Sealed with another key; cut short; from another version of the program; a note of somebody's.
    let foreign = only_entry(&elsewhere.lifeboat());
    std::fs::copy(&foreign, world.lifeboat().join("foreign.entry")).unwrap();
    std::fs::write(world.lifeboat().join("cut.entry"), &whole[..whole.len() / 2]).unwrap();
    let later = String::from_utf8(whole)
        .unwrap()
        .replace("\"format\":1", "\"format\":2");
    std::fs::write(world.lifeboat().join("later.entry"), later).unwrap();
    std::fs::write(world.lifeboat().join("README"), "do not delete").unwrap();
    let keeper = next(&world).await;
    assert_eq!(keeper.land_lifeboats(None).await.unwrap(), 1);
    assert!(!ours.exists());
    let current = keeper.current(&connection.id, None).await.unwrap();
    assert_eq!(current.access_token.expose(), token.expose());
    for kept in ["foreign.entry", "cut.entry", "later.entry", "README"] {
        assert!(world.lifeboat().join(kept).exists(), "{kept}");
    }
}

#[tokio::test]
async fn no_token_is_in_the_lifeboat_in_clear() {
    let world = rotating().await;
    let (connection, token) = left_behind(&world).await;
    let entry = only_entry(&world.lifeboat());
    let text = String::from_utf8(std::fs::read(&entry).unwrap()).unwrap();
    let shown = format!("{} {text}", entry.display());
    assert!(shown.contains(connection.id.as_str()));
    assert!(!shown.contains(token.expose()));
    let keeper = next(&world).await;
    keeper.land_lifeboats(None).await.unwrap();
    let held = keeper.store().held(&connection.id).await.unwrap().unwrap();
    assert!(!shown.contains(held.tokens.unwrap().refresh_token.unwrap().expose()));
}

fn only_entry(folder: &Path) -> std::path::PathBuf {
    let mut files = std::fs::read_dir(folder).unwrap();
    let file = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none(), "one entry and nothing else");
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_server_that_stops_with_an_answer_on_its_way_costs_nothing() {
    let server = test_postgres::Server::new();
    let world = rotating().await.on(&server);
    let keeper = next(&world).await;
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    world.hubspot.arm(Fault::token(FaultKind::HoldAfterIssue));
    let caller = tokio::spawn({
        let (keeper, id) = (keeper.clone(), connection.id.clone());
        async move { keeper.current(&id, None).await }
    });
    world.hubspot.wait_for_held(1).await;
    server.stop();
    world.hubspot.release_held();
    let token = caller.await.unwrap().unwrap();
    assert!(world.accepts(&token.access_token).await);
    assert_eq!(entries(&world).await, 1);
    // One process goes with the server away, another one comes.
    keeper.shutdown().await;
    drop(keeper);
    server.start();
    let after = next(&world).await;
    after.start();
    until_empty(&world).await;
    let current = after.current(&connection.id, None).await.unwrap();
    assert_eq!(current.access_token.expose(), token.access_token.expose());
    after.shutdown().await;
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
    assert_redeemed_once(&world.hubspot);
}
