//! How a call leaves for its provider: the port behind which connections are made and kept.

use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};

use tokio::time::Instant;

use crate::answer_body::Rest;
use crate::call_body::Outgoing;

/// Why no answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    /// The call did not leave.
    NotSent,
    /// It left, or may have; the connection ended before an answer, or what came is none.
    Cut,
    /// It left, or may have; nothing came in time.
    TimedOut,
}

/// A call that is sent now. Sent again, it is another one of the same parts.
pub struct Leaving<'a> {
    pub(crate) method: &'a Method,
    /// Where it goes.
    pub(crate) uri: &'a Uri,
    /// All but the credentials.
    pub(crate) headers: &'a HeaderMap,
    /// The access token, as it stands in the header.
    pub(crate) bearer: &'a HeaderValue,
    pub(crate) body: Outgoing,
    /// When it leaves.
    pub(crate) at: Instant,
}

impl Leaving<'_> {
    /// The whole as a request, with the access token on it.
    pub fn request(self) -> Request<Outgoing> {
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(AUTHORIZATION, self.bearer.clone());
        request
    }
}

/// Sends calls. The gateway's own is [`crate::Upstream`]; a program that has an HTTP client of its own brings that.
pub trait Transport: Send + Sync + 'static {
    /// Sends a call once, to where its URI says, and returns the head of the answer with what is still to come.
    ///
    /// Nothing is sent a second time, no redirect is followed, and [`NoAnswer::NotSent`] is said only of what surely did not
    /// leave. The call carries an access token: it goes nowhere else and into no log. How long to wait for an answer is the
    /// caller's to decide; dropping the future gives the call up.
    fn send(&self, call: Leaving<'_>) -> impl Future<Output = Result<Response<Rest>, NoAnswer>> + Send;

    /// Hears how long calls wait for the head of an answer from now on. What makes connections should give up well before that: a
    /// call that runs out of time while connecting is known not to have left only as long as that is said in time.
    fn wait_for(&self, _patience: Duration) {}
}
