//! The simulated provider: OAuth endpoints over streams in memory. It shares no code with the product.
//!
//! What it decides is in `grants`; here is how it answers, and how its answers go wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use evergrant_domain::app::Dialect;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::{Instant, sleep, sleep_until};
use url::form_urlencoded;

use crate::dice::Dice;
use crate::grants::{End, Issue, Presented};
use crate::scenario::Kind;
use crate::wire::whole_body;
use crate::witness::Witness;

/// The one secret that the provider knows.
pub(crate) const CLIENT_SECRET: &str = "canary-client-secret";

/// The provider. Lives as long as a run does.
pub(crate) struct Provider {
    witness: Witness,
    dice: Dice,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    outage: Option<Outage>,
    /// Things go wrong.
    troubled: bool,
    /// Authorization codes: for which connection.
    codes: BTreeMap<String, usize>,
}

/// What ails the provider as a whole for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// Nobody answers the door.
    Refuses,
    /// An edge answers 503, and nothing is done.
    Unavailable,
    /// An edge answers 502, though everything is done.
    BadGateway,
    /// The client's credentials are refused.
    ClientRefused,
    /// 429 with a wait.
    Busy,
    /// Another program answers at the token endpoint: 404, HTML.
    Moved,
}

impl Outage {
    pub(crate) const ALL: [Self; 6] = [
        Self::Refuses,
        Self::Unavailable,
        Self::BadGateway,
        Self::ClientRefused,
        Self::Busy,
        Self::Moved,
    ];
}

/// What becomes of one request and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    /// The connection ends before the request was read.
    LostOnItsWay,
    /// It is read, and nothing ever comes back.
    Swallowed,
    /// It is done, and the connection ends.
    CutAfter,
    /// It is done, and the answer comes when nobody waits any more.
    LateAfter,
    Truncated,
    Doubled,
    /// It is done, and a page comes back beside its 200.
    Garbled,
    BadGatewayAfter,
    UnavailableBefore,
    BusyBefore,
}

const FATES: [Fate; 10] = [
    Fate::LostOnItsWay,
    Fate::Swallowed,
    Fate::CutAfter,
    Fate::LateAfter,
    Fate::Truncated,
    Fate::Doubled,
    Fate::Garbled,
    Fate::BadGatewayAfter,
    Fate::UnavailableBefore,
    Fate::BusyBefore,
];

/// An answer before it is sent.
struct Answer {
    status: u16,
    retry_after: Option<u32>,
    body: String,
    /// Whether it says for certain what was done.
    definite: bool,
}

impl Answer {
    fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            retry_after: None,
            body: body.to_string(),
            definite: status < 500,
        }
    }

    fn page(status: u16) -> Self {
        Self {
            status,
            retry_after: None,
            body: "<html>what you see when nobody is at home</html>".to_owned(),
            definite: false,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let wait = self
            .retry_after
            .map_or_else(String::new, |seconds| format!("retry-after: {seconds}\r\n"));
        format!(
            "HTTP/1.1 {} -\r\ncontent-type: application/json\r\n{wait}content-length: {}\r\nconnection: close\r\n\r\n{}",
            self.status,
            self.body.len(),
            self.body
        )
        .into_bytes()
    }
}

impl Provider {
    pub(crate) fn new(witness: &Witness, dice: &Dice) -> Self {
        Self {
            witness: witness.clone(),
            dice: dice.of("provider"),
            state: Mutex::default(),
        }
    }

    pub(crate) fn witness(&self) -> &Witness {
        &self.witness
    }

    /// A customer consents; the code that the browser brings back.
    pub(crate) fn new_code(&self, connection: usize) -> String {
        let mut state = self.state.lock();
        let code = format!("canary-code-{connection}-{}", state.codes.len());
        state.codes.insert(code.clone(), connection);
        code
    }

    pub(crate) fn suffers(&self, outage: Option<Outage>) {
        self.witness
            .trace
            .note("provider", format_args!("suffers {outage:?}"));
        self.state.lock().outage = outage;
    }

