//! Why there is no token, or no connection. One variant per next step.

use std::time::Duration;

use evergrant_domain::{AppName, ConnectionId, ReconnectReason, Timestamp};
use evergrant_store::StoreError;

/// Why there is no token.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KeepError {
    /// There is no such connection.
    #[error("there is no such connection")]
    Unknown,
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
    /// Another connection took its account over.
    #[error("the connection was replaced by {by}, which has its account now")]
    Superseded {
        /// Which.
        by: ConnectionId,
    },
    /// The provider refuses the app's own credentials.
    #[error("the provider refuses the credentials of app {app}: {code}")]
    AppCredentialsRejected {
        /// Which app.
        app: AppName,
        /// The provider's code.
        code: String,
    },
    /// The connection's app is not in the configuration.
    #[error("app {app} is not in the configuration")]
    AppNotConfigured {
        /// Which app.
        app: AppName,
    },
    /// The token endpoint issued nothing, and the token at hand has ended.
    #[error("the provider's token endpoint issued no token: {code}")]
    ProviderUnavailable {
        /// What failed.
        code: String,
        /// When it is worth asking again.
        retry_after: Duration,
    },
    /// Its record does not open with the vault key: it was changed, moved, or sealed with another key. It opens no other time
    /// either; the key or the database must be restored, or the customer must reconnect.
    #[error("the connection's {field} does not open with the vault key")]
    Unreadable {
        /// Which part of it.
        field: &'static str,
    },
    /// The store does not answer, and what is known without it is too old.
    #[error("the store is not available")]
    StoreUnavailable {
        /// When it is worth asking again.
        retry_after: Duration,
    },
    /// Too many wait for the same thing, or it takes too long.
    #[error("the redemption takes longer than a caller may wait")]
    Overloaded {
        /// When it is worth asking again.
        retry_after: Duration,
    },
}

impl From<StoreError> for KeepError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unreadable { ref record, field } => {
                tracing::error!(
                    event = "record_unreadable",
                    record,
                    field,
                    "a record does not open with the vault key: restore the key or the database, or let the customer reconnect"
                );
                Self::Unreadable { field }
            }
            StoreError::Unavailable { .. } | StoreError::Corrupt { .. } => {
                tracing::warn!(event = "store_error", %error, "the store did not answer");
                Self::StoreUnavailable {
                    retry_after: Duration::from_secs(1),
                }
            }
        }
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// The app is not in the configuration.
    #[error("app {app} is not in the configuration")]
    AppNotConfigured {
        /// Which app.
        app: AppName,
    },
    /// The provider refused the authorization code.
    #[error("the provider refused the authorization code: {code}")]
    CodeRefused {
        /// Its code.
        code: String,
    },
    /// The provider refuses the app's own credentials.
    #[error("the provider refuses the credentials of app {app}: {code}")]
    AppCredentialsRejected {
        /// Which app.
        app: AppName,
        /// Its code.
        code: String,
    },
    /// The provider issued nothing.
    #[error("the provider's token endpoint issued no token: {code}")]
    ProviderUnavailable {
        /// What failed.
        code: String,
    },
    /// The provider's answer was lost; the code is spent.
    #[error("the provider's answer was lost; begin again")]
    OutcomeLost,
    /// The customer chose another account than the one to be restored.
    #[error("this connection belongs to account {expected}, but account {got} was chosen")]
    AccountMismatch {
        /// The pinned account.
        expected: String,
        /// The chosen one.
        got: String,
    },
    /// The id is taken.
    #[error("a connection with this id exists already")]
    IdTaken,
    /// The account is connected already.
    #[error("connection {by} already connects this app, customer and account")]
    AccountTaken {
        /// Which connection.
        by: ConnectionId,
    },
    /// The grant is held already.
    #[error("connection {by} already holds this grant")]
    GrantTaken {
        /// Which connection.
        by: ConnectionId,
    },
    /// The provider says that the refresh token to be imported is dead.
    #[error("the provider says that this refresh token is not active")]
    GrantInactive,
    /// A record whose grant is another account's than the record says.
    #[error("the record names account {named}, and the provider says that its grant is of account {found}")]
    RecordOfAnotherAccount {
        /// The account that the record names.
        named: String,
        /// The account of its grant.
        found: String,
    },
    /// The provider gave no answer to whether a token to be imported lives.
    #[error("the provider could not be asked whether this refresh token lives: {code}")]
    Unverified {
        /// What failed.
        code: String,
    },
    /// The connection that a record means holds a token set that does not end before the record's.
    #[error(
        "connection {by} holds a token set that ends as late as the record's, or later, or the record does not say when its own ends"
    )]
    NotNewer {
        /// Which connection.
        by: ConnectionId,
    },
    /// The refresh token of the connection that a record means is being redeemed, or nobody knows yet how that ended.
    #[error(
        "the refresh token of connection {by} is being redeemed: what comes of that may be newer than the record"
    )]
    RedemptionUnderWay {
        /// Which connection.
        by: ConnectionId,
    },
    /// What was asked for makes no sense.
    #[error("{what}")]
    Invalid {
        /// What is wrong.
        what: &'static str,
    },
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}
