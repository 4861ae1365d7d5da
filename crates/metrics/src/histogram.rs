//! How often something took how long.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts durations by the bounds they lie within, two additions each. Kept in whole parts of a second, `PER_SECOND` of them, fine
/// enough for what is measured and coarse enough that the sum never runs over.
pub(crate) struct Histogram<const N: usize, const PER_SECOND: u64> {
    bounds: &'static [u64; N],
    within: [AtomicU64; N],
    beyond: AtomicU64,
    sum: AtomicU64,
}

impl<const N: usize, const PER_SECOND: u64> Histogram<N, PER_SECOND> {
    /// `bounds` ascend; what equals one lies within it.
    pub(crate) fn new(bounds: &'static [u64; N]) -> Self {
        Self {
            bounds,
            within: array::from_fn(|_| AtomicU64::new(0)),
            beyond: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    pub(crate) fn observe(&self, took: Duration) {
        const NANOS_PER_SECOND: u64 = 1_000_000_000;
        let parts = took.as_secs().saturating_mul(PER_SECOND)
            + u64::from(took.subsec_nanos()) / (NANOS_PER_SECOND / PER_SECOND);
        // A handful of bounds: looked through from the first, most are found at once.
        let bucket = self.bounds.iter().position(|&bound| parts <= bound);
        let bucket = bucket.map_or(&self.beyond, |bucket| &self.within[bucket]);
        bucket.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(parts, Ordering::Relaxed);
    }
}

/// What several histograms of one kind have counted together.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Counted {
    /// For each bound, in seconds, how many lie within it and not within the one before.
    pub(crate) within: Vec<(f64, u64)>,
    pub(crate) beyond: u64,
    /// In seconds.
    pub(crate) sum: f64,
}

impl Counted {
    #[expect(
        clippy::cast_precision_loss,
        reason = "who reads this reads floating point numbers anyway"
    )]
    pub(crate) fn of<'a, const N: usize, const PER_SECOND: u64>(
        histograms: impl Iterator<Item = &'a Histogram<N, PER_SECOND>>,
    ) -> Self {
        let seconds = |parts: u64| parts as f64 / PER_SECOND as f64;
        let mut counted = Self::default();
        let mut sum = 0;
        for histogram in histograms {
            if counted.within.is_empty() {
                let bounds = histogram.bounds.iter().map(|&bound| (seconds(bound), 0));
                counted.within.extend(bounds);
            }
            for (within, (_, counted)) in histogram.within.iter().zip(&mut counted.within) {
                *counted += within.load(Ordering::Relaxed);
            }
            counted.beyond += histogram.beyond.load(Ordering::Relaxed);
            sum += histogram.sum.load(Ordering::Relaxed);
        }
        counted.sum = seconds(sum);
        counted
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.beyond == 0 && self.within.iter().all(|(_, within)| *within == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_equals_a_bound_lies_within_it_and_parts_are_added_up() {
        let halves = [(); 2].map(|()| Histogram::<2, 1000>::new(&[0, 1500]));
        for (half, millis) in [(0, 0), (1, 1), (0, 1500), (1, 1501), (1, 86_400_000)] {
            halves[half].observe(Duration::from_millis(millis));
        }
        let counted = Counted::of(halves.iter());
        assert_eq!(counted.within, [(0.0, 1), (1.5, 2)]);
        assert_eq!(counted.beyond, 2);
        assert!((counted.sum - 86_403.002).abs() < 1e-6, "{}", counted.sum);
        assert!(!counted.is_empty());
    }

    #[test]
    fn a_part_of_a_part_does_not_count() {
        let histogram = Histogram::<1, 1>::new(&[0]);
        histogram.observe(Duration::from_millis(999));
        assert_eq!(Counted::of([&histogram].into_iter()).within, [(0.0, 1)]);
    }
}
