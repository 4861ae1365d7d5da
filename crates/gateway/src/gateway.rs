//! One call: the token, the sending, the judgement, the one repeat.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use evergrant_domain::api_answer::{Class, Judgement};
use evergrant_domain::connection::LastSeen;
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::repeat::{Effect, effect};
use evergrant_domain::{ConnectionId, Kind, Timestamp};
use evergrant_keeper::{AfterRejection, Current, Keeper};
use evergrant_oauth::TlsRoots;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use tokio::time::{Instant, sleep};

use crate::answer_body::GatewayBody;
use crate::call_body::{BoxError, CallBody, Fault, Outgoing};
use crate::headers::{Said, asked, clean_answer};
use crate::record::{Answer, CallRecord, Refusal, RefusalKind};
use crate::target::Target;
use crate::upstream::{NoAnswer, Upstream};
use crate::verdict::verdict;

/// How much a call may cost.
#[derive(Debug, Clone)]
pub struct GatewayLimits {
    /// Up to how many bytes of a call's body are kept for a repeat. Larger ones stream on and cannot be repeated.
    pub body_kept: usize,
    /// The largest body that is sent at all, in bytes.
    pub body_max: Option<u64>,
    /// The largest headers that are accepted, names and values together, in bytes.
    pub headers_max: usize,
    /// How long the provider may take until the first byte of its answer. A stream that has begun may last.
    pub upstream_timeout: Duration,
}

/// Sends calls with the access tokens of a keeper. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

struct Inner {
    keeper: Keeper,
    upstream: Upstream,
    limits: GatewayLimits,
}

/// What is sent, however often.
struct Call<'a> {
    id: &'a ConnectionId,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: CallBody,
    effect: Effect,
    min_ttl: Option<Duration>,
    token: Arc<Current>,
    token_took: Duration,
    sent_at: Timestamp,
    /// A 401 was answered with a repeat: there is no second one.
    repeated_for_401: bool,
    /// A cut or a 5xx was: neither is repeated again.
    repeated_blindly: bool,
    /// A newer token is at hand, but not the body.
    not_repeated: bool,
}

/// What follows from one sending.
#[expect(clippy::large_enum_variant, reason = "it lives from one line to the next")]
enum Next {
    /// Send it again: the token and everything else is ready.
    Again,
    /// Pass this on.
    Pass(Response<GatewayBody>),
}

impl Gateway {
    /// A gateway that trusts the platform's certificate authorities.
    pub fn new(keeper: Keeper, limits: GatewayLimits) -> Self {
        Self::trusting(TlsRoots::Native, keeper, limits)
    }

    /// A gateway that trusts these certificate authorities.
    pub fn trusting(roots: TlsRoots, keeper: Keeper, limits: GatewayLimits) -> Self {
        Self {
            inner: Arc::new(Inner {
                keeper,
                upstream: Upstream::new(roots, limits.upstream_timeout),
                limits,
            }),
        }
    }

