//! HTTP as a caller speaks it, and waiting for something to happen.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

#[derive(Clone)]
pub(crate) struct Web {
    client: Client<HttpConnector, Full<Bytes>>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The code with which Evergrant says that this answer is its own.
    pub(crate) fn error(&self) -> &str {
        self.header("evergrant-error")
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Web {
    pub(crate) fn new() -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    pub(crate) async fn post(&self, url: &str, body: &Value) -> Result<Answer, String> {
        self.send(Method::POST, url, &[], Some(body)).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = Bytes::from(body.map(Value::to_string).unwrap_or_default());
        let request = request.body(Full::new(body)).unwrap();
        let said = |error: &dyn std::error::Error| format!("{error}: {:?}", error.source());
        let answer = self.client.request(request).await.map_err(|error| said(&error))?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| said(&error))?.to_bytes();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}

/// Waits for an event; it fails only where nothing happens at all.
pub(crate) async fn eventually(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    const PATIENCE: Duration = Duration::from_secs(60);
    const LOOK_AGAIN: Duration = Duration::from_millis(20);
    let wait = async {
        while !happened().await {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("it never happened that {what}"));
}
