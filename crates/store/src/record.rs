//! Rows as records and records as rows: what every database shares.
//!
//! The columns have the same names everywhere, and what is sealed is sealed for the same place, so a row can move from one
//! database to another. Start at [`read_connection`] and [`SealedTokens`].

mod access;
mod call_budget;
mod columns;
mod history;
#[cfg(feature = "sqlite")]
mod landing;
mod upkeep;
mod webhooks;
mod write_ledger;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::connection::{Account, AgainstRecord, LastSeen, RefreshTrouble};
use evergrant_domain::redemption::Intent;
use evergrant_domain::refresh_policy::Ends;
use evergrant_domain::rejection::Cooldown;
use evergrant_domain::{
    AccessToken, Connection, ConnectionId, ConnectionStatus, Fence, Kind, ReconnectReason, RefreshToken,
    Timestamp, TokenSet, Version,
};

#[cfg(test)]
pub(crate) use self::access::hex;
pub(crate) use self::access::{SealedVerifier, outcome_columns, read_authorization, read_key, read_session};
pub(crate) use self::call_budget::{BudgetColumns, budget_key, read_budget};
pub(crate) use self::columns::{Columns, label_list, list, strange};
#[cfg(feature = "sqlite")]
pub(crate) use self::history::read_counts;
pub(crate) use self::history::{
    BUSY, Before, NEWEST_LOOKED_AT, SELECT_EVENT, Span, Sums, TALLIES_KEPT_ON, context, counts,
    counts_column, health, hour, minute, read_count, read_event, read_tallied, told_of_landing,
};
#[cfg(feature = "sqlite")]
pub(crate) use self::landing::LandsAs;
pub(crate) use self::upkeep::{
    HighestSeen, read_app_state, read_change, read_revocation, read_revocation_state, seal_for_revocation,
};
pub(crate) use self::webhooks::{EndColumns, read_dead_letters, read_delivery, read_journal};
pub(crate) use self::write_ledger::{Follows, FoundWrite, SealedAnswer, read_found, ticket, ticket_of};
use crate::contract::{
    Connected, Held, Lease, LeaseAnswer, NewConnection, RecordSays, Replaced, Schema, StoreError,
};
use crate::vault::{Place, Vault};

pub(crate) type Stored<T> = Result<T, StoreError>;

/// Every column of a connection.
pub(crate) const SELECT_CONNECTION: &str = "SELECT c.* FROM connections c";

/// What the vault check seals. Its words do not matter, only that they open.
const CHECK: &str = "evergrant";
const CHECK_PLACE: Place<'static> = Place {
    table: "vault_check",
    record: "1",
    field: "sealed",
    version: 0,
};

/// Who writes the history, for people: this machine's name and this process's number on it.
pub(crate) fn this_process() -> Arc<str> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = Some(host.trim())
        .filter(|host| !host.is_empty())
        .unwrap_or("unknown");
    format!("{host}:{}", std::process::id()).into()
}

/// What proves the vault key. The first key to open a database is its key: another one would seal new tokens beside old
/// ones that it cannot open.
pub(crate) fn seal_check(vault: &Vault) -> Vec<u8> {
    vault.seal(CHECK_PLACE, CHECK)
}

/// Whether the database was sealed with this key.
pub(crate) fn opens_check(vault: &Vault, sealed: &[u8]) -> bool {
    vault
        .open(CHECK_PLACE, sealed)
        .is_ok_and(|opened| *opened == CHECK)
}

/// Whether nothing is to be done about a schema, as it is newer and may be used. refinery refuses a history that knows more than
/// it does, so it is not asked.
pub(crate) fn is_left_alone(schema: Schema) -> bool {
    if schema.is_newer() {
        tracing::info!(
            event = "schema_is_newer",
            found = schema.found,
            known = schema.known,
            "the database has schema version {}, this Evergrant knows versions up to {} and may use it: nothing is changed",
            schema.found,
            schema.known
        );
    }
    schema.is_newer()
}

/// Whether a consent that made `new` may restore this connection, which has its id. One that has ended takes any account.
pub(crate) fn may_be_restored_as(old: &Connection, new: &NewConnection) -> bool {
    let has_ended = matches!(old.status, ConnectionStatus::Disconnected { .. });
    let fits = match (&old.account, &new.account) {
        (Some(pinned), Some(chosen)) => pinned.id == chosen.id,
        _ => true,
    };
    old.app == new.app && old.customer == new.customer && (has_ended || fits)
}

