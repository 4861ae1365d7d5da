//! `evergrant demo`: a simulated HubSpot, the real service, customers connected through the real redirect flow, and their
//! calls, while access tokens live for seconds. Then a stampede, a revoked grant, and three mistakes that the doctor names.
//!
//! Every number shown is counted: calls by their answers, redemptions by the simulator's ledger. Nothing of it touches the
//! user's files.

mod faults;
mod summary;
mod traffic;
mod view;
mod visitor;
mod world;

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::args::Demo;
use crate::demo::summary::{Named, Revoked, Stampede, Summary};
use crate::demo::view::View;
use crate::demo::world::{TOKEN_TTL, World};
use crate::failure::{Exit, Failure};
use crate::output::{Output, count, print_json};
use crate::{log, signals};

/// How many callers meet at one expired token.
const STAMPEDE: usize = 200;

/// How long a revoked grant may take to be recognised: a call has to come back, and its refresh to be refused.
const RECOGNISED_WITHIN: Duration = Duration::from_secs(15);

/// When what happens, counted from the first call.
struct Schedule {
    stampede: Duration,
    uninstall: Duration,
    end: Option<Duration>,
}

impl Schedule {
    fn new(exit_after: Option<Duration>) -> Self {
        let at = |share: f64, at_most_s: u64| {
            let at_most = Duration::from_secs(at_most_s);
            exit_after.map_or(at_most, |end| end.mul_f64(share).min(at_most))
        };
        // The stampede needs a token that has ended.
        Self {
            stampede: at(0.3, 10).max(TOKEN_TTL),
            uninstall: at(0.6, 25),
            end: exit_after,
        }
    }
}

pub(crate) async fn run(demo: Demo, output: Output) -> Result<(), Failure> {
    let _log = log::start(None, None)?;
    let asked_to_stop = signals::stop()?;
    let schedule = Schedule::new(demo.exit_after.map(Duration::from_secs));
    let world = World::build().await?;
    let view = View::begin(&world, output)?;
    let stop = CancellationToken::new();
    let calling = traffic::begin(&world, &stop);
    let mut scenes = Scenes::default();
    let began = Instant::now();
    let outcome = tokio::select! {
        outcome = scenes.play(&world, &view, began, &schedule) => outcome,
        () = view.keep_current(&world, began) => Ok(()),
        () = asked_to_stop => Ok(()),
    };
    stop.cancel();
    calling.finish().await;
    view.end();
    let summary = outcome.map(|()| Summary::of(&world, began.elapsed(), scenes));
    world.end().await;
    let summary = summary?;
    if output.json {
        print_json(&summary)?;
    } else {
        summary.print(output)?;
    }
    if summary.ok {
        Ok(())
    } else {
        Err(Failure::new(
            Exit::Failed,
            "the demo did not end as it should; see its summary",
        ))
    }
}

/// What happens beside the everyday calls.
#[derive(Default)]
struct Scenes {
    stampede: Option<Stampede>,
    revoked: Option<Revoked>,
    /// What the doctor says of each mistake; empty where it was not asked yet.
    named: Vec<Named>,
}

impl Scenes {
    async fn play(
        &mut self,
        world: &World,
        view: &View,
        began: Instant,
        schedule: &Schedule,
    ) -> Result<(), Failure> {
        faults::plant(world).await?;
        sleep_until(began + schedule.stampede).await;
        view.tell(format_args!(
            "{STAMPEDE} callers meet at the expired token of {}",
            world.idle().name
        ))?;
        let stampede = traffic::stampede(world, STAMPEDE).await?;
        view.tell(format_args!(
            "the stampede: {} of {STAMPEDE} calls answered with {}",
            stampede.answered,
            count(stampede.redemptions, "redemption")
        ))?;
        self.stampede = Some(stampede);

        sleep_until(began + schedule.uninstall).await;
        let leaving = world.leaving();
        view.tell(format_args!(
            "{} uninstalls the app in portal {}",
            leaving.name, leaving.hub_id
        ))?;
        // First noted, then done: from here on its calls may be refused.
        leaving.tally.note_revocation();
        world.hubspot.uninstall(world::CLIENT_ID, leaving.hub_id);
        let revoked = recognised(world).await?;
        view.tell(format_args!(
            "{} needs reconnecting ({}): {}",
            leaving.name, revoked.reason, revoked.reconnect_url
        ))?;
        self.revoked = Some(revoked);

        for named in faults::ask_the_doctor(world).await? {
            view.tell(format_args!(
                "{}: {}. The doctor: {}",
                named.connection,
                named.planted,
                named.cause()
            ))?;
            self.named.push(named);
        }

        match schedule.end {
            Some(end) => sleep_until(began + end).await,
            None => std::future::pending().await,
        }
        Ok(())
    }
}

/// Waits until the service knows that the customer's grant is gone.
async fn recognised(world: &World) -> Result<Revoked, Failure> {
    let customer = world.leaving();
    let deadline = Instant::now() + RECOGNISED_WITHIN;
    while Instant::now() < deadline {
        let record = world.record(customer).await?;
        if record["status"] == "reconnect_required" {
            return Ok(Revoked::of(customer, &record));
        }
        sleep(Duration::from_millis(100)).await;
    }
    Err(Failure::failed(format!(
        "{} uninstalled the app and nobody noticed",
        customer.name
    )))
}
