//! Takes an app's API call, puts the connection's access token on it, sends it to the app's API base and nowhere else,
//! judges the answer and repeats the call once when that is right.
//!
//! The provider's answer passes through unchanged and streamed, whatever its status, with a few headers that say what was
//! done. Only this crate puts an access token on a request. It knows nothing of HTTP servers, API keys or problem
//! documents, holds no token itself ([`evergrant_keeper::Keeper`] does), and never redeems anything.
//!
//! Start reading at [`Gateway::call`] (`gateway`: what a call passes on its way) and `sending` (what follows from an answer), then
//! `target` (where a call may go), `headers` (what goes with it), `call_body` (how it can be sent twice), `transport` and
//! `upstream` (what "it was not sent" means). `guard` is for writes whose caller wants them carried out once.

mod answer_body;
mod breaker;
mod budget;
mod call;
mod call_body;
mod gateway;
mod guard;
mod headers;
mod record;
mod sending;
mod target;
mod transport;
mod upstream;
mod verdict;

pub use answer_body::{BrokenOff, GatewayBody, Rest};
pub use call_body::Outgoing;
pub use gateway::{Gateway, GatewayLimits, Terms, outlives_its_caller};
pub use record::{Answer, CallRecord, Refusal, RefusalKind};
pub use transport::{Leaving, NoAnswer, Transport};
pub use upstream::{Remaining, Upstream};
