//! A process that is killed with an answer in hand, at every step between the provider's answer and the removed entry.
//!
//! As in `crash`, the test starts itself again as the process that dies.

use std::io;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use evergrant_domain::{ConnectionId, ReconnectReason, Rotation};
use evergrant_keeper::{KeepError, Lifeboat, LifeboatFolder, SystemClock};

use crate::steps::{Moment, Steps, gone};
use crate::world::{self, PAST_EXPIRY, World};

/// How often the store takes no answer before it does.
const REFUSALS: usize = 2;

/// Counts the steps of one process, and is the end of it at the one that was named.
struct Fate {
    dies_at: usize,
    step: AtomicUsize,
}

impl Fate {
    fn passes(&self, name: &str, moment: Moment) {
        let now = self.step.fetch_add(1, Ordering::SeqCst);
        eprintln!("step {now}: {moment:?} {name}");
        if now == self.dies_at {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}

struct Watched(LifeboatFolder, Arc<Fate>);

#[async_trait]
impl Lifeboat for Watched {
    async fn keep(&self, name: &str, sealed: &[u8]) -> io::Result<()> {
        self.1.passes("keep", Moment::Before);
        let kept = self.0.keep(name, sealed).await;
        self.1.passes("keep", Moment::After);
        kept
    }

    async fn entries(&self) -> io::Result<Vec<(String, Vec<u8>)>> {
        self.0.entries().await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.1.passes("remove", Moment::Before);
        let removed = self.0.remove(name).await;
        self.1.passes("remove", Moment::After);
        removed
    }
}

/// The process that is going to die: everything comes by environment. Without it this is the run that does not die.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_the_store_refuses_at_first_goes_through_all_its_steps() {
    let world;
    let (base, database, lifeboat, key) = if let Ok(base) = std::env::var("KILLED_BASE") {
        let path = |name| std::path::PathBuf::from(std::env::var(name).unwrap());
        let key = std::env::var("KILLED_KEY").unwrap();
        (base, path("KILLED_DATABASE"), path("KILLED_LIFEBOAT"), key)
    } else {
        world = World::with(hubspot_sim::Rotation::Always).await;
        world.connected(&world.keeper().await).await;
        let key = world.key().to_owned();
        (world.hubspot.base_url(), world.database(), world.lifeboat(), key)
    };
    let fate = Arc::new(Fate {
        dies_at: std::env::var("KILLED_AT").map_or(usize::MAX, |at| at.parse().unwrap()),
        step: AtomicUsize::new(0),
    });
    let mut app = world::app(&base);
    app.provider.rotation = Rotation::SingleUse;
    let (store, vault) = world::open(&database, &key).await;
    let (watching, refusals) = (fate.clone(), AtomicUsize::new(0));
    let store = Steps::watched(store, move |name, moment| {
        // What came before the answer is `crash`'s to kill.
        if ["land", "connection"].contains(&name) {
            watching.passes(name, moment);
        }
        if name == "land" && moment == Moment::Before && refusals.fetch_add(1, Ordering::SeqCst) < REFUSALS {
            return Err(gone(false));
        }
        Ok(())
    });
    let folder = LifeboatFolder::open(&lifeboat).unwrap();
    let watched = Arc::new(Watched(folder.clone(), fate.clone()));
    let keeper = world::keeper_with(app, store, vault, Arc::new(SystemClock), Some(watched));
    let id = ConnectionId::parse("c1").unwrap();
    let report = keeper
        .refresh(&id, None, evergrant_keeper::Renewal::Forced)
        .await
        .unwrap();
    assert!(report.redeemed);
    while !folder.entries().await.unwrap().is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    keeper.shutdown().await;
    let steps = fate.step.load(Ordering::SeqCst);
    assert!(steps > 12, "land, keep, land, land, a look, remove: {steps}");
}

fn process(world: &World, dies_at: usize) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "--nocapture",
            "killed::an_answer_that_the_store_refuses_at_first_goes_through_all_its_steps",
        ])
        .env("KILLED_BASE", world.hubspot.base_url())
        .env("KILLED_DATABASE", world.database())
        .env("KILLED_LIFEBOAT", world.lifeboat())
        .env("KILLED_KEY", world.key())
        .env("KILLED_AT", dies_at.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_kill_before_the_entry_is_written_loses_an_answer_and_says_so() {
    let mut lost = Vec::new();
    let mut dies_at = 0;
    loop {
        let world = World::with(hubspot_sim::Rotation::Always).await;
        let mut app = world.app();
        app.provider.rotation = Rotation::SingleUse;
        let connection = world.connected(&world.keeper_of(app.clone()).await).await;
        let mut command = process(&world, dies_at);
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let last_step = log.lines().rfind(|line| line.starts_with("step ")).unwrap();

        // The process that comes after it, when the old access token has ended and nothing is on its way any more.
        world.pass(PAST_EXPIRY);
        let folder = LifeboatFolder::open(world.lifeboat()).unwrap();
        let (store, vault) = world.store().await;
        let after = world::keeper_with(
            app,
            store,
            vault,
            world.clock.clone(),
            Some(Arc::new(folder.clone())),
        );
        match after.current(&connection.id, None).await {
            Ok(token) => assert!(world.accepts(&token.access_token).await, "died at {last_step}"),
            Err(KeepError::ReconnectRequired {
                reason: ReconnectReason::RedemptionOutcomeLost,
                ..
            }) => lost.push(last_step.to_owned()),
            Err(error) => panic!("died at {last_step}: {error:?}"),
        }
        after.land_lifeboats(None).await.unwrap();
        assert!(folder.entries().await.unwrap().is_empty(), "died at {last_step}");
        let ledger = world.hubspot.ledger();
        assert_eq!(ledger.replays, 0, "died at {last_step}: {ledger:?}");
        assert!(ledger.grant_overlaps_max <= 1, "died at {last_step}: {ledger:?}");
        if output.status.success() {
            break;
        }
        dies_at += 1;
    }
    assert!(dies_at > 12, "the kills went through all steps: {dies_at}");
    // The provider's answer, the store's refusal, the first byte on the disk: the floor.
    assert_eq!(lost.len(), 2, "{lost:?}");
    assert!(
        lost[0].ends_with("Before land") && lost[1].ends_with("Before keep"),
        "{lost:?}"
    );
}
