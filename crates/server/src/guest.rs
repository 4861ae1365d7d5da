//! Whoever is at the other end of a connection: whether they have shown a valid API key, and whether they are being answered.
//!
//! Anybody may open connections, and each costs a file and a place. When the places are all taken, the one that has been held
//! longest by somebody who has shown no key and asks for nothing makes room; so nobody can keep the others out by being there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The other end of one connection.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    is_known: AtomicBool,
    turns: AtomicUsize,
    /// Every byte of every answer has been handed to the connection, and no request has come since.
    is_quiet: AtomicBool,
    asked_to_leave: Notify,
}

impl Guest {
    /// Whether they have shown a valid key, or are a proxy that speaks for many.
    pub(crate) fn is_known(&self) -> bool {
        self.is_known.load(Ordering::Relaxed)
    }

    /// A request came: it is their turn until the end of its answer's body.
    pub(crate) fn turn(self: &Arc<Self>) -> Turn {
        self.is_quiet.store(false, Ordering::Relaxed);
        self.turns.fetch_add(1, Ordering::Relaxed);
        Turn(self.clone())
    }

    /// What was to be written has been.
    pub(crate) fn flushed(&self) {
        if self.turns.load(Ordering::Relaxed) == 0 {
            self.is_quiet.store(true, Ordering::Relaxed);
        }
    }

    /// The connection is ending, and what is still written is its last.
    pub(crate) fn speaks_no_more(&self) {
        self.is_quiet.store(false, Ordering::Relaxed);
    }

    /// Whether nothing that is written now can belong to an answer.
    pub(crate) fn is_quiet(&self) -> bool {
        self.is_quiet.load(Ordering::Relaxed)
    }
}

/// One request of theirs, until the end of its answer's body.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Guest>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.turns.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The guests who have shown no key, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    by_number: BTreeMap<u64, Arc<Guest>>,
}

/// A guest's stay. It ends with the connection.
#[derive(Debug)]
pub(crate) struct Stay {
    pub(crate) guest: Arc<Guest>,
    strangers: Arc<Strangers>,
    number: u64,
}

impl Strangers {
    /// Somebody came.
    pub(crate) fn welcome(self: &Arc<Self>, is_known: bool) -> Arc<Stay> {
        let guest = Arc::new(Guest {
            is_quiet: AtomicBool::new(true),
            is_known: AtomicBool::new(is_known),
            ..Guest::default()
        });
        let mut waiting = self.waiting.lock();
        let number = waiting.next;
        waiting.next += 1;
        if !is_known {
            waiting.by_number.insert(number, guest.clone());
        }
        Arc::new(Stay {
            guest,
            strangers: self.clone(),
            number,
        })
    }

    /// Asks the one to leave who has been here longest and is not being answered.
    pub(crate) fn make_room(&self) {
        let mut waiting = self.waiting.lock();
        let idle = waiting
            .by_number
            .iter()
            .find(|(_, guest)| guest.turns.load(Ordering::Relaxed) == 0)
            .map(|(number, _)| *number);
        if let Some(guest) = idle.and_then(|number| waiting.by_number.remove(&number)) {
            guest.asked_to_leave.notify_one();
        }
    }
}

impl Stay {
    /// Resolves when their place is needed and they are not being answered. Whose request came at the same moment stays, and may
    /// be asked again.
    pub(crate) async fn asked_to_leave(&self) {
        let guest = &self.guest;
        loop {
            guest.asked_to_leave.notified().await;
            if guest.turns.load(Ordering::Relaxed) == 0 {
                return;
            }
            let mut waiting = self.strangers.waiting.lock();
            if !guest.is_known() {
                waiting.by_number.insert(self.number, guest.clone());
            }
        }
    }

    /// They have shown a valid key.
    pub(crate) fn is_known_now(&self) {
        if !self.guest.is_known.swap(true, Ordering::Relaxed) {
            self.strangers.waiting.lock().by_number.remove(&self.number);
        }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.strangers.waiting.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn the_stranger_who_has_been_idle_longest_makes_room() {
        let strangers = Arc::new(Strangers::default());
        let [proxy, known, asking, first, second] =
            [true, false, false, false, false].map(|is_known| strangers.welcome(is_known));
        known.is_known_now();
        let turn = asking.guest.turn();
        let leaves = |stay: &Stay| stay.asked_to_leave().now_or_never().is_some();
        strangers.make_room();
        assert!(leaves(&first) && !leaves(&second));
        strangers.make_room();
        assert!(leaves(&second));
        strangers.make_room();
        for stays in [&proxy, &known, &asking] {
            assert!(!leaves(stays));
        }
        drop(turn);
        strangers.make_room();
        assert!(leaves(&asking));
    }

    #[test]
    fn whose_request_comes_at_the_moment_of_being_asked_is_answered_first() {
        let strangers = Arc::new(Strangers::default());
        let stay = strangers.welcome(false);
        let leaves = |stay: &Stay| stay.asked_to_leave().now_or_never().is_some();
        strangers.make_room();
        let turn = stay.guest.turn();
        assert!(!leaves(&stay));
        drop(turn);
        strangers.make_room();
        assert!(leaves(&stay));
    }

    #[test]
    fn nothing_is_quiet_until_the_end_of_an_answer_has_been_written() {
        let stay = Arc::new(Strangers::default()).welcome(false);
        let guest = &stay.guest;
        assert!(guest.is_quiet(), "nobody has asked for anything");
        let turn = guest.turn();
        assert!(!guest.is_quiet());
        guest.flushed();
        assert!(!guest.is_quiet(), "there may be more of it");
        drop(turn);
        assert!(!guest.is_quiet(), "it has not been written");
        guest.flushed();
        assert!(guest.is_quiet());
    }
}
