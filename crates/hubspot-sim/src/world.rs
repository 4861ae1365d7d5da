//! The state of the simulated HubSpot: apps, grants, tokens, portals, and what happens to them.
//!
//! One lock guards all of it. Nothing here knows HTTP: `oauth`, `consent`, `crm` and `control` translate.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use crate::Switch;
use crate::clock::after;
use crate::config::{AppRefused, Rotation, SimApp, SimConfig};
use crate::crm::{Records, UniqueProperty};
use crate::faults::ArmedFaults;
use crate::journal::Journal;
use crate::ledger::Ledger;
use crate::limits::{RateLimits, Traffic};
use crate::oauth::Refusal;
use crate::random::Random;

/// How long a code can be exchanged. HubSpot says "a short window" and no number.
const CODE_TTL: Duration = Duration::from_secs(60);
/// What a grant of the control API holds when neither it nor the app names scopes.
const SCOPES_DEFAULT: [&str; 7] = [
    "oauth",
    "crm.objects.contacts.read",
    "crm.objects.contacts.write",
    "crm.objects.companies.read",
    "crm.objects.companies.write",
    "crm.objects.deals.read",
    "crm.objects.deals.write",
];

/// Switches that can be moved while the simulator runs.
#[derive(Debug, Clone, Serialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches of one control panel"
)]
pub(crate) struct Settings {
    #[serde(rename = "token_ttl_seconds", serialize_with = "seconds")]
    pub(crate) token_ttl: Duration,
    pub(crate) rotation: Rotation,
    /// A replayed refresh token takes its whole family with it (RFC 9700 §4.14.2).
    pub(crate) family_revocation: bool,
    /// The v1 OAuth routes answer 404, as they will from 2027-02-16.
    pub(crate) v1_retired: bool,
    /// Token errors as before January 2026.
    pub(crate) old_error_format: bool,
    pub(crate) enforce_rate_limits: bool,
    #[serde(serialize_with = "rate_limits")]
    pub(crate) rate_limits: RateLimits,
    /// The `Date` header shows the simulator's clock instead of real time.
    pub(crate) date_follows_clock: bool,
}

impl Settings {
    pub(crate) fn switch_mut(&mut self, switch: Switch) -> &mut bool {
        match switch {
            Switch::FamilyRevocation => &mut self.family_revocation,
            Switch::V1Retired => &mut self.v1_retired,
            Switch::OldErrorFormat => &mut self.old_error_format,
            Switch::EnforceRateLimits => &mut self.enforce_rate_limits,
            Switch::DateFollowsClock => &mut self.date_follows_clock,
        }
    }
}

fn rate_limits<S: serde::Serializer>(limits: &RateLimits, serializer: S) -> Result<S::Ok, S::Error> {
    let RateLimits {
        calls_max,
        searches_max,
        retry_after,
    } = limits;
    json!({"calls_max": calls_max, "searches_max": searches_max, "retry_after": retry_after})
        .serialize(serializer)
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}

/// Everything behind the lock.
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) apps: BTreeMap<String, SimApp>,
    pub(crate) faults: ArmedFaults,
    pub(crate) ledger: Ledger,
    random: Random,
    codes: HashMap<String, Code>,
    refresh_tokens: HashMap<String, RefreshToken>,
    access_tokens: HashMap<String, AccessToken>,
    deleted_portals: BTreeSet<u64>,
    records: HashMap<u64, Records>,
    pub(crate) traffic: Traffic,
    pub(crate) journal: Journal,
    unique_properties: BTreeSet<UniqueProperty>,
    families: u64,
}

/// A passed consent, waiting for its exchange.
#[derive(Debug)]
pub(crate) struct Consent {
    pub(crate) client_id: String,
    pub(crate) hub_id: u64,
    pub(crate) redirect_uri: String,
    pub(crate) scopes: Vec<String>,
    /// PKCE, method S256.
    pub(crate) code_challenge: Option<String>,
}

