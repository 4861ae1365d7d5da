//! The service: HTTP API, gateway door, connect flow, health. Thin over keeper and gateway: it decides who may ask and shows
//! what they answer.
//!
//! It knows nothing of databases, providers' answers or when a token is due. Nothing here holds a refresh token; an access token
//! appears in one view, for keys of the role `tokens`.
//!
//! Start reading at [`Service::answer`], the one entry of every request; then the routes in `router`, the error answers
//! in `problem`, and the customer's way in `connect`.

mod access;
mod answer;
mod api;
mod by_turns;
mod connect;
mod dashboard;
mod draining;
mod guest;
mod health;
mod help;
mod in_flight;
mod input;
mod leftover;
mod listen;
mod lists;
mod log;
mod metrics;
mod notices;
pub mod openapi;
mod own_words;
mod pace;
mod pages;
mod patience;
mod problem;
mod rarely;
mod router;
mod service;
mod short;
mod spans;
mod threads;
mod tls;
mod trace;
mod views;

pub use answer::AnswerBody;
pub use listen::{BindError, ListenSettings, Server};
pub use metrics::{MetricsBindError, MetricsServer};
pub use problem::Code;
pub use service::{Operator, Peer, Reach, Service, ServiceSettings};
pub use spans::Traces;
pub use tls::{Certificates, TlsError};
