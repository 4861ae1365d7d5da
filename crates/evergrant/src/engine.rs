//! The running engine.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use evergrant_domain::{AccessToken, ConnectionId};
use evergrant_gateway::{Gateway, GatewayBody};
use evergrant_keeper::Keeper;
use http_body_util::Full;
use url::Url;

use crate::builder::Builder;
use crate::connect::Connect;
use crate::error::Error;

/// The engine: keeper and gateway on one store. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Evergrant {
    keeper: Keeper,
    gateway: Gateway,
    public_url: Arc<Url>,
}

impl std::fmt::Debug for Evergrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evergrant")
            .field("public_url", &self.public_url.as_str())
            .finish_non_exhaustive()
    }
}

impl Evergrant {
    /// Begins to describe an engine.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(keeper: Keeper, gateway: Gateway, public_url: Url) -> Self {
        Self {
            keeper,
            gateway,
            public_url: Arc::new(public_url),
        }
    }

    /// Who holds the connections.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Who puts their access tokens on requests.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Where the service that answers connect links is reached.
    pub fn public_url(&self) -> &Url {
        &self.public_url
    }

    /// Begins to connect a customer to an app.
    pub fn connect(&self, app: impl Into<String>, customer: impl Into<String>) -> Connect {
        Connect::new(self.clone(), app.into(), customer.into())
    }

    /// An access token that serves now; refreshed once if it did not.
    pub async fn token(&self, connection: &ConnectionId) -> Result<AccessToken, Error> {
        Ok(self.keeper.current(connection, None).await?.access_token.clone())
    }

    /// Sends a request to the connection's provider, with its access token.
    ///
    /// Its URI is path and query below the app's API base, or a whole URL that lies on it. A 401 is judged and, where that is right, answered
    /// by one refresh and one repeat. The provider's own answer is returned whatever its status. What a request may ask for beside
    /// the call itself, guards for writes among it, is in [`crate::RequestExt`].
    pub async fn send(
        &self,
        connection: &ConnectionId,
        request: http::Request<impl Into<Bytes>>,
    ) -> Result<http::Response<GatewayBody>, Error> {
        let target = self.target(connection, request.uri()).await?;
        let request = request.map(|body| Full::new(body.into()));
        Ok(self.gateway.call(connection, &target, request).await?.response)
    }

    /// Stops the background work. Redemptions in flight finish and are saved first.
    pub async fn shutdown(&self) {
        self.keeper.shutdown().await;
    }

    /// The same, but what is no redemption, guarded writes above all, is waited for so long at most.
    pub async fn shutdown_within(&self, patience: Duration) {
        self.keeper.shutdown_within(Some(patience)).await;
    }
}
