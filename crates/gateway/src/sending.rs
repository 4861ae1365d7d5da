//! The sending of one call: the judgement of what comes back, the one repeat.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::Kind;
use evergrant_domain::api_answer::{Class, Judgement};
use evergrant_domain::app::Dialect;
use evergrant_domain::call_budget::rest;
use evergrant_domain::connection::LastSeen;
use evergrant_domain::event::{Circumstances, Event, EventKind};
use evergrant_domain::repeat::Effect;
use evergrant_domain::upstream_breaker::Reached;
use evergrant_keeper::{AfterRejection, Current};
use http::{Method, Response, StatusCode, Version};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use crate::answer_body::{GatewayBody, Rest};
use crate::breaker::Passing;
use crate::budget::{Exhausted, Patience, window};
use crate::call::Call;
use crate::call_body::{BROKEN_OFF, Fault};
use crate::gateway::Inner;
use crate::headers::{Said, clean_answer};
use crate::record::{CallRecord, RefusalKind};
use crate::transport::{NoAnswer, Transport};
use crate::verdict::verdict;

/// What follows from one sending.
#[expect(clippy::large_enum_variant, reason = "it lives from one line to the next")]
enum Next {
    /// Send it again: the token and everything else is ready.
    Again,
    /// Pass this on.
    Pass(Response<GatewayBody>),
}

impl<T: Transport> Inner<T> {
    pub(crate) async fn carry_out(
        &self,
        call: &mut Call<'_>,
        record: &mut CallRecord,
    ) -> Result<Response<GatewayBody>, RefusalKind> {
        record.app = Some(call.token.app.name.clone());
        self.await_turn(call, record).await?;
        // One sending, one repeat because of a 401, one blind repeat of what reads: the flags in `call` end the loop.
        let mut response = loop {
            let passing = self.breakers.pass(&call.uri).map_err(silent)?;
            // What few calls need has a place of its own when it is needed; every call would carry its room.
            if call.place.is_some() {
                Box::pin(self.ready(call)).await?;
            }
            let response = self.send(call, record).await;
            self.learn(passing, call, &response);
            let next = match response {
                Ok(response) if response.status().as_u16() < 400 => {
                    Next::Pass(response.map(GatewayBody::new))
                }
                Ok(response) => Box::pin(self.failed(call, record, response.map(GatewayBody::new))).await?,
                Err(no_answer) => Box::pin(self.unanswered(call, record, no_answer)).await?,
            };
            match next {
                Next::Again => {}
                Next::Pass(response) => break response,
            }
        };
        // Said by the one connection it came over; the caller's is another one.
        *response.version_mut() = Version::HTTP_11;
        record.status_code = Some(response.status().as_u16());
        self.note(call, record, response.status());
        if *call.method == Method::DELETE && response.status().is_success() {
            Box::pin(self.look_for_uninstall(call)).await;
        }
        let headers = response.headers_mut();
        clean_answer(headers);
        Said {
            class: record.class,
            attempts: record.attempts,
            version: call.token.version,
            seconds_remaining: record.seconds_remaining,
            outcome_unknown: record.outcome_unknown,
            not_repeated: call.not_repeated,
            token_took: call.token_took,
            budget_wait: record.budget_wait,
            upstream_took: record.upstream.unwrap_or_default(),
        }
        .write(headers);
        Ok(response)
    }

    /// What must be so right before a sending. Nothing may wait between this and the first byte.
    async fn ready(&self, call: &mut Call<'_>) -> Result<(), RefusalKind> {
        if let Some(place) = call.place
            && !place.has_left()
        {
            // Whether there is a token at all shows before it is on record that the call leaves.
            self.keeper.current_for(call.asker, call.id, call.min_ttl).await?;
            self.leaves(place).await?;
            // That may have taken a while: the one that is sent is chosen after it. Without one nothing leaves, and that is its end.
            call.token = self.keeper.current_for(call.asker, call.id, call.min_ttl).await?;
        }
        Ok(())
    }

