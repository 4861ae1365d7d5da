//! Guarded writes between processes that are killed: whatever the moment, at most one is carried out, and whoever comes next with
//! the same key is told the truth. The provider's own count is the judge.

use std::sync::Arc;

use http::Method;
use hubspot_sim::{Fault, FaultKind, SimConfig};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinHandle;

use crate::installation::{Answer, Installation, Service};

const CONTACTS: &str = "/gateway/acme/crm/v3/objects/contacts";
const KEY: (&str, &str) = ("idempotency-key", "one-write");
const AHEAD: (&str, &str) = ("evergrant-guard", "read-before-write;property=email");
const PORTAL: u64 = 1001;
const ADA: &str = "ada@example.com";

/// An installation with a connection whose token is at hand.
struct Stage {
    installation: Arc<Installation>,
    first: Arc<Service>,
}

fn contact() -> Value {
    json!({"properties": {"email": ADA, "firstname": "Ada"}})
}

impl Stage {
    async fn new() -> Self {
        let installation = Arc::new(Installation::new(SimConfig::default()).await);
        let first = Arc::new(installation.serve());
        installation.connected(&first, "acme", PORTAL).await;
        let stage = Self { installation, first };
        let path = format!("{CONTACTS}?limit=1");
        let key = &stage.installation.admin_key;
        let warm = stage
            .installation
            .send(&stage.first, Method::GET, &path, key, None)
            .await;
        assert_eq!(warm.status, 200, "{warm:?}");
        stage
    }

    async fn create(&self, service: &Service, headers: &[(&str, &str)]) -> Result<Answer, String> {
        let installation = &self.installation;
        installation
            .ask_with(
                &service.address,
                Method::POST,
                CONTACTS,
                &installation.admin_key,
                headers,
                Some(contact()),
            )
            .await
    }

    /// The first service's call, under way.
    fn begin(&self, headers: &'static [(&'static str, &'static str)]) -> JoinHandle<Result<Answer, String>> {
        let stage = Self {
            installation: self.installation.clone(),
            first: self.first.clone(),
        };
        tokio::spawn(async move { stage.create(&stage.first, headers).await })
    }

    /// SIGKILL for the first service; another one takes over.
    fn kill(&self) -> Service {
        self.first.signal(Signal::KILL);
        self.installation.serve_another()
    }

    fn sql(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.installation.folder().join("evergrant.db")).unwrap()
    }

    /// As if the place had been taken so long ago that whoever took it has lost it.
    fn long_after(&self) {
        let aged = self
            .sql()
            .execute(
                "UPDATE writes SET deadline = 1 WHERE state IN ('reserved', 'sent')",
                [],
            )
            .unwrap();
        assert_eq!(aged, 1);
    }

    fn created(&self) -> usize {
        self.installation
            .hubspot
            .created(PORTAL, "contacts", "email", ADA)
    }
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer
        .headers
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

fn is_in_progress(answer: &Answer) {
    assert_eq!(
        (answer.status.as_u16(), header(answer, "evergrant-error")),
        (409, "idempotency_in_progress"),
        "{answer:?}"
    );
    assert!(header(answer, "retry-after").parse::<u64>().unwrap() <= 10);
    assert_eq!(header(answer, "x-should-retry"), "true");
}

fn is_unknown(answer: &Answer) {
    assert_eq!(
        (answer.status.as_u16(), header(answer, "evergrant-error")),
        (424, "outcome_unknown"),
        "{answer:?}"
    );
    assert_eq!(header(answer, "evergrant-outcome"), "unknown");
    assert_eq!(header(answer, "x-should-retry"), "false");
    let look_up = &answer.json()["lookup"];
    assert_eq!(look_up["method"], "GET");
    assert_eq!(
        look_up["path"],
        "/crm/v3/objects/contacts/ada%40example.com?idProperty=email"
    );
}

fn is_the_first(answer: &Answer) {
    assert_eq!(
        (answer.status.as_u16(), header(answer, "evergrant-replayed")),
        (201, ""),
        "{answer:?}"
    );
}

