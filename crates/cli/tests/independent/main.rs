//! RELIABILITY.md's checks 1 to 32 against an authorization server that others wrote.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod between;
mod clock;
mod consent;
mod crash;
mod database;
mod disk;
mod disturb;
mod endpoint;
mod lost;
mod provider;
mod refresh;
mod site;
mod time;
mod web;

/// Whether to wait for as long as a lease lasts, too. Says what is left out.
fn long(what: &str) -> bool {
    let long = std::env::var_os("EVERGRANT_TEST_LONG").is_some();
    if !long {
        println!("LEFT OUT: {what}: `cargo xtask independent --long` waits for it");
    }
    long
}
