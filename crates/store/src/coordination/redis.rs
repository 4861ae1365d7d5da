//! The mode `redis`: whoever wants a turn sets a key that the next one finds, and waits in a queue until it is gone.
//!
//! The key's life is short and renewed while its holder lives, so a dead holder's ends by itself. Giving back wakes the one
//! that waits longest, over a channel that every process listens to: with this, one connection does for all who wait, where
//! a blocking command would take one for each. A message that is lost costs the time until the next look, no more.
//!
//! Redis may forget everything, stop, or answer nobody: then this mode is the mode `lease`, whose waiting is asking the store.
//! Of a command whose answer is lost nobody knows whether it was done. All of them may be done twice, and each turn ends
//! with one that undoes whatever was done in its name.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind, RedisError, Value, cmd};
use async_trait::async_trait;
use evergrant_domain::ConnectionId;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OnceCell, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Coordination, Guard, Lately, Turn};

/// What every key and channel begins with.
const PREFIX: &str = "evergrant";
/// Where those who wait are woken, each by its token.
const CHANNEL: &str = "evergrant:turns";
/// How long a key lives that nobody renews: how long a dead holder holds up the others.
const LIFE: Duration = Duration::from_secs(5);
/// How often a holder renews it during its life: two renewals may fail.
const RENEWALS: u32 = 3;
/// How often those who wait look without having been woken: a dead holder wakes nobody.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long an answer may take. It is all that a Redis which does not answer costs a turn.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// How long Redis is left alone after it did not answer: turns are given without it meanwhile.
const LEFT_ALONE: Duration = Duration::from_secs(2);

/// Takes a turn that is free, or already has this token; otherwise gets in line, once.
const TAKE: &str = "
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
    local now = redis.call('TIME')
    redis.call('ZADD', KEYS[2], 'NX', now[1] * 1000000 + now[2], ARGV[1])
    redis.call('PEXPIRE', KEYS[2], 60000)
    return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1";

/// Lengthens the life of a turn that has this token still. One that is lost is not taken anew: it may be somebody else's
/// a moment later, and the store knows who redeems.
const RENEW: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])";

/// Gets out of line, gives back the turn if it has this token, and wakes the next one wherever the turn is free now: whoever
/// leaves may have been the one that was woken.
const LEAVE: &str = "
redis.call('ZREM', KEYS[2], ARGV[1])
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
local next = redis.call('ZPOPMIN', KEYS[2])[1]
if next then redis.call('PUBLISH', ARGV[2], next) end
return 1";

/// The URL names no Redis. It is not quoted: it may hold a password.
#[derive(Debug, thiserror::Error)]
#[error("the url of Redis cannot be used: {what}")]
pub struct RedisRefused {
    what: String,
}

impl From<RedisError> for RedisRefused {
    fn from(error: RedisError) -> Self {
        let what = error.category().to_owned();
        Self { what }
    }
}

/// Turns by a key and a queue in Redis, 6 or newer.
pub struct ByRedis {
    shared: Arc<Shared>,
    look_every: Duration,
    life: Duration,
}

impl ByRedis {
    /// For the Redis that a `redis://` or, with TLS, `rediss://` URL names. Asks it nothing yet: the engine starts without it,
    /// too. Needs a Tokio runtime.
    pub fn open(url: &str) -> Result<Self, RedisRefused> {
        let info = url.into_connection_info()?;
        let redis = info.redis_settings().clone();
        // Messages come on the connection that commands go over.
        let info = info.set_redis_settings(redis.set_protocol(ProtocolVersion::RESP3));
        let client = Client::open(info)?;
        let waiting = Waiting::default();
        let shared = Shared {
            link: Mutex::new(Arc::new(Link::new(&client, &waiting)?)),
            client,
            waiting,
            health: Mutex::default(),
            runtime: Handle::current(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            look_every: LOOK_EVERY,
            life: LIFE,
        })
    }

    /// The same where those who wait look this often without having been woken.
    #[must_use]
    pub fn looking_every(mut self, look_every: Duration) -> Self {
        self.look_every = look_every;
        self
    }

    /// The same where a holder that is gone holds up the others for this long.
    #[must_use]
    pub fn living(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }
}

#[async_trait]
impl Coordination for ByRedis {
    async fn turn(&self, id: &ConnectionId, patience: Duration) -> Turn {
        let ends = Instant::now() + patience;
        if !self.shared.health.lock().may_be_asked() {
            return Turn::Mine(Guard::nothing());
        }
        let place = Place::new(self, id);
        loop {
            match place.ticket.take().await {
                Ok(taken) => {
                    if self.shared.health.lock().answered() {
                        tracing::info!(event = "redis_answers", "turns are waited for in Redis again");
                    }
                    if taken {
                        return Turn::Mine(place.hold());
                    }
                }
                Err(what) => {
                    if self.shared.health.lock().failed() {
                        tracing::warn!(
                            event = "redis_unavailable",
                            "turns cannot be waited for in Redis, and are waited for as in the mode lease: {what}"
                        );
                    }
                    return Turn::Mine(Guard::nothing());
                }
            }
            let look = ends.min(Instant::now() + self.look_every);
            let woken = timeout_at(look, place.woken.notified()).await.is_ok();
            if !woken && look == ends {
                return Turn::NotYet;
            }
        }
    }
}

impl fmt::Debug for ByRedis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByRedis(..)")
    }
}

