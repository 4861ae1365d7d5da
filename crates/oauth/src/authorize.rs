//! The way to consent: the authorize URL (RFC 6749 §4.1.1) and PKCE (RFC 7636).

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evergrant_domain::app::Dialect;
use evergrant_domain::{App, CodeVerifier};
use url::{Url, form_urlencoded};

/// Where the browser is sent for consent.
///
/// A query of the configured URL is kept (RFC 6749 §3.1); some providers want words of their own there. `optional_scopes`
/// are HubSpot's invention and asked for there alone. With a `verifier` its S256 challenge goes along.
///
/// Source: RFC 6749 §4.1.1; RFC 7636 §4.3; HubSpot, "Working with OAuth".
pub fn authorize_url(
    app: &App,
    state: &str,
    scopes: &[String],
    optional_scopes: &[String],
    verifier: Option<&CodeVerifier>,
) -> Url {
    let scope = scopes.join(" ");
    let optional_scope = optional_scopes.join(" ");
    let challenge = verifier.map(code_challenge);
    let mut parameters = vec![
        // The RFC requires it and HubSpot tolerates it: one shape for all.
        ("response_type", "code"),
        ("client_id", &app.client_id),
        ("redirect_uri", &app.redirect_uri),
    ];
    if !scope.is_empty() {
        parameters.push(("scope", &scope));
    }
    if !optional_scope.is_empty() && app.provider.dialect == Dialect::HubSpot {
        // Singular, although HubSpot's guide says otherwise in its prose.
        parameters.push(("optional_scope", &optional_scope));
    }
    parameters.push(("state", state));
    if let Some(challenge) = &challenge {
        parameters.push(("code_challenge", challenge));
        parameters.push(("code_challenge_method", "S256"));
    }

    let mut url = app.provider.authorize_url.clone();
    let kept = url.query().filter(|query| !query.is_empty()).map(str::to_owned);
    let added = parameters
        .into_iter()
        .map(|(name, value)| format!("{name}={}", escape(value)));
    let query: Vec<String> = kept.into_iter().chain(added).collect();
    url.set_query(Some(&query.join("&")));
    url.set_fragment(None);
    url
}

/// A fresh code verifier: 43 letters that stand for 32 random bytes, as RFC 7636 §4.1 advises.
///
/// # Panics
///
/// Where the system has no random numbers to give.
pub fn new_code_verifier() -> CodeVerifier {
    CodeVerifier::new(crate::random_secret())
}

/// S256 (RFC 7636 §4.2).
fn code_challenge(verifier: &CodeVerifier) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.expose().as_bytes()))
}

/// Form encoding, but a space is `%20`: a `+` in a URL is a space to some readers and a plus to others.
fn escape(value: &str) -> String {
    form_urlencoded::byte_serialize(value.as_bytes())
        .collect::<String>()
        .replace('+', "%20")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::tests::app;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn hubspot_is_asked_for_scopes_and_optional_scopes_apart() {
        let url = authorize_url(
            &app(),
            "st+te/1",
            &words(&["oauth", "crm.objects.contacts.read"]),
            &words(&["tickets", "e-commerce"]),
            None,
        );
        assert_eq!(
            url.as_str(),
            "https://app.hubspot.com/oauth/authorize?response_type=code&client_id=client-1\
             &redirect_uri=http%3A%2F%2Flocalhost%3A8484%2Foauth%2Fcallback\
             &scope=oauth%20crm.objects.contacts.read&optional_scope=tickets%20e-commerce&state=st%2Bte%2F1"
        );
    }

    #[test]
    fn other_providers_get_the_rfcs_parameters_beside_their_own() {
        let mut app = app();
        app.provider.dialect = Dialect::Generic;
        app.provider.authorize_url =
            Url::parse("https://as.example.com/authorize?access_type=offline#top").unwrap();
        let verifier = CodeVerifier::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        let url = authorize_url(&app, "s", &words(&["a"]), &words(&["b"]), Some(&verifier));
        assert_eq!(
            url.as_str(),
            "https://as.example.com/authorize?access_type=offline&response_type=code&client_id=client-1\
             &redirect_uri=http%3A%2F%2Flocalhost%3A8484%2Foauth%2Fcallback&scope=a&state=s\
             &code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM&code_challenge_method=S256"
        );
    }

    #[test]
    fn no_scope_is_named_where_none_is_wanted() {
        let url = authorize_url(&app(), "s", &[], &[], None);
        assert!(!url.as_str().contains("scope"), "{url}");
    }

    #[test]
    fn the_challenge_is_that_of_rfc_7636_appendix_b() {
        let verifier = CodeVerifier::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        assert_eq!(
            code_challenge(&verifier),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
        );
    }

    #[test]
    fn each_code_verifier_is_new_and_within_the_rfcs_alphabet() {
        let (one, other) = (new_code_verifier(), new_code_verifier());
        assert_ne!(one.expose(), other.expose());
        assert_eq!(one.expose().len(), 43);
        assert!(
            one.expose()
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
        );
    }
}
