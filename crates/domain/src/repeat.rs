//! Which calls may be sent a second time.
//!
//! After a 401 any call may: it was not applied (RFC 9110 §15.5.2). After an answer that never came, or a 5xx, only what
//! reads, or ends in the same state however often it is sent (§9.2.2). HubSpot has no `Idempotency-Key`, so which POSTs
//! only read is knowledge about its paths.

use crate::app::Dialect;

/// What a call does to the provider's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Read,
    /// The same end state, however often it is sent.
    IdempotentWrite,
    /// Something more each time it is sent.
    Write,
}

impl Effect {
    /// Whether the call may be sent again when nobody knows whether it was carried out.
    pub fn may_repeat_blindly(self) -> bool {
        match self {
            Self::Read | Self::IdempotentWrite => true,
            Self::Write => false,
        }
    }
}

/// What `method` on `path` (without query) does.
pub fn effect(dialect: Dialect, method: &str, path: &str) -> Effect {
    match method {
        "GET" | "HEAD" | "OPTIONS" | "TRACE" => Effect::Read,
        "PUT" | "DELETE" => Effect::IdempotentWrite,
        // RFC 9110 does not promise it, HubSpot's updates by id do: the same properties, the same record.
        "PATCH" if dialect == Dialect::HubSpot => Effect::IdempotentWrite,
        "POST" if dialect == Dialect::HubSpot => hubspot_post(path),
        _ => Effect::Write,
    }
}

fn hubspot_post(path: &str) -> Effect {
    let path = path.trim_end_matches('/').to_ascii_lowercase();
    let ends = |suffix: &str| path.ends_with(suffix);
    if ends("/search") || ends("/batch/read") || ends("/token/introspect") {
        Effect::Read
    } else if ends("/batch/update") || ends("/batch/archive") || ends("/batch/upsert") {
        Effect::IdempotentWrite
    } else {
        Effect::Write
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, path: &str, expected: Effect) {
        assert_eq!(
            effect(Dialect::HubSpot, method, path),
            expected,
            "{method} {path}"
        );
    }

    #[test]
    fn posts_that_read_are_known_by_their_path() {
        check("POST", "/crm/v3/objects/contacts/search", Effect::Read);
        check("POST", "/crm/objects/2026-03/contacts/search", Effect::Read);
        check("POST", "/crm/v3/objects/contacts/batch/read", Effect::Read);
        check(
            "POST",
            "/crm/v4/associations/contacts/companies/batch/read",
            Effect::Read,
        );
        check(
            "POST",
            "/webhooks-journal/journal/2026-03/batch/read",
            Effect::Read,
        );
    }

    #[test]
    fn writes_by_id_end_in_the_same_state() {
        check("PATCH", "/crm/v3/objects/contacts/1", Effect::IdempotentWrite);
        check(
            "PUT",
            "/crm/v4/objects/contact/1/associations/default/company/2",
            Effect::IdempotentWrite,
        );
        check("DELETE", "/crm/v3/objects/contacts/1", Effect::IdempotentWrite);
        for act in ["update", "archive", "upsert"] {
            check(
                "POST",
                &format!("/crm/v3/objects/contacts/batch/{act}"),
                Effect::IdempotentWrite,
            );
        }
    }

    #[test]
    fn creates_are_never_repeated_blindly() {
        for path in [
            "/crm/v3/objects/contacts",
            "/crm/v3/objects/deals",
            "/crm/v3/objects/contacts/batch/create",
            "/crm/v3/objects/contacts/merge",
            "/crm/v3/objects/research",
            "/submissions/v3/integration/submit/1/2",
        ] {
            check("POST", path, Effect::Write);
            assert!(!effect(Dialect::HubSpot, "POST", path).may_repeat_blindly());
        }
    }

    #[test]
    fn a_generic_provider_is_taken_at_the_rfcs_word() {
        assert_eq!(effect(Dialect::Generic, "POST", "/search"), Effect::Write);
        assert_eq!(effect(Dialect::Generic, "PATCH", "/x"), Effect::Write);
        assert_eq!(effect(Dialect::Generic, "PUT", "/x"), Effect::IdempotentWrite);
        assert_eq!(effect(Dialect::Generic, "get", "/x"), Effect::Write);
    }
}
