//! Who asks, for the history.

use evergrant_domain::event::Circumstances;

/// Who asks for something, and in which request of ours. Borrowed: a call with a fresh token only hands it on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asker<'a> {
    /// An API key's id, or `operator`, `scheduler`, `customer`.
    pub by: Option<&'a str>,
    /// The request.
    pub request_id: Option<&'a str>,
}

impl Asker<'_> {
    /// Nobody that is known: a program that embeds the engine.
    pub const UNKNOWN: Asker<'static> = Asker {
        by: None,
        request_id: None,
    };

    /// A customer, in a browser.
    pub const CUSTOMER: Asker<'static> = Asker {
        by: Some("customer"),
        request_id: None,
    };

    /// What runs by itself.
    pub const SCHEDULER: Asker<'static> = Asker {
        by: Some("scheduler"),
        request_id: None,
    };

    /// To be kept beyond the request.
    pub fn kept(self) -> KeptAsker {
        KeptAsker {
            by: self.by.map(str::to_owned),
            request_id: self.request_id.map(str::to_owned),
        }
    }

    /// What an event says of it.
    pub fn circumstances(self) -> Circumstances {
        Circumstances {
            by: self.by.map(str::to_owned),
            request_id: self.request_id.map(str::to_owned),
            ..Circumstances::default()
        }
    }
}

/// The same, kept.
#[derive(Debug, Clone, Default)]
pub struct KeptAsker {
    by: Option<String>,
    request_id: Option<String>,
}

impl KeptAsker {
    /// Who it is.
    pub fn asker(&self) -> Asker<'_> {
        Asker {
            by: self.by.as_deref(),
            request_id: self.request_id.as_deref(),
        }
    }
}