/// Who waits in this process, by token.
type Waiting = Arc<Mutex<HashMap<String, Arc<Notify>>>>;

struct Shared {
    client: Client,
    /// The connection in use. One that did not answer is left behind, whatever became of it.
    link: Mutex<Arc<Link>>,
    waiting: Waiting,
    health: Mutex<Health>,
    /// Where turns are renewed and given back, wherever their guards are dropped.
    runtime: Handle,
}

impl Shared {
    /// Runs a script, which says yes or no. A connection over which it did not is replaced: the next one may lead elsewhere.
    async fn ask(&self, script: &str, keys: &[String; 2], arguments: [&str; 2]) -> Result<bool, String> {
        let link = Arc::clone(&self.link.lock());
        let mut asked = cmd("EVAL");
        asked.arg(script).arg(keys.len()).arg(keys).arg(&arguments);
        let answer = timeout(ANSWER_TIMEOUT, async {
            let mut manager = link.manager.clone();
            let listen = async || link.manager.clone().subscribe(CHANNEL).await;
            link.listens.get_or_try_init(listen).await?;
            asked.query_async::<bool>(&mut manager).await
        });
        let what = match answer.await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it did not answer in time".to_owned(),
        };
        let mut current = self.link.lock();
        if Arc::ptr_eq(&current, &link)
            && let Ok(anew) = Link::new(&self.client, &self.waiting)
        {
            *current = Arc::new(anew);
        }
        Err(what)
    }
}

/// A connection that restores itself.
struct Link {
    manager: ConnectionManager,
    /// Whether it was told to listen to the channel; from then on it does so again by itself.
    listens: OnceCell<()>,
}

impl Link {
    fn new(client: &Client, waiting: &Waiting) -> Result<Self, RedisError> {
        let waiting = Arc::clone(waiting);
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(ANSWER_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT))
            .set_max_delay(LEFT_ALONE)
            .set_push_sender(move |push: PushInfo| {
                wake(&waiting, &push);
                Ok::<_, std::convert::Infallible>(())
            })
            .set_automatic_resubscription();
        Ok(Self {
            manager: ConnectionManager::new_lazy_with_config(client.clone(), config)?,
            listens: OnceCell::new(),
        })
    }
}

/// Wakes whom a message names, if it waits here.
fn wake(waiting: &Waiting, push: &PushInfo) {
    if push.kind == PushKind::Message
        && let Some(Value::BulkString(token)) = push.data.last()
        && let Ok(token) = std::str::from_utf8(token)
        && let Some(woken) = waiting.lock().get(token)
    {
        woken.notify_one();
    }
}

/// Whether Redis is worth asking.
#[derive(Default)]
struct Health {
    /// Until when it is left alone; after that one turn finds out for all.
    left_alone_until: Option<Instant>,
    told: Lately,
}

impl Health {
    fn may_be_asked(&mut self) -> bool {
        let now = Instant::now();
        match self.left_alone_until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                self.left_alone_until = Some(now + LEFT_ALONE);
                true
            }
        }
    }

    /// Whether it did not before.
    fn answered(&mut self) -> bool {
        self.left_alone_until.take().is_some()
    }

    /// Whether that is worth telling.
    fn failed(&mut self) -> bool {
        self.left_alone_until = Some(Instant::now() + LEFT_ALONE);
        self.told.is_worth_telling()
    }
}

/// Under which name one wish for a turn is known.
#[derive(Clone)]
struct Ticket {
    shared: Arc<Shared>,
    keys: [String; 2],
    token: String,
    life: Duration,
}

impl Ticket {
    async fn take(&self) -> Result<bool, String> {
        let life = self.life.as_millis().to_string();
        self.shared.ask(TAKE, &self.keys, [&self.token, &life]).await
    }

    // Where the following two fail, the key's life ends soon.

    async fn renew(&self) {
        let life = self.life.as_millis().to_string();
        let _ = self.shared.ask(RENEW, &self.keys, [&self.token, &life]).await;
    }

    async fn leave(self) {
        let _ = self.shared.ask(LEAVE, &self.keys, [&self.token, CHANNEL]).await;
    }
}

/// A place in line, or the turn itself. Dropped, it is given up, whatever came of it.
struct Place {
    ticket: Ticket,
    woken: Arc<Notify>,
}

impl Place {
    fn new(turns: &ByRedis, id: &ConnectionId) -> Self {
        let token = uuid::Uuid::now_v7().to_string();
        let woken = Arc::new(Notify::new());
        let waiting = &turns.shared.waiting;
        waiting.lock().insert(token.clone(), Arc::clone(&woken));
        let ticket = Ticket {
            shared: Arc::clone(&turns.shared),
            // The braces keep both on one node of a cluster.
            keys: ["turn", "queue"].map(|kind| format!("{PREFIX}:{kind}:{{{id}}}")),
            token,
            life: turns.life,
        };
        Self { ticket, woken }
    }

    /// Holds the turn until its guard is dropped.
    fn hold(self) -> Guard {
        let (guard, mut dropped) = oneshot::channel::<()>();
        let runtime = self.ticket.shared.runtime.clone();
        runtime.spawn(async move {
            while timeout(self.ticket.life / RENEWALS, &mut dropped).await.is_err() {
                self.ticket.renew().await;
            }
        });
        Guard::new(move || drop(guard))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Ticket { shared, token, .. } = &self.ticket;
        shared.waiting.lock().remove(token);
        shared.runtime.spawn(self.ticket.clone().leave());
    }
}
