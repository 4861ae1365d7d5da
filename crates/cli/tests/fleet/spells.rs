//! When something was not as it should be.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::plan::{CONNECTIONS, PROCESSES};
use crate::witness::AFTERSHOCK;

/// Spans of time; the last one may go on.
#[derive(Debug, Default)]
pub(crate) struct Spells(Mutex<Vec<(Instant, Option<Instant>)>>);

impl Spells {
    pub(crate) fn begin(&self) {
        self.0.lock().unwrap().push((Instant::now(), None));
    }

    pub(crate) fn end(&self) {
        if let Some((_, until)) = self.0.lock().unwrap().last_mut() {
            *until = Some(Instant::now());
        }
    }

    /// A moment.
    pub(crate) fn mark(&self) {
        self.begin();
        self.end();
    }

    /// Whether there was one within `before` before `from`, or since.
    pub(crate) fn since(&self, from: Instant, before: Duration) -> bool {
        let from = from.checked_sub(before).unwrap_or(from);
        let spells = self.0.lock().unwrap();
        spells
            .iter()
            .any(|(_, until)| until.is_none_or(|until| until >= from))
    }

    /// Whether there was one at this moment, or one had ended within `before` before it.
    fn at(&self, moment: Instant, before: Duration) -> bool {
        let spells = self.0.lock().unwrap();
        spells
            .iter()
            .any(|(began, until)| *began <= moment && until.is_none_or(|until| until + before >= moment))
    }

    /// When the last one began that there was within `before` before `from`, or since.
    pub(crate) fn began(&self, from: Instant, before: Duration) -> Option<Instant> {
        let from = from.checked_sub(before).unwrap_or(from);
        let spells = self.0.lock().unwrap();
        let last = spells.iter().rev();
        last.filter(|(_, until)| until.is_none_or(|until| until >= from))
            .map(|(began, _)| *began)
            .next()
    }
}

/// All that was not as it should be.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    /// A process is killed or told to go, until its successor is ready.
    pub(crate) down: [Spells; PROCESSES],
    /// A process is stopped.
    pub(crate) stopped: [Spells; PROCESSES],
    /// A process cannot reach the database, which is there.
    pub(crate) cut_off: [Spells; PROCESSES],
    /// The database is away.
    pub(crate) store: Spells,
    /// The token endpoint was told to fail for a connection.
    pub(crate) endpoint: [Spells; CONNECTIONS],
}

impl Troubles {
    pub(crate) fn any_stopped_since(&self, from: Instant, before: Duration) -> bool {
        self.stopped.iter().any(|spells| spells.since(from, before))
    }

    pub(crate) fn any_down_since(&self, from: Instant, before: Duration) -> bool {
        self.down.iter().any(|spells| spells.since(from, before))
    }

    /// Whether a token set that a process served at this moment may have been stored nowhere but in its lifeboat, and have come too
    /// late for its number: the process was killed since, or stopped, and its lease ended.
    pub(crate) fn may_have_lost_its_number(&self, process: usize, served: Instant) -> bool {
        let afloat = self.store.at(served, AFTERSHOCK) || self.cut_off[process].at(served, AFTERSHOCK);
        let since = |spells: &Spells| spells.since(served, Duration::ZERO);
        afloat && (since(&self.down[process]) || since(&self.stopped[process]))
    }

    /// Since when the database is out of a process's reach, where it was so a moment ago.
    pub(crate) fn store_away_since(&self, process: usize) -> Option<Instant> {
        let (now, before) = (Instant::now(), Duration::from_secs(1));
        let away = self.store.began(now, before);
        away.into_iter()
            .chain(self.cut_off[process].began(now, before))
            .min()
    }

    /// Whether a process may have failed to reach its store. A stopped process may hold a lock.
    pub(crate) fn store_since(&self, process: usize, from: Instant, before: Duration) -> bool {
        self.store.since(from, before)
            || self.cut_off[process].since(from, before)
            || self.any_stopped_since(from, before)
    }
}
