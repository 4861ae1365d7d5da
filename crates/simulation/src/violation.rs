//! What must never be, and what was.

use std::fmt;
use std::time::Duration;

/// What a run is judged by. The names are those of PROTOCOL's invariants, and of what follows from its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Oracle {
    /// I1: a refresh token is not presented again after it was accepted, but for the declared replay.
    PresentedOnce,
    /// I2: one presentation of a connection in flight, while no holder stands still for longer than its lease.
    OneInFlight,
    /// I3: whole token sets; versions never go back.
    WholeAndForward,
    /// I6: no secret in events and logs.
    Secrets,
    /// I7: every change of version or state is in the history.
    History,
    /// I8: after the faults have healed, every connection works or says why not, and nothing is left behind.
    Heals,
    /// An answer in the hands of a process that lives is stored, whatever the store does.
    NothingLost,
    /// Nobody is condemned but for what is true.
    CondemnedRightly,
    /// What other processes did is known within a second.
    SeenInTime,
    /// A token that is handed out has not ended.
    ServesFresh,
    /// Nothing panics.
    NoPanic,
}

/// One thing that must never be.
#[derive(Debug, Clone)]
pub struct Violation {
    /// By which measure.
    pub oracle: Oracle,
    /// When, since the run began.
    pub at: Duration,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} at {:.3}: {}",
            self.oracle,
            self.at.as_secs_f64(),
            self.what
        )
    }
}
