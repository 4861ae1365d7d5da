//! The gateway: what a call passes on its way to the provider. What is sent, and what follows from the answer, is in `sending`.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use evergrant_domain::ConnectionId;
use evergrant_domain::call_budget::{Lane, counted};
use evergrant_domain::repeat::{Effect, effect};
use evergrant_domain::tally::EndedBy;
use evergrant_keeper::{Asker, Keeper, KeptAsker};
use evergrant_metrics::{CallSeen, Series};
use evergrant_oauth::TlsRoots;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response};
use http_body::Body;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::answer_body::GatewayBody;
use crate::breaker::Breakers;
use crate::budget::{Budgets, Patience, Permit, max_wait};
use crate::call::{Call, NEVER, frame};
use crate::call_body::{BoxError, CallBody};
use crate::guard::{Ends, may_be_guarded};
use crate::headers::asked;
use crate::record::{Answer, CallRecord, Refusal, RefusalKind};
use crate::target::Target;
use crate::transport::Transport;
use crate::upstream::Upstream;

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

/// What holds where nothing is said.
impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            body_kept: 2 * 1024 * 1024,
            body_max: None,
            headers_max: 64 * 1024,
            upstream_timeout: Duration::from_secs(60),
        }
    }
}

/// Who calls, and on which terms: what an API key says where the call itself says nothing.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// Who, so that no caller takes the turns of the others.
    pub caller: Option<Arc<str>>,
    /// The lane of its calls. What is fixed by a key, a call cannot change.
    pub lane: Option<Lane>,
    /// How long its calls may wait for budget.
    pub max_wait: Option<Duration>,
    /// What a call holds for as long as it is under way, and nobody here looks into: its place among the calls in flight. It counts
    /// where a call [may outlive its caller](outlives_its_caller); any other ends with its caller, who holds it.
    pub held: Option<Arc<dyn Any + Send + Sync>>,
}

/// Whether a call may go on although its caller hangs up. What it takes must then be held by the call itself: [`Terms::held`].
pub fn outlives_its_caller(method: &Method, headers: &HeaderMap) -> bool {
    may_be_guarded(method, headers)
}

/// Sends calls with the access tokens of a keeper. Cheap to clone; all clones are one.
pub struct Gateway<T = Upstream> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for Gateway<T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

pub(crate) struct Inner<T> {
    pub(crate) keeper: Keeper,
    pub(crate) transport: T,
    limits: Arc<ArcSwap<GatewayLimits>>,
    /// One for all ways that calls leave by: the provider counts them together.
    pub(crate) budgets: Arc<Budgets>,
    pub(crate) breakers: Breakers,
    /// One for all ways, too: they wait for the same store.
    pub(crate) ends: Ends,
}

impl<T> Inner<T> {
    /// The limits as of now. Not to be held while anything is waited for: there is little room for such.
    pub(crate) fn limits(&self) -> Guard<Arc<GatewayLimits>> {
        self.limits.load()
    }

    /// How long the provider may take, as of now.
    pub(crate) fn upstream_timeout(&self) -> Duration {
        self.limits().upstream_timeout
    }
}

impl Gateway {
    /// A gateway that trusts the platform's certificate authorities.
    pub fn new(keeper: Keeper, limits: GatewayLimits) -> Self {
        Self::trusting(TlsRoots::Native, keeper, limits)
    }

    /// A gateway that trusts these certificate authorities.
    pub fn trusting(roots: TlsRoots, keeper: Keeper, limits: GatewayLimits) -> Self {
        let upstream = Upstream::new(roots, limits.upstream_timeout);
        Self::over(upstream, keeper, limits)
    }
}

impl<T: Transport> Gateway<T> {
    /// A gateway whose calls leave by this way.
    pub fn over(transport: T, keeper: Keeper, limits: GatewayLimits) -> Self {
        Self {
            inner: Arc::new(Inner {
                budgets: Arc::new(Budgets::new(&keeper)),
                breakers: Breakers::default(),
                ends: Ends::default(),
                keeper,
                transport,
                limits: Arc::new(ArcSwap::from_pointee(limits)),
            }),
        }
    }

