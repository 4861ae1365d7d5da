//! The one entry of every request: named, admitted, answered, logged.
//!
//! The two routes that carry the load, the gateway's and a connection's token, are answered here; everything else goes on to the
//! router. Handlers return a [`Problem`] for whatever goes wrong, and its answer is written here, in one place.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use evergrant::Evergrant;
use evergrant_config::{Limits, LogCalls, Network};
use evergrant_domain::webhook::Endpoint;
use evergrant_domain::{Connection, ConnectionId, Timestamp};
use evergrant_keeper::Keeper;
use evergrant_webhooks::Webhooks;
use futures_util::FutureExt as _;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, header};
use http_body_util::Full;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::Instrument as _;

use crate::access::{Caller, Keys};
use crate::answer::{Answer, AnswerBody};
use crate::connect::link::{self, ReconnectLink};
use crate::dashboard::{Attempts, Sessions};
use crate::health::Health;
use crate::in_flight::InFlight;
use crate::input::decoded;
use crate::log;
use crate::metrics::OfProcess;
use crate::notices::Shown;
use crate::problem::{Code, Door, Problem};
use crate::router;
use crate::spans::{self, Traces};
use crate::trace::{REQUEST_ID, Trace};
use crate::views::Record;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the service is told beyond its engine.
#[derive(Debug, Clone)]
pub struct ServiceSettings {
    /// Which calls get a line in the log.
    pub calls: LogCalls,
    /// Whose `X-Forwarded-For` is believed, in the log.
    pub trusted_proxies: Vec<Network>,
    /// What callers may take of it.
    pub limits: Limits,
}

/// Who sent a request, and to which door.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// The other end of the connection.
    pub address: IpAddr,
    /// Whether only this machine can reach the listener.
    pub reach: Reach,
}

/// Who can reach a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// This machine only. A browser on it may be tricked into asking, so the names it may ask by are checked.
    Loopback,
    /// Others too.
    Network,
}

/// Lies beside a route's answer to a request that showed a valid API key in another way than by its header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyWasValid;

/// Lies beside a request to the dashboard: whose it is, and how it is named in the log.
#[derive(Debug, Clone)]
pub(crate) struct Visit {
    pub(crate) peer: Option<Peer>,
    pub(crate) request_id: String,
}

/// The service: cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
    router: Router,
}

pub(crate) struct Inner {
    pub(crate) engine: Evergrant,
    pub(crate) keys: Keys,
    pub(crate) health: Health,
    pub(crate) flow: crate::connect::Flow,
    pub(crate) process: OfProcess,
    pub(crate) in_flight: InFlight,
    /// The places of those who follow the events.
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) sessions: Sessions,
    pub(crate) login_attempts: Attempts,
    pub(crate) webhooks: Webhooks,
    settings: ArcSwap<ServiceSettings>,
    traces: OnceLock<Arc<dyn Traces>>,
    draining: AtomicBool,
    /// What goes on although its caller hung up.
    tasks: TaskTracker,
}

/// How many may follow the events at a time: each looks into the store every second.
const STREAMS_MAX: usize = 64;

/// What handlers work with.
pub(crate) type Shared = Arc<Inner>;

impl Service {
    /// Puts a service around an engine.
    pub fn new(engine: Evergrant, settings: ServiceSettings) -> Self {
        let flow = crate::connect::Flow::new(engine.public_url());
        let sessions = Sessions::new(engine.public_url());
        let process = OfProcess::since(engine.keeper().clock().now());
        let inner = Arc::new_cyclic(|inner| Inner {
            webhooks: Webhooks::new(engine.keeper().clone(), Arc::new(Shown(inner.clone()))),
            engine,
            keys: Keys::default(),
            health: Health::opened(),
            flow,
            process,
            in_flight: InFlight::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            sessions,
            login_attempts: Attempts::default(),
            settings: ArcSwap::from_pointee(settings),
            traces: OnceLock::new(),
            draining: AtomicBool::new(false),
            tasks: TaskTracker::new(),
        });
        Self {
            router: router::router(inner.clone()),
            inner,
        }
    }

    /// Goes by other settings from now on. Nothing that is under way is touched.
    pub fn change(&self, settings: ServiceSettings) {
        self.inner.settings.store(Arc::new(settings));
    }

    /// Puts the spans of calls where these traces say. Once, before the first call.
    pub fn trace_by(&self, traces: Arc<dyn Traces>) {
        // Who says it again is not heard.
        let _ = self.inner.traces.set(traces);
    }

    /// Tells these of what happens from now on.
    pub fn tell(&self, receivers: Vec<Endpoint>) {
        self.inner.webhooks.tell(receivers);
    }

