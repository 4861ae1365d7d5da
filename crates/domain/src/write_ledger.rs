//! The write ledger's rules: which guarded write may run, and what its outcome leaves behind.
//!
//! A write that its caller has guarded is `reserved`, then `sent` (on record before its first byte leaves), then `done` or
//! `unknown`. What was never carried out leaves nothing behind, and may run again. No rule here depends on clocks being right:
//! whoever was judged dead by a deadline and is not finds its reservation gone before it sends, and settles a write that it has
//! sent all the same.
//!
//! Source: the redemption protocol, "The write ledger".

use std::time::Duration;

use crate::time::Timestamp;

/// How far a guarded write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteState {
    /// Somebody means to send it. Nothing has left.
    Reserved,
    /// It may have left.
    Sent,
    /// Its answer is known.
    Done,
    /// It left, and nobody knows whether it was carried out.
    Unknown,
}

impl WriteState {
    /// Every state, in the order of the story.
    pub const ALL: [Self; 4] = [Self::Reserved, Self::Sent, Self::Done, Self::Unknown];

    /// The word in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Sent => "sent",
            Self::Done => "done",
            Self::Unknown => "unknown",
        }
    }
}

/// What is on record under a key, as far as deciding needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnRecord {
    /// How far it is.
    pub state: WriteState,
    /// Whether it is the same request: method, path, query, content type and body.
    pub same_request: bool,
    /// Until when whoever reserved or sent it has the word.
    pub deadline: Timestamp,
    /// Until when it is kept, once it is no longer under way.
    pub keep_until: Timestamp,
}

/// What a write meets under its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    /// Nothing that counts: it may run.
    Free,
    /// The same write is under way elsewhere.
    InProgress {
        /// When asking again may be worth it.
        retry_after: Duration,
    },
    /// The same write was answered: that answer is its own.
    Done,
    /// The same write left, and nobody knows what became of it.
    Unknown,
    /// Another write has this key.
    Mismatch,
}

/// What a write meets at `now`.
pub fn meet(on_record: Option<&OnRecord>, now: Timestamp) -> Meeting {
    /// Nobody is asked to come back later than that for what may be over any moment.
    const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);
    // What is under way counts also when its time is over meanwhile: a window may be shorter than a call.
    let counts = |record: &&OnRecord| {
        let under_way = matches!(record.state, WriteState::Reserved | WriteState::Sent);
        now < record.keep_until || (under_way && now < record.deadline)
    };
    let Some(record) = on_record.filter(counts) else {
        return Meeting::Free;
    };
    let is_past = record.deadline <= now;
    match record.state {
        // Its owner is gone, and it never left.
        WriteState::Reserved if is_past => Meeting::Free,
        _ if !record.same_request => Meeting::Mismatch,
        WriteState::Sent if is_past => Meeting::Unknown,
        WriteState::Reserved | WriteState::Sent => Meeting::InProgress {
            retry_after: record
                .deadline
                .since(now)
                .clamp(Duration::from_secs(1), RETRY_AFTER_MAX),
        },
        WriteState::Done => Meeting::Done,
        WriteState::Unknown => Meeting::Unknown,
    }
}

/// What came of sending a write, its repeats included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// It never left.
    NotSent,
    /// An answer with this status.
    Answer(u16),
    /// It left, and no answer came.
    Nothing,
}

/// What an outcome leaves in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was not carried out and may run again: nothing.
    NotApplied,
    /// The answer counts.
    Done,
    /// Nobody knows.
    Unknown,
}

/// What an outcome leaves behind. A refused token, right, lock, budget or migration means that nothing was done.
///
/// A 408 says that a server has waited for the request in vain (RFC 9110 §15.5.9), and is no answer to the write. It need not be the
/// server that carries it out: whoever stands between says so, too, when that one is slow. So nobody knows.
pub fn outcome(came: Came) -> Outcome {
    match came {
        Came::NotSent | Came::Answer(401 | 403 | 423 | 429 | 477) => Outcome::NotApplied,
        Came::Answer(408) => Outcome::Unknown,
        Came::Answer(200..=499) => Outcome::Done,
        Came::Answer(_) | Came::Nothing => Outcome::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + seconds * 1000)
    }

    fn record(state: WriteState, deadline: i64) -> OnRecord {
        OnRecord {
            state,
            same_request: true,
            deadline: at(deadline),
            keep_until: at(3600),
        }
    }

    #[test]
    fn what_a_write_meets_follows_from_state_and_deadline() {
        let in_progress = |seconds| Meeting::InProgress {
            retry_after: Duration::from_secs(seconds),
        };
        let check = |state, deadline, expected| {
            assert_eq!(
                meet(Some(&record(state, deadline)), NOW),
                expected,
                "{state:?} until {deadline}"
            );
        };
        assert_eq!(meet(None, NOW), Meeting::Free);
        check(WriteState::Reserved, 5, in_progress(5));
        check(WriteState::Reserved, 60, in_progress(10));
        check(WriteState::Reserved, 0, Meeting::Free);
        check(WriteState::Sent, 5, in_progress(5));
        check(WriteState::Sent, 0, Meeting::Unknown);
        check(WriteState::Done, 0, Meeting::Done);
        check(WriteState::Unknown, 0, Meeting::Unknown);
    }

    #[test]
    fn what_is_over_its_time_counts_for_nothing() {
        for state in WriteState::ALL {
            let over = OnRecord {
                keep_until: NOW,
                ..record(state, -1)
            };
            assert_eq!(meet(Some(&over), NOW), Meeting::Free, "{state:?}");
        }
    }

    #[test]
    fn what_is_under_way_counts_though_its_time_is_over() {
        for state in [WriteState::Reserved, WriteState::Sent] {
            let over = OnRecord {
                keep_until: NOW,
                ..record(state, 5)
            };
            let met = meet(Some(&over), NOW);
            assert!(matches!(met, Meeting::InProgress { .. }), "{state:?} {met:?}");
        }
    }

    #[test]
    fn another_request_under_a_key_is_a_mismatch_unless_the_first_never_left() {
        for state in WriteState::ALL {
            let other = OnRecord {
                same_request: false,
                ..record(state, -1)
            };
            let expected = match state {
                WriteState::Reserved => Meeting::Free,
                _ => Meeting::Mismatch,
            };
            assert_eq!(meet(Some(&other), NOW), expected, "{state:?}");
        }
    }

    #[test]
    fn only_what_was_surely_not_applied_may_run_again() {
        for status in [401, 403, 423, 429, 477] {
            assert_eq!(outcome(Came::Answer(status)), Outcome::NotApplied, "{status}");
        }
        assert_eq!(outcome(Came::NotSent), Outcome::NotApplied);
        for status in [200, 201, 204, 207, 302, 400, 404, 409, 422] {
            assert_eq!(outcome(Came::Answer(status)), Outcome::Done, "{status}");
        }
        for status in [408, 500, 502, 503, 504, 524] {
            assert_eq!(outcome(Came::Answer(status)), Outcome::Unknown, "{status}");
        }
        assert_eq!(outcome(Came::Nothing), Outcome::Unknown);
    }
}
