//! What a request says, read without guessing: JSON bodies, queries, ids in the path.
//!
//! Everything that is not as it must be is a [`Problem`] that says where. Values are never repeated in it: somebody may have
//! put a secret into the wrong place.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use evergrant_domain::{AppName, ConnectionId, Timestamp};
use http::request::Parts;
use http::{HeaderMap, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::problem::{Code, Problem};

/// The largest body of an API call. A batch of 1,000 ids is a tenth of it.
const BODY_MAX: usize = 1024 * 1024;

/// How long a caller may take to send it.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A body that must be JSON of exactly this shape.
pub(crate) struct Json<T>(pub(crate) T);

/// A body that may be missing altogether; then everything in it is as if left out.
pub(crate) struct OptionalJson<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        require_json(&parts.headers)?;
        read_json(&read(body).await?).map(Self)
    }
}

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let body = read(body).await?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        require_json(&parts.headers)?;
        read_json(&body).map(Self)
    }
}

/// The largest form of a page: a few short fields.
const FORM_MAX: usize = 16 * 1024;

/// A form that a page sent.
pub(crate) async fn read_form(headers: &HeaderMap, body: Body) -> Result<Query, Problem> {
    let declared = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or_default();
    if !declared
        .trim()
        .eq_ignore_ascii_case("application/x-www-form-urlencoded")
    {
        return Err(Problem::because(
            Code::UnsupportedMediaType,
            "a form is sent as application/x-www-form-urlencoded",
        ));
    }
    let body = read_within(body, FORM_MAX).await?;
    let text = std::str::from_utf8(&body).map_err(|_| Problem::bad_request("the form is not UTF-8"))?;
    Ok(Query::parse(Some(text)))
}

async fn read(body: Body) -> Result<bytes::Bytes, Problem> {
    read_within(body, BODY_MAX).await
}

async fn read_within(body: Body, limit: usize) -> Result<bytes::Bytes, Problem> {
    let whole = timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await;
    match whole.map_err(|_| Problem::bad_request("the body did not come in time"))? {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Problem::body_too_large(limit as u64)),
        Err(_) => Err(Problem::bad_request("the body broke off before its end")),
    }
}

/// A form or plain text is refused: those are what a browser sends across origins without asking.
fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let declared = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media_type = declared
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if media_type == "application/json"
        || (media_type.starts_with("application/") && media_type.ends_with("+json"))
    {
        Ok(())
    } else {
        Err(Problem::new(Code::UnsupportedMediaType))
    }
}

fn read_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    // serde also reads a list as a struct, member by member; nobody who sends one means that.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(Problem::bad_request("the body: expected an object"));
    }
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        Problem::bad_request(explain(&path, error.inner()))
    })?;
    deserializer
        .end()
        .map_err(|error| Problem::bad_request(explain(".", &error)))?;
    Ok(value)
}

/// What is wrong and where, without the value that is wrong.
fn explain(path: &str, error: &serde_json::Error) -> String {
    let place = if path == "." {
        "the body".to_owned()
    } else {
        format!("`{}`", clip(path))
    };
    if !error.is_data() {
        return format!(
            "the body is not JSON: it breaks at line {}, column {}",
            error.line(),
            error.column()
        );
    }
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    if message.starts_with("unknown field")
        || message.starts_with("missing field")
        || message.starts_with("duplicate field")
    {
        return format!("{place}: {}", clip(message));
    }
    match message.rsplit_once("expected ") {
        Some((_, expected)) => format!("{place}: expected {}", clip(expected)),
        None => format!("{place} is not valid"),
    }
}

fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// The connection that the path names.
pub(crate) struct PathId(pub(crate) ConnectionId);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = path_text(parts, state).await?;
        parse_id(&text).map(Self)
    }
}

/// Reads an id of a connection.
pub(crate) fn parse_id(text: &str) -> Result<ConnectionId, Problem> {
    ConnectionId::parse(text).map_err(|error| Problem::bad_request(error.to_string()))
}

/// Reads an id as it stands in a path: some clients encode a `~` that needs no encoding.
pub(crate) fn parse_id_in_path(text: &str) -> Result<ConnectionId, Problem> {
    if !text.contains('%') {
        return parse_id(text);
    }
    parse_id(&decoded(text))
}

/// Text of a path, decoded as far as it is ASCII.
pub(crate) fn decoded(text: &str) -> String {
    let mut decoded = String::with_capacity(text.len());
    let mut parts = text.split('%');
    decoded.push_str(parts.next().unwrap_or_default());
    for part in parts {
        // What decodes to anything else is in no id and no route; it becomes something that is in none either.
        let byte = part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push(byte.filter(u8::is_ascii).map_or('%', char::from));
        decoded.push_str(part.get(2..).unwrap_or_default());
    }
    decoded
}

/// The app that the path names.
pub(crate) struct PathApp(pub(crate) AppName);

impl<S: Send + Sync> FromRequestParts<S> for PathApp {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = path_text(parts, state).await?;
        AppName::parse(&text)
            .map(Self)
            .map_err(|error| Problem::bad_request(error.to_string()))
    }
}

/// Any other name in the path, such as a session's id. Bounded, so that it can be looked up.
pub(crate) struct PathName(pub(crate) String);

/// Longest of all: a reconnect link with its return URL.
const NAME_MAX: usize = 4096;

impl<S: Send + Sync> FromRequestParts<S> for PathName {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = path_text(parts, state).await?;
        if text.len() > NAME_MAX || text.chars().any(char::is_control) {
            return Err(Problem::bad_request("the id in the path is not one of ours"));
        }
        Ok(Self(text))
    }
}

