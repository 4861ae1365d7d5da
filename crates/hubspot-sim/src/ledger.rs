//! The ledger: what the simulator saw. It is the proof that a refresh token was redeemed exactly once, that
//! nothing was written twice, that nobody called with an expired token.
//!
//! It holds no secret: a refresh token appears as `rt-<n>`, numbered in the order of issue.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

/// Everything counted since the start, or since the last reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// Requests to a token endpoint, whatever became of them.
    pub token_requests: u64,
    /// Codes exchanged for tokens.
    pub code_exchanges: u64,
    /// Token requests of kind `refresh_token` that issued tokens.
    pub refreshes_accepted: u64,
    /// Token requests of kind `refresh_token` that the endpoint itself refused (not by a fault).
    pub refreshes_refused: u64,
    /// Refused because of the client: `BAD_CLIENT_ID`, `BAD_CLIENT_SECRET`.
    pub client_refusals: u64,
    /// Presentations of a refresh token that had been replaced already, accepted (grace) or refused.
    pub replays: u64,
    /// Presentations of refresh tokens that were never issued.
    pub unknown_refresh_tokens: u64,
    /// The most presentations of one refresh token that were in flight at once; above 1 is a race.
    pub refresh_overlaps_max: u64,
    /// The most refreshes of one (app, portal) in flight at once, whichever refresh token they presented.
    pub grant_overlaps_max: u64,
    /// Token requests that took effect without their answer arriving: cut, cut short, endless, empty.
    pub answers_lost: u64,
    /// Introspections, the metadata routes of v1 included.
    pub introspections: u64,
    /// Revocations asked for.
    pub revocations: u64,
    /// Refresh tokens that died by revocation, uninstall, or replay with family revocation.
    pub grants_revoked: u64,
    /// Installs removed, by the app or by the portal.
    pub uninstalls: u64,
    /// Subscriptions to the webhooks journal that were asked for.
    pub journal_subscriptions: u64,
    /// Times that the journal was asked for a page.
    pub journal_reads: u64,
    /// Pages of the journal that were fetched.
    pub journal_pages: u64,
    /// API calls that arrived, whatever became of them.
    pub api_calls: u64,
    /// API calls that were executed.
    pub api_executed: u64,
    /// Records created. A batch counts each of its records.
    pub creates_executed: u64,
    /// API calls answered with 401, by reason.
    pub unauthorized: Unauthorized,
    /// API calls answered with 429, by the limit that they were over.
    pub rate_limited: RateLimited,
    /// Faults met by requests.
    pub faults_met: u64,
    /// Every refresh token, in the order of issue.
    pub refresh_tokens: Vec<RefreshTokenRecord>,
    /// Every (app, portal) pair that ever held a grant.
    pub grants: Vec<GrantRecord>,
    /// API calls that carried an `x-req-id` header, by its value.
    pub requests: BTreeMap<String, RequestRecord>,
    #[serde(skip)]
    grant_index: HashMap<(String, u64), usize>,
}

/// Why API calls were answered with 401.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Unauthorized {
    /// The access token was past its time.
    pub expired: u64,
    /// The access token was never issued.
    pub garbage: u64,
    /// No credentials, or malformed ones.
    pub missing: u64,
    /// The access token's install is gone, or the static token was revoked.
    pub killed: u64,
    /// The access token was fine; a fault said otherwise.
    pub injected: u64,
}

/// Which limit API calls were over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RateLimited {
    /// `TEN_SECONDLY_ROLLING`, of an app in a portal.
    pub ten_secondly: u64,
    /// `SECONDLY`, of searches in a portal.
    pub secondly: u64,
    /// None: a fault said so.
    pub injected: u64,
}

impl RateLimited {
    /// All of them.
    pub fn total(&self) -> u64 {
        let Self {
            ten_secondly,
            secondly,
            injected,
        } = self;
        ten_secondly + secondly + injected
    }
}

