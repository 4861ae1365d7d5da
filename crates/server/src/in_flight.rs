//! How many calls are in flight, in all and of each API key, and that there are not too many.
//!
//! A call that finds no place is refused at once: waiting would only take what is short already. Counting costs a call four
//! atomic additions and no lock: a call is counted by what it holds.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use evergrant_config::Limits;
use http_body::{Body, Frame, SizeHint};

use crate::problem::{Code, Problem};

/// When a refused caller may come again: calls end all the time, so soon.
const COME_AGAIN: Duration = Duration::from_secs(1);

/// Calls that are counted together. Clones count as one.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlight(Arc<Counted>);

impl InFlight {
    fn enter(&self, max: usize) -> Option<Counted> {
        // One that is over is dropped again: two that meet at the limit may both be refused, none is let in over it.
        let counted = Counted::clone(&self.0);
        (counted.how_many() <= max).then_some(counted)
    }

    /// Whether both count the same calls.
    #[cfg(test)]
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// How many there are.
    #[cfg(test)]
    fn now(&self) -> usize {
        self.0.how_many()
    }
}

/// One of them, until it is dropped; the first is none.
#[derive(Debug, Clone, Default)]
struct Counted(Arc<()>);

impl Counted {
    fn how_many(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

/// A call's place among all calls and among those of its key.
#[derive(Debug)]
pub(crate) struct Place {
    _among_all: Counted,
    _among_the_keys: Option<Counted>,
}

impl Place {
    /// Takes a place, or says that there is none. The operator at the machine has no key, and is counted among all.
    pub(crate) fn take(all: &InFlight, key: Option<&InFlight>, limits: &Limits) -> Result<Self, Problem> {
        let overloaded = |detail| Problem::because(Code::Overloaded, detail).retry_after(COME_AGAIN);
        // The key's own limit first: a key that floods must not cost the others a place for a moment.
        let among_the_keys = match key.map(|key| key.enter(limits.in_flight_per_key)) {
            Some(None) => {
                return Err(overloaded(
                    "as many calls with this API key are in flight as one key may have; nothing was sent",
                ));
            }
            Some(counted) => counted,
            None => None,
        };
        let among_all = all.enter(limits.in_flight).ok_or_else(|| {
            overloaded("as many calls are in flight as this service takes; nothing was sent")
        })?;
        Ok(Self {
            _among_all: among_all,
            _among_the_keys: among_the_keys,
        })
    }
}

/// Who has a call's place.
pub(crate) enum Held {
    /// Its caller alone: a call ends with it.
    Alone { _place: Place },
    /// The call, too, which goes on without its caller.
    Both { _place: Arc<Place> },
}

impl Held {
    /// The place of a call that ends with its caller.
    pub(crate) fn alone(place: Place) -> Self {
        Self::Alone { _place: place }
    }

    /// The place of a call that may outlive its caller, and the call's own hold on it.
    pub(crate) fn with_the_call(place: Place) -> (Self, Arc<Place>) {
        let place = Arc::new(place);
        (
            Self::Both {
                _place: place.clone(),
            },
            place,
        )
    }
}

/// An answer's body that keeps its call's place until it has ended or nobody wants it any more.
pub(crate) struct Placed<B> {
    pub(crate) body: B,
    pub(crate) place: Option<Held>,
}

impl<B: Body + Unpin> Body for Placed<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            self.place = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_floods_leaves_room_for_the_others() {
        let (all, flooding, healthy) = (InFlight::default(), InFlight::default(), InFlight::default());
        let limits = Limits {
            in_flight: 5,
            in_flight_per_key: 3,
            ..Limits::default()
        };
        let take = |key: Option<&InFlight>| Place::take(&all, key, &limits);
        let mut taken: Vec<_> = (0..3).map(|_| take(Some(&flooding)).unwrap()).collect();
        for _ in 0..10 {
            let refused = take(Some(&flooding)).unwrap_err();
            assert_eq!(refused.code(), Code::Overloaded);
        }
        taken.push(take(Some(&healthy)).unwrap());
        taken.push(take(None).unwrap());
        take(Some(&healthy)).expect_err("that makes five");
        assert_eq!((all.now(), flooding.now(), healthy.now()), (5, 3, 1));
        taken.remove(0);
        taken.push(take(Some(&flooding)).unwrap());
        drop(taken);
        assert_eq!((all.now(), flooding.now(), healthy.now()), (0, 0, 0));
    }
}
