//! The keeper through its doors, against a simulated HubSpot and a real SQLite file.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod app;
mod connecting;
mod crash;
mod killed;
mod lifeboat;
mod lost;
mod once;
mod refused;
mod rejected;
mod stage;
mod steps;
mod turns;
mod world;
