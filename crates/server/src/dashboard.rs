//! The operators' dashboard under `/dashboard`: who is logged in, what a form has to bring along, and how a page asks the API.
//! The pages themselves are the crate `dashboard`'s, which sees nothing but the API's answers.
//!
//! A browser shows a sealed cookie that names an API key; every request looks that key up again, as a call with the key itself
//! does, so its rights, limits, end and revocation are those of the key. Nothing is stored for a session.

mod attempts;
mod session;

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::from_fn;
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::any;
use bytes::Bytes;
use evergrant_dashboard::{Answer, Api, Asset, Login, Reply, Rights, Visitor, asset};
use evergrant_domain::access::Role;
use futures_util::StreamExt as _;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;
use url::Url;

use crate::access::{Caller, key_hash};
use crate::input::{Query, read_form};
use crate::problem::{Code, Problem};
use crate::router::observe;
use crate::service::{KeyWasValid, Shared, Visit};

pub(crate) use attempts::Attempts;
use session::Session;
pub(crate) use session::Sessions;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Nothing from elsewhere, nothing inline, no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// How often it is looked whether a stream's reader may still read. Revocations are felt within a second.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Where a login leads that asked for nothing else.
const HOME: &str = "/dashboard";
const LOGIN: &str = "/dashboard/login";
/// The longest page address that a login remembers.
const NEXT_MAX: usize = 2000;

#[derive(Clone)]
struct Door {
    shared: Shared,
    /// Everything else that the service answers.
    api: Router,
}

/// Puts the dashboard beside the API that it asks.
pub(crate) fn beside(shared: Shared, api: Router) -> Router {
    let door = Door {
        shared,
        api: api.clone(),
    };
    let pages = Router::new()
        .route("/", any(async || Redirect::to(HOME)))
        .route("/dashboard", any(serve))
        .route("/dashboard/", any(serve))
        .route("/dashboard/{*page}", any(serve))
        .layer(from_fn(observe))
        .with_state(door);
    api.merge(pages)
}

/// The API as whoever logged in meets it.
struct AsCaller<'a> {
    api: &'a Router,
    caller: &'a Caller,
    request_id: &'a str,
}

impl AsCaller<'_> {
    async fn send(&self, mut request: Request) -> Response {
        request.extensions_mut().insert(self.caller.clone());
        let response = self
            .api
            .clone()
            .oneshot(request)
            .await
            .unwrap_or_else(|never| match never {});
        match response.extensions().get::<Problem>() {
            Some(problem) => problem.write(self.request_id, crate::problem::Door::Api),
            None => response,
        }
    }
}

impl Api for AsCaller<'_> {
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let Ok(uri) = path.parse::<Uri>() else {
            return Answer {
                status: StatusCode::NOT_FOUND,
                body: Value::Null,
            };
        };
        let mut request = Request::new(
            body.as_ref()
                .map_or_else(Body::empty, |body| Body::from(body.to_string())),
        );
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        if body.is_some() {
            request
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let response = self.send(request).await;
        let status = response.status();
        let body = match response.into_body().collect().await {
            Ok(body) => serde_json::from_slice(&body.to_bytes()).unwrap_or_default(),
            Err(_) => Value::Null,
        };
        Answer { status, body }
    }
}

/// Somebody who has logged in.
struct Known {
    session: Session,
    caller: Caller,
}

