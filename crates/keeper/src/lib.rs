//! The engine: holds connections, keeps their tokens fresh, redeems each refresh token once however many ask.
//!
//! [`Keeper::current`] is the door of every call, [`Keeper::rejected`] what a 401 leads to, [`Keeper::refresh`] what a
//! person asks for. All three end in one place, the flight of a connection (`flight`), and only `redeem` presents a
//! refresh token. The keeper knows nothing of HTTP servers, pages or the calls that its tokens are used for.
//!
//! Start reading at `keeper`, then `redeem`.

#[cfg(test)]
#[path = "../tests/keeper/app.rs"]
mod app;
mod apps;
mod asker;
mod background;
mod cache;
mod clock;
mod connect;
mod endings;
mod error;
mod feed;
mod flight;
mod gate;
mod journal;
mod keeper;
mod landing;
mod lifeboat;
mod probe;
mod provider_clock;
mod redeem;
mod regression;
mod rescue;
mod rest;
mod surroundings;
mod tenure;
mod throttle;
mod watched_store;

pub use clock::{Clock, Moment, SystemClock};
pub use connect::{Consent, Import, ImportTerms, ImportTokens, Imported, OnConflict, Verify};
pub use error::{ConnectError, KeepError};
pub use keeper::{AfterRejection, EventsKept, Keeper, KeeperParts, RefreshReport, Renewal};
pub use lifeboat::{Lifeboat, LifeboatFolder, LifeboatRefused};
pub use probe::AskedAbout;
pub use surroundings::{Chance, Runtime, Surroundings, SystemChance, TokioRuntime, Work};

pub use asker::{Asker, KeptAsker};
pub use cache::Current;