    /// The same gateway, whose calls leave by another way. Whether a host is reached by that way is known by its own calls alone.
    pub fn by<U: Transport>(&self, transport: U) -> Gateway<U> {
        let Inner {
            keeper,
            limits,
            budgets,
            ends,
            ..
        } = &*self.inner;
        Gateway {
            inner: Arc::new(Inner {
                budgets: budgets.clone(),
                breakers: Breakers::default(),
                ends: ends.clone(),
                keeper: keeper.clone(),
                transport,
                limits: limits.clone(),
            }),
        }
    }

    /// Limits the calls that begin from now on like this.
    pub fn limit(&self, limits: GatewayLimits) {
        let patience = limits.upstream_timeout;
        // Shortened before a call may count on it, and made longer only afterwards.
        let before = self.inner.limits().upstream_timeout;
        self.inner.transport.wait_for(patience.min(before));
        self.inner.limits.store(Arc::new(limits));
        self.inner.transport.wait_for(patience);
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
        let (head, body) = request.into_parts();
        self.call_on(&Terms::default(), Asker::UNKNOWN, id, target, &head, body)
            .await
    }

    /// The same on somebody's terms; the history names who asked. What `head` says of a URI does not count.
    pub async fn call_on<B>(
        &self,
        terms: &Terms,
        asker: Asker<'_>,
        id: &ConnectionId,
        target: &str,
        head: &Parts,
        body: B,
    ) -> Result<Answer, Refusal>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let began = Instant::now();
        let metrics = self.inner.keeper.metrics();
        let in_flight = metrics.begin();
        let came = Came {
            began,
            terms,
            asker,
            id,
            target,
            method: &head.method,
            headers: &head.headers,
        };
        // Here for good: it is known to many on the way, and goes from hand to hand afterwards.
        let mut record = Box::new(CallRecord::new(head.method.clone(), target));
        let mut series = None;
        let result = if may_be_guarded(came.method, came.headers) {
            Box::pin(self.finish(&came, body, &mut record, &mut series)).await
        } else {
            self.pass(&came, body, &mut record, &mut series).await
        };
        record.duration = began.elapsed();
        let result = match result {
            Ok(mut response) => {
                response.body_mut().keep(in_flight);
                Ok(Answer { response, record })
            }
            Err(kind) => {
                // After a 401 the class says what kind it was; the code says why there is no token to repeat the call with.
                if record.attempts == 0 || !matches!(kind, RefusalKind::Keep(_)) {
                    record.class = kind.class();
                }
                if record.attempts == 0 && !kind.speaks_of_the_provider() {
                    record.ended_by = EndedBy::Us;
                }
                // One that the provider answered was counted with the answer.
                if let Some(app) = &record.app {
                    self.inner.keeper.count_call(id, app, &record.ended());
                }
                Err(Refusal { kind, record })
            }
        };
        let (Ok(Answer { record, .. }) | Err(Refusal { record, .. })) = &result;
        series
            .unwrap_or_else(|| metrics.app(None).here())
            .call(&seen(record));
        result
    }

    /// All that a call passes. Everything that can be refused is, before anything is spent on it; then the token.
    async fn pass<B>(
        &self,
        came: &Came<'_>,
        body: B,
        record: &mut CallRecord,
        series: &mut Option<Series>,
    ) -> Result<Response<GatewayBody>, RefusalKind>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let Inner { keeper, .. } = &*self.inner;
        let &Came { terms, method, .. } = came;
        if !is_about_an_api(method) {
            return Err(RefusalKind::BadRequest {
                what: "the method is none of GET, HEAD, POST, PUT, PATCH, DELETE and OPTIONS",
            });
        }
        let target = Target::parse(came.target)?;
        let (asked, body) = {
            let limits = self.inner.limits();
            let asked = asked(came.headers, limits.headers_max)?;
            (asked, CallBody::new(body, limits.body_kept, limits.body_max)?)
        };
        if let Some(at) = asked.enqueued_at {
            let now = keeper.clock().now();
            keeper.metrics().enqueued(now.since(at));
            record.enqueued_for = Some(now.seconds_from(at));
        }
        let token = keeper.current_for(came.asker, came.id, asked.min_ttl).await?;
        let ready_at = Instant::now();
        let provider = &token.app.provider;
        let mut headers = asked.headers;
        frame(&mut headers, method, body.length());
        let mut call = Call {
            id: came.id,
            asker: came.asker,
            target: came.target,
            uri: target.at(provider)?,
            effect: effect(provider.dialect, method.as_str(), target.path()),
            counted: counted(provider.dialect, method.as_str(), target.path()),
            method,
            headers,
            body,
            min_ttl: asked.min_ttl,
            patience: Patience {
                lane: terms.lane.or(asked.lane).unwrap_or_default(),
                caller: terms.caller.as_ref(),
                max_wait: max_wait(asked.max_wait, terms.max_wait, token.app.max_wait),
            },
            permit: Permit::NONE,
            token_took: ready_at - came.began,
            ready_at,
            leaves_at: Some(ready_at),
            token,
            sent_at: NEVER,
            repeated_for_401: false,
            repeated_blindly: false,
            not_repeated: false,
            place: None,
        };
        *series = Some(call.token.series.here());
        match asked.guards {
            // What only reads needs no guard, whatever a client puts on each of its calls.
            Some(guards) if call.effect != Effect::Read => {
                call.leaves_at = None;
                Box::pin(self.inner.guarded(call, &guards, record)).await
            }
            Some(_) | None => self.inner.carry_out(&mut call, record).await,
        }
    }

    /// The same for a guarded write, in a task of its own: it is finished and its answer kept, whatever becomes of its caller.
    async fn finish<B>(
        &self,
        came: &Came<'_>,
        body: B,
        record: &mut CallRecord,
        series: &mut Option<Series>,
    ) -> Result<Response<GatewayBody>, RefusalKind>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let (tell, told) = oneshot::channel();
        let (gateway, kept) = (self.clone(), came.kept());
        let (mut own, mut counted) = (record.clone(), None);
        let work = async move {
            let result = gateway.pass(&kept.came(), body, &mut own, &mut counted).await;
            // Nobody may be waiting any more.
            let _ = tell.send((result, own, counted));
        };
        self.inner.keeper.spawn(work.in_current_span());
        match told.await {
            Ok((result, own, counted)) => {
                (*record, *series) = (own, counted);
                result
            }
            // The program is being ended; how far it came, nobody knows.
            Err(_) => Err(RefusalKind::OutcomeUnknown { look_up: None }),
        }
    }
}

