//! Outgoing webhooks: which event makes a notice, who wants it, when it is tried again, and what an answer means.
//!
//! Source: Standard Webhooks, specification 1.0.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use secrecy::{ExposeSecret as _, SecretSlice};
use url::{Host, Url};

use crate::event::EventKind;
use crate::id::AppName;
use crate::refresh_policy::Jitter;
use crate::time::Timestamp;

/// How often a notice is sent at most.
pub const TRIES: u32 = 8;

/// How long it is tried for, from the first time on.
pub const TRIED_FOR: Duration = Duration::from_secs(24 * 3600);

/// What follows each try but the last. Together they are a little less than [`TRIED_FOR`].
const PAUSES: [Duration; TRIES as usize - 1] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(6 * 3600),
    Duration::from_secs(15 * 3600),
];

/// The shortest secret, in bytes: as the specification has it.
const SECRET_MIN: usize = 24;
/// The longest: as the specification has it.
const SECRET_MAX: usize = 64;
/// What a secret in base64 begins with.
const SECRET_PREFIX: &str = "whsec_";

/// What a notice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Notice {
    /// A connection was made.
    Connected,
    /// Its customer must install the app again.
    ReconnectRequired,
    /// The customer did.
    Reconnected,
    /// Its tokens cannot be refreshed at the moment.
    Degraded,
    /// They can be again.
    Recovered,
    /// The provider answered for another account, or another one was chosen at consent.
    AccountMismatch,
    /// Its owner ended it, or another connection took its place.
    Disconnected,
    /// The provider refuses an app's own credentials.
    CredentialsRejected,
    /// It accepts them again.
    CredentialsAccepted,
}

impl Notice {
    /// Every kind, in the order of the story.
    pub const ALL: [Self; 9] = [
        Self::Connected,
        Self::ReconnectRequired,
        Self::Reconnected,
        Self::Degraded,
        Self::Recovered,
        Self::AccountMismatch,
        Self::Disconnected,
        Self::CredentialsRejected,
        Self::CredentialsAccepted,
    ];

    /// The word in the configuration and in the body.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connection.connected",
            Self::ReconnectRequired => "connection.reconnect_required",
            Self::Reconnected => "connection.reconnected",
            Self::Degraded => "connection.degraded",
            Self::Recovered => "connection.recovered",
            Self::AccountMismatch => "connection.account_mismatch",
            Self::Disconnected => "connection.disconnected",
            Self::CredentialsRejected => "app.credentials_rejected",
            Self::CredentialsAccepted => "app.credentials_accepted",
        }
    }

    /// What its receiver can do about it, one sentence; `None` where there is nothing to be done.
    pub fn action(self) -> Option<&'static str> {
        match self {
            Self::ReconnectRequired => Some(
                "Send the customer to reconnect_url; the connection keeps its id and works again at once.",
            ),
            Self::AccountMismatch => Some(
                "Send the customer to reconnect_url once more, and have them choose the account that the connection belongs to.",
            ),
            Self::Degraded => Some(
                "Wait: it is tried again by itself, and the token at hand serves until it ends. Look at why if it lasts.",
            ),
            Self::Disconnected => Some(
                "Stop using this connection; where another one took its account over, status_reason names it.",
            ),
            Self::CredentialsRejected => Some(
                "Correct client id and secret in the configuration; `evergrant apps check` asks the provider whether they are right.",
            ),
            Self::Connected | Self::Reconnected | Self::Recovered | Self::CredentialsAccepted => None,
        }
    }

    /// Reads that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|notice| notice.as_str() == word)
    }

    /// The kinds that a pattern stands for: `*`, `connection.*`, `app.*`, or one kind's own word.
    pub fn matching(pattern: &str) -> Vec<Self> {
        let begins = pattern.strip_suffix('*');
        let fits = |notice: &Self| match begins {
            Some("") => true,
            Some(begins) => begins.ends_with('.') && notice.as_str().starts_with(begins),
            None => notice.as_str() == pattern,
        };
        Self::ALL.into_iter().filter(fits).collect()
    }

    /// The notice that an event of this kind makes. `failures_before` is how many refreshes in a row had failed when it happened:
    /// the first failure and the first success after failures are told of, those between are not.
    pub fn of(kind: &str, failures_before: Option<u32>) -> Option<Self> {
        let is = |other: EventKind| kind == other.as_str();
        match failures_before {
            Some(0) if is(EventKind::RefreshFailed) => return Some(Self::Degraded),
            Some(1..) if is(EventKind::Refreshed) => return Some(Self::Recovered),
            _ => {}
        }
        let told = [
            (EventKind::Connected.as_str(), Self::Connected),
            (EventKind::ReconnectRequired.as_str(), Self::ReconnectRequired),
            (EventKind::Reconnected.as_str(), Self::Reconnected),
            (EventKind::AccountMismatch.as_str(), Self::AccountMismatch),
            (EventKind::Disconnected.as_str(), Self::Disconnected),
            ("credentials_rejected", Self::CredentialsRejected),
            ("credentials_accepted", Self::CredentialsAccepted),
        ];
        told.into_iter()
            .find(|(word, _)| *word == kind)
            .map(|(_, notice)| notice)
    }
}

