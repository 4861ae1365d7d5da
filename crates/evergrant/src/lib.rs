//! Keeps OAuth grants alive: the engine for Rust programs.
//!
//! One value, [`Evergrant`], holds the keeper and the gateway on one store. A program that embeds it and a service on the
//! same store are one fleet: each refresh token is redeemed once among all of them. This crate puts the parts together
//! and decides nothing itself; it serves no pages, so the links of [`Evergrant::connect`] are answered by a service on
//! the same store.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use evergrant::{App, ConnectionId, Evergrant};
//!
//! let keeper = Evergrant::builder()
//!     .store("sqlite://evergrant.db")
//!     .vault_key_file("evergrant.key")
//!     .app(App::hubspot("crm").client_id("id").client_secret("secret"))
//!     .build()
//!     .await?;
//! let link = keeper.connect("crm", "acme").start().await?;
//! println!("send your customer to {}", link.url);
//!
//! let connection = ConnectionId::parse("acme-crm")?;
//! let token = keeper.token(&connection).await?; // valid now; refreshed once if it was not
//! # let _ = token;
//! keeper.shutdown().await; // redemptions in flight finish and are saved
//! # Ok(())
//! # }
//! ```
//!
//! Where connections can be kept is chosen by features: `sqlite` (on by default) and `postgres`. The feature `redis` adds a way
//! of waiting, see [`Coordination`]. `tower` and `reqwest` are for programs that have an HTTP client of their own.
//!
//! Start reading at [`Builder::build`].

#[cfg(not(any(feature = "sqlite", feature = "postgres")))]
compile_error!("connections must be kept somewhere: turn on the feature `sqlite` or `postgres`");

mod app;
mod builder;
mod connect;
mod coordination;
mod engine;
mod error;
#[cfg(any(feature = "tower", feature = "reqwest"))]
mod foreign;
mod request;
#[cfg(feature = "reqwest")]
mod reqwest;
mod target;
#[cfg(feature = "tower")]
mod tower;

pub use app::App;
pub use builder::Builder;
pub use connect::{Connect, Link, StartError};
pub use coordination::Coordination;
pub use engine::Evergrant;
pub use error::{BuildError, Error};
pub use request::RequestExt;

#[cfg(feature = "reqwest")]
pub use crate::reqwest::EvergrantMiddleware;
#[cfg(feature = "tower")]
pub use crate::tower::{EvergrantLayer, EvergrantService};

pub use evergrant_domain::call_budget::Lane;
pub use evergrant_domain::write_lookup::LookUp;
pub use evergrant_domain::{
    AccessToken, AppName, ClientSecret, ConnectionId, Customer, ReconnectReason, Timestamp,
};
pub use evergrant_gateway::{
    Answer, BrokenOff, CallRecord, Gateway, GatewayBody, GatewayLimits, Outgoing, Refusal, RefusalKind,
};
pub use evergrant_keeper::{Clock, EventsKept, KeepError, Keeper, RefreshReport, Renewal, SystemClock};
pub use evergrant_store::VaultKey;
