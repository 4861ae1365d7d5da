//! Guarded writes, and the answers that are kept of them.

use evergrant_domain::Timestamp;
use evergrant_domain::write_ledger::{Meeting, OnRecord, WriteState, meet};

use super::{Columns, Stored, strange, unreadable};
use crate::contract::{StoredAnswer, WriteReservation, WriteTicket};
use crate::vault::{Place, Vault};

/// What a reservation finds under its key.
pub(crate) struct FoundWrite {
    /// Whose place it is.
    pub(crate) owner: String,
    /// How far that one is.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(dead_code, reason = "SQLite looks and writes under one lock")
    )]
    pub(crate) state: WriteState,
    /// What follows from it.
    pub(crate) follows: Follows,
}

pub(crate) enum Follows {
    /// It is this reservation's own: it was made before, and the answer was lost.
    Own,
    /// It counts for nothing any more: the place may be taken over.
    Free,
    /// It was sent, and its time is over: to be put on record as unknown.
    Overdue,
    /// That is on record.
    Unknown,
    /// It says what to do.
    Met(Meeting, Option<StoredAnswer>),
}

/// Judges what is there for a reservation. Opens the answer only where that is what it meets.
pub(crate) fn read_found(
    vault: &Vault,
    row: &impl Columns,
    reservation: &WriteReservation,
    now: Timestamp,
) -> Stored<FoundWrite> {
    let owner = row.text("owner")?;
    let state = row.word("state", |word| {
        WriteState::ALL.into_iter().find(|state| state.as_str() == word)
    })?;
    let keep_until = row.time("keep_until")?;
    let on_record = OnRecord {
        state,
        same_request: row.text("request")? == reservation.request,
        // What has ended has no deadline, and is not judged by one.
        deadline: row.maybe_time("deadline")?.unwrap_or(keep_until),
        keep_until,
    };
    let follows = match meet(Some(&on_record), now) {
        _ if state == WriteState::Reserved && owner == reservation.owner => Follows::Own,
        Meeting::Free => Follows::Free,
        Meeting::Unknown if state == WriteState::Sent => Follows::Overdue,
        Meeting::Unknown => Follows::Unknown,
        Meeting::Done => {
            let ticket = ticket_of(reservation, owner.clone());
            Follows::Met(Meeting::Done, Some(open_answer(vault, &ticket, row)?))
        }
        met @ (Meeting::InProgress { .. } | Meeting::Mismatch) => Follows::Met(met, None),
    };
    Ok(FoundWrite {
        owner,
        state,
        follows,
    })
}

/// The place that a reservation gets.
pub(crate) fn ticket(reservation: &WriteReservation) -> WriteTicket {
    ticket_of(reservation, reservation.owner.clone())
}

/// The place that is this owner's.
pub(crate) fn ticket_of(reservation: &WriteReservation, owner: String) -> WriteTicket {
    WriteTicket {
        connection: reservation.connection.clone(),
        key: reservation.key.clone(),
        owner,
    }
}

/// An answer as its columns hold it.
pub(crate) struct SealedAnswer {
    pub(crate) answer: Vec<u8>,
    pub(crate) body: Option<Vec<u8>>,
    /// How much room the body takes.
    pub(crate) body_bytes: Option<i64>,
}

impl SealedAnswer {
    pub(crate) fn new(vault: &Vault, ticket: &WriteTicket, answer: &StoredAnswer) -> Stored<Self> {
        let record = record(ticket);
        let head = serde_json::to_vec(&(answer.status, &answer.headers)).map_err(|_| strange("answer"))?;
        let body = answer
            .body
            .as_ref()
            .map(|body| vault.seal_bytes(place(&record, "body"), body));
        Ok(Self {
            answer: vault.seal_bytes(place(&record, "answer"), &head),
            body_bytes: body
                .as_ref()
                .map(|body| i64::try_from(body.len()).unwrap_or(i64::MAX)),
            body,
        })
    }
}

fn open_answer(vault: &Vault, ticket: &WriteTicket, row: &impl Columns) -> Stored<StoredAnswer> {
    let record = record(ticket);
    let open = |field, sealed: &[u8]| {
        let place = place(&record, field);
        vault.open_bytes(place, sealed).map_err(|_| unreadable(place))
    };
    let head = open("answer", &row.bytes("answer")?)?;
    let (status, headers) = serde_json::from_slice(&head).map_err(|_| strange("answer"))?;
    let body = match row.maybe_bytes("body")? {
        Some(sealed) => Some(std::mem::take(&mut *open("body", &sealed)?)),
        None => None,
    };
    Ok(StoredAnswer {
        status,
        headers,
        body,
    })
}

/// Neither an id nor a key has a blank. The owner is among them, so that an older answer under the same key is refused.
fn record(ticket: &WriteTicket) -> String {
    format!("{} {} {}", ticket.connection, ticket.key, ticket.owner)
}

fn place<'a>(record: &'a str, field: &'static str) -> Place<'a> {
    Place {
        table: "writes",
        record,
        field,
        version: 0,
    }
}
