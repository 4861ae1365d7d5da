//! The configured apps.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use evergrant_domain::access::Role;
use evergrant_domain::{App, Timestamp};
use evergrant_oauth::ClientCheck;
use serde::Serialize;
use utoipa::ToSchema;

use crate::access::Caller;
use crate::input::{NoQuery, PathApp, Query};
use crate::lists::page;
use crate::problem::{Code, Problem, ProblemView};
use crate::service::Shared;
use crate::views::{AppView, List};

/// Lists the configured apps: what is to be registered at the provider, and whether it accepts their credentials.
///
/// By name.
///
/// Role: `support`.
#[utoipa::path(
    get, path = "/v1/apps", operation_id = "listApps", tag = "apps",
    params(("limit" = Option<u32>, Query, minimum = 1, maximum = 1000), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = List<AppView>), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn list(
    State(shared): State<Shared>,
    caller: Caller,
    query: Query,
) -> Result<Json<List<AppView>>, Problem> {
    caller.require(Role::Support)?;
    let mut apps = shared.keeper().apps();
    apps.retain(|app| caller.sees_app(&app.name));
    // Nobody knows when an app was put into the configuration: by name alone.
    let place = |app: &Arc<App>| (Timestamp::from_millis(0), app.name.to_string());
    let page = page(apps, place, query)?;
    let mut items = Vec::with_capacity(page.items.len());
    for app in page.items {
        let health = shared.keeper().app_health(&app.name).await?;
        let install_url = app
            .public_install
            .then(|| shared.public(&format!("/install/{}", app.name)));
        items.push(AppView::new(&app, health, install_url));
    }
    Ok(Json(List {
        items,
        next_cursor: page.next_cursor,
    }))
}

/// What the provider says about an app's credentials.
#[derive(Serialize, ToSchema)]
pub(crate) struct Checked {
    app: String,
    /// `accepted`, `refused` or `unknown`: the provider did not say.
    result: &'static str,
    /// The provider's code, where they are refused or nobody knows.
    code: Option<String>,
    provider_correlation_id: Option<String>,
}

/// Asks the provider whether it accepts an app's client credentials. No grant is touched.
///
/// Role: `support`.
#[utoipa::path(
    post, path = "/v1/apps/{app}/check", operation_id = "checkApp", tag = "apps",
    params(("app" = String, Path)),
    responses((status = 200, body = Checked), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn check(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    PathApp(app): PathApp,
) -> Result<Json<Checked>, Problem> {
    if !caller.sees_app(&app) || shared.keeper().app(&app).is_none() {
        return Err(Problem::new(Code::UnknownApp));
    }
    caller.require(Role::Support)?;
    let (result, failure) = match shared.keeper().check_app(&app).await? {
        ClientCheck::Accepted => ("accepted", None),
        ClientCheck::Refused(failure) => ("refused", Some(failure)),
        ClientCheck::Unknown(failure) => ("unknown", Some(failure)),
    };
    let (code, provider_correlation_id) = failure.map_or((None, None), |failure| {
        (Some(failure.code), failure.correlation_id)
    });
    Ok(Json(Checked {
        app: app.to_string(),
        result,
        code,
        provider_correlation_id,
    }))
}
