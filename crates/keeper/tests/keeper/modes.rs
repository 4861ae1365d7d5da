//! Every coordination mode, alone and in a fleet of all of them, against the provider's own ledger: PROTOCOL rule 6.

use std::sync::Arc;
use std::time::Duration;

use evergrant_keeper::{Keeper, KeeperParts, Surroundings};
use evergrant_oauth::{TlsRoots, TokenEndpoint};
use evergrant_store::{ByLease, ByRedis, ByRowLock, Coordination};
use futures_util::future::join_all;
use hubspot_sim::{Fault, FaultKind, Rotation};
use tokio::task::{block_in_place, yield_now};
use tokio::time::timeout;

use crate::once::{ask, one_redemption_each_round};
use crate::world::{PAST_EXPIRY, World, assert_redeemed_once};

#[derive(Debug, Clone, Copy)]
enum Mode {
    Lease,
    RowLock,
    Redis,
}

/// A provider that rotates, and a keeper of each of these modes on one PostgreSQL database.
async fn fleet(redis: &test_redis::Server, modes: [Mode; 4]) -> (World, Vec<Keeper>) {
    let world = World::on_postgres(Rotation::Always).await;
    let mut keepers = Vec::new();
    for mode in modes {
        let coordination: Arc<dyn Coordination> = match mode {
            Mode::Lease => Arc::new(ByLease),
            Mode::RowLock => Arc::new(ByRowLock::open(world.database_url()).unwrap()),
            Mode::Redis => Arc::new(ByRedis::open(&redis.url()).unwrap()),
        };
        let (store, vault) = world.store().await;
        keepers.push(Keeper::new(KeeperParts {
            apps: vec![world.app()],
            store,
            vault,
            endpoint: TokenEndpoint::new(TlsRoots::Native),
            surroundings: Surroundings {
                clock: world.clock.clone(),
                ..Surroundings::default()
            },
            coordination,
            lifeboat: None,
            max_stale: Duration::from_secs(60),
        }));
    }
    world.connected(&keepers[0]).await;
    (world, keepers)
}

const MIXED: [Mode; 4] = [Mode::Lease, Mode::RowLock, Mode::Redis, Mode::RowLock];

#[tokio::test(flavor = "multi_thread")]
async fn in_every_mode_four_processes_make_one_redemption() {
    let redis = block_in_place(test_redis::Server::new);
    for modes in [[Mode::Lease; 4], [Mode::RowLock; 4], [Mode::Redis; 4]] {
        let (world, keepers) = fleet(&redis, modes).await;
        one_redemption_each_round(&world, &keepers).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_of_mixed_modes_makes_one_redemption() {
    let redis = block_in_place(test_redis::Server::new);
    let (world, keepers) = fleet(&redis, MIXED).await;
    one_redemption_each_round(&world, &keepers).await;
}

/// While one redeems, `broken` happens to what the others wait with. Then the provider answers.
async fn one_redemption_though(
    redis: &test_redis::Server,
    modes: [Mode; 4],
    broken: impl AsyncFnOnce(&World),
) {
    let (world, keepers) = fleet(redis, modes).await;
    world.pass(PAST_EXPIRY);
    world.hubspot.arm(Fault::token(FaultKind::HoldBeforeIssue));
    let asked = keepers.iter().map(|keeper| {
        let keeper = keeper.clone();
        tokio::spawn(async move { ask(&keeper, 20).await })
    });
    let asked: Vec<_> = asked.collect();
    world.hubspot.wait_for_held(1).await;
    broken(&world).await;
    world.hubspot.release_held();
    let answers = join_all(asked).await;
    let tokens: Vec<String> = answers.into_iter().flat_map(Result::unwrap).collect();
    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
    assert_redeemed_once(&world.hubspot);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_forgets_or_goes_in_mid_redemption_costs_no_grant() {
    let redis = block_in_place(test_redis::Server::new);
    for modes in [[Mode::Redis; 4], MIXED] {
        one_redemption_though(&redis, modes, async |_| block_in_place(|| redis.flush())).await;
        one_redemption_though(&redis, modes, async |_| block_in_place(|| redis.restart())).await;
        one_redemption_though(&redis, modes, async |_| block_in_place(|| redis.stop())).await;
        block_in_place(|| redis.start());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_lost_in_mid_redemption_costs_no_grant() {
    let redis = block_in_place(test_redis::Server::new);
    for modes in [[Mode::RowLock; 4], MIXED] {
        one_redemption_though(&redis, modes, async |world| {
            let (watcher, driver) = tokio_postgres::connect(world.database_url(), tokio_postgres::NoTls)
                .await
                .unwrap();
            tokio::spawn(driver);
            let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                        WHERE datname = current_database()
                          AND state = 'idle in transaction' AND query LIKE 'SELECT FROM turns%'";
            // First the one that redeems, then those who have its turn now, and find that its lease stands.
            let lose_some = async {
                let mut lost = 0;
                while lost < 4 {
                    lost += watcher.query_one(cut, &[]).await.unwrap().get::<_, i64>(0);
                    yield_now().await;
                }
            };
            timeout(Duration::from_secs(60), lose_some).await.unwrap();
        })
        .await;
    }
}
