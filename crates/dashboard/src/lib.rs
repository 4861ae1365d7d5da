//! The operators' pages: which connection, why, and what to do.
//!
//! Everything that a page shows was answered by the service's own HTTP API, asked with the rights of whoever logged in; so no
//! page can show more than its reader's key may read, and what a page shows, a program can ask for. This crate knows neither
//! store nor engine, neither cookies nor keys: who the reader is has been decided before a request gets here.
//!
//! Start reading at [`answer`]; then `pages`, one file for each page. How an answer of the API is read stands in `records`,
//! which words and marks stand for what in `words`, the charts in `chart`.

mod api;
mod assets;
mod chart;
mod notice;
mod pages;
mod records;
mod words;

pub use api::{Answer, Api};
pub use assets::{Asset, asset};
pub use notice::Notice;
pub use pages::{Login, Reply, Request, Rights, Visitor, answer, login, step_in};