    /// Waits until the call may leave: its first sending.
    async fn await_turn(&self, call: &mut Call<'_>, record: &mut CallRecord) -> Result<(), RefusalKind> {
        self.breakers.look(&call.uri).map_err(silent)?;
        let admitted = self
            .budgets
            .admit(&call.token, call.counted, &call.patience, call.ready_at)
            .await;
        call.permit = match admitted {
            Ok(permit) if !permit.counts() => return Ok(()),
            Ok(permit) => permit,
            Err(Exhausted { retry_after, policy }) => {
                waited(call, record, call.ready_at);
                let speaks_hubspot = call.token.app.provider.dialect == Dialect::HubSpot;
                return Err(RefusalKind::BudgetExhausted {
                    retry_after,
                    policy: speaks_hubspot.then_some(policy),
                });
            }
        };
        waited(call, record, call.ready_at);
        if call.permit.has_waited() {
            call.leaves_at = None;
            // Time has passed since it was chosen, and the connection may be another by now.
            call.token = self.keeper.current_for(call.asker, call.id, call.min_ttl).await?;
        }
        Ok(())
    }

    /// Waits until a read that came back 429 may leave once more. `false`: not within its patience.
    async fn await_next_turn(&self, call: &mut Call<'_>, record: &mut CallRecord, pause: Duration) -> bool {
        let left = call
            .patience
            .max_wait
            .saturating_sub(record.budget_wait.unwrap_or_default());
        let Some(after) = left.checked_sub(pause) else {
            return false;
        };
        let began = Instant::now();
        sleep(pause).await;
        let patience = Patience {
            max_wait: after,
            ..call.patience
        };
        let admitted = self
            .budgets
            .admit(&call.token, call.counted, &patience, Instant::now())
            .await;
        waited(call, record, began);
        match admitted {
            Ok(permit) => {
                call.permit = permit;
                true
            }
            Err(Exhausted { .. }) => false,
        }
    }

    /// What an answer, or that there is none, says of calls to come.
    fn learn(&self, passing: Passing<'_>, call: &mut Call<'_>, answer: &Result<Response<Rest>, NoAnswer>) {
        match answer {
            Ok(response) => {
                passing.tell(&call.uri, Reached::by(response.status().as_u16()));
                let (status, headers) = (response.status(), response.headers());
                self.budgets
                    .heard(&mut call.permit, &call.token, call.counted, status, headers);
            }
            // The caller's doing.
            Err(_) if call.body.fault().is_some() => {}
            Err(NoAnswer::TimedOut) if call.body.waits_for_the_caller() => {}
            Err(NoAnswer::NotSent | NoAnswer::Cut | NoAnswer::TimedOut) => {
                passing.tell(&call.uri, Reached::No);
            }
        }
    }

    async fn send(&self, call: &mut Call<'_>, record: &mut CallRecord) -> Result<Response<Rest>, NoAnswer> {
        call.sent_at = self.keeper.clock().now();
        let began = call.leaves_at.take().unwrap_or_else(Instant::now);
        call.permit.leaves(began);
        record.attempts += 1;
        record.version = Some(call.token.version);
        // Nobody knows when a static token ends.
        let ends = call.token.kind == Kind::OAuth;
        record.expires_at = ends.then_some(call.token.expires_at);
        record.seconds_remaining = ends.then(|| call.token.seconds_remaining(call.sent_at));
        let span = span(call, record);
        let answer = if span.is_disabled() {
            self.answer_in_time(call, began).await
        } else {
            Box::pin(self.traced(span, call, began)).await
        };
        record.upstream = Some(record.upstream.unwrap_or_default() + began.elapsed());
        answer
    }

    /// The same where somebody reads traces. In a place of its own: few calls need the room.
    async fn traced(&self, span: Span, call: &Call<'_>, began: Instant) -> Result<Response<Rest>, NoAnswer> {
        let answer = self.answer_in_time(call, began).instrument(span.clone()).await;
        let error = match &answer {
            Ok(response) => {
                let status = response.status();
                span.record("http.response.status_code", status.as_u16());
                (status.is_client_error() || status.is_server_error()).then(|| status.as_str().to_owned())
            }
            Err(NoAnswer::NotSent) => Some("not_sent".to_owned()),
            Err(NoAnswer::Cut) => Some("cut".to_owned()),
            Err(NoAnswer::TimedOut) => Some("timeout".to_owned()),
        };
        if let Some(error) = error {
            span.record("otel.status_code", "ERROR");
            span.record("error.type", error);
        }
        answer
    }

