//! Which page or form a request is for, and what all pages share.

mod apps;
mod connection;
mod connections;
mod diagnosis;
mod overview;
mod webhooks;

use askama::Template;
use http::{Method, StatusCode};
use jiff::Timestamp;

use crate::api::{Api, Refused};
use crate::assets::{SCRIPT, STYLE};
use crate::notice::Notice;

/// What a reader may do beyond reading. The API decides; a page offers no more than this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Reads, refreshes, restores, exports.
    Support,
    /// Everything.
    Admin,
}

/// Who looks at a page, and when.
#[derive(Debug, Clone)]
pub struct Visitor<'a> {
    /// The name of the key that logged in.
    pub key: &'a str,
    /// What it may do.
    pub rights: Rights,
    /// What every form has to bring along.
    pub form_token: &'a str,
    /// The service's clock.
    pub now: Timestamp,
    /// What the form before this page did.
    pub notice: Option<Notice>,
}

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// GET for pages, POST for forms.
    pub method: Method,
    /// Behind `/dashboard`: empty, or beginning with a slash.
    pub path: &'a str,
    /// As it came.
    pub query: Option<&'a str>,
}

/// What to answer.
#[derive(Debug)]
pub enum Reply {
    /// A page.
    Page {
        /// Its status.
        status: StatusCode,
        /// The whole of it.
        html: String,
    },
    /// Another page, which says what was done.
    GoTo {
        /// A path of this dashboard.
        location: String,
        /// What was done.
        notice: Notice,
    },
    /// A file to keep.
    File {
        /// What it is to be called; letters, digits, `.`, `_`, `~`, `-`.
        name: String,
        /// JSON.
        body: String,
    },
    /// The path has no such method.
    MethodNotAllowed,
}

/// Answers a request of somebody who has logged in.
pub async fn answer(api: &impl Api, visitor: Visitor<'_>, request: Request<'_>) -> Reply {
    let segments: Vec<&str> = request.path.split('/').filter(|part| !part.is_empty()).collect();
    let is_read = matches!(request.method, Method::GET | Method::HEAD);
    let is_form = request.method == Method::POST;
    let query = Query::parse(request.query);
    match segments.as_slice() {
        [] if is_read => overview::page(api, &visitor).await,
        ["connections"] if is_read => connections::page(api, &visitor, &query).await,
        ["diagnosis"] if is_read => diagnosis::page(api, &visitor, &query).await,
        ["apps"] if is_read => apps::page(api, &visitor).await,
        ["webhooks"] if is_read => webhooks::page(api, &visitor, &query).await,
        ["webhooks", id, "resend"] if is_form && is_plain(id) => webhooks::resend(api, id).await,
        ["apps", name, "check"] if is_form && is_plain(name) => apps::check(api, name).await,
        ["connections", id, rest @ ..] if is_plain(id) => match rest {
            [] if is_read => connection::page(api, &visitor, id, &query, false).await,
            ["diagnosis"] if is_read => connection::page(api, &visitor, id, &query, true).await,
            ["disconnect"] if is_read => connection::ask_before_disconnecting(api, &visitor, id).await,
            ["disconnect"] if is_form => connection::disconnect(api, id).await,
            ["refresh"] if is_form => connection::refresh(api, id).await,
            ["export"] if is_read => connection::export(api, &visitor, id).await,
            [] | ["diagnosis" | "disconnect" | "refresh" | "export"] => Reply::MethodNotAllowed,
            _ => not_found(&visitor),
        },
        [] | ["connections" | "diagnosis" | "apps" | "webhooks"] => Reply::MethodNotAllowed,
        _ => not_found(&visitor),
    }
}

/// What ids and names are made of. Anything else in their place is nobody's.
fn is_plain(text: &str) -> bool {
    !matches!(text, "." | "..")
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'~' | b'-'))
}

/// The query of a page. What nobody asks for is let be: a link from elsewhere may carry more.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: Option<&str>) -> Self {
        Self(
            url::form_urlencoded::parse(query.unwrap_or_default().as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// A parameter that says something.
    pub(crate) fn one(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.trim())
            .filter(|value| !value.is_empty())
    }
}

/// Writes a query: what is empty is left out.
pub(crate) fn query_of<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs.into_iter().filter(|(_, value)| !value.is_empty()));
    query.finish()
}

/// What stands around every page.
pub(crate) struct Frame<'a> {
    title: String,
    section: &'static str,
    visitor: &'a Visitor<'a>,
    style: &'static str,
    script: &'static str,
    icon: &'static str,
    /// Which events make the page look again; empty where it never does.
    live: String,
    /// How often it looks again in any case, in seconds.
    every: u32,
}

impl<'a> Frame<'a> {
    fn new(visitor: &'a Visitor<'a>, section: &'static str, title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            section,
            visitor,
            style: STYLE.path(),
            script: SCRIPT.path(),
            icon: crate::assets::ICON.path(),
            live: String::new(),
            every: 0,
        }
    }

    /// The page is kept as it would be if it were opened again.
    fn live(mut self, source: impl Into<String>, every: u32) -> Self {
        self.live = source.into();
        self.every = every;
        self
    }
}

/// The page before all others.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    /// Why there is nobody, or nobody yet.
    pub message: Option<&'a str>,
    /// The page that was asked for: a path of this dashboard.
    pub next: &'a str,
}

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage<'a> {
    message: Option<&'a str>,
    next: &'a str,
    style: &'static str,
    icon: &'static str,
}

/// Writes the page that asks for a key.
pub fn login(login: Login<'_>) -> String {
    write(&LoginPage {
        message: login.message,
        next: login.next,
        style: STYLE.path(),
        icon: crate::assets::ICON.path(),
    })
}

