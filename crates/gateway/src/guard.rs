//! Write guards: what a caller asks for so that a write is carried out once, whatever happens to it, to its answer, or to us.
//!
//! A guarded write runs in a task that outlives its caller. [`Place`] is its place in the store's ledger: taken before anything
//! is sent, marked right before the first byte leaves, and given its end before the caller has the answer. Which end follows
//! from which outcome is decided in [`evergrant_domain::write_ledger`].

mod ahead;
mod asked;
mod fingerprint;
mod kept;
mod place;

use std::time::Duration;

use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::write_ledger::{Came, Meeting, Outcome, outcome};
use evergrant_keeper::KeepError;
use evergrant_store::contract::{Reserved, StoredAnswer, WriteEnd, WriteTicket};
use http::Response;

pub(crate) use self::asked::{Guards, GuardsAsked, may_be_guarded};
pub(crate) use self::place::{Ends, Place};
use crate::answer_body::GatewayBody;
use crate::call::Call;
use crate::gateway::Inner;
use crate::record::{CallRecord, RefusalKind};
use crate::transport::Transport;

use self::ahead::Ahead;

impl<T: Transport> Inner<T> {
    /// Carries a write out as its guards ask.
    pub(crate) async fn guarded(
        &self,
        call: Call<'_>,
        guards: &Guards,
        record: &mut CallRecord,
    ) -> Result<Response<GatewayBody>, RefusalKind> {
        record.app = Some(call.token.app.name.clone());
        let body =
            call.body
                .whole(self.upstream_timeout())
                .await?
                .ok_or(RefusalKind::GuardNotApplicable {
                    what: "the body is larger than what is kept of one: it cannot be compared with another",
                })?;
        let ahead = guards
            .ahead
            .as_ref()
            .map(|wish| Ahead::of(&call, wish, &body))
            .transpose()?;
        if guards.key.is_none() && guards.window.is_none() {
            let there = match &ahead {
                Some(ahead) => self.look_first(ahead, &call, record).await?,
                None => None,
            };
            return match there {
                Some(answer) => Ok(answer),
                None => self.without_a_place(call, ahead.as_ref(), record).await,
            };
        }
        let reservation = self.reservation(&call, guards, &body);
        drop(body);
        match self.reserve(reservation).await? {
            Reserved::Yours(ticket) => {
                let place = Place::new(ticket);
                tokio::select! {
                    biased;
                    result = self.in_its_place(call, &place, ahead.as_ref(), record) => result,
                    never = self.hold(&place) => match never {},
                }
            }
            Reserved::Unknown(ticket) => self.settle(ticket, ahead.as_ref(), &call, record).await,
            Reserved::Met(meeting, answer) => self.met(meeting, answer, &call, record),
        }
    }

    /// Carries a write out of which no ledger is kept.
    async fn without_a_place(
        &self,
        mut call: Call<'_>,
        ahead: Option<&Ahead>,
        record: &mut CallRecord,
    ) -> Result<Response<GatewayBody>, RefusalKind> {
        let (id, asker, app, patience) = (call.id, call.asker, call.token.app.clone(), call.patience);
        let result = self.carry_out(&mut call, record).await;
        if record.outcome_unknown
            && let Some(ahead) = ahead
            && let Some(found) = self.look_after(ahead, id, &app, patience).await
        {
            return Ok(self.suppressed(found, id, asker, record));
        }
        result
    }