    /// While the caller's body moves on, the provider is not late.
    async fn answer_in_time(&self, call: &Call<'_>, began: Instant) -> Result<Response<Rest>, NoAnswer> {
        let patience = self.upstream_timeout();
        let mut answer = pin!(self.transport.send(call.leaving(began)));
        let mut until = began + patience;
        loop {
            match timeout_at(until, &mut answer).await {
                // Nobody asked for another protocol, so 101 is no answer.
                Ok(Ok(response)) if response.status().is_informational() => return Err(NoAnswer::Cut),
                Ok(answer) => return answer,
                Err(_) => match call.body.moved_at().map(|moved| moved + patience) {
                    Some(later) if later > until => until = later,
                    _ => return Err(NoAnswer::TimedOut),
                },
            }
        }
    }

    /// A 4xx or 5xx came.
    async fn failed(
        &self,
        call: &mut Call<'_>,
        record: &mut CallRecord,
        mut response: Response<GatewayBody>,
    ) -> Result<Next, RefusalKind> {
        let judged = verdict(&mut response, self.keeper.clock().now()).await;
        record.class = judged.class;
        record.provider_correlation_id.clone_from(&judged.correlation_id);
        match response.status().as_u16() {
            401 if judged.class != Class::PermissionDenied => {
                return Ok(match self.unauthorized(call, record, &judged).await? {
                    Some(newer) => {
                        call.token = newer;
                        call.repeated_for_401 = true;
                        Next::Again
                    }
                    None => Next::Pass(response),
                });
            }
            401 | 403 => {
                let missing = call.token.app.about_missing_scopes(&judged.missing_scopes);
                let detail = format!("a call came back {}: {missing}", response.status().as_u16());
                self.event(
                    call,
                    record,
                    EventKind::PermissionDenied,
                    detail,
                    Some((response.status().as_u16(), &judged)),
                );
            }
            429 => {
                let policy = judged.policy.as_deref().unwrap_or("not named");
                self.event(
                    call,
                    record,
                    EventKind::RateLimited,
                    format!("a call came back 429, limit {policy}"),
                    Some((429, &judged)),
                );
                let policy = judged.policy.as_deref();
                if let Some(pause) = rest(policy, judged.retry_after, window(response.headers())) {
                    self.budgets.rest(&call.token, call.counted, pause, policy);
                    if call.may_be_repeated_blindly() && self.await_next_turn(call, record, pause).await {
                        drop(response);
                        return self.repeat_blindly(call).await;
                    }
                }
            }
            status @ (423 | 477 | 500..) if call.may_be_repeated_blindly() => {
                const PAUSE_MAX: Duration = Duration::from_secs(2);
                let pause = judged.retry_after.or(match status {
                    // HubSpot's locks last that long.
                    423 => Some(Duration::from_secs(2)),
                    // An account that moves house says how long that takes.
                    477 => None,
                    // Enough for whoever restarted behind a balancer.
                    _ => Some(Duration::from_millis(250)),
                });
                if let Some(pause) = pause.filter(|pause| *pause <= PAUSE_MAX) {
                    drop(response);
                    sleep(pause).await;
                    return self.repeat_blindly(call).await;
                }
            }
            408 | 500.. if call.effect != Effect::Read => {
                record.outcome_unknown = true;
                let detail = format!(
                    "a write came back {}; it may have been carried out",
                    response.status().as_u16()
                );
                self.event(
                    call,
                    record,
                    EventKind::OutcomeUnknown,
                    detail,
                    Some((response.status().as_u16(), &judged)),
                );
            }
            _ => {}
        }
        Ok(Next::Pass(response))
    }

