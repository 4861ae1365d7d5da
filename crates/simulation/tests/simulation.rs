//! A few hundred runs, and that a seed decides a run. `cargo xtask simulate` runs more of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use evergrant_simulation::{Class, Tracing, run};
use parking_lot::Mutex;

/// How many runs of each class.
const EACH: u64 = 16;

fn check(seeds: u64, class: Option<Class>) -> u64 {
    let next = AtomicU64::new(0);
    let redeemed = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let report = run(seed, class, Tracing::Hashed);
                    redeemed.fetch_add(report.redeemed as u64, Ordering::Relaxed);
                    if let Some(violation) = report.violations.first() {
                        failed.lock().push(format!(
                            "{}\n  {violation}\n  cargo xtask simulate --seed {seed} --scenario {}",
                            report.what,
                            report.class.as_str()
                        ));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    redeemed.into_inner()
}

#[test]
fn whatever_goes_wrong_the_invariants_hold() {
    for class in Class::ALL {
        let redeemed = check(EACH, Some(class));
        // A world in which nothing is redeemed proves nothing.
        assert!(redeemed > 4 * EACH, "{class:?}: {redeemed} redemptions");
    }
}

#[test]
fn a_seed_decides_a_run() {
    for seed in 0..12 {
        for class in [Class::Storm, Class::Leaving] {
            let hashes = [(); 2].map(|()| run(seed, Some(class), Tracing::Hashed).hash);
            assert_eq!(hashes[0], hashes[1], "seed {seed}, {class:?}");
        }
    }
    assert_ne!(
        run(1, Some(Class::Storm), Tracing::Hashed).hash,
        run(2, Some(Class::Storm), Tracing::Hashed).hash
    );
}
