//! The service through its public doors: HTTP against a running server, with the simulator as its provider and a real store.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod access;
mod connect;
mod connections;
mod dashboard;
mod gateway;
mod harness;
mod history;
mod input;
mod listen;
mod metrics;
mod pages;
mod secrets;
mod short_way;
mod tokens;
mod webhooks;
