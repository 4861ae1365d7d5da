//! Chance, all of it from one number.

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::refresh_policy::Jitter;
use evergrant_keeper::Chance;
use parking_lot::Mutex;

/// A generator of its own for each part of the world, so that one more question in one part changes nothing in another.
#[derive(Debug, Clone)]
pub(crate) struct Dice {
    seed: u64,
    generator: Arc<Mutex<fastrand::Rng>>,
}

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            generator: Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))),
        }
    }

    /// Another one, decided by the same seed and by `part`.
    pub(crate) fn of(&self, part: &str) -> Self {
        Self::new(hash(self.seed ^ HASH_START, part.as_bytes()))
    }

    /// True in this share of all cases.
    pub(crate) fn happens(&self, share: f64) -> bool {
        share > 0.0 && self.generator.lock().f64() < share
    }

    /// One of `0..end`; zero where there is none.
    pub(crate) fn below(&self, end: usize) -> usize {
        self.generator.lock().usize(0..end.max(1))
    }

    /// One of them.
    pub(crate) fn one_of<T: Copy>(&self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Between these, in whole milliseconds.
    pub(crate) fn between(&self, least: Duration, most: Duration) -> Duration {
        let (least, most) = (whole_millis(least), whole_millis(most));
        Duration::from_millis(self.generator.lock().u64(least..=most.max(least)))
    }

    /// Short mostly, long sometimes: between nothing and `most`, each order of magnitude alike.
    pub(crate) fn mostly_short(&self, most: Duration) -> Duration {
        let share = self.generator.lock().f64();
        let most = whole_millis(most);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "milliseconds of a simulated hour"
        )]
        let millis = (most as f64).powf(share) as u64;
        Duration::from_millis(millis.min(most))
    }
}

impl Chance for Dice {
    fn jitter(&self) -> Jitter {
        Jitter::new(self.generator.lock().f64())
    }
}

pub(crate) const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a: the same on every machine and in every release.
pub(crate) fn hash(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
