//! Named faults: what can be made to go wrong, where, for whom and how often.
//!
//! A fault is armed and then meets the next requests that fit it, [`Fault::times`] of them. One request
//! meets at most one fault, the one that was armed first.

use std::future::Future;
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::answer::{self, Answer, Cut};
use crate::limits::RetryAfter;

/// Where a fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The token endpoint of every version. Introspection and revocation are spared unless
    /// [`Fault::path_prefix`] names them.
    Token,
    /// Everything that takes an access token: CRM objects, account info, uninstall.
    Api,
}

/// Which limit a 429 names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateLimitPolicy {
    /// `TEN_SECONDLY_ROLLING`.
    #[default]
    TenSecondly,
    /// `SECONDLY`, the limit of searches.
    Secondly,
    /// `DAILY`.
    Daily,
}

/// What goes wrong. Every kind has a meaning at both [`Place`]s: "issue" below is the token request taking
/// effect (new tokens exist, the old refresh token may be dead), or the API call being executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum FaultKind {
    /// 429 with HubSpot's body; nothing is issued.
    RateLimited {
        /// Which limit the body names.
        #[serde(default)]
        policy: RateLimitPolicy,
        /// Seconds for a `Retry-After` header; HubSpot does not document one for 429.
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// 423; nothing is issued.
    Locked,
    /// 477, the account is moving between data centres; nothing is issued.
    Migrating {
        /// Seconds in the `Retry-After` header.
        retry_after: u64,
    },
    /// Any status with a short plain text body, as a proxy in front of HubSpot would answer; nothing is issued.
    Status {
        /// The status code, 200 to 599.
        code: u16,
        /// The `Location` header. A redirect without it leads to `https://api.hubapi.com/moved`.
        #[serde(default)]
        location: Option<String>,
    },
    /// As [`FaultKind::Status`], with a `Retry-After` that is a date; a 429 has HubSpot's body. Nothing is issued.
    RetryAt {
        /// The status code, 200 to 599.
        code: u16,
        /// How far the date is ahead, by the simulator's clock.
        seconds: u64,
    },
    /// Any status with an HTML page; nothing is issued.
    Html {
        /// The status code, 200 to 599.
        code: u16,
    },
    /// Issues at once; the answer comes late.
    Slow {
        /// How late, in real milliseconds.
        delay_ms: u64,
    },
    /// Issues, then cuts the connection without an answer.
    #[serde(
        alias = "cut_after_execute",
        alias = "answer_lost_after_execute",
        alias = "cut_after_issue"
    )]
    AnswerLostAfterIssue,
    /// Cuts the connection without an answer; nothing is issued.
    #[serde(alias = "cut_before_execute")]
    CutBeforeIssue,
    /// Issues, then cuts the connection in the middle of the body.
    #[serde(alias = "truncated_json_after_execute", alias = "truncated_json")]
    TruncatedJsonAfterIssue,
    /// Issues, then answers 200 without a body.
    EmptyBody,
    /// Issues, then answers with this status and a short plain text body, as a proxy that did not wait for HubSpot.
    #[serde(alias = "status_after_execute")]
    StatusAfterIssue {
        /// The status code, 200 to 599.
        code: u16,
    },
    /// Waits until held requests are released, then issues and answers.
    #[serde(alias = "hold_before_execute")]
    HoldBeforeIssue,
    /// Issues, then waits until held requests are released, then answers.
    #[serde(alias = "hold_after_execute")]
    HoldAfterIssue,
    /// Answers exactly this; nothing is issued.
    CustomBody {
        /// The status code, 200 to 599.
        code: u16,
        /// The body, as it stands.
        body: String,
        /// The `Content-Type`, JSON by default.
        #[serde(default)]
        content_type: Option<String>,
    },
    /// Issues, then sends a body that comes byte by byte and never ends.
    Trickle {
        /// Real milliseconds between two bytes.
        #[serde(default = "default_trickle_interval_ms")]
        interval_ms: u64,
    },
    /// Issues, then sends a body of this size.
    HugeBody {
        /// Size in MiB.
        #[serde(default = "default_huge_body_mib")]
        mib: u64,
    },
    /// A valid access token is called expired; it is not, and works on the next call.
    UnauthorizedEarly,
    /// As [`FaultKind::UnauthorizedEarly`], until cleared by default.
    AlwaysUnauthorized,
    /// A valid access token expires while its call is under way: the call is refused and the token stays dead.
    ExpireMidRequest,
    /// 403 `MISSING_SCOPES`; nothing is executed.
    Forbidden,
}