fn is_replayed(answer: &Answer) {
    assert_eq!(
        (
            answer.status.as_u16(),
            header(answer, "evergrant-replayed"),
            header(answer, "evergrant-attempts")
        ),
        (201, "true", "0"),
        "{answer:?}"
    );
    assert_eq!(answer.json()["properties"]["email"], ADA);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_its_place_was_taken_a_write_runs_elsewhere() {
    let stage = Stage::new().await;
    let address = stage.first.address.strip_prefix("http://").unwrap();
    let mut half = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST {CONTACTS} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nIdempotency-Key: {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{{\"prop",
        stage.installation.admin_key,
        KEY.1,
        contact().to_string().len()
    );
    half.write_all(head.as_bytes()).await.unwrap();
    let second = stage.kill();
    is_the_first(&stage.create(&second, &[KEY]).await.unwrap());
    is_replayed(&stage.create(&second, &[KEY]).await.unwrap());
    assert_eq!(stage.created(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_with_its_place_and_before_it_left_a_write_runs_once_the_place_is_given_up() {
    let stage = Stage::new().await;
    // It looks first, and that is where it is held.
    stage
        .installation
        .hubspot
        .arm(Fault::api(FaultKind::HoldBeforeIssue).method("GET"));
    let call = stage.begin(&[KEY, AHEAD]);
    stage.installation.hubspot.wait_for_held(1).await;
    let second = stage.kill();
    assert!(call.await.unwrap().is_err());
    stage.installation.hubspot.release_held();
    is_in_progress(&stage.create(&second, &[KEY, AHEAD]).await.unwrap());
    assert_eq!(stage.created(), 0);
    stage.long_after();
    is_the_first(&stage.create(&second, &[KEY, AHEAD]).await.unwrap());
    is_replayed(&stage.create(&second, &[KEY, AHEAD]).await.unwrap());
    assert_eq!(stage.created(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_it_left_a_write_is_unknown_whether_it_was_carried_out_or_not() {
    for held in [FaultKind::HoldBeforeIssue, FaultKind::HoldAfterIssue] {
        let stage = Stage::new().await;
        stage
            .installation
            .hubspot
            .arm(Fault::api(held.clone()).method("POST"));
        let call = stage.begin(&[KEY]);
        stage.installation.hubspot.wait_for_held(1).await;
        let second = stage.kill();
        assert!(call.await.unwrap().is_err());
        stage.installation.hubspot.release_held();
        is_in_progress(&stage.create(&second, &[KEY]).await.unwrap());
        stage.long_after();
        for _ in 0..3 {
            is_unknown(&stage.create(&second, &[KEY]).await.unwrap());
        }
        let created = stage.created();
        assert!(created <= 1, "{held:?} {created}");
        if held == FaultKind::HoldAfterIssue {
            assert_eq!(created, 1);
            // Who says how to look is answered by what is there.
            is_replayed(&stage.create(&second, &[KEY, AHEAD]).await.unwrap());
        }
        assert_eq!(stage.created(), created);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_with_an_answer_that_was_not_kept_a_write_is_unknown() {
    let stage = Stage::new().await;
    let hubspot = &stage.installation.hubspot;
    hubspot.arm(Fault::api(FaultKind::HoldAfterIssue).method("POST"));
    let call = stage.begin(&[KEY]);
    hubspot.wait_for_held(1).await;
    // Nobody writes to the store from here on.
    let sql = stage.sql();
    sql.execute_batch("BEGIN IMMEDIATE").unwrap();
    hubspot.release_held();
    // The caller is not kept waiting for the store.
    is_the_first(&call.await.unwrap().unwrap());
    stage.first.signal(Signal::KILL);
    sql.execute_batch("ROLLBACK").unwrap();
    let second = stage.installation.serve_another();
    is_in_progress(&stage.create(&second, &[KEY]).await.unwrap());
    stage.long_after();
    is_unknown(&stage.create(&second, &[KEY]).await.unwrap());
    assert_eq!(stage.created(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_its_end_a_write_is_answered_as_it_was() {
    let stage = Stage::new().await;
    let first = stage.create(&stage.first, &[KEY]).await.unwrap();
    is_the_first(&first);
    let second = stage.kill();
    let again = stage.create(&second, &[KEY]).await.unwrap();
    is_replayed(&again);
    assert_eq!(again.text, first.text);
    let other = stage
        .installation
        .ask_with(
            &second.address,
            Method::POST,
            CONTACTS,
            &stage.installation.admin_key,
            &[KEY],
            Some(json!({"properties": {"email": "eve@example.com"}})),
        )
        .await
        .unwrap();
    assert_eq!(
        (other.status.as_u16(), header(&other, "evergrant-error")),
        (422, "idempotency_mismatch")
    );
    assert_eq!(stage.created(), 1);
    assert!(!stage.installation.printed().contains(KEY.1));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_at_the_same_moment_carry_a_write_out_once() {
    let stage = Arc::new(Stage::new().await);
    let second = Arc::new(stage.installation.serve_another());
    for guard in [KEY, ("evergrant-dedupe", "fingerprint;window=60")] {
        let before = stage.installation.hubspot.ledger().creates_executed;
        let calls: Vec<_> = (0..16)
            .map(|nth| {
                let (stage, second) = (stage.clone(), second.clone());
                tokio::spawn(async move {
                    let service = if nth % 2 == 0 { &*stage.first } else { &*second };
                    stage.create(service, &[guard]).await.unwrap()
                })
            })
            .collect();
        let mut sent = 0;
        for call in calls {
            let answer = call.await.unwrap();
            match (answer.status.as_u16(), header(&answer, "evergrant-replayed")) {
                (409, "") if header(&answer, "evergrant-error") == "idempotency_in_progress" => {}
                // The second guard's write meets the contact of the first one's.
                (201 | 409, "") => sent += 1,
                (201 | 409, "true") => {}
                _ => panic!("{answer:?}"),
            }
        }
        assert_eq!(sent, 1, "{guard:?}");
        assert!(stage.installation.hubspot.ledger().creates_executed <= before + 1);
    }
    assert_eq!(stage.created(), 1);
}
