//! Counts calls, what they wait for and what they spend, and writes the counts as Prometheus reads them.
//!
//! Counting is on the path of every call, so it looks nothing up, takes no lock and allocates nothing: who counts holds the
//! [`Series`] of its app, made when the app's token was read, and adds to the part of it that belongs to its own thread. The parts
//! are added up when somebody asks ([`Metrics::write`]). Labels are words of our own and names of configured apps, never the id of
//! a connection that nobody named: a fleet's series stay as few as they were on its first day.
//!
//! It knows nothing of HTTP, and of the rest of Evergrant only the words. Calls are counted in the gateway
//! (`Gateway::call_on`), refreshes and redemptions in the keeper (`Keeper::redeem`, `Keeper::present`), what the store did not do in
//! the keeper's way to it (`keeper::watched_store`).
//!
//! Start reading at [`Metrics`], then `series` (what is counted for an app) and `exposition` (how it is written).

mod exposition;
mod histogram;
mod metrics;
mod process;
mod series;
mod shards;

pub use exposition::{Exposition, Kind};
pub use metrics::{Delivery, InFlight, Metrics};
pub use process::Process;
pub use series::{AppSeries, CallSeen, Redemption, Refresh, Series, Source};
pub use shards::Shards;
