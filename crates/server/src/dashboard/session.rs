//! Sessions of the dashboard: sealed cookies, each of which names the key that logged in. Nothing about them is stored.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evergrant_dashboard::Notice;
use evergrant_domain::Timestamp;
use evergrant_store::Vault;
use evergrant_store::vault::{Place, random_token};
use http::{HeaderMap, HeaderValue, header};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use url::Url;

/// How long a session lasts: a working day.
const LASTS: Duration = Duration::from_secs(12 * 3600);
/// How long a notice waits for the page that it is for.
const NOTICE_LASTS_S: u32 = 60;
/// No cookie of ours is longer.
const COOKIE_MAX: usize = 4000;
const ID_BYTES: usize = 16;
/// How many logouts a process remembers. Each takes a login, and a login a key.
const ENDED_MAX: usize = 10_000;

const FORM: &str = "dashboard form";

/// One login in one browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    /// What its forms are bound to.
    id: String,
    /// The key's id.
    pub(crate) key: String,
    /// What the key is looked up by.
    pub(crate) key_hash: [u8; 32],
    /// When somebody has to log in again.
    pub(crate) ends: Timestamp,
}

/// As it stands in the cookie.
#[derive(Serialize, Deserialize)]
struct Payload {
    i: String,
    k: String,
    h: String,
    /// Milliseconds since the epoch.
    e: i64,
}

impl Session {
    pub(crate) fn begin(key: &str, key_hash: [u8; 32], now: Timestamp) -> Self {
        Self {
            id: random_token(ID_BYTES),
            key: key.to_owned(),
            key_hash,
            ends: now.after(LASTS),
        }
    }

    fn write(&self) -> Vec<u8> {
        let payload = Payload {
            i: self.id.clone(),
            k: self.key.clone(),
            h: URL_SAFE_NO_PAD.encode(self.key_hash),
            e: self.ends.millis(),
        };
        serde_json::to_vec(&payload).expect("a session is plain data")
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let payload: Payload = serde_json::from_slice(bytes).ok()?;
        Some(Self {
            id: payload.i,
            key: payload.k,
            key_hash: URL_SAFE_NO_PAD.decode(payload.h).ok()?.try_into().ok()?,
            ends: Timestamp::from_millis(payload.e),
        })
    }

    /// What every form of this session's pages carries. Another site can neither read nor make it.
    pub(crate) fn form_token(&self, vault: &Vault) -> String {
        URL_SAFE_NO_PAD.encode(vault.sign(FORM, self.id.as_bytes()))
    }

    pub(crate) fn is_form_token(&self, token: &str, vault: &Vault) -> bool {
        URL_SAFE_NO_PAD
            .decode(token)
            .is_ok_and(|signature| vault.verify(FORM, self.id.as_bytes(), &signature))
    }
}

/// The cookies, and which sessions were ended before their time.
pub(crate) struct Sessions {
    session_name: &'static str,
    notice_name: &'static str,
    attributes: &'static str,
    /// Until when they would have lasted.
    ended: Mutex<HashMap<String, Timestamp>>,
}

impl Sessions {
    pub(crate) fn new(public_url: &Url) -> Self {
        // Browsers take the prefix, and `Secure`, over plain HTTP on localhost in some cases only.
        let (session_name, notice_name, attributes) = if public_url.scheme() == "https" {
            (
                "__Host-evergrant-dashboard",
                "__Host-evergrant-notice",
                "Path=/; HttpOnly; SameSite=Strict; Secure",
            )
        } else {
            (
                "evergrant_dashboard",
                "evergrant_notice",
                "Path=/; HttpOnly; SameSite=Strict",
            )
        };
        Self {
            session_name,
            notice_name,
            attributes,
            ended: Mutex::new(HashMap::new()),
        }
    }

    /// The session that the browser shows, unless it has run out.
    pub(crate) fn of(&self, headers: &HeaderMap, vault: &Vault, now: Timestamp) -> Option<Session> {
        let sealed = value(headers, self.session_name)?;
        let session = Session::read(&vault.open_bytes(place("session"), &sealed).ok()?)?;
        (session.ends > now).then_some(session)
    }

    /// Whether the browser shows anything by the name of a session.
    pub(crate) fn is_shown(&self, headers: &HeaderMap) -> bool {
        value(headers, self.session_name).is_some()
    }

    pub(crate) fn cookie(&self, session: &Session, vault: &Vault) -> HeaderValue {
        let sealed = vault.seal_bytes(place("session"), &session.write());
        self.set(
            self.session_name,
            &URL_SAFE_NO_PAD.encode(sealed),
            LASTS.as_secs(),
        )
    }

    /// What the form before this page did. Opens in its own session only.
    pub(crate) fn notice(&self, headers: &HeaderMap, session: &Session, vault: &Vault) -> Option<Notice> {
        let sealed = value(headers, self.notice_name)?;
        let opened = vault.open_bytes(place(&session.id), &sealed).ok()?;
        serde_json::from_slice(&opened).ok()
    }

    pub(crate) fn keep_notice(&self, notice: &Notice, session: &Session, vault: &Vault) -> HeaderValue {
        let notice = serde_json::to_vec(notice).expect("a notice is plain data");
        let sealed = vault.seal_bytes(place(&session.id), &notice);
        self.set(
            self.notice_name,
            &URL_SAFE_NO_PAD.encode(sealed),
            NOTICE_LASTS_S.into(),
        )
    }

    pub(crate) fn forget_notice(&self) -> HeaderValue {
        self.set(self.notice_name, "", 0)
    }

    pub(crate) fn forget(&self) -> [HeaderValue; 2] {
        [self.set(self.session_name, "", 0), self.forget_notice()]
    }

