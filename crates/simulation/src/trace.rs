//! Who did what when: for people, and as one number that two runs of a seed must share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::dice::{HASH_START, hash};

/// Virtual time since a run began, and everything that happened in it. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Trace {
    began: Instant,
    log: Arc<Mutex<Log>>,
}

struct Log {
    keeps: bool,
    lines: Vec<String>,
    hash: u64,
}

impl Trace {
    /// Begins now. Lines are kept only where somebody wants to read them; they are counted into the hash in any case.
    pub(crate) fn begin(keeps: bool) -> Self {
        Self {
            began: Instant::now(),
            log: Arc::new(Mutex::new(Log {
                keeps,
                lines: Vec::new(),
                hash: HASH_START,
            })),
        }
    }

    /// How long the run has been going on.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Notes that `who` did something.
    pub(crate) fn note(&self, who: impl fmt::Display, what: impl fmt::Display) {
        let line = format!("{:>10.3} {who:<10} {what}", self.now().as_secs_f64());
        let mut log = self.log.lock();
        log.hash = hash(log.hash, line.as_bytes());
        if log.keeps {
            log.lines.push(line);
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.log.lock().hash
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.log.lock().lines.clone()
    }
}
