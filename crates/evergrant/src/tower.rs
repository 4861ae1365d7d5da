//! A layer for programs that have an HTTP client made of `tower` services.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use evergrant_domain::ConnectionId;
use evergrant_gateway::{Gateway, GatewayBody, Leaving, NoAnswer, Outgoing, Rest, Transport};
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt as _;
use tower::{Layer, Service, ServiceExt as _};

use crate::engine::Evergrant;
use crate::error::Error;
use crate::foreign::{BoxError, is_in_clear};

/// Puts access tokens on the requests of a client that is a [`tower::Service`]: made by [`Evergrant::layer`].
///
/// The client sends; everything else is the gateway's: the token, the judgement of an answer, one repeat after a 401, guards and
/// budgets. Which connection is meant lies in a request's extensions, or was given to the layer. A request's URL must lie on the
/// API base of the connection's app; any other is refused before anything leaves.
///
/// What lies below sends each request once, as it is, and follows no redirect: whatever repeats a request or takes it elsewhere
/// does so with its token, unseen. Clients that only send, as hyper's, do neither. The client waits its turn inside of a call, so a
/// service of this layer is always ready.
///
/// ```
/// # async fn example(keeper: evergrant::Evergrant) -> Result<(), Box<dyn std::error::Error>> {
/// use evergrant::{ConnectionId, Outgoing};
/// use hyper_util::client::legacy::Client;
/// use hyper_util::rt::TokioExecutor;
/// use tower::{Layer as _, ServiceExt as _};
///
/// # let connector = hyper_util::client::legacy::connect::HttpConnector::new();
/// let client: Client<_, Outgoing> = Client::builder(TokioExecutor::new()).build(connector);
/// let client = keeper.layer().for_connection(ConnectionId::parse("acme-crm")?).layer(client);
///
/// let request = http::Request::get("https://api.hubapi.com/crm/v3/objects/contacts")
///     .body(http_body_util::Empty::new())?;
/// let answer = client.oneshot(request).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EvergrantLayer {
    engine: Evergrant,
    connection: Option<ConnectionId>,
    unsent: Unsent,
}

/// Whether an error of the client surely means that nothing of the request left.
type Unsent = Arc<dyn Fn(&(dyn StdError + 'static)) -> bool + Send + Sync>;

impl Evergrant {
    /// A layer for an HTTP client of one's own.
    pub fn layer(&self) -> EvergrantLayer {
        EvergrantLayer {
            engine: self.clone(),
            connection: None,
            unsent: Arc::new(found_no_connection),
        }
    }
}

impl EvergrantLayer {
    /// The connection of those requests that name none in their extensions.
    #[must_use]
    pub fn for_connection(mut self, connection: ConnectionId) -> Self {
        self.connection = Some(connection);
        self
    }

    /// Which errors of the client surely mean that nothing of the request left: then a write is known not to have been carried
    /// out. Where nothing is said these are the errors of `hyper-util`'s client that found no connection; all others are taken
    /// for a cut.
    #[must_use]
    pub fn unsent_on(
        mut self,
        unsent: impl Fn(&(dyn StdError + 'static)) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.unsent = Arc::new(unsent);
        self
    }
}

impl<S, R> Layer<S> for EvergrantLayer
where
    S: Service<Request<Outgoing>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Service = EvergrantService<S>;

    fn layer(&self, service: S) -> EvergrantService<S> {
        let transport = ByService {
            service: Mutex::new(service),
            unsent: self.unsent.clone(),
        };
        EvergrantService {
            gateway: self.engine.gateway().by(transport),
            engine: self.engine.clone(),
            connection: self.connection.clone(),
        }
    }
}

impl fmt::Debug for EvergrantLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EvergrantLayer")
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

/// A client whose requests carry access tokens: see [`EvergrantLayer`]. Cheap to clone; all clones are one.
pub struct EvergrantService<S> {
    gateway: Gateway<ByService<S>>,
    engine: Evergrant,
    connection: Option<ConnectionId>,
}

impl<S> Clone for EvergrantService<S> {
    fn clone(&self) -> Self {
        Self {
            gateway: self.gateway.clone(),
            engine: self.engine.clone(),
            connection: self.connection.clone(),
        }
    }
}

impl<S> fmt::Debug for EvergrantService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EvergrantService")
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

impl<S, R, B> Service<Request<B>> for EvergrantService<S>
where
    S: Service<Request<Outgoing>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<GatewayBody>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self {
            gateway,
            engine,
            connection,
        } = self.clone();
        Box::pin(async move { engine.pass(&gateway, connection.as_ref(), request).await })
    }
}

/// The client, as the gateway sends by it: each request by a clone of its own.
struct ByService<S> {
    service: Mutex<S>,
    unsent: Unsent,
}

impl<S, B> Transport for ByService<S>
where
    S: Service<Request<Outgoing>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    async fn send(&self, call: Leaving<'_>) -> Result<Response<Rest>, NoAnswer> {
        let request = call.request();
        if is_in_clear(request.uri()) {
            return Err(NoAnswer::NotSent);
        }
        let service = self
            .service
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match service.oneshot(request).await {
            Ok(response) => Ok(response.map(|body| Rest::Foreign(Box::pin(body.map_err(Into::into))))),
            Err(error) => {
                let error: BoxError = error.into();
                if (self.unsent)(&*error) {
                    Err(NoAnswer::NotSent)
                } else {
                    Err(NoAnswer::Cut)
                }
            }
        }
    }
}

/// Whether this, or what it came of, is `hyper-util` saying that it found no connection.
fn found_no_connection(error: &(dyn StdError + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source()).any(|error| {
        error
            .downcast_ref::<hyper_util::client::legacy::Error>()
            .is_some_and(hyper_util::client::legacy::Error::is_connect)
    })
}