    /// From now on this process takes the session's cookie for none. Others do so once its key is revoked, or it runs out.
    pub(crate) fn end(&self, session: &Session, now: Timestamp) {
        let mut ended = self.ended.lock();
        ended.retain(|_, until| *until > now);
        if ended.len() < ENDED_MAX {
            ended.insert(session.id.clone(), session.ends);
        }
    }

    pub(crate) fn has_ended(&self, session: &Session) -> bool {
        self.ended.lock().contains_key(&session.id)
    }

    fn set(&self, name: &str, value: &str, seconds: u64) -> HeaderValue {
        let cookie = format!("{name}={value}; {}; Max-Age={seconds}", self.attributes);
        let mut cookie = HeaderValue::from_str(&cookie).expect("a cookie of ours is ASCII");
        cookie.set_sensitive(true);
        cookie
    }
}

/// A session opens as a session, a notice in its session; neither as the other.
fn place(record: &str) -> Place<'_> {
    Place {
        table: "dashboard",
        record,
        field: "cookie",
        version: 0,
    }
}

/// The value of one cookie, where there is exactly one of that name.
fn value(headers: &HeaderMap, name: &str) -> Option<Vec<u8>> {
    let mut values = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='));
    let value = values.next()?;
    if values.next().is_some() || value.is_empty() || value.len() > COOKIE_MAX {
        return None;
    }
    URL_SAFE_NO_PAD.decode(value).ok()
}

#[cfg(test)]
mod tests {
    use evergrant_store::VaultKey;

    use super::*;

    fn shown(cookies: &[&HeaderValue]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for cookie in cookies {
            let pair = cookie
                .to_str()
                .expect("ASCII")
                .split(';')
                .next()
                .unwrap_or_default();
            headers.append(header::COOKIE, HeaderValue::from_str(pair).expect("ASCII"));
        }
        headers
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis((1_764_000_000 + seconds) * 1000)
    }

    fn sessions(url: &str) -> Sessions {
        Sessions::new(&Url::parse(url).expect("a literal URL"))
    }

    #[test]
    fn a_cookie_opens_with_its_vault_in_its_time_and_as_what_it_is() {
        let vault = Vault::new(VaultKey::generate());
        let sessions = sessions("http://localhost:8484/");
        let session = Session::begin("k1", [7; 32], at(0));
        let cookie = sessions.cookie(&session, &vault);
        let headers = shown(&[&cookie]);
        assert_eq!(sessions.of(&headers, &vault, at(0)), Some(session.clone()));
        assert_eq!(
            sessions.of(&headers, &vault, at(12 * 3600)),
            None,
            "it has run out"
        );
        assert_eq!(
            sessions.of(&headers, &Vault::new(VaultKey::generate()), at(0)),
            None
        );
        assert_eq!(
            sessions.of(&shown(&[&cookie, &cookie]), &vault, at(0)),
            None,
            "one of two is not ours"
        );
        assert_eq!(sessions.of(&HeaderMap::new(), &vault, at(0)), None);

        let notice = sessions.keep_notice(
            &serde_json::from_str(r#"{"good":true,"text":"done"}"#).expect("a notice"),
            &session,
            &vault,
        );
        let as_session = notice
            .to_str()
            .expect("ASCII")
            .replace("evergrant_notice", "evergrant_dashboard");
        let as_session = HeaderValue::from_str(&as_session).expect("ASCII");
        assert_eq!(sessions.of(&shown(&[&as_session]), &vault, at(0)), None);
        let both = shown(&[&cookie, &notice]);
        assert_eq!(
            sessions.notice(&both, &session, &vault).map(|notice| notice.text),
            Some("done".to_owned())
        );
        let other = Session::begin("k1", [7; 32], at(0));
        assert_eq!(
            sessions.notice(&both, &other, &vault),
            None,
            "it was said to another"
        );
    }

    #[test]
    fn a_form_token_is_of_one_session() {
        let vault = Vault::new(VaultKey::generate());
        let (mine, other) = (
            Session::begin("k1", [7; 32], at(0)),
            Session::begin("k1", [7; 32], at(0)),
        );
        assert!(mine.is_form_token(&mine.form_token(&vault), &vault));
        for wrong in [&other.form_token(&vault), "", "x", &mine.id] {
            assert!(!mine.is_form_token(wrong, &vault), "{wrong}");
        }
    }

    #[test]
    fn a_session_that_was_ended_stays_ended_as_long_as_it_would_have_lasted() {
        let sessions = sessions("http://localhost:8484/");
        let (mine, other) = (
            Session::begin("k1", [7; 32], at(0)),
            Session::begin("k1", [7; 32], at(0)),
        );
        sessions.end(&mine, at(5));
        assert!(sessions.has_ended(&mine) && !sessions.has_ended(&other));
        sessions.end(&other, at(13 * 3600));
        assert!(
            !sessions.has_ended(&mine),
            "its cookie has run out by itself, and nothing is kept for it"
        );
    }

    #[test]
    fn cookies_are_strict_and_bound_to_the_host_where_that_can_be() {
        let vault = Vault::new(VaultKey::generate());
        let check = |url: &str, begins: &str, ends: &str| {
            let cookie = sessions(url).cookie(&Session::begin("k1", [7; 32], at(0)), &vault);
            let cookie = cookie.to_str().expect("ASCII");
            assert!(cookie.starts_with(begins) && cookie.ends_with(ends), "{cookie}");
            assert!(cookie.len() < 600, "{}", cookie.len());
        };
        check(
            "https://hub.example.com/",
            "__Host-evergrant-dashboard=",
            "; Path=/; HttpOnly; SameSite=Strict; Secure; Max-Age=43200",
        );
        check(
            "http://localhost:8484/",
            "evergrant_dashboard=",
            "; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200",
        );
    }
}
