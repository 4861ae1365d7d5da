//! HubSpot as seen from outside: a simulator for tests, demos and development.
//!
//! It speaks HubSpot's OAuth (consent, tokens, introspection, revocation) and enough of its CRM to call,
//! with the status codes, headers and error bodies of the real one. Its clock can be moved, its refresh
//! tokens rotate or not, [named faults](FaultKind) make it fail on demand, and its [`Ledger`] proves what
//! happened: which refresh token was presented how often, which call was executed how often.
//!
//! It knows nothing about whoever calls it, and shares no code with it: parsing and status codes are
//! written here a second time, so that both cannot be wrong alike. A run is decided by its seed and the
//! order of its requests.
//!
//! ```
//! # async fn example() -> std::io::Result<()> {
//! use hubspot_sim::{Fault, FaultKind, Rotation, SimConfig, Simulator};
//!
//! let hubspot = Simulator::start(SimConfig { rotation: Rotation::Always, ..SimConfig::default() }).await?;
//! let grant = hubspot.grant("sim-client", 1001).expect("the default app is registered");
//! hubspot.arm(Fault::token(FaultKind::AnswerLostAfterIssue).hub(1001));
//! // ... refresh `grant.refresh_token` at hubspot.base_url() ...
//! assert_eq!(hubspot.ledger().replays, 0);
//! # let _ = grant;
//! # Ok(())
//! # }
//! ```
//!
//! Where to start reading: `serve` takes a request and hands it to `consent`, `oauth`, `api_auth` (which
//! hands it on to `crm` and `associations`) or `control`. They all act on `world`, under the faults of `faults` and
//! the `limits`, and write into `ledger`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

mod answer;
mod api_auth;
mod associations;
mod clock;
mod config;
mod consent;
mod control;
mod crm;
mod faults;
mod journal;
mod ledger;
mod limits;
mod oauth;
mod random;
mod serve;
mod world;

pub use config::{AppRefused, Rotation, SimApp, SimConfig, UnknownRotation};
pub use faults::{Fault, FaultKind, Place, RateLimitPolicy};
pub use ledger::{GrantRecord, Ledger, RateLimited, RefreshTokenRecord, RequestRecord, Unauthorized};
pub use limits::{RateLimits, RetryAfter};

use clock::Clock;
use faults::Gate;
use world::World;

/// A running simulator. Dropping it stops it.
pub struct Simulator {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: CancellationToken,
    server: Option<JoinHandle<()>>,
}

/// Tokens issued without consent, for tests that begin with a connected portal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The access token.
    pub access_token: String,
    /// The refresh token.
    pub refresh_token: String,
    /// The portal.
    pub hub_id: u64,
    /// The scopes granted.
    pub scopes: Vec<String>,
    /// How long the access token lives, from now.
    pub expires_in: Duration,
}

/// A behaviour that can be turned on and off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// A replayed refresh token takes all its successors with it (RFC 9700 §4.14.2). Off at first.
    FamilyRevocation,
    /// The v1 OAuth routes answer 404, as HubSpot's will from 2027-02-16. Off at first.
    V1Retired,
    /// Errors of the token endpoint look as before January 2026. Off at first.
    OldErrorFormat,
    /// Calls over the [`RateLimits`] are refused with 429. Off at first.
    EnforceRateLimits,
    /// The `Date` header shows the simulator's clock rather than real time. On at first.
    DateFollowsClock,
}

