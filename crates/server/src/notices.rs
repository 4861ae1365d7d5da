//! How webhooks show what they tell of: as the API shows it.

use std::sync::Weak;

use evergrant_domain::{App, AppName, Connection, ConnectionId};
use evergrant_webhooks::Describe;
use serde_json::{Value, json};

use crate::connect::link;
use crate::service::Inner;

/// Shows records by the service that is made around this.
pub(crate) struct Shown(pub(crate) Weak<Inner>);

impl Describe for Shown {
    fn connection(&self, connection: &Connection) -> Value {
        let Some(shared) = self.0.upgrade() else {
            return Value::Null;
        };
        let mut record = serde_json::to_value(shared.record(connection.clone())).unwrap_or_default();
        if let Some(record) = record.as_object_mut() {
            // It stands beside the record, made anew each time that this is sent.
            record.remove("reconnect_url");
        }
        record
    }

    fn app(&self, name: &AppName, app: Option<&App>) -> Value {
        json!({
            "name": name.as_str(),
            "provider": app.map(|app| app.provider.dialect.as_str()),
            "display_name": app.and_then(|app| app.display_name.as_deref()),
        })
    }

    fn reconnect_url(&self, connection: &ConnectionId) -> String {
        self.0.upgrade().map_or_else(String::new, |shared| {
            shared.reconnect_url(connection, link::LASTS, None)
        })
    }
}