async fn serve(State(door): State<Door>, request: Request) -> Response {
    let path = request.uri().path();
    if let Some(asset) = asset(path) {
        return file(asset);
    }
    let below = path.strip_prefix("/dashboard").unwrap_or_default().to_owned();
    if request.method() == Method::POST && !is_from_our_own_page(&door.shared, &request) {
        let text = "This form was sent by another page, or by a browser that does not say by which. For your safety nothing was done: open the dashboard itself and try again.";
        return login_page(StatusCode::FORBIDDEN, Some(text), HOME);
    }
    let mut response = match (below.as_str(), request.method()) {
        ("/login", &(Method::GET | Method::HEAD)) => door.ask_to_log_in(request).await,
        ("/login", &Method::POST) => door.log_in(request).await,
        ("/login" | "/logout" | "/live", method) if !is_served(&below, method) => method_not_allowed(),
        _ => door.to_who_is_known(request, &below).await,
    };
    let headers = response.headers_mut();
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

fn is_served(below: &str, method: &Method) -> bool {
    match below {
        "/logout" => *method == Method::POST,
        _ => *method == Method::GET,
    }
}

impl Door {
    /// Whose browser this is. `None` for nobody's: no cookie, one that does not open, a session that ended, a key that is gone.
    async fn known(&self, headers: &HeaderMap) -> Result<Option<Known>, Problem> {
        let shared = &self.shared;
        let Some(session) = shared.sessions.of(headers, shared.keeper().vault(), shared.now()) else {
            return Ok(None);
        };
        Ok(self
            .still_known(&session)
            .await?
            .map(|caller| Known { session, caller }))
    }

    /// The key that the session stands for, while it lives.
    async fn still_known(&self, session: &Session) -> Result<Option<Caller>, Problem> {
        if session.ends <= self.shared.now() || self.shared.sessions.has_ended(session) {
            return Ok(None);
        }
        let caller = self
            .shared
            .keys
            .by_hash(self.shared.keeper(), session.key_hash)
            .await?;
        Ok(caller.filter(|caller| caller.key_id() == Some(&session.key) && may_enter(caller)))
    }

    async fn to_who_is_known(&self, request: Request, below: &str) -> Response {
        let known = match self.known(request.headers()).await {
            Ok(Some(known)) => known,
            // A stream that is led to a page is none; the page that asked for it looks for itself.
            Ok(None) if below == "/live" => return StatusCode::UNAUTHORIZED.into_response(),
            Ok(None) => return self.send_to_login(&request),
            Err(problem) => return unavailable(&problem),
        };
        let mut response = match below {
            "/logout" => self.log_out(request, &known).await,
            "/live" => self.live(&request.into_parts().0, known).await,
            _ => self.page(request, below, &known).await,
        };
        response.extensions_mut().insert(KeyWasValid);
        response
    }

    async fn page(&self, request: Request, below: &str, known: &Known) -> Response {
        let shared = &self.shared;
        let vault = shared.keeper().vault();
        let (parts, body) = request.into_parts();
        let is_form = parts.method == Method::POST;
        if is_form {
            match read_form(&parts.headers, body)
                .await
                .map(|form| brings_the_token(form, &known.session, vault))
            {
                Ok(true) => {}
                Ok(false) => {
                    let text =
                        "This page was open since before you logged in. Nothing was done: open it again.";
                    return login_page(StatusCode::FORBIDDEN, Some(text), HOME);
                }
                Err(problem) => return problem.into_response(),
            }
        }
        // A page that looks again by itself must not take away what is meant for the one that somebody reads.
        let is_read = !is_form && parts.headers.get(FETCH_DEST).is_none_or(|to| to != "empty");
        let notice = if is_read {
            shared.sessions.notice(&parts.headers, &known.session, vault)
        } else {
            None
        };
        let had_notice = notice.is_some();
        let now = jiff::Timestamp::from_millisecond(shared.now().millis()).unwrap_or(jiff::Timestamp::MAX);
        let form_token = known.session.form_token(vault);
        let visitor = Visitor {
            key: known.caller.key_name(),
            rights: if known.caller.require(Role::Admin).is_ok() {
                Rights::Admin
            } else {
                Rights::Support
            },
            form_token: &form_token,
            now,
            notice,
        };
        let request_id = parts
            .extensions
            .get::<Visit>()
            .map(|visit| visit.request_id.clone());
        let api = AsCaller {
            api: &self.api,
            caller: &known.caller,
            request_id: request_id.as_deref().unwrap_or_default(),
        };
        let asked = evergrant_dashboard::Request {
            method: parts.method.clone(),
            path: below,
            query: parts.uri.query(),
        };
        let mut response = match evergrant_dashboard::answer(&api, visitor, asked).await {
            Reply::Page { status, html } => html_page(status, html),
            Reply::GoTo { location, notice } => {
                let mut response = see_other(&location);
                let cookie = shared.sessions.keep_notice(&notice, &known.session, vault);
                response.headers_mut().append(header::SET_COOKIE, cookie);
                response
            }
            Reply::File { name, body } => download(&name, body),
            Reply::MethodNotAllowed => method_not_allowed(),
        };
        if had_notice {
            let cookie = shared.sessions.forget_notice();
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        response
    }

    /// What happens, as it happens: the API's own stream, for as long as the session lives.
    async fn live(&self, request: &Parts, known: Known) -> Response {
        let mut asked = Request::new(Body::empty());
        let query = request.uri.query().unwrap_or_default();
        let Ok(uri) = format!("/v1/events?{query}").parse() else {
            return StatusCode::NO_CONTENT.into_response();
        };
        *asked.uri_mut() = uri;
        let headers = asked.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(id) = request.headers.get(LAST_EVENT_ID) {
            headers.insert(LAST_EVENT_ID, id.clone());
        }
        let api = AsCaller {
            api: &self.api,
            caller: &known.caller,
            request_id: "",
        };
        let stream = api.send(asked).await;
        let is_stream = stream
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        if !stream.status().is_success() || !is_stream {
            // A browser that is told this does not ask again.
            return StatusCode::NO_CONTENT.into_response();
        }
        let door = self.clone();
        let until = async move {
            loop {
                tokio::time::sleep(LOOK_AGAIN).await;
                if door.shared.is_draining() || !matches!(door.still_known(&known.session).await, Ok(Some(_)))
                {
                    break;
                }
            }
        };
        let (parts, body) = stream.into_parts();
        let hints = body
            .into_data_stream()
            .map(|frame| frame.map(|frame| as_hint(&frame)));
        let body = Body::from_stream(hints.take_until(Box::pin(until)));
        Response::from_parts(parts, body)
    }

    async fn ask_to_log_in(&self, request: Request) -> Response {
        let next = Query::parse(request.uri().query()).one("next").ok().flatten();
        let next = next.filter(|next| is_ours(next));
        let next = next.as_deref().unwrap_or(HOME);
        // Whoever was in a moment ago is told why that is over.
        let was_in = self.shared.sessions.is_shown(request.headers())
            && matches!(self.known(request.headers()).await, Ok(None));
        let text =
            "You are no longer logged in: the session has ended, or its key was revoked or has run out.";
        login_page(StatusCode::OK, was_in.then_some(text), next)
    }

    async fn log_in(&self, request: Request) -> Response {
        let shared = &self.shared;
        let (parts, body) = request.into_parts();
        let client = parts
            .extensions
            .get::<Visit>()
            .and_then(|visit| visit.peer)
            .map(|peer| crate::log::client(peer.address, &parts.headers, &shared.settings().trusted_proxies));
        let mut form = match read_form(&parts.headers, body).await {
            Ok(form) => form,
            Err(problem) => return problem.into_response(),
        };
        let next = form.one("next").ok().flatten().filter(|next| is_ours(next));
        let next = next.as_deref().unwrap_or(HOME);
        if let Some(client) = client
            && let Err(wait) = shared.login_attempts.may_try(client)
        {
            let text = "Too many keys that do not exist were tried from your address. Wait a minute.";
            let mut response = login_page(StatusCode::TOO_MANY_REQUESTS, Some(text), next);
            let seconds = HeaderValue::from(wait.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
            return response;
        }
        let key = form.one("key").ok().flatten().unwrap_or_default();
        let caller = match key_hash(key.trim()) {
            Some(hash) => match shared.keys.by_hash(shared.keeper(), hash).await {
                Ok(caller) => caller.map(|caller| (caller, hash)),
                Err(problem) => return unavailable(&problem),
            },
            None => None,
        };
        let Some((caller, key_hash)) = caller else {
            if let Some(client) = client {
                shared.login_attempts.failed(client);
            }
            let text = "There is no such key, or it has been revoked or has run out.";
            return login_page(StatusCode::UNAUTHORIZED, Some(text), next);
        };
        if !may_enter(&caller) {
            let text = "This key may not look at connections. Log in with one of the role support or admin.";
            return login_page(StatusCode::FORBIDDEN, Some(text), next);
        }
        let session = Session::begin(caller.key_id().unwrap_or_default(), key_hash, shared.now());
        tracing::info!(
            event = "dashboard_login",
            key = session.key,
            "somebody logged in to the dashboard"
        );
        let mut response = see_other(next);
        let cookie = shared.sessions.cookie(&session, shared.keeper().vault());
        response.headers_mut().append(header::SET_COOKIE, cookie);
        response
    }

    async fn log_out(&self, request: Request, known: &Known) -> Response {
        let (parts, body) = request.into_parts();
        let vault = self.shared.keeper().vault();
        match read_form(&parts.headers, body)
            .await
            .map(|form| brings_the_token(form, &known.session, vault))
        {
            Ok(true) => {}
            Ok(false) => return see_other(HOME),
            Err(problem) => return problem.into_response(),
        }
        self.shared.sessions.end(&known.session, self.shared.now());
        let mut response = see_other(LOGIN);
        for cookie in self.shared.sessions.forget() {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        response
    }

    fn send_to_login(&self, request: &Request) -> Response {
        let asked = request
            .uri()
            .path_and_query()
            .map_or(HOME, http::uri::PathAndQuery::as_str);
        let is_page = matches!(*request.method(), Method::GET | Method::HEAD);
        // A strict cookie does not come along with a link from elsewhere. One look from a page of our own and it does.
        let is_from_elsewhere = request
            .headers()
            .get(FETCH_SITE)
            .is_some_and(|site| site == "cross-site" || site == "same-site");
        if is_page && is_from_elsewhere && is_ours(asked) && !self.shared.sessions.is_shown(request.headers())
        {
            return html_page(StatusCode::OK, evergrant_dashboard::step_in(asked));
        }
        let next = if is_page && is_ours(asked) && asked != HOME {
            let query = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("next", asked)
                .finish();
            format!("{LOGIN}?{query}")
        } else {
            LOGIN.to_owned()
        };
        see_other(&next)
    }
}

/// A frame of the API's stream as the pages need it: they ask for themselves again, so it is enough that something came, and
/// after what. Events without a name are one kind to a browser.
fn as_hint(frame: &[u8]) -> Bytes {
    let mut hint = Vec::with_capacity(64);
    for line in frame.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b"data:") {
            hint.extend_from_slice(b"data: 1\n");
        } else if !line.starts_with(b"event:") {
            hint.extend_from_slice(line);
        }
    }
    hint.into()
}

/// Whether a key is of use here.
fn may_enter(caller: &Caller) -> bool {
    caller.require(Role::Support).is_ok()
}

/// Whether the form carries what only a page of this session knows.
fn brings_the_token(mut form: Query, session: &Session, vault: &evergrant_store::Vault) -> bool {
    form.one("form_token")
        .ok()
        .flatten()
        .is_some_and(|token| session.is_form_token(&token, vault))
}

/// Whether a browser says that this form stands on a page of ours. One that says nothing is not believed: all of them do.
fn is_from_our_own_page(shared: &Shared, request: &Request) -> bool {
    let headers = request.headers();
    if headers.contains_key(FETCH_SITE) {
        return crate::trace::single(headers, &FETCH_SITE).is_some_and(|site| site == "same-origin");
    }
    // Over plain HTTP on a network browsers say only this.
    let origin = crate::trace::single(headers, &header::ORIGIN)
        .and_then(|origin| Url::parse(origin.to_str().ok()?).ok());
    let Some(origin) = origin else { return false };
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => crate::trace::single(headers, &header::HOST).and_then(|host| host.to_str().ok()),
    };
    let here = host.and_then(|host| Url::parse(&format!("{}://{host}/", origin.scheme())).ok());
    origin.origin() == shared.engine.public_url().origin()
        || here.is_some_and(|here| here.origin() == origin.origin())
}

/// Whether an address is a page of this dashboard and nothing else.
fn is_ours(path: &str) -> bool {
    path.len() <= NEXT_MAX
        && path
            .strip_prefix(HOME)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']))
        && !path.contains(['\\', '#'])
        && path.bytes().all(|byte| byte.is_ascii_graphic())
}

fn login_page(status: StatusCode, message: Option<&str>, next: &str) -> Response {
    html_page(status, evergrant_dashboard::login(Login { message, next }))
}

fn unavailable(problem: &Problem) -> Response {
    let status = problem.status(crate::problem::Door::Api);
    let text = if problem.code() == Code::Overloaded {
        "Too many log in at once. Try again in a moment."
    } else {
        "The store does not answer, so nobody can be let in. Try again in a moment."
    };
    login_page(status, Some(text), HOME)
}

fn html_page(status: StatusCode, html: String) -> Response {
    let mut response = Response::new(Body::from(html));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    // Its own forms need their origin; nobody else is told where a link was.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    );
    headers.insert(
        HeaderName::from_static("x-robots-tag"),
        HeaderValue::from_static("noindex"),
    );
    inert(headers);
    response
}

/// What is served is what it says it is, and for pages of ours.
fn inert(headers: &mut HeaderMap) {
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    );
}

