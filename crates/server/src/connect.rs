//! A customer's way to consent: our page and the provider's. The way back is [`callback`]'s.
//!
//! Opening a page spends nothing, so link previews are harmless. The form's POST begins an authorization: a `state`, kept
//! hashed together with a cookie of the browser that sent the form. The callback needs both and spends the state before the
//! code is exchanged, so a code, a state or a link that leaks is of no use to anyone else, not even for spoiling it.
//!
//! Source: RFC 6749 §10.12, RFC 9700 §4.7, RFC 9207.

pub(crate) mod callback;
pub(crate) mod link;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use evergrant_domain::app::Dialect;
use evergrant_domain::{App, AppName, Connection, ConnectionId, ConnectionStatus, Customer, Kind};
use evergrant_oauth::{authorize_url, new_code_verifier};
use evergrant_store::StoreError;
use evergrant_store::contract::{Authorization, SessionOutcome};
use evergrant_store::vault::random_token;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use url::Url;

use crate::access::sha256;
use crate::connect::link::ReconnectLink;
use crate::input::{PathApp, PathName, Query};
use crate::pages::{self, Answers, ConnectPage, Message};
use crate::service::{Inner, Shared};

/// How long a customer may take at the provider's page.
const AUTHORIZATION_LASTS: Duration = Duration::from_secs(600);

/// 256 bits each.
const STATE_BYTES: usize = 32;
const COOKIE_BYTES: usize = 32;
/// 32 bytes in base64url.
const COOKIE_TEXT: usize = 43;
const COOKIE_MAX_AGE: u32 = 3600;

/// Pages that look into the store at a time: nobody needs a key to ask for one.
const AT_ONCE: usize = 16;
const WAIT: Duration = Duration::from_secs(2);

/// Authorizations begun in one minute by one process, in each of two ways: from a link that was made with a key, and at an install
/// page, which is open to anyone. Each is a row in the store for ten minutes.
const BEGUN_PER_MINUTE: u32 = 600;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What the flow keeps in memory: nothing per customer.
pub(crate) struct Flow {
    cookie_name: &'static str,
    cookie_attributes: &'static str,
    turns: Semaphore,
    begun_from_links: Begun,
    /// Counted apart, so that no crowd of strangers shuts out those who were sent a link.
    begun_by_anyone: Begun,
}

impl Flow {
    pub(crate) fn new(public_url: &Url) -> Self {
        // Browsers take the prefix, and `Secure`, over plain HTTP on localhost in some cases only.
        let (cookie_name, cookie_attributes) = if public_url.scheme() == "https" {
            ("__Host-evergrant", "Path=/; HttpOnly; SameSite=Lax; Secure")
        } else {
            ("evergrant_connect", "Path=/; HttpOnly; SameSite=Lax")
        };
        Self {
            cookie_name,
            cookie_attributes,
            turns: Semaphore::new(AT_ONCE),
            begun_from_links: Begun::new(),
            begun_by_anyone: Begun::new(),
        }
    }

    async fn turn(&self) -> Result<SemaphorePermit<'_>, Message> {
        match tokio::time::timeout(WAIT, self.turns.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(Message::busy()),
        }
    }

    /// The values of our cookie that the browser sent.
    fn cookies<'a>(&'a self, headers: &'a HeaderMap) -> impl Iterator<Item = &'a str> {
        headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().strip_prefix(self.cookie_name)?.strip_prefix('='))
            .filter(|value| value.len() == COOKIE_TEXT)
    }

    /// Sets the cookie, unless the browser has one: two tabs share it.
    fn give_cookie(&self, headers: &HeaderMap, response: &mut Response) {
        if self.cookies(headers).next().is_none() {
            let value = random_token(COOKIE_BYTES);
            let cookie = format!(
                "{}={value}; {}; Max-Age={COOKIE_MAX_AGE}",
                self.cookie_name, self.cookie_attributes
            );
            let mut cookie = HeaderValue::from_str(&cookie).expect("a cookie of ours is ASCII");
            cookie.set_sensitive(true);
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
    }
}

