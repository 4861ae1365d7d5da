//! The lifeboat of a real process: a folder, one file for each entry. Several processes may share it.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::Lifeboat;

/// An entry's file ends with this; half-written ones begin with a dot, which no entry's name does.
const ENTRY: &str = ".entry";
/// The last byte of a file: who dies while writing leaves one without it.
const END: u8 = b'\n';
/// What a name may be at most, so that a file's name stays below the 255 bytes that file systems take.
const NAME_MAX: usize = 240;

/// Why a folder cannot be a lifeboat.
#[derive(Debug, thiserror::Error)]
pub enum LifeboatRefused {
    /// It cannot be made, read or written.
    #[error("the lifeboat {} cannot be used: {source}", folder.display())]
    NotWritable {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others than its owner may look into it.
    #[error("the lifeboat {} is open to others (mode {mode:o}): `chmod 700` it", folder.display())]
    OpenToOthers {
        /// The folder.
        folder: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

impl LifeboatRefused {
    /// Whether the same folder may do a little later, with nobody changing the configuration: a full disk, a failing one.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::OpenToOthers { .. } => false,
            Self::NotWritable { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull
                        | io::ErrorKind::QuotaExceeded
                        | io::ErrorKind::ReadOnlyFilesystem
                ) || source.raw_os_error() == Some(EIO)
            }
        }
    }
}

/// A failing disk; the standard library has no word for it.
const EIO: i32 = 5;

/// A folder that keeps entries. It must outlive the process, and should be on another disk than the store.
#[derive(Debug, Clone)]
pub struct LifeboatFolder(Arc<Folder>);

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// Files that are nothing of ours, and that somebody was told of.
    strange: Mutex<BTreeSet<String>>,
}

impl LifeboatFolder {
    /// Opens the folder, and makes it where it does not exist. Refused where an entry could not be written now, or could be
    /// read by others.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, LifeboatRefused> {
        let path = path.into();
        let unusable = |source| LifeboatRefused::NotWritable {
            folder: path.clone(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(unusable)?;
        let mode = fs::metadata(&path).map_err(unusable)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(LifeboatRefused::OpenToOthers { folder: path, mode });
        }
        let folder = Folder {
            path: path.clone(),
            strange: Mutex::default(),
        };
        folder.try_out().map_err(unusable)?;
        Ok(Self(Arc::new(folder)))
    }

    async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let folder = self.0.clone();
        tokio::task::spawn_blocking(move || work(&folder))
            .await
            .map_err(io::Error::other)?
    }
}

#[async_trait]
impl Lifeboat for LifeboatFolder {
    async fn keep(&self, name: &str, sealed: &[u8]) -> io::Result<()> {
        let (name, sealed) = (name.to_owned(), sealed.to_vec());
        self.beside(move |folder| folder.keep(&name, &sealed)).await
    }

    async fn entries(&self) -> io::Result<Vec<(String, Vec<u8>)>> {
        self.beside(Folder::entries).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let name = name.to_owned();
        self.beside(move |folder| folder.remove(&name)).await
    }
}

impl Folder {
    /// Nothing says that a folder can be written as well as writing to it. Never an entry, or others would try to land it.
    fn try_out(&self) -> io::Result<()> {
        let probe = self.unfinished(&format!("probe-{}", uuid::Uuid::now_v7()))?;
        let mut file = self.held_alone(&probe)?;
        let written = write_whole(&mut file, b"probe");
        fs::remove_file(&probe)?;
        written
    }

