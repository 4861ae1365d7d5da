//! `/help`: pages that a team can link to for its own customers. What a word of ours means, who can do something about it, and how
//! an account is connected again.
//!
//! With `?app=NAME` a page has the app's name and the way to its support, and nothing else of it. An app that is not there is
//! answered like none: whoever tries names learns no more than the name that customers see on a consent page.

use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use evergrant_domain::api_answer::Class;
use evergrant_domain::explain::about;
use evergrant_domain::{App, AppName};
use http::StatusCode;

use crate::input::{PathName, Query};
use crate::pages;
use crate::problem::{Code, Problem, ProblemView};
use crate::service::Shared;

/// Whose page it is, for its customers.
struct Host {
    app: Option<Arc<App>>,
}

impl Host {
    /// What else is in the query is left alone: links get decorated on their way.
    fn of(shared: &Shared, mut query: Query) -> Self {
        let name = query.one("app").ok().flatten();
        let app = name
            .and_then(|name| AppName::parse(&name).ok())
            .and_then(|name| shared.keeper().app(&name));
        Self { app }
    }

    /// The name that customers know.
    fn name(&self) -> Option<&str> {
        self.app.as_deref().map(App::shown_name)
    }

    fn support_url(&self) -> Option<&str> {
        self.app.as_deref()?.support_url.as_deref()
    }

    /// A link to another of these pages.
    fn link(&self, path: &str) -> String {
        match &self.app {
            Some(app) => format!("{path}?app={}", app.name),
            None => path.to_owned(),
        }
    }
}

/// Who can do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mends {
    /// The customer, by connecting again.
    Customer,
    /// Nobody has to: it passes.
    Time,
    /// Whoever runs the app.
    Operator,
    /// There is nothing to mend.
    Nobody,
}

impl Mends {
    fn class(class: Class) -> Self {
        match class {
            Class::Ok | Class::StaleToken => Self::Nobody,
            Class::PermissionDenied => Self::Customer,
            Class::Expired | Class::RateLimited | Class::Unavailable | Class::Timeout => Self::Time,
            Class::Rejected
            | Class::RejectedAfterRefresh
            | Class::MalformedToken
            | Class::StaticRejected
            | Class::ClientError => Self::Operator,
        }
    }

    fn code(code: Code) -> Self {
        match code {
            Code::ReconnectRequired
            | Code::Disconnected
            | Code::ConnectionUnreadable
            | Code::AccountMismatch
            | Code::CodeRefused
            | Code::GrantInactive => Self::Customer,
            code if code.is_retryable() => Self::Time,
            _ => Self::Operator,
        }
    }
}

#[derive(Template)]
#[template(path = "help.html")]
struct HelpPage {
    host: Host,
    word: &'static str,
    title: &'static str,
    meaning: &'static str,
    action: &'static str,
    mends: Mends,
    status: Option<u16>,
    retryable: bool,
}

#[derive(Template)]
#[template(path = "help_reconnect.html")]
struct ReconnectPage {
    host: Host,
}

#[derive(Template)]
#[template(path = "help_index.html")]
struct IndexPage {
    host: Host,
    classes: Vec<(String, &'static str)>,
    codes: Vec<(String, &'static str)>,
}

/// All help pages. `app` names the app whose customers it is for.
#[utoipa::path(
    get, path = "/help", operation_id = "helpPages", tag = "pages", security(()), params(("app" = Option<String>, Query)),
    responses((status = 200, description = "The page.", content_type = "text/html", body = String))
)]
pub(crate) async fn index(State(shared): State<Shared>, query: Query) -> Response {
    let host = Host::of(&shared, query);
    let classes = Class::ALL.into_iter().map(|class| {
        (
            host.link(&format!("/help/{}", class.as_str())),
            about(class).title,
        )
    });
    let codes = Code::ALL.iter().map(|code| {
        (
            host.link(&format!("/help/errors/{}", code.as_str())),
            code.title(),
        )
    });
    let page = IndexPage {
        classes: classes.collect(),
        codes: codes.collect(),
        host,
    };
    pages::answer(StatusCode::OK, &page, "'none'")
}

/// How an account is connected again, for whoever owns it: verify, reconnect, confirm. `app` names the app.
#[utoipa::path(
    get, path = "/help/reconnect", operation_id = "helpReconnect", tag = "pages", security(()), params(("app" = Option<String>, Query)),
    responses((status = 200, description = "The page.", content_type = "text/html", body = String))
)]
pub(crate) async fn reconnect(State(shared): State<Shared>, query: Query) -> Response {
    let page = ReconnectPage {
        host: Host::of(&shared, query),
    };
    pages::answer(StatusCode::OK, &page, "'none'")
}

/// The page of an error code. `app` names the app whose customers it is for.
#[utoipa::path(
    get, path = "/help/errors/{code}", operation_id = "explainCode", tag = "pages", security(()),
    params(("code" = String, Path), ("app" = Option<String>, Query)),
    responses(
        (status = 200, description = "The page.", content_type = "text/html", body = String),
        (status = "default", body = ProblemView<'_>, content_type = "application/problem+json")
    )
)]
pub(crate) async fn error(State(shared): State<Shared>, PathName(word): PathName, query: Query) -> Response {
    let Some(code) = Code::from_word(&word) else {
        return Problem::new(Code::NotFound).into_response();
    };
    let page = HelpPage {
        host: Host::of(&shared, query),
        word: code.as_str(),
        title: code.title(),
        meaning: code.meaning(),
        action: code.action(),
        mends: Mends::code(code),
        status: Some(code.status().as_u16()),
        retryable: code.is_retryable(),
    };
    pages::answer(StatusCode::OK, &page, "'none'")
}

/// The page of a class of answers. `app` names the app whose customers it is for.
#[utoipa::path(
    get, path = "/help/{class}", operation_id = "explainClass", tag = "pages", security(()),
    params(("class" = String, Path), ("app" = Option<String>, Query)),
    responses(
        (status = 200, description = "The page.", content_type = "text/html", body = String),
        (status = "default", body = ProblemView<'_>, content_type = "application/problem+json")
    )
)]
pub(crate) async fn class(State(shared): State<Shared>, PathName(word): PathName, query: Query) -> Response {
    let Some(class) = Class::ALL.into_iter().find(|class| class.as_str() == word) else {
        return Problem::new(Code::NotFound).into_response();
    };
    let about = about(class);
    let page = HelpPage {
        host: Host::of(&shared, query),
        word: class.as_str(),
        title: about.title,
        meaning: about.cause,
        action: about.action,
        mends: Mends::class(class),
        status: None,
        retryable: false,
    };
    pages::answer(StatusCode::OK, &page, "'none'")
}
