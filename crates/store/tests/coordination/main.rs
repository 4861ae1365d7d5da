//! Who waits how for their turn: what every mode keeps, alone and in a fleet of all of them, and what each promises besides.
//!
//! A claim is a function over a [`fleet::Fleet`]; `every_claim!` at the foot of this file makes a test of each for each mode.

#![expect(clippy::unwrap_used, reason = "a claim that cannot be made ends its test")]

mod claims;
#[path = "../postgres/database.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod database;
mod fleet;
#[path = "../postgres/proxy.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod proxy;
mod redis;
mod row_lock;

/// Every claim, for a fleet whose processes have these modes, one after the other.
macro_rules! every_claim {
    ($fleet:ident = $($mode:ident)+) => {
        every_claim! { $fleet = [$($mode)+]:
            however_many_call_one_redeems
            a_turn_that_is_given_back_is_the_next_ones
            whoever_waited_in_vain_finds_what_moved
            a_killed_holders_turn_is_free_and_its_attempt_stays
            turns_at_different_connections_do_not_wait_for_each_other
        }
    };
    ($fleet:ident = $modes:tt: $($claim:ident)+) => {
        mod $fleet {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $claim() {
                $crate::claims::$claim(&every_claim!(@fleet $modes)).await;
            })+
        }
    };
    (@fleet [$($mode:ident)+]) => {
        $crate::fleet::Fleet::of(&[$($crate::fleet::Mode::$mode),+]).await
    };
}

every_claim!(by_lease = Lease);
every_claim!(by_row_lock = RowLock);
every_claim!(by_redis = Redis);
every_claim!(by_each_its_own = Lease RowLock Redis);

/// The other process of tests that start one; without them, a test like any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_a_fleet() {
    fleet::obey().await;
}