impl FaultKind {
    /// Faults of the credentials meet only calls whose credentials are good.
    fn needs_valid_token(&self) -> bool {
        matches!(
            self,
            Self::UnauthorizedEarly | Self::AlwaysUnauthorized | Self::ExpireMidRequest | Self::Forbidden
        )
    }

    /// Whether the answer is a 429.
    pub(crate) fn limits_rate(&self) -> bool {
        matches!(self, Self::RateLimited { .. }) || self.status_code() == Some(429)
    }

    /// Whether the request takes effect and its answer does not arrive.
    pub(crate) fn loses_answer(&self) -> bool {
        matches!(
            self,
            Self::AnswerLostAfterIssue
                | Self::TruncatedJsonAfterIssue
                | Self::EmptyBody
                | Self::StatusAfterIssue { .. }
                | Self::Trickle { .. }
                | Self::HugeBody { .. }
        )
    }

    fn default_times(&self) -> u32 {
        u32::from(!matches!(self, Self::AlwaysUnauthorized))
    }

    fn status_code(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. }
            | Self::RetryAt { code, .. }
            | Self::Html { code }
            | Self::StatusAfterIssue { code }
            | Self::CustomBody { code, .. } => Some(*code),
            _ => None,
        }
    }
}

fn default_trickle_interval_ms() -> u64 {
    100
}

fn default_huge_body_mib() -> u64 {
    64
}

/// A fault, where and for whom it happens, and how often.
///
/// ```
/// use hubspot_sim::{Fault, FaultKind};
///
/// let fault = Fault::token(FaultKind::AnswerLostAfterIssue).hub(1001).times(2);
/// # let _ = fault;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Where.
    pub at: Place,
    /// What.
    #[serde(flatten)]
    pub kind: FaultKind,
    /// How many requests meet it; 0 means until cleared. One, unless said otherwise
    /// ([`FaultKind::AlwaysUnauthorized`]: until cleared).
    #[serde(default)]
    pub times: Option<u32>,
    /// How many fitting requests are spared first.
    #[serde(default)]
    pub skip: u32,
    /// Only requests of this portal.
    #[serde(default)]
    pub hub_id: Option<u64>,
    /// Only requests of this app.
    #[serde(default)]
    pub client_id: Option<String>,
    /// Only paths that begin so.
    #[serde(default)]
    pub path_prefix: Option<String>,
    /// Only this method, such as `POST`.
    #[serde(default)]
    pub method: Option<String>,
}

impl Fault {
    /// A fault of the token endpoint that happens once.
    pub fn token(kind: FaultKind) -> Self {
        Self::at(Place::Token, kind)
    }

    /// A fault of the API that happens once.
    pub fn api(kind: FaultKind) -> Self {
        Self::at(Place::Api, kind)
    }

    /// Happens to `times` requests; 0 means until cleared.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Spares the first `requests` that fit.
    #[must_use]
    pub fn skip(mut self, requests: u32) -> Self {
        self.skip = requests;
        self
    }

    /// Happens to requests of this portal only.
    #[must_use]
    pub fn hub(mut self, hub_id: u64) -> Self {
        self.hub_id = Some(hub_id);
        self
    }

    /// Happens to requests of this app only.
    #[must_use]
    pub fn client(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = Some(client_id.into());
        self
    }

    /// Happens to paths that begin with `prefix` only.
    #[must_use]
    pub fn path(mut self, prefix: impl Into<String>) -> Self {
        self.path_prefix = Some(prefix.into());
        self
    }

    /// Happens to requests with this method only.
    #[must_use]
    pub fn method(mut self, method: impl Into<String>) -> Self {
        self.method = Some(method.into());
        self
    }

