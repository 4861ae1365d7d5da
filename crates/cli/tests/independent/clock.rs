//! A clock that a test can set, for one process: libfaketime, from Debian's package.

use std::path::PathBuf;

/// Wall time of the services that are started with [`Clock::settings`]. Timeouts and leases do not follow it: they are counted
/// on clocks that nobody can set.
pub(crate) struct Clock {
    file: PathBuf,
    library: PathBuf,
}

impl Clock {
    /// A clock of its own, kept in a file that nobody else uses.
    pub(crate) fn new(file: PathBuf) -> Self {
        let clock = Self {
            file,
            library: library(),
        };
        clock.set(0);
        clock
    }

    /// So many seconds beside the machine's own.
    pub(crate) fn set(&self, seconds: i64) {
        // Replaced in one step: services look at it whenever they ask for the time.
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}\n")).unwrap();
        std::fs::rename(next, &self.file).unwrap();
    }

    pub(crate) fn settings(&self) -> [(&str, &str); 4] {
        [
            ("LD_PRELOAD", self.library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }
}

fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap();
    folders
        .map(|folder| folder.unwrap().path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .expect("there is no libfaketime: run `cargo xtask test`, or install faketime")
}