/// How many began in the minute that began then.
struct Begun(Mutex<(Instant, u32)>);

impl Begun {
    fn new() -> Self {
        Self(Mutex::new((Instant::now(), 0)))
    }

    fn one_more(&self) -> Result<(), Message> {
        let mut begun = self.0.lock();
        if begun.0.elapsed() >= Duration::from_secs(60) {
            *begun = (Instant::now(), 0);
        }
        begun.1 += 1;
        if begun.1 <= BEGUN_PER_MINUTE {
            Ok(())
        } else {
            Err(Message::busy())
        }
    }
}

/// What a link asks for, once it is known to be good.
struct Wanted {
    app: Arc<App>,
    customer: Customer,
    /// Where there is one for this customer to know.
    shown_customer: Option<String>,
    session: Option<String>,
    connection: Option<ConnectionId>,
    /// The account to be restored.
    account: Option<String>,
    /// Whether its grant is gone.
    has_lost_access: bool,
    /// A narrower wish than the app's scopes; empty for all of them.
    scopes: Vec<String>,
    /// What the connection to be restored was granted before.
    granted: Vec<String>,
    return_url: Option<String>,
}

impl Wanted {
    /// Whether nobody with a key asked for it.
    fn is_public_install(&self) -> bool {
        self.session.is_none() && self.connection.is_none()
    }
}

/// What an authorization is looked up by. A cookie of ours has one length only, so no other pair reads the same.
fn state_hash(state: &str, cookie: &str) -> [u8; 32] {
    sha256(format!("{state}{cookie}").as_bytes())
}

/// The page of a connect session or reconnect link.
///
/// Opening it spends nothing.
#[utoipa::path(
    get, path = "/connect/{session}", operation_id = "openConnectPage", tag = "pages", security(()),
    params(("session" = String, Path, description = "A connect session, or a reconnect link.")),
    responses((status = 200, description = "The page.", content_type = "text/html", body = String), Answers)
)]
pub(crate) async fn open(
    State(shared): State<Shared>,
    headers: HeaderMap,
    PathName(name): PathName,
) -> Result<Response, Message> {
    let wanted = wanted(&shared, &name).await?;
    Ok(offer(&shared, &headers, &wanted, format!("/connect/{name}")))
}

/// The page's form: on to the provider.
#[utoipa::path(
    post, path = "/connect/{session}", operation_id = "beginConsent", tag = "pages", security(()),
    params(("session" = String, Path, description = "A connect session, or a reconnect link.")),
    responses((status = 303), Answers)
)]
pub(crate) async fn begin(
    State(shared): State<Shared>,
    headers: HeaderMap,
    PathName(name): PathName,
) -> Result<Response, Message> {
    let wanted = wanted(&shared, &name).await?;
    send_to_provider(&shared, &headers, wanted).await
}

/// The page of an app that anyone may install, for a marketplace's and other saved links.
#[utoipa::path(
    get, path = "/install/{app}", operation_id = "openInstallPage", tag = "pages", security(()),
    params(
        ("app" = String, Path),
        ("returnUrl" = Option<String>, Query, description = "Where HubSpot's marketplace wants its visitor back."),
    ),
    responses((status = 200, description = "The page.", content_type = "text/html", body = String), Answers)
)]
pub(crate) async fn install(
    State(shared): State<Shared>,
    headers: HeaderMap,
    PathApp(app): PathApp,
    query: Query,
) -> Result<Response, Message> {
    let wanted = installation(&shared, &app, query)?;
    let mut action = format!("/install/{app}");
    if let Some(url) = &wanted.return_url {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("returnUrl", url)
            .finish();
        action = format!("{action}?{query}");
    }
    Ok(offer(&shared, &headers, &wanted, action))
}

