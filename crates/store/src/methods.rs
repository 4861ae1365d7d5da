//! The contract's methods as a list, for whoever wraps a store: each hands them on in a way of its own.

/// Calls `$wrap!` with the signatures of the contract's plain methods and with those in `also`, as `fn name(args) -> answer;`.
/// What a wrapper treats by itself, for any of its users, is not among them: leases, [`pulse`] and [`hint`].
///
/// Types are those in scope where it is used: `evergrant_store::contract::*`, and the domain's.
///
/// [`pulse`]: crate::contract::Store::pulse
/// [`hint`]: crate::contract::Store::hint
#[macro_export]
macro_rules! for_plain_methods {
    ($wrap:ident! { $($also:tt)* }) => {
        $wrap! {
            fn create(new: NewConnection, now: Timestamp) -> Connected;
            fn reconnect(id: &ConnectionId, account: Option<Account>, tokens: TokenSet, event: Event, now: Timestamp) -> Connected;
            fn replace_older(new: NewConnection, says: evergrant_store::contract::RecordSays, replaced: Event, now: Timestamp) -> evergrant_store::contract::Replaced;
            fn supersede(new: NewConnection, retired: Event, now: Timestamp) -> Connected;
            fn held(id: &ConnectionId) -> Option<Held>;
            fn connection(id: &ConnectionId) -> Option<Connection>;
            fn find(app: &AppName, customer: &Customer, account: &str) -> Option<Connection>;
            fn list(filter: ConnectionFilter) -> Vec<Connection>;
            fn patch(id: &ConnectionId, customer: Option<Customer>, labels: Option<Vec<(String, String)>>, now: Timestamp) -> Connected;
            fn restore(id: &ConnectionId, shown: Version, version: Version, tokens: TokenSet, event: Event, now: Timestamp) -> Option<Held>;
            fn claim_probe(app: &AppName, connection: &ConnectionId, every: Duration, now: Timestamp) -> bool;
            fn endpoint_failed(app: &AppName, code: String, retry_after: Option<Duration>, jitter: Jitter, now: Timestamp) -> Breaker;
            fn endpoint_works(app: &AppName) -> ();
            fn claim_exchanges(app: &AppName, wanted: u32, per_second: u32, now: Timestamp) -> u32;
            fn reserve_write(reservation: WriteReservation, now: Timestamp) -> Reserved;
            fn write_leaves(ticket: &WriteTicket, deadline: Timestamp, now: Timestamp) -> bool;
            fn hold_write(ticket: &WriteTicket, deadline: Timestamp) -> bool;
            fn end_write(ticket: &WriteTicket, end: WriteEnd, now: Timestamp) -> bool;
            fn claim_calls(budget: &BudgetName, claim: Claim, now: Timestamp) -> Grant;
            fn budget_standing(budget: &BudgetName, now: Timestamp) -> Option<evergrant_domain::call_budget::Standing>;
            fn land(lease: &Lease, refreshed: Refreshed, now: Timestamp) -> Landed;
            fn condemn(lease: &Lease, reason: ReconnectReason, event: Event, now: Timestamp) -> bool;
            fn mark_uninstalled(id: &ConnectionId, at: Timestamp, event: Event, now: Timestamp) -> bool;
            fn begin_cooldown(id: &ConnectionId, version: Version, now: Timestamp) -> CooldownAnswer;
            fn claim_forced_refresh(id: &ConnectionId, every: Duration, event: Event, now: Timestamp) -> bool;
            fn disconnect(id: &ConnectionId, revoke: Revoke, superseded_by: Option<ConnectionId>, event: Event, now: Timestamp) -> Option<(Connection, RevocationState)>;
            fn purge(id: &ConnectionId) -> ();
            fn claim_revocations(limit: u32, push: Duration, now: Timestamp) -> Vec<Revocation>;
            fn queue_revocation(connection: &ConnectionId, app: &AppName, refresh_token: RefreshToken, now: Timestamp) -> ();
            fn finish_revocation(id: i64, state: RevocationState, event: Option<Event>, now: Timestamp) -> ();
            fn claim_due(query: DueQuery) -> Vec<ConnectionId>;
            fn note_usage(usage: Vec<Usage>, now: Timestamp) -> ();
            fn tallies(id: &ConnectionId, since: Timestamp) -> Vec<Tallied>;
            fn app_tallies(app: &AppName, since: Timestamp) -> Vec<Tallied>;
            fn note_event(id: &ConnectionId, event: Event, now: Timestamp) -> ();
            fn note_app_event(app: &AppName, event: Event, now: Timestamp) -> ();
            fn find_events(query: EventQuery) -> EventPage;
            fn event_head() -> i64;
            fn count_refreshes(id: &ConnectionId, since: Timestamp) -> RefreshCount;
            fn trim_events(trim: EventTrim) -> Option<ConnectionId>;
            fn count_connections(limits: Limits, quiet_time: Duration, now: Timestamp) -> Vec<ConnectionCount>;
            fn change_head() -> i64;
            fn changes(after: i64) -> (Vec<Change>, i64);
            fn app_state(app: &AppName) -> AppState;
            fn reject_app(app: &AppName, rejected: CredentialsRejected, event: Event) -> ();
            fn accept_app(app: &AppName, secret_fingerprint: String, event: Event, now: Timestamp) -> ();
            fn switch_to_single_use(app: &AppName, now: Timestamp) -> bool;
            fn create_key(key: ApiKey, hash: [u8; 32]) -> ();
            fn keys() -> Vec<ApiKey>;
            fn key_by_hash(hash: [u8; 32]) -> Option<ApiKey>;
            fn revoke_key(id: &str, now: Timestamp) -> bool;
            fn create_session(session: ConnectSession) -> ();
            fn session(id: &str) -> Option<ConnectSession>;
            fn finish_session(id: &str, outcome: SessionOutcome) -> ();
            fn begin_authorization(authorization: Authorization) -> ();
            fn spend_state(state_hash: [u8; 32], now: Timestamp) -> Option<Authorization>;
            fn webhook_position() -> Option<i64>;
            fn add_deliveries(from: Option<i64>, to: i64, deliveries: Vec<evergrant_store::contract::NewDelivery>, now: Timestamp) -> bool;
            fn claim_deliveries(endpoint: &str, limit: u32, push: Duration, now: Timestamp) -> Vec<evergrant_store::contract::Delivery>;
            fn end_try(tried: evergrant_store::contract::TriedDelivery, end: evergrant_store::contract::TryEnd, now: Timestamp) -> bool;
            fn deliveries(filter: evergrant_store::contract::DeliveryFilter) -> Vec<evergrant_store::contract::Delivery>;
            fn dead_letters(limits: Limits) -> evergrant_store::contract::DeadLetters;
            fn resend_delivery(id: &str, now: Timestamp) -> Option<evergrant_store::contract::Delivery>;
            fn sweep_deliveries(sweep: evergrant_store::contract::DeliverySweep, now: Timestamp) -> ();
            fn claim_journal(app: &AppName, lasts: Duration, now: Timestamp) -> Option<evergrant_store::contract::Journal>;
            fn journal_subscribed(app: &AppName, now: Timestamp) -> ();
            fn advance_journal(app: &AppName, step: evergrant_store::contract::JournalStep, now: Timestamp) -> Option<Vec<ConnectionId>>;
            fn sweep(before: Timestamp) -> ();
            fn sweep_writes(now: Timestamp, bodies_max: u64) -> ();
            fn ping() -> ();
            $($also)*
        }
    };
}
