//! The whole system as its users meet it: the binary as processes of their own, HubSpot's own clients, a real browser; against
//! a simulated HubSpot, whose ledger is the judge. HTTP 200s prove nothing here.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod browser;
mod clients;
mod dashboard;
mod explaining;
mod guards;
mod installation;
mod metrics;
mod prepared;
mod processes;
mod retries;
mod traces;
mod webhooks;
