//! Finds in a pasted text what can be judged: a status, headers, and the error that a provider or Evergrant wrote.
//!
//! Texts come from everywhere: whole HTTP answers, what `curl -v` shows, exceptions as clients of many languages print them,
//! lines of logs, JSON inside of JSON, bodies cut off in the middle. What is JSON is read as JSON; what merely looks like it
//! (a Python dict, a Ruby hash, an object as Node prints it, half a body) is searched for the few members that matter.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::strict_json;

/// A text, and what was found in it.
pub(super) struct Pasted<'a> {
    text: &'a str,
    /// The same in lower case; ASCII alone, so that places are the same.
    lower: String,
    status: Option<u16>,
    body: Option<Value>,
}

/// Enough for any answer worth reading; of a longer text only its ends are looked at.
const TEXT_MAX: usize = 256 * 1024;

/// The text; where it is longer than is read at once, its beginning and its end, which may overlap.
pub(super) fn ends(text: &str) -> [Option<&str>; 2] {
    if text.len() <= TEXT_MAX {
        return [Some(text), None];
    }
    let last = text.get(ceil(text, text.len() - TEXT_MAX)..);
    [text.get(..floor(text, TEXT_MAX)), last]
}

impl<'a> Pasted<'a> {
    pub(super) fn read(text: &'a str) -> Self {
        let lower = text.to_ascii_lowercase();
        let body = find_body(text);
        let status = find_status(&lower).or_else(|| body.as_ref().and_then(status_in));
        Self {
            text,
            lower,
            status,
            body,
        }
    }

    pub(super) fn text(&self) -> &'a str {
        self.text
    }

    /// In lower case.
    pub(super) fn lower(&self) -> &str {
        &self.lower
    }

    /// The HTTP status that is written somewhere.
    pub(super) fn status(&self) -> Option<u16> {
        self.status
    }

    /// The error, as an object.
    pub(super) fn body(&self) -> Option<&Value> {
        self.body.as_ref()
    }

    /// A member of the error that is a text.
    pub(super) fn said(&self, member: &str) -> Option<&str> {
        self.body.as_ref()?.get(member)?.as_str()
    }

    /// Whether a token endpoint issued tokens with it.
    pub(super) fn is_token_set(&self) -> bool {
        const MEMBERS: [&str; 2] = ["expires_in", "token_type"];
        self.body.is_none()
            && self.status.is_none_or(|status| status < 300)
            && self.text.contains("\"access_token\"")
            && MEMBERS.iter().any(|name| self.text.contains(name))
    }

    /// Whether it is a page for a browser: of an edge or a proxy, no API writes one.
    pub(super) fn is_page(&self) -> bool {
        ["<html", "<!doctype html", "<title>"]
            .iter()
            .any(|tag| self.lower.contains(tag))
    }

    /// The value of a header, wherever it is written as `name: value`, in whatever quotes and arrows.
    pub(super) fn header(&self, name: &str) -> Option<&'a str> {
        self.lower.match_indices(name).find_map(|(at, _)| {
            if self.lower[..at].ends_with(is_part_of_a_name) {
                return None;
            }
            let rest = self.text.get(at + name.len()..)?;
            let value = after_separator(rest)?.trim_start_matches([' ', '"', '\'', '[', '\\']);
            value
                .lines()
                .next()
                .map(str::trim)
                .filter(|value| !value.is_empty())
        })
    }

    /// How long the answer asks to wait: in seconds, or as a date beside its own.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let value = self.header("retry-after")?;
        let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
        if let Ok(seconds) = digits.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let (until, now) = (date_in(value)?, date_in(self.header("date")?)?);
        until.duration_since(now).ok()
    }

    /// A value that is written beside a name, in a line of a log or in what a language prints of an object.
    pub(super) fn member(&self, name: &'static str, is_value: impl Fn(&str) -> bool) -> Option<&'a str> {
        members(self.text, name).find(|value| is_value(value))
    }
}

