//! What each command does. Those that are not local speak the HTTP API, whether to a service or to the store.

pub(crate) mod apps;
pub(crate) mod call;
pub(crate) mod connect;
pub(crate) mod connections;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod init;
pub(crate) mod keys;
pub(crate) mod migrate;
pub(crate) mod records;
pub(crate) mod serve;
pub(crate) mod sim;
pub(crate) mod token;
pub(crate) mod webhooks;