#[derive(Debug)]
struct Code {
    consent: Consent,
    expires_at: Timestamp,
    used: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct RefreshToken {
    pub(crate) client_id: String,
    pub(crate) hub_id: u64,
    pub(crate) scopes: Vec<String>,
    /// Its page in the ledger.
    pub(crate) page: usize,
    family: u64,
    state: RefreshTokenState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RefreshTokenState {
    Live,
    /// A newer one exists; this one is good until `usable_until`, if at all.
    Superseded {
        usable_until: Option<Timestamp>,
    },
    /// Revoked, uninstalled, portal deleted.
    Dead,
}

#[derive(Debug, Clone)]
pub(crate) struct AccessToken {
    pub(crate) holder: Holder,
    pub(crate) scopes: Vec<String>,
    pub(crate) issued_at: Timestamp,
    /// `None`: never (static tokens).
    pub(crate) expires_at: Option<Timestamp>,
    killed: bool,
}

/// Whom an access token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    /// An app installed in a portal.
    Install { client_id: String, hub_id: u64 },
    /// An app itself (`client_credentials`).
    App { client_id: String },
    /// A private app or service key of a portal.
    Static { hub_id: u64 },
}

impl Holder {
    pub(crate) fn client_id(&self) -> Option<&str> {
        match self {
            Self::Install { client_id, .. } | Self::App { client_id } => Some(client_id),
            Self::Static { .. } => None,
        }
    }

    pub(crate) fn hub_id(&self) -> Option<u64> {
        match self {
            Self::Install { hub_id, .. } | Self::Static { hub_id } => Some(*hub_id),
            Self::App { .. } => None,
        }
    }
}

/// What a presented access token turns out to be.
pub(crate) enum Presented {
    Valid(AccessToken),
    Expired { holder: Holder, expired_at: Timestamp },
    Killed(Holder),
    Garbage,
}

/// What a successful token request issued.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    pub(crate) access_token: String,
    /// `None` where the answer carries none.
    pub(crate) refresh_token: Option<String>,
    /// `None` for `client_credentials`.
    pub(crate) hub_id: Option<u64>,
    pub(crate) scopes: Vec<String>,
    pub(crate) expires_in: Duration,
}

impl World {
    pub(crate) fn new(config: &SimConfig) -> Result<Self, AppRefused> {
        let mut world = Self {
            settings: Settings {
                token_ttl: config.token_ttl,
                rotation: config.rotation,
                family_revocation: false,
                v1_retired: false,
                old_error_format: false,
                enforce_rate_limits: false,
                rate_limits: RateLimits::default(),
                date_follows_clock: true,
            },
            apps: BTreeMap::new(),
            faults: ArmedFaults::default(),
            ledger: Ledger::default(),
            random: Random::new(config.seed),
            codes: HashMap::new(),
            refresh_tokens: HashMap::new(),
            access_tokens: HashMap::new(),
            deleted_portals: BTreeSet::new(),
            records: HashMap::new(),
            traffic: Traffic::default(),
            journal: Journal::default(),
            unique_properties: BTreeSet::new(),
            families: 0,
        };
        let apps = if config.apps.is_empty() {
            vec![SimApp::default()]
        } else {
            config.apps.clone()
        };
        for app in apps {
            world.register(app)?;
        }
        Ok(world)
    }

    /// Back to the state of the start. Chance goes on, so that no token comes twice.
    pub(crate) fn reset(&mut self, config: &SimConfig) -> Result<(), AppRefused> {
        let random = self.random.clone();
        *self = Self::new(config)?;
        self.random = random;
        Ok(())
    }

    /// Registers an app, or replaces the one with the same client id.
    pub(crate) fn register(&mut self, app: SimApp) -> Result<(), AppRefused> {
        app.check()?;
        self.apps.insert(app.client_id.clone(), app);
        Ok(())
    }

