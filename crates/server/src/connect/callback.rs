//! A customer's way back from consent: what the provider sent along, what came of it, and what the customer is told.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use evergrant_domain::{App, AuthorizationCode, Connection, ConnectionId};
use evergrant_keeper::{ConnectError, Consent};
use evergrant_store::StoreError;
use evergrant_store::contract::{Authorization, SessionOutcome};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use url::Url;

use super::{
    account_of, can_be_restored, is_hubspots_return_url, see_other, setup_is_wrong, state_hash, unavailable,
};
use crate::input::Query;
use crate::pages::{Answers, Message};
use crate::service::{Inner, Shared};

/// Cookies of ours that are tried: a browser has one, or a few where several services share a host's name.
const COOKIES_MAX: usize = 4;

/// A state is ours only if it is as long as ours are; bounds what is hashed.
const STATE_MAX: usize = 128;

/// What the provider sent along with the browser.
struct Returned {
    code: Option<AuthorizationCode>,
    state: Option<String>,
    error: Option<String>,
    issuer: Option<String>,
    return_url: Option<String>,
}

impl Returned {
    /// `None` where a parameter is there twice (RFC 6749 §3.1). Unknown ones are ignored, as §4.1.2 wants it.
    fn read(mut query: Query) -> Option<Self> {
        Some(Self {
            code: query
                .one("code")
                .ok()?
                .filter(|code| !code.is_empty())
                .map(AuthorizationCode::new),
            state: query.one("state").ok()?.filter(|state| !state.is_empty()),
            error: query.one("error").ok()?,
            issuer: query.one("iss").ok()?,
            return_url: query.one("returnUrl").ok()?,
        })
    }
}

/// How it went, as the customer and the vendor's app are told.
enum Outcome {
    Connected(Box<Connection>),
    Denied,
    Failed { code: &'static str, detail: String },
}

/// Where the provider sends the browser back.
#[utoipa::path(
    get, path = "/oauth/callback", operation_id = "returnFromConsent", tag = "pages", security(()),
    params(
        ("state" = Option<String>, Query), ("code" = Option<String>, Query),
        ("error" = Option<String>, Query), ("iss" = Option<String>, Query),
    ),
    responses(
        (status = 200, description = "A page that says how it went.", content_type = "text/html", body = String),
        (status = 303, description = "Back to `return_url` with `connection`, `result` and `code`."),
        Answers
    )
)]
pub(crate) async fn callback(
    State(shared): State<Shared>,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, Message> {
    let returned = Returned::read(query).ok_or_else(Message::dead_link)?;
    let Some(state) = &returned.state else {
        return begin_afresh(&shared, &returned);
    };
    if state.len() > STATE_MAX {
        return Err(Message::dead_link());
    }
    let authorization = spend(&shared, &headers, state).await?;
    let app = shared
        .keeper()
        .app(&authorization.app)
        .ok_or_else(|| setup_is_wrong(&authorization.app))?;
    let return_url = authorization
        .return_url
        .clone()
        .or_else(|| returned.return_url.clone());
    let named = authorization.connection.clone();
    let outcome = judge(&shared, &app, authorization, returned).await;
    Ok(conclude(&app, return_url.as_deref(), named.as_ref(), &outcome))
}

/// The authorization that this state and this browser's cookie stand for. It is spent before anything else is looked at: whatever
/// follows, it is never good again. In another browser nothing is found, and nothing spent.
async fn spend(shared: &Inner, headers: &HeaderMap, state: &str) -> Result<Authorization, Message> {
    let mut cookies = shared.flow.cookies(headers).take(COOKIES_MAX).peekable();
    if cookies.peek().is_none() {
        tracing::warn!(
            event = "connect_refused",
            "a consent came back without the cookie: in another browser, or cookies are blocked"
        );
        return Err(Message::other_browser());
    }
    let _turn = shared.flow.turn().await?;
    for cookie in cookies {
        let spent = shared
            .keeper()
            .store()
            .spend_state(state_hash(state, cookie), shared.now())
            .await
            .map_err(unavailable)?;
        if let Some(authorization) = spent {
            return Ok(authorization);
        }
    }
    Err(Message::dead_answer())
}

/// The callback asked for by whoever only wants to look, like a scanner of links: nothing is spent, nothing is shown.
pub(crate) async fn look_at_callback() -> [(HeaderName, HeaderValue); 1] {
    [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))]
}