#[derive(Template)]
#[template(path = "step_in.html")]
struct StepIn<'a> {
    location: &'a str,
    style: &'static str,
}

/// Writes a page that leads to a page of the dashboard by itself: a browser that came by a link from elsewhere shows its session
/// only to what a page of ours asks for.
pub fn step_in(location: &str) -> String {
    write(&StepIn {
        location,
        style: STYLE.path(),
    })
}

#[derive(Template)]
#[template(path = "problem.html")]
struct ProblemPage<'a> {
    frame: Frame<'a>,
    heading: &'a str,
    text: String,
    action: String,
    request_id: Option<&'a str>,
}

/// The page in place of one that cannot be shown.
pub(crate) fn problem(visitor: &Visitor<'_>, refused: &Refused) -> Reply {
    let page = ProblemPage {
        frame: Frame::new(visitor, "", refused.title.clone()),
        heading: &refused.title,
        text: crate::words::sentence(&refused.detail),
        action: crate::words::sentence(&refused.action),
        request_id: refused.request_id.as_deref(),
    };
    let status = StatusCode::from_u16(refused.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Reply::Page {
        status,
        html: write(&page),
    }
}

fn not_found(visitor: &Visitor<'_>) -> Reply {
    problem(
        visitor,
        &Refused {
            status: 404,
            title: "There is no such page".to_owned(),
            detail: "the address leads nowhere, or to what this key may not see".to_owned(),
            action: "Go on from the overview.".to_owned(),
            ..Refused::default()
        },
    )
}

fn show(page: &impl Template) -> Reply {
    Reply::Page {
        status: StatusCode::OK,
        html: write(page),
    }
}

fn write(page: &impl Template) -> String {
    page.render()
        .expect("a page is written into a string from plain data")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use futures_util::FutureExt as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::Answer;

    /// An API that has these answers, and 404 for everything else.
    #[derive(Default)]
    pub(crate) struct Fake(pub(crate) BTreeMap<String, (u16, Value)>);

    impl Fake {
        pub(crate) fn with(mut self, route: &str, status: u16, body: Value) -> Self {
            self.0.insert(route.to_owned(), (status, body));
            self
        }
    }

    impl Api for Fake {
        async fn call(&self, method: Method, path: &str, _: Option<Value>) -> Answer {
            let (status, body) = self
                .0
                .get(&format!("{method} {path}"))
                .cloned()
                .unwrap_or((404, json!({"title": "Not found", "code": "not_found"})));
            Answer {
                status: StatusCode::from_u16(status).expect("a literal status"),
                body,
            }
        }
    }

    pub(crate) fn visitor(rights: Rights) -> Visitor<'static> {
        Visitor {
            key: "the <support> team",
            rights,
            form_token: "form-token",
            now: "2026-11-24T12:00:00Z".parse().expect("a literal time"),
            notice: None,
        }
    }

    pub(crate) fn ask(api: &Fake, rights: Rights, method: Method, path: &str) -> Reply {
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path, None),
        };
        let request = Request { method, path, query };
        answer(api, visitor(rights), request)
            .now_or_never()
            .expect("the fake waits for nothing")
    }

    #[track_caller]
    pub(crate) fn html(reply: Reply, expected: u16) -> String {
        match reply {
            Reply::Page { status, html } => {
                assert_eq!(status.as_u16(), expected, "{html}");
                for forbidden in ["<style", " style=", " onclick", "javascript:", "<script>"] {
                    assert!(!html.contains(forbidden), "{forbidden}: {html}");
                }
                html
            }
            other => panic!("no page: {other:?}"),
        }
    }

    #[test]
    fn an_address_that_leads_nowhere_says_so_and_wrong_methods_are_refused() {
        let api = Fake::default();
        for path in [
            "/nowhere",
            "/connections/c1/nowhere",
            "/connections/a%2Fb",
            "/connections/../apps",
            "/apps/crm",
        ] {
            let page = html(ask(&api, Rights::Support, Method::GET, path), 404);
            assert!(page.contains("There is no such page"), "{path}");
        }
        for (method, path) in [
            (Method::POST, ""),
            (Method::POST, "/connections"),
            (Method::GET, "/connections/c1/refresh"),
            (Method::DELETE, "/connections/c1"),
            (Method::POST, "/connections/c1/export"),
        ] {
            let reply = ask(&api, Rights::Admin, method.clone(), path);
            assert!(matches!(reply, Reply::MethodNotAllowed), "{method} {path}");
        }
    }

    #[test]
    fn what_the_api_refuses_is_told_with_its_reason_and_the_way_out() {
        let api = Fake::default().with(
            "GET /v1/connections/c1",
            503,
            json!({"title": "Store unavailable", "detail": "the store <did> not answer", "action": "Try again.", "code": "store_unavailable", "request_id": "r1"}),
        );
        let page = html(ask(&api, Rights::Support, Method::GET, "/connections/c1"), 503);
        for expected in [
            "Store unavailable",
            "Try again.",
            "r1",
            "the &lt;support&gt; team",
        ] {
            assert!(
                page.contains(expected)
                    || page.contains(&expected.replace("&lt;", "&#60;").replace("&gt;", "&#62;")),
                "{expected}: {page}"
            );
        }
        assert!(!page.contains("<did>"), "{page}");
    }

    #[test]
    fn queries_are_written_without_what_is_empty() {
        assert_eq!(
            query_of([("q", "a b&c"), ("app", ""), ("sort", "x")]),
            "q=a+b%26c&sort=x"
        );
    }
}
