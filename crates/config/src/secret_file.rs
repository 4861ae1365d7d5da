//! Files that hold secrets.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// No secret or certificate chain is longer; what is, is another file given by mistake.
const SIZE_MAX: u64 = 64 * 1024;

/// The text of a file without the white space around it. The reason of a refusal never quotes what was read.
pub(crate) fn read(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| format!("cannot read {shown}: {error}");
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    let size = file
        .take(SIZE_MAX + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if size as u64 > SIZE_MAX {
        return Err(format!("{shown} is over {SIZE_MAX} bytes, which no secret is"));
    }
    match text.trim() {
        "" => Err(format!("{shown} is empty")),
        text => Ok(text.to_owned()),
    }
}

/// As [`read`], where the file holds one secret and nothing else.
pub(crate) fn read_one(path: &Path) -> Result<String, String> {
    let text = read(path)?;
    if text.contains(char::is_control) {
        return Err(format!(
            "{} holds more than one line: a file for each secret",
            path.display()
        ));
    }
    Ok(text)
}

/// Refuses a file that others than owner and group may touch.
#[cfg(unix)]
pub(crate) fn refuse_open(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;
    let shown = path.display();
    let metadata = path
        .metadata()
        .map_err(|error| format!("cannot read {shown}: {error}"))?;
    match metadata.permissions().mode() & 0o777 {
        mode if mode & 0o007 != 0 => Err(format!(
            "{shown} is open to everyone (mode {mode:04o}): chmod 600 {shown}"
        )),
        _ => Ok(()),
    }
}

/// Elsewhere there is no such mode to look at.
#[cfg(not(unix))]
pub(crate) fn refuse_open(_path: &Path) -> Result<(), String> {
    Ok(())
}