/// A date of HTTP (RFC 9110 §5.6.7) at the beginning.
fn date_in(value: &str) -> Option<std::time::SystemTime> {
    const LENGTH: usize = "Sun, 06 Nov 1994 08:49:37 GMT".len();
    httpdate::parse_http_date(value.get(..LENGTH)?).ok()
}

/// The status: the number of three digits that most clearly says to be one. What failed counts before what succeeded, a status
/// line before words around a number, and the last of several status lines: those before it are of proxies and redirects.
fn find_status(lower: &str) -> Option<u16> {
    let bytes = lower.as_bytes();
    let is_word = |at: Option<&u8>| at.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'.');
    let mut best: Option<(bool, u8, u16)> = None;
    for start in 0..bytes.len().saturating_sub(2) {
        let digits = &bytes[start..start + 3];
        if !digits.iter().all(u8::is_ascii_digit)
            || (start > 0 && is_word(bytes.get(start - 1)))
            || is_word(bytes.get(start + 3))
        {
            continue;
        }
        let Some(status) = lower[start..start + 3]
            .parse()
            .ok()
            .filter(|status| (100..600).contains(status))
        else {
            continue;
        };
        let clearness = clearness(lower, start);
        let found = (status >= 400, clearness, status);
        let is_better = best.is_none_or(|best| {
            let (new, old) = ((found.0, found.1), (best.0, best.1));
            new > old || (new == old && clearness == STATUS_LINE)
        });
        if clearness > 0 && is_better {
            best = Some(found);
        }
    }
    best.map(|(_, _, status)| status)
}

/// The number stands in a status line, or where a log has the status of one.
const STATUS_LINE: u8 = 3;

/// How clearly what is around the number at `start` says that it is a status; 0 where nothing does.
fn clearness(lower: &str, start: usize) -> u8 {
    const NAMES: [&str; 12] = [
        "http-code",
        "status code",
        "statuscode",
        "status_code",
        "http status",
        "status",
        "code",
        "resulted in a",
        "http error",
        "returned",
        "returned error",
        "http",
    ];
    const PHRASES: [&str; 14] = [
        "unauthorized",
        "forbidden",
        "too many requests",
        "bad request",
        "not found",
        "conflict",
        "locked",
        "migration in progress",
        "failed dependency",
        "bad gateway",
        "service unavailable",
        "gateway time",
        "internal server",
        "client error",
    ];
    let before = &lower[ceil(lower, start.saturating_sub(32))..start];
    let after = &lower[start + 3..floor(lower, start + 36)];
    let spaced = before.trim_end_matches([' ', '"']);
    let is_status_line = before.len() > spaced.len()
        && spaced.rsplit_once("http/").is_some_and(|(_, version)| {
            version.starts_with(|c: char| c.is_ascii_digit())
                && version.len() <= 3
                && version.chars().all(|c| c.is_ascii_digit() || c == '.')
        });
    if is_status_line {
        return STATUS_LINE;
    }
    let words = before.trim_end_matches([' ', '"', '\'', ':', '=', '>', '(', '[', '`', '\\']);
    let names_it = NAMES.iter().any(|name| words.ends_with(name));
    // The code that a program ended with is none of HTTP.
    if names_it && words.len() < before.len() && !words.contains("exit") {
        return 2;
    }
    let in_brackets = [(b'(', b')'), (b'[', b']')].iter().any(|(open, close)| {
        let bytes = lower.as_bytes();
        let opens = start > 0 && bytes[start - 1] == *open && bytes.get(start + 3) == Some(close);
        // A line of a file, as PHP writes it.
        opens && !lower[..start - 1].ends_with(|c: char| c.is_ascii_alphanumeric())
    });
    let after = after.trim_start_matches([' ', ':', '-', '`', '"', '\'', ')', '(']);
    // "Error 401", in languages that people log in.
    let is_an_error = ["error", "fehler", "erreur"]
        .iter()
        .any(|name| words.ends_with(name))
        && words.len() < before.len()
        && lower.as_bytes()[start] >= b'4';
    u8::from(
        in_brackets
            || is_an_error
            || PHRASES.iter().any(|phrase| after.starts_with(phrase))
            || after.starts_with("server error"),
    )
}

