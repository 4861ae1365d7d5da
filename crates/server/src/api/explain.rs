//! `POST /v1/explain`: what a pasted answer means.

use axum::Json;
use axum::extract::State;
use evergrant_domain::access::Role;
use evergrant_domain::explain::explain;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::access::Caller;
use crate::input::{self, NoQuery};
use crate::problem::{Code, Problem, ProblemView};
use crate::service::Shared;

/// What was pasted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pasted {
    /// An HTTP answer, a JSON error, the text of an exception, or a log line.
    text: String,
}

/// What it means.
#[derive(Serialize, ToSchema)]
#[schema(as = Explanation)]
pub(crate) struct ExplanationView {
    /// The same word as in headers and logs.
    class: &'static str,
    /// For an answer of Evergrant itself or of a token endpoint: the code of the problem that it is or leads to.
    problem: Option<String>,
    /// What happened.
    cause: String,
    /// Whether a refresh of the access token may mend it.
    refresh_helps: bool,
    /// What to do.
    action: String,
    /// The HTTP status that was found.
    status: Option<u16>,
    /// The provider's error code that was found.
    code: Option<String>,
    missing_scopes: Vec<String>,
    /// Seconds the provider asked to wait.
    retry_after: Option<u64>,
    provider_correlation_id: Option<String>,
    /// A page of this service about it, which may be shown to customers.
    help: String,
    /// Where whoever made the answer documents it.
    documentation_url: &'static str,
}

/// Reads any answer of the provider and says class, cause and action. Nothing is sent or stored.
///
/// Role: `support`.
#[utoipa::path(
    post, path = "/v1/explain", operation_id = "explain", tag = "explain", request_body = Pasted,
    responses((status = 200, body = ExplanationView), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn answer(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    input::Json(pasted): input::Json<Pasted>,
) -> Result<Json<ExplanationView>, Problem> {
    caller.require(Role::Support)?;
    let explained = explain(&pasted.text, Code::about).ok_or_else(|| {
        Problem::bad_request("`text`: there is no HTTP status, JSON error or known message in it")
    })?;
    let help = shared.public(&explained.help_path());
    Ok(Json(ExplanationView {
        class: explained.class.as_str(),
        problem: explained.problem,
        cause: explained.cause,
        refresh_helps: explained.refresh_helps,
        action: explained.action,
        status: explained.status,
        code: explained.code,
        missing_scopes: explained.missing_scopes,
        retry_after: explained.retry_after.map(|wait| wait.as_secs()),
        provider_correlation_id: explained.correlation_id,
        help,
        documentation_url: explained.documentation_url,
    }))
}
