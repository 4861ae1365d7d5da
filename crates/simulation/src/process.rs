//! A simulated process: a real keeper on real code, with a world around it that is not.

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::app::ClientAuth;
use evergrant_domain::{
    App, AppName, ClientSecret, ConnectionId, Customer, KeepFresh, Provider as AppProvider, RefreshPolicy,
};
use evergrant_keeper::{Keeper, KeeperParts, Surroundings};
use evergrant_oauth::TokenEndpoint;
use evergrant_store::sqlite::simulated::{SimulatedDatabase, SimulatedHolder};
use evergrant_store::{ByLease, SqliteStore, Vault};
use url::Url;

use crate::clocks::Clocks;
use crate::dice::Dice;
use crate::disk::Disk;
use crate::gate::Gate;
use crate::provider::{CLIENT_SECRET, Provider};
use crate::scenario::Scenario;
use crate::store::{FaultyStore, Link};
use crate::wire::Wire;
use crate::witness::{Witness, configured_rotation};

/// How long cached tokens serve without the store.
pub(crate) const MAX_STALE: Duration = Duration::from_secs(60);

/// The id of a simulated connection.
pub(crate) fn connection_id(connection: usize) -> ConnectionId {
    ConnectionId::parse(&format!("c{connection}")).expect("a literal id")
}

/// Its customer.
pub(crate) fn customer(connection: usize) -> Customer {
    Customer::parse(&format!("customer-{connection}")).expect("a literal customer")
}

/// Where a process starts, and what stays there when it dies.
pub(crate) struct Slot {
    pub(crate) number: usize,
    pub(crate) clocks: Clocks,
    pub(crate) disk: Disk,
    pub(crate) link: Arc<Link>,
    pub(crate) starts: usize,
}

/// What all processes have in common.
pub(crate) struct Shared {
    pub(crate) scenario: Arc<Scenario>,
    pub(crate) witness: Witness,
    pub(crate) dice: Dice,
    pub(crate) provider: Arc<Provider>,
    pub(crate) database: SimulatedDatabase,
    pub(crate) vault: Arc<Vault>,
    pub(crate) app: App,
}

/// One process between its start and its end. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) gate: Gate,
    pub(crate) keeper: Keeper,
    pub(crate) link: Arc<Link>,
    holder: SimulatedHolder,
}

impl Process {
    /// Starts one.
    pub(crate) fn start(shared: &Shared, slot: &mut Slot) -> Self {
        slot.starts += 1;
        let name = format!("p{}.{}", slot.number, slot.starts);
        let dice = shared.dice.of(&name);
        let gate = Gate::new(&shared.witness.trace);
        let holder = shared.database.holder(&name);
        let store = SqliteStore::simulated(&shared.database, Arc::clone(&shared.vault), &holder)
            .expect("the vault key is the one that the database was made with");
        let store = FaultyStore {
            process: name.clone(),
            store,
            gate: gate.clone(),
            dice: dice.of("store"),
            witness: shared.witness.clone(),
            link: Arc::clone(&slot.link),
        };
        let wire = Wire {
            process: name.clone(),
            gate: gate.clone(),
            dice: dice.of("wire"),
            provider: Arc::clone(&shared.provider),
        };
        let keeper = Keeper::new(KeeperParts {
            apps: vec![shared.app.clone()],
            store: Arc::new(store),
            vault: Arc::clone(&shared.vault),
            endpoint: TokenEndpoint::over(Arc::new(wire)),
            surroundings: Surroundings {
                clock: Arc::new(slot.clocks.clone()),
                chance: Arc::new(dice.of("chance")),
                runtime: Arc::new(gate.clone()),
            },
            coordination: Arc::new(ByLease),
            lifeboat: Some(Arc::new(slot.disk.clone())),
            max_stale: MAX_STALE,
        });
        shared.witness.trace.note(&name, "starts");
        keeper.start();
        Self {
            name,
            gate,
            keeper,
            link: Arc::clone(&slot.link),
            holder,
        }
    }

    /// SIGKILL, or what is left to do after one.
    pub(crate) fn kill(&self) {
        self.gate.kill();
        self.holder.die();
    }
}

/// The app that all processes are configured with.
pub(crate) fn app(scenario: &Scenario, dice: &Dice) -> App {
    let url = |path: &str| Url::parse(&format!("https://provider.example/{path}")).expect("a literal URL");
    App {
        name: AppName::parse("crm").expect("a literal name"),
        provider: AppProvider {
            dialect: scenario.dialect,
            authorize_url: url("authorize"),
            token_url: url("token"),
            introspect_url: scenario.introspects.then(|| url("introspect")),
            revoke_url: Some(url("revoke")),
            api_base: url(""),
            client_auth: ClientAuth::Post,
            pkce: false,
            rotation: configured_rotation(scenario),
            account_claim: "hub_id".to_owned(),
        },
        client_id: "simulated".to_owned(),
        client_secrets: vec![ClientSecret::new(CLIENT_SECRET)],
        redirect_uri: "https://evergrant.example/oauth/callback".to_owned(),
        scopes: vec!["oauth".to_owned()],
        optional_scopes: vec![],
        refresh_policy: RefreshPolicy::Buffer(scenario.lifetime / 4),
        keep_fresh: dice.one_of(&[KeepFresh::Off, KeepFresh::Used, KeepFresh::Always]),
        return_urls: vec![],
        display_name: None,
        support_url: None,
        public_install: false,
        budget: evergrant_domain::call_budget::Setting::Learnt,
        max_wait: None,
    }
}