/// Members by which an error body is known.
const KNOWN: [&str; 7] = [
    "category",
    "message",
    "error",
    "status",
    "correlationId",
    "errorType",
    "type",
];
/// Members of which one alone makes an object an error.
const DECISIVE: [&str; 3] = ["category", "error", "errorType"];
/// How deep objects and texts with objects in them are looked into.
const DEPTH_MAX: u32 = 4;

/// The error: what is JSON first, and where that says nothing decisive, what is written like members of one.
fn find_body(text: &str) -> Option<Value> {
    let found = find_json(text, 0).or_else(|| {
        // A body inside a quoted text of a line of a log.
        text.contains("\\\"")
            .then(|| text.replace("\\\"", "\""))
            .and_then(|text| find_json(&text, 0))
    });
    if found.as_ref().is_some_and(is_decisive) {
        return found;
    }
    let loose = loose_body(text);
    match (found, loose) {
        (Some(Value::Object(mut found)), Some(loose)) => {
            for (name, value) in loose {
                // A status in words says more than the number, which is looked for elsewhere.
                if !found.get(&name).is_some_and(Value::is_string) || name == "status" {
                    found.insert(name, value);
                }
            }
            Some(Value::Object(found))
        }
        (found, loose) => found.or(loose.map(Value::Object)),
    }
}

/// The first object in the text that is decidedly an error, or else the first that looks like one.
fn find_json(text: &str, depth: u32) -> Option<Value> {
    // Each brace is one try, and each that fails may have read on to the end.
    const FAILURES_MAX: usize = 96;
    let mut failures = 0;
    let mut first = None;
    let mut searched_to = 0;
    for (at, _) in text.match_indices('{') {
        if at < searched_to {
            continue;
        }
        if failures == FAILURES_MAX {
            break;
        }
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        let Some(Ok(value)) = values.next() else {
            failures += 1;
            continue;
        };
        let end = at + values.byte_offset();
        searched_to = end;
        // Read once more without forgiveness: what could be read in two ways is no evidence.
        let value = strict_json::parse(&text.as_bytes()[at..end]).unwrap_or(value);
        if let Some(error) = error_in(&value, depth) {
            if is_decisive(&error) {
                return Some(error);
            }
            first.get_or_insert(error);
        }
    }
    first
}

fn error_in(value: &Value, depth: u32) -> Option<Value> {
    if depth > DEPTH_MAX {
        return None;
    }
    match value {
        // HubSpot's own: what is inside of it belongs to it, messages about single fields as well.
        Value::Object(members)
            if members.contains_key("correlationId")
                && (members.get("category").is_some_and(Value::is_string)
                    || members.get("errorType").is_some_and(Value::is_string)) =>
        {
            Some(value.clone())
        }
        Value::Object(members) => {
            let mut inner = None;
            for member in members.values() {
                if let Some(found) = error_in(member, depth + 1) {
                    if is_decisive(&found) {
                        return Some(found);
                    }
                    inner.get_or_insert(found);
                }
            }
            if is_decisive(value) {
                return Some(value.clone());
            }
            let known = KNOWN.iter().filter(|name| members.contains_key(**name)).count();
            inner.or_else(|| (known >= 2).then(|| value.clone()))
        }
        // An exception's text, or a body, inside of a line of a log.
        Value::String(text) if text.contains('{') => find_json(text, depth + 1),
        _ => None,
    }
}

fn is_decisive(value: &Value) -> bool {
    DECISIVE
        .iter()
        .any(|name| value.get(*name).is_some_and(Value::is_string))
        || value["type"]
            .as_str()
            .is_some_and(|kind| kind.starts_with("urn:evergrant:problem:"))
}