    /// A 401 came for this token. Returns the token to repeat the call with, where that is right.
    ///
    /// # Errors
    ///
    /// The keeper says why no newer token can be had: the caller must reconnect, mend its app, or come again. A 401 was not
    /// applied (RFC 9110 §15.5.2), so that is the truth about the whole call, and of more use than the 401 itself.
    async fn unauthorized(
        &self,
        call: &mut Call<'_>,
        record: &mut CallRecord,
        judged: &Judgement,
    ) -> Result<Option<Arc<Current>>, RefusalKind> {
        let (class, newer, why) = match self
            .keeper
            .rejected_for(call.asker, call.id, call.token.version, judged.class)
            .await
        {
            Ok(AfterRejection::Newer { token, class }) => {
                record.refreshed |= class != Class::StaleToken;
                (class, Some(token), "a newer token is at hand")
            }
            Ok(AfterRejection::Stays { class, why }) => (class, None, why),
            Err(error) if !call.repeated_for_401 => {
                let detail = format!(
                    "a call came back 401, {}: no newer token could be had",
                    judged.class.as_str()
                );
                self.event(
                    call,
                    record,
                    EventKind::CallUnauthorized,
                    detail,
                    Some((401, judged)),
                );
                self.note_unauthorized(call);
                return Err(RefusalKind::Keep(error));
            }
            // With a token that was new a moment ago: the provider's answer says more than that there is no other.
            Err(_) => (judged.class, None, "no newer token could be had"),
        };
        record.class =
            if call.repeated_for_401 && class != Class::StaticRejected && class != Class::MalformedToken {
                // With a token that was new a moment ago.
                Class::RejectedAfterRefresh
            } else {
                class
            };
        call.not_repeated = newer.is_some() && !call.repeated_for_401 && !call.body.can_be_sent_again();
        let newer = newer.filter(|_| !call.repeated_for_401 && !call.not_repeated);
        let what = if newer.is_some() {
            "the call is repeated with a newer token"
        } else if call.not_repeated {
            "a newer token is at hand, but the body was too large to be kept: the 401 was passed on"
        } else {
            why
        };
        let detail = format!("a call came back 401, {}: {what}", record.class.as_str());
        self.event(
            call,
            record,
            EventKind::CallUnauthorized,
            detail,
            Some((401, judged)),
        );
        if newer.is_some() {
            self.note_unauthorized(call);
        }
        Ok(newer)
    }

    /// A call that takes the app out of its account ends the grant that it was sent with: nothing is redeemed for it any more.
    /// Said before the call is answered, so that its caller finds it so; a store that is away is told a little later.
    async fn look_for_uninstall(&self, call: &Call<'_>) {
        let path = call.target.split(['?', '#']).next().unwrap_or_default();
        if !call.token.app.provider.is_uninstall(call.method.as_str(), path) {
            return;
        }
        let why = match call.patience.caller {
            Some(caller) => format!("a call through the gateway did it, with the API key {caller}"),
            None => "a call through the gateway did it".to_owned(),
        };
        let (id, sent_at) = (call.id.clone(), call.sent_at);
        if self.keeper.uninstalled(&id, sent_at, &why).await.is_ok() {
            return;
        }
        let keeper = self.keeper.clone();
        self.keeper.spawn(async move {
            /// Until then a redemption will have been refused, or nothing uses the connection.
            const TRIES: u32 = 6;
            for tries in 0..TRIES {
                sleep(Duration::from_secs(1 << tries)).await;
                if keeper.uninstalled(&id, sent_at, &why).await.is_ok() {
                    return;
                }
            }
            tracing::warn!(
                event = "store_error",
                connection_id = %id,
                "that the app was uninstalled could not be noted; the next redemption will find it out"
            );
        });
    }

