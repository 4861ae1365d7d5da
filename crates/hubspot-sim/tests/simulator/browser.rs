//! A small HTTP client, and a simulator to point it at.

use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hubspot_sim::{Grant, SimConfig, Simulator};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

pub(crate) const HUB: u64 = 1001;
pub(crate) const CLIENT: &str = "sim-client";
pub(crate) const REDIRECT_URI: &str = "https://app.example.com/callback";

/// A simulator with a client of its own.
pub(crate) struct World {
    pub(crate) hubspot: Simulator,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// HubSpot's `status` of a token error.
    pub(crate) fn refusal(&self) -> String {
        assert_eq!(self.status, 400, "{self:?}");
        assert_eq!(
            self.header("content-type"),
            Some("application/json;charset=utf-8")
        );
        self.json()["status"].as_str().unwrap().to_owned()
    }

    pub(crate) fn text_of(&self, key: &str) -> String {
        self.json()[key]
            .as_str()
            .unwrap_or_else(|| panic!("no {key} in {self:?}"))
            .to_owned()
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(SimConfig {
            seed: 7,
            ..SimConfig::default()
        })
        .await
    }

    pub(crate) async fn with(config: SimConfig) -> Self {
        let hubspot = Simulator::start(config).await.unwrap();
        Self {
            hubspot,
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    pub(crate) fn grant(&self) -> Grant {
        self.hubspot.grant(CLIENT, HUB).unwrap()
    }

    /// Sends a request; an error means that no complete answer came.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.hubspot.base_url()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let response = self
            .client
            .request(request)
            .await
            .map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            text,
        })
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await.unwrap()
    }

    pub(crate) async fn post_form(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        self.try_post_form(path, fields).await.unwrap()
    }

    pub(crate) async fn try_post_form(&self, path: &str, fields: &[(&str, &str)]) -> Result<Answer, String> {
        let form = form(fields);
        self.send(
            Method::POST,
            path,
            &[("content-type", "application/x-www-form-urlencoded")],
            form,
        )
        .await
    }

    pub(crate) async fn post_json(&self, path: &str, body: Value) -> Answer {
        let headers = [("content-type", "application/json")];
        self.send(Method::POST, path, &headers, body.to_string())
            .await
            .unwrap()
    }

    /// An API call with an access token.
    pub(crate) async fn call(&self, access_token: &str, method: Method, path: &str, body: Value) -> Answer {
        self.try_call(access_token, method, path, body).await.unwrap()
    }

    pub(crate) async fn try_call(
        &self,
        access_token: &str,
        method: Method,
        path: &str,
        body: Value,
    ) -> Result<Answer, String> {
        let bearer = format!("Bearer {access_token}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
        ];
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.send(method, path, &headers, body).await
    }

    pub(crate) async fn list(&self, access_token: &str) -> Answer {
        self.call(access_token, Method::GET, "/crm/v3/objects/contacts", Value::Null)
            .await
    }

    pub(crate) async fn try_refresh(&self, refresh_token: &str) -> Result<Answer, String> {
        let fields = [
            ("grant_type", "refresh_token"),
            ("client_id", CLIENT),
            ("client_secret", "sim-secret"),
            ("refresh_token", refresh_token),
        ];
        self.try_post_form("/oauth/2026-09/token", &fields).await
    }

    pub(crate) async fn refresh(&self, refresh_token: &str) -> Answer {
        self.try_refresh(refresh_token).await.unwrap()
    }

    /// Passes consent and returns where the browser is sent, as its query parameters.
    pub(crate) async fn consent(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut fields = vec![
            ("client_id", CLIENT),
            ("redirect_uri", REDIRECT_URI),
            ("scope", "oauth"),
            ("state", "s1"),
        ];
        fields.extend_from_slice(more);
        let answer = self.get(&format!("/oauth/authorize?{}", form(&fields))).await;
        assert_eq!(answer.status, 302, "{answer:?}");
        let location = url::Url::parse(answer.header("location").unwrap()).unwrap();
        location.query_pairs().into_owned().collect()
    }

    pub(crate) async fn code(&self) -> String {
        let redirect = self.consent(&[("_sim_hub_id", "1001")]).await;
        value(&redirect, "code").unwrap().to_owned()
    }

    pub(crate) async fn exchange(&self, code: &str, more: &[(&str, &str)]) -> Answer {
        let mut fields = more.to_vec();
        fields.extend_from_slice(&[
            ("grant_type", "authorization_code"),
            ("client_id", CLIENT),
            ("client_secret", "sim-secret"),
            ("redirect_uri", REDIRECT_URI),
            ("code", code),
        ]);
        self.post_form("/oauth/2026-09/token", &fields).await
    }
}

pub(crate) fn form(fields: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish()
}

pub(crate) fn value<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs
        .iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}
