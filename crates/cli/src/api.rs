//! The HTTP API, over the network or on the store itself: every command is written against it once.

use std::error::Error;
use std::pin::pin;

use bytes::Bytes;
use evergrant_server::{ListenSettings, Service};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use crate::args::Globals;
use crate::failure::{Exit, Failure};
use crate::network::Network;
use crate::output::note;
use crate::{local, signals};

/// An answer's body, still arriving.
pub(crate) type Body = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// More than the largest page of a list; a foreign server could send without end.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// Entries of one page: the most that there may be.
const PAGE: &str = "1000";

/// Whoever answers the API.
pub(crate) enum Api {
    /// A service, with a key's rights.
    Network(Box<Network>),
    /// This process on the configured store, with all rights.
    Store(Store),
}

/// An engine of our own, and how it would be listened to.
pub(crate) struct Store {
    pub(crate) service: Service,
    pub(crate) listen: ListenSettings,
    /// What must come to its end although the command was interrupted.
    pub(crate) background: TaskTracker,
}

impl Api {
    /// What `--server` or `EVERGRANT_URL` names, else the configured store.
    pub(crate) async fn open(globals: &Globals) -> Result<Self, Failure> {
        if let Some(server) = globals.service()? {
            return Ok(Self::Network(Box::new(Network::new(&server, globals)?)));
        }
        let config = local::configuration(globals)?;
        Ok(Self::on(
            local::open(&config).await?,
            ListenSettings::from(&config.server),
        ))
    }

    /// This process, with all rights.
    pub(crate) fn on(service: Service, listen: ListenSettings) -> Self {
        Self::Store(Store {
            service,
            listen,
            background: TaskTracker::new(),
        })
    }

    /// Opens it, does the work and lets go of it. Ctrl-C ends the work; a redemption in flight is saved first.
    pub(crate) async fn with<F>(globals: &Globals, work: impl FnOnce(Self) -> F) -> Result<(), Failure>
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let mut stop = pin!(signals::stop()?);
        // A store that does not answer is waited for, too.
        let api = tokio::select! {
            api = Self::open(globals) => api?,
            () = &mut stop => {
                note("evergrant: interrupted");
                return Err(Failure::silent(Exit::Interrupted));
            }
        };
        let held = match &api {
            Self::Network(_) => None,
            Self::Store(store) => Some((store.service.engine().clone(), store.background.clone())),
        };
        let outcome = tokio::select! {
            outcome = work(api) => outcome,
            () = &mut stop => {
                note("evergrant: interrupted; a redemption in flight is saved first");
                Err(Failure::silent(Exit::Interrupted))
            }
        };
        if let Some((engine, background)) = held {
            background.close();
            background.wait().await;
            engine.shutdown().await;
        }
        outcome
    }

    /// Sends a request whose URI is a path of the API.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Body>, Failure> {
        match self {
            Self::Network(network) => {
                let answer = network.send(request).await?;
                Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync()))
            }
            Self::Store(store) => {
                let answer = store.service.operator().call(request).await;
                Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync()))
            }
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.ask(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::DELETE, path, None).await
    }

    /// Every page of a list, as one list.
    pub(crate) async fn list(&self, path: &str, filters: &[(&str, &str)]) -> Result<Value, Failure> {
        let mut items = Vec::new();
        let mut cursor = None;
        loop {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query
                .append_pair("limit", PAGE)
                .extend_pairs(filters)
                .extend_pairs(cursor.iter().map(|cursor: &String| ("cursor", cursor)));
            let mut page = self.get(&format!("{path}?{}", query.finish())).await?;
            if let Some(Value::Array(more)) = page.get_mut("items").map(Value::take) {
                items.extend(more);
            }
            match page.get("next_cursor") {
                Some(Value::String(next)) => cursor = Some(next.clone()),
                _ => return Ok(json!({"items": items, "next_cursor": null})),
            }
        }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let mut request = Request::new(Full::default());
        *request.method_mut() = method;
        *request.uri_mut() = path
            .parse()
            .map_err(|error| Failure::usage(format!("{path}: {error}")))?;
        if let Some(body) = body {
            *request.body_mut() = Full::from(body.to_string());
            request
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let answer = whole(self.send(request).await?).await?;
        if !answer.status().is_success() {
            return Err(Failure::answered(&answer));
        }
        match answer.body().as_ref() {
            [] => Ok(Value::Null),
            body => serde_json::from_slice(body).map_err(|_| Failure::foreign(answer.status())),
        }
    }
}

/// The answer with all of its body.
pub(crate) async fn whole(answer: Response<Body>) -> Result<Response<Bytes>, Failure> {
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_MAX).collect().await;
    let body =
        body.map_err(|error| Failure::new(Exit::Unavailable, format!("the answer broke off: {error}")))?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}