/// A call as it came, but for its body.
struct Came<'a> {
    began: Instant,
    terms: &'a Terms,
    asker: Asker<'a>,
    id: &'a ConnectionId,
    target: &'a str,
    method: &'a Method,
    headers: &'a HeaderMap,
}

/// The same for a call that may outlive its caller.
struct Kept {
    began: Instant,
    terms: Terms,
    asker: KeptAsker,
    id: ConnectionId,
    target: String,
    method: Method,
    headers: HeaderMap,
}

impl Came<'_> {
    fn kept(&self) -> Kept {
        Kept {
            began: self.began,
            terms: self.terms.clone(),
            asker: self.asker.kept(),
            id: self.id.clone(),
            target: self.target.to_owned(),
            method: self.method.clone(),
            headers: self.headers.clone(),
        }
    }
}

impl Kept {
    fn came(&self) -> Came<'_> {
        Came {
            began: self.began,
            terms: &self.terms,
            asker: self.asker.asker(),
            id: &self.id,
            target: &self.target,
            method: &self.method,
            headers: &self.headers,
        }
    }
}

/// What of a call is counted.
fn seen(record: &CallRecord) -> CallSeen {
    CallSeen {
        class: record.class,
        ended_by: record.ended_by,
        status_code: record.status_code,
        took: record.duration,
        upstream_took: record.upstream,
        token_ttl: record
            .seconds_remaining
            .map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0))),
    }
}

/// What APIs are called with. CONNECT and TRACE are about the way to a server, TRACK shows its caller's credentials, and of a
/// method that nobody knows nobody could say whether it writes.
fn is_about_an_api(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET
            | Method::HEAD
            | Method::POST
            | Method::PUT
            | Method::PATCH
            | Method::DELETE
            | Method::OPTIONS
    )
}