/// A consent that we did not ask for: an install from a marketplace or a saved link. Its code is not ours to exchange; the flow
/// begins anew, with a state.
fn begin_afresh(shared: &Inner, returned: &Returned) -> Result<Response, Message> {
    if returned.code.is_none() {
        return Err(Message::dead_link());
    }
    let installable: Vec<_> = shared
        .keeper()
        .apps()
        .into_iter()
        .filter(|app| app.public_install)
        .collect();
    let [app] = installable.as_slice() else {
        return Err(Message::dead_link());
    };
    let mut target = shared.public(&format!("/install/{}", app.name));
    if let Some(url) = returned
        .return_url
        .as_deref()
        .filter(|url| is_hubspots_return_url(app, url))
    {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("returnUrl", url)
            .finish();
        target = format!("{target}?{query}");
    }
    Ok(see_other(&target))
}

/// Looks at what came back and, where it is a code, exchanges it. Goes on to its end though the browser hangs up: a code that
/// was redeemed is a grant that must not be lost.
async fn judge(shared: &Shared, app: &Arc<App>, authorization: Authorization, returned: Returned) -> Outcome {
    let work = {
        let (shared, app) = (shared.clone(), app.clone());
        async move {
            let session = authorization.session.clone();
            let outcome = complete(&shared, &app, authorization, returned).await;
            if let Some(session) = session {
                note(&shared, &session, &outcome).await;
            }
            outcome
        }
    };
    shared.to_the_end(work).await.unwrap_or_else(|_| {
        failed(
            "internal",
            "Something went wrong on our side. Please begin again.",
        )
    })
}

async fn complete(shared: &Inner, app: &App, authorization: Authorization, returned: Returned) -> Outcome {
    if returned
        .issuer
        .as_deref()
        .is_some_and(|issuer| !is_issuer(app, issuer))
    {
        tracing::warn!(event = "connect_refused", app = %app.name, "a consent names another issuer than this app's provider (RFC 9207)");
        return failed(
            "wrong_issuer",
            "The answer came from somewhere else than expected. Please begin again.",
        );
    }
    match (returned.error.as_deref(), returned.code) {
        (Some("access_denied"), _) => {
            tracing::info!(event = "connect_denied", app = %app.name, "a customer did not consent");
            Outcome::Denied
        }
        (Some(error), _) => {
            let error: String = error.chars().filter(char::is_ascii_graphic).take(64).collect();
            tracing::warn!(event = "connect_failed", app = %app.name, code = %error, "the provider refused to ask for consent");
            failed(
                "provider_error",
                "The provider did not finish the request. Please begin again, or ask for help if it happens again.",
            )
        }
        (None, None) => failed(
            "incomplete_answer",
            "The provider's answer was incomplete. Please begin again.",
        ),
        (None, Some(code)) => {
            if authorization.session.is_none()
                && let Some(refused) = no_longer_restorable(shared, authorization.connection.as_ref()).await
            {
                return refused;
            }
            let is_public_install = authorization.session.is_none() && authorization.connection.is_none();
            let consent = Consent {
                app: authorization.app,
                customer: (!is_public_install).then_some(authorization.customer),
                connection: authorization.connection,
                code,
                redirect_uri: app.redirect_uri.clone(),
                code_verifier: authorization.code_verifier,
                scopes: authorization.scopes,
            };
            match shared.keeper().consent(consent).await {
                Ok(connection) => Outcome::Connected(Box::new(connection)),
                Err(error) => explain(app, &error),
            }
        }
    }
}

/// A reconnect link's connection may have been ended while its customer was at the provider's page.
async fn no_longer_restorable(shared: &Inner, id: Option<&ConnectionId>) -> Option<Outcome> {
    match shared.keeper().store().connection(id?).await {
        Ok(Some(connection)) if can_be_restored(&connection) => None,
        Ok(_) => Some(failed(
            "disconnected",
            "This connection was ended meanwhile. Please ask for a new link.",
        )),
        Err(error) => Some(explain_store(&error)),
    }
}

/// RFC 9207 §2.4, as far as it can be known without the provider's metadata: the issuer has the origin of one of its endpoints.
fn is_issuer(app: &App, issuer: &str) -> bool {
    Url::parse(issuer).is_ok_and(|issuer| {
        issuer.origin() == app.provider.authorize_url.origin()
            || issuer.origin() == app.provider.token_url.origin()
    })
}

fn failed(code: &'static str, detail: impl Into<String>) -> Outcome {
    Outcome::Failed {
        code,
        detail: detail.into(),
    }
}

