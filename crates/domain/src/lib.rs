//! The decisions of Evergrant, and nothing but the decisions.
//!
//! Everything here is a value or a pure function: what a connection is, when its token is due, what an answer of a
//! provider means, what may be repeated. Nothing here reads a clock, awaits, logs, stores or serializes; `now` and
//! chance are arguments. JSON is read here (a provider's answer has to be understood), never written.
//!
//! Start reading at [`connection`] for the thing that is kept, at [`redemption`] for who may redeem and when, at
//! [`token_answer`] for what a token endpoint said, and at [`api_answer`] for what a 401 means.

pub mod access;
pub mod api_answer;
pub mod app;
pub mod breaker;
pub mod call_budget;
pub mod connection;
pub mod diagnosis;
pub mod event;
pub mod explain;
pub mod id;
pub mod journal;
pub mod read_before_write;
pub mod redemption;
pub mod refresh_policy;
pub mod rejection;
pub mod repeat;
pub mod secret;
mod strict_json;
pub mod tally;
pub mod time;
pub mod token_answer;
pub mod token_set;
pub mod trust;
pub mod upstream_breaker;
pub mod webhook;
pub mod write_ledger;
pub mod write_lookup;

pub use app::{App, AppHealth, Provider, Rotation};
pub use connection::{Connection, ConnectionStatus, Health, Kind, ReconnectReason};
pub use id::{AccountId, AppName, ConnectionId, Customer, Fence, InvalidId, Version};
pub use refresh_policy::{KeepFresh, RefreshPolicy};
pub use secret::{AccessToken, AuthorizationCode, ClientSecret, CodeVerifier, RefreshToken, ShownToken};
pub use time::Timestamp;
pub use token_set::TokenSet;
