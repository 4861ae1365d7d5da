//! An installation with a doctor in it.

use std::process::Command;

use bytes::Bytes;
use http::Method;
use http_body_util::Full;
use hubspot_sim::{Grant, SimApp, SimConfig};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::installation::{Answer, CLIENT, Installation, Service, free_port};

/// One call that reads.
pub(crate) const CONTACTS: &str = "crm/v3/objects/contacts?limit=1";

pub(crate) struct Practice {
    pub(crate) installation: Installation,
}

impl Practice {
    /// With one more app that has credentials of its own, `other`, whose token endpoint is at `token_url`, where it is given.
    pub(crate) async fn new(config: SimConfig) -> Self {
        let installation = Installation::new(config).await;
        installation
            .hubspot
            .add_app(SimApp::new("other-client", "other-secret"))
            .unwrap();
        let base = installation.hubspot.base_url();
        installation.configure(&format!(
            "\n[apps.other]\nprovider = \"hubspot\"\nclient_id = \"other-client\"\nclient_secret_env = \"OTHER_SECRET\"\n\
             scopes = [\"oauth\", \"crm.objects.contacts.read\"]\nkeep_fresh = \"off\"\noauth_base = \"{base}\"\n\
             authorize_url = \"{base}/oauth/authorize\"\napi_base = \"{base}\"\n"
        ));
        Self { installation }
    }

    /// `evergrant` here.
    pub(crate) fn evergrant(&self) -> Command {
        let mut command = self.installation.evergrant();
        command
            .env("OTHER_SECRET", "other-secret")
            // What is refreshed is refreshed because a test wants it.
            .env("EVERGRANT_APPS__CRM__KEEP_FRESH", "off");
        command
    }

    pub(crate) fn serve(&self) -> Service {
        self.serve_with(&[])
    }

    pub(crate) fn serve_by(&self, clock: &Clock) -> Service {
        self.serve_with(&clock.settings())
    }

    pub(crate) fn serve_with(&self, settings: &[(&str, &str)]) -> Service {
        let port = free_port();
        let mut command = self.evergrant();
        command
            .env("EVERGRANT_SERVER__LISTEN", format!("127.0.0.1:{port}"))
            .envs(settings.iter().copied());
        self.installation
            .try_serve(&mut command, port)
            .unwrap_or_else(|said| panic!("not ready: {said:?}\n{}", self.installation.printed()))
    }

    pub(crate) async fn send(
        &self,
        service: &Service,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Answer {
        let key = &self.installation.admin_key;
        self.installation.send(service, method, path, key, body).await
    }

    /// A connection of the app `crm`, named like its customer, as an import brings it: `more` replaces what stands in the record.
    pub(crate) async fn import(&self, service: &Service, id: &str, grant: &Grant, more: Value) {
        let mut record = json!({
            "id": id, "app": "crm", "customer": id, "refresh_token": grant.refresh_token,
        });
        record
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let made = self
            .send(service, Method::POST, "/v1/connections", Some(record))
            .await;
        assert_eq!(made.status, 201, "{made:?}");
    }

    /// A connection whose grant has just been given and whose token lives.
    pub(crate) async fn connect(&self, service: &Service, id: &str, portal: u64) -> Grant {
        let grant = self.installation.hubspot.grant(CLIENT, portal).unwrap();
        self.import(service, id, &grant, fresh(&grant)).await;
        grant
    }

    /// One call through the gateway.
    pub(crate) async fn call(
        &self,
        service: &Service,
        id: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        let key = &self.installation.admin_key;
        let path = format!("/gateway/{id}/{path}");
        self.installation
            .ask_with(&service.address, Method::GET, &path, key, headers, None)
            .await
            .unwrap()
    }

    /// A guarded write through the gateway.
    pub(crate) async fn write(&self, service: &Service, id: &str, key: &str) -> Answer {
        let path = format!("/gateway/{id}/crm/v3/objects/contacts");
        let headers = [("idempotency-key", key), ("content-type", "application/json")];
        self.installation
            .ask_with(
                &service.address,
                Method::POST,
                &path,
                &self.installation.admin_key,
                &headers,
                Some(json!({"properties": {}})),
            )
            .await
            .unwrap()
    }

    pub(crate) async fn works(&self, service: &Service, id: &str) {
        let answer = self.call(service, id, CONTACTS, &[]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    pub(crate) async fn refresh(&self, service: &Service, id: &str) -> Answer {
        let path = format!("/v1/connections/{id}/refresh");
        self.send(service, Method::POST, &path, Some(json!({"force": true})))
            .await
    }

    pub(crate) async fn reports(&self, service: &Service, id: &str, version: i64, status: u16) -> Answer {
        let path = format!("/v1/connections/{id}/token/rejected");
        let body = json!({"version": version, "status": status});
        self.send(service, Method::POST, &path, Some(body)).await
    }

    /// Another holder of the app's secret asks the provider something.
    pub(crate) async fn elsewhere(&self, path: &str, fields: &[(&str, &str)]) {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .extend_pairs([("client_id", CLIENT), ("client_secret", "sim-secret")])
            .finish();
        let request = http::Request::post(format!("{}{path}", self.installation.hubspot.base_url()))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Full::<Bytes>::from(form))
            .unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let answer = client.request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
    }

    pub(crate) async fn diagnosis(&self, service: &Service, id: &str) -> Value {
        let answer = self
            .send(
                service,
                Method::GET,
                &format!("/v1/connections/{id}/diagnosis"),
                None,
            )
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// The diagnosis once it names this cause: what is written behind an answer may take a moment. `said` must be in its evidence,
    /// summary or action.
    pub(crate) async fn is_named(&self, service: &Service, id: &str, cause: &str, said: &str) -> Value {
        let mut found = self.diagnosis(service, id).await;
        for _ in 0..50 {
            if found["cause"] == cause {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            found = self.diagnosis(service, id).await;
        }
        assert_eq!(
            (&found["verdict"], &found["cause"]),
            (&json!("cause"), &json!(cause)),
            "{found:#}"
        );
        let check = check(&found, cause);
        assert_eq!(check["result"], "found", "{found:#}");
        let all = [&check["evidence"], &found["summary"], &found["action"]]
            .map(|text| text.as_str().unwrap())
            .join("\n");
        assert!(all.contains(said), "{said:?} is not said in {found:#}");
        found
    }

    pub(crate) async fn is_healthy(&self, service: &Service, id: &str) -> Value {
        let found = self.diagnosis(service, id).await;
        assert_eq!(found["verdict"], "healthy", "{id}: {found:#}");
        for check in found["checks"].as_array().unwrap() {
            assert_ne!(check["result"], "found", "{id}: {found:#}");
        }
        found
    }
}

/// What an import says of a token that has just been issued.
pub(crate) fn fresh(grant: &Grant) -> Value {
    let expires_at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1800);
    json!({"access_token": grant.access_token, "expires_at": expires_at.to_string()})
}

pub(crate) fn check<'a>(diagnosis: &'a Value, id: &str) -> &'a Value {
    let checks = diagnosis["checks"].as_array().unwrap();
    checks.iter().find(|check| check["id"] == id).unwrap()
}

/// So many seconds ago, as jobs say when they were enqueued.
pub(crate) fn ago(seconds: i64) -> String {
    (jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds)).to_string()
}
