//! Opens a page in the browser of whoever sits here.

use std::process::Stdio;

use tokio::process::Command;

#[cfg(target_os = "macos")]
const OPENER: &[&str] = &["open"];
#[cfg(windows)]
const OPENER: &[&str] = &["rundll32", "url.dll,FileProtocolHandler"];
#[cfg(not(any(target_os = "macos", windows)))]
const OPENER: &[&str] = &["xdg-open"];

/// Tries to. Where there is no browser, the link that was printed has to do.
pub(crate) fn open(url: &str) {
    let opened = Command::new(OPENER[0])
        .args(&OPENER[1..])
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    if let Ok(mut browser) = opened {
        tokio::spawn(async move { browser.wait().await });
    }
}
