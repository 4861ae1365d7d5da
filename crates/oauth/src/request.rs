//! What is sent to a token endpoint, built by functions that send nothing.
//!
//! Everything that is secret stands in the body or, with [`ClientAuth::Basic`], in one header; never in a URL. Both are
//! wiped when dropped. What hyper and rustls copy into their own buffers on the way out is theirs and is not.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use evergrant_domain::app::ClientAuth;
use evergrant_domain::{AccessToken, App, AuthorizationCode, ClientSecret, CodeVerifier, RefreshToken};
use http::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method};
use http_body_util::Full;
use url::{Position, Url, form_urlencoded};
use zeroize::Zeroizing;

use crate::sender::Outgoing;

/// The token to ask about.
#[derive(Debug, Clone, Copy)]
pub enum Introspect<'a> {
    /// An access token. What is said about it says nothing about the grant.
    Access(&'a AccessToken),
    /// A refresh token.
    Refresh(&'a RefreshToken),
}

/// A form to be posted, with the client's credentials in it or beside it; or a greeting without either.
pub(crate) struct TokenRequest {
    method: Method,
    url: Url,
    authorization: Option<HeaderValue>,
    form: Zeroizing<String>,
}

impl TokenRequest {
    /// RFC 6749 §6.
    pub(crate) fn redemption(app: &App, secret: &ClientSecret, refresh_token: &RefreshToken) -> Self {
        let fields = vec![
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token.expose()),
        ];
        Self::new(&app.provider.token_url, app, secret, fields)
    }

    /// RFC 6749 §4.1.3; RFC 7636 §4.5.
    pub(crate) fn code_exchange(
        app: &App,
        secret: &ClientSecret,
        code: &AuthorizationCode,
        redirect_uri: &str,
        verifier: Option<&CodeVerifier>,
    ) -> Self {
        let mut fields = vec![
            ("grant_type", "authorization_code"),
            ("code", code.expose()),
            ("redirect_uri", redirect_uri),
        ];
        fields.extend(verifier.map(|verifier| ("code_verifier", verifier.expose())));
        Self::new(&app.provider.token_url, app, secret, fields)
    }

    /// RFC 6749 §4.4.
    pub(crate) fn client_credentials(app: &App, secret: &ClientSecret, scope: &str) -> Self {
        let fields = vec![("grant_type", "client_credentials"), ("scope", scope)];
        Self::new(&app.provider.token_url, app, secret, fields)
    }

    /// RFC 7662 §2.1. `None` where the provider does not introspect.
    ///
    /// HubSpot's guide names the field after the kind of token, its specification `token`, as the RFC does.
    pub(crate) fn introspection(app: &App, secret: &ClientSecret, token: Introspect<'_>) -> Option<Self> {
        let (hint, token) = match token {
            Introspect::Access(token) => ("access_token", token.expose()),
            Introspect::Refresh(token) => ("refresh_token", token.expose()),
        };
        let fields = vec![("token", token), ("token_type_hint", hint)];
        let url = app.provider.introspect_url.as_ref()?;
        Some(Self::new(url, app, secret, fields))
    }

    /// RFC 7009 §2.1. `None` where the provider does not revoke.
    pub(crate) fn revocation(app: &App, secret: &ClientSecret, refresh_token: &RefreshToken) -> Option<Self> {
        let fields = vec![
            ("token", refresh_token.expose()),
            ("token_type_hint", "refresh_token"),
        ];
        let url = app.provider.revoke_url.as_ref()?;
        Some(Self::new(url, app, secret, fields))
    }

    fn new<'a>(url: &Url, app: &'a App, secret: &'a ClientSecret, mut fields: Vec<(&str, &'a str)>) -> Self {
        let authorization = match app.provider.client_auth {
            ClientAuth::Basic => Some(basic(&app.client_id, secret)),
            ClientAuth::Post => {
                fields.push(("client_id", &app.client_id));
                fields.push(("client_secret", secret.expose()));
                None
            }
        };
        Self {
            method: Method::POST,
            url: url.clone(),
            authorization,
            form: form(&fields),
        }
    }

    /// A bare GET of the token endpoint, which asks for nothing and carries no secret: whatever comes back has the time on it.
    pub(crate) fn greeting(app: &App) -> Self {
        Self {
            method: Method::GET,
            url: app.provider.token_url.clone(),
            authorization: None,
            form: Zeroizing::default(),
        }
    }
}

impl Outgoing for TokenRequest {
    /// Where it goes.
    fn url(&self) -> &Url {
        &self.url
    }

