//! A store that lost what was stored in it gets it back from whoever has it: PROTOCOL rule 18.

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::{
    AccessToken, Connection, ReconnectReason, RefreshToken, Rotation, Timestamp, Version,
};
use evergrant_keeper::{Clock as _, Current, KeepError, Keeper};
use evergrant_store::contract::{LeaseAnswer, LeaseOn, Revoke};

use crate::connecting::consented;
use crate::steps::Steps;
use crate::world::{self, CLIENT, HUB, PAST_EXPIRY, World, assert_redeemed_once};

/// A process that has refreshed, on a store that has gone back to before that.
struct RolledBack {
    world: World,
    keeper: Keeper,
    connection: Connection,
    token: Arc<Current>,
}

impl RolledBack {
    async fn new() -> Self {
        Self::with(2, |_| ()).await
    }

    async fn with(refreshes: usize, begin: impl FnOnce(&Keeper)) -> Self {
        let world = World::with(hubspot_sim::Rotation::Always).await;
        let mut app = world.app();
        app.provider.rotation = Rotation::SingleUse;
        let (store, vault) = world.store().await;
        let steps = Arc::new(Steps::new(store));
        let keeper = world::keeper(app, steps.clone(), vault, world.clock.clone());
        begin(&keeper);
        let connection = world.connected(&keeper).await;
        let backup = world.backup();
        let mut token = None;
        for _ in 0..refreshes {
            world.pass(PAST_EXPIRY);
            token = Some(keeper.current(&connection.id, None).await.unwrap());
        }
        let (older, _) = world::open(&backup, world.key()).await;
        assert_eq!(
            older.connection(&connection.id).await.unwrap().unwrap().version,
            Version::FIRST
        );
        steps.swap(older);
        Self {
            world,
            keeper,
            connection,
            token: token.unwrap(),
        }
    }

    /// What a call gets once nothing at hand serves before the store was read.
    async fn current(&self) -> Result<Arc<Current>, KeepError> {
        let mut app = self.world.app();
        app.provider.rotation = Rotation::SingleUse;
        self.keeper.set_apps(vec![app]);
        self.keeper.current(&self.connection.id, None).await
    }

    async fn stored(&self) -> Connection {
        let stored = self.keeper.store().connection(&self.connection.id).await;
        stored.unwrap().unwrap()
    }

    async fn regressions(&self) -> usize {
        let events = self.keeper.store().events(&self.connection.id, 20).await.unwrap();
        events
            .iter()
            .filter(|event| event.kind == "store_regressed")
            .count()
    }

    /// A new consent on the store that went back, at this time.
    async fn reconnect(&self, at: Timestamp) -> String {
        let grant = self.world.hubspot.grant(CLIENT, HUB).unwrap();
        let held = self.keeper.store().held(&self.connection.id).await.unwrap();
        let mut tokens = held.unwrap().tokens.unwrap();
        tokens.access_token = AccessToken::new(grant.access_token.clone());
        tokens.refresh_token = Some(RefreshToken::new(grant.refresh_token));
        tokens.issued_at = at;
        let app = self.world.app();
        tokens.ends = app.refresh_policy.ends(
            at,
            grant.expires_in,
            evergrant_domain::refresh_policy::Jitter::NONE,
        );
        let event = Event::new(EventKind::Reconnected, "a test");
        let store = self.keeper.store();
        store
            .reconnect(&self.connection.id, None, tokens, event, at)
            .await
            .unwrap();
        grant.access_token
    }
}

#[tokio::test]
async fn a_store_that_shows_less_than_a_process_has_is_given_it_back() {
    let rolled = RolledBack::new().await;
    let token = rolled.current().await.unwrap();
    assert_eq!(token.version, rolled.token.version);
    assert_eq!(token.access_token.expose(), rolled.token.access_token.expose());
    assert_eq!(rolled.stored().await.version, rolled.token.version);
    assert_eq!(rolled.regressions().await, 1);
    // The grant survives: the newest refresh token is the one that is presented next, and none is presented twice.
    rolled.world.pass(PAST_EXPIRY);
    let next = rolled.current().await.unwrap();
    assert_eq!(next.version, rolled.token.version.next());
    assert!(rolled.world.accepts(&next.access_token).await);
    assert_eq!(rolled.regressions().await, 1);
    assert_eq!(rolled.world.hubspot.ledger().refreshes_accepted, 3);
    assert_redeemed_once(&rolled.world.hubspot);
}

#[tokio::test]
async fn after_a_failover_everything_at_hand_is_compared_though_nobody_asks() {
    // Once: the feed must not have been unread for so long that everything is read again for that alone.
    let rolled = RolledBack::with(1, Keeper::start).await;
    // The store is asked who it is every now and then.
    rolled.world.pass(Duration::from_secs(11));
    let put_back = async {
        while rolled.stored().await.version != rolled.token.version {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), put_back)
        .await
        .expect("it is put back");
    assert_eq!(rolled.regressions().await, 1);
    rolled.keeper.shutdown().await;
    assert_redeemed_once(&rolled.world.hubspot);
}

