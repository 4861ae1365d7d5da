//! The files beside the pages: a stylesheet, a script, an icon. Each is named after its content, so a browser may keep it for good.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::LazyLock;

/// A file.
#[derive(Debug)]
pub struct Asset {
    path: String,
    /// Its media type.
    pub media_type: &'static str,
    /// The whole of it.
    pub body: &'static str,
}

impl Asset {
    fn new(name: &str, ending: &str, media_type: &'static str, body: &'static str) -> Self {
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        Self {
            path: format!("{FOLDER}{name}-{:016x}.{ending}", hasher.finish()),
            media_type,
            body,
        }
    }

    /// Where it is served.
    pub(crate) fn path(&'static self) -> &'static str {
        &self.path
    }
}

const FOLDER: &str = "/dashboard/assets/";

pub(crate) static STYLE: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new(
        "dashboard",
        "css",
        "text/css; charset=utf-8",
        include_str!("../assets/dashboard.css"),
    )
});

pub(crate) static SCRIPT: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new(
        "dashboard",
        "js",
        "text/javascript; charset=utf-8",
        include_str!("../assets/dashboard.js"),
    )
});

pub(crate) static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("icon", "svg", "image/svg+xml", include_str!("../assets/icon.svg")));

/// The file at a path below `/dashboard/assets/`. It says nothing about anybody, so nobody has to log in for it.
pub fn asset(path: &str) -> Option<&'static Asset> {
    [&*STYLE, &*SCRIPT, &*ICON]
        .into_iter()
        .find(|asset| asset.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_by_its_own_name_only() {
        assert_eq!(
            asset(STYLE.path()).map(|found| found.media_type),
            Some("text/css; charset=utf-8")
        );
        assert!(asset("/dashboard/assets/dashboard.css").is_none());
        assert!(asset("/dashboard/assets/../../etc/passwd").is_none());
    }

    #[test]
    fn nothing_is_fetched_from_elsewhere() {
        for asset in [&*STYLE, &*SCRIPT] {
            for outside in ["http:", "https:", "//cdn", "@import", "url("] {
                assert!(!asset.body.contains(outside), "{}: {outside}", asset.path);
            }
        }
    }
}
