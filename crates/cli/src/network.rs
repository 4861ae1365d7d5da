//! The HTTP API over the network: one client, one API key.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use url::Url;

use crate::args::Globals;
use crate::failure::{Exit, Failure};
use crate::output::note;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longer than a service takes for anything: a call through the gateway may wait for budget and for its provider.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(180);

/// Sends requests as they are; follows no redirect, repeats nothing.
pub(crate) type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A client that trusts what this machine trusts.
pub(crate) fn client() -> Result<HttpClient, Failure> {
    let mut http = HttpConnector::new();
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    http.enforce_http(false);
    http.set_nodelay(true);
    let connector = HttpsConnectorBuilder::new()
        .with_native_roots()
        .map_err(|error| Failure::failed(format!("this machine's certificates cannot be read: {error}")))?
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(http);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .build(connector))
}

/// A service and the key to it.
pub(crate) struct Network {
    client: HttpClient,
    base: String,
    authorization: HeaderValue,
}

impl Network {
    /// `server` is the address of the service, as its `public_url` says it.
    pub(crate) fn new(server: &Url, globals: &Globals) -> Result<Self, Failure> {
        let host = server
            .host_str()
            .filter(|_| matches!(server.scheme(), "http" | "https"));
        let host = host.ok_or_else(|| Failure::usage(format!("{server} is no http or https address")))?;
        if !server.username().is_empty() || server.password().is_some() {
            return Err(Failure::usage(
                "the address of the service must not hold a user name or password",
            ));
        }
        if server.scheme() == "http" && !matches!(host, "localhost" | "127.0.0.1" | "[::1]") {
            note(format_args!(
                "evergrant: the API key crosses the network in clear to {host}: use https if you can"
            ));
        }
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", api_key(globals)?))
            .map_err(|_| Failure::usage("the API key holds characters that no key has"))?;
        authorization.set_sensitive(true);
        Ok(Self {
            client: client()?,
            base: server.as_str().trim_end_matches('/').to_owned(),
            authorization,
        })
    }

    /// Where the service is reached.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    pub(crate) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Failure> {
        let uri: Uri = format!("{}{}", self.base, request.uri())
            .parse()
            .map_err(|error| Failure::usage(format!("{}: {error}", request.uri())))?;
        *request.uri_mut() = uri;
        request
            .headers_mut()
            .insert(AUTHORIZATION, self.authorization.clone());
        let unreachable = |why: &str| {
            Failure::new(Exit::Unavailable, format!("{} does not answer: {why}", self.base)).advise(
                "Check that the service runs there (`evergrant serve`), and --server or EVERGRANT_URL.",
            )
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(unreachable(&root_cause(&error))),
            Err(_) => Err(unreachable("it took too long")),
        }
    }
}

/// The last error of a chain: what went wrong, without who noticed.
pub(crate) fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// The key for `--server`: from its file, else from the environment. Never an argument: others can read those.
fn api_key(globals: &Globals) -> Result<String, Failure> {
    let key = match &globals.api_key_file {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", file.display())))?,
        None => std::env::var("EVERGRANT_API_KEY").unwrap_or_default(),
    };
    match key.trim() {
        "" => Err(Failure::usage("there is no API key for the service")
            .advise("Set EVERGRANT_API_KEY or give --api-key-file; `evergrant keys create` makes a key.")),
        key => Ok(key.to_owned()),
    }
}