    /// No answer came.
    async fn unanswered(
        &self,
        call: &mut Call<'_>,
        record: &mut CallRecord,
        no_answer: NoAnswer,
    ) -> Result<Next, RefusalKind> {
        self.keeper.note(
            &call.token,
            &LastSeen {
                call_at: Some(call.sent_at),
                ..LastSeen::default()
            },
        );
        match call.body.fault() {
            // A body that is broken off on the way is not carried out.
            Some(Fault::TooLarge) => {
                let limit = self.limits().body_max.unwrap_or_default();
                return Err(RefusalKind::BodyTooLarge { limit });
            }
            Some(Fault::Broken) => return Err(BROKEN_OFF),
            None => {}
        }
        match no_answer {
            NoAnswer::TimedOut if call.body.waits_for_the_caller() => Err(BROKEN_OFF),
            // Who asks for a write to be carried out once does not want it twice, be the end state the same.
            NoAnswer::Cut | NoAnswer::TimedOut
                if !call.effect.may_repeat_blindly() || call.place.is_some() =>
            {
                record.outcome_unknown = true;
                let detail = "a write left and no answer came; it may have been carried out";
                self.event(call, record, EventKind::OutcomeUnknown, detail.to_owned(), None);
                Err(RefusalKind::OutcomeUnknown {
                    look_up: call.look_up(),
                })
            }
            NoAnswer::Cut if call.may_be_repeated_blindly() => {
                record.class = Class::Unavailable;
                self.repeat_blindly(call).await
            }
            NoAnswer::NotSent => Err(RefusalKind::UpstreamUnreachable),
            NoAnswer::Cut | NoAnswer::TimedOut => Err(RefusalKind::UpstreamTimeout),
        }
    }

    /// The token is chosen anew: time has passed since.
    async fn repeat_blindly(&self, call: &mut Call<'_>) -> Result<Next, RefusalKind> {
        call.repeated_blindly = true;
        call.token = self.keeper.current_for(call.asker, call.id, call.min_ttl).await?;
        Ok(Next::Again)
    }

    fn event(
        &self,
        call: &Call<'_>,
        record: &CallRecord,
        kind: EventKind,
        detail: String,
        answer: Option<(u16, &Judgement)>,
    ) {
        self.keeper.event_with(call.id, kind, || {
            Event::new(kind, detail).during(Circumstances {
                provider_correlation_id: answer.and_then(|(_, judged)| judged.correlation_id.clone()),
                status_code: answer.map(|(status, _)| status),
                ..record.circumstances(call.asker)
            })
        });
    }

    /// Of a call that the provider's answer ends.
    fn note(&self, call: &Call<'_>, record: &CallRecord, status: StatusCode) {
        let at = Some(self.keeper.clock().now());
        let on = |fits: bool| at.filter(|_| fits);
        self.keeper.note_call(
            &call.token,
            &LastSeen {
                call_at: Some(call.sent_at),
                success_at: on(status.is_success()),
                refresh_at: None,
                unauthorized_at: on(status == StatusCode::UNAUTHORIZED),
                forbidden_at: on(status == StatusCode::FORBIDDEN),
                rate_limited_at: on(status == StatusCode::TOO_MANY_REQUESTS),
            },
            &record.ended(),
        );
    }

    /// Of a call that came back 401 and does not end with that.
    fn note_unauthorized(&self, call: &Call<'_>) {
        self.keeper.note(
            &call.token,
            &LastSeen {
                call_at: Some(call.sent_at),
                unauthorized_at: Some(self.keeper.clock().now()),
                ..LastSeen::default()
            },
        );
    }
}

/// One sending, as OpenTelemetry names what an HTTP client does; disabled, and its fields not made, where nobody reads traces.
/// Without query, and ids taken out of the path.
fn span(call: &Call<'_>, record: &CallRecord) -> Span {
    tracing::debug_span!(
        "send",
        otel.name = %format_args!("{} {}", call.method, record.endpoint()),
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = call.method.as_str(),
        http.request.resend_count = (record.attempts > 1).then(|| record.attempts - 1),
        http.response.status_code = Empty,
        server.address = call.uri.host(),
        server.port = call.uri.port_u16(),
        url.scheme = call.uri.scheme_str(),
        url.template = record.endpoint(),
        error.type = Empty,
        evergrant.token_version = call.token.version.number(),
        evergrant.seconds_remaining = record.seconds_remaining,
    )
}

fn silent(retry_after: Duration) -> RefusalKind {
    RefusalKind::ProviderSilent { retry_after }
}

fn waited(call: &Call<'_>, record: &mut CallRecord, since: Instant) {
    let waited = since.elapsed();
    record.budget_wait = Some(record.budget_wait.unwrap_or_default() + waited);
    let series = call.token.series.here();
    series.budget_waited(call.patience.lane, waited);
}