fn file(asset: &'static Asset) -> Response {
    let mut response = Response::new(Body::from(Bytes::from_static(asset.body.as_bytes())));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.media_type));
    // Named after its content.
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=31536000, immutable"),
    );
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    );
    inert(headers);
    response
}

fn download(name: &str, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(
        header::CONTENT_DISPOSITION,
        HeaderValue::from_str(&format!("attachment; filename=\"{name}\""))
            .expect("ids are ASCII without quotes"),
    );
    inert(headers);
    response
}

fn see_other(location: &str) -> Response {
    Redirect::to(location).into_response()
}

fn method_not_allowed() -> Response {
    StatusCode::METHOD_NOT_ALLOWED.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_told_that_something_came_and_not_what() {
        let hint = as_hint(b"id: 7\nevent: refreshed\ndata: {\"connection\":\"c1\"}\n\n");
        assert_eq!(&hint[..], b"id: 7\ndata: 1\n\n");
        assert_eq!(&as_hint(b": still here\n\n")[..], b": still here\n\n");
    }

    #[test]
    fn a_login_leads_to_pages_of_the_dashboard_only() {
        for good in [
            "/dashboard",
            "/dashboard/connections?q=a%20b&health=degraded",
            "/dashboard/connections/c1",
        ] {
            assert!(is_ours(good), "{good}");
        }
        for bad in [
            "",
            "/",
            "//evil.example",
            "https://evil.example/dashboard",
            "/dashboardx",
            "/dashboard\\..\\evil",
            "/v1/keys",
            "/dashboard/a\r\nset-cookie: a=b",
            "/dashboard/ä",
            "/dashboard#x",
        ] {
            assert!(!is_ours(bad), "{bad}");
        }
    }
}