    /// Carries a write out that has its place, and says in it how it ended.
    async fn in_its_place(
        &self,
        call: Call<'_>,
        place: &Place,
        ahead: Option<&Ahead>,
        record: &mut CallRecord,
    ) -> Result<Response<GatewayBody>, RefusalKind> {
        if let Some(ahead) = ahead {
            match self.look_first(ahead, &call, record).await {
                Ok(None) => {}
                Ok(Some(mut answer)) => {
                    // Not one of the provider's, or a refused look-up: then there is nothing to keep.
                    let end = if record.replayed {
                        WriteEnd::Done(kept::keep(&mut answer).await)
                    } else {
                        WriteEnd::NotApplied
                    };
                    self.end(place, end).await;
                    return Ok(answer);
                }
                Err(kind) => {
                    self.end(place, WriteEnd::NotApplied).await;
                    return Err(kind);
                }
            }
        }
        let (id, asker, app, patience) = (call.id, call.asker, call.token.app.clone(), call.patience);
        let mut sent = Call {
            place: Some(place),
            ..call
        };
        let mut result = self.carry_out(&mut sent, record).await;
        if place.is_lost() {
            return result;
        }
        match outcome(came(&result, place)) {
            Outcome::NotApplied => self.end(place, WriteEnd::NotApplied).await,
            Outcome::Done => {
                if let Ok(response) = &mut result {
                    let answer = kept::keep(response).await;
                    self.end(place, WriteEnd::Done(answer)).await;
                }
            }
            Outcome::Unknown => {
                let found = match ahead {
                    Some(ahead) => self.look_after(ahead, id, &app, patience).await,
                    None => None,
                };
                if let Some(found) = found {
                    let mut answer = self.suppressed(found, id, asker, record);
                    let stored = kept::keep(&mut answer).await;
                    self.end(place, WriteEnd::Done(stored)).await;
                    return Ok(answer);
                }
                self.end(place, WriteEnd::Unknown).await;
            }
        }
        result
    }

    /// What a write is answered with that was here before, and of which nobody knows what became of it. Found out, it is on
    /// record for whoever comes after.
    async fn settle(
        &self,
        ticket: WriteTicket,
        ahead: Option<&Ahead>,
        call: &Call<'_>,
        record: &mut CallRecord,
    ) -> Result<Response<GatewayBody>, RefusalKind> {
        let found = match ahead {
            Some(ahead) => {
                self.look_after(ahead, call.id, &call.token.app, call.patience)
                    .await
            }
            None => None,
        };
        if let Some(found) = found {
            let mut answer = self.suppressed(found, call.id, call.asker, record);
            let stored = kept::keep(&mut answer).await;
            self.end(&Place::new(ticket), WriteEnd::Done(stored)).await;
            return Ok(answer);
        }
        record.outcome_unknown = true;
        Err(RefusalKind::OutcomeStillUnknown {
            look_up: call.look_up(),
        })
    }

    /// What a write is answered with that was here before.
    fn met(
        &self,
        meeting: Meeting,
        answer: Option<StoredAnswer>,
        call: &Call<'_>,
        record: &mut CallRecord,
    ) -> Result<Response<GatewayBody>, RefusalKind> {
        const AT_ONCE: Duration = Duration::from_secs(1);
        match (meeting, answer) {
            (Meeting::Done, Some(answer)) => {
                let event = Event::new(
                    EventKind::WriteSuppressed,
                    "a write came again and was answered with its first answer; it was not sent again",
                )
                .during(record.circumstances(call.asker));
                self.keeper.event(call.id, event);
                Ok(kept::replay(answer, record))
            }
            (Meeting::Done, None) => Err(KeepError::StoreUnavailable { retry_after: AT_ONCE }.into()),
            (Meeting::InProgress { retry_after }, _) => {
                Err(RefusalKind::IdempotencyInProgress { retry_after })
            }
            (Meeting::Mismatch, _) => Err(RefusalKind::IdempotencyMismatch),
            // The store lets the one run, and tells of the other by itself.
            (Meeting::Free | Meeting::Unknown, _) => {
                Err(RefusalKind::IdempotencyInProgress { retry_after: AT_ONCE })
            }
        }
    }
}

/// What came of a write that had its place. What is not surely nothing counts as having left.
fn came(result: &Result<Response<GatewayBody>, RefusalKind>, place: &Place) -> Came {
    match result {
        Ok(response) => Came::Answer(response.status().as_u16()),
        Err(_) if !place.has_left() => Came::NotSent,
        // After a 401, or the last sending found nobody: neither was applied.
        Err(RefusalKind::Keep(_) | RefusalKind::ProviderSilent { .. } | RefusalKind::UpstreamUnreachable) => {
            Came::NotSent
        }
        Err(_) => Came::Nothing,
    }
}
