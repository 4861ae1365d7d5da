//! One thing for each of a few threads, so that no two of them write to the same line of memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

/// A part of its own for each of a few threads. More threads than parts share them, which is slower and comes to the same.
#[derive(Debug)]
pub struct Shards<T> {
    /// Their number is a power of two.
    parts: Box<[Arc<Apart<T>>]>,
}

/// In memory far enough from everything else: two lines, because they are fetched in pairs.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(crate) struct Apart<T>(pub(crate) T);

impl<T: Default> Default for Shards<T> {
    fn default() -> Self {
        /// So many threads work at a time on the largest machines that this is for.
        const MAX: usize = 64;
        // Twice as many as there are processors, because not only those who count are given one.
        let parts = available_parallelism().map_or(1, |threads| 2 * threads.get());
        let parts = parts.min(MAX).next_power_of_two();
        Self {
            parts: (0..parts).map(|_| Arc::default()).collect(),
        }
    }
}

impl<T> Shards<T> {
    /// The part of this thread.
    pub fn here(&self) -> &T {
        &self.held_here().0
    }

    /// The same, to be held.
    pub(crate) fn held_here(&self) -> &Arc<Apart<T>> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
        }
        &self.parts[NUMBER.with(|number| number & (self.parts.len() - 1))]
    }

    /// The parts of all threads.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.parts.iter().map(|part| &part.0)
    }

    /// How many hold on to a part of it.
    pub(crate) fn holders(&self) -> usize {
        self.parts.iter().map(|part| Arc::strong_count(part) - 1).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_part_and_another_thread_has_another() {
        let shards = Shards::<()>::default();
        let here = || std::ptr::from_ref(shards.here()).addr();
        let mine = here();
        assert_eq!(mine, here());
        let theirs = std::thread::scope(|scope| {
            (0..shards.parts.len())
                .map(|_| scope.spawn(here).join().expect("it only looks"))
                .collect::<std::collections::BTreeSet<_>>()
        });
        // Other tests run beside this one and take numbers, too.
        assert!(shards.parts.len() == 1 || theirs.len() > 1, "{theirs:?}");
    }
}
