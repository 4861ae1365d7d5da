//! How far one PostgreSQL carries: `cargo xtask scale`.
//!
//! Many connections, several `evergrant serve`, all access tokens due at the same second, and callers meanwhile. Nothing here
//! asserts a speed; it measures, prints, and fails only where something was redeemed twice, lost, or a call was kept waiting
//! for more than a refresh of its own.
//!
//! Start reading at `story`; `installation` sets the stage, `load` calls.

mod installation;
mod load;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use tokio::time::{Instant, sleep};

use crate::installation::Installation;
use crate::load::Load;

/// Measures a fleet on one PostgreSQL.
#[derive(Parser)]
struct Args {
    /// Connections.
    #[arg(long, default_value_t = 100_000)]
    connections: u64,
    /// Processes that serve.
    #[arg(long, default_value_t = 4)]
    processes: usize,
    /// Calls a second, over random connections and processes.
    #[arg(long, default_value_t = 50)]
    calls: u32,
    /// How long before its end a token is due (`refresh_buffer`), in seconds.
    #[arg(long, default_value_t = 300)]
    buffer: u64,
    /// The binary.
    #[arg(long, default_value = "target/release/evergrant")]
    evergrant: PathBuf,
    /// A folder for what the processes log.
    #[arg(long)]
    logs: Option<PathBuf>,
}

/// One refresh over the loopback takes a few milliseconds; on a busy machine, with fsyncs, not this much.
const OWN_REFRESH_MAX: Duration = Duration::from_secs(5);
/// From setting the second to its coming: callers begin meanwhile.
const NOTICE: Duration = Duration::from_secs(15);
/// After this the fleet is taken to be stuck.
const PATIENCE: Duration = Duration::from_secs(3600);

#[tokio::main]
async fn main() -> ExitCode {
    match story(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn story(args: &Args) -> Result<()> {
    let installation = Arc::new(
        Installation::start(&args.evergrant, args.processes, args.buffer, args.logs.as_deref()).await?,
    );
    let began = Instant::now();
    installation.import(args.connections).await?;
    let took = began.elapsed();
    println!(
        "imported     {} connections through {} processes in {:.0} s ({:.0} a second)",
        args.connections,
        args.processes,
        took.as_secs_f64(),
        per_second(args.connections, took)
    );

    // All of them at the same second, soon.
    installation.make_all_due_in(NOTICE);
    let load = Load::start(&installation, args.connections, args.calls);
    sleep(NOTICE).await;
    let due = Instant::now();
    let mut last = (due, 0);
    loop {
        sleep(Duration::from_secs(5)).await;
        let refreshed = installation.refreshed();
        let now = Instant::now();
        println!(
            "{:>5.0} s      {refreshed} refreshed, {:.0} a second, {}",
            due.elapsed().as_secs_f64(),
            per_second(refreshed - last.1, now - last.0),
            load.so_far()
        );
        last = (now, refreshed);
        if refreshed >= args.connections {
            break;
        }
        ensure!(
            due.elapsed() < PATIENCE,
            "not all were refreshed; the fleet is stuck"
        );
    }
    let took = due.elapsed();
    let calls = load.stop().await;
    println!(
        "refreshed    all in {:.0} s ({:.0} a second)",
        took.as_secs_f64(),
        per_second(args.connections, took)
    );
    println!("calls        {calls}");
    installation.check(args.connections)?;
    ensure!(calls.failed == 0, "{} calls failed", calls.failed);
    ensure!(
        calls.longest < OWN_REFRESH_MAX,
        "a call waited for {:?}: longer than a refresh of its own",
        calls.longest
    );
    println!("ledger       every refresh token redeemed as often as its version grew; no overlap, no replay");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(0.001)
}