    fn keep(&self, name: &str, sealed: &[u8]) -> io::Result<()> {
        let unfinished = self.unfinished(name)?;
        let mut file = self.held_alone(&unfinished)?;
        let written = write_whole(&mut file, sealed)
            .and_then(|()| fs::rename(&unfinished, self.file(name)))
            // The name, too, must outlive the loss of power.
            .and_then(|()| File::open(&self.path)?.sync_all());
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    /// A new file of this name, held until it is dropped: who finds an unfinished file that nobody holds knows that its writer is
    /// gone.
    fn held_alone(&self, unfinished: &Path) -> io::Result<File> {
        loop {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            let file = match options.open(unfinished) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.finish_what_the_dead_left()?;
                    options.open(unfinished)?
                }
                made => made?,
            };
            file.lock()?;
            // Between making and holding it, another process may have taken its writer for dead and swept it away.
            if file.metadata()?.nlink() > 0 {
                return Ok(file);
            }
        }
    }

    fn entries(&self) -> io::Result<Vec<(String, Vec<u8>)>> {
        self.finish_what_the_dead_left()?;
        let files = self.files()?;
        self.strange.lock().retain(|file| files.contains(file));
        let mut entries = Vec::new();
        for file in files {
            let Some(name) = file.strip_suffix(ENTRY).filter(|name| is_safe(name)) else {
                self.report_strange(&file);
                continue;
            };
            match fs::read(self.file(name)) {
                Ok(mut bytes) => {
                    if bytes.last() == Some(&END) {
                        bytes.pop();
                    }
                    entries.push((name.to_owned(), bytes));
                }
                // Another process has landed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // It stands in no other entry's way.
                Err(error) => self.report_unreadable(&file, &error),
            }
        }
        entries.sort();
        Ok(entries)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        // Not synced: an entry that comes back is landed again, which changes nothing.
        match fs::remove_file(self.file(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A file that was written whole and has no name yet is as good as an entry; any other is nothing.
    fn finish_what_the_dead_left(&self) -> io::Result<()> {
        for file in self.files()? {
            let Some(name) = unfinished_name(&file) else {
                continue;
            };
            let path = self.path.join(&file);
            let Ok(held) = File::open(&path) else { continue };
            if held.try_lock().is_err() {
                continue;
            }
            let finished = match fs::read(&path) {
                Ok(bytes) if bytes.last() == Some(&END) => fs::rename(&path, self.file(name)),
                Ok(_) => fs::remove_file(&path),
                Err(_) => Ok(()),
            };
            // Another process was quicker.
            finished.or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
        }
        Ok(())
    }

    fn files(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.path)?
            .map(|file| Ok(file?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn report_strange(&self, file: &str) {
        if unfinished_name(file).is_some() {
            return;
        }
        if self.strange.lock().insert(file.to_owned()) {
            tracing::warn!(
                event = "lifeboat_strange_file",
                file,
                folder = %self.path.display(),
                "the lifeboat holds a file that is no entry; it is left alone"
            );
        }
    }

    fn report_unreadable(&self, file: &str, error: &io::Error) {
        if self.strange.lock().insert(file.to_owned()) {
            tracing::error!(
                event = "lifeboat_entry_unreadable",
                file,
                folder = %self.path.display(),
                %error,
                "an entry of the lifeboat cannot be read; it is kept, and the others are landed: see to its owner and permissions"
            );
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}{ENTRY}"))
    }

    fn unfinished(&self, name: &str) -> io::Result<PathBuf> {
        if is_safe(name) {
            Ok(self.path.join(format!(".{name}{ENTRY}")))
        } else {
            Err(io::Error::from(io::ErrorKind::InvalidInput))
        }
    }
}

fn write_whole(file: &mut File, sealed: &[u8]) -> io::Result<()> {
    file.write_all(&[sealed, &[END]].concat())?;
    file.sync_all()
}

fn unfinished_name(file: &str) -> Option<&str> {
    let name = file.strip_prefix('.')?.strip_suffix(ENTRY)?;
    is_safe(name).then_some(name)
}

/// A name that is a file's name and nothing else: never a path, never hidden.
fn is_safe(name: &str) -> bool {
    name.len() <= NAME_MAX
        && name
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn names(folder: &LifeboatFolder) -> Vec<String> {
        let entries = folder.0.entries().unwrap();
        entries.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn what_is_kept_is_there_until_it_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/lifeboat");
        let folder = LifeboatFolder::open(&path).unwrap();
        folder.0.keep("c1.7.2.x", b"first").unwrap();
        folder.0.keep("c1.7.2.x", b"again").unwrap();
        folder.0.keep("c0.1.1.y", b"").unwrap();
        let entries = LifeboatFolder::open(&path).unwrap().0.entries().unwrap();
        let expected = [
            ("c0.1.1.y".to_owned(), vec![]),
            ("c1.7.2.x".to_owned(), b"again".to_vec()),
        ];
        assert_eq!(entries, expected);
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&folder.0.file("c1.7.2.x")), 0o600);
        folder.0.remove("c1.7.2.x").unwrap();
        folder.0.remove("c1.7.2.x").unwrap();
        assert_eq!(names(&folder), ["c0.1.1.y"]);
    }

    #[test]
    fn processes_that_share_a_folder_never_sweep_away_what_another_one_is_writing() {
        let home = tempfile::tempdir().unwrap();
        std::thread::scope(|threads| {
            for writer in 0..4 {
                let path = home.path().join("lifeboat");
                threads.spawn(move || {
                    for round in 0..50 {
                        let folder = LifeboatFolder::open(&path).unwrap();
                        let name = format!("c{writer}.{round}");
                        folder.0.keep(&name, b"sealed").unwrap();
                        assert!(names(&folder).contains(&name));
                        assert_eq!(folder.0.strange.lock().len(), 0);
                    }
                });
            }
        });
        let folder = LifeboatFolder::open(home.path().join("lifeboat")).unwrap();
        assert_eq!(names(&folder).len(), 200);
    }

    #[test]
    fn a_folder_that_others_may_read_is_refused_and_so_is_one_that_cannot_be_written() {
        let home = tempfile::tempdir().unwrap();
        for (mode, refused) in [(0o750, true), (0o701, true), (0o700, false)] {
            fs::set_permissions(home.path(), fs::Permissions::from_mode(mode)).unwrap();
            let opened = LifeboatFolder::open(home.path());
            let open_to_others = matches!(&opened, Err(LifeboatRefused::OpenToOthers { .. }));
            assert_eq!(open_to_others, refused, "{mode:o}: {opened:?}");
        }
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        for nowhere in [file.join("lifeboat"), file, "/proc/lifeboat".into()] {
            let refused = LifeboatFolder::open(&nowhere).unwrap_err();
            assert!(
                matches!(refused, LifeboatRefused::NotWritable { .. }),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn a_full_or_failing_disk_may_pass_and_a_wrong_folder_does_not() {
        for (number, passes) in [
            (28, true),
            (122, true),
            (30, true),
            (5, true),
            (2, false),
            (13, false),
        ] {
            let refused = LifeboatRefused::NotWritable {
                folder: "lifeboat".into(),
                source: io::Error::from_raw_os_error(number),
            };
            assert_eq!(refused.may_pass(), passes, "{refused}");
        }
    }

    #[test]
    fn a_name_that_is_no_file_name_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let folder = LifeboatFolder::open(home.path().join("lifeboat")).unwrap();
        let long = "x".repeat(NAME_MAX + 1);
        for name in ["", ".", "..", "../up", "a/b", ".hidden", "a\0b", "ä", &long] {
            assert!(folder.0.keep(name, b"x").is_err(), "{name:?}");
        }
        assert_eq!(fs::read_dir(home.path().join("lifeboat")).unwrap().count(), 0);
    }

    #[test]
    fn of_what_the_dead_left_the_whole_is_kept_the_half_is_swept_and_the_strange_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let folder = LifeboatFolder::open(home.path().join("lifeboat")).unwrap();
        let put = |file: &str, content: &str| fs::write(folder.0.path.join(file), content).unwrap();
        put(".whole.entry", "sealed\n");
        fs::create_dir(folder.0.path.join("unreadable.entry")).unwrap();
        put(".half.entry", "seal");
        put(".nothing.entry", "");
        put("README", "ours");
        put(".swp", "somebody's");
        // Somebody is writing this one.
        let writing = folder.0.unfinished("writing").unwrap();
        let held = File::create(&writing).unwrap();
        held.lock().unwrap();
        assert_eq!(
            folder.0.entries().unwrap(),
            [("whole".to_owned(), b"sealed".to_vec())]
        );
        assert_eq!(folder.0.strange.lock().len(), 3);
        let mut left: Vec<_> = folder.0.files().unwrap();
        left.sort();
        assert_eq!(
            left,
            [
                ".swp",
                ".writing.entry",
                "README",
                "unreadable.entry",
                "whole.entry"
            ]
        );
        // What is gone is told of again should it come back.
        fs::remove_file(folder.0.path.join("README")).unwrap();
        assert_eq!(names(&folder), ["whole"]);
        assert_eq!(folder.0.strange.lock().len(), 2);
        // One that was left by a dead writer of the same name does not stand in the way.
        drop(held);
        folder.0.keep("writing", b"again").unwrap();
        assert_eq!(names(&folder), ["whole", "writing"]);
    }

    /// The process with the small disk: a file of more than 512 bytes cannot be written.
    #[test]
    fn an_entry_that_does_not_fit_on_the_disk_is_not_kept_by_half() {
        let Ok(path) = std::env::var("SMALL_DISK") else {
            let home = tempfile::tempdir().unwrap();
            let test = "lifeboat::folder::tests::an_entry_that_does_not_fit_on_the_disk_is_not_kept_by_half";
            let ran = Command::new("sh")
                .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" --exact \"$1\""])
                .arg(std::env::current_exe().unwrap())
                .arg(test)
                .env("SMALL_DISK", home.path().join("lifeboat"))
                .output()
                .unwrap();
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
            return;
        };
        let folder = LifeboatFolder::open(path).unwrap();
        folder.0.keep("small", b"fits").unwrap();
        let error = folder.0.keep("large", &[b'x'; 4096]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(folder.0.files().unwrap(), ["small.entry"]);
    }
}
