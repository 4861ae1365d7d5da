//! `/help/errors/{code}` and `/help/{class}`: what a word of ours means and what to do about it.

use askama::Template;
use axum::response::{IntoResponse, Response};
use evergrant_domain::api_answer::Class;
use evergrant_domain::explain::about;
use http::StatusCode;

use crate::input::PathName;
use crate::pages;
use crate::problem::{Code, Problem, ProblemView};

#[derive(Template)]
#[template(path = "help.html")]
struct HelpPage {
    word: &'static str,
    title: &'static str,
    meaning: &'static str,
    action: &'static str,
    status: Option<u16>,
    retryable: bool,
}

/// The page of an error code.
#[utoipa::path(
    get, path = "/help/errors/{code}", operation_id = "explainCode", tag = "pages", security(()), params(("code" = String, Path)),
    responses(
        (status = 200, description = "The page.", content_type = "text/html", body = String),
        (status = "default", body = ProblemView<'_>, content_type = "application/problem+json")
    )
)]
pub(crate) async fn error(PathName(word): PathName) -> Response {
    let Some(code) = Code::from_word(&word) else {
        return Problem::new(Code::NotFound).into_response();
    };
    let page = HelpPage {
        word: code.as_str(),
        title: code.title(),
        meaning: code.meaning(),
        action: code.action(),
        status: Some(code.status().as_u16()),
        retryable: code.is_retryable(),
    };
    pages::answer(StatusCode::OK, &page, "'none'")
}

/// The page of a class of answers.
#[utoipa::path(
    get, path = "/help/{class}", operation_id = "explainClass", tag = "pages", security(()), params(("class" = String, Path)),
    responses(
        (status = 200, description = "The page.", content_type = "text/html", body = String),
        (status = "default", body = ProblemView<'_>, content_type = "application/problem+json")
    )
)]
pub(crate) async fn class(PathName(word): PathName) -> Response {
    let Some(class) = Class::ALL.into_iter().find(|class| class.as_str() == word) else {
        return Problem::new(Code::NotFound).into_response();
    };
    let about = about(class);
    let page = HelpPage {
        word: class.as_str(),
        title: about.title,
        meaning: about.cause,
        action: about.action,
        status: None,
        retryable: false,
    };
    pages::answer(StatusCode::OK, &page, "'none'")
}
