//! Whether the file under an open store is still the one that was opened, and as far as it was.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use parking_lot::Mutex;

use super::record::Db;
use crate::contract::StoreError;
use crate::record::Stored;

/// What was seen of the file so far.
pub(super) struct FileEpoch {
    path: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The newest change that was ever in it.
    head: i64,
    /// How often that was gone again.
    steps_back: u64,
}

impl FileEpoch {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            seen: Mutex::default(),
        }
    }

    /// Another word once another file is at the path, or an older state in the file: a backup was put back.
    pub(super) fn now(&self, db: &Db) -> Stored<String> {
        // Read under the lock, and a transaction sees what was there at its first statement: heads come in their order.
        let mut seen = self.seen.lock();
        let head = db.change_head()?;
        if head < seen.head {
            seen.steps_back += 1;
        }
        seen.head = head;
        let file = fs::metadata(&self.path).map_err(|error| StoreError::Unavailable {
            what: error.kind().to_string(),
            outcome_unknown: false,
        })?;
        Ok(format!("{}:{}:{}", file.dev(), file.ino(), seen.steps_back))
    }
}