/// Whether a record may replace the connection that it means, or why not. `old` is locked until the transaction ends.
pub(crate) fn judged(old: &Connection, new: &NewConnection, says: RecordSays) -> Result<(), Replaced> {
    let by = old.id.clone();
    if old.kind != new.kind || !may_be_restored_as(old, new) {
        return Err(Replaced::Replaced(kept_from(old, new)));
    }
    match old.against_record(says.ends_at) {
        AgainstRecord::Older => Ok(()),
        AgainstRecord::NotOlder => Err(Replaced::NotOlder { by }),
        AgainstRecord::UnderWay => Err(Replaced::UnderWay { by }),
        AgainstRecord::Closed => Err(Replaced::Replaced(kept_from(old, new))),
    }
}

/// What of the record this connection has, and does not give to it.
fn kept_from(old: &Connection, new: &NewConnection) -> Connected {
    let by = old.id.clone();
    let account = |account: &Option<Account>| account.as_ref().map(|account| account.id.clone());
    if old.id == new.id {
        Connected::IdTaken
    } else if new.account.is_some() && account(&old.account) == account(&new.account) {
        Connected::AccountTaken { by }
    } else {
        Connected::GrantTaken { by }
    }
}

/// What is known of an account beside its id is not forgotten for a record that names the id alone.
pub(crate) fn account_to_pin<'a>(old: &Connection, new: &'a NewConnection) -> Option<&'a Account> {
    new.account.as_ref().filter(|_| old.account.is_none())
}

/// A token set as its columns hold it.
pub(crate) struct SealedTokens {
    pub(crate) access_token: Vec<u8>,
    pub(crate) refresh_token: Option<Vec<u8>>,
    pub(crate) fingerprint: Option<String>,
}

impl SealedTokens {
    /// Seals a token set for the version that it is stored with.
    pub(crate) fn new(vault: &Vault, id: &ConnectionId, version: Version, tokens: &TokenSet) -> Self {
        let refresh_token = tokens.refresh_token.as_ref();
        Self {
            access_token: vault.seal(
                token_place(id, "access_token", version),
                tokens.access_token.expose(),
            ),
            refresh_token: refresh_token
                .map(|token| vault.seal(token_place(id, "refresh_token", version), token.expose())),
            fingerprint: refresh_token.map(|token| fingerprint(vault, token)),
        }
    }
}

/// By this two rows are known to hold one grant, and the token by nothing.
pub(crate) fn fingerprint(vault: &Vault, token: &RefreshToken) -> String {
    vault.refresh_token_fingerprint(token)
}

fn token_place<'a>(id: &'a ConnectionId, field: &'static str, version: Version) -> Place<'a> {
    Place {
        table: "connections",
        record: id.as_str(),
        field,
        version: version.number(),
    }
}

fn unreadable(place: Place<'_>) -> StoreError {
    StoreError::Unreadable {
        record: format!("{} {}", place.table, place.record),
        field: place.field,
    }
}

/// The record with its token set.
pub(crate) fn read_held(vault: &Vault, row: &impl Columns) -> Stored<Held> {
    let connection = read_connection(row)?;
    let open = |field| -> Stored<_> {
        let Some(sealed) = row.maybe_bytes(field)? else {
            return Ok(None);
        };
        let place = token_place(&connection.id, field, connection.version);
        vault
            .open(place, &sealed)
            .map(Some)
            .map_err(|_| unreadable(place))
    };
    // `as_str` makes an exact copy that moves into the secret; the opened buffer is wiped.
    let refresh_token = open("refresh_token")?.map(|text| RefreshToken::new(text.as_str()));
    let tokens = open("access_token")?.map(|text| TokenSet {
        access_token: AccessToken::new(text.as_str()),
        refresh_token,
        token_type: connection.token_type.clone(),
        scopes: connection.scopes.clone(),
        issued_at: connection.issued_at,
        ends: connection.ends,
        unproven: connection.unproven,
    });
    Ok(Held {
        tokens,
        cooldown: read_cooldown(row)?,
        connection,
    })
}

