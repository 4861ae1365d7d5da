//! The simulator through its public doors: HTTP, and the Rust API that steers it.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod api;
mod associations;
mod browser;
mod consent;
mod control;
mod crm;
mod faults;
mod journal;
mod oauth;
