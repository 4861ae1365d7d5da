//! What a caller asks for: `Idempotency-Key`, `Evergrant-Dedupe`, `Evergrant-Guard`.

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method};

use crate::record::RefusalKind;

/// What is to be kept of a write, and by what.
#[derive(Debug, Default)]
pub(crate) struct Guards {
    /// The caller's key.
    pub(crate) key: Option<Key>,
    /// For how long the same request is the same write.
    pub(crate) window: Option<Duration>,
    /// Look first whether it is there.
    pub(crate) ahead: Option<AheadAsked>,
}

/// No more than a pointer where nothing is asked for, which is nearly always.
pub(crate) type GuardsAsked = Option<Box<Guards>>;

/// An `Idempotency-Key`. It may say whom a call is about, so it is never shown, and stored as a keyed fingerprint only.
pub(crate) struct Key(String);

impl Key {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// `read-before-write`.
#[derive(Debug)]
pub(crate) struct AheadAsked {
    /// The unique property that names the object.
    pub(crate) property: Option<String>,
}

/// Whether a call may be a guarded write, before anything else is known of it: then it runs in a task of its own.
pub(crate) fn may_be_guarded(method: &Method, headers: &HeaderMap) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
        && ["idempotency-key", "evergrant-dedupe", "evergrant-guard"]
            .iter()
            .any(|&name| headers.contains_key(name))
}

impl Guards {
    /// Takes one of the guards' headers.
    pub(crate) fn take(&mut self, name: &str, value: &HeaderValue) -> Result<(), RefusalKind> {
        let text = value.to_str().unwrap_or_default();
        let what = match name {
            "idempotency-key" => match key(text) {
                Some(key) if self.key.is_none() => {
                    self.key = Some(key);
                    return Ok(());
                }
                Some(_) => "Idempotency-Key is there more than once",
                None => "Idempotency-Key is not 1 to 255 visible ASCII characters",
            },
            "evergrant-dedupe" => match window(text) {
                Some(window) if self.window.is_none() => {
                    self.window = Some(window);
                    return Ok(());
                }
                Some(_) => "Evergrant-Dedupe is there more than once",
                None => "Evergrant-Dedupe is not fingerprint;window=SECONDS with 1 to 86400 seconds",
            },
            _ => match ahead(text) {
                Some(ahead) if self.ahead.is_none() => {
                    self.ahead = Some(ahead);
                    return Ok(());
                }
                Some(_) => "Evergrant-Guard is there more than once",
                None => "Evergrant-Guard is not read-before-write;property=NAME",
            },
        };
        Err(RefusalKind::BadRequest { what })
    }

    /// Refuses what contradicts itself.
    pub(crate) fn checked(&self) -> Result<(), RefusalKind> {
        if self.key.is_some() && self.window.is_some() {
            return Err(RefusalKind::GuardNotApplicable {
                what: "Idempotency-Key and Evergrant-Dedupe say two different things about which write is the same: send one of them",
            });
        }
        Ok(())
    }
}

fn key(text: &str) -> Option<Key> {
    const KEY_MAX: usize = 255;
    let fits = (1..=KEY_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| Key(text.to_owned()))
}

fn window(text: &str) -> Option<Duration> {
    const WINDOW_MAX_S: u64 = 24 * 3600;
    let (kind, parameter) = text.split_once(';')?;
    let (name, seconds) = parameter.split_once('=')?;
    if kind.trim() != "fingerprint" || name.trim() != "window" {
        return None;
    }
    let seconds = seconds.trim().parse().ok()?;
    (1..=WINDOW_MAX_S)
        .contains(&seconds)
        .then(|| Duration::from_secs(seconds))
}

fn ahead(text: &str) -> Option<AheadAsked> {
    const NAME_MAX: usize = 100;
    let (kind, parameter) = match text.split_once(';') {
        Some((kind, parameter)) => (kind, Some(parameter)),
        None => (text, None),
    };
    if kind.trim() != "read-before-write" {
        return None;
    }
    let Some(parameter) = parameter else {
        return Some(AheadAsked { property: None });
    };
    let (name, property) = parameter.split_once('=')?;
    let property = property.trim();
    let is_name = (1..=NAME_MAX).contains(&property.len())
        && property
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'));
    (name.trim() == "property" && is_name).then(|| AheadAsked {
        property: Some(property.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(name: &str, value: &str) -> Option<Guards> {
        let mut guards = Guards::default();
        guards
            .take(name, &HeaderValue::from_str(value).unwrap())
            .ok()
            .map(|()| guards)
    }

    #[test]
    fn what_is_malformed_is_refused_not_ignored() {
        let check = |name, value: &str, taken_up: bool| {
            assert_eq!(taken(name, value).is_some(), taken_up, "{name}: {value}");
        };
        check("idempotency-key", "a", true);
        check("idempotency-key", "\"7c0b…\"".trim_matches('…'), false);
        check("idempotency-key", "\"quoted\"", true);
        check("idempotency-key", &"k".repeat(255), true);
        check("idempotency-key", &"k".repeat(256), false);
        check("idempotency-key", "", false);
        check("idempotency-key", "two words", false);
        check("evergrant-dedupe", "fingerprint;window=1", true);
        check("evergrant-dedupe", "fingerprint; window=86400", true);
        check("evergrant-dedupe", "fingerprint;window=0", false);
        check("evergrant-dedupe", "fingerprint;window=86401", false);
        check("evergrant-dedupe", "fingerprint", false);
        check("evergrant-dedupe", "hash;window=60", false);
        check("evergrant-dedupe", "fingerprint;window=1m", false);
        check("evergrant-guard", "read-before-write", true);
        check("evergrant-guard", "read-before-write;property=email", true);
        check("evergrant-guard", "read-before-write; property=my_id", true);
        check("evergrant-guard", "read-before-write;property=", false);
        check("evergrant-guard", "read-before-write;property=a/b", false);
        check("evergrant-guard", "read-before-write;key=email", false);
        check("evergrant-guard", "write-before-read", false);
    }

    #[test]
    fn a_guard_that_is_there_twice_is_refused() {
        for (name, value) in [
            ("idempotency-key", "k"),
            ("evergrant-dedupe", "fingerprint;window=60"),
            ("evergrant-guard", "read-before-write"),
        ] {
            let mut guards = taken(name, value).unwrap();
            assert!(
                guards.take(name, &HeaderValue::from_static(value)).is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_key_and_a_window_together_are_refused() {
        let mut guards = taken("idempotency-key", "k").unwrap();
        assert!(guards.checked().is_ok());
        let window = HeaderValue::from_static("fingerprint;window=60");
        guards.take("evergrant-dedupe", &window).unwrap();
        assert!(matches!(
            guards.checked(),
            Err(RefusalKind::GuardNotApplicable { .. })
        ));
    }

    #[test]
    fn a_key_is_never_shown() {
        let guards = taken("idempotency-key", "canary-key").unwrap();
        assert!(!format!("{guards:?}").contains("canary"));
    }
}
