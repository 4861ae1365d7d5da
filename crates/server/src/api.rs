//! The routes of `/v1` and the gateway: each reads its input, asks the engine, shows the answer.

pub(crate) mod apps;
pub(crate) mod connections;
pub(crate) mod diagnosis;
pub(crate) mod explain;
pub(crate) mod gateway;
pub(crate) mod history;
pub(crate) mod import;
pub(crate) mod keys;
pub(crate) mod sessions;
pub(crate) mod tokens;
pub(crate) mod webhooks;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::access::Caller;
use crate::problem::{Code, Problem};

/// Whoever the service admitted. A route that takes a caller and was reached without one answers as if the key were missing.
impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Problem::new(Code::InvalidApiKey))
    }
}
