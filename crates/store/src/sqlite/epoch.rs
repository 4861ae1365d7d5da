//! Whether the file under an open store is still the one that was opened, and as far as it was.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use parking_lot::Mutex;

use super::record::Db;
use crate::contract::StoreError;
use crate::record::{HighestSeen, Stored};

/// What was seen of the file so far.
pub(super) struct FileEpoch {
    path: PathBuf,
    feed: Mutex<HighestSeen>,
}

impl FileEpoch {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            feed: Mutex::default(),
        }
    }

    /// Another word once another file is at the path, or an older state in the file: a backup was put back.
    pub(super) fn now(&self, db: &Db) -> Stored<String> {
        // Read under the lock, and a transaction sees what was there at its first statement: heads come in their order.
        let mut feed = self.feed.lock();
        let steps_back = feed.note(db.change_head()?);
        let file = fs::metadata(&self.path).map_err(|error| StoreError::Unavailable {
            what: error.kind().to_string(),
            outcome_unknown: false,
        })?;
        Ok(format!("{} {} {steps_back}", file.dev(), file.ino()))
    }
}
