//! A middleware for programs that send with `reqwest`.

use std::fmt;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use evergrant_domain::ConnectionId;
use evergrant_gateway::{BrokenOff, Gateway, GatewayBody, Leaving, NoAnswer, Rest, Transport};
use http::{Extensions, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use reqwest::redirect::Policy;
use reqwest::{ClientBuilder, ResponseBuilderExt as _};
use reqwest_middleware::{ClientWithMiddleware, Middleware, Next};

use crate::engine::Evergrant;
use crate::error::Error;
use crate::foreign::is_in_clear;

/// Puts access tokens on requests that are sent with `reqwest`: made by [`Evergrant::reqwest`].
///
/// The program's own client sends, with its proxies, certificates and timeouts, but where the API is plain HTTP on this machine:
/// such a call goes past every proxy. Everything else is the gateway's: the token, the
/// judgement of an answer, one repeat after a 401, guards and budgets. Which connection is meant is given with a request
/// (`with_extension`), or was given to the middleware. A request's URL must lie on the API base of the connection's app; any other
/// is refused before anything leaves.
///
/// It makes the client itself, from the program's `ClientBuilder`, because nobody can see from outside whether a client follows
/// redirects or repeats requests: with a token it does neither. A redirect comes back as the answer that it is.
///
/// It is the last of a chain of middlewares: what stands before it sees one request and its answer, and what stands behind it is
/// not asked. What repeats requests has no place before it, either: the gateway repeats what may be repeated. An error of ours is
/// [`reqwest_middleware::Error::Middleware`], which holds an [`Error`].
///
/// ```
/// # async fn example(keeper: evergrant::Evergrant) -> Result<(), Box<dyn std::error::Error>> {
/// use evergrant::{ConnectionId, Error};
///
/// let client = keeper.reqwest(reqwest::Client::builder())?.into_client();
/// let contacts = "https://api.hubapi.com/crm/v3/objects/contacts";
/// let answer = client
///     .post(contacts)
///     .header("Idempotency-Key", "order-4711")
///     .with_extension(ConnectionId::parse("acme-crm")?)
///     .body(r#"{"properties":{"email":"ada@example.com"}}"#)
///     .send()
///     .await;
/// if let Err(reqwest_middleware::Error::Middleware(error)) = &answer
///     && let Some(Error::ReconnectRequired { .. }) = error.downcast_ref()
/// {
///     // send the customer a link
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EvergrantMiddleware {
    engine: Evergrant,
    gateway: Gateway<ByClient>,
    client: reqwest::Client,
    connection: Option<ConnectionId>,
}

impl Evergrant {
    /// A middleware that sends with a client of one's own, which it makes: without redirects and repeats, whatever was said
    /// about them before.
    ///
    /// # Errors
    ///
    /// `reqwest`'s, where the client cannot be made.
    pub fn reqwest(&self, client: ClientBuilder) -> Result<EvergrantMiddleware, reqwest::Error> {
        let client = client
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .build()?;
        Ok(EvergrantMiddleware {
            engine: self.clone(),
            gateway: self.gateway().by(ByClient {
                own: client.clone(),
                past_proxies: ClientBuilder::new()
                    .no_proxy()
                    .redirect(Policy::none())
                    .retry(reqwest::retry::never())
                    .build()?,
            }),
            client,
            connection: None,
        })
    }
}

impl EvergrantMiddleware {
    /// The connection of those requests that name none.
    #[must_use]
    pub fn for_connection(mut self, connection: ConnectionId) -> Self {
        self.connection = Some(connection);
        self
    }

    /// A client with this middleware and no other.
    pub fn into_client(self) -> ClientWithMiddleware {
        reqwest_middleware::ClientBuilder::new(self.client.clone())
            .with(self)
            .build()
    }

    async fn pass(
        &self,
        request: reqwest::Request,
        extensions: &Extensions,
    ) -> Result<reqwest::Response, Error> {
        let refused = |what: &str| Error::Refused {
            what: what.to_owned(),
        };
        let url = request.url().clone();
        let patience = request.timeout().copied();
        let is_safe = request.method().is_safe();
        let mut request = Request::<reqwest::Body>::try_from(request)
            .map_err(|_| refused("its URL or its headers are none"))?;
        if let Some(connection) = extensions.get::<ConnectionId>() {
            request.extensions_mut().insert(connection.clone());
        }
        let passing = self.engine.pass(&self.gateway, self.connection.as_ref(), request);
        let answer = match patience {
            None => passing.await?,
            Some(patience) => match tokio::time::timeout(patience, passing).await {
                Ok(answer) => answer?,
                // The caller's own patience ended; nobody knows how far the provider is.
                Err(_) if is_safe => {
                    return Err(Error::Unavailable {
                        what: "no answer came within the request's timeout".to_owned(),
                        retry_after: std::time::Duration::ZERO,
                    });
                }
                Err(_) => return Err(Error::OutcomeUnknown { look_up: None }),
            },
        };
        let (parts, body) = answer.into_parts();
        let body = reqwest::Body::wrap(Whole(Mutex::new(body)));
        let mut response = http::Response::builder()
            .url(url)
            .status(parts.status)
            .version(parts.version)
            .body(body)
            .expect("a status and a version are all that it is made of");
        *response.headers_mut() = parts.headers;
        Ok(response.into())
    }
}

impl fmt::Debug for EvergrantMiddleware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EvergrantMiddleware")
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Middleware for EvergrantMiddleware {
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut Extensions,
        _behind: Next<'_>,
    ) -> reqwest_middleware::Result<reqwest::Response> {
        self.pass(request, extensions)
            .await
            .map_err(reqwest_middleware::Error::middleware)
    }
}

/// The client, as the gateway sends by it.
struct ByClient {
    own: reqwest::Client,
    /// For plain HTTP, which is spoken with this machine alone: a proxy, the program's or the system's, would be given the token
    /// in clear.
    past_proxies: reqwest::Client,
}

impl Transport for ByClient {
    async fn send(&self, call: Leaving<'_>) -> Result<Response<Rest>, NoAnswer> {
        let request = call.request();
        if is_in_clear(request.uri()) {
            return Err(NoAnswer::NotSent);
        }
        let request = reqwest::Request::try_from(request.map(reqwest::Body::wrap));
        let request = request.map_err(|_| NoAnswer::NotSent)?;
        let client = match request.url().scheme() {
            "https" => &self.own,
            _ => &self.past_proxies,
        };
        match client.execute(request).await {
            Ok(response) => {
                let response = Response::<reqwest::Body>::from(response);
                let foreign = |body: reqwest::Body| body.map_err(|error| error.without_url().into());
                Ok(response.map(|body| Rest::Foreign(Box::pin(foreign(body)))))
            }
            Err(error) if error.is_connect() || error.is_builder() => Err(NoAnswer::NotSent),
            Err(error) if error.is_timeout() => Err(NoAnswer::TimedOut),
            Err(_) => Err(NoAnswer::Cut),
        }
    }
}

/// An answer's body. `reqwest` wants one that may be shared between threads; the lock is never taken.
struct Whole(Mutex<GatewayBody>);

impl Body for Whole {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match self.0.get_mut() {
            Ok(body) => Pin::new(body).poll_frame(cx),
            Err(poisoned) => Pin::new(poisoned.into_inner()).poll_frame(cx),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .lock()
            .map_or_else(|_| SizeHint::new(), |body| body.size_hint())
    }
}