/// A secret that notices are signed with. It cannot be printed or compared.
#[derive(Clone)]
pub struct WebhookSecret(SecretSlice<u8>);

impl WebhookSecret {
    /// Reads a secret as it was written: `whsec_` and base64, or the bytes themselves.
    ///
    /// # Errors
    ///
    /// Why it is none, without quoting it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let bytes = match text.strip_prefix(SECRET_PREFIX) {
            Some(encoded) => STANDARD
                .decode(encoded)
                .or_else(|_| STANDARD_NO_PAD.decode(encoded))
                .map_err(|_| "holds \"whsec_\" and something that is no base64 behind it")?,
            None => text.as_bytes().to_vec(),
        };
        match bytes.len() {
            SECRET_MIN..=SECRET_MAX => Ok(Self(bytes.into())),
            0..SECRET_MIN => Err(
                "holds a secret of less than 24 bytes: `openssl rand -base64 32` makes one, to be written behind \"whsec_\"",
            ),
            _ => Err("holds a secret of more than 64 bytes, which receivers need not take"),
        }
    }

    /// The bare bytes, for signing.
    pub fn expose(&self) -> &[u8] {
        self.0.expose_secret()
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(..)")
    }
}

/// Who is told.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Where to.
    pub url: Url,
    /// Newest first; each signs, so that a receiver may change from one to the other at any time. Never empty.
    pub secrets: Vec<WebhookSecret>,
    /// What of.
    pub notices: Vec<Notice>,
    /// Of which apps; empty for all of them.
    pub apps: Vec<AppName>,
}

impl Endpoint {
    /// Whether it is told of this.
    pub fn wants(&self, notice: Notice, app: &AppName) -> bool {
        self.notices.contains(&notice) && (self.apps.is_empty() || self.apps.contains(app))
    }

    /// Where to, for people: without the query, which may hold a secret.
    pub fn shown(&self) -> String {
        let mut url = self.url.clone();
        url.set_query(None);
        url.to_string()
    }
}

/// What an answer to a notice means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reception {
    /// It arrived.
    Taken,
    /// It is to be tried again.
    NotTaken,
    /// Nobody wants it any more: 410.
    Gone,
}

impl Reception {
    /// Judges a status. A redirect is not followed: who moves says so in the configuration.
    pub fn of(status: u16) -> Self {
        match status {
            200..=299 => Self::Taken,
            410 => Self::Gone,
            _ => Self::NotTaken,
        }
    }
}