    /// Sends a call with the connection's access token and returns the provider's answer, whatever its status.
    ///
    /// `target` is path and query as the caller wrote them, beginning with `/`, still percent-encoded; of `request` only method,
    /// headers and body count. A 401 is judged by the keeper and the call repeated at most once because of it, if a newer token
    /// came of that and the body is still at hand. What only reads is repeated once more after a cut or a 5xx. A write
    /// is never sent again unless it is known not to have been carried out.
    pub async fn call<B>(
        &self,
        id: &ConnectionId,
        target: &str,
        request: Request<B>,
    ) -> Result<Answer, Refusal>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let began = Instant::now();
        let mut record = CallRecord::new(request.method().clone(), target);
        let result = match self.prepare(id, target, request).await {
            Ok(call) => self.inner.carry_out(call, &mut record).await,
            Err(kind) => Err(kind),
        };
        record.duration = began.elapsed();
        match result {
            Ok(response) => Ok(Answer { response, record }),
            Err(kind) => {
                // After a 401 the class says what kind it was; the code says why there is no token to repeat the call with.
                if record.attempts == 0 || !matches!(kind, RefusalKind::Keep(_)) {
                    record.class = kind.class();
                }
                Err(Refusal { kind, record })
            }
        }
    }

    /// Everything that can be refused is, before anything is spent on it; then the token.
    async fn prepare<'a, B>(
        &self,
        id: &'a ConnectionId,
        target: &str,
        request: Request<B>,
    ) -> Result<Call<'a>, RefusalKind>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let Inner { keeper, limits, .. } = &*self.inner;
        let (parts, body) = request.into_parts();
        if parts.method == Method::CONNECT || parts.method == Method::TRACE {
            return Err(RefusalKind::BadRequest {
                what: "CONNECT and TRACE are about the way to a server, not about its API",
            });
        }
        let target = Target::parse(target)?;
        let asked = asked(&parts.headers, limits.headers_max)?;
        let body = CallBody::new(body, limits.body_kept, limits.body_max)?;
        let began = Instant::now();
        let token = keeper.current(id, asked.min_ttl).await?;
        let token_took = began.elapsed();
        let provider = &token.app.provider;
        let mut headers = asked.headers;
        frame(&mut headers, &parts.method, body.length());
        Ok(Call {
            id,
            uri: target.at(provider)?,
            effect: effect(provider.dialect, parts.method.as_str(), target.path()),
            method: parts.method,
            headers,
            body,
            min_ttl: asked.min_ttl,
            token,
            token_took,
            sent_at: keeper.clock().now(),
            repeated_for_401: false,
            repeated_blindly: false,
            not_repeated: false,
        })
    }
}

