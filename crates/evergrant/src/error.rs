//! What can go wrong: before the engine runs, and when it is asked for something.

use std::path::PathBuf;
use std::time::Duration;

use evergrant_domain::write_lookup::LookUp;
use evergrant_domain::{AppName, ReconnectReason, Timestamp};
use evergrant_gateway::{Refusal, RefusalKind};
use evergrant_keeper::KeepError;
use evergrant_store::VaultError;

/// Why the engine was not built. Nothing runs.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No store was named.
    #[error("no store is named: say where connections are kept, as in .store(\"sqlite://evergrant.db\")")]
    NoStore,
    /// The store is of a kind that this build does not know.
    #[error(
        "a store of kind {scheme} is not known to this build; it knows {}",
        known_stores()
    )]
    UnknownStore {
        /// What stood before `://`.
        scheme: String,
    },
    /// No vault key was given.
    #[error("no vault key is given: use .vault_key_file(PATH) or .vault_key(KEY)")]
    NoVaultKey,
    /// The vault key file cannot be read.
    #[error("the vault key file {} cannot be read: {source}", path.display())]
    KeyFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Everyone on this machine can read or change the vault key file.
    #[error("the vault key file {} is open to everyone (mode {mode:o}); chmod 600 it", path.display())]
    KeyFileOpen {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The vault key file holds no key.
    #[error("{} holds no vault key: {source}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: VaultError,
    },
    /// The SQLite file cannot be opened.
    #[cfg(feature = "sqlite")]
    #[error("the store {} cannot be opened: {source}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: evergrant_store::OpenError,
    },
    /// The PostgreSQL database cannot be opened.
    #[cfg(feature = "postgres")]
    #[error("the store cannot be opened: {0}")]
    OpenPostgres(#[from] evergrant_store::postgres::OpenError),
    /// Rows can be locked in PostgreSQL alone.
    #[cfg(feature = "postgres")]
    #[error("the coordination mode row_lock needs a store in PostgreSQL; leave it at lease for a file")]
    RowLockWithoutPostgres,
    /// The URL names no Redis.
    #[cfg(feature = "redis")]
    #[error(transparent)]
    Redis(#[from] evergrant_store::coordination::redis::RedisRefused),
    /// The folder cannot be a lifeboat.
    #[error(transparent)]
    Lifeboat(#[from] evergrant_keeper::LifeboatRefused),
    /// An app is not complete.
    #[error("app {app}: {what}")]
    App {
        /// Which app.
        app: String,
        /// What is wrong.
        what: String,
    },
}

fn known_stores() -> &'static str {
    match (cfg!(feature = "sqlite"), cfg!(feature = "postgres")) {
        (true, true) => "sqlite://PATH and postgres://HOST/DATABASE",
        (true, false) => "sqlite://PATH",
        (false, _) => "postgres://HOST/DATABASE",
    }
}

/// Why there is no token, or no answer to a call. One variant per next step.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no such connection.
    #[error("there is no such connection")]
    UnknownConnection,
    /// The customer must install the app again.
    #[error("the connection needs reconnecting: {}", reason.meaning())]
    ReconnectRequired {
        /// Why.
        reason: ReconnectReason,
        /// Since when.
        since: Timestamp,
    },
    /// Its owner disconnected it.
    #[error("the connection was disconnected")]
    Disconnected,
    /// The provider refuses the app's own credentials: the operator must correct them.
    #[error("the provider refuses the credentials of app {app}: {code}")]
    AppCredentialsRejected {
        /// Which app.
        app: AppName,
        /// The provider's code.
        code: String,
    },
    /// The connection's app was not given to the builder.
    #[error("app {app} is not configured")]
    AppNotConfigured {
        /// Which app.
        app: AppName,
    },
    /// Its record does not open with the vault key. Restore the key or the database, or let the customer reconnect.
    #[error("{what}")]
    Unreadable {
        /// Which part of it.
        what: String,
    },
    /// Provider or store do not answer. Nothing was done; try again.
    #[error("not available: {what}")]
    Unavailable {
        /// What is not.
        what: String,
        /// When it is worth asking again.
        retry_after: Duration,
    },
    /// A write left and no answer came: it may have been executed. Look before it is repeated.
    #[error("the request left and no answer came; it may have been executed")]
    OutcomeUnknown {
        /// What to ask the provider to find out, where that is known. It may hold what the request held.
        look_up: Option<Box<LookUp>>,
    },
    /// The same guarded write is under way, here or in another process. Nothing was sent; asked again, it is answered with the
    /// other one's answer.
    #[error("the same write is under way")]
    InProgress {
        /// When it is worth asking again.
        retry_after: Duration,
    },
    /// Another write was made under this `Idempotency-Key`. Nothing was sent: the key belongs to that one.
    #[error("another write was made under this Idempotency-Key")]
    KeyMismatch,
    /// The guard that was asked for cannot be kept for this request. Nothing was sent: without it would be worse.
    #[error("the guard cannot be kept: {what}")]
    GuardNotApplicable {
        /// Why.
        what: &'static str,
    },
    /// The request is for somewhere else than the API of the connection's app. Nothing was sent: a token leaves for there alone.
    #[error("the request's URL lies outside of {api_base}, the API of its connection's app")]
    OutsideApiBase {
        /// Where it may go.
        api_base: String,
    },
    /// The request cannot be sent as it is.
    #[error("the request cannot be sent: {what}")]
    Refused {
        /// Why.
        what: String,
    },
}