/// When a notice that was not taken is tried again; `None` when it has been tried often or long enough.
///
/// `tries` lie behind, this one included; `began_at` is when the first of them was due. `retry_after` is what the receiver asked
/// for: honoured as far as [`TRIED_FOR`] lasts.
pub fn next_try(
    tries: u32,
    began_at: Timestamp,
    now: Timestamp,
    retry_after: Option<Duration>,
    jitter: Jitter,
) -> Option<Timestamp> {
    let index = usize::try_from(tries.checked_sub(1)?).ok()?;
    let pause = *PAUSES.get(index)?;
    let last = began_at.after(TRIED_FOR);
    if now >= last {
        return None;
    }
    // Earlier by up to a fifth, never later: what failed together does not come back together.
    let pause = pause.saturating_sub(jitter.of(pause / 5));
    Some(now.after(pause.max(retry_after.unwrap_or_default())).min(last))
}

/// Why nothing is sent to this address, whatever name led to it.
///
/// The receivers are the operator's own choice, private networks included. What no receiver can be, and what machines of clouds
/// answer secrets at, is refused all the same.
pub fn refusal_of(address: IpAddr) -> Option<&'static str> {
    /// Where a cloud answers what it answers at 169.254.169.254.
    const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    let v4 = |address: Ipv4Addr| {
        if address.is_link_local() {
            Some("is link-local, where clouds keep credentials")
        } else if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
            Some("is no address of a host")
        } else {
            None
        }
    };
    match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => v4(address),
            None if address.is_unicast_link_local() || address == METADATA => {
                Some("is link-local, where clouds keep credentials")
            }
            None if address.is_unspecified() || address.is_multicast() => Some("is no address of a host"),
            None => None,
        },
    }
}