    pub(crate) fn authenticate_client(
        &self,
        client_id: &str,
        client_secret: &str,
    ) -> Result<&SimApp, Refusal> {
        let app = self.apps.get(client_id).ok_or(Refusal::BadClientId)?;
        if app.client_secret == client_secret {
            Ok(app)
        } else {
            Err(Refusal::BadClientSecret)
        }
    }

    pub(crate) fn issue_code(&mut self, now: Timestamp, consent: Consent) -> String {
        let code = self.random.grant_token(hublet(consent.hub_id));
        let expires_at = after(now, CODE_TTL);
        self.codes.insert(
            code.clone(),
            Code {
                consent,
                expires_at,
                used: false,
            },
        );
        code
    }

    /// Exchanges a code for the first tokens of a grant; only success uses the code up.
    pub(crate) fn exchange_code(
        &mut self,
        now: Timestamp,
        client_id: &str,
        code: &str,
        redirect_uri: &str,
        code_verifier: Option<&str>,
    ) -> Result<Issued, Refusal> {
        let entry = self.codes.get_mut(code).ok_or(Refusal::BadAuthCode)?;
        let consent = &entry.consent;
        if entry.used || consent.client_id != client_id {
            return Err(Refusal::BadAuthCode);
        }
        if entry.expires_at <= now {
            return Err(Refusal::ExpiredAuthCode);
        }
        if consent.redirect_uri != redirect_uri {
            return Err(Refusal::MismatchRedirectUriAuthCode);
        }
        if let Some(challenge) = &consent.code_challenge
            && code_verifier.is_none_or(|verifier| s256(verifier) != *challenge)
        {
            return Err(Refusal::BadCodeVerifier);
        }
        if self.deleted_portals.contains(&consent.hub_id) {
            return Err(Refusal::BadHub);
        }
        entry.used = true;
        let (hub_id, scopes) = (consent.hub_id, consent.scopes.clone());
        self.ledger.code_exchanges += 1;
        Ok(self.install(now, client_id, hub_id, scopes))
    }

    /// The portal that a code was issued for.
    pub(crate) fn hub_of_code(&self, code: &str) -> Option<u64> {
        self.codes.get(code).map(|code| code.consent.hub_id)
    }

    /// A grant without the detour over consent and code. Without `scopes`: those of the app, or all usual ones.
    pub(crate) fn grant(
        &mut self,
        now: Timestamp,
        client_id: &str,
        hub_id: u64,
        scopes: Option<Vec<String>>,
    ) -> Result<Issued, Refusal> {
        let app = self.apps.get(client_id).ok_or(Refusal::BadClientId)?;
        if self.deleted_portals.contains(&hub_id) {
            return Err(Refusal::BadHub);
        }
        let scopes = scopes.unwrap_or_else(|| {
            if app.scopes.is_empty() {
                SCOPES_DEFAULT.map(str::to_owned).into()
            } else {
                app.scopes.clone()
            }
        });
        Ok(self.install(now, client_id, hub_id, scopes))
    }

    /// Redeems a refresh token. The old access tokens stay good.
    pub(crate) fn redeem(
        &mut self,
        now: Timestamp,
        client_id: &str,
        presented: &str,
    ) -> Result<Issued, Refusal> {
        let Some(token) = self.refresh_tokens.get(presented).cloned() else {
            self.ledger.unknown_refresh_tokens += 1;
            self.ledger.refreshes_refused += 1;
            return Err(Refusal::BadRefreshToken);
        };
        let result = self.redeem_known(now, client_id, presented, &token);
        let accepted = u64::from(result.is_ok());
        let refused = 1 - accepted;
        self.ledger.refreshes_accepted += accepted;
        self.ledger.refreshes_refused += refused;
        if let Some(record) = self.ledger.refresh_tokens.get_mut(token.page) {
            record.accepted += accepted;
            record.refused += refused;
        }
        let grant = self.ledger.grant_mut(&token.client_id, token.hub_id);
        grant.refreshes_accepted += accepted;
        grant.refreshes_refused += refused;
        result
    }

