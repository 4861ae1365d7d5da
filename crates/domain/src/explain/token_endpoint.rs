//! What a token endpoint's answer means: the refusal of a grant, of a code, or of the app itself.

use super::pasted::Pasted;
use super::{Explanation, bare, correlation_id, documentation, own_words};
use crate::app::Dialect;
use crate::token_answer::{self, Failure, RawAnswer, TokenAnswer};

/// Codes that only a token endpoint answers with.
const CODES: [&str; 15] = [
    "BAD_REFRESH_TOKEN",
    "BAD_HUB",
    "BAD_CLIENT_ID",
    "BAD_CLIENT_SECRET",
    "BAD_AUTH_CODE",
    "EXPIRED_AUTH_CODE",
    "BAD_CODE_VERIFIER",
    "BAD_GRANT_TYPE",
    "BAD_SCOPES",
    "MISMATCH_REDIRECT_URI_AUTH_CODE",
    "MISMATCH_REFRESH_TOKEN_CLIENT",
    "invalid_grant",
    "invalid_client",
    "unauthorized_client",
    "unsupported_grant_type",
];

/// The code of a token endpoint that is in the text, as a member of an error or as a word.
pub(super) fn code<'a>(pasted: &'a Pasted<'_>) -> Option<&'a str> {
    in_body(pasted).or_else(|| {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        pasted
            .text()
            .split(|c| !is_part(c))
            .find(|word| CODES.contains(word))
    })
}

fn in_body<'a>(pasted: &'a Pasted<'_>) -> Option<&'a str> {
    ["status", "error"]
        .into_iter()
        .filter_map(|member| pasted.said(member))
        .find(|word| CODES.contains(word))
        .or_else(|| {
            // Words that are a token endpoint's where they are explained as RFC 6749 has it.
            let error = pasted.said("error")?;
            pasted.said("error_description")?;
            ["invalid_request", "invalid_scope"]
                .contains(&error)
                .then_some(error)
        })
}

/// What such an answer means.
pub(super) fn explain(pasted: &Pasted<'_>, code: &str) -> Explanation {
    let bytes = match pasted.body() {
        Some(body) if in_body(pasted).is_some() => body.to_string(),
        _ => serde_json::json!({ "status": code, "error": code }).to_string(),
    };
    // A code without its status is read as the refusal that it is.
    let read = token_answer::read(
        RawAnswer {
            status: pasted.status().unwrap_or(400),
            retry_after: pasted.retry_after(),
            body: bytes.as_bytes(),
        },
        Dialect::HubSpot,
        "hub_id",
    );
    let (problem, cause, action, failure) = match read {
        TokenAnswer::GrantRefused(failure) => (
            "reconnect_required",
            "The provider refuses the refresh token. Most likely the app was uninstalled, the grant revoked, or the account deleted; it may also be an older copy of a token that was replaced.",
            "Send the customer through consent again (a reconnect link). If it happens to many at once, look for two programs that redeem the same refresh tokens.",
            failure,
        ),
        TokenAnswer::WrongClient(failure) => (
            "reconnect_required",
            "The refresh token was issued to another client id than the one that presents it.",
            "Check which app the connection belongs to, in which environment; then let the customer consent to the right one.",
            failure,
        ),
        TokenAnswer::ClientRefused(failure) => (
            "app_credentials_rejected",
            "The provider refuses the app's client id or secret. No customer's grant is lost.",
            "Correct client id and secret in the configuration, and ask the provider whether they are right: evergrant apps check APP.",
            failure,
        ),
        TokenAnswer::CodeRefused(failure) => (
            "code_refused",
            "The provider refuses the authorization code: it was used, has expired, or belongs to another redirect URI or verifier.",
            "Begin the consent again. If it always happens, compare the redirect URI with the registered one, letter by letter.",
            failure,
        ),
        TokenAnswer::NotIssued(failure) => (
            "provider_unavailable",
            "The token endpoint issued nothing and asks to wait.",
            "Wait; the token at hand goes on serving until it ends.",
            failure,
        ),
        TokenAnswer::Lost(failure) => (
            "provider_unavailable",
            "The token endpoint failed, and nobody can tell whether it issued a token set before it did.",
            "Wait. Evergrant looks whether the old refresh token still lives before it is presented again.",
            failure,
        ),
        TokenAnswer::EndpointFault(failure) => (
            "provider_unavailable",
            "The token endpoint refuses the request itself. It says nothing about the grant.",
            "Compare the endpoint's URL and version, and the parameters, with the provider's documentation.",
            failure,
        ),
        TokenAnswer::Issued(_) => (
            "provider_unavailable",
            "The answer holds both a token set and an error.",
            "Look at the answer as a whole: the error counts.",
            Failure::without_answer(code),
        ),
    };
    Explanation {
        problem: Some(problem.to_owned()),
        cause: cause.to_owned(),
        // It is what a refresh was answered with.
        refresh_helps: false,
        action: action.to_owned(),
        status: pasted.status(),
        code: Some(code.to_owned()),
        retry_after: failure.retry_after,
        correlation_id: correlation_id(pasted),
        documentation_url: documentation::OAUTH,
        ..bare(own_words::class_of(problem))
    }
}