impl Inner {
    async fn carry_out(
        &self,
        mut call: Call<'_>,
        record: &mut CallRecord,
    ) -> Result<Response<GatewayBody>, RefusalKind> {
        record.app = Some(call.token.app.name.clone());
        let began = Instant::now();
        // One sending, one repeat because of a 401, one blind repeat of what reads: the flags in `call` end the loop.
        let mut response = loop {
            let response = self.send(&mut call, record).await;
            let next = match response {
                Ok(response) if response.status().as_u16() < 400 => {
                    Next::Pass(response.map(GatewayBody::new))
                }
                Ok(response) => {
                    self.failed(&mut call, record, response.map(GatewayBody::new))
                        .await?
                }
                Err(no_answer) => self.unanswered(&mut call, record, no_answer).await?,
            };
            match next {
                Next::Again => {}
                Next::Pass(response) => break response,
            }
        };
        // Said by the one connection it came over; the caller's is another one.
        *response.version_mut() = Version::HTTP_11;
        record.status_code = Some(response.status().as_u16());
        self.note(&call, response.status());
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
            upstream_took: began.elapsed(),
        }
        .write(headers);
        Ok(response)
    }

    async fn send(
        &self,
        call: &mut Call<'_>,
        record: &mut CallRecord,
    ) -> Result<Response<hyper::body::Incoming>, NoAnswer> {
        call.sent_at = self.keeper.clock().now();
        record.attempts += 1;
        record.version = Some(call.token.version);
        // Nobody knows when a static token ends.
        let ends = call.token.kind == Kind::OAuth;
        record.expires_at = ends.then_some(call.token.expires_at);
        record.seconds_remaining = ends.then(|| call.token.seconds_remaining(call.sent_at));
        self.upstream.send(call.request(), &call.body).await
    }

    /// A 4xx or 5xx came.
    async fn failed(
        &self,
        call: &mut Call<'_>,
        record: &mut CallRecord,
        mut response: Response<GatewayBody>,
    ) -> Result<Next, RefusalKind> {
        let judged = verdict(&mut response).await;
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
                let missing = match judged.missing_scopes.as_slice() {
                    [] => "the provider does not say which right is missing".to_owned(),
                    scopes => format!("missing scopes: {}", scopes.join(" ")),
                };
                let detail = format!("a call came back {}: {missing}", response.status().as_u16());
                self.event(call, EventKind::PermissionDenied, detail, &judged);
            }
            429 => {
                let policy = judged.policy.as_deref().unwrap_or("not named");
                self.event(
                    call,
                    EventKind::RateLimited,
                    format!("a call came back 429, limit {policy}"),
                    &judged,
                );
            }
            500.. if call.may_be_repeated_blindly() => {
                /// Enough for whoever restarted behind a balancer.
                const PAUSE: Duration = Duration::from_millis(250);
                const PAUSE_MAX: Duration = Duration::from_secs(2);
                let pause = judged.retry_after.unwrap_or(PAUSE);
                if pause <= PAUSE_MAX {
                    drop(response);
                    sleep(pause).await;
                    return self.repeat_blindly(call).await;
                }
            }
            500.. if call.effect != Effect::Read => {
                record.outcome_unknown = true;
                let detail = format!(
                    "a write came back {}; it may have been carried out",
                    response.status().as_u16()
                );
                self.event(call, EventKind::OutcomeUnknown, detail, &judged);
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
            .rejected(call.id, call.token.version, judged.class)
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
                self.event(call, EventKind::CallUnauthorized, detail, judged);
                self.note(call, StatusCode::UNAUTHORIZED);
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
        self.event(call, EventKind::CallUnauthorized, detail, judged);
        if newer.is_some() {
            let now = self.keeper.clock().now();
            self.keeper.note(
                call.id,
                LastSeen {
                    unauthorized_at: Some(now),
                    ..LastSeen::default()
                },
            );
        }
        Ok(newer)
    }

    /// No answer came.
    async fn unanswered(
        &self,
        call: &mut Call<'_>,
        record: &mut CallRecord,
        no_answer: NoAnswer,
    ) -> Result<Next, RefusalKind> {
        const BROKEN: RefusalKind = RefusalKind::BadRequest {
            what: "the call's body broke off",
        };
        self.keeper.note(
            call.id,
            LastSeen {
                call_at: Some(call.sent_at),
                ..LastSeen::default()
            },
        );
        match call.body.fault() {
            // A body that is broken off on the way is not carried out.
            Some(Fault::TooLarge) => {
                let limit = self.limits.body_max.unwrap_or_default();
                return Err(RefusalKind::BodyTooLarge { limit });
            }
            Some(Fault::Broken) => return Err(BROKEN),
            None => {}
        }
        match no_answer {
            NoAnswer::TimedOut if call.body.waits_for_the_caller() => Err(BROKEN),
            NoAnswer::Cut | NoAnswer::TimedOut if !call.effect.may_repeat_blindly() => {
                record.outcome_unknown = true;
                let event = Event::new(
                    EventKind::OutcomeUnknown,
                    "a write left and no answer came; it may have been carried out",
                );
                self.keeper.event(call.id, event);
                Err(RefusalKind::OutcomeUnknown)
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
        call.token = self.keeper.current(call.id, call.min_ttl).await?;
        Ok(Next::Again)
    }

    fn event(&self, call: &Call<'_>, kind: EventKind, detail: String, judged: &Judgement) {
        let event = Event::new(kind, detail).correlated(judged.correlation_id.clone());
        self.keeper.event(call.id, event);
    }

    fn note(&self, call: &Call<'_>, status: StatusCode) {
        let at = Some(self.keeper.clock().now());
        let on = |fits: bool| at.filter(|_| fits);
        self.keeper.note(
            call.id,
            LastSeen {
                call_at: Some(call.sent_at),
                success_at: on(status.is_success()),
                refresh_at: None,
                unauthorized_at: on(status == StatusCode::UNAUTHORIZED),
                forbidden_at: on(status == StatusCode::FORBIDDEN),
                rate_limited_at: on(status == StatusCode::TOO_MANY_REQUESTS),
            },
        );
    }
}

impl Call<'_> {
    /// The only place where an access token is put on a request.
    fn request(&self) -> Request<Outgoing> {
        let mut request = Request::new(self.body.send());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
            .headers_mut()
            .insert(AUTHORIZATION, self.token.bearer.clone());
        request
    }

    fn may_be_repeated_blindly(&self) -> bool {
        self.effect == Effect::Read && !self.repeated_blindly && self.body.can_be_sent_again()
    }
}

/// Says how long the body is where hyper would not say it by itself.
fn frame(headers: &mut HeaderMap, method: &Method, length: Option<u64>) {
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
