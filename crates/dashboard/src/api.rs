//! The port to the HTTP API, and what becomes of its refusals.

use std::future::Future;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::pages::{Reply, Visitor};

/// The service's HTTP API, asked with the rights of whoever looks at the page.
pub trait Api: Sync {
    /// Asks once. `path` is a route of the API with its query; `body` is sent as JSON.
    fn call(&self, method: Method, path: &str, body: Option<Value>) -> impl Future<Output = Answer> + Send;
}

/// What the API answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its JSON; `Null` where there was none.
    pub body: Value,
}

/// Why the API did not do what it was asked for: its problem document, as far as a page shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) title: String,
    pub(crate) detail: String,
    pub(crate) action: String,
    pub(crate) request_id: Option<String>,
}

impl Refused {
    fn read(answer: Answer) -> Self {
        let mut refused: Self = serde_json::from_value(answer.body).unwrap_or_default();
        refused.status = answer.status.as_u16();
        if refused.title.is_empty() {
            "This did not work".clone_into(&mut refused.title);
        }
        refused
    }

    /// Whether the API has no such route or thing.
    pub(crate) fn is_missing(&self) -> bool {
        self.status == 404
    }

    /// One sentence for a message above a page.
    pub(crate) fn sentence(&self) -> String {
        let text = if self.detail.is_empty() {
            &self.title
        } else {
            &self.detail
        };
        let mut sentence = crate::words::sentence(text);
        if !self.action.is_empty() {
            sentence.push(' ');
            sentence.push_str(&crate::words::sentence(&self.action));
        }
        sentence
    }

    /// The page that stands for what could not be shown.
    pub(crate) fn page(&self, visitor: &Visitor<'_>) -> Reply {
        crate::pages::problem(visitor, self)
    }
}

/// Reads something.
pub(crate) async fn get<T: DeserializeOwned>(api: &impl Api, path: &str) -> Result<T, Refused> {
    read(api.call(Method::GET, path, None).await)
}

/// Does something.
pub(crate) async fn post<T: DeserializeOwned>(
    api: &impl Api,
    path: &str,
    body: Option<Value>,
) -> Result<T, Refused> {
    read(api.call(Method::POST, path, body).await)
}

/// Takes an answer for what it should be.
pub(crate) fn read<T: DeserializeOwned>(answer: Answer) -> Result<T, Refused> {
    if !answer.status.is_success() {
        return Err(Refused::read(answer));
    }
    serde_json::from_value(answer.body).map_err(|_| Refused {
        status: 500,
        title: "The answer could not be read".to_owned(),
        detail: "the service answered something that this page does not understand".to_owned(),
        action: "Tell whoever runs the service.".to_owned(),
        request_id: None,
    })
}