/// What a customer is told. Whatever only the vendor can mend is said to be the vendor's; its details are in the log.
fn explain(app: &App, error: &ConnectError) -> Outcome {
    tracing::warn!(event = "connect_failed", app = %app.name, %error, "a consent led to no connection");
    let shown = app.shown_name();
    match error {
        ConnectError::AccountMismatch { expected, got } => failed(
            "account_mismatch",
            format!(
                "This connection belongs to the account {expected}, but {got} was chosen. Nothing was changed. Please begin again and choose {expected}."
            ),
        ),
        ConnectError::AppNotConfigured { .. } | ConnectError::AppCredentialsRejected { .. } => failed(
            "app_credentials_rejected",
            format!(
                "The setup of {shown} is not right at the moment, so nothing can be connected. This is for the vendor of {shown} to mend, not for you."
            ),
        ),
        ConnectError::CodeRefused { .. } => failed(
            "code_refused",
            "The provider did not accept the answer: it was too late or used before. Please begin again.",
        ),
        ConnectError::ProviderUnavailable { .. } => failed(
            "provider_unavailable",
            "The provider does not answer at the moment. Please begin again in a few minutes.",
        ),
        ConnectError::OutcomeLost => failed(
            "outcome_lost",
            "The provider's answer got lost on its way. Please begin again.",
        ),
        ConnectError::IdTaken => failed(
            "id_taken",
            format!("This link does not fit what {shown} knows. Please ask its vendor for a new one."),
        ),
        ConnectError::AccountTaken { .. }
        | ConnectError::GrantTaken { .. }
        // No consent meets these: they are about records.
        | ConnectError::NotNewer { .. }
        | ConnectError::RedemptionUnderWay { .. } => failed(
            "account_taken",
            "This account is connected already. There is nothing more to do.",
        ),
        ConnectError::GrantInactive
        | ConnectError::RecordOfAnotherAccount { .. }
        | ConnectError::Unverified { .. }
        | ConnectError::Invalid { .. } => failed(
            "provider_error",
            "The provider's answer could not be used. Please begin again, or ask for help if it happens again.",
        ),
        ConnectError::Store(error) => explain_store(error),
    }
}

fn explain_store(error: &StoreError) -> Outcome {
    tracing::error!(event = "store_error", %error, "a consent could not be kept");
    failed(
        "store_unavailable",
        "Something went wrong on our side. Please begin again in a few minutes.",
    )
}

/// Tells the session how it went. The connection is made or not by now, so a store that does not answer changes nothing.
async fn note(shared: &Inner, session: &str, outcome: &Outcome) {
    let outcome = match outcome {
        Outcome::Connected(connection) => SessionOutcome::Connected(connection.id.clone()),
        Outcome::Denied => SessionOutcome::Failed {
            code: "denied".to_owned(),
            detail: "the customer did not consent".to_owned(),
        },
        Outcome::Failed { code, detail } => SessionOutcome::Failed {
            code: (*code).to_owned(),
            detail: detail.clone(),
        },
    };
    if let Err(error) = shared.keeper().store().finish_session(session, outcome).await {
        tracing::warn!(event = "store_error", %error, "how a connect session ended could not be noted");
    }
}

/// Back to the vendor's app where it said where, else a page. A return URL is checked again: the configuration may have changed.
/// `named` is the connection that was to be made or restored, where it has a name whatever came of it.
fn conclude(
    app: &App,
    return_url: Option<&str>,
    named: Option<&ConnectionId>,
    outcome: &Outcome,
) -> Response {
    if let Some(text) = return_url
        && let Ok(mut url) = Url::parse(text)
    {
        if app.allows_return_to(&url) {
            let connection = match outcome {
                Outcome::Connected(connection) => Some(&connection.id),
                Outcome::Denied | Outcome::Failed { .. } => named,
            };
            let mut query = url.query_pairs_mut();
            if let Some(id) = connection {
                query.append_pair("connection", id.as_str());
            }
            match outcome {
                Outcome::Connected(_) => {
                    query.append_pair("result", "connected");
                }
                Outcome::Denied => {
                    query
                        .append_pair("result", "denied")
                        .append_pair("code", "denied");
                }
                Outcome::Failed { code, .. } => {
                    query.append_pair("result", "failed").append_pair("code", code);
                }
            }
            drop(query);
            return see_other(url.as_str());
        }
        // HubSpot's own address takes no parameters of ours; a failure is for us to explain.
        if is_hubspots_return_url(app, text) && matches!(outcome, Outcome::Connected(_)) {
            return see_other(url.as_str());
        }
    }
    let shown = app.shown_name();
    let message = match outcome {
        Outcome::Connected(connection) => Message::connected(app, account_of(connection).as_deref()),
        Outcome::Denied => Message::failed(
            Some(app),
            "Not connected",
            format!(
                "You chose not to connect {shown}. Nothing was changed. The link works again if you change your mind."
            ),
        ),
        Outcome::Failed { detail, .. } => Message::failed(Some(app), "Not connected", detail.clone()),
    };
    message.answer()
}