/// The record alone.
pub(crate) fn read_connection(row: &impl Columns) -> Stored<Connection> {
    let id: ConnectionId = row.parsed("id")?;
    let version = Version::new(row.number("version")?);
    let since = || row.time("status_since");
    let status = match row.text("status")?.as_str() {
        "active" => ConnectionStatus::Active,
        "reconnect_required" => ConnectionStatus::ReconnectRequired {
            reason: row.word("status_reason", ReconnectReason::from_word)?,
            since: since()?,
        },
        "disconnected" => ConnectionStatus::Disconnected {
            since: since()?,
            superseded_by: row.maybe_parsed("superseded_by")?,
        },
        _ => return Err(strange("status")),
    };
    let account = match row.maybe_parsed("account_id")? {
        Some(id) => Some(Account {
            id,
            domain: row.maybe_text("account_domain")?,
            user: row.maybe_text("account_user")?,
        }),
        None => None,
    };
    let trouble = match row.maybe_time("trouble_failed_at")? {
        Some(failed_at) => Some(RefreshTrouble {
            failed_at,
            code: row.text("trouble_code")?,
            failures: row.count("trouble_failures")?,
            next_attempt_at: row.time("trouble_next_attempt_at")?,
        }),
        None => None,
    };
    let intent = intent(version, row.attempts("attempts")?.iter())?;
    Ok(Connection {
        app: row.parsed("app")?,
        customer: row.parsed("customer")?,
        kind: row.word("kind", Kind::from_word)?,
        account,
        status,
        version,
        scopes: row.texts("scopes")?,
        token_type: row.text("token_type")?,
        issued_at: row.time("issued_at")?,
        ends: Ends {
            soft: row.time("soft_end")?,
            hard: row.time("hard_end")?,
            expires: row.time("expires_at")?,
        },
        unproven: row.flag("unproven")?,
        labels: row.pairs("labels")?,
        created_at: row.time("created_at")?,
        connected_at: row.time("connected_at")?,
        updated_at: row.time("updated_at")?,
        last: LastSeen {
            call_at: row.maybe_time("last_call_at")?,
            success_at: row.maybe_time("last_success_at")?,
            refresh_at: row.maybe_time("last_refresh_at")?,
            unauthorized_at: row.maybe_time("last_unauthorized_at")?,
            forbidden_at: row.maybe_time("last_forbidden_at")?,
            rate_limited_at: row.maybe_time("last_rate_limited_at")?,
        },
        trouble,
        intent,
        refresh_in_progress_until: row.maybe_time("lease_shown_until")?,
        id,
    })
}

/// One attempt at redeeming: the fence of its lease, when it began, its holder, whether that took over from another one, and
/// which of the holder's askings it answers.
pub(crate) type Attempt = (i64, i64, String, bool, i64);

fn intent<'a>(
    version: Version,
    attempts: impl Iterator<Item = &'a Attempt> + Clone,
) -> Stored<Option<Intent>> {
    let began_at = attempts.map(|(_, began_at, ..)| *began_at);
    let Some((first_at, last_at)) = began_at.clone().min().zip(began_at.clone().max()) else {
        return Ok(None);
    };
    Ok(Some(Intent {
        version,
        first_at: Timestamp::from_millis(first_at),
        last_at: Timestamp::from_millis(last_at),
        attempts: u32::try_from(began_at.count()).map_err(|_| strange("attempts"))?,
    }))
}

/// The lease that the attempt of this holder's asking goes with, where the row still has both.
pub(crate) fn read_taken(
    vault: &Vault,
    row: &impl Columns,
    holder: &str,
    asking: i64,
) -> Stored<Option<LeaseAnswer>> {
    let attempts = row.attempts("attempts")?;
    let fence = row.number("fence")?;
    let is_own = |attempt: &&Attempt| attempt.0 == fence && attempt.2 == holder && attempt.4 == asking;
    let Some((_, _, _, took_over, _)) = attempts.iter().find(is_own) else {
        return Ok(None);
    };
    if row.maybe_text("lease_holder")?.as_deref() != Some(holder) {
        return Ok(None);
    }
    let held = read_held(vault, row)?;
    let connection = &held.connection;
    Ok(Some(LeaseAnswer::Taken {
        lease: Lease::new(connection.id.clone(), connection.version, Fence::new(fence)),
        earlier: intent(
            connection.version,
            attempts.iter().filter(|attempt| !is_own(attempt)),
        )?,
        took_over: *took_over,
        held: Box::new(held),
    }))
}

fn read_cooldown(row: &impl Columns) -> Stored<Option<Cooldown>> {
    let Some(began_at) = row.maybe_time("cooldown_began_at")? else {
        return Ok(None);
    };
    let millis = u64::try_from(row.number("cooldown_ms")?).map_err(|_| strange("cooldown_ms"))?;
    Ok(Some(Cooldown {
        began_at,
        lasts: Duration::from_millis(millis),
    }))
}