impl Simulator {
    /// Binds and serves in the background, until shut down or dropped.
    ///
    /// # Errors
    ///
    /// The address cannot be bound, or one of the apps could not be registered at HubSpot
    /// ([`io::ErrorKind::InvalidInput`]).
    pub async fn start(config: SimConfig) -> io::Result<Self> {
        let world =
            World::new(&config).map_err(|refused| io::Error::new(io::ErrorKind::InvalidInput, refused))?;
        let listener = TcpListener::bind(config.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            config,
            clock: Clock::default(),
            world: Mutex::new(world),
            gate: Gate::new(),
            answers: AtomicU64::new(0),
        });
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve::serve(listener, shared.clone(), stop.clone()));
        Ok(Self {
            shared,
            address,
            stop,
            server: Some(server),
        })
    }

    /// `http://127.0.0.1:<port>`: the base of the API, of OAuth and of the consent page alike.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The simulator's present.
    pub fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// Moves the simulator's own clock forward.
    pub fn advance(&self, step: Duration) {
        self.shared.clock.advance(step);
    }

    /// How long access tokens live that are issued from now on.
    pub fn set_token_ttl(&self, token_ttl: Duration) {
        self.shared.world.lock().settings.token_ttl = token_ttl;
    }

    /// What happens to refresh tokens that are redeemed from now on.
    pub fn set_rotation(&self, rotation: Rotation) {
        self.shared.world.lock().settings.rotation = rotation;
    }

    /// How many calls are taken from now on; whether more are refused says [`Switch::EnforceRateLimits`].
    pub fn set_rate_limits(&self, rate_limits: RateLimits) {
        self.shared.world.lock().settings.rate_limits = rate_limits;
    }

    /// Objects of this type are unique by this property from now on, in every portal, as a property that was made with
    /// `hasUniqueValue`. Objects that share a value already keep it.
    pub fn declare_unique(&self, object_type: &str, property: &str) {
        let unique = crm::UniqueProperty::new(object_type, property);
        self.shared.world.lock().declare_unique(unique);
    }

    /// How many objects were created with this value of a property, those that were archived since included.
    ///
    /// The judge of writes that must happen once: it counts what was executed, not what was answered.
    pub fn created(&self, hub_id: u64, object_type: &str, property: &str, value: &str) -> usize {
        self.shared
            .world
            .lock()
            .records_mut(hub_id)
            .created(object_type, property, value)
    }

    /// Turns a behaviour on.
    pub fn turn_on(&self, switch: Switch) {
        *self.shared.world.lock().settings.switch_mut(switch) = true;
    }

    /// Turns a behaviour off.
    pub fn turn_off(&self, switch: Switch) {
        *self.shared.world.lock().settings.switch_mut(switch) = false;
    }

    /// Arms a fault for the next requests that fit it.
    pub fn arm(&self, fault: Fault) {
        self.shared.world.lock().faults.arm(fault);
    }

    /// Disarms every fault. Requests that are held stay held.
    pub fn clear_faults(&self) {
        self.shared.world.lock().faults.clear();
    }

    /// Lets go every request that is held by a `Hold…` fault now.
    pub fn release_held(&self) {
        self.shared.gate.release();
    }

    /// How many requests are held now.
    pub fn held(&self) -> usize {
        self.shared.gate.waiting()
    }

    /// Returns as soon as at least `requests` are held.
    pub async fn wait_for_held(&self, requests: usize) {
        self.shared.gate.wait_for_waiting(requests).await;
    }

    /// What was seen so far.
    pub fn ledger(&self) -> Ledger {
        self.shared.world.lock().ledger.clone()
    }

    /// Registers an app, or replaces the one with the same client id.
    ///
    /// # Errors
    ///
    /// HubSpot would not register it: a redirect URI that is neither `https` nor `http` on `localhost`.
    pub fn add_app(&self, app: SimApp) -> Result<(), AppRefused> {
        self.shared.world.lock().register(app)
    }

    /// Issues a grant straight away, as if a customer had consented and the code had been exchanged. It
    /// holds the app's scopes, or those of contacts, companies and deals. `None`: no such app or portal.
    pub fn grant(&self, client_id: &str, hub_id: u64) -> Option<Grant> {
        self.issue_grant(client_id, hub_id, None)
    }

    /// As [`Simulator::grant`], with exactly these scopes.
    pub fn grant_scopes(&self, client_id: &str, hub_id: u64, scopes: &[&str]) -> Option<Grant> {
        self.issue_grant(
            client_id,
            hub_id,
            Some(scopes.iter().map(|&scope| scope.to_owned()).collect()),
        )
    }

    /// Issues the token of a private app or service key, which never expires.
    pub fn static_token(&self, hub_id: u64) -> String {
        self.shared
            .world
            .lock()
            .issue_static_token(self.now(), hub_id, None)
    }

    /// Revokes a static token; says whether there was one.
    pub fn revoke_static_token(&self, token: &str) -> bool {
        self.shared.world.lock().revoke_static_token(token)
    }

    /// The portal's admin removes the app: every token of the pair dies.
    pub fn uninstall(&self, client_id: &str, hub_id: u64) {
        let now = self.now();
        self.shared.world.lock().uninstall(now, client_id, hub_id);
    }

    /// Replaces an app's client secret; the old one is refused from now on. Without such an app nothing
    /// happens.
    pub fn set_client_secret(&self, client_id: &str, client_secret: &str) {
        if let Some(app) = self.shared.world.lock().apps.get_mut(client_id) {
            client_secret.clone_into(&mut app.client_secret);
        }
    }

    /// Deletes a portal: its refresh tokens answer `BAD_HUB` from now on.
    pub fn delete_portal(&self, hub_id: u64) {
        self.shared.world.lock().delete_portal(hub_id);
    }

    /// All current access tokens of a portal are expired from now on; says how many.
    pub fn expire_access_tokens(&self, hub_id: u64) -> usize {
        self.shared.world.lock().expire_access_tokens(self.now(), hub_id)
    }

    /// Everything back to the start: clock, grants, records, faults, ledger. Held requests are let go.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// Stops serving and drops the connections that are open.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        if let Some(server) = self.server.take() {
            // It ends because it was told to; a panic in it has been reported where it happened.
            let _ = server.await;
        }
    }

    fn issue_grant(&self, client_id: &str, hub_id: u64, scopes: Option<Vec<String>>) -> Option<Grant> {
        let issued = self
            .shared
            .world
            .lock()
            .grant(self.now(), client_id, hub_id, scopes)
            .ok()?;
        Some(Grant {
            access_token: issued.access_token,
            refresh_token: issued.refresh_token?,
            hub_id,
            scopes: issued.scopes,
            expires_in: issued.expires_in,
        })
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl std::fmt::Debug for Simulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulator")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What every request works on.
pub(crate) struct Shared {
    config: SimConfig,
    clock: Clock,
    world: Mutex<World>,
    gate: Gate,
    /// Answers given, for correlation ids.
    answers: AtomicU64,
}

impl Shared {
    fn reset(&self) {
        self.clock.reset();
        self.world
            .lock()
            .reset(&self.config)
            .expect("the configuration was accepted at the start");
        self.gate.release();
    }
}