#[tokio::test]
async fn what_was_disconnected_on_the_store_that_went_back_stays_so() {
    let rolled = RolledBack::new().await;
    let store = rolled.keeper.store();
    let event = Event::new(EventKind::Disconnected, "a test");
    let now = rolled.world.clock.now();
    store
        .disconnect(&rolled.connection.id, Revoke::Auto, None, event, now)
        .await
        .unwrap();
    assert!(rolled.stored().await.version < rolled.token.version);
    let error = rolled.current().await.unwrap_err();
    assert!(matches!(error, KeepError::Disconnected), "{error:?}");
    assert_eq!(rolled.regressions().await, 0);
}

#[tokio::test]
async fn a_verdict_on_a_token_set_that_was_replaced_long_ago_does_not_count() {
    let rolled = RolledBack::new().await;
    let store = rolled.keeper.store();
    let (id, now) = (&rolled.connection.id, rolled.world.clock.now());
    let lasts = Duration::from_secs(30);
    let answer = store
        .take_lease(id, Version::FIRST, lasts, LeaseOn::Active, now)
        .await;
    let LeaseAnswer::Taken { lease, .. } = answer.unwrap() else {
        panic!("the lease is free")
    };
    let event = Event::new(EventKind::ReconnectRequired, "a test");
    assert!(
        store
            .condemn(&lease, ReconnectReason::GrantRefused, event, now)
            .await
            .unwrap()
    );
    let token = rolled.current().await.unwrap();
    assert_eq!(token.version, rolled.token.version);
    assert_eq!(rolled.regressions().await, 1);
}

#[tokio::test]
async fn a_newer_consent_counts_whatever_its_number() {
    for reconnects in [1, 2] {
        let rolled = RolledBack::new().await;
        let mut newest = String::new();
        for _ in 0..reconnects {
            rolled.world.pass(Duration::from_secs(1));
            newest = rolled.reconnect(rolled.world.clock.now()).await;
        }
        // Below the version that this process has, and the same.
        assert!(rolled.stored().await.version <= rolled.token.version);
        let token = rolled.current().await.unwrap();
        assert_eq!(token.access_token.expose(), newest, "{reconnects} reconnects");
        assert_eq!(rolled.regressions().await, 0, "{reconnects} reconnects");
    }
}

#[tokio::test]
async fn a_new_consent_that_the_store_lost_is_given_back_though_nobody_has_used_it() {
    let world = World::with(hubspot_sim::Rotation::Always).await;
    let (store, vault) = world.store().await;
    let steps = Arc::new(Steps::new(store));
    let keeper = world::keeper(world.app(), steps.clone(), vault, world.clock.clone());
    let first = consented(&world, &keeper, HUB, None).await.unwrap();
    let backup = world.backup();
    world.pass(Duration::from_secs(1));
    let again = consented(&world, &keeper, HUB, Some(&first.id)).await.unwrap();
    assert!(again.version > first.version);
    let (older, _) = world::open(&backup, world.key()).await;
    steps.swap(older);
    // As after a failover, nothing at hand serves before the store was read.
    keeper.set_apps(vec![world.app()]);
    let token = keeper.current(&first.id, None).await.unwrap();
    assert_eq!(token.version, again.version);
    assert!(world.accepts(&token.access_token).await);
    let stored = keeper.store().connection(&first.id).await.unwrap().unwrap();
    assert_eq!(stored.version, again.version);
}

#[tokio::test]
async fn another_connection_that_has_the_id_now_is_not_taken_for_a_loss() {
    let world = World::with(hubspot_sim::Rotation::Always).await;
    let keeper = world.keeper().await;
    let old = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    let before = keeper.current(&old.id, None).await.unwrap();
    let other = world.keeper().await;
    other.disconnect(&old.id, Revoke::Auto).await.unwrap();
    other.store().purge(&old.id).await.unwrap();
    world.pass(Duration::from_secs(1));
    let new = world.connected(&other).await;
    assert!(new.version < before.version);
    keeper.set_apps(vec![world.app()]);
    let token = keeper.current(&old.id, None).await.unwrap();
    assert_eq!(token.version, new.version);
    assert_ne!(token.access_token.expose(), before.access_token.expose());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_loses_the_last_commits_costs_no_grant() {
    let primary = test_postgres::Server::new();
    let standby = primary.asynchronous_standby();
    let (hosts, database) = ((primary.host(), standby.host()), primary.database());
    let world = World::with(hubspot_sim::Rotation::Always)
        .await
        .at(format!("postgres://evergrant@{},{}/{database}", hosts.0, hosts.1));
    let mut app = world.app();
    app.provider.rotation = Rotation::SingleUse;
    let keeper = world.keeper_of(app.clone()).await;
    keeper.start();
    let connection = world.connected(&keeper).await;
    standby.cut_off(&primary);
    world.pass(PAST_EXPIRY);
    let token = keeper.current(&connection.id, None).await.unwrap();
    primary.crash();
    standby.promote();
    // Nobody asks: the process finds out by itself what the new primary lacks.
    let stored = || async {
        let stored = keeper.store().connection(&connection.id).await;
        stored.ok().flatten().map(|stored| stored.version)
    };
    while stored().await != Some(token.version) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let other = world.keeper_of(app).await;
    let there = other.current(&connection.id, None).await.unwrap();
    assert_eq!(there.access_token.expose(), token.access_token.expose());
    world.pass(PAST_EXPIRY);
    let next = other.current(&connection.id, None).await.unwrap();
    assert!(world.accepts(&next.access_token).await);
    keeper.shutdown().await;
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 2);
    assert_redeemed_once(&world.hubspot);
}