    /// From now on things go wrong.
    pub(crate) fn trouble(&self) {
        self.state.lock().troubled = true;
    }

    /// From now on everything goes well.
    pub(crate) fn heal(&self) {
        let mut state = self.state.lock();
        state.outage = None;
        state.troubled = false;
    }

    pub(crate) fn refuses_connections(&self) -> bool {
        self.state.lock().outage == Some(Outage::Refuses)
    }

    /// One connection, which carries one request.
    pub(crate) async fn serve(&self, mut stream: DuplexStream, exchange: usize, deadline: Instant) {
        let mut request = Vec::new();
        while whole_body(&request).is_none() {
            match stream.read_buf(&mut request).await {
                Ok(read) if read > 0 => {}
                _ => return,
            }
        }
        let fate = self.fate();
        if fate == Fate::LostOnItsWay {
            return;
        }
        // A request that is on its way longer than its sender waits for the answer is what nobody can guard against.
        sleep_until((Instant::now() + self.way()).min(deadline)).await;
        let path = request.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        let path = String::from_utf8_lossy(path).into_owned();
        let fields: BTreeMap<String, String> =
            form_urlencoded::parse(whole_body(&request).unwrap_or_default())
                .into_owned()
                .collect();
        let answer = match fate {
            Fate::UnavailableBefore => Some(Answer::page(503)),
            Fate::BusyBefore => Some(self.busy()),
            Fate::Swallowed => None,
            _ => Some(self.act(exchange, &path, &fields)),
        };
        if fate != Fate::Answered {
            self.witness
                .trace
                .note("provider", format_args!("exchange {exchange} {path}: {fate:?}"));
        }
        let Some(answer) = answer else {
            return wait_until_left(stream).await;
        };
        let whole = answer.bytes();
        let bytes = match fate {
            Fate::CutAfter => return,
            Fate::BadGatewayAfter => Answer::page(502).bytes(),
            Fate::Garbled if answer.status == 200 => Answer::page(200).bytes(),
            Fate::Truncated => whole[..=self.dice.below(whole.len() - 1)].to_vec(),
            Fate::Doubled => [whole.as_slice(), whole.as_slice()].concat(),
            _ => whole.clone(),
        };
        let sleeps = match fate {
            Fate::LateAfter => self
                .dice
                .between(Duration::from_secs(10), Duration::from_secs(29)),
            _ => self.dice.mostly_short(Duration::from_millis(200)),
        };
        sleep(sleeps).await;
        let readable = matches!(
            fate,
            Fate::Answered | Fate::LateAfter | Fate::Doubled | Fate::UnavailableBefore | Fate::BusyBefore
        );
        self.witness
            .answers(exchange, readable.then_some(whole.len()), answer.definite);
        // Whoever has left does not read it.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
    }

    fn fate(&self) -> Fate {
        let troubled = self.state.lock().troubled;
        if troubled && self.dice.happens(self.witness.scenario.faults.wire) {
            self.dice.one_of(&FATES)
        } else {
            Fate::Answered
        }
    }

    fn way(&self) -> Duration {
        let scenario = &self.witness.scenario;
        if scenario.wall_time_jumps() {
            // A jump ends the quiet time too early; a request that was still on its way then is not guarded against.
            Duration::ZERO
        } else if scenario.faults.slow_requests {
            self.dice.mostly_short(Duration::from_secs(12))
        } else {
            self.dice.mostly_short(Duration::from_millis(100))
        }
    }

    fn busy(&self) -> Answer {
        Answer {
            retry_after: self.dice.happens(0.5).then_some(3),
            definite: true,
            ..Answer::page(429)
        }
    }

