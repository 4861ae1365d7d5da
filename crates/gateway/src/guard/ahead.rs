//! Looking first whether what a write would bring is already there, and afterwards where its answer was lost.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use evergrant_domain::call_budget::counted;
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::read_before_write::{AsAnswered, Found, Wanted};
use evergrant_domain::repeat::Effect;
use evergrant_domain::write_lookup::LookUp;
use evergrant_domain::{App, ConnectionId};
use evergrant_keeper::Asker;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Response};
use http_body_util::Empty;
use tokio::time::Instant;

use crate::answer_body::GatewayBody;
use crate::budget::{Patience, Permit};
use crate::call::{Call, NEVER};
use crate::call_body::CallBody;
use crate::gateway::Inner;
use crate::guard::asked::AheadAsked;
use crate::guard::kept::given;
use crate::headers::said_not_sent;
use crate::record::{CallRecord, RefusalKind};
use crate::target::Target;
use crate::transport::Transport;

/// What a write would bring.
pub(crate) struct Ahead(Wanted);

/// What a look said.
enum Seen {
    There(AsAnswered),
    NotThere,
    /// The provider refuses the look itself; its answer, with what it was made of.
    Refused(Box<(Response<GatewayBody>, CallRecord)>),
    CannotTell,
    Unclear,
}

impl Ahead {
    pub(crate) fn of(call: &Call<'_>, asked: &AheadAsked, body: &[u8]) -> Result<Self, RefusalKind> {
        let path = call.target.split_once('?').map_or(call.target, |(path, _)| path);
        Wanted::of(
            call.token.app.provider.dialect,
            call.method.as_str(),
            path,
            asked.property.as_deref(),
            body,
        )
        .map(Self)
        .map_err(|what| RefusalKind::GuardNotApplicable { what })
    }
}

impl<T: Transport> Inner<T> {
    /// Looks whether it is there, before anything is sent. `None`: it is not, and the write may go.
    ///
    /// Where the provider refuses the look, it would refuse the write: its answer is the write's, which was not sent.
    pub(crate) async fn look_first(
        &self,
        ahead: &Ahead,
        call: &Call<'_>,
        record: &mut CallRecord,
    ) -> Result<Option<Response<GatewayBody>>, RefusalKind> {
        /// What stands before the provider may be another one in a moment.
        const COME_AGAIN: Duration = Duration::from_secs(2);
        match self.look(ahead, call.id, &call.token.app, call.patience).await? {
            Seen::There(answer) => Ok(Some(self.suppressed(answer, call.id, call.asker, record))),
            Seen::NotThere => Ok(None),
            Seen::Refused(refused) => {
                let (mut response, of_the_look) = *refused;
                record.class = of_the_look.class;
                record.status_code = of_the_look.status_code;
                record.version = of_the_look.version;
                record.expires_at = of_the_look.expires_at;
                record.seconds_remaining = of_the_look.seconds_remaining;
                record.provider_correlation_id = of_the_look.provider_correlation_id;
                said_not_sent(response.headers_mut());
                Ok(Some(response))
            }
            Seen::CannotTell => Err(RefusalKind::GuardNotApplicable {
                what: "the provider does not look objects up by this property: it must be a unique one of these objects",
            }),
            Seen::Unclear => Err(RefusalKind::LookUnclear {
                retry_after: COME_AGAIN,
            }),
        }
    }

    /// Looks whether a write whose answer was lost has been carried out. `None`: it is not there, or nobody can tell; it may
    /// still be under way.
    pub(crate) async fn look_after(
        &self,
        ahead: &Ahead,
        id: &ConnectionId,
        app: &Arc<App>,
        patience: Patience<'_>,
    ) -> Option<AsAnswered> {
        match self.look(ahead, id, app, patience).await {
            Ok(Seen::There(answer)) => Some(answer),
            Ok(Seen::NotThere | Seen::Refused(_) | Seen::CannotTell | Seen::Unclear) | Err(_) => None,
        }
    }

    /// The answer of a write that is not sent, because what it would bring is there.
    pub(crate) fn suppressed(
        &self,
        answer: AsAnswered,
        id: &ConnectionId,
        asker: Asker<'_>,
        record: &mut CallRecord,
    ) -> Response<GatewayBody> {
        let event = Event::new(
            EventKind::WriteSuppressed,
            "what a write would bring was found to be there; it was not sent for that",
        )
        .during(record.circumstances(asker));
        self.keeper.event(id, event);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        given(answer.status, headers, answer.body.into(), "true", record)
    }

    async fn look(
        &self,
        ahead: &Ahead,
        id: &ConnectionId,
        app: &Arc<App>,
        patience: Patience<'_>,
    ) -> Result<Seen, RefusalKind> {
        /// 500 associations a page.
        const PAGES_MAX: usize = 20;
        const ANSWER_MAX: usize = 1024 * 1024;
        let at = jiff::Timestamp::from_millisecond(self.keeper.clock().now().millis())
            .unwrap_or_default()
            .to_string();
        let mut next = ahead.0.look_up();
        for _ in 0..PAGES_MAX {
            let mut of_the_look = CallRecord::new(Method::GET, &next.path);
            let mut look = self.looking(id, app, patience, &next).await?;
            // What is looked up with may be guarded itself no more.
            let mut response = Box::pin(self.carry_out(&mut look, &mut of_the_look)).await?;
            let whole = response
                .body_mut()
                .read_whole(ANSWER_MAX, self.upstream_timeout())
                .await;
            let status = response.status().as_u16();
            match ahead.0.found(status, whole.as_deref().unwrap_or_default(), &at) {
                None => return Ok(Seen::Refused(Box::new((response, of_the_look)))),
                Some(Found::There(answer)) => return Ok(Seen::There(answer)),
                Some(Found::NotThere) => return Ok(Seen::NotThere),
                Some(Found::CannotTell) => return Ok(Seen::CannotTell),
                Some(Found::Unclear) => return Ok(Seen::Unclear),
                Some(Found::More(more)) => next = more,
            }
        }
        Err(RefusalKind::GuardNotApplicable {
            what: "the object has more associations than are looked through",
        })
    }

    async fn looking<'a>(
        &self,
        id: &'a ConnectionId,
        app: &Arc<App>,
        patience: Patience<'a>,
        look: &'a LookUp,
    ) -> Result<Call<'a>, RefusalKind> {
        let began = Instant::now();
        let token = self.keeper.current(id, None).await?;
        let ready_at = Instant::now();
        let target = Target::parse(&look.path)?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        Ok(Call {
            id,
            asker: Asker::UNKNOWN,
            method: &Method::GET,
            target: &look.path,
            uri: target.at(&app.provider)?,
            headers,
            body: CallBody::new(Empty::<Bytes>::new(), 0, None)?,
            effect: Effect::Read,
            min_ttl: None,
            token,
            token_took: ready_at - began,
            ready_at,
            leaves_at: Some(ready_at),
            counted: counted(app.provider.dialect, "GET", target.path()),
            patience,
            permit: Permit::NONE,
            sent_at: NEVER,
            repeated_for_401: false,
            repeated_blindly: false,
            not_repeated: false,
            place: None,
        })
    }
}
