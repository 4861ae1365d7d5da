//! The way to consent: the authorize URL (RFC 6749 §4.1.1) and PKCE (RFC 7636).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evergrant_domain::app::Dialect;
use evergrant_domain::{App, CodeVerifier};
use url::Url;

/// Where the browser is sent for consent.
pub fn authorize_url(
    app: &App,
    state: &str,
    scopes: &[String],
    optional_scopes: &[String],
    verifier: Option<&CodeVerifier>,
) -> Url {
    let mut url = app.provider.authorize_url.clone();
    let mut query = url.query().map(|query| format!("{query}&")).unwrap_or_default();
    let mut add = |name: &str, value: &str| {
        if !query.is_empty() && !query.ends_with('&') {
            query.push('&');
        }
        query.push_str(name);
        query.push('=');
        // A `+` would be read as a space by some and as a plus by others; `%20` is one thing to all.
        query.push_str(
            &url::form_urlencoded::byte_serialize(value.as_bytes())
                .collect::<String>()
                .replace('+', "%20"),
        );
    };
    add("response_type", "code");
    add("client_id", &app.client_id);
    add("redirect_uri", &app.redirect_uri);
    add("scope", &scopes.join(" "));
    if app.provider.dialect == Dialect::HubSpot && !optional_scopes.is_empty() {
        add("optional_scope", &optional_scopes.join(" "));
    }
    add("state", state);
    if let Some(verifier) = verifier {
        add("code_challenge", &code_challenge(verifier));
        add("code_challenge_method", "S256");
    }
    url.set_query(Some(&query));
    url
}

/// A fresh code verifier: 32 random bytes (RFC 7636 §4.1).
///
/// # Panics
///
/// Where the system has no random numbers to give.
pub fn new_code_verifier() -> CodeVerifier {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random numbers");
    CodeVerifier::new(URL_SAFE_NO_PAD.encode(bytes))
}

/// RFC 7636 §4.2.
fn code_challenge(verifier: &CodeVerifier) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier.expose().as_bytes());
    URL_SAFE_NO_PAD.encode(digest)
}