/// The form of the install page: on to the provider.
#[utoipa::path(
    post, path = "/install/{app}", operation_id = "beginInstall", tag = "pages", security(()),
    params(
        ("app" = String, Path),
        ("returnUrl" = Option<String>, Query, description = "Where HubSpot's marketplace wants its visitor back."),
    ),
    responses((status = 303), Answers)
)]
pub(crate) async fn begin_install(
    State(shared): State<Shared>,
    headers: HeaderMap,
    PathApp(app): PathApp,
    query: Query,
) -> Result<Response, Message> {
    let wanted = installation(&shared, &app, query)?;
    send_to_provider(&shared, &headers, wanted).await
}

async fn wanted(shared: &Inner, name: &str) -> Result<Wanted, Message> {
    let _turn = shared.flow.turn().await?;
    if ReconnectLink::is_one(name) {
        restoration(shared, name).await
    } else {
        of_session(shared, name).await
    }
}

async fn of_session(shared: &Inner, id: &str) -> Result<Wanted, Message> {
    let store = shared.keeper().store();
    let session = store
        .session(id)
        .await
        .map_err(unavailable)?
        .ok_or_else(Message::dead_link)?;
    if let SessionOutcome::Connected(_) = session.outcome {
        return Err(Message::already_connected(
            shared.keeper().app(&session.app).as_deref(),
        ));
    }
    if session.expires_at <= shared.now() {
        return Err(Message::dead_link());
    }
    let app = shared
        .keeper()
        .app(&session.app)
        .ok_or_else(|| setup_is_wrong(&session.app))?;
    let connection = match &session.connection {
        Some(id) => store.connection(id).await.map_err(unavailable)?,
        None => None,
    };
    Ok(Wanted {
        app,
        shown_customer: Some(session.customer.to_string()),
        customer: session.customer,
        session: Some(session.id),
        connection: session.connection,
        account: connection.as_ref().and_then(account_of),
        has_lost_access: connection.as_ref().is_some_and(has_lost_access),
        scopes: session.scopes,
        granted: connection.as_ref().map(granted).unwrap_or_default(),
        return_url: session.return_url,
    })
}

async fn restoration(shared: &Inner, text: &str) -> Result<Wanted, Message> {
    let link = ReconnectLink::read(text, shared.keeper().vault()).ok_or_else(Message::dead_link)?;
    if link.expires_at <= shared.now() {
        return Err(Message::dead_link());
    }
    let connection = shared
        .keeper()
        .store()
        .connection(&link.connection)
        .await
        .map_err(unavailable)?
        .filter(can_be_restored);
    let connection = connection.ok_or_else(Message::dead_link)?;
    let app = shared
        .keeper()
        .app(&connection.app)
        .ok_or_else(|| setup_is_wrong(&connection.app))?;
    Ok(Wanted {
        app,
        shown_customer: Some(connection.customer.to_string()),
        account: account_of(&connection),
        has_lost_access: has_lost_access(&connection),
        granted: granted(&connection),
        customer: connection.customer,
        session: None,
        connection: Some(connection.id),
        scopes: Vec::new(),
        return_url: link.return_url,
    })
}

/// A link restores what is alive. A connection that its owner ended would take any account, which no link may grant.
fn can_be_restored(connection: &Connection) -> bool {
    connection.kind == Kind::OAuth && !matches!(connection.status, ConnectionStatus::Disconnected { .. })
}

fn has_lost_access(connection: &Connection) -> bool {
    !matches!(connection.status, ConnectionStatus::Active)
}

/// What a connection that lives may do already. One that has ended begins anew.
fn granted(connection: &Connection) -> Vec<String> {
    match connection.status {
        ConnectionStatus::Disconnected { .. } => Vec::new(),
        ConnectionStatus::Active | ConnectionStatus::ReconnectRequired { .. } => connection.scopes.clone(),
    }
}

fn account_of(connection: &Connection) -> Option<String> {
    let account = connection.account.as_ref()?;
    Some(match &account.domain {
        Some(domain) => format!("{domain} ({})", account.id),
        None => account.id.to_string(),
    })
}