impl From<KeepError> for Error {
    fn from(error: KeepError) -> Self {
        let what = error.to_string();
        match error {
            KeepError::Unknown => Self::UnknownConnection,
            KeepError::ReconnectRequired { reason, since } => Self::ReconnectRequired { reason, since },
            KeepError::Disconnected | KeepError::Superseded { .. } => Self::Disconnected,
            KeepError::AppCredentialsRejected { app, code } => Self::AppCredentialsRejected { app, code },
            KeepError::AppNotConfigured { app } => Self::AppNotConfigured { app },
            KeepError::Unreadable { .. } => Self::Unreadable { what },
            KeepError::ProviderUnavailable { retry_after, .. }
            | KeepError::StoreUnavailable { retry_after }
            | KeepError::Overloaded { retry_after } => Self::Unavailable { what, retry_after },
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        /// The provider was not reached; nothing says for how long.
        const UNREACHED: Duration = Duration::from_secs(1);
        let refused = |what: &str| Self::Refused {
            what: what.to_owned(),
        };
        match refusal.kind {
            RefusalKind::Keep(error) => error.into(),
            RefusalKind::UseEvergrant => refused(
                "the provider's token endpoints are not for callers; ask Evergrant for a token instead",
            ),
            RefusalKind::BadRequest { what } => refused(what),
            RefusalKind::GuardNotApplicable { what } => Self::GuardNotApplicable { what },
            RefusalKind::BodyTooLarge { limit } => Self::Refused {
                what: format!("its body is over the limit of {limit} bytes"),
            },
            RefusalKind::HeadersTooLarge => refused("its headers are over the limit"),
            RefusalKind::BudgetExhausted { retry_after, .. }
            | RefusalKind::ProviderSilent { retry_after }
            | RefusalKind::LookUnclear { retry_after } => Self::Unavailable {
                what: refusal.kind.to_string(),
                retry_after,
            },
            RefusalKind::UpstreamUnreachable => Self::Unavailable {
                what: "the provider cannot be reached".to_owned(),
                retry_after: UNREACHED,
            },
            RefusalKind::UpstreamTimeout => Self::Unavailable {
                what: "the provider did not answer in time".to_owned(),
                retry_after: UNREACHED,
            },
            RefusalKind::IdempotencyInProgress { retry_after } => Self::InProgress { retry_after },
            RefusalKind::IdempotencyMismatch => Self::KeyMismatch,
            RefusalKind::OutcomeUnknown { look_up } | RefusalKind::OutcomeStillUnknown { look_up } => {
                Self::OutcomeUnknown { look_up }
            }
        }
    }
}
