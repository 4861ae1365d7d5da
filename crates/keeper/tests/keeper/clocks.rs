//! Machines whose clocks are wrong, on one PostgreSQL: its clock is everybody's.

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::{Rotation, Timestamp};
use evergrant_keeper::{Clock, Keeper};

use crate::world::{self, MovedClock, PAST_EXPIRY, World, assert_redeemed_once};

/// The world's clock as a machine has it that somebody set wrong.
struct Wrong {
    right: Arc<MovedClock>,
    seconds: i64,
}

impl Clock for Wrong {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.right.now().millis() + self.seconds * 1000)
    }

    fn boot(&self) -> Duration {
        self.right.boot()
    }
}

async fn keeper(world: &World, seconds: i64) -> Keeper {
    let mut app = world.app();
    app.provider.rotation = Rotation::SingleUse;
    let (store, vault) = world.store().await;
    let right = world.clock.clone();
    world::keeper(app, store, vault, Arc::new(Wrong { right, seconds }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_an_hour_off_changes_nothing() {
    for seconds in [3600, -3600] {
        let world = World::on_postgres(hubspot_sim::Rotation::Always).await;
        let (right, wrong) = (keeper(&world, 0).await, keeper(&world, seconds).await);
        let connection = world.connected(&right).await;
        for round in 0..3 {
            // Fresh for the one is fresh for the other, and due is due.
            for _ in 0..2 {
                let one = right.current(&connection.id, None).await.unwrap();
                let other = wrong.current(&connection.id, None).await.unwrap();
                assert_eq!(one.version, other.version);
                assert_eq!(one.expires_at, other.expires_at);
                assert!(world.accepts(&other.access_token).await);
            }
            assert_eq!(world.hubspot.ledger().refreshes_accepted, round);
            world.pass(PAST_EXPIRY);
            // Whichever comes first redeems, by the same time.
            let first = if round % 2 == 0 { &wrong } else { &right };
            let token = first.current(&connection.id, None).await.unwrap();
            let lives = token.expires_at.since(token.issued_at).as_secs();
            assert!(lives.abs_diff(1800) <= 2, "{lives}");
            let left = token.seconds_remaining(first.clock().now());
            assert!((1790..=1800).contains(&left), "{left}");
        }
        let offset = wrong.clock_offset_ms().unwrap();
        assert!((offset - seconds * 1000).abs() < 2000, "{offset}");
        assert_redeemed_once(&world.hubspot);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_further_apart_than_a_token_lives_cost_one_refresh_each_time_it_ends() {
    let world = World::on_postgres(hubspot_sim::Rotation::Always).await;
    world.hubspot.set_token_ttl(Duration::from_secs(60));
    let (one, two) = (keeper(&world, 45).await, keeper(&world, -45).await);
    let connection = world.connected(&one).await;
    for round in 1..=4 {
        world.pass(Duration::from_secs(61));
        let turns = if round % 2 == 0 {
            [&one, &two]
        } else {
            [&two, &one]
        };
        for keeper in [turns, turns].concat() {
            let token = keeper.current(&connection.id, None).await.unwrap();
            assert!(world.accepts(&token.access_token).await);
        }
        assert_eq!(world.hubspot.ledger().refreshes_accepted, round);
    }
    assert_redeemed_once(&world.hubspot);
}
