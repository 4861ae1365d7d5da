//! Killed at any step: checks 4 and 25.

use rustix::process::Signal;

use crate::clock::Clock;
use crate::disturb::Strace;
use crate::provider::Rotation;
use crate::site::{Introspection, Site, Store};
use crate::web::eventually;

/// What a redemption does that others can see: it writes to the store, syncs it, connects, sends, reads. From the first such
/// system call on, a service is killed at each, until one redemption gets through.
const STEPS: &str = "pwrite64,fdatasync,connect,writev,sendto,recvfrom";

/// The steps at which it is killed: each in the long form, ever fewer otherwise.
fn steps() -> impl Iterator<Item = u32> {
    let each = crate::long("a kill at every single step of a redemption");
    let mut last = 0;
    std::iter::from_fn(move || {
        last += if each { 1 } else { 1 + last / 3 };
        Some(last)
    })
}

/// How often, and how often in vain.
#[derive(Default)]
struct Kills {
    times: u32,
    lost: u32,
}

async fn killed_at_every_step(rotation: Rotation, introspection: Introspection) -> Kills {
    let site = Site::new(Store::Sqlite, rotation, introspection).await;
    let clock = Clock::new(site.path("clock"));
    let mut service = site.serve_with(&clock.settings());
    let mut kills = Kills::default();
    for step in steps() {
        let customer = format!("step-{step}");
        site.connect(&service, &customer).await;
        let strace = Strace::inject(&service, &format!("{STEPS}:signal=KILL:when={step}"));
        let got_through = site.try_call(&service, &customer, "").await;
        if got_through.is_ok_and(|answer| answer.status == 200) {
            assert!(step > 10, "so few steps cannot be all: {step}");
            // Where there is grace, each kill may cost a presentation; elsewhere the provider is asked instead.
            let replays = u64::from(if rotation == Rotation::Grace {
                kills.times
            } else {
                0
            });
            site.provider.ledger().await.is_clean(replays);
            return kills;
        }
        kills.times += 1;
        drop(strace);
        drop(service);
        let before = site.provider.ledger().await.grant(&customer);
        service = site.serve_with(&clock.settings());
        // Whatever is open now is waited for.
        clock.set(31 * i64::from(kills.times));
        let mut answer = site.call(&service, &customer).await;
        eventually("it works or says why not", async || {
            answer = site.call(&service, &customer).await;
            answer.status != 503
        })
        .await;
        if answer.status != 200 {
            assert_eq!(answer.error(), "reconnect_required", "{customer}: {answer:?}");
            let status = site.status(&service, &customer).await;
            assert_eq!(status, "redemption_outcome_lost", "{customer}");
            assert_eq!(
                before.accepted, 1,
                "{customer}: nothing had been issued that could be lost"
            );
            kills.lost += 1;
        }
    }
    unreachable!("steps go on until one redemption gets through")
}

// Check 4.
#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_grace_no_kill_at_any_step_loses_a_grant() {
    let kills = killed_at_every_step(Rotation::Grace, Introspection::Off).await;
    assert_eq!(kills.lost, 0);
    assert!(kills.times > 5, "{}", kills.times);
}

// Check 4.
#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_none_a_kill_loses_a_grant_between_answer_and_commit_only_and_says_so() {
    let kills = killed_at_every_step(Rotation::SingleUse, Introspection::On).await;
    assert!(
        kills.times > 5 && kills.lost < kills.times,
        "{} of {}",
        kills.lost,
        kills.times
    );
}

/// Check 25: a schema that is made by one process after the other, each killed a step later.
async fn migration_is_killed(store: Store, steps: &str) {
    let url = match store {
        Store::Sqlite => "sqlite://another.db".to_owned(),
        Store::Postgres(url) => url,
    };
    let mut site = Site::new(Store::Sqlite, Rotation::SingleUse, Introspection::Off).await;
    site.set("EVERGRANT_STORE__URL", &url);
    let mut kills = 0;
    let mut step = 1;
    loop {
        let mut strace = std::process::Command::new("strace");
        strace
            .args(["-f", "-o", "/dev/null", "-e", &format!("trace={steps}")])
            .args(["-e", &format!("inject={steps}:signal=KILL:when={step}")]);
        let done = site.migrate_under(&strace);
        if done.success() {
            break;
        }
        kills += 1;
        step += 1 + step / 2;
    }
    assert!(kills > 3, "{kills}");
    let service = site.serve();
    service.signal(Signal::TERM);
    assert!(service.ended().success(), "{}", site.printed());
}

// Check 25.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_is_killed_half_way_is_done_by_the_next() {
    tokio::join!(
        migration_is_killed(Store::Sqlite, "pwrite64,fdatasync"),
        migration_is_killed(Store::postgres(), "sendto,writev")
    );
}