/// The same for an address that stands in a URL.
pub fn refusal_in(url: &Url) -> Option<&'static str> {
    match url.host()? {
        Host::Domain(_) => None,
        Host::Ipv4(address) => refusal_of(address.into()),
        Host::Ipv6(address) => refusal_of(address.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(0).after(Duration::from_secs(seconds))
    }

    #[test]
    fn a_notice_that_nobody_takes_is_sent_eight_times_within_a_day() {
        for jitter in [Jitter::NONE, Jitter::new(0.5), Jitter::new(1.0)] {
            let began_at = at(1000);
            let (mut now, mut tries) = (began_at, 1);
            while let Some(next) = next_try(tries, began_at, now, None, jitter) {
                assert!(next > now);
                (now, tries) = (next, tries + 1);
            }
            assert_eq!(tries, TRIES);
            let took = now.since(began_at);
            assert!(took > TRIED_FOR * 3 / 4 && took <= TRIED_FOR, "{took:?}");
        }
    }

    #[test]
    fn a_receiver_may_ask_for_a_longer_pause_but_not_for_longer_than_a_day() {
        let asked = |tries, now, seconds| {
            next_try(
                tries,
                at(0),
                at(now),
                Some(Duration::from_secs(seconds)),
                Jitter::NONE,
            )
        };
        assert_eq!(asked(1, 0, 3), Some(at(5)), "a shorter one changes nothing");
        assert_eq!(asked(1, 0, 600), Some(at(600)));
        assert_eq!(asked(3, 1000, 90_000), Some(at(86_400)), "the day's last moment");
        assert_eq!(asked(3, 86_400, 0), None, "the day is over");
        assert_eq!(asked(8, 100, 0), None, "it was tried often enough");
        assert_eq!(asked(9, 100, 0), None);
    }

    #[test]
    fn a_redirect_is_no_receipt_and_410_ends_it() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(Reception::of(status), Reception::Taken, "{status}");
        }
        for status in [100, 199, 301, 302, 307, 308, 400, 401, 404, 409, 429, 500, 503] {
            assert_eq!(Reception::of(status), Reception::NotTaken, "{status}");
        }
        assert_eq!(Reception::of(410), Reception::Gone);
    }

    #[test]
    fn only_the_first_failure_and_the_first_success_after_it_are_told_of() {
        let of = |kind: EventKind, before| Notice::of(kind.as_str(), before);
        assert_eq!(of(EventKind::RefreshFailed, Some(0)), Some(Notice::Degraded));
        assert_eq!(of(EventKind::RefreshFailed, Some(1)), None);
        assert_eq!(
            of(EventKind::RefreshFailed, None),
            None,
            "no trouble of the connection's"
        );
        assert_eq!(of(EventKind::Refreshed, Some(3)), Some(Notice::Recovered));
        assert_eq!(of(EventKind::Refreshed, Some(0)), None);
        assert_eq!(of(EventKind::Refreshed, None), None);
        assert_eq!(of(EventKind::Connected, None), Some(Notice::Connected));
        assert_eq!(of(EventKind::TokenHandedOut, None), None);
        assert_eq!(
            Notice::of("credentials_rejected", None),
            Some(Notice::CredentialsRejected)
        );
    }

    #[test]
    fn patterns_stand_for_whole_families_or_one_kind() {
        assert_eq!(Notice::matching("*").len(), Notice::ALL.len());
        assert_eq!(Notice::matching("connection.*").len(), 7);
        assert_eq!(
            Notice::matching("app.*"),
            [Notice::CredentialsRejected, Notice::CredentialsAccepted]
        );
        assert_eq!(Notice::matching("connection.connected"), [Notice::Connected]);
        for nothing in [
            "",
            "connection",
            "connection.",
            "conn*",
            "connection.re*",
            "**",
            "app.*.*",
        ] {
            assert!(Notice::matching(nothing).is_empty(), "{nothing}");
        }
        for notice in Notice::ALL {
            assert_eq!(Notice::from_word(notice.as_str()), Some(notice));
        }
    }

    #[test]
    fn a_secret_is_base64_behind_its_prefix_or_as_it_stands_and_long_enough() {
        let bytes = |text: &str| WebhookSecret::parse(text).map(|secret| secret.expose().to_vec());
        assert_eq!(
            bytes("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"),
            Ok(b"012345678901234567890123".to_vec())
        );
        assert_eq!(
            bytes("012345678901234567890123"),
            Ok(b"012345678901234567890123".to_vec())
        );
        for short in [
            "",
            "whsec_",
            "canary",
            "whsec_Y2FuYXJ5",
            &"a".repeat(65),
            "whsec_%%%%",
        ] {
            assert!(bytes(short).is_err(), "{short}");
        }
        let shown = format!("{:?}", WebhookSecret::parse("canary-canary-canary-canary"));
        assert!(!shown.contains("canary"), "{shown}");
    }

    #[test]
    fn addresses_that_clouds_keep_secrets_at_are_refused_however_they_are_written() {
        let refused = |address: &str| refusal_of(address.parse().expect("a literal address")).is_some();
        for address in [
            "169.254.169.254",
            "169.254.0.1",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "0.0.0.0",
            "::",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
        ] {
            assert!(refused(address), "{address}");
        }
        for address in [
            "127.0.0.1",
            "::1",
            "10.0.0.7",
            "192.168.1.1",
            "203.0.113.9",
            "2001:db8::1",
            "fd12::1",
        ] {
            assert!(!refused(address), "{address}");
        }
        let url = |text: &str| Url::parse(text).expect("a literal URL");
        assert!(refusal_in(&url("https://169.254.169.254/latest")).is_some());
        // The URL standard reads this as an address.
        assert!(refusal_in(&url("https://0xa9fea9fe/latest")).is_some());
        assert!(refusal_in(&url("https://hooks.example.com/")).is_none());
    }

    #[test]
    fn an_endpoint_is_told_of_what_it_asked_for_alone_and_its_query_is_not_shown() {
        let app = |name| AppName::parse(name).expect("a literal name");
        let endpoint = Endpoint {
            url: Url::parse("https://hooks.example.com/in?key=canary").expect("a literal URL"),
            secrets: vec![WebhookSecret::parse("012345678901234567890123").expect("long enough")],
            notices: vec![Notice::Connected],
            apps: vec![app("crm")],
        };
        assert!(endpoint.wants(Notice::Connected, &app("crm")));
        assert!(!endpoint.wants(Notice::Connected, &app("erp")));
        assert!(!endpoint.wants(Notice::Disconnected, &app("crm")));
        assert_eq!(endpoint.shown(), "https://hooks.example.com/in");
    }
}
