//! The whole refresh path in simulated time: the real keeper, the real wire code and the real statements of a store, in a world
//! that is decided by one number.
//!
//! A *process* is a real `Keeper` with its background work. Around it everything is simulated: clocks that drift and are set,
//! a store that is slow, cut off, or does what it was asked without saying so, a provider that rotates, revokes families and
//! loses answers, a disk that is full, SIGKILL and SIGSTOP at any point. After a while everything heals.
//!
//! A [`Violation`] is what PROTOCOL's invariants forbid. It knows nothing of how the keeper does what it does.
//!
//! Start reading at `run`, then `scenario` for what goes wrong and `witness` for what is judged.

mod calls;
mod clocks;
mod dice;
mod disk;
mod gate;
mod grants;
mod log;
mod process;
mod provider;
mod run;
mod scenario;
mod store;
mod trace;
mod violation;
mod wire;
mod witness;

pub use run::{Report, Tracing, run};
pub use scenario::Class;
pub use violation::{Oracle, Violation};