    /// Reads a fault of the control API, and refuses keys that it would otherwise silently ignore.
    pub(crate) fn from_json(value: &Value) -> Result<Self, String> {
        let fault: Self = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
        let known = serde_json::to_value(&fault).map_err(|error| error.to_string())?;
        let unknown: Vec<_> = value
            .as_object()
            .into_iter()
            .flat_map(|keys| keys.keys())
            .filter(|key| known.get(key).is_none())
            .collect();
        if !unknown.is_empty() {
            return Err(format!("unknown field {unknown:?} for this fault"));
        }
        if let Some(code) = fault.kind.status_code()
            && !(200..600).contains(&code)
        {
            return Err(format!("code {code} is not a final HTTP status (200 to 599)"));
        }
        Ok(fault)
    }

    fn at(at: Place, kind: FaultKind) -> Self {
        Self {
            at,
            kind,
            times: None,
            skip: 0,
            hub_id: None,
            client_id: None,
            path_prefix: None,
            method: None,
        }
    }

    fn fits(&self, target: &Target<'_>) -> bool {
        self.at == target.place
            && (!self.kind.needs_valid_token() || target.token_valid)
            && self.hub_id.is_none_or(|hub_id| target.hub_id == Some(hub_id))
            && self
                .client_id
                .as_deref()
                .is_none_or(|client_id| target.client_id == Some(client_id))
            && self
                .path_prefix
                .as_deref()
                .is_none_or(|prefix| target.path.starts_with(prefix))
            && self
                .method
                .as_deref()
                .is_none_or(|method| target.method.as_str().eq_ignore_ascii_case(method))
            && (!target.only_by_path || self.path_prefix.is_some())
    }
}

/// The request that a fault may meet.
pub(crate) struct Target<'a> {
    pub(crate) place: Place,
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) client_id: Option<&'a str>,
    pub(crate) hub_id: Option<u64>,
    /// At the token endpoint: always.
    pub(crate) token_valid: bool,
    /// Only faults that name a path fit (introspection, revocation).
    pub(crate) only_by_path: bool,
}

/// The armed faults, in the order of arming.
#[derive(Debug, Default)]
pub(crate) struct ArmedFaults {
    armed: Vec<Armed>,
}

#[derive(Debug)]
struct Armed {
    fault: Fault,
    /// `None`: until cleared.
    left: Option<u32>,
    skip: u32,
    met: u64,
}

impl ArmedFaults {
    pub(crate) fn arm(&mut self, fault: Fault) {
        let times = fault.times.unwrap_or_else(|| fault.kind.default_times());
        let left = Some(times).filter(|times| *times > 0);
        let skip = fault.skip;
        self.armed.push(Armed {
            fault,
            left,
            skip,
            met: 0,
        });
    }

    pub(crate) fn clear(&mut self) {
        self.armed.clear();
    }

    /// The fault that this request meets, if any; it counts as met.
    pub(crate) fn meet(&mut self, target: &Target<'_>) -> Option<FaultKind> {
        for (index, armed) in self.armed.iter_mut().enumerate() {
            if !armed.fault.fits(target) {
                continue;
            }
            if armed.skip > 0 {
                armed.skip -= 1;
                continue;
            }
            armed.met += 1;
            let kind = armed.fault.kind.clone();
            if let Some(left) = &mut armed.left {
                *left -= 1;
                if *left == 0 {
                    self.armed.remove(index);
                }
            }
            return Some(kind);
        }
        None
    }

    /// What is armed, for the control API.
    pub(crate) fn view(&self) -> Value {
        self.armed
            .iter()
            .map(|armed| json!({"fault": armed.fault, "left": armed.left, "met": armed.met}))
            .collect()
    }
}

