//! The demo while it runs: a line for each customer on a terminal, else a line every few seconds.

use std::fmt;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::{Instant, interval};

use crate::demo::world::{Customer, TOKEN_TTL, World};
use crate::failure::{Exit, Failure};
use crate::output::{Output, Tone, note, print_line};

const REDRAW_EVERY: Duration = Duration::from_millis(200);
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Who looks, and how.
pub(crate) struct View {
    output: Output,
    live: Option<Live>,
}

struct Live {
    all: MultiProgress,
    lines: Vec<ProgressBar>,
}

impl View {
    /// Says where everything is.
    pub(crate) fn begin(world: &World, output: Output) -> Result<Self, Failure> {
        let mut view = Self { output, live: None };
        view.tell(format_args!(
            "Evergrant on {} and a simulated HubSpot on {}",
            world.base,
            world.hubspot.base_url()
        ))?;
        view.tell(format_args!(
            "{} portals connected, access tokens live {} s, Ctrl-C ends it",
            world.everybody().count(),
            TOKEN_TTL.as_secs()
        ))?;
        view.tell(format_args!(
            "Dashboard: {}/dashboard, log in with {}",
            world.base, world.dashboard_key
        ))?;
        if output.is_terminal && !output.json {
            let all = MultiProgress::new();
            let style = ProgressStyle::with_template("{spinner} {msg}").expect("a literal template");
            let line = |_| all.add(ProgressBar::new_spinner().with_style(style.clone()));
            let lines = world.customers.iter().map(line).collect();
            view.live = Some(Live { all, lines });
        }
        Ok(view)
    }

    /// Says what happens. With JSON, standard output is the summary's.
    pub(crate) fn tell(&self, what: fmt::Arguments<'_>) -> Result<(), Failure> {
        match &self.live {
            _ if self.output.json => {
                note(what);
                Ok(())
            }
            Some(live) => live.all.suspend(|| print_line(what)),
            None => print_line(what),
        }
    }

    /// Keeps showing the numbers. Ends only where nobody can read them any more.
    pub(crate) async fn keep_current(&self, world: &World, began: Instant) {
        let every = if self.live.is_some() {
            REDRAW_EVERY
        } else {
            REPORT_EVERY
        };
        let mut ticks = interval(every);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            if let Some(live) = &self.live {
                for (line, customer) in live.lines.iter().zip(&world.customers) {
                    line.set_message(self.describe(customer));
                    line.tick();
                }
            } else {
                let told = self.tell(format_args!("{}", report(world, began)));
                if told.is_err_and(|failure| failure.exit == Exit::Done) {
                    return;
                }
            }
        }
    }

    fn describe(&self, customer: &Customer) -> String {
        let Customer { name, hub_id, tally } = customer;
        let state = if tally.refused_after_revocation() > 0 {
            self.output.paint(Tone::Bad, "reconnect required")
        } else if tally.calls() == 0 {
            self.output.paint(Tone::Faint, "idle")
        } else {
            self.output.paint(Tone::Good, "serving")
        };
        let failed = tally.failed_because_of_token() + tally.failed_otherwise();
        format!(
            "{name:9} portal {hub_id:<10} {:6} calls  {failed} failed  token set {:<4} {state}",
            tally.calls(),
            tally.version()
        )
    }

    /// Clears the live lines; what was told stays.
    pub(crate) fn end(&self) {
        if let Some(live) = &self.live {
            for line in &live.lines {
                line.finish_and_clear();
            }
        }
    }
}

fn report(world: &World, began: Instant) -> String {
    let sum = |of: fn(&Customer) -> u64| world.customers.iter().map(|customer| of(customer)).sum::<u64>();
    format!(
        "{:3.0} s: {} calls, {} failed, {} token sets ended, {} refresh tokens redeemed",
        began.elapsed().as_secs_f64(),
        sum(|customer| customer.tally.calls()),
        sum(|customer| customer.tally.failed_because_of_token() + customer.tally.failed_otherwise()),
        sum(|customer| customer.tally.expiries()),
        world.ledger().refreshes_accepted,
    )
}
