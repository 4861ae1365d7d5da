//! The gateway from outside: a real keeper on a real store, and a provider that is either HubSpot's simulator or does, byte
//! for byte, what a test says.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod ahead;
mod counting;
mod failing;
mod faulty;
mod guarding;
mod keeping;
mod passing;
mod repeating;
mod scripted;
mod streaming;
mod world;
