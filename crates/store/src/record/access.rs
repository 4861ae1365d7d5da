//! API keys, connect sessions, and authorization requests on their way.

use evergrant_domain::CodeVerifier;
use evergrant_domain::access::{Limits, Role};

use super::{Columns, Stored, strange, unreadable};
use crate::contract::{ApiKey, Authorization, ConnectSession, SessionOutcome};
use crate::vault::{Place, Vault};

pub(crate) fn read_key(row: &impl Columns) -> Stored<ApiKey> {
    Ok(ApiKey {
        id: row.text("id")?,
        name: row.text("name")?,
        role: row.word("role", Role::from_word)?,
        limits: Limits {
            apps: row.names("apps")?,
            customers: row.names("customers")?,
            connections: row.names("connections")?,
        },
        lane: row.maybe_text("lane")?,
        max_wait: row
            .maybe_number("max_wait")?
            .map(|seconds| u32::try_from(seconds).map_err(|_| strange("max_wait")))
            .transpose()?,
        created_at: row.time("created_at")?,
        expires_at: row.maybe_time("expires_at")?,
        revoked_at: row.maybe_time("revoked_at")?,
    })
}

pub(crate) fn read_session(row: &impl Columns) -> Stored<ConnectSession> {
    Ok(ConnectSession {
        id: row.text("id")?,
        app: row.parsed("app")?,
        customer: row.parsed("customer")?,
        connection: row.maybe_parsed("connection")?,
        scopes: row.texts("scopes")?,
        return_url: row.maybe_text("return_url")?,
        expires_at: row.time("expires_at")?,
        outcome: match row.text("outcome")?.as_str() {
            "pending" => SessionOutcome::Pending,
            "connected" => SessionOutcome::Connected(row.parsed("outcome_connection")?),
            "failed" => SessionOutcome::Failed {
                code: row.text("outcome_code")?,
                detail: row.text("outcome_detail")?,
            },
            _ => return Err(strange("outcome")),
        },
    })
}

/// The four columns of an outcome: its word, its connection, its code, its detail.
pub(crate) type OutcomeColumns<'a> = (&'static str, Option<&'a str>, Option<&'a str>, Option<&'a str>);

pub(crate) fn outcome_columns(outcome: &SessionOutcome) -> OutcomeColumns<'_> {
    match outcome {
        SessionOutcome::Pending => ("pending", None, None, None),
        SessionOutcome::Connected(id) => ("connected", Some(id.as_str()), None, None),
        SessionOutcome::Failed { code, detail } => ("failed", None, Some(code), Some(detail)),
    }
}

/// A code verifier as its column holds it.
pub(crate) struct SealedVerifier(pub(crate) Option<Vec<u8>>);

impl SealedVerifier {
    pub(crate) fn new(vault: &Vault, authorization: &Authorization) -> Self {
        let record = hex(&authorization.state_hash);
        let verifier = authorization.code_verifier.as_ref();
        Self(verifier.map(|verifier| vault.seal(verifier_place(&record), verifier.expose())))
    }
}

pub(crate) fn read_authorization(vault: &Vault, row: &impl Columns) -> Stored<Authorization> {
    let state_hash = hash(row, "state_hash")?;
    let record = hex(&state_hash);
    let place = verifier_place(&record);
    let code_verifier = row
        .maybe_bytes("code_verifier")?
        .map(|sealed| vault.open(place, &sealed).map_err(|_| unreadable(place)))
        .transpose()?;
    Ok(Authorization {
        state_hash,
        session: row.maybe_text("session")?,
        app: row.parsed("app")?,
        customer: row.parsed("customer")?,
        connection: row.maybe_parsed("connection")?,
        scopes: row.texts("scopes")?,
        return_url: row.maybe_text("return_url")?,
        code_verifier: code_verifier.map(|text| CodeVerifier::new(text.as_str())),
        expires_at: row.time("expires_at")?,
    })
}

fn hash(row: &impl Columns, column: &'static str) -> Stored<[u8; 32]> {
    row.bytes(column)?.try_into().map_err(|_| strange(column))
}

fn verifier_place(record: &str) -> Place<'_> {
    Place {
        table: "authorizations",
        record,
        field: "code_verifier",
        version: 0,
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
