//! Raw bytes against the binary: what reaches the provider, and what comes back.
//!
//! Whatever a caller or a provider sends, a provider sees requests to its configured base alone: whole, framed in one way, with our
//! token once and nothing of the caller's that is not meant for it. Each case says what may arrive, to the byte of the target, and
//! which answer comes back; after each, one harmless call on a connection of its own must find everything as it was.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]
#![expect(clippy::too_many_lines, reason = "tables are as long as they are")]

mod answers;
mod crowds;
mod framing;
mod http2;
mod keys;
mod requests;
mod site;
mod targets;
mod upstream;
mod wire;
