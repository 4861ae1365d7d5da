//! What may not be found in the database, and what is noticed when it is tampered with.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use evergrant_domain::CodeVerifier;
use evergrant_store::contract::{Authorization, Reserved, Revoke};
use evergrant_store::{Store, StoreError};

use crate::database::*;

#[tokio::test]
async fn no_secret_is_found_in_a_dump() {
    let database = Database::new();
    let store = database.open().await;
    create(&store, new("1")).await;
    create(&store, new("2")).await;
    let lease = lease(&store, "1").await;
    store.land(&lease, refreshed("3"), NOW).await.unwrap();
    store
        .disconnect(&id("2"), Revoke::Always, None, event(), NOW)
        .await
        .unwrap();
    let authorization = Authorization {
        state_hash: [1; 32],
        session: None,
        app: "crm".parse().unwrap(),
        customer: "acme".parse().unwrap(),
        connection: None,
        scopes: vec![],
        return_url: None,
        code_verifier: Some(CodeVerifier::new("canary-verifier")),
        expires_at: NOW,
    };
    store.begin_authorization(authorization).await.unwrap();
    let ticket = reserve(&store, "k1", "a").await;
    assert!(store.end_write(&ticket, answered(), NOW).await.unwrap());
    let dump = database.server.dump(&database.name);
    for table in ["connections", "revocations", "authorizations", "writes"] {
        let rows = database.sql(&format!("SELECT count(*) FROM {table}"));
        assert_ne!(rows, "0", "the dump has something to tell of {table}");
    }
    for canary in [
        "canary-access",
        "canary-refresh",
        "canary-verifier",
        "canary-in-header",
        "canary-in-body",
    ] {
        let hex = database.sql(&format!("SELECT encode('{canary}', 'hex')"));
        assert!(!dump.contains(canary), "{canary}");
        assert!(!dump.contains(&hex), "{canary} in hexadecimal");
        // Base64 of a text in the middle of another one begins at any of three offsets.
        for offset in 0..3 {
            let bytes = &canary.as_bytes()[offset..];
            let whole = &bytes[..bytes.len() / 3 * 3];
            for shape in [STANDARD_NO_PAD.encode(whole), URL_SAFE_NO_PAD.encode(whole)] {
                assert!(!dump.contains(&shape), "{canary} in base64");
            }
        }
    }
}

#[tokio::test]
async fn a_changed_byte_spoils_its_own_record_only() {
    let database = Database::new();
    let store = database.open().await;
    create(&store, new("c1")).await;
    create(&store, new("c2")).await;
    database.sql(
        "UPDATE connections SET refresh_token = set_byte(refresh_token, 30, 255 - get_byte(refresh_token, 30))
          WHERE id = 'c1'",
    );
    let error = store.held(&id("c1")).await.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Unreadable {
                field: "refresh_token",
                ..
            }
        ),
        "{error}"
    );
    assert!(store.held(&id("c2")).await.unwrap().is_some());
    let left = store
        .disconnect(&id("c1"), Revoke::Always, None, event(), NOW)
        .await;
    assert!(left.unwrap().is_some(), "its owner can leave all the same");
}

#[tokio::test]
async fn a_changed_byte_spoils_its_own_answer_only() {
    let database = Database::new();
    let store = database.open().await;
    for key in ["k1", "k2"] {
        let ticket = reserve(&store, key, key).await;
        assert!(store.end_write(&ticket, answered(), NOW).await.unwrap());
    }
    let met = async |key| store.reserve_write(reservation(key, "later", NOW), NOW).await;
    for field in ["answer", "body"] {
        let flip = format!(
            "UPDATE writes SET {field} = set_byte({field}, 30, 255 - get_byte({field}, 30)) WHERE key = 'k1'"
        );
        database.sql(&flip);
        let error = met("k1").await.unwrap_err();
        assert!(
            matches!(error, StoreError::Unreadable { field: at, .. } if at == field),
            "{error}"
        );
        let other = met("k2").await;
        assert!(matches!(other, Ok(Reserved::Met(_, Some(_)))), "{other:?}");
        database.sql(&flip);
        let mended = met("k1").await;
        assert!(matches!(mended, Ok(Reserved::Met(_, Some(_)))), "{mended:?}");
    }
}

#[tokio::test]
async fn a_sealed_token_moved_elsewhere_is_refused() {
    let database = Database::new();
    let store = database.open().await;
    create(&store, new("c1")).await;
    create(&store, new("c2")).await;
    database.sql(
        "UPDATE connections SET access_token = (SELECT access_token FROM connections WHERE id = 'c1')
          WHERE id = 'c2'",
    );
    let error = store.held(&id("c2")).await.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Unreadable {
                field: "access_token",
                ..
            }
        ),
        "{error}"
    );
}
