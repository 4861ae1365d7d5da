//! Pages for customers and users: plain HTML without scripts, everything that comes from elsewhere escaped by its template.

use askama::Template;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use evergrant_domain::App;
use http::{HeaderName, HeaderValue, StatusCode, header};
use utoipa::IntoResponses;

use crate::problem::ProblemView;

/// How an account is connected again.
const HELP: &str = "/help/reconnect";

const STYLE: &str = include_str!("../assets/style.css");

/// What the consent page offers.
#[derive(Template)]
#[template(path = "connect.html")]
pub(crate) struct ConnectPage {
    pub(crate) app: String,
    pub(crate) customer: Option<String>,
    pub(crate) account: Option<String>,
    /// Whether the account's grant is gone, rather than to be widened or renewed.
    pub(crate) has_lost_access: bool,
    /// What is asked for that was not granted before.
    pub(crate) new_scopes: Vec<String>,
    /// The same of what the customer's account may lack.
    pub(crate) new_optional_scopes: Vec<String>,
    pub(crate) support_url: Option<String>,
    /// Where its one form goes.
    pub(crate) action: String,
}

/// What any page of the connect flow may answer instead, for the description of the API.
#[derive(IntoResponses)]
#[expect(dead_code, clippy::large_enum_variant, reason = "a description is never made")]
pub(crate) enum Answers {
    /// A page that asks to begin again: another browser, or no cookie.
    #[response(status = 403, content_type = "text/html")]
    BeginAgain(String),
    /// A page that says that the link does not work.
    #[response(status = 404, content_type = "text/html")]
    DeadLink(String),
    /// A page that asks to try again.
    #[response(status = 503, content_type = "text/html")]
    Busy(String),
    /// A problem document: the path cannot be one of ours.
    #[response(status = "default", content_type = "application/problem+json")]
    Problem(ProblemView<'static>),
}

/// One thing to say to a customer. Boxed, because most results hold none.
pub(crate) struct Message(Box<MessagePage>);

#[derive(Template)]
#[template(path = "message.html")]
struct MessagePage {
    status: StatusCode,
    heading: String,
    text: String,
    support_url: Option<String>,
    app: Option<String>,
    /// The page that says how it is done, step by step; the app's own where that is known.
    help: String,
    is_good: bool,
}

impl Message {
    fn new(status: StatusCode, heading: &str, text: impl Into<String>) -> Self {
        Self(Box::new(MessagePage {
            status,
            heading: heading.to_owned(),
            text: text.into(),
            support_url: None,
            app: None,
            help: HELP.to_owned(),
            is_good: false,
        }))
    }

    fn of_app(mut self, app: Option<&App>) -> Self {
        if let Some(app) = app {
            self.0.app = Some(app.shown_name().to_owned());
            self.0.help = format!("{HELP}?app={}", app.name);
            self.0.support_url.clone_from(&app.support_url);
        }
        self
    }

    /// It worked.
    pub(crate) fn connected(app: &App, account: Option<&str>) -> Self {
        let shown = app.shown_name();
        let text = match account {
            Some(account) => format!("{shown} is connected to {account}. You can close this page."),
            None => format!("{shown} is connected. You can close this page."),
        };
        let mut message = Self::new(StatusCode::OK, "Connected", text).of_app(Some(app));
        message.0.is_good = true;
        message
    }

    /// It did not work, and why.
    pub(crate) fn failed(app: Option<&App>, heading: &str, text: impl Into<String>) -> Self {
        Self::new(StatusCode::OK, heading, text).of_app(app)
    }

    /// The link was used for what it is for.
    pub(crate) fn already_connected(app: Option<&App>) -> Self {
        let mut message = Self::new(
            StatusCode::OK,
            "Already connected",
            "This link was used and the account is connected. There is nothing more to do.",
        )
        .of_app(app);
        message.0.is_good = true;
        message
    }

    /// Unknown, expired, used and forged links look alike.
    pub(crate) fn dead_link() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "This link does not work",
            "It has expired, was used before, or is not complete. Please ask whoever sent it to you for a new one.",
        )
    }

    /// The callback came with a state that means nothing in this browser.
    pub(crate) fn dead_answer() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "This link does not work",
            "The answer came too late, was used before, or arrived in another browser than the one you began in. For your safety nothing was connected. Please open the link that you were sent again and stay in one browser.",
        )
    }

    /// The callback came to a browser that does not have the cookie.
    pub(crate) fn other_browser() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "Please begin again",
            "The answer arrived in another browser than the one you began in, or cookies are blocked. For your safety nothing was connected. Please open the link again and stay in one browser.",
        )
    }

    /// The form came without the cookie.
    pub(crate) fn no_cookie() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "Please open the link again",
            "This page was open for too long, or cookies are blocked. Please open the link again; one cookie has to be allowed for it.",
        )
    }

    /// The form was sent by somebody else's page.
    pub(crate) fn foreign_form() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "Please open the link itself",
            "This request came from another page. For your safety nothing was done. Please open the link itself.",
        )
    }

    /// Too much at once, or the store does not answer.
    pub(crate) fn busy() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "Please try again",
            "This did not work just now. Please try again in a minute; nothing was lost.",
        )
    }

    /// The page.
    pub(crate) fn answer(&self) -> Response {
        let mut response = answer(self.0.status, &*self.0, "'none'");
        if self.0.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
        }
        response
    }
}

impl IntoResponse for Message {
    fn into_response(self) -> Response {
        self.answer()
    }
}

/// A page with the headers that keep it inert: no script, no foreign style, no frame around it, no address passed on.
/// `form_targets` is where its form may lead.
pub(crate) fn answer(status: StatusCode, page: &impl Template, form_targets: &str) -> Response {
    let (status, html) = match page.render() {
        Ok(html) => (status, html),
        Err(error) => {
            tracing::error!(%error, "a page could not be written");
            (StatusCode::INTERNAL_SERVER_ERROR, String::new())
        }
    };
    let mut response = Response::new(Body::from(html));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    let form_action = if form_targets == "'none'" {
        "'none'".to_owned()
    } else {
        format!("'self' {form_targets}")
    };
    let policy = format!(
        "default-src 'none'; style-src 'self'; form-action {form_action}; frame-ancestors 'none'; base-uri 'none'"
    );
    // The targets are origins of parsed URLs.
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_str(&policy).expect("origins are ASCII"),
    );
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(ROBOTS, HeaderValue::from_static("noindex"));
    response
}

const ROBOTS: HeaderName = HeaderName::from_static("x-robots-tag");

/// The one stylesheet.
pub(crate) async fn style() -> Response {
    let mut response = Response::new(Body::from(STYLE));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/css; charset=utf-8"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=3600"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}
