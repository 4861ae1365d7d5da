//! What only PostgreSQL promises: servers that restart, answers that get lost, transactions that meet. The contract itself is
//! proven in `tests/contract`.

#![expect(clippy::unwrap_used, reason = "a claim that cannot be made ends its test")]

mod database;
mod failover;
mod faults;
mod hints;
mod opening;
mod proxy;
mod races;
mod secrets;
mod upgrade;
