//! Who holds leases, and whether they still live.
//!
//! Each store instance holds an OS lock on a file of its own beside the database for as long as it lives. The system frees
//! the lock with the process, so a lease whose holder died is free at once, and one whose holder is merely slow lasts
//! until its cap. The cap counts on the boot-time clock, which runs through suspend and which nobody can set.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::record::this_process;

/// The file in the holders' folder that is no holder's: who has its lock may change the schema.
pub(super) const MIGRATION_LOCK: &str = "migration";

/// One boot of the machine, with its clock.
#[derive(Clone)]
pub(super) struct Boot {
    pub(super) id: Arc<str>,
    pub(super) millis: Arc<dyn Fn() -> i64 + Send + Sync>,
}

impl Boot {
    pub(super) fn current() -> io::Result<Self> {
        Ok(Self {
            id: fs::read_to_string("/proc/sys/kernel/random/boot_id")?
                .trim()
                .into(),
            millis: Arc::new(|| {
                let now = clock_gettime(ClockId::Boottime);
                now.tv_sec
                    .saturating_mul(1000)
                    .saturating_add(now.tv_nsec / 1_000_000)
            }),
        })
    }
}

/// The lock that says that this instance lives. Dropped, it frees every lease of it.
pub(super) struct Alive {
    _lock: File,
    path: PathBuf,
}

impl Drop for Alive {
    fn drop(&mut self) {
        // Under the lock still. Where it fails, the next to open the database sweeps the file away.
        let _ = fs::remove_file(&self.path);
    }
}

/// What is needed to take leases and to judge those of others.
#[derive(Clone)]
pub(super) struct Holders {
    me: Arc<str>,
    process: Arc<str>,
    boot: Boot,
    lives: Arc<dyn Fn(&str) -> bool + Send + Sync>,
}

/// A lease as its row tells it.
#[derive(Debug)]
pub(super) struct LeaseRow {
    pub(super) holder: String,
    pub(super) boot: String,
    pub(super) until: i64,
}

impl Holders {
    /// Makes this instance known, and forgets the dead.
    pub(super) fn join(directory: &Path, boot: Boot) -> io::Result<(Self, Alive)> {
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        forget_the_dead(directory)?;
        let me = uuid::Uuid::now_v7().to_string();
        let path = directory.join(&me);
        let lock = loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            // Waits at most for somebody who looks whether we live.
            file.lock()?;
            // Between making and locking it, another instance may have swept it away as a dead one's.
            if file.metadata()?.nlink() > 0 {
                break file;
            }
        };
        let directory = directory.to_owned();
        let mut holders = Self::new(me.into(), boot, Arc::new(move |holder| lives(&directory, holder)));
        holders.process = this_process();
        Ok((holders, Alive { _lock: lock, path }))
    }

    /// An instance called `me`, where `lives` tells of any whether it does.
    pub(super) fn new(me: Arc<str>, boot: Boot, lives: Arc<dyn Fn(&str) -> bool + Send + Sync>) -> Self {
        Self {
            process: Arc::clone(&me),
            me,
            boot,
            lives,
        }
    }

    /// The name under which this instance writes the history.
    pub(super) fn process(&self) -> &str {
        &self.process
    }

    /// The name under which this instance holds leases.
    pub(super) fn me(&self) -> &str {
        &self.me
    }

    /// The boot that this instance's leases count in.
    pub(super) fn boot(&self) -> &str {
        &self.boot.id
    }

    /// The boot-time clock, this long from now.
    pub(super) fn in_millis(&self, duration: Duration) -> i64 {
        (self.boot.millis)().saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
    }

    /// Whether the holder has the lease still.
    pub(super) fn holds(&self, lease: &LeaseRow) -> bool {
        lease.boot == *self.boot.id
            && self.in_millis(Duration::ZERO) < lease.until
            && (self.lives)(&lease.holder)
    }
}

fn lives(directory: &Path, holder: &str) -> bool {
    match File::open(directory.join(holder)) {
        Ok(file) => is_locked(&file),
        // Where nobody can say, the holder has its time.
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

fn is_locked(file: &File) -> bool {
    // A lock that was taken here is freed as the caller drops the file.
    match file.try_lock() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => true,
    }
}

fn forget_the_dead(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if !path.ends_with(MIGRATION_LOCK)
            && let Ok(file) = File::open(&path)
            && !is_locked(&file)
        {
            // Under the lock: whoever made the file a moment ago sees that it is gone, and makes it again.
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}