fn installation(shared: &Inner, name: &AppName, mut query: Query) -> Result<Wanted, Message> {
    let app = shared
        .keeper()
        .app(name)
        .filter(|app| app.public_install)
        .ok_or_else(Message::dead_link)?;
    let return_url = query
        .one("returnUrl")
        .ok()
        .flatten()
        .filter(|url| is_hubspots_return_url(&app, url));
    // Nobody has told us who this is: the customer is named after the account that will be chosen, see `complete`.
    let customer = Customer::parse("install").expect("ASCII without control characters");
    Ok(Wanted {
        app,
        customer,
        shown_customer: None,
        session: None,
        connection: None,
        account: None,
        has_lost_access: false,
        scopes: Vec::new(),
        granted: Vec::new(),
        return_url,
    })
}

/// HubSpot's marketplace names where to go back to; nothing but HubSpot's own app is believed.
fn is_hubspots_return_url(app: &App, url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let is_hubspot = url.host_str().is_some_and(|host| {
        host.strip_suffix(".hubspot.com").is_some_and(|name| {
            name == "app"
                || name.strip_prefix("app-").is_some_and(|region| {
                    !region.is_empty()
                        && region
                            .bytes()
                            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
                })
        })
    });
    app.provider.dialect == Dialect::HubSpot
        && is_hubspot
        && url.scheme() == "https"
        && url.port().is_none()
        && url.username().is_empty()
        && url.password().is_none()
}

fn offer(shared: &Inner, headers: &HeaderMap, wanted: &Wanted, action: String) -> Response {
    let (new_scopes, new_optional_scopes) = new_scopes(wanted);
    let page = ConnectPage {
        new_scopes,
        new_optional_scopes,
        app: wanted.app.shown_name().to_owned(),
        customer: wanted.shown_customer.clone(),
        account: wanted.account.clone(),
        has_lost_access: wanted.has_lost_access,
        support_url: wanted.app.support_url.clone(),
        action,
    };
    let mut response = pages::answer(StatusCode::OK, &page, &form_targets(&wanted.app));
    shared.flow.give_cookie(headers, &mut response);
    response
}

/// Where the form's POST may lead. Chromium applies `form-action` to every redirect that follows, so the provider has to be
/// in it, with the hosts that the provider passes its own visitors on to.
fn form_targets(app: &App) -> String {
    let url = &app.provider.authorize_url;
    let origin = url.origin().ascii_serialization();
    match (app.provider.dialect, url.host_str()) {
        // Visitors of other regions are passed on to app-eu1.hubspot.com and its like.
        (Dialect::HubSpot, Some("app.hubspot.com")) => format!("{origin} https://*.hubspot.com"),
        (Dialect::HubSpot, _) => origin,
        // Many pass their visitors on to the login of another host, which nobody can list.
        (Dialect::Generic, _) => format!("{origin} https:"),
    }
}

async fn send_to_provider(shared: &Inner, headers: &HeaderMap, wanted: Wanted) -> Result<Response, Message> {
    if headers
        .get(FETCH_SITE)
        .is_some_and(|site| site != "same-origin" && site != "none")
    {
        return Err(Message::foreign_form());
    }
    let cookie = shared
        .flow
        .cookies(headers)
        .next()
        .ok_or_else(Message::no_cookie)?;
    if wanted.is_public_install() {
        shared.flow.begun_by_anyone.one_more()?;
    } else {
        shared.flow.begun_from_links.one_more()?;
    }
    let app = &wanted.app;
    let (scopes, optional) = scopes(app, &wanted.scopes, &wanted.granted);
    let verifier = app.provider.pkce.then(new_code_verifier);
    let state = random_token(STATE_BYTES);
    let provider = authorize_url(app, &state, &scopes, &optional, verifier.as_ref());
    let authorization = Authorization {
        state_hash: state_hash(&state, cookie),
        session: wanted.session,
        app: app.name.clone(),
        customer: wanted.customer,
        connection: wanted.connection,
        scopes: scopes.into_iter().chain(optional).collect(),
        return_url: wanted.return_url,
        code_verifier: verifier,
        expires_at: shared.now().after(AUTHORIZATION_LASTS),
    };
    shared
        .keeper()
        .store()
        .begin_authorization(authorization)
        .await
        .map_err(unavailable)?;
    Ok(see_other(provider.as_str()))
}

