//! One answer as it lies in the lifeboat: sealed, and bound to its connection, version and attempt.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evergrant_domain::connection::Account;
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::refresh_policy::Ends;
use evergrant_domain::{
    AccessToken, AccountId, AppName, ConnectionId, Fence, RefreshToken, Timestamp, TokenSet, Version,
};
use evergrant_store::Vault;
use evergrant_store::contract::Lease;
use evergrant_store::vault::Place;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::landing::Answer;

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
            event: Event::new(kind, secrets.detail.clone()),
            rotated: secrets.rotated,
            created_at: Timestamp::from_millis(secrets.created_at),
            connected_at: Timestamp::from_millis(secrets.connected_at),
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