    /// A token for the app itself. Every scope must be a `developer` one or one that the app registered.
    pub(crate) fn client_credentials(
        &mut self,
        now: Timestamp,
        client_id: &str,
        scopes: Vec<String>,
    ) -> Result<Issued, Refusal> {
        let app = self.apps.get(client_id).ok_or(Refusal::BadClientId)?;
        let allowed = |scope: &String| {
            app.scopes.is_empty() || app.scopes.contains(scope) || scope.starts_with("developer.")
        };
        if scopes.is_empty() || !scopes.iter().all(allowed) {
            return Err(Refusal::BadScopes);
        }
        let holder = Holder::App {
            client_id: client_id.to_owned(),
        };
        Ok(self.issue(now, holder, scopes, None))
    }

    /// A token of a private app or service key.
    pub(crate) fn issue_static_token(
        &mut self,
        now: Timestamp,
        hub_id: u64,
        scopes: Option<Vec<String>>,
    ) -> String {
        let token = self.random.grant_token(&format!("pat-{}", hublet(hub_id)));
        let scopes = scopes.unwrap_or_else(|| SCOPES_DEFAULT.map(str::to_owned).into());
        let access_token = AccessToken {
            holder: Holder::Static { hub_id },
            scopes,
            issued_at: now,
            expires_at: None,
            killed: false,
        };
        self.access_tokens.insert(token.clone(), access_token);
        token
    }