    /// Who tells them.
    pub(crate) fn webhooks(&self) -> &Webhooks {
        &self.inner.webhooks
    }

    /// The limits as of now.
    pub(crate) fn limits(&self) -> Limits {
        self.inner.settings().limits
    }

    /// The engine behind it.
    pub fn engine(&self) -> &Evergrant {
        &self.inner.engine
    }

    /// The same API in this process, with all rights and without a key: for who works on the store itself.
    pub fn operator(&self) -> Operator {
        Operator {
            service: self.clone(),
        }
    }

    /// Answers one request from the network.
    pub async fn answer<B>(&self, request: Request<B>, peer: Peer) -> http::Response<AnswerBody>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let (head, body) = request.into_parts();
        *self.respond(Box::new(head), body, Some(peer)).await.response
    }

    /// The same with what is known of the answer besides.
    pub(crate) async fn respond<B>(&self, mut head: Box<Parts>, body: B, peer: Option<Peer>) -> Answer
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let started = Instant::now();
        let path = head.uri.path();
        let door = if is_gateway(path) || is_meant_for_the_gateway(path) {
            Door::Gateway
        } else {
            Door::Api
        };
        let mut trace = Trace::of(&head.headers);
        if head.uri.path().starts_with("/dashboard") {
            let request_id = trace.request_id().to_owned();
            head.extensions.insert(Visit { peer, request_id });
        }
        let span = spans::begin(&head, self.inner.traces.get(), &mut trace);
        let line = log::Line::begin(&self.inner.settings(), &head, peer, started);
        let answer = {
            // Pinned where it is made: it is large, and whoever takes it by value carries all of it.
            let dispatched = pin!(self.dispatch(head, body, peer, &trace));
            // A fault in one answer is one answer's fault: its locks are released, the process goes on.
            let answering = AssertUnwindSafe(dispatched).catch_unwind();
            if span.is_disabled() {
                answering.await
            } else {
                answering.instrument(span.clone()).await
            }
        };
        let mut answer = answer.unwrap_or_else(|_| Answer::from(Problem::new(Code::Internal)));
        if let Some(problem) = &answer.problem {
            self.inner.process.answered_with(problem.code());
            *answer.response = problem.write(trace.request_id(), door).map(AnswerBody::routed);
            if let Some(call) = &answer.call {
                crate::api::gateway::describe(&call.record, answer.response.headers_mut());
            }
        }
        line.end(&answer, &trace);
        if !span.is_disabled() {
            spans::end(&span, &answer);
        }
        answer.response.headers_mut().insert(REQUEST_ID, trace.request_id);
        answer
    }

    async fn dispatch<B>(&self, mut head: Box<Parts>, body: B, peer: Option<Peer>, trace: &Trace) -> Answer
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        if let Some(peer) = peer
            && let Err(problem) = self.admit(&head, peer)
        {
            return problem.into();
        }
        let path = head.uri.path();
        if is_meant_for_the_gateway(path) {
            // What a client of the provider takes for the provider's own 404 would hide a wrong base URL.
            return Problem::bad_request(
                "the path of a call begins with /gateway/, written exactly like that: look at the client's base URL",
            )
            .into();
        }
        let caller = if peer.is_none() {
            Some(Caller::OPERATOR)
        } else if takes_a_key(path) {
            match self.inner.keys.caller(self.inner.keeper(), &head.headers).await {
                Ok(caller) => Some(caller),
                Err(problem) => return problem.into(),
            }
        } else {
            None
        };
        let request_id = trace.request_id();
        let mut answer = match &caller {
            // In a place of its own, like what follows: else every answer would carry the room of the largest from hand to hand.
            Some(caller) if is_gateway(path) => Box::pin(crate::api::gateway::call(
                &self.inner,
                caller,
                request_id,
                &head,
                body,
            ))
            .await
            .unwrap_or_else(Answer::from),
            Some(caller)
                if matches!(head.method, Method::GET | Method::HEAD)
                    && let Some(id) = with_a_token(path) =>
            {
                let query = head.uri.query();
                // Nobody reads the request's any more: the answer's take their room.
                let mut room = std::mem::take(&mut head.headers);
                room.clear();
                crate::api::tokens::token(&self.inner, caller, request_id, id, query, room).await
            }
            caller => {
                let mut request = Request::from_parts(*head, Body::new(body));
                if let Some(caller) = caller {
                    let caller = caller.clone().in_request(request_id);
                    request.extensions_mut().insert(caller);
                }
                self.by_router(request).await
            }
        };
        answer.key_was_valid |= caller.is_some();
        answer
    }

    async fn by_router(&self, request: Request<Body>) -> Answer {
        let response = Box::pin(self.router.clone().oneshot(request))
            .await
            .unwrap_or_else(|never| match never {});
        if response.status() == StatusCode::METHOD_NOT_ALLOWED {
            let allow = response.headers().get(header::ALLOW).cloned();
            return Problem::new(Code::MethodNotAllowed).allow(allow).into();
        }
        response.into()
    }

    /// What every request must keep to, whatever it asks for.
    pub(crate) fn admit(&self, head: &Parts, peer: Peer) -> Result<(), Problem> {
        if peer.reach == Reach::Loopback && !self.is_our_name(head) {
            return Err(Problem::new(Code::HostNotAllowed));
        }
        let (mut size, mut hosts, mut codings) = (0, 0, 0);
        let mut is_chunked = true;
        for (name, value) in &head.headers {
            size += name.as_str().len() + value.len() + 4;
            if name == header::HOST {
                hosts += 1;
            } else if name == header::TRANSFER_ENCODING {
                codings += 1;
                is_chunked &= value.as_bytes().eq_ignore_ascii_case(b"chunked");
            }
        }
        // hyper takes what ends in `chunked`. Of another coding below it nobody at the provider's would be told.
        if codings > 1 || !is_chunked {
            return Err(Problem::bad_request(
                "the only transfer coding that is taken is chunked",
            ));
        }
        // RFC 9112 §3.2.
        if head.version == Version::HTTP_11 && hosts != 1 {
            return Err(Problem::bad_request("the request must have one Host header"));
        }
        let limit = self.limits().header_bytes;
        if size > limit {
            let detail = format!("the headers are over the limit of {limit} bytes");
            return Err(Problem::because(Code::HeadersTooLarge, detail));
        }
        Ok(())
    }

    /// A page of somebody else whose name was made to point at this machine (DNS rebinding) still asks by that name.
    fn is_our_name(&self, head: &Parts) -> bool {
        let authority = match head.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => crate::trace::single(&head.headers, &header::HOST).and_then(|host| host.to_str().ok()),
        };
        let Some(authority) = authority else { return false };
        // A name, a port and nothing else; whatever more there is makes it another name.
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if is_port(port) => host,
            _ => authority,
        };
        host.eq_ignore_ascii_case("localhost")
            || host == "127.0.0.1"
            || host == "[::1]"
            || self
                .inner
                .engine
                .public_url()
                .host_str()
                .is_some_and(|own| own.eq_ignore_ascii_case(host))
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// Whether this is the address of a proxy that speaks for many.
    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        let settings = self.inner.settings();
        settings
            .trusted_proxies
            .iter()
            .any(|network| network.contains(address))
    }

    /// From here on it is not ready for more.
    pub(crate) fn begin_to_drain(&self) {
        self.inner.draining.store(true, Ordering::Release);
    }

    /// Waits for what goes on although its caller hung up: as long as the drain still lasts, and for a code that is being redeemed a
    /// little longer.
    pub(crate) async fn finish(&self, left: Duration) {
        /// It began while calls were still being drained, so it has had most of its time: an exchange and a question take 15 s each.
        const CONSENT_MAX: Duration = Duration::from_secs(20);
        if !have_ended(&self.inner.tasks, left.max(CONSENT_MAX)).await {
            tracing::warn!(
                event = "drain_timeout",
                "a consent, an import or a disconnect was still under way and is cut off: whoever asked for it has to look, and to ask again"
            );
        }
    }
}

