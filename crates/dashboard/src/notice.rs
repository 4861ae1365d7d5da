//! What a form did, said once on the page that follows.

use serde::{Deserialize, Serialize};

/// One sentence about what a form did. It travels with the redirect that follows, sealed by whoever sends that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Whether it was done.
    pub good: bool,
    /// What was done, or why it was not.
    pub text: String,
}

impl Notice {
    /// The most that is said, in characters. It has to fit into a cookie.
    const LONGEST: usize = 600;

    pub(crate) fn done(text: impl Into<String>) -> Self {
        Self::new(true, text.into())
    }

    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self::new(false, text.into())
    }

    fn new(good: bool, text: String) -> Self {
        let text = match text.char_indices().nth(Self::LONGEST) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        };
        Self { good, text }
    }
}
