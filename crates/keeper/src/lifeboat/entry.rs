//! One answer as it lies in the lifeboat: sealed, and bound to its connection, version and attempt.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evergrant_domain::connection::Account;
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::refresh_policy::Ends;
use evergrant_domain::{
    AccessToken, AccountId, AppName, ConnectionId, Fence, RefreshToken, Timestamp, TokenSet, Version,
};
use evergrant_store::contract::Lease;
use evergrant_store::vault::Place;
use evergrant_store::{KeptCircumstances, Vault};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::landing::{Answer, Tried};

/// The only format so far. A process that finds a later one leaves it alone, as it does what it cannot open.
const FORMAT: u32 = 1;

/// An entry as anybody may read it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    format: u32,
    /// Which attempt brought the answer.
    attempt: String,
    connection: String,
    /// Whose refresh token was redeemed, under which lease.
    version: i64,
    fence: i64,
    /// Which vault key sealed it.
    key: String,
    sealed: String,
}

/// Why an entry cannot be landed by this process. It is kept: another one may be able to, or a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    /// Cut off, overwritten, or from a later program.
    #[error("it is damaged, or was written by another version of this program")]
    Damaged,
    /// Sealed with another vault key than this process has.
    #[error(
        "it was sealed with another vault key, {key}, and opens with no other: start a process that has it"
    )]
    OtherKey {
        /// Which.
        key: String,
    },
}

/// What is sealed. Wiped from memory when dropped.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct Secrets {
    app: String,
    access_token: String,
    refresh_token: Option<String>,
    token_type: String,
    scopes: Vec<String>,
    issued_at: i64,
    soft_end: i64,
    hard_end: i64,
    expires_at: i64,
    mismatch: Option<String>,
    account: Option<PlainAccount>,
    rotated: bool,
    created_at: i64,
    connected_at: i64,
    detail: String,
    /// Entries of older programs have none.
    #[serde(default)]
    #[zeroize(skip)]
    circumstances: KeptCircumstances,
}

#[derive(Serialize, Deserialize, Zeroize)]
struct PlainAccount {
    id: String,
    domain: Option<String>,
    user: Option<String>,
}

impl Entry {
    /// Seals an answer.
    pub(crate) fn seal(answer: &Answer, vault: &Vault) -> Vec<u8> {
        let tokens = &answer.tokens;
        let secrets = Secrets {
            app: answer.app.as_str().to_owned(),
            access_token: tokens.access_token.expose().to_owned(),
            refresh_token: tokens
                .refresh_token
                .as_ref()
                .map(|token| token.expose().to_owned()),
            token_type: tokens.token_type.clone(),
            scopes: tokens.scopes.clone(),
            issued_at: tokens.issued_at.millis(),
            soft_end: tokens.ends.soft.millis(),
            hard_end: tokens.ends.hard.millis(),
            expires_at: tokens.ends.expires.millis(),
            mismatch: answer.mismatch.clone(),
            account: answer.account.as_ref().map(|account| PlainAccount {
                id: account.id.as_str().to_owned(),
                domain: account.domain.clone(),
                user: account.user.clone(),
            }),
            rotated: answer.rotated,
            created_at: answer.created_at.millis(),
            connected_at: answer.connected_at.millis(),
            detail: answer.event.detail.clone(),
            circumstances: answer.event.circumstances.clone().into(),
        };
        let clear = Zeroizing::new(serde_json::to_string(&secrets).expect("texts and numbers are JSON"));
        let mut entry = Self {
            format: FORMAT,
            attempt: answer.name.clone(),
            connection: answer.lease.connection().as_str().to_owned(),
            version: answer.lease.version().number(),
            fence: answer.lease.fence().number(),
            key: key_id(vault),
            sealed: String::new(),
        };
        entry.sealed = STANDARD.encode(vault.seal(entry.place(&entry.bound_to()), &clear));
        serde_json::to_vec(&entry).expect("texts and numbers are JSON")
    }