/// The members that matter, each found by its name: no more is needed of a body that is cut off or not JSON at all.
fn loose_body(text: &str) -> Option<Map<String, Value>> {
    let is_upper = |value: &str| is_made_of(value, |c| c.is_ascii_uppercase() || c == '_');
    let is_lower = |value: &str| is_made_of(value, |c| c.is_ascii_lowercase() || c == '_');
    let mut body = Map::new();
    for name in ["category", "errorType", "policyName", "status"] {
        if let Some(value) = members(text, name).find(|value| is_upper(value)) {
            body.insert(name.to_owned(), json!(value));
        }
    }
    // Words that anybody might write, `failed` or `timeout`, are left alone.
    if let Some(value) = members(text, "error").find(|value| is_lower(value) && value.contains('_')) {
        body.insert("error".to_owned(), json!(value));
    }
    if body.is_empty() {
        return None;
    }
    if let Some(value) = members(text, "correlationId").find(|value| is_id(value)) {
        body.insert("correlationId".to_owned(), json!(value));
    }
    if let Some(value) = members(text, "message").find(|value| value.contains("token")) {
        body.insert("message".to_owned(), json!(value));
    }
    let mut context = Map::new();
    for name in ["requiredGranularScopes", "requiredScopes"] {
        let scopes = list(text, name);
        if !scopes.is_empty() {
            context.insert(name.to_owned(), json!(scopes));
        }
    }
    let times = list(text, "expire time");
    if !times.is_empty() {
        context.insert("expire time".to_owned(), json!(times));
    }
    if !context.is_empty() {
        body.insert("context".to_owned(), Value::Object(context));
    }
    Some(body)
}

/// What stands beside a name: `name: 'value'`, `"name"=>"value"`, `name=value`, with or without backslashes.
fn members<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(name).filter_map(move |(at, _)| {
        if text[..at].ends_with(is_part_of_a_name) {
            return None;
        }
        let value = after_separator(&text[at + name.len()..])?.trim_start_matches([' ', '\\']);
        let quote = value.chars().next()?;
        if matches!(quote, '"' | '\'' | '`') {
            let inside = &value[1..];
            let end = inside.find(quote).unwrap_or(inside.len());
            Some(inside[..end].trim_end_matches('\\'))
        } else {
            value
                .split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '}' | ')' | ']'))
                .next()
        }
    })
}

/// The quoted words in the brackets that follow a name.
fn list<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    const LENGTH_MAX: usize = 4096;
    let Some((_, rest)) = text.split_once(name) else {
        return Vec::new();
    };
    let Some(rest) = after_separator(rest).map(str::trim_start) else {
        return Vec::new();
    };
    let Some(inside) = rest.strip_prefix('[') else {
        return Vec::new();
    };
    let inside = &inside[..floor(inside, LENGTH_MAX)];
    let inside = inside.split(']').next().unwrap_or(inside);
    inside
        .split([',', '\n'])
        .map(|word| word.trim_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\')))
        .filter(|word| is_made_of(word, |c| c.is_ascii_alphanumeric() || ".-_:".contains(c)))
        .collect()
}

/// What follows `: `, `=` or `=>` behind a name and its quotes.
fn after_separator(rest: &str) -> Option<&str> {
    let rest = rest.trim_start_matches(['"', '\'', '\\', ' ']);
    rest.strip_prefix("=>").or_else(|| rest.strip_prefix([':', '=']))
}

fn is_part_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

fn is_made_of(value: &str, of: impl Fn(char) -> bool) -> bool {
    (2..=64).contains(&value.len()) && value.chars().all(of)
}

/// Whether it can be the id of an answer, and is no token.
pub(super) fn is_id(value: &str) -> bool {
    is_made_of(value, |c| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
    }) && !is_like_a_token(value)
}

/// Whether it has in it what tokens of HubSpot and keys of ours begin with.
pub(super) fn is_like_a_token(value: &str) -> bool {
    ["pat-", "na1-", "na2-", "eu1-", "ap1-", "evg_"]
        .iter()
        .any(|token| value.contains(token))
}

fn status_in(body: &Value) -> Option<u16> {
    ["statusCode", "status_code", "httpStatus", "status", "code"]
        .into_iter()
        .filter_map(|member| body[member].as_u64())
        .find_map(|status| {
            u16::try_from(status)
                .ok()
                .filter(|status| (100..600).contains(status))
        })
}

/// The last character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

/// The first character boundary at or after `at`.
fn ceil(text: &str, at: usize) -> usize {
    (at..=text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len())
}
