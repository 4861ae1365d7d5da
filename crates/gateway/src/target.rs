//! Where a call may go: the app's API base and what lies under it, as the caller wrote it, byte for byte.
//!
//! Nothing is joined, normalised or decoded on the way out: the target is appended to a fixed origin and base path, and what
//! came of it is looked at once more, as the client will send it. What another parser on the way could read as a way out of
//! the base path is refused before.

use std::borrow::Cow;

use bytes::Bytes;
use evergrant_domain::Provider;
use http::Uri;
use url::Position;

use crate::record::RefusalKind;

/// A target that may be appended to an API base: path and query, still percent-encoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    whole: &'a str,
    path: &'a str,
}

impl<'a> Target<'a> {
    /// Accepts what no parser on the way can read as another place than it says.
    pub(crate) fn parse(whole: &'a str) -> Result<Self, RefusalKind> {
        let refuse = |what| Err(RefusalKind::BadRequest { what });
        if !whole.starts_with('/') {
            return refuse("the path must begin with a slash");
        }
        if whole.starts_with("//") {
            return refuse("the path begins with two slashes; is there one at the end of the base URL, too?");
        }
        if !whole.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse("path and query must be percent-encoded: spaces, control and non-ASCII characters cannot be sent");
        }
        if whole.contains(['\\', '#']) {
            return refuse("path and query hold a backslash or '#', which must be percent-encoded");
        }
        let path = whole.split_once('?').map_or(whole, |(path, _)| path);
        // Decoded twice, because some servers do. Then there is nothing left that they could find.
        let mut seen = Cow::Borrowed(path.as_bytes());
        for _ in 0..=DECODED_TIMES {
            if seen.iter().any(|&byte| byte == b'\\' || byte.is_ascii_control()) {
                return refuse("the path holds an encoded backslash or control character");
            }
            if seen.split(|&byte| byte == b'/').any(is_dot_segment) {
                return refuse("the path holds a dot segment");
            }
            if !seen.contains(&b'%') {
                break;
            }
            seen = Cow::Owned(decoded(&seen));
        }
        Ok(Self { whole, path })
    }

    /// The path alone.
    pub(crate) fn path(self) -> &'a str {
        self.path
    }

    /// The URI to send to, at the provider's API base.
    pub(crate) fn at(self, provider: &Provider) -> Result<Uri, RefusalKind> {
        let base = &provider.api_base;
        let base_path = base.path().trim_end_matches('/');
        if self.is_token_endpoint(provider, base_path) {
            return Err(RefusalKind::UseEvergrant);
        }
        let origin = &base[..Position::BeforePath];
        let mut text = String::with_capacity(origin.len() + base_path.len() + self.whole.len());
        text.push_str(origin);
        text.push_str(base_path);
        text.push_str(self.whole);
        let uri = Uri::from_maybe_shared(Bytes::from(text)).map_err(|_| RefusalKind::BadRequest {
            what: "path and query hold a character that must be percent-encoded",
        })?;
        // Whatever a parser made of it, a token goes to the API base only.
        let sent = uri.path_and_query().map_or("", |sent| sent.as_str());
        let intact = uri.scheme_str() == Some(base.scheme())
            && uri.host() == base.host_str()
            && uri.port_u16() == base.port()
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
            && sent.strip_prefix(base_path) == Some(self.whole);
        if intact {
            Ok(uri)
        } else {
            Err(RefusalKind::BadRequest {
                what: "the request would leave the app's API base",
            })
        }
    }

    /// Judged on every reading of the path that a server may have.
    fn is_token_endpoint(self, provider: &Provider, base_path: &str) -> bool {
        let is_one = |path: &str| {
            provider.is_token_endpoint(path)
                || (!base_path.is_empty() && provider.is_token_endpoint(&format!("{base_path}{path}")))
        };
        if is_one(self.path) {
            return true;
        }
        if !self.path.contains(['%', ';']) && !self.path.contains("//") {
            return false;
        }
        let mut reading = self.path.as_bytes().to_vec();
        for _ in 0..=DECODED_TIMES {
            if is_one(&plain(&reading)) {
                return true;
            }
            reading = decoded(&reading);
        }
        false
    }
}

const DECODED_TIMES: usize = 2;

/// `.` and `..`, with or without path parameters, which some servers cut off first.
fn is_dot_segment(segment: &[u8]) -> bool {
    let name = segment.split(|&byte| byte == b';').next().unwrap_or_default();
    matches!(name, b"." | b"..")
}

/// Without path parameters and empty segments.
fn plain(path: &[u8]) -> String {
    let mut plain = String::with_capacity(path.len());
    for segment in path.split(|&byte| byte == b'/') {
        let name = segment.split(|&byte| byte == b';').next().unwrap_or_default();
        if !name.is_empty() {
            plain.push('/');
            plain.push_str(&String::from_utf8_lossy(name));
        }
    }
    plain
}

/// Percent-decoded once; a percent sign that encodes nothing stays.
fn decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let encoded = match (byte, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = encoded {
            out.push(high << 4 | low);
            rest = &after[2..];
        } else {
            out.push(byte);
            rest = after;
        }
    }
    out
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}
