//! The binary, as a new user meets it: files, exit codes, standard output, signals. HubSpot is `evergrant sim`.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod demo;
mod events;
mod first_steps;
mod outcomes;
mod postgres;
mod records;
mod service;
mod upgrade;
mod usage;
mod web;
mod world;
