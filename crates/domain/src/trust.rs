//! How far what a process has in memory counts without the store.

use std::time::Duration;

/// How long what the store told counts without another look at it: "within a second".
pub const FRESH: Duration = Duration::from_secs(1);

/// How long whoever has something at hand waits for a store that may hang.
pub const STORE_ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// What a process may do with what it has in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Use it.
    Full,
    /// Ask the store first; use it where that does not answer. The store was not read for a moment although nobody knows it to be
    /// away, as after a stop of the process.
    AskFirst,
    /// Nothing: nobody knows any more what others did meanwhile.
    Lapsed,
}

impl Trust {
    /// Decides from how long ago the store was read, and whether it did not answer when it was last tried.
    pub fn after(age: Duration, store_away: bool, max_stale: Duration) -> Self {
        if age > max_stale {
            Self::Lapsed
        } else if store_away || age <= FRESH {
            Self::Full
        } else {
            Self::AskFirst
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_at_hand_counts_while_the_store_is_read_or_known_to_be_away() {
        let check = |age, store_away, expected| {
            let (age, max_stale) = (Duration::from_millis(age), Duration::from_secs(60));
            assert_eq!(
                Trust::after(age, store_away, max_stale),
                expected,
                "{age:?}, away {store_away}"
            );
        };
        check(1000, false, Trust::Full);
        check(1001, false, Trust::AskFirst);
        check(1001, true, Trust::Full);
        check(60_000, false, Trust::AskFirst);
        check(60_000, true, Trust::Full);
        check(60_001, true, Trust::Lapsed);
        check(60_001, false, Trust::Lapsed);
    }
}
