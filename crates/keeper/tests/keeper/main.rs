//! The keeper through its doors, against a simulated HubSpot and a real SQLite file.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod app;
mod clocks;
mod connecting;
mod counted;
mod crash;
mod journal;
mod killed;
mod lifeboat;
mod lost;
mod modes;
mod once;
mod orders;
mod refused;
mod regression;
mod rejected;
mod shared;
mod stage;
mod steps;
mod turns;
mod world;