/// The gate at which held requests wait.
#[derive(Debug)]
pub(crate) struct Gate {
    releases: watch::Sender<u64>,
    waiting: watch::Sender<usize>,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            releases: watch::Sender::new(0),
            waiting: watch::Sender::new(0),
        }
    }

    /// Lets go everything that waits now.
    pub(crate) fn release(&self) {
        self.releases.send_modify(|releases| *releases += 1);
    }

    pub(crate) fn waiting(&self) -> usize {
        *self.waiting.borrow()
    }

    /// Returns when at least `requests` wait at the gate.
    pub(crate) async fn wait_for_waiting(&self, requests: usize) {
        // The sender lives as long as the gate, so the channel cannot close.
        let _ = self
            .waiting
            .subscribe()
            .wait_for(|waiting| *waiting >= requests)
            .await;
    }

    async fn pass(&self) {
        let mut releases = self.releases.subscribe();
        let _waiting = Waiting::new(&self.waiting);
        let _ = releases.changed().await;
    }
}

/// Counts one held request for as long as it lives.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting = waiting.saturating_sub(1));
    }
}

/// What the answers of faults need to know about the request.
pub(crate) struct Circumstances<'a> {
    pub(crate) gate: &'a Gate,
    pub(crate) correlation_id: &'a str,
    pub(crate) now: jiff::Timestamp,
}

fn retry_at(code: u16, seconds: u64, correlation_id: &str, now: jiff::Timestamp) -> Answer {
    let answer = if code == 429 {
        answer::rate_limited(RateLimitPolicy::default(), correlation_id)
    } else {
        plain(code)
    };
    answer.retry_after(RetryAfter::Date, Duration::from_secs(seconds), now)
}

/// As a proxy in front of HubSpot answers.
fn plain(code: u16) -> Answer {
    Answer::text(status(code), format!("error code: {code}"))
}

/// Executes a request the way the fault says: before, after, or not at all.
pub(crate) async fn under<F, E>(
    fault: Option<FaultKind>,
    circumstances: Circumstances<'_>,
    execute: F,
) -> Result<Answer, Cut>
where
    F: FnOnce() -> E,
    E: Future<Output = Answer>,
{
    let Circumstances {
        gate,
        correlation_id,
        now,
    } = circumstances;
    let Some(fault) = fault else {
        return Ok(execute().await);
    };
    tracing::debug!(fault = ?fault, correlation_id, "request meets an armed fault");
    Ok(match fault {
        FaultKind::RateLimited { policy, retry_after } => {
            let form = retry_after.map_or(RetryAfter::Absent, |_| RetryAfter::Seconds);
            let delay = Duration::from_secs(retry_after.unwrap_or_default());
            answer::rate_limited(policy, correlation_id).retry_after(form, delay, now)
        }
        FaultKind::RetryAt { code, seconds } => retry_at(code, seconds, correlation_id, now),
        FaultKind::Locked => answer::api_error(
            StatusCode::LOCKED,
            "LOCKED",
            "resource is locked, try again",
            correlation_id,
        ),
        FaultKind::Migrating { retry_after } => answer::api_error(
            status(477),
            "MIGRATION_IN_PROGRESS",
            "account is migrating",
            correlation_id,
        )
        .retry_after(RetryAfter::Seconds, Duration::from_secs(retry_after), now),
        FaultKind::Status { code, location } => {
            let location = location.or_else(|| {
                (300..400)
                    .contains(&code)
                    .then(|| "https://api.hubapi.com/moved".to_owned())
            });
            let answer = plain(code);
            match location {
                Some(location) => answer.header("location", &location),
                None => answer,
            }
        }
        FaultKind::Html { code } => Answer::html(
            status(code),
            format!(
                "<!DOCTYPE html><html><head><title>{code}</title></head><body><h1>Error {code}</h1></body></html>"
            ),
        ),
        FaultKind::Slow { delay_ms } => {
            let answer = execute().await;
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            answer
        }
        FaultKind::AnswerLostAfterIssue => {
            execute().await;
            return Err(Cut);
        }
        FaultKind::CutBeforeIssue => return Err(Cut),
        FaultKind::TruncatedJsonAfterIssue => execute().await.truncated(),
        FaultKind::EmptyBody => instead(execute(), Answer::empty(StatusCode::OK)).await,
        FaultKind::StatusAfterIssue { code } => instead(execute(), plain(code)).await,
        FaultKind::HoldBeforeIssue => {
            gate.pass().await;
            execute().await
        }
        FaultKind::HoldAfterIssue => {
            let answer = execute().await;
            gate.pass().await;
            answer
        }
        FaultKind::CustomBody {
            code,
            body,
            content_type,
        } => {
            let content_type = content_type
                .as_deref()
                .unwrap_or("application/json;charset=utf-8");
            let content_type = HeaderValue::from_str(content_type)
                .unwrap_or(HeaderValue::from_static("application/octet-stream"));
            Answer::with_body(status(code), content_type, body)
        }
        FaultKind::Trickle { interval_ms } => {
            instead(execute(), Answer::trickle(Duration::from_millis(interval_ms))).await
        }
        FaultKind::HugeBody { mib } => {
            instead(execute(), Answer::huge(mib.saturating_mul(1024 * 1024))).await
        }
        FaultKind::UnauthorizedEarly | FaultKind::AlwaysUnauthorized | FaultKind::ExpireMidRequest => {
            answer::expired_authentication(now, now, correlation_id)
        }
        FaultKind::Forbidden => {
            answer::missing_scopes(&["crm.objects.contacts.read".to_owned()], correlation_id)
        }
    })
}

