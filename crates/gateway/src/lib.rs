//! Takes an app's API call, puts the connection's access token on it, sends it to the app's API base and nowhere else,
//! judges the answer and repeats the call once when that is right.
//!
//! The provider's answer passes through unchanged and streamed, whatever its status, with a few headers that say what was
//! done. Only this crate puts an access token on a request. It knows nothing of HTTP servers, API keys or problem
//! documents, holds no token itself ([`evergrant_keeper::Keeper`] does), and never redeems anything.
//!
//! Start reading at [`Gateway::call`] (`gateway`), then `target` (where a call may go), `headers` (what goes with it),
//! `call_body` (how it can be sent twice) and `upstream` (what "it was not sent" means). Write guards and budgets, once there
//! are any, belong into `gateway`, between the token and the first sending.

mod answer_body;
mod call_body;
mod gateway;
mod headers;
mod record;
mod target;
mod upstream;
mod verdict;

pub use answer_body::{BrokenOff, GatewayBody};
pub use gateway::{Gateway, GatewayLimits};
pub use record::{Answer, CallRecord, Refusal, RefusalKind};