    /// Reads what anybody may read of an entry.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Unreadable> {
        let entry: Self = serde_json::from_slice(bytes).map_err(|_| Unreadable::Damaged)?;
        if entry.format == FORMAT {
            Ok(entry)
        } else {
            Err(Unreadable::Damaged)
        }
    }

    /// Whose answer it says to be.
    pub(crate) fn is_of(&self, id: &ConnectionId) -> bool {
        self.connection == id.as_str()
    }

    /// Opens it.
    pub(crate) fn open(self, vault: &Vault) -> Result<Answer, Unreadable> {
        if self.key != key_id(vault) {
            return Err(Unreadable::OtherKey { key: self.key });
        }
        self.open_ours(vault).ok_or(Unreadable::Damaged)
    }

    fn open_ours(self, vault: &Vault) -> Option<Answer> {
        let sealed = STANDARD.decode(&self.sealed).ok()?;
        let clear = vault.open(self.place(&self.bound_to()), &sealed).ok()?;
        let secrets: Secrets = serde_json::from_str(&clear).ok()?;
        let account = match &secrets.account {
            None => None,
            Some(account) => Some(Account {
                id: AccountId::parse(&account.id).ok()?,
                domain: account.domain.clone(),
                user: account.user.clone(),
            }),
        };
        let kind = match secrets.mismatch {
            None => EventKind::Refreshed,
            Some(_) => EventKind::AccountMismatch,
        };
        Some(Answer {
            app: AppName::parse(&secrets.app).ok()?,
            lease: Lease::new(
                ConnectionId::parse(&self.connection).ok()?,
                Version::new(self.version),
                Fence::new(self.fence),
            ),
            tokens: TokenSet {
                access_token: AccessToken::new(secrets.access_token.as_str()),
                refresh_token: secrets.refresh_token.as_deref().map(RefreshToken::new),
                token_type: secrets.token_type.clone(),
                scopes: secrets.scopes.clone(),
                issued_at: Timestamp::from_millis(secrets.issued_at),
                ends: Ends {
                    soft: Timestamp::from_millis(secrets.soft_end),
                    hard: Timestamp::from_millis(secrets.hard_end),
                    expires: Timestamp::from_millis(secrets.expires_at),
                },
                unproven: false,
            },
            mismatch: secrets.mismatch.clone(),
            account,
            event: Event::new(kind, secrets.detail.clone()).during(secrets.circumstances.clone().into()),
            rotated: secrets.rotated,
            created_at: Timestamp::from_millis(secrets.created_at),
            connected_at: Timestamp::from_millis(secrets.connected_at),
            tried: Tried::by_others(),
            name: self.attempt,
        })
    }

    /// It opens nowhere else: not as another attempt's answer, not for another connection, version or lease.
    fn bound_to(&self) -> String {
        format!("{} {} {}", self.connection, self.fence, self.attempt)
    }

    fn place<'a>(&self, record: &'a str) -> Place<'a> {
        Place {
            table: "lifeboat",
            record,
            field: "answer",
            version: self.version,
        }
    }
}

