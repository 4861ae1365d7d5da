//! HubSpot's webhooks journal on the wire: the app's own token, its subscription, pages. What the answers mean is the domain's.

use std::time::Duration;

use bytes::Bytes;
use evergrant_domain::token_answer::{Failure, TokenAnswer};
use evergrant_domain::{AccessToken, App, ClientSecret, journal};
use http::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request};
use http_body_util::Full;
use url::{Position, Url};
use zeroize::Zeroizing;

use crate::endpoint::TokenEndpoint;
use crate::request::TokenRequest;
use crate::sender::{self, Answer, Body, Outgoing};

/// An answer, read whole. It holds no secret but the address of a page, which is good for a short while.
#[derive(Debug)]
pub struct JournalAnswer {
    /// The status.
    pub status: u16,
    /// How long a pause is asked for.
    pub retry_after: Option<Duration>,
    /// The body.
    pub body: Zeroizing<Vec<u8>>,
}

impl TokenEndpoint {
    /// Asks for a token of the app itself, for reading its journal. No grant is touched.
    ///
    /// Source: RFC 6749 §4.4; HubSpot, "Webhooks journal".
    pub async fn own_token(&self, app: &App, secret: &ClientSecret, deadline: Duration) -> TokenAnswer {
        let request = TokenRequest::client_credentials(app, secret, &journal::SCOPES.join(" "));
        self.token_request(request, app, deadline).await
    }

    /// Asks the provider to write uninstalls into the app's journal.
    pub async fn subscribe_to_uninstalls(
        &self,
        app: &App,
        token: &AccessToken,
        deadline: Duration,
    ) -> Result<JournalAnswer, Failure> {
        let request = Plain {
            method: Method::POST,
            url: below(&app.provider.api_base, journal::SUBSCRIPTIONS),
            token: Some(token.clone()),
            body: journal::SUBSCRIPTION,
        };
        self.ask(request, deadline).await
    }

    /// Asks where the page behind this position is.
    pub async fn next_page(
        &self,
        app: &App,
        token: &AccessToken,
        position: Option<&str>,
        deadline: Duration,
    ) -> Result<JournalAnswer, Failure> {
        let request = Plain {
            method: Method::GET,
            url: below(&app.provider.api_base, &journal::next_page(position)),
            token: Some(token.clone()),
            body: "",
        };
        self.ask(request, deadline).await
    }

    /// Fetches a page: without credentials, for its address alone is enough, and is not the provider's API.
    pub async fn page(&self, url: Url, deadline: Duration) -> Result<JournalAnswer, Failure> {
        let request = Plain {
            method: Method::GET,
            url,
            token: None,
            body: "",
        };
        self.ask(request, deadline).await
    }

    async fn ask(&self, request: Plain, deadline: Duration) -> Result<JournalAnswer, Failure> {
        let sent = sender::send(&*self.network, request, deadline, async || true).await;
        let Answer {
            status,
            retry_after,
            body,
            ..
        } = sent.map_err(|none| Failure::without_answer(none.word()))?;
        match body {
            Body::Whole(body) => Ok(JournalAnswer {
                status,
                retry_after,
                body,
            }),
            Body::Unreadable(word) | Body::Cut(word) => Err(Failure::without_answer(word)),
        }
    }
}

/// A request of the journal's.
struct Plain {
    method: Method,
    url: Url,
    token: Option<AccessToken>,
    body: &'static str,
}

impl Outgoing for Plain {
    fn url(&self) -> &Url {
        &self.url
    }

    fn into_http(self) -> Option<Request<Full<Bytes>>> {
        let authority = match (self.url.host_str()?, self.url.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        let mut request = Request::builder()
            .method(self.method)
            .uri(&self.url[Position::BeforePath..Position::AfterQuery])
            .header(HOST, authority)
            .header(USER_AGENT, concat!("evergrant/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json")
            // The connection serves this one exchange.
            .header(CONNECTION, "close")
            .body(Full::new(Bytes::from_static(self.body.as_bytes())))
            .ok()?;
        if !self.body.is_empty() {
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(CONTENT_TYPE, json);
        }
        if let Some(token) = self.token {
            let credentials = Zeroizing::new(format!("Bearer {}", token.expose()));
            let mut credentials = HeaderValue::from_str(&credentials).ok()?;
            credentials.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, credentials);
        }
        Some(request)
    }
}

/// The URL with more path.
fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}