    /// As HTTP/1.1 wants it: the target in origin form, the host in a header. `None` where the URL has no such form.
    fn into_http(self) -> Option<http::Request<Full<Bytes>>> {
        let authority = match (self.url.host_str()?, self.url.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        let is_form = self.method == Method::POST;
        let mut request = http::Request::builder()
            .method(self.method)
            .uri(&self.url[Position::BeforePath..Position::AfterQuery])
            .header(HOST, authority)
            .header(USER_AGENT, concat!("evergrant/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json")
            // The connection serves this one exchange.
            .header(CONNECTION, "close")
            .body(Full::new(Bytes::from_owner(self.form)))
            .ok()?;
        if is_form {
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers_mut().insert(CONTENT_TYPE, form);
        }
        if let Some(authorization) = self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        Some(request)
    }
}

/// Room for the worst case from the beginning: a string that grew would leave copies of its secrets behind.
fn form(fields: &[(&str, &str)]) -> Zeroizing<String> {
    let room = fields
        .iter()
        .map(|(name, value)| encoded_max(name) + encoded_max(value) + 2)
        .sum();
    let mut form = form_urlencoded::Serializer::new(String::with_capacity(room));
    form.extend_pairs(fields);
    Zeroizing::new(form.finish())
}

/// RFC 6749 §2.3.1: id and secret are form-encoded first, so that a colon in them cannot be taken for the one between.
fn basic(client_id: &str, secret: &ClientSecret) -> HeaderValue {
    const SCHEME: &str = "Basic ";
    let room = encoded_max(client_id) + encoded_max(secret.expose()) + 1;
    let mut credentials = Zeroizing::new(String::with_capacity(room));
    credentials.extend(encoded(client_id));
    credentials.push(':');
    credentials.extend(encoded(secret.expose()));

    let mut header = Zeroizing::new(String::with_capacity(
        SCHEME.len() + credentials.len().div_ceil(3) * 4,
    ));
    header.push_str(SCHEME);
    STANDARD.encode_string(credentials.as_bytes(), &mut header);
    let mut header = HeaderValue::from_maybe_shared(Bytes::from_owner(header))
        .expect("base64 consists of visible ASCII characters");
    header.set_sensitive(true);
    header
}

/// Form-encoded, but for a space as `%20`: those who decode forms read it as well as `+`, and those who decode URLs instead
/// (Authlib does) know no `+`.
fn encoded(value: &str) -> impl Iterator<Item = &str> {
    form_urlencoded::byte_serialize(value.as_bytes()).map(|part| if part == "+" { "%20" } else { part })
}

/// Form encoding makes at most three bytes of one.
fn encoded_max(value: &str) -> usize {
    value.len() * 3
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use evergrant_domain::app::Dialect;
    use evergrant_domain::{AppName, KeepFresh, Provider, RefreshPolicy, Rotation};

    use super::*;

    pub(crate) fn app() -> App {
        let url = |text: &str| Url::parse(text).expect("a literal URL");
        App {
            name: AppName::parse("crm").expect("a literal name"),
            provider: Provider {
                dialect: Dialect::HubSpot,
                authorize_url: url("https://app.hubspot.com/oauth/authorize"),
                token_url: url("https://api.hubapi.com/oauth/2026-09/token"),
                introspect_url: Some(url("https://api.hubapi.com/oauth/2026-09/token/introspect")),
                revoke_url: Some(url("https://api.hubapi.com/oauth/2026-09/token/revoke")),
                api_base: url("https://api.hubapi.com/"),
                client_auth: ClientAuth::Post,
                pkce: false,
                rotation: Rotation::Grace(Duration::from_secs(30)),
                account_claim: "hub_id".into(),
            },
            client_id: "client-1".into(),
            client_secrets: vec![secret()],
            redirect_uri: "http://localhost:8484/oauth/callback".into(),
            scopes: vec![],
            optional_scopes: vec![],
            refresh_policy: RefreshPolicy::Queue,
            keep_fresh: KeepFresh::Used,
            return_urls: vec![],
            display_name: None,
            support_url: None,
            public_install: false,
            budget: evergrant_domain::call_budget::Setting::Learnt,
            max_wait: None,
        }
    }

    /// With every character that an encoding could stumble over.
    fn secret() -> ClientSecret {
        ClientSecret::new("s:3 +&=%/ü")
    }

    const SECRET_ENCODED: &str = "s%3A3+%2B%26%3D%25%2F%C3%BC";

    /// Checks the body with [`ClientAuth::Post`] and with [`ClientAuth::Basic`], and what stands beside it.
    fn check(build: impl Fn(&App) -> TokenRequest, url: &str, form: &str) {
        let post = build(&app());
        assert_eq!(post.url().as_str(), url);
        assert_eq!(
            post.form.as_str(),
            format!("{form}&client_id=client-1&client_secret={SECRET_ENCODED}")
        );
        assert!(post.authorization.is_none());

        let mut app = app();
        app.provider.client_auth = ClientAuth::Basic;
        let basic = build(&app);
        assert_eq!(basic.url().as_str(), url);
        assert_eq!(basic.form.as_str(), form);
        let expected = STANDARD.encode(format!("client-1:{}", SECRET_ENCODED.replace('+', "%20")));
        let authorization = basic.authorization.unwrap();
        assert_eq!(authorization.to_str().unwrap(), format!("Basic {expected}"));
        assert!(authorization.is_sensitive());
    }

    #[test]
    fn a_redemption_is_rfc_6749_section_6() {
        check(
            |app| TokenRequest::redemption(app, &secret(), &RefreshToken::new("na1-a b+c/=")),
            "https://api.hubapi.com/oauth/2026-09/token",
            "grant_type=refresh_token&refresh_token=na1-a+b%2Bc%2F%3D",
        );
    }

    #[test]
    fn a_code_exchange_is_rfc_6749_section_4_1_3() {
        let code = AuthorizationCode::new("code/1");
        let callback = "http://localhost:8484/oauth/callback";
        check(
            |app| TokenRequest::code_exchange(app, &secret(), &code, callback, None),
            "https://api.hubapi.com/oauth/2026-09/token",
            "grant_type=authorization_code&code=code%2F1\
             &redirect_uri=http%3A%2F%2Flocalhost%3A8484%2Foauth%2Fcallback",
        );
        let verifier = CodeVerifier::new("v-._~1");
        check(
            |app| TokenRequest::code_exchange(app, &secret(), &code, callback, Some(&verifier)),
            "https://api.hubapi.com/oauth/2026-09/token",
            "grant_type=authorization_code&code=code%2F1\
             &redirect_uri=http%3A%2F%2Flocalhost%3A8484%2Foauth%2Fcallback&code_verifier=v-._%7E1",
        );
    }

    #[test]
    fn an_introspection_says_which_kind_of_token_it_asks_about() {
        let url = "https://api.hubapi.com/oauth/2026-09/token/introspect";
        let (access, refresh) = (AccessToken::new("a&1"), RefreshToken::new("r&1"));
        check(
            |app| TokenRequest::introspection(app, &secret(), Introspect::Access(&access)).unwrap(),
            url,
            "token=a%261&token_type_hint=access_token",
        );
        check(
            |app| TokenRequest::introspection(app, &secret(), Introspect::Refresh(&refresh)).unwrap(),
            url,
            "token=r%261&token_type_hint=refresh_token",
        );
    }

    #[test]
    fn a_revocation_names_the_refresh_token() {
        check(
            |app| TokenRequest::revocation(app, &secret(), &RefreshToken::new("r&1")).unwrap(),
            "https://api.hubapi.com/oauth/2026-09/token/revoke",
            "token=r%261&token_type_hint=refresh_token",
        );
    }

    #[test]
    fn the_example_of_rfc_6749_section_2_3_1_comes_out_as_printed() {
        let secret = ClientSecret::new("7Fjfp0ZBr1KtDRbnfVdmIw");
        assert_eq!(
            basic("s6BhdRkqt3", &secret).to_str().unwrap(),
            "Basic czZCaGRSa3F0Mzo3RmpmcDBaQnIxS3REUmJuZlZkbUl3"
        );
    }

    #[test]
    fn credentials_with_spaces_and_signs_are_read_alike_by_those_who_decode_forms_and_urls() {
        let secret = ClientSecret::new("a b+c:d");
        let expected = format!("Basic {}", STANDARD.encode("an%20id:a%20b%2Bc%3Ad"));
        assert_eq!(basic("an id", &secret).to_str().unwrap(), expected);
    }

    #[test]
    fn the_host_header_names_a_port_only_where_it_is_not_the_usual_one() {
        let check = |url: &str, target: &str, host: &str| {
            let mut app = app();
            app.provider.token_url = Url::parse(url).unwrap();
            let request = TokenRequest::redemption(&app, &secret(), &RefreshToken::new("r"))
                .into_http()
                .unwrap();
            assert_eq!(request.uri().to_string(), target, "{url}");
            assert_eq!(request.headers()[HOST], host, "{url}");
        };
        check("https://as.example.com", "/", "as.example.com");
        check(
            "https://as.example.com:443/t?tenant=1#x",
            "/t?tenant=1",
            "as.example.com",
        );
        check("https://as.example.com:8443/t", "/t", "as.example.com:8443");
        check("http://[::1]:8080/t", "/t", "[::1]:8080");
    }

    #[test]
    fn buffers_with_secrets_never_grow() {
        let fields = [("ü", "\u{1}&=€"), ("b", "\r\n")];
        let room: usize = fields
            .iter()
            .map(|(name, value)| encoded_max(name) + encoded_max(value) + 2)
            .sum();
        // A string that grows at least doubles.
        assert!(form(&fields).capacity() < 2 * room);
        assert!(form(&fields).len() <= room);
    }

    #[test]
    fn nothing_secret_shows_in_a_requests_debug_output() {
        let mut app = app();
        app.provider.client_auth = ClientAuth::Basic;
        let secret = ClientSecret::new("canary");
        let request = TokenRequest::redemption(&app, &secret, &RefreshToken::new("canary"))
            .into_http()
            .unwrap();
        let encoded = STANDARD.encode("client-1:canary");
        let shown = format!("{:?} {:?}", request.headers(), request.uri());
        assert!(!shown.contains("canary") && !shown.contains(&encoded), "{shown}");
    }
}
