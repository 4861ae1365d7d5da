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
        let path = match whole.bytes().position(|byte| byte == b'?') {
            Some(end) => &whole[..end],
            None => whole,
        };
        let has = kinds(whole);
        if has & UNSENDABLE != 0 {
            return refuse(
                "path and query must be percent-encoded: spaces, control and non-ASCII characters cannot be sent",
            );
        }
        if has & MISREAD != 0 {
            return refuse("path and query hold a backslash or '#', which must be percent-encoded");
        }
        // Without these there is no dot segment, and nothing encoded.
        if has & TELLING == 0 || kinds(path) & TELLING == 0 {
            return Ok(Self { whole, path });
        }
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
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        // Host and port and nothing else, so nobody's name and password before them either.
        let intact = uri.scheme_str() == Some(base.scheme())
            && authority == &base[Position::BeforeHost..Position::AfterPort]
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
        let mut pairs = self.path.as_bytes().windows(2);
        let is_plain = kinds(self.path) & READ_IN_TWO_WAYS == 0 && !pairs.any(|pair| pair == b"//");
        if is_plain {
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

/// Not visible ASCII.
const UNSENDABLE: u8 = 1;
/// A backslash or `#`.
const MISREAD: u8 = 2;
/// What a dot segment or anything encoded cannot do without.
const TELLING: u8 = 4;
/// What a path can be read in two ways by, beside its slashes.
const READ_IN_TWO_WAYS: u8 = 8;

static KIND: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut byte = 0u8;
    loop {
        kinds[byte as usize] = match byte {
            b'\\' | b'#' => MISREAD,
            b'.' => TELLING,
            b'%' => TELLING | READ_IN_TWO_WAYS,
            b';' => READ_IN_TWO_WAYS,
            _ if !byte.is_ascii_graphic() => UNSENDABLE,
            _ => 0,
        };
        if byte == u8::MAX {
            break kinds;
        }
        byte += 1;
    }
};