async fn path_text<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<String, Problem> {
    let Path(text) = Path::<String>::from_request_parts(parts, state)
        .await
        .map_err(|_: PathRejection| Problem::bad_request("the path is not UTF-8"))?;
    Ok(text)
}

/// The query. Every parameter has to be taken before [`Query::done`]: one that nobody takes is a typing error.
pub(crate) struct Query(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::parse(parts.uri.query()))
    }
}

impl Query {
    /// Reads a query.
    pub(crate) fn parse(query: Option<&str>) -> Self {
        Self(
            url::form_urlencoded::parse(query.unwrap_or_default().as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// A parameter that may be there once.
    pub(crate) fn one(&mut self, name: &str) -> Result<Option<String>, Problem> {
        let mut values = self.all(name);
        match (values.pop(), values.is_empty()) {
            (value, true) => Ok(value),
            (_, false) => Err(Problem::bad_request(format!("`{name}` is there more than once"))),
        }
    }

    /// A parameter that may be repeated.
    pub(crate) fn all(&mut self, name: &str) -> Vec<String> {
        let mut values = Vec::new();
        self.0.retain_mut(|(key, value)| {
            if key == name {
                values.push(std::mem::take(value));
            }
            key != name
        });
        values
    }

    /// A number.
    pub(crate) fn number<T: std::str::FromStr>(
        &mut self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, Problem> {
        self.one(name)?
            .map(|text| {
                text.parse()
                    .map_err(|_| Problem::bad_request(format!("`{name}`: expected {expected}")))
            })
            .transpose()
    }

    /// Seconds.
    pub(crate) fn seconds(&mut self, name: &str) -> Result<Option<Duration>, Problem> {
        Ok(self
            .number::<u32>(name, "a number of seconds")?
            .map(|seconds| Duration::from_secs(seconds.into())))
    }

    /// A yes or no; the bare name is a yes.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        match self.one(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(_) => Err(Problem::bad_request(format!("`{name}`: expected true or false"))),
        }
    }

    /// Every value of a repeated parameter, read.
    pub(crate) fn each<T, E: std::fmt::Display>(
        &mut self,
        name: &str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>, Problem> {
        self.all(name)
            .iter()
            .map(|text| read(text).map_err(|error| Problem::bad_request(format!("`{name}`: {error}"))))
            .collect()
    }

    /// Nothing else may be left.
    pub(crate) fn done(self) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = clip(name).chars().take(64).collect();
                Err(Problem::bad_request(format!(
                    "`{name}` is no parameter of this route"
                )))
            }
        }
    }
}

/// For routes that take no query.
pub(crate) struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Query::parse(parts.uri.query()).done().map(|()| Self)
    }
}

/// A time as callers write it: RFC 3339.
pub(crate) fn parse_time(member: &str, text: &str) -> Result<Timestamp, Problem> {
    text.parse::<jiff::Timestamp>()
        .map(|time| Timestamp::from_millis(time.as_millisecond()))
        .map_err(|_| Problem::bad_request(format!("`{member}`: expected a time like 2026-11-24T16:40:00Z")))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Shape {
        #[expect(dead_code, reason = "read by serde only")]
        name: String,
        #[serde(default)]
        #[expect(dead_code, reason = "read by serde only")]
        parts: Vec<Part>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Part {
        #[expect(dead_code, reason = "read by serde only")]
        count: u32,
    }

    fn check(body: &str, says: &[&str]) {
        let problem = read_json::<Shape>(body.as_bytes()).expect_err(body);
        for part in says {
            assert!(problem.detail().contains(part), "{body}: {}", problem.detail());
        }
        assert!(!problem.detail().contains("canary"), "{}", problem.detail());
    }

    #[test]
    fn a_wrong_body_is_refused_with_the_place_and_without_the_value() {
        check("", &["not JSON", "line 1"]);
        check("{\"name\":", &["not JSON"]);
        check("{\"name\":\"a\"} x", &["not JSON", "line 1, column 14"]);
        check(r#"{"name":"a","nmae":1}"#, &["unknown field `nmae`", "`name`"]);
        check(r#"{"parts":[]}"#, &["missing field `name`"]);
        check(r#"{"name":"a","name":"b"}"#, &["duplicate field `name`"]);
        check(
            r#"{"name":"a","parts":[{"count":1},{"count":"canary"}]}"#,
            &["`parts[1].count`", "expected u32"],
        );
        check(r#"["canary"]"#, &["the body", "expected"]);
        check(
            &("[".repeat(10_000) + &"]".repeat(10_000)),
            &["the body", "expected an object"],
        );
        check(
            &format!("{{\"parts\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000)),
            &["parts"],
        );
    }

    #[test]
    fn an_id_in_a_path_is_the_same_however_it_is_encoded() {
        let read = |text: &str| parse_id_in_path(text).ok().map(|id| id.to_string());
        for text in ["a~b", "a%7Eb", "a%7eb", "%61~b"] {
            assert_eq!(read(text).as_deref(), Some("a~b"), "{text}");
        }
        for text in [
            "a%2Fb", "a%", "a%7", "a%zz", "a%C3%A4", "a%+7", "%", "a%00", "a%25b", "%ä", "a%2",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_query_parameter_that_nobody_takes_or_that_is_there_twice_is_refused() {
        let mut query = Query::parse(Some("app=a&app=b&limit=5&limt=6"));
        assert_eq!(query.all("app"), ["a", "b"]);
        assert_eq!(
            query.number::<u32>("limit", "a number").expect("one limit"),
            Some(5)
        );
        assert!(
            query
                .done()
                .expect_err("a typing error")
                .detail()
                .contains("`limt`")
        );
        let mut query = Query::parse(Some("limit=5&limit=6"));
        assert!(query.one("limit").is_err());
    }
}
