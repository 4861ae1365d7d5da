//! Runs seeds, one after the other on every core, and tells of the first that fails how it is run again.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use clap::Parser;
use evergrant_simulation::{Class, Report, Tracing, run};

/// The whole refresh path in simulated time.
#[derive(Parser)]
#[command(name = "cargo xtask simulate")]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only this one, with everything that happens in it.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Only what goes wrong in this way, whatever the seed would draw.
    #[arg(long, value_parser = scenario)]
    scenario: Option<Class>,
    /// Go on after a failure, and list all of them.
    #[arg(long)]
    keep_going: bool,
}

fn scenario(word: &str) -> Result<Class, String> {
    Class::from_word(word).ok_or_else(|| {
        let all: Vec<&str> = Class::ALL.iter().map(|class| class.as_str()).collect();
        format!("one of {}", all.join(", "))
    })
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.seed {
        Some(seed) => replay(seed, args.scenario),
        None => run_all(&args),
    }
}

fn replay(seed: u64, class: Option<Class>) -> ExitCode {
    let report = run(seed, class, Tracing::Kept);
    println!("seed {seed}: {}", report.what);
    for line in &report.trace {
        println!("{line}");
    }
    tell(&report, class);
    if report.violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_all(args: &Args) -> ExitCode {
    let next = AtomicU64::new(args.from);
    let end = args.from + args.seeds;
    let stop = AtomicBool::new(false);
    let (ran, redeemed, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let report = run(seed, args.scenario, Tracing::Hashed);
                    ran.fetch_add(1, Ordering::Relaxed);
                    redeemed.fetch_add(report.redeemed as u64, Ordering::Relaxed);
                    if !report.violations.is_empty() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        stop.store(!args.keep_going, Ordering::Relaxed);
                        tell(&report, args.scenario);
                    }
                }
            });
        }
    });
    let (ran, redeemed, failed) = (ran.into_inner(), redeemed.into_inner(), failed.into_inner());
    println!("{ran} seeds, {redeemed} redemptions, {failed} seeds with violations");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What was wrong, and how it is run again.
fn tell(report: &Report, class: Option<Class>) {
    if report.violations.is_empty() {
        return;
    }
    println!("\nseed {}: {}", report.seed, report.what);
    for violation in report.violations.iter().take(5) {
        println!("  {violation}");
    }
    let scenario = class.map_or_else(String::new, |class| format!(" --scenario {}", class.as_str()));
    println!("  cargo xtask simulate --seed {}{scenario}", report.seed);
}