/// The life of one refresh token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RefreshTokenRecord {
    /// `rt-<n>`; never the token itself.
    pub label: String,
    /// The app it was issued to.
    pub client_id: String,
    /// The portal it was issued for.
    pub hub_id: u64,
    /// Token requests that carried it.
    pub presented: u64,
    /// Those that issued tokens.
    pub accepted: u64,
    /// Those that the endpoint itself refused.
    pub refused: u64,
    /// Those that came while another one was in flight.
    pub overlaps: u64,
    /// Those that came after it had been replaced.
    pub replays: u64,
    /// Those of them that were accepted (grace).
    pub accepted_after_superseded: u64,
    /// Whether a new refresh token has replaced it.
    pub superseded: bool,
    /// Whether it was revoked, uninstalled or its portal deleted.
    pub dead: bool,
    /// Presentations being answered right now.
    pub in_flight: u64,
}

/// What one app did in one portal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GrantRecord {
    /// The app.
    pub client_id: String,
    /// The portal.
    pub hub_id: u64,
    /// Codes exchanged, or grants issued by the control API.
    pub installs: u64,
    /// Refreshes that issued tokens.
    pub refreshes_accepted: u64,
    /// Refreshes that the endpoint itself refused.
    pub refreshes_refused: u64,
    /// Refreshes being answered right now.
    pub refreshes_in_flight: u64,
    /// The most refreshes in flight at once.
    pub refreshes_in_flight_max: u64,
    /// Access tokens issued.
    pub access_tokens_issued: u64,
    /// API calls that arrived with an access token of this grant.
    pub api_calls: u64,
    /// API calls that were executed.
    pub api_executed: u64,
    /// API calls whose access token was past its time when they arrived.
    pub arrived_expired: u64,
    /// API calls answered with 401, faults included.
    pub unauthorized: u64,
    /// API calls answered with 429, faults included.
    pub rate_limited: u64,
    /// Records created.
    pub creates_executed: u64,
}

/// What became of the API calls with one `x-req-id`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RequestRecord {
    /// How often it arrived.
    pub deliveries: u64,
    /// How often it was executed.
    pub executed: u64,
    /// Records it created.
    pub creates_executed: u64,
}

impl Ledger {
    /// The most presentations of one refresh token that were in flight at once.
    pub fn presentations_in_flight_max(&self) -> u64 {
        self.refresh_overlaps_max
    }

    /// The refresh token with this label (`rt-<n>`).
    pub fn refresh_token(&self, label: &str) -> Option<&RefreshTokenRecord> {
        self.refresh_tokens.iter().find(|record| record.label == label)
    }

    /// What one app did in one portal; `None` if it never held a grant there.
    pub fn grant(&self, client_id: &str, hub_id: u64) -> Option<&GrantRecord> {
        self.grants
            .iter()
            .find(|record| record.hub_id == hub_id && record.client_id == client_id)
    }

    /// The refresh tokens issued to any app for one portal, in the order of issue.
    pub fn refresh_tokens_of(&self, hub_id: u64) -> impl Iterator<Item = &RefreshTokenRecord> {
        self.refresh_tokens
            .iter()
            .filter(move |record| record.hub_id == hub_id)
    }

    /// The most often that any one refresh token was accepted. With rotation, above 1 is a double redemption.
    pub fn accepted_max(&self) -> u64 {
        self.refresh_tokens
            .iter()
            .map(|record| record.accepted)
            .max()
            .unwrap_or(0)
    }

    /// API calls that arrived with an access token past its time.
    pub fn arrived_expired(&self) -> u64 {
        self.grants.iter().map(|record| record.arrived_expired).sum()
    }

    /// API calls answered with 401, for whatever reason.
    pub fn unauthorized_total(&self) -> u64 {
        let Unauthorized {
            expired,
            garbage,
            missing,
            killed,
            injected,
        } = self.unauthorized;
        expired + garbage + missing + killed + injected
    }

