//! Connect sessions: the beginning of a customer's way through consent, and what came of it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use evergrant::StartError;
use evergrant_domain::AppName;
use evergrant_domain::access::Role;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::access::Caller;
use crate::api::connections::read_customer;
use crate::api::import::require_within;
use crate::input::{self, NoQuery, PathName, parse_id};
use crate::problem::{Code, Problem, ProblemView};
use crate::service::Shared;
use crate::views::{SessionView, time};

/// Whom to connect to what.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewSession {
    app: String,
    /// Your own reference.
    customer: String,
    /// The id of the connection to be made, or of the one to be reconnected.
    connection_id: Option<String>,
    /// Fewer than the app's.
    #[serde(default)]
    scopes: Vec<String>,
    /// Where the browser goes afterwards; must match the app's `return_urls`.
    return_url: Option<String>,
}

/// A session that began.
#[derive(Serialize, ToSchema)]
pub(crate) struct SessionLink {
    id: String,
    /// Send the customer there.
    url: String,
    expires_at: String,
}

/// Begins to connect a customer.
///
/// Role: `tokens`.
#[utoipa::path(
    post, path = "/v1/connect-sessions", operation_id = "beginConnectSession", tag = "connect", request_body = NewSession,
    responses((status = 201, body = SessionLink), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn create(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    input::Json(new): input::Json<NewSession>,
) -> Result<(StatusCode, Json<SessionLink>), Problem> {
    caller.require(Role::Tokens)?;
    let app = AppName::parse(&new.app).map_err(|error| Problem::bad_request(format!("`app`: {error}")))?;
    let customer = read_customer(&new.customer)?;
    let id = new.connection_id.as_deref().map(parse_id).transpose()?;
    require_within(&shared, &caller, &app, &customer, id.as_ref())?;
    let mut connect = shared.engine.connect(new.app, new.customer).scopes(new.scopes);
    if let Some(id) = id {
        connect = connect.connection(id);
    }
    if let Some(url) = new.return_url {
        connect = connect.return_to(url);
    }
    let link = connect.start().await?;
    Ok((
        StatusCode::CREATED,
        Json(SessionLink {
            id: link.session,
            url: link.url,
            expires_at: time(link.expires_at),
        }),
    ))
}

/// What came of a session.
///
/// Role: `tokens`.
#[utoipa::path(
    get, path = "/v1/connect-sessions/{id}", operation_id = "readConnectSession", tag = "connect",
    params(("id" = String, Path)),
    responses((status = 200, body = SessionView), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn read(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    PathName(id): PathName,
) -> Result<Json<SessionView>, Problem> {
    let session = shared
        .keeper()
        .store()
        .session(&id)
        .await?
        .filter(|session| caller.sees_parts(&session.app, &session.customer, session.connection.as_ref()))
        .ok_or_else(|| Problem::new(Code::UnknownSession))?;
    caller.require(Role::Tokens)?;
    Ok(Json(SessionView::new(session, shared.now())))
}

impl From<StartError> for Problem {
    fn from(error: StartError) -> Self {
        match error {
            StartError::AppNotConfigured { .. } => Self::new(Code::UnknownApp),
            StartError::OtherConnection { .. } => Self::new(Code::IdTaken),
            StartError::Store(error) => error.into(),
            StartError::Name(_) => Self::bad_request(error.to_string()),
            StartError::Scope { .. } => {
                Self::bad_request("`scopes`: names one that the app does not ask for")
            }
            StartError::ReturnUrl { .. } => {
                Self::bad_request("`return_url`: matches none of the app's return_urls")
            }
        }
    }
}
