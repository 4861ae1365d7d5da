//! A Rust program that embeds the engine.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

use evergrant::{App, BuildError, ConnectionId, Customer, Error, Evergrant, VaultKey};
use evergrant_domain::{AccountId, AppName, RefreshToken};
use evergrant_keeper::{Import, ImportTokens};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use hubspot_sim::{SimApp, SimConfig, Simulator};
use url::Url;

const SCOPES: [&str; 3] = ["oauth", "crm.objects.contacts.read", "crm.objects.contacts.write"];

async fn embedded(folder: &tempfile::TempDir, hubspot: &Simulator) -> Evergrant {
    let base = Url::parse(&hubspot.base_url()).unwrap();
    let app = SimApp::default();
    Evergrant::builder()
        .store(format!(
            "sqlite://{}",
            folder.path().join("evergrant.db").display()
        ))
        .vault_key(VaultKey::from_base64("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap())
        .app(
            App::hubspot("crm")
                .client_id(app.client_id)
                .client_secret(app.client_secret)
                .scopes(SCOPES)
                .return_url("https://app.example.com/*")
                .hosted_at(&base),
        )
        .build()
        .await
        .unwrap()
}

async fn connected(engine: &Evergrant, hubspot: &Simulator) -> ConnectionId {
    let grant = hubspot.grant(&SimApp::default().client_id, 1001).unwrap();
    let import = Import {
        id: Some(ConnectionId::parse("acme-crm").unwrap()),
        app: AppName::parse("crm").unwrap(),
        customer: Customer::parse("acme").unwrap(),
        tokens: ImportTokens::OAuth {
            refresh_token: RefreshToken::new(grant.refresh_token),
            access_token: None,
            expires_at: None,
            scopes: None,
        },
        account: Some(AccountId::parse("1001").unwrap()),
        labels: vec![],
    };
    engine.keeper().import(import).await.unwrap().id
}

fn create(n: u32) -> Request<String> {
    Request::builder()
        .method(Method::POST)
        .uri("/crm/v3/objects/contacts")
        .header("content-type", "application/json")
        .body(format!(
            r#"{{"properties":{{"email":"library-{n}@example.com"}}}}"#
        ))
        .unwrap()
}

#[tokio::test]
async fn a_program_gets_a_token_and_sends_requests_without_seeing_an_expiry() {
    let hubspot = Simulator::start(SimConfig::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let engine = embedded(&folder, &hubspot).await;
    let id = connected(&engine, &hubspot).await;
    assert!(!engine.token(&id).await.unwrap().expose().is_empty());
    let first = engine.send(&id, create(1)).await.unwrap();
    assert_eq!(first.status(), StatusCode::CREATED);
    // The provider calls the token expired: one refresh, one repeat, one contact.
    hubspot.expire_access_tokens(1001);
    let second = engine.send(&id, create(2)).await.unwrap();
    assert_eq!(second.status(), StatusCode::CREATED);
    assert_eq!(second.headers()["evergrant-attempts"], "2");
    let body = second.into_body().collect().await.unwrap().to_bytes();
    assert!(
        std::str::from_utf8(&body)
            .unwrap()
            .contains("library-2@example.com")
    );
    let ledger = hubspot.ledger();
    assert_eq!(
        (ledger.creates_executed, ledger.refreshes_accepted),
        (2, 2),
        "{ledger:?}"
    );
    engine.shutdown().await;
}

#[tokio::test]
async fn a_program_learns_that_its_customer_must_reconnect() {
    let hubspot = Simulator::start(SimConfig::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let engine = embedded(&folder, &hubspot).await;
    let id = connected(&engine, &hubspot).await;
    hubspot.uninstall(&SimApp::default().client_id, 1001);
    let error = engine.token(&id).await.unwrap_err();
    assert!(matches!(error, Error::ReconnectRequired { .. }), "{error:?}");
    let unknown = engine
        .token(&ConnectionId::parse("nobody").unwrap())
        .await
        .unwrap_err();
    assert!(matches!(unknown, Error::UnknownConnection), "{unknown:?}");
    let link = engine
        .connect("crm", "acme")
        .connection(id)
        .return_to("https://app.example.com/done")
        .start()
        .await
        .unwrap();
    assert!(link.url.starts_with("http://localhost:8484/connect/"), "{link:?}");
    let elsewhere = engine
        .connect("crm", "acme")
        .return_to("https://evil.example.com/")
        .start()
        .await
        .unwrap_err();
    assert!(elsewhere.to_string().contains("return_urls"), "{elsewhere}");
    engine.shutdown().await;
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evergrant.db").display().to_string();
    assert!(matches!(
        Evergrant::builder().build().await.unwrap_err(),
        BuildError::NoStore
    ));
    assert!(matches!(
        Evergrant::builder()
            .store(path.clone())
            .build()
            .await
            .unwrap_err(),
        BuildError::NoVaultKey
    ));
    let error = Evergrant::builder()
        .store(path)
        .vault_key_file("/nowhere/evergrant.key")
        .build()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("/nowhere/evergrant.key"), "{error}");
    let error = Evergrant::builder()
        .store("mysql://host/db")
        .vault_key(VaultKey::generate())
        .build()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("mysql"), "{error}");
}
