//! The beginning of a customer's way through consent: a session in the store, and the link to it.

use std::time::Duration;

use evergrant_domain::{AppName, ConnectionId, Customer, InvalidId, Timestamp};
use evergrant_store::StoreError;
use evergrant_store::contract::{ConnectSession, SessionOutcome};
use evergrant_store::vault::random_token;
use url::Url;

use crate::engine::Evergrant;

/// How long a customer may take to open the link and consent.
const SESSION_LASTS: Duration = Duration::from_secs(3600);

/// 128 bits: whoever has the link may connect in the customer's name, so it cannot be guessed.
const SESSION_ID_BYTES: usize = 16;

/// A connection to be made; see [`Evergrant::connect`].
#[derive(Debug, Clone)]
pub struct Connect {
    engine: Evergrant,
    app: String,
    customer: String,
    connection: Option<ConnectionId>,
    scopes: Vec<String>,
    return_to: Option<String>,
}

/// A link for a customer. A service on the same store answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Where to send the customer's browser.
    pub url: String,
    /// The session it stands for; [`evergrant_store::contract::Store::session`] says what came of it.
    pub session: String,
    /// Until when it works.
    pub expires_at: Timestamp,
}

/// Why there is no link.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StartError {
    /// A name breaks the rules of names.
    #[error(transparent)]
    Name(#[from] InvalidId),
    /// The app was not configured.
    #[error("app {app} is not configured")]
    AppNotConfigured {
        /// Which app.
        app: AppName,
    },
    /// The app does not ask for this scope.
    #[error("app {app} does not ask for the scope {scope}")]
    Scope {
        /// Which app.
        app: AppName,
        /// Which scope.
        scope: String,
    },
    /// The return URL matches none of the app's.
    #[error("{url} matches none of the return_urls of app {app}")]
    ReturnUrl {
        /// Which app.
        app: AppName,
        /// What was asked for.
        url: String,
    },
    /// The named connection is another app's or another customer's.
    #[error("connection {connection} belongs to another app or customer")]
    OtherConnection {
        /// Which connection.
        connection: ConnectionId,
    },
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Connect {
    pub(crate) fn new(engine: Evergrant, app: String, customer: String) -> Self {
        Self {
            engine,
            app,
            customer,
            connection: None,
            scopes: Vec::new(),
            return_to: None,
        }
    }

    /// Names the connection to be made, or the one to be reconnected.
    #[must_use]
    pub fn connection(mut self, id: ConnectionId) -> Self {
        self.connection = Some(id);
        self
    }

    /// Asks for fewer scopes than the app does.
    #[must_use]
    pub fn scopes<I: IntoIterator<Item = S>, S: Into<String>>(mut self, scopes: I) -> Self {
        self.scopes = scopes.into_iter().map(Into::into).collect();
        self
    }

    /// Where the browser goes afterwards; must match the app's `return_urls`.
    #[must_use]
    pub fn return_to(mut self, url: impl Into<String>) -> Self {
        self.return_to = Some(url.into());
        self
    }

    /// Stores the session and returns its link, which works for an hour.
    pub async fn start(self) -> Result<Link, StartError> {
        let keeper = self.engine.keeper();
        let name = AppName::parse(&self.app)?;
        let customer = Customer::parse(&self.customer)?;
        let app = keeper
            .app(&name)
            .ok_or_else(|| StartError::AppNotConfigured { app: name.clone() })?;
        if let Some(scope) = self
            .scopes
            .iter()
            .find(|scope| !app.scopes.contains(scope) && !app.optional_scopes.contains(scope))
        {
            return Err(StartError::Scope {
                app: name,
                scope: scope.clone(),
            });
        }
        if let Some(url) = &self.return_to
            && !Url::parse(url).is_ok_and(|url| app.allows_return_to(&url))
        {
            return Err(StartError::ReturnUrl {
                app: name,
                url: url.clone(),
            });
        }
        if let Some(id) = &self.connection
            && let Some(existing) = keeper.store().connection(id).await?
            && (existing.app != name || existing.customer != customer)
        {
            return Err(StartError::OtherConnection {
                connection: id.clone(),
            });
        }
        let session = ConnectSession {
            id: random_token(SESSION_ID_BYTES),
            app: name,
            customer,
            connection: self.connection,
            scopes: self.scopes,
            return_url: self.return_to,
            expires_at: keeper.clock().now().after(SESSION_LASTS),
            outcome: SessionOutcome::Pending,
        };
        let link = Link {
            url: format!(
                "{}/connect/{}",
                self.engine.public_url().as_str().trim_end_matches('/'),
                session.id
            ),
            session: session.id.clone(),
            expires_at: session.expires_at,
        };
        keeper.store().create_session(session).await?;
        Ok(link)
    }
}
