//! `evergrant init`: from nothing to something that `serve` starts with.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use evergrant::VaultKey;
use evergrant_server::ListenSettings;
use serde_json::json;

use crate::api::Api;
use crate::args::Init;
use crate::failure::Failure;
use crate::local;
use crate::output::{Output, print_json, print_line, text};

const KEY_FILE: &str = "evergrant.key";
const STORE_FILES: [&str; 3] = ["evergrant.db", "evergrant.db-wal", "evergrant.db-shm"];
/// Where the store notes who has it open.
const STORE_FOLDER: &str = "evergrant.db.holders";

pub(crate) async fn run(init: Init, output: Output) -> Result<(), Failure> {
    // The folder that we are in needs no name.
    let folder = if init.dir == Path::new(".") {
        PathBuf::new()
    } else {
        init.dir
    };
    let mut made = Made::begin(&folder)?;
    let config_file = made.write(
        evergrant_config::FILE_NAME,
        evergrant_config::template(),
        Readable::ByOthers,
    )?;
    let key = VaultKey::generate();
    let key_file = made.write(KEY_FILE, &format!("{}\n", *key.to_base64()), Readable::ByOwner)?;
    // With the environment, which wins over the file: the API key must be in the store that `serve` will use.
    let config = local::configuration_at(Some(&config_file))?;
    made.files.extend(STORE_FILES.map(|name| folder.join(name)));
    made.folders = [folder.join(STORE_FOLDER), config.lifeboat.dir.clone()]
        .into_iter()
        .filter(|folder| folder.symlink_metadata().is_err())
        .collect();
    let service = local::open(&config).await?;
    let engine = service.engine().clone();
    let api = Api::on(service, ListenSettings::from(&config.server));
    let admin_key = api
        .post("/v1/keys", &json!({"name": "admin", "role": "admin"}))
        .await;
    engine.shutdown().await;
    let admin_key = text(&admin_key?, "/key");
    made.keep();

    let redirect_uri = format!(
        "{}/oauth/callback",
        config.server.public_url.as_str().trim_end_matches('/')
    );
    if output.json {
        return print_json(&json!({"config": config_file, "key_file": key_file, "admin_key": admin_key}));
    }
    let config_shown = config_file.display();
    let key_shown = config.vault.key.as_ref().map_or("", |key| key.source());
    output.fields(&[
        ("configuration", config_shown.to_string()),
        (
            "vault key",
            format!("{key_shown} (keep a copy apart from the store)"),
        ),
        ("store", config.store.to_string()),
        (
            "redirect URI",
            format!("{redirect_uri} (register it at the provider)"),
        ),
        ("admin API key", admin_key),
    ])?;
    print_line(format_args!(
        "\nThe API key is shown this once. Next: describe your app in {config_shown}, then run `evergrant serve`."
    ))
}

/// Who may read a file.
#[derive(Debug, Clone, Copy)]
enum Readable {
    ByOwner,
    ByOthers,
}

/// What has been made so far. Unless it is kept, it goes again: half an installation would stand in the way of the next try.
struct Made {
    folder: PathBuf,
    /// Only what is named here is removed again: what somebody else put there meanwhile stays.
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    new_folder: Option<PathBuf>,
}

impl Made {
    /// Looks whether anything would be overwritten, before anything is written.
    fn begin(folder: &Path) -> Result<Self, Failure> {
        for name in [evergrant_config::FILE_NAME, KEY_FILE]
            .into_iter()
            .chain(STORE_FILES)
        {
            let file = folder.join(name);
            if file.symlink_metadata().is_ok() {
                return Err(Failure::usage(format!(
                    "{} is there already; nothing was written",
                    file.display()
                ))
                .advise("Choose another folder with --dir, or move the file away."));
            }
        }
        let is_new = !folder.as_os_str().is_empty() && !folder.exists();
        std::fs::create_dir_all(folder)
            .map_err(|error| Failure::failed(format!("{} cannot be made: {error}", folder.display())))?;
        Ok(Self {
            folder: folder.to_owned(),
            files: Vec::new(),
            folders: Vec::new(),
            new_folder: is_new.then(|| folder.to_owned()),
        })
    }

    fn write(&mut self, name: &str, content: &str, readable: Readable) -> Result<PathBuf, Failure> {
        let file = self.folder.join(name);
        let mut write = || -> io::Result<()> {
            let mut opened = create(&file, readable)?;
            self.files.push(file.clone());
            opened.write_all(content.as_bytes())?;
            opened.sync_all()
        };
        write().map_err(|error| Failure::failed(format!("{} cannot be written: {error}", file.display())))?;
        Ok(file)
    }

    fn keep(mut self) {
        self.files.clear();
        self.folders.clear();
        self.new_folder = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // It may not have come so far, and a folder that holds anything else stays.
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
        for folder in &self.folders {
            let _ = std::fs::remove_dir_all(folder);
        }
        if let Some(folder) = &self.new_folder {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

#[cfg(unix)]
fn create(file: &Path, readable: Readable) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mode = match readable {
        Readable::ByOwner => 0o600,
        Readable::ByOthers => 0o644,
    };
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(file)
}

/// Elsewhere a file takes the rights of its folder.
#[cfg(not(unix))]
fn create(file: &Path, _readable: Readable) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(file)
}
