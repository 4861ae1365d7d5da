//! The lifeboat of a simulated machine: what lies in it survives its processes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use evergrant_keeper::Lifeboat;
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::dice::Dice;
use crate::trace::Trace;

/// A folder on a disk. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Disk {
    trace: Trace,
    dice: Dice,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// In the order of their writing.
    entries: Vec<(String, Vec<u8>)>,
    fails: bool,
    /// Nothing goes wrong any more.
    calm: bool,
}

/// An fsync takes this long at most, mostly less.
const WRITES: Duration = Duration::from_millis(100);
/// In this share of all cases who dies while writing leaves half an entry.
const TORN: f64 = 0.1;

impl Disk {
    pub(crate) fn new(trace: &Trace, dice: &Dice, name: &str) -> Self {
        Self {
            trace: trace.clone(),
            dice: dice.of(name),
            state: Arc::default(),
        }
    }

    /// It is full, or it is not any more.
    pub(crate) fn fails(&self, fails: bool) {
        let mut state = self.state.lock();
        state.fails = fails && !state.calm;
    }

    /// From now on everything goes well. What was torn goes with whoever mends the disk.
    pub(crate) fn heal(&self) {
        let mut state = self.state.lock();
        state.fails = false;
        state.calm = true;
        state.entries.retain(|(name, _)| !name.ends_with(HALF));
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let state = self.state.lock();
        state.entries.iter().map(|(name, _)| name.clone()).collect()
    }

    fn put(&self, name: &str, sealed: &[u8]) {
        let mut state = self.state.lock();
        match state.entries.iter_mut().find(|(there, _)| there == name) {
            Some((_, there)) => *there = sealed.to_vec(),
            None => state.entries.push((name.to_owned(), sealed.to_vec())),
        }
    }

    fn take(&self, name: &str) {
        self.state.lock().entries.retain(|(there, _)| there != name);
    }
}

const HALF: &str = "-half";

#[async_trait]
impl Lifeboat for Disk {
    async fn keep(&self, name: &str, sealed: &[u8]) -> io::Result<()> {
        let half = format!("{name}{HALF}");
        let torn = self.dice.happens(TORN);
        if torn {
            self.put(&half, &sealed[..self.dice.below(sealed.len())]);
        }
        sleep(self.dice.mostly_short(WRITES)).await;
        if self.state.lock().fails {
            self.take(&half);
            self.trace.note("disk", "is full");
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.take(&half);
        self.put(name, sealed);
        self.trace
            .note("disk", format_args!("keeps an answer ({})", self.names().len()));
        Ok(())
    }

    async fn entries(&self) -> io::Result<Vec<(String, Vec<u8>)>> {
        sleep(self.dice.mostly_short(WRITES / 10)).await;
        Ok(self.state.lock().entries.clone())
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        sleep(self.dice.mostly_short(WRITES / 10)).await;
        let before = self.names().len();
        self.take(name);
        if self.names().len() < before {
            self.trace
                .note("disk", format_args!("forgets an answer ({})", self.names().len()));
        }
        Ok(())
    }
}