    fn act(&self, exchange: usize, path: &str, fields: &BTreeMap<String, String>) -> Answer {
        let outage = self.state.lock().outage;
        let field = |name: &str| fields.get(name).map_or("", String::as_str);
        match outage {
            Some(Outage::Unavailable) => return Answer::page(503),
            Some(Outage::Busy) => return self.busy(),
            Some(Outage::Moved) if path == "/token" || path == "/revoke" => {
                return Answer {
                    definite: true,
                    ..Answer::page(404)
                };
            }
            Some(Outage::ClientRefused) => return self.refuse(401, "BAD_CLIENT_SECRET", "invalid_client"),
            Some(Outage::BadGateway | Outage::Refuses | Outage::Moved) | None => {}
        }
        let answer = match path {
            _ if field("client_secret") != CLIENT_SECRET => {
                self.refuse(401, "BAD_CLIENT_SECRET", "invalid_client")
            }
            "/token" if field("grant_type") == "refresh_token" => {
                match self.witness.judge(exchange, field("refresh_token")) {
                    Presented::Accepted(issue) => self.issued(&issue),
                    Presented::Refused => self.refuse(400, "BAD_REFRESH_TOKEN", "invalid_grant"),
                }
            }
            "/token" => {
                let connection = self.state.lock().codes.get(field("code")).copied();
                match connection {
                    Some(connection) => {
                        let now = self.witness.now();
                        let issue = self.witness.seen().grants.consent(connection, now);
                        self.issued(&issue)
                    }
                    None => self.refuse(400, "BAD_AUTH_CODE", "invalid_grant"),
                }
            }
            "/introspect" => {
                let now = self.witness.now();
                let token = field("token");
                let seen = self.witness.seen();
                let active = seen.grants.redeems(token, now) || seen.grants.serves(token, now);
                Answer::json(200, &json!({ "active": active }))
            }
            "/revoke" => {
                let now = self.witness.now();
                self.witness
                    .trace
                    .note("provider", format_args!("revokes {}", field("token")));
                self.witness.seen().grants.revoke(field("token"), now);
                Answer::json(200, &json!({}))
            }
            _ => Answer::page(404),
        };
        match outage {
            Some(Outage::BadGateway) => Answer::page(502),
            _ => answer,
        }
    }

    fn issued(&self, issue: &Issue) -> Answer {
        let scenario = &self.witness.scenario;
        let mut body = json!({
            "access_token": issue.access_token,
            "token_type": "bearer",
            "expires_in": scenario.lifetime.as_secs(),
        });
        // A provider that does not rotate need not repeat the refresh token (RFC 6749 §6).
        if scenario.kind != Kind::Never || self.first_of(issue) || self.dice.happens(0.5) {
            body["refresh_token"] = json!(issue.refresh_token);
        }
        Answer::json(200, &body)
    }

    /// Whether this is what a consent brought: it always names the refresh token.
    fn first_of(&self, issue: &Issue) -> bool {
        let seen = self.witness.seen();
        seen.grants
            .refresh
            .get(&issue.refresh_token)
            .is_some_and(|refresh| refresh.accepted_at.is_none())
    }

    fn refuse(&self, status: u16, hubspot: &str, rfc: &str) -> Answer {
        let body = match self.witness.scenario.dialect {
            Dialect::HubSpot => json!({ "status": hubspot, "message": "no", "error": rfc }),
            Dialect::Generic => json!({ "error": rfc }),
        };
        Answer::json(status, &body)
    }

    /// The customer uninstalls the app.
    pub(crate) fn uninstalls(&self, connection: usize) {
        let now = self.witness.now();
        let mut seen = self.witness.seen();
        let token = seen.connections[connection]
            .history
            .last()
            .and_then(|stored| stored.refresh_token.clone());
        if let Some(grant) = token.and_then(|token| seen.grants.grant_of(&token)) {
            self.witness.trace.note(
                "customer",
                format_args!("uninstalls connection {connection} (grant {grant})"),
            );
            seen.grants.end(grant, End::Customer, now);
        }
    }
}

/// Until the other side lets go.
async fn wait_until_left(mut stream: DuplexStream) {
    let mut nothing = [0];
    while stream.read(&mut nothing).await.is_ok_and(|read| read > 0) {}
}