impl Inner {
    /// The settings as of now.
    pub(crate) fn settings(&self) -> Guard<Arc<ServiceSettings>> {
        self.settings.load()
    }

    pub(crate) fn keeper(&self) -> &Keeper {
        self.engine.keeper()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.keeper().clock().now()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// A page or route of this service as others reach it. `path` begins with a slash.
    pub(crate) fn public(&self, path: &str) -> String {
        format!(
            "{}{path}",
            self.engine.public_url().as_str().trim_end_matches('/')
        )
    }

    /// The link that restores a connection, signed; the store is not touched.
    pub(crate) fn reconnect_url(
        &self,
        connection: &ConnectionId,
        lasts: Duration,
        return_url: Option<String>,
    ) -> String {
        let link = ReconnectLink {
            connection: connection.clone(),
            expires_at: self.now().after(lasts),
            return_url,
        };
        self.public(&format!("/connect/{}", link.sign(self.keeper().vault())))
    }

    /// Adds to a record what this process saw and has not written yet.
    pub(crate) fn look_at(&self, connection: &mut Connection) {
        self.keeper().look_at(connection);
    }

    /// The record's view as of now, with its link.
    pub(crate) fn record(&self, mut connection: Connection) -> Record {
        self.look_at(&mut connection);
        let app = self.keeper().app(&connection.app);
        Record::new(&connection, app.as_deref(), self.now()).with_link(|| {
            app.is_some()
                .then(|| self.reconnect_url(&connection.id, link::LASTS, None))
        })
    }

    /// The view of a record that is shown by itself, with what is known of its app.
    pub(crate) async fn record_alone(&self, connection: Connection) -> Record {
        // An app that is not configured is in the record already; a store that went away takes only this sentence with it.
        let health = self.keeper().app_health(&connection.app).await.ok();
        self.record(connection).with_app_health(health.as_ref())
    }

    /// A problem about a connection; one that reconnecting mends says where.
    pub(crate) fn problem(&self, problem: Problem) -> Problem {
        let is_mended_by_reconnecting = matches!(
            problem.code(),
            Code::ReconnectRequired | Code::ConnectionUnreadable
        );
        match problem.connection() {
            Some(id) if is_mended_by_reconnecting => {
                let url = self.reconnect_url(id, link::LASTS, None);
                problem.reconnect_at(url)
            }
            _ => problem,
        }
    }

    /// Runs what must not stop half way because its caller hung up: a code that was redeemed, a grant that was received.
    pub(crate) async fn to_the_end<T, F>(&self, work: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.tasks
            .spawn(work)
            .await
            .map_err(|_| Problem::new(Code::Internal))
    }
}

/// The API in this process; see [`Service::operator`].
#[derive(Clone)]
pub struct Operator {
    service: Service,
}

impl Operator {
    /// Answers one request, with all rights.
    pub async fn call(&self, request: Request<Full<Bytes>>) -> Response {
        let (head, body) = request.into_parts();
        let answer = self.service.respond(Box::new(head), body, None).await;
        (*answer.response).map(Body::new)
    }
}

/// Whether all of these end in time. No more of them begin.
async fn have_ended(tasks: &TaskTracker, patience: Duration) -> bool {
    tasks.close();
    timeout(patience, tasks.wait()).await.is_ok()
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn is_gateway(path: &str) -> bool {
    path.strip_prefix("/gateway")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether somebody means the gateway and writes it in another way, which leads nowhere: `//gateway/…`, `/%67ateway/…`, `/Gateway/…`.
fn is_meant_for_the_gateway(path: &str) -> bool {
    // Nothing of ours begins like that, so nearly every request costs one look at one byte.
    if !matches!(
        path.as_bytes().get(1),
        Some(b'/' | b'\\' | b'.' | b'%' | b'g' | b'G')
    ) || is_gateway(path)
    {
        return false;
    }
    let decoded = decoded(path);
    let first = decoded
        .split(['/', '\\'])
        .find(|segment| !matches!(*segment, "" | "." | ".."));
    first.is_some_and(|first| first.eq_ignore_ascii_case("gateway"))
}

/// The connection whose token this path means.
fn with_a_token(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/connections/")?
        .strip_suffix("/token")
        .filter(|id| !id.contains('/'))
}

fn takes_a_key(path: &str) -> bool {
    is_gateway(path)
        || path == "/metrics"
        || path
            .strip_prefix("/v1")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Nobody between us and the caller keeps an answer that holds a token.
pub(crate) fn no_store(headers: &mut HeaderMap) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_goes_on_without_its_caller_is_waited_for_within_a_bound() {
        const PATIENCE: Duration = Duration::from_secs(20);
        let tasks = TaskTracker::new();
        tasks.spawn(tokio::time::sleep(PATIENCE / 2));
        assert!(have_ended(&tasks, PATIENCE).await);
        tasks.spawn(std::future::pending::<()>());
        let ended = timeout(2 * PATIENCE, have_ended(&tasks, PATIENCE)).await;
        assert_eq!(ended, Ok(false));
    }

    #[test]
    fn what_is_meant_for_the_gateway_is_seen_however_it_is_written() {
        for path in [
            "//gateway/c1/x",
            "///gateway/c1/x",
            "/./gateway/c1/x",
            "/%67ateway/c1/x",
            "/g%61teway/c1/x",
            "/%2fgateway/c1/x",
            "/Gateway/c1/x",
            "/\\gateway/c1/x",
        ] {
            assert!(is_meant_for_the_gateway(path) && !is_gateway(path), "{path}");
        }
        for path in [
            "/gateway/c1/x",
            "/gateway",
            "/gatewayed/x",
            "//v1/connections",
            "/v1/gateway",
            "/",
            "",
        ] {
            assert!(!is_meant_for_the_gateway(path), "{path}");
        }
    }
}