/// Which of these kinds of bytes a text has.
fn kinds(text: &str) -> u8 {
    text.bytes()
        .fold(0, |kinds, byte| kinds | KIND[usize::from(byte)])
}

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
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use evergrant_domain::Rotation;
    use evergrant_domain::app::{ClientAuth, Dialect};
    use proptest::prelude::*;
    use url::Url;

    use super::*;

    fn provider(base: &str, dialect: Dialect) -> Provider {
        let url = |text: &str| Url::parse(text).expect("a literal URL");
        let base = url(base);
        Provider {
            dialect,
            authorize_url: url("https://app.example.com/authorize"),
            token_url: base.join("auth/token").expect("a literal path"),
            introspect_url: None,
            revoke_url: None,
            api_base: base,
            client_auth: ClientAuth::Post,
            pkce: false,
            rotation: Rotation::Never,
            account_claim: "hub_id".into(),
        }
    }

    const BASES: [&str; 5] = [
        "https://api.hubapi.com/",
        "https://api.hubapi.com",
        "http://127.0.0.1:8080/base/v1/",
        "http://[::1]:8080/base",
        "https://api.example.com:8443/a%20b/",
    ];

    fn sent(base: &str, target: &str) -> Result<String, RefusalKind> {
        let target = Target::parse(target)?;
        target
            .at(&provider(base, Dialect::HubSpot))
            .map(|uri| uri.to_string())
    }

    #[test]
    fn what_is_harmless_is_sent_byte_for_byte() {
        for target in [
            "/",
            "/crm/v3/objects/contacts",
            "/crm/v3/objects/contacts/",
            "/crm//v3/objects",
            "/crm/v3/objects/contacts?limit=5&after=",
            "/crm/v3/objects/contacts/ann%40example.com?idProperty=email",
            "/crm/v3/objects/contacts/a%2Fb",
            "/crm/v3/objects/contacts/a%2fb%2fc",
            "/a%20b/%C3%BC",
            "/a+b",
            "/a;v=1/b;w=2",
            "/a:b@c/d",
            "/user@evil.test/",
            "/:80/",
            "/...",
            "/.well-known/x",
            "/a..b/..c/d..",
            "/.a/%2ea",
            "/http://evil.test/",
            "/a?next=https://evil.test/../x",
            "/a?q=%2e%2e%2f&r=../..",
            "/a?x=%0d%0a%00",
            "/a??b=c?d",
            "/a?b=[1,2]&c={d:1}|e",
            "/%41%zz%",
            "/oauthish/token",
            "/crm/v3/oauth/token",
        ] {
            for base in BASES {
                let expected = format!("{}{target}", base.trim_end_matches('/'));
                assert_eq!(sent(base, target).ok(), Some(expected), "{base} {target}");
            }
        }
    }

    #[test]
    fn what_somebody_could_read_as_a_way_out_is_refused() {
        for target in [
            "",
            "crm",
            "@evil.test/",
            ":80/",
            ".evil.test/",
            "?a=b",
            "https://evil.test/",
            "*",
            "//evil.test/",
            "//",
            "///a",
            "/..",
            "/.",
            "/../x",
            "/a/../b",
            "/a/..",
            "/a/./b",
            "/a/.",
            "/%2e%2e/x",
            "/%2E./x",
            "/.%2e/x",
            "/a/%2e",
            "/a/%2e%2E",
            "/%252e%252e/x",
            "/%25%32%65%252e/x",
            "/.%252e/",
            "/..;/x",
            "/..;a=b/x",
            "/.;/x",
            "/%2e%2e;/x",
            "/..%3b/x",
            "/..%253b/x",
            "/a%2f..%2fb",
            "/a%2F%2e%2e",
            "/..%2f",
            "/a%252f..%252fb",
            "/a%2f.%2fb",
            "/a\\b",
            "/\\evil.test",
            "/a%5cb",
            "/a%5C..%5Cb",
            "/a%255cb",
            "/a#b",
            "/a?b#c",
            "/a?b\\c",
            "/a b",
            "/a\tb",
            "/a\r\nHost: evil.test",
            "/a\0",
            "/a?b c",
            "/a\u{7f}",
            "/a%00",
            "/a%0d%0ab",
            "/a%7f",
            "/a%2500",
            "/a%09",
            "/ü",
            "/a?ü",
            "/a\u{ff0e}\u{ff0e}/",
            "/a<b",
            "/a`b",
        ] {
            for base in BASES {
                let refused = sent(base, target);
                assert!(
                    matches!(refused, Err(RefusalKind::BadRequest { .. })),
                    "{base} {target:?}: {refused:?}"
                );
            }
        }
    }

    #[test]
    fn the_token_endpoints_are_refused_however_they_are_written() {
        for target in [
            "/oauth/v1/token",
            "/oauth/2026-09/token",
            "/OAuth/v1/Token",
            "/oauth",
            "/oauth/",
            "/oauth?x",
            "/oauth;a=b/v1/token",
            "/oauth//v1///token/",
            "/%6fauth/v1/token",
            "/oauth%2fv1%2ftoken",
            "/%256fauth/v1",
            "/oauth%3bx/v1",
            "/o%61uth/%2f",
            "/oauth/v1/refresh-tokens/abc",
        ] {
            for base in BASES {
                let refused = sent(base, target);
                assert!(
                    matches!(refused, Err(RefusalKind::UseEvergrant)),
                    "{base} {target}: {refused:?}"
                );
            }
        }
        let generic = provider("https://api.example.com/base/", Dialect::Generic);
        let at = |target| Target::parse(target).unwrap().at(&generic);
        for target in ["/auth/token", "/AUTH//token/?a", "/auth/t%6fken", "/auth;x/token"] {
            assert!(matches!(at(target), Err(RefusalKind::UseEvergrant)), "{target}");
        }
        assert!(at("/auth/tokens").is_ok() && at("/oauth/v1/token").is_ok());
    }

    proptest! {
        /// Another parser than the one that sends, and one that knows every trick of browsers.
        #[test]
        fn whatever_is_sent_stays_under_the_base(
            target in "/([a-z]|/|\\.|\\.\\.|%2e|%2E|%25|%2f|%5c|\\\\|;|@|:|#|\\?|evil\\.test|%0a|\t| ){0,12}",
            base in proptest::sample::select(&BASES[..]),
        ) {
            if let Ok(sent) = sent(base, &target) {
                let base = Url::parse(base).expect("a literal URL");
                let seen = Url::parse(&sent).expect("what was sent is a URL");
                prop_assert_eq!(seen.origin(), base.origin());
                prop_assert!(seen.username().is_empty() && seen.password().is_none() && seen.fragment().is_none());
                let base_path = base.path().trim_end_matches('/');
                prop_assert!(seen.path().starts_with(&format!("{base_path}/")), "{}", sent);
                prop_assert!(sent.ends_with(&target));
                // Nothing in it is collapsed, so nothing in it was a way out.
                prop_assert_eq!(&seen[Position::BeforePath..], &sent[base[..Position::BeforePath].len()..]);
            }
        }
    }
}
