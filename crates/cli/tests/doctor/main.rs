//! Every cause that the doctor knows, planted in a running system: the real binary, a simulated HubSpot, a real database, and each
//! time exactly one fault. And systems without any, of which the doctor must say so.
//!
//! One service carries most faults, each on a connection of its own, so that what is wrong with one must not be said of another:
//! every test ends with a look at one that is well.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod apart;
#[path = "../independent/clock.rs"]
mod clock;
mod command;
mod healthy;
#[expect(dead_code, reason = "the rest of it is for the other whole-system tests")]
#[path = "../system/installation.rs"]
mod installation;
mod planted;
mod practice;
mod silent;