/// The request takes effect, and another answer is given.
async fn instead(executed: impl Future<Output = Answer>, answer: Answer) -> Answer {
    executed.await;
    answer
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str, hub_id: Option<u64>) -> Target<'_> {
        Target {
            place: Place::Api,
            method: &Method::GET,
            path,
            client_id: None,
            hub_id,
            token_valid: true,
            only_by_path: false,
        }
    }

    #[test]
    fn a_fault_meets_as_many_fitting_requests_as_it_was_armed_for() {
        let mut faults = ArmedFaults::default();
        faults.arm(Fault::api(FaultKind::Locked).hub(7).path("/crm").skip(1).times(2));
        assert_eq!(faults.meet(&target("/crm/v3", Some(8))), None, "another portal");
        assert_eq!(faults.meet(&target("/account", Some(7))), None, "another path");
        assert_eq!(
            faults.meet(&target("/crm/v3", Some(7))),
            None,
            "the first is spared"
        );
        assert_eq!(faults.meet(&target("/crm/v3", Some(7))), Some(FaultKind::Locked));
        assert_eq!(faults.meet(&target("/crm/v3", Some(7))), Some(FaultKind::Locked));
        assert_eq!(faults.meet(&target("/crm/v3", Some(7))), None, "used up");
    }

    #[test]
    fn a_fault_armed_for_zero_times_stays_until_cleared() {
        let mut faults = ArmedFaults::default();
        faults.arm(Fault::api(FaultKind::AlwaysUnauthorized));
        faults.arm(Fault::api(FaultKind::Locked).times(0));
        for _ in 0..5 {
            assert_eq!(
                faults.meet(&target("/", None)),
                Some(FaultKind::AlwaysUnauthorized)
            );
        }
        faults.clear();
        assert_eq!(faults.meet(&target("/", None)), None);
    }

    #[test]
    fn faults_are_read_from_json_and_nothing_in_it_is_ignored() {
        let check = |value: Value, expected: Result<Fault, &str>| match (Fault::from_json(&value), expected) {
            (Ok(fault), Ok(expected)) => assert_eq!(fault, expected),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
            (result, _) => panic!("{value}: {result:?}"),
        };
        check(
            json!({"at": "token", "fault": "locked"}),
            Ok(Fault::token(FaultKind::Locked)),
        );
        check(
            json!({"at": "api", "fault": "status", "code": 503, "times": 0, "hub_id": 7}),
            Ok(Fault::api(FaultKind::Status {
                code: 503,
                location: None,
            })
            .times(0)
            .hub(7)),
        );
        check(
            json!({"at": "api", "fault": "cut_after_execute"}),
            Ok(Fault::api(FaultKind::AnswerLostAfterIssue)),
        );
        check(json!({"at": "api", "fault": "locked", "hubid": 7}), Err("hubid"));
        check(json!({"at": "api", "fault": "nonsense"}), Err("nonsense"));
        check(json!({"at": "api", "fault": "status", "code": 42}), Err("42"));
        check(json!({"fault": "locked"}), Err("at"));
    }
}