/// What is asked for as required and as optional. A narrower wish keeps each scope where the app has it, and adds what was granted
/// before: a consent replaces the one before it as a whole, so who asks for the difference alone would lose the rest.
fn scopes(app: &App, wish: &[String], granted: &[String]) -> (Vec<String>, Vec<String>) {
    let asked = |scopes: &[String]| -> Vec<String> {
        scopes
            .iter()
            .filter(|scope| wish.is_empty() || wish.contains(scope) || granted.contains(scope))
            .cloned()
            .collect()
    };
    (asked(&app.scopes), asked(&app.optional_scopes))
}

/// What a customer who has connected before is asked for beyond what was granted then.
fn new_scopes(wanted: &Wanted) -> (Vec<String>, Vec<String>) {
    if wanted.granted.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let (mut scopes, mut optional) = scopes(&wanted.app, &wanted.scopes, &wanted.granted);
    scopes.retain(|scope| !wanted.granted.contains(scope));
    optional.retain(|scope| !wanted.granted.contains(scope));
    (scopes, optional)
}

/// A redirect that turns a POST into a GET and keeps nothing of it.
fn see_other(url: &str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    // A URL that was parsed is ASCII without control characters.
    headers.insert(
        header::LOCATION,
        HeaderValue::from_str(url).expect("a parsed URL is a header value"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// Nobody but the vendor can put an app into the configuration.
fn setup_is_wrong(app: &AppName) -> Message {
    tracing::error!(event = "connect_failed", %app, "a customer has a link to an app that is not in the configuration");
    Message::failed(
        None,
        "Not available",
        "The setup of this app is not right at the moment, so nothing can be connected. This is for its vendor to mend, not for you.",
    )
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
fn unavailable(error: StoreError) -> Message {
    tracing::error!(event = "store_error", %error, "a customer's page could not be shown");
    Message::busy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_is_bound_to_the_host_wherever_browsers_allow_it() {
        let attributes = |url: &str| {
            let flow = Flow::new(&Url::parse(url).expect("a literal URL"));
            let mut response = Response::new(Body::empty());
            flow.give_cookie(&HeaderMap::new(), &mut response);
            let cookie = response.headers()[header::SET_COOKIE]
                .to_str()
                .expect("ASCII")
                .to_owned();
            let (pair, attributes) = cookie.split_once("; ").expect("attributes");
            (
                pair.split('=').next().expect("a name").to_owned(),
                attributes.to_owned(),
            )
        };
        let (name, public) = attributes("https://connect.example.com/");
        assert_eq!(name, "__Host-evergrant");
        assert_eq!(public, "Path=/; HttpOnly; SameSite=Lax; Secure; Max-Age=3600");
        let (name, local) = attributes("http://localhost:8484/");
        assert_eq!(name, "evergrant_connect");
        assert_eq!(local, "Path=/; HttpOnly; SameSite=Lax; Max-Age=3600");
    }

    #[test]
    fn a_browser_that_has_the_cookie_keeps_it() {
        let flow = Flow::new(&Url::parse("http://localhost:8484/").expect("a literal URL"));
        let value = random_token(COOKIE_BYTES);
        let mut headers = HeaderMap::new();
        headers.insert(
            header::COOKIE,
            HeaderValue::from_str(&format!(
                "a=b; evergrant_connect={value}; evergrant_connect=short"
            ))
            .expect("ASCII"),
        );
        assert_eq!(flow.cookies(&headers).collect::<Vec<_>>(), [value]);
        let mut response = Response::new(Body::empty());
        flow.give_cookie(&headers, &mut response);
        assert!(response.headers().is_empty());
    }
}
