//! What Evergrant has said itself: in a header, in a problem document, or in a line of its log.

use super::pasted::{Pasted, is_id, is_like_a_token};
use super::{Explanation, bare, documentation};
use crate::api_answer::Class;

/// Lines of its log that stand for a problem.
const EVENTS: [(&str, &str); 5] = [
    ("reconnect_required", "reconnect_required"),
    ("record_unreadable", "connection_unreadable"),
    ("token_endpoint_at_rest", "provider_unavailable"),
    ("store_error", "store_unavailable"),
    ("app_credentials_rejected", "app_credentials_rejected"),
];

/// Codes that anybody might use.
const COMMON_WORDS: [&str; 9] = [
    "bad_request",
    "body_too_large",
    "disconnected",
    "forbidden",
    "internal",
    "method_not_allowed",
    "not_found",
    "overloaded",
    "unsupported_media_type",
];

/// The class that it named: in the header `Evergrant-Class` of an answer, or as `class` in a line of its log.
pub(super) fn class(pasted: &Pasted<'_>) -> Option<Class> {
    ["evergrant-class", "class"].into_iter().find_map(|name| {
        pasted.lower().match_indices(name).find_map(|(at, _)| {
            let before = &pasted.lower()[..at];
            let is_part_of_a_word =
                before.ends_with(|c: char| c.is_ascii_alphanumeric() || "_-.".contains(c));
            // Pages have classes, too.
            let is_in_a_tag = before.rfind('<') > before.rfind('>');
            if is_part_of_a_word || is_in_a_tag {
                return None;
            }
            let rest = pasted.lower()[at + name.len()..].trim_start_matches(['"', '\'', '\\', ' ']);
            let value = rest
                .strip_prefix([':', '='])?
                .trim_start_matches(['"', '\'', '\\', ' ', '[', '>']);
            let word = value
                .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .next()?;
            Class::ALL.into_iter().find(|class| class.as_str() == word)
        })
    })
}

/// An answer that it made says what it means, or its code does.
pub(super) fn problem(
    pasted: &Pasted<'_>,
    meaning: &impl Fn(&str) -> Option<(&'static str, &'static str)>,
) -> Option<Explanation> {
    let code = code(pasted, meaning)?;
    let is_document = pasted.said("type").is_some_and(|kind| kind.starts_with(PROBLEM));
    let said = |member: &str| pasted.said(member).filter(|_| is_document).map(sentence);
    let known = meaning(&code);
    let known = known.map(|(cause, action)| (plain(cause), plain(action)));
    Some(Explanation {
        cause: said("detail")
            .or_else(|| known.clone().map(|(cause, _)| cause))
            .or_else(|| said("title"))
            .unwrap_or_else(|| format!("Evergrant itself answered this, with the code {code}.")),
        refresh_helps: false,
        action: said("action")
            .or_else(|| known.map(|(_, action)| action))
            .unwrap_or_else(|| "Look at the page of this code.".to_owned()),
        status: pasted.status(),
        retry_after: pasted.retry_after(),
        correlation_id: pasted
            .said("provider_correlation_id")
            .filter(|id| is_id(id))
            .map(str::to_owned),
        problem: Some(code.clone()),
        documentation_url: documentation::OURS,
        ..bare(class(pasted).unwrap_or_else(|| class_of(&code)))
    })
    .map(|explanation| Explanation {
        code: Some(code),
        ..explanation
    })
}

const PROBLEM: &str = "urn:evergrant:problem:";

/// The code of an answer that Evergrant itself made.
fn code(
    pasted: &Pasted<'_>,
    meaning: &impl Fn(&str) -> Option<(&'static str, &'static str)>,
) -> Option<String> {
    let in_document = || {
        let (_, rest) = pasted.text().split_once(PROBLEM)?;
        word(rest)
    };
    let in_header = || word(pasted.header("evergrant-error")?);
    let in_a_line = || {
        let is_ours = |code: &str| meaning(code).is_some() && !COMMON_WORDS.contains(&code);
        ["code", "error", "problem"]
            .into_iter()
            .find_map(|name| pasted.member(name, is_ours))
    };
    let event = || {
        let event = pasted.member("event", |event| EVENTS.iter().any(|(known, _)| *known == event))?;
        EVENTS
            .iter()
            .find(|(known, _)| *known == event)
            .map(|(_, code)| *code)
    };
    // What the command line says.
    let in_words = || {
        pasted
            .lower()
            .contains("the connection needs reconnecting")
            .then_some("reconnect_required")
    };
    in_document()
        .or_else(in_header)
        .or_else(in_a_line)
        .or_else(event)
        .or_else(in_words)
        .map(str::to_owned)
}

/// The code at the beginning.
fn word(text: &str) -> Option<&str> {
    let word = text
        .split(|c: char| !(c.is_ascii_lowercase() || c == '_'))
        .next()?;
    (1..=64).contains(&word.len()).then_some(word)
}

/// The class that the log gives to a call that was answered with a code of Evergrant's own.
pub(super) fn class_of(code: &str) -> Class {
    match code {
        "upstream_timeout" | "outcome_unknown" => Class::Timeout,
        "upstream_unreachable"
        | "provider_unavailable"
        | "store_unavailable"
        | "overloaded"
        | "idempotency_in_progress"
        | "internal" => Class::Unavailable,
        "budget_exhausted" => Class::RateLimited,
        _ => Class::ClientError,
    }
}

/// A sentence of a problem document, without anything in it that could be a token: whoever pastes may have changed it.
fn sentence(text: &str) -> String {
    const LONGEST: usize = 500;
    const LONGEST_WORD: usize = 40;
    let text: String = text.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
    let mut follows_bearer = false;
    let text = text
        .split(' ')
        .map(|word| {
            // A path may be long, and is what is to be asked next.
            let is_too_long = word.len() > LONGEST_WORD && !word.starts_with('/');
            let is_hidden = is_too_long || follows_bearer || is_like_a_token(word) || is_random(word);
            follows_bearer = word.eq_ignore_ascii_case("bearer");
            if is_hidden { "…" } else { word }
        })
        .collect::<Vec<_>>()
        .join(" ");
    plain(&text)
}

/// Without the marks around code, which are for pages.
fn plain(text: &str) -> String {
    text.replace('`', "")
}

/// Whether a part of the word mixes digits and both cases over a length that no name has by chance.
fn is_random(word: &str) -> bool {
    const SHORTEST: usize = 12;
    word.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| {
        let has = |is: fn(&u8) -> bool| part.bytes().any(|byte| is(&byte));
        part.len() >= SHORTEST
            && has(u8::is_ascii_digit)
            && has(u8::is_ascii_uppercase)
            && has(u8::is_ascii_lowercase)
    })
}