    /// Revokes a static token; says whether there was one.
    pub(crate) fn revoke_static_token(&mut self, token: &str) -> bool {
        match self.access_tokens.get_mut(token) {
            Some(token) if token.expires_at.is_none() => {
                token.killed = true;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn refresh_token(&self, token: &str) -> Option<&RefreshToken> {
        self.refresh_tokens.get(token)
    }

    /// Whether redeeming this refresh token would be accepted.
    pub(crate) fn refresh_token_is_usable(&self, now: Timestamp, token: &str) -> bool {
        self.refresh_tokens.get(token).is_some_and(|token| {
            !self.deleted_portals.contains(&token.hub_id)
                && match token.state {
                    RefreshTokenState::Live => true,
                    RefreshTokenState::Superseded { usable_until } => {
                        usable_until.is_some_and(|usable_until| usable_until > now)
                    }
                    RefreshTokenState::Dead => false,
                }
        })
    }

    pub(crate) fn access_token(&self, now: Timestamp, token: &str) -> Presented {
        let Some(token) = self.access_tokens.get(token) else {
            return Presented::Garbage;
        };
        match token.expires_at {
            _ if token.killed => Presented::Killed(token.holder.clone()),
            Some(expired_at) if expired_at <= now => Presented::Expired {
                holder: token.holder.clone(),
                expired_at,
            },
            _ => Presented::Valid(token.clone()),
        }
    }

    /// Revokes one refresh token; its access tokens live on to their expiry.
    pub(crate) fn revoke_refresh_token(&mut self, token: &str) {
        if let Some(token) = self.refresh_tokens.get_mut(token) {
            bury(token, &mut self.ledger);
        }
    }

    /// Removes the app from the portal: every token of the pair dies. A reinstall revives none of them.
    pub(crate) fn uninstall(&mut self, now: Timestamp, client_id: &str, hub_id: u64) {
        self.ledger.uninstalls += 1;
        let secret = self.random.grant_token("page");
        self.journal.uninstalled(client_id, hub_id, now, secret);
        let of_pair = |other_client_id: Option<&str>, other_hub_id: Option<u64>| {
            other_client_id == Some(client_id) && other_hub_id == Some(hub_id)
        };
        for token in self.refresh_tokens.values_mut() {
            if of_pair(Some(&token.client_id), Some(token.hub_id)) {
                bury(token, &mut self.ledger);
            }
        }
        for token in self.access_tokens.values_mut() {
            token.killed |= of_pair(token.holder.client_id(), token.holder.hub_id());
        }
        self.codes
            .retain(|_, code| !of_pair(Some(&code.consent.client_id), Some(code.consent.hub_id)));
    }

    /// The portal is gone: its refresh tokens answer `BAD_HUB`, its access tokens are dead.
    pub(crate) fn delete_portal(&mut self, hub_id: u64) {
        self.deleted_portals.insert(hub_id);
        for token in self.access_tokens.values_mut() {
            token.killed |= token.holder.hub_id() == Some(hub_id);
        }
        self.records.remove(&hub_id);
    }

    pub(crate) fn portal_exists(&self, hub_id: u64) -> bool {
        hub_id > 0 && !self.deleted_portals.contains(&hub_id)
    }

    /// All current access tokens of the portal are expired from now on; says how many.
    pub(crate) fn expire_access_tokens(&mut self, now: Timestamp, hub_id: u64) -> usize {
        let mut expired = 0;
        for token in self
            .access_tokens
            .values_mut()
            .filter(|token| token.holder.hub_id() == Some(hub_id))
        {
            if let Some(expires_at) = token.expires_at.as_mut().filter(|expires_at| **expires_at > now) {
                *expires_at = now;
                expired += 1;
            }
        }
        expired
    }

    /// One access token is expired from now on. Static tokens have no expiry to move.
    pub(crate) fn expire_access_token(&mut self, now: Timestamp, token: &str) {
        if let Some(token) = self.access_tokens.get_mut(token)
            && let Some(expires_at) = &mut token.expires_at
        {
            *expires_at = now.min(*expires_at);
        }
    }

    /// The CRM records of a portal.
    pub(crate) fn records_mut(&mut self, hub_id: u64) -> &mut Records {
        self.records.entry(hub_id).or_insert_with(|| {
            let mut records = Records::default();
            for unique in &self.unique_properties {
                records.declare_unique(unique);
            }
            records
        })
    }

    /// No two objects of a type have the same value of this property from now on, in any portal.
    pub(crate) fn declare_unique(&mut self, unique: UniqueProperty) {
        for records in self.records.values_mut() {
            records.declare_unique(&unique);
        }
        self.unique_properties.insert(unique);
    }

    fn install(&mut self, now: Timestamp, client_id: &str, hub_id: u64, scopes: Vec<String>) -> Issued {
        self.families += 1;
        self.ledger.grant_mut(client_id, hub_id).installs += 1;
        let refresh_token = self.mint_refresh_token(client_id, hub_id, scopes.clone(), self.families);
        let holder = Holder::Install {
            client_id: client_id.to_owned(),
            hub_id,
        };
        self.issue(now, holder, scopes, Some(refresh_token))
    }

    fn redeem_known(
        &mut self,
        now: Timestamp,
        client_id: &str,
        presented: &str,
        token: &RefreshToken,
    ) -> Result<Issued, Refusal> {
        if token.client_id != client_id {
            return Err(Refusal::MismatchRefreshTokenClient);
        }
        if self.deleted_portals.contains(&token.hub_id) {
            return Err(Refusal::BadHub);
        }
        match token.state {
            RefreshTokenState::Live => {}
            RefreshTokenState::Dead => return Err(Refusal::BadRefreshToken),
            RefreshTokenState::Superseded { usable_until } => {
                let accepted = usable_until.is_some_and(|usable_until| usable_until > now);
                self.ledger.replays += 1;
                if let Some(record) = self.ledger.refresh_tokens.get_mut(token.page) {
                    record.replays += 1;
                    record.accepted_after_superseded += u64::from(accepted);
                }
                if !accepted {
                    if self.settings.family_revocation {
                        self.revoke_family(token.family);
                    }
                    return Err(Refusal::BadRefreshToken);
                }
            }
        }
        let refresh_token = match self.settings.rotation {
            Rotation::Never => Some(presented.to_owned()),
            Rotation::Omit => None,
            Rotation::Always => Some(self.rotate(presented, token, None)),
            Rotation::Grace(window) => Some(self.rotate(presented, token, Some(after(now, window)))),
        };
        let holder = Holder::Install {
            client_id: token.client_id.clone(),
            hub_id: token.hub_id,
        };
        Ok(self.issue(now, holder, token.scopes.clone(), refresh_token))
    }

    /// Replaces a refresh token. One that was replaced before keeps the end it was given then.
    fn rotate(&mut self, presented: &str, token: &RefreshToken, usable_until: Option<Timestamp>) -> String {
        if let Some(old) = self.refresh_tokens.get_mut(presented)
            && old.state == RefreshTokenState::Live
        {
            old.state = RefreshTokenState::Superseded { usable_until };
            if let Some(record) = self.ledger.refresh_tokens.get_mut(token.page) {
                record.superseded = true;
            }
        }
        self.mint_refresh_token(&token.client_id, token.hub_id, token.scopes.clone(), token.family)
    }

    fn revoke_family(&mut self, family: u64) {
        for token in self
            .refresh_tokens
            .values_mut()
            .filter(|token| token.family == family)
        {
            bury(token, &mut self.ledger);
        }
    }

    fn mint_refresh_token(
        &mut self,
        client_id: &str,
        hub_id: u64,
        scopes: Vec<String>,
        family: u64,
    ) -> String {
        let secret = self.random.grant_token(hublet(hub_id));
        let token = RefreshToken {
            client_id: client_id.to_owned(),
            hub_id,
            scopes,
            page: self.ledger.open_refresh_token(client_id, hub_id),
            family,
            state: RefreshTokenState::Live,
        };
        self.refresh_tokens.insert(secret.clone(), token);
        secret
    }

    fn issue(
        &mut self,
        now: Timestamp,
        holder: Holder,
        scopes: Vec<String>,
        refresh_token: Option<String>,
    ) -> Issued {
        let access_token = self.random.access_token();
        let hub_id = holder.hub_id();
        if let Holder::Install { client_id, hub_id } = &holder {
            self.ledger.grant_mut(client_id, *hub_id).access_tokens_issued += 1;
        }
        let expires_in = self.settings.token_ttl;
        self.access_tokens.insert(
            access_token.clone(),
            AccessToken {
                holder,
                scopes: scopes.clone(),
                issued_at: now,
                expires_at: Some(after(now, expires_in)),
                killed: false,
            },
        );
        Issued {
            access_token,
            refresh_token,
            hub_id,
            scopes,
            expires_in,
        }
    }
}

/// Where the portal's data lives, as the prefix of its tokens: `eu1` from hub id 100,000,000 on.
pub(crate) fn hublet(hub_id: u64) -> &'static str {
    if hub_id >= 100_000_000 { "eu1" } else { "na1" }
}

/// The user who installs apps in a portal.
pub(crate) fn user_id(hub_id: u64) -> u64 {
    200_000 + hub_id % 100_000
}

/// The domain of a portal.
pub(crate) fn hub_domain(hub_id: u64) -> String {
    format!("portal-{hub_id}.example.com")
}

/// The e-mail address of the user who installs apps in a portal.
pub(crate) fn user(hub_id: u64) -> String {
    format!("admin@{}", hub_domain(hub_id))
}

/// RFC 7636 §4.2: `BASE64URL(SHA256(verifier))`.
fn s256(code_verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, code_verifier.as_bytes()))
}

/// Makes a refresh token unusable for good, once.
fn bury(token: &mut RefreshToken, ledger: &mut Ledger) {
    if token.state == RefreshTokenState::Dead {
        return;
    }
    if token.state == RefreshTokenState::Live {
        ledger.grants_revoked += 1;
    }
    token.state = RefreshTokenState::Dead;
    if let Some(record) = ledger.refresh_tokens.get_mut(token.page) {
        record.dead = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_challenge_of_rfc_7636_is_met_by_its_verifier() {
        // RFC 7636, appendix B.
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(s256(verifier), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }
}