    /// The `x-req-id`s that were executed more than once.
    pub fn executed_more_than_once(&self) -> impl Iterator<Item = (&str, &RequestRecord)> {
        self.requests
            .iter()
            .filter(|(_, record)| record.executed > 1)
            .map(|(id, record)| (id.as_str(), record))
    }

    /// Opens the page of a new refresh token and returns its number.
    pub(crate) fn open_refresh_token(&mut self, client_id: &str, hub_id: u64) -> usize {
        let index = self.refresh_tokens.len();
        self.refresh_tokens.push(RefreshTokenRecord {
            label: format!("rt-{}", index + 1),
            client_id: client_id.to_owned(),
            hub_id,
            ..RefreshTokenRecord::default()
        });
        index
    }

    /// The page of a grant; opened when it is the first time.
    pub(crate) fn grant_mut(&mut self, client_id: &str, hub_id: u64) -> &mut GrantRecord {
        let index = *self
            .grant_index
            .entry((client_id.to_owned(), hub_id))
            .or_insert_with(|| {
                self.grants.push(GrantRecord {
                    client_id: client_id.to_owned(),
                    hub_id,
                    ..GrantRecord::default()
                });
                self.grants.len() - 1
            });
        &mut self.grants[index]
    }

    /// A refresh token is on the table from here to [`Ledger::presentation_ends`].
    pub(crate) fn presentation_begins(&mut self, index: usize) {
        let Some(record) = self.refresh_tokens.get_mut(index) else {
            return;
        };
        record.presented += 1;
        record.overlaps += u64::from(record.in_flight > 0);
        record.in_flight += 1;
        self.refresh_overlaps_max = self.refresh_overlaps_max.max(record.in_flight);
        let (client_id, hub_id) = (record.client_id.clone(), record.hub_id);
        let grant = self.grant_mut(&client_id, hub_id);
        grant.refreshes_in_flight += 1;
        let in_flight = grant.refreshes_in_flight;
        grant.refreshes_in_flight_max = grant.refreshes_in_flight_max.max(in_flight);
        self.grant_overlaps_max = self.grant_overlaps_max.max(in_flight);
    }

    /// The answer to a presentation has left, or its connection was cut.
    pub(crate) fn presentation_ends(&mut self, index: usize) {
        let Some(record) = self.refresh_tokens.get_mut(index) else {
            return;
        };
        record.in_flight = record.in_flight.saturating_sub(1);
        let (client_id, hub_id) = (record.client_id.clone(), record.hub_id);
        let grant = self.grant_mut(&client_id, hub_id);
        grant.refreshes_in_flight = grant.refreshes_in_flight.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_presentations_at_once_are_an_overlap_and_one_after_the_other_are_not() {
        let mut ledger = Ledger::default();
        let token = ledger.open_refresh_token("app", 7);
        ledger.presentation_begins(token);
        ledger.presentation_ends(token);
        ledger.presentation_begins(token);
        assert_eq!(
            (
                ledger.refresh_tokens[0].overlaps,
                ledger.presentations_in_flight_max()
            ),
            (0, 1)
        );
        ledger.presentation_begins(token);
        assert_eq!(
            (
                ledger.refresh_tokens[0].overlaps,
                ledger.presentations_in_flight_max()
            ),
            (1, 2)
        );
        assert_eq!(ledger.refresh_tokens[0].presented, 3);
    }

    #[test]
    fn refreshes_of_one_grant_overlap_even_with_different_refresh_tokens() {
        let mut ledger = Ledger::default();
        let (first, second) = (
            ledger.open_refresh_token("app", 7),
            ledger.open_refresh_token("app", 7),
        );
        ledger.presentation_begins(first);
        ledger.presentation_begins(second);
        assert_eq!(
            (ledger.presentations_in_flight_max(), ledger.grant_overlaps_max),
            (1, 2)
        );
    }
}
