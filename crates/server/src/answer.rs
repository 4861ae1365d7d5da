//! An answer on its way to its caller, and what is known of it beside what is sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body as RouterBody;
use axum::response::Response as RouterResponse;
use bytes::Bytes;
use evergrant_gateway::GatewayBody;
use http::Response;
use http_body::{Body, Frame, SizeHint};

use crate::guest::Turn;
use crate::in_flight::Placed;
use crate::log::GatewayCall;
use crate::problem::Problem;
use crate::router::Endpoint;
use crate::service::KeyWasValid;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An answer.
pub(crate) struct Answer {
    /// What is sent. Where it stays: it goes through many hands.
    pub(crate) response: Box<Response<AnswerBody>>,
    /// The call that it is the answer to.
    pub(crate) call: Option<GatewayCall>,
    /// The route that gave it, as the log names it.
    pub(crate) endpoint: Option<Endpoint>,
    /// What it says in place of what was asked for; not written yet.
    pub(crate) problem: Option<Problem>,
    /// Whether the request's API key was valid, whatever came of it.
    pub(crate) key_was_valid: bool,
}

impl Answer {
    pub(crate) fn new(response: Response<AnswerBody>) -> Self {
        Self {
            response: Box::new(response),
            call: None,
            endpoint: None,
            problem: None,
            key_was_valid: false,
        }
    }
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Self {
        Self {
            problem: Some(problem),
            ..Self::new(Response::new(AnswerBody::from(Bytes::new())))
        }
    }
}

/// The router's answers carry in their extensions what is known of them.
impl From<RouterResponse> for Answer {
    fn from(response: RouterResponse) -> Self {
        let mut response = response.map(AnswerBody::routed);
        let beside = response.extensions_mut();
        Self {
            endpoint: beside.remove(),
            problem: beside.remove(),
            key_was_valid: beside.remove::<KeyWasValid>().is_some(),
            ..Self::new(response)
        }
    }
}

/// The body of an answer. What most calls have needs no box.
pub struct AnswerBody {
    kind: Kind,
    /// Until its end it is its guest's turn.
    turn: Option<Turn>,
}

enum Kind {
    Call(Placed<GatewayBody>),
    Whole(Bytes),
    Routed(RouterBody),
}

impl AnswerBody {
    /// The provider's.
    pub(crate) fn call(body: Placed<GatewayBody>) -> Self {
        Self::from(Kind::Call(body))
    }

    /// A route's.
    pub(crate) fn routed(body: RouterBody) -> Self {
        Self::from(Kind::Routed(body))
    }

    /// It is this guest's turn until the body's end.
    pub(crate) fn keep_turn(&mut self, turn: Turn) {
        self.turn = Some(turn);
    }
}

impl From<Bytes> for AnswerBody {
    fn from(body: Bytes) -> Self {
        Self::from(Kind::Whole(body))
    }
}

impl From<Kind> for AnswerBody {
    fn from(kind: Kind) -> Self {
        Self { kind, turn: None }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.kind {
            Kind::Call(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Whole(body) if body.is_empty() => Poll::Ready(None),
            Kind::Whole(body) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(body))))),
            Kind::Routed(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Call(body) => body.is_end_stream(),
            Kind::Whole(body) => body.is_empty(),
            Kind::Routed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Call(body) => body.size_hint(),
            Kind::Whole(body) => SizeHint::with_exact(body.len() as u64),
            Kind::Routed(body) => body.size_hint(),
        }
    }
}

impl std::fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerBody").finish_non_exhaustive()
    }
}