/// The vault key as it may be shown.
fn key_id(vault: &Vault) -> String {
    vault.fingerprint("vault_key", "")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use evergrant_domain::api_answer::Class;
    use evergrant_domain::event::{Circumstances, RefreshReason};
    use evergrant_store::VaultKey;

    use super::*;

    fn answer() -> Answer {
        let at = |seconds: i64| Timestamp::from_millis(seconds * 1000);
        Answer {
            name: "c1.7.12.print".into(),
            app: AppName::parse("crm").unwrap(),
            lease: Lease::new(
                ConnectionId::parse("c1").unwrap(),
                Version::new(7),
                Fence::new(12),
            ),
            tokens: TokenSet {
                access_token: AccessToken::new("canary-access"),
                refresh_token: Some(RefreshToken::new("canary-refresh")),
                token_type: "bearer".into(),
                scopes: vec!["oauth".into(), "contacts".into()],
                issued_at: at(100),
                ends: Ends {
                    soft: at(1600),
                    hard: at(1895),
                    expires: at(1900),
                },
                unproven: false,
            },
            mismatch: None,
            account: Some(Account {
                id: AccountId::parse("1001").unwrap(),
                domain: Some("acme.example".into()),
                user: None,
            }),
            event: Event::new(EventKind::Refreshed, "a new access token").during(Circumstances {
                provider_correlation_id: Some("correlation".into()),
                request_id: Some("request".into()),
                by: Some("key_1".into()),
                reason: Some(RefreshReason::WaitedFor),
                class: Some(Class::Expired),
                attempt: Some(2),
                status_code: Some(200),
                method: Some("POST".into()),
                endpoint: Some("/oauth/token".into()),
                seconds_remaining: Some(-3),
                token_version: Some(Version::new(7)),
                failures_before: Some(1),
                took: Some(Duration::from_millis(41)),
            }),
            rotated: true,
            created_at: at(1),
            connected_at: at(2),
            tried: Tried::by_others(),
        }
    }

    fn vault() -> Vault {
        Vault::new(VaultKey::generate())
    }

    #[test]
    fn what_was_sealed_opens_as_it_was_and_shows_no_token() {
        let vault = vault();
        let sealed = Entry::seal(&answer(), &vault);
        let text = String::from_utf8(sealed.clone()).unwrap();
        for inside in ["canary", "acme", "key_1", "correlation"] {
            assert!(!text.contains(inside), "{inside}: {text}");
        }
        let entry = Entry::parse(&sealed).unwrap();
        assert!(entry.is_of(&ConnectionId::parse("c1").unwrap()));
        assert!(!entry.is_of(&ConnectionId::parse("c2").unwrap()));
        let opened = entry.open(&vault).unwrap();
        assert_eq!(format!("{opened:?}"), format!("{:?}", answer()));
        assert_eq!(opened.event, answer().event, "why, by whom and in which request");
        let tokens = opened.tokens;
        assert_eq!(tokens.access_token.expose(), "canary-access");
        assert_eq!(tokens.refresh_token.unwrap().expose(), "canary-refresh");
    }

    #[test]
    fn an_entry_of_an_older_program_that_says_less_opens_all_the_same() {
        let vault = vault();
        let mut entry = Entry::parse(&Entry::seal(&answer(), &vault)).unwrap();
        let sealed = STANDARD.decode(&entry.sealed).unwrap();
        let clear = vault.open(entry.place(&entry.bound_to()), &sealed).unwrap();
        let mut secrets: serde_json::Value = serde_json::from_str(&clear).unwrap();
        secrets.as_object_mut().unwrap().remove("circumstances").unwrap();
        let sealed = vault.seal(entry.place(&entry.bound_to()), &secrets.to_string());
        entry.sealed = STANDARD.encode(sealed);
        let opened = entry.open(&vault).unwrap();
        assert_eq!(
            opened.event,
            Event::new(EventKind::Refreshed, "a new access token")
        );
    }

    #[test]
    fn the_mismatch_comes_back_as_what_it_is() {
        let vault = vault();
        let answer = Answer {
            mismatch: Some("666".into()),
            event: Event::new(EventKind::AccountMismatch, "another account"),
            ..answer()
        };
        let sealed = Entry::seal(&answer, &vault);
        let opened = Entry::parse(&sealed).unwrap().open(&vault).unwrap();
        assert_eq!(opened.mismatch.as_deref(), Some("666"));
        assert_eq!(opened.event, answer.event);
    }

    #[test]
    fn an_entry_opens_for_no_other_connection_version_lease_or_attempt() {
        let vault = vault();
        let text = String::from_utf8(Entry::seal(&answer(), &vault)).unwrap();
        for (what, instead) in [
            ("\"connection\":\"c1\"", "\"connection\":\"c2\""),
            ("\"version\":7", "\"version\":8"),
            ("\"fence\":12", "\"fence\":13"),
            ("c1.7.12.print", "c1.7.12.other"),
        ] {
            let changed = text.replace(what, instead);
            assert_ne!(changed, text, "{what}");
            let opened = Entry::parse(changed.as_bytes()).unwrap().open(&vault);
            assert_eq!(opened.unwrap_err(), Unreadable::Damaged, "{instead}");
        }
    }

    #[test]
    fn an_entry_of_another_key_is_named_as_such() {
        let (ours, theirs) = (vault(), vault());
        let sealed = Entry::seal(&answer(), &theirs);
        let error = Entry::parse(&sealed).unwrap().open(&ours).unwrap_err();
        assert_eq!(error, Unreadable::OtherKey { key: key_id(&theirs) });
        for damaged in [&b"{}"[..], b"", &sealed[..sealed.len() - 9]] {
            assert_eq!(Entry::parse(damaged).unwrap_err(), Unreadable::Damaged);
        }
    }
}
