//! Budgets and breakers from outside, in simulated time: gateways that share a store, and a provider that counts.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod breaking;
mod fleet;
mod learning;
mod provider;
mod store;
mod waiting;
