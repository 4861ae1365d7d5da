//! A call on its way: what is sent, however often.

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::call_budget::Counted;
use evergrant_domain::repeat::Effect;
use evergrant_domain::write_lookup::{LookUp, look_up};
use evergrant_domain::{ConnectionId, Timestamp};
use evergrant_keeper::{Asker, Current};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Uri};
use tokio::time::Instant;

use crate::budget::{Patience, Permit};
use crate::call_body::CallBody;
use crate::guard::Place;
use crate::transport::Leaving;

/// When a call was sent that has not been.
pub(crate) const NEVER: Timestamp = Timestamp::from_millis(0);

/// What is sent, however often.
pub(crate) struct Call<'a> {
    pub(crate) id: &'a ConnectionId,
    /// Who asks, for the history.
    pub(crate) asker: Asker<'a>,
    pub(crate) method: &'a Method,
    /// Path and query, as the caller wrote them.
    pub(crate) target: &'a str,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: CallBody,
    pub(crate) effect: Effect,
    pub(crate) min_ttl: Option<Duration>,
    pub(crate) token: Arc<Current>,
    pub(crate) token_took: Duration,
    /// When the first token was at hand.
    pub(crate) ready_at: Instant,
    /// When it leaves, where nothing has been waited for since.
    pub(crate) leaves_at: Option<Instant>,
    /// Which budget it is counted by.
    pub(crate) counted: Counted,
    /// On whose terms it waits for that.
    pub(crate) patience: Patience<'a>,
    pub(crate) permit: Permit,
    /// When it was sent last.
    pub(crate) sent_at: Timestamp,
    /// A 401 was answered with a repeat: there is no second one.
    pub(crate) repeated_for_401: bool,
    /// A cut or a 5xx was: neither is repeated again.
    pub(crate) repeated_blindly: bool,
    /// A newer token is at hand, but not the body.
    pub(crate) not_repeated: bool,
    /// A guarded write's place in the ledger: it leaves only once that is on record.
    pub(crate) place: Option<&'a Place>,
}

impl Call<'_> {
    /// The only place where an access token is put on a call.
    pub(crate) fn leaving(&self, at: Instant) -> Leaving<'_> {
        Leaving {
            method: self.method,
            uri: &self.uri,
            headers: &self.headers,
            bearer: &self.token.bearer,
            body: self.body.send(),
            at,
        }
    }

    /// What to ask to find out whether it was carried out.
    pub(crate) fn look_up(&self) -> Option<Box<LookUp>> {
        let dialect = self.token.app.provider.dialect;
        let body = self.body.kept();
        look_up(dialect, self.method.as_str(), self.target, body.as_deref()).map(Box::new)
    }

    pub(crate) fn may_be_repeated_blindly(&self) -> bool {
        self.effect == Effect::Read && !self.repeated_blindly && self.body.can_be_sent_again()
    }
}

/// Says how long the body is where hyper would not say it by itself.
pub(crate) fn frame(headers: &mut HeaderMap, method: &Method, length: Option<u64>) {
    match length {
        // RFC 9110 §8.6: a method that expects content says that there is none.
        Some(0) if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
        }
        // hyper takes it that these have none, unless it is told.
        None if matches!(*method, Method::GET | Method::HEAD) => {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        Some(_) | None => {}
    }
}
