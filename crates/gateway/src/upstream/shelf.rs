//! The connections that wait for their next call.
//!
//! A socket lives in the runtime that opened it. So each runtime has a shelf of its own, and no call wakes another's thread.

use std::sync::{Arc, Weak};
use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderValue, Uri};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::{self, Handle};
use tokio::time::{Instant, sleep};

use crate::upstream::exchange::Line;

/// Shorter than providers and what stands before them close idle connections, as a rule: a call must seldom meet a connection that
/// is just being closed.
const IDLE_MAX: Duration = Duration::from_secs(45);
const IDLE_AT_ONCE: usize = 256;
/// How often those that ended meanwhile are looked for.
const SWEPT_EVERY: Duration = Duration::from_secs(15);

/// Where a connection leads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) is_tls: bool,
    /// With the port, where it is not the scheme's own.
    pub(crate) host: &'a str,
}

impl<'a> Origin<'a> {
    pub(crate) fn of(uri: &'a Uri) -> Option<Self> {
        let is_tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return None,
        };
        let own_port = if is_tls { ":443" } else { ":80" };
        let host = uri.authority()?.as_str();
        Some(Self {
            is_tls,
            host: host.strip_suffix(own_port).unwrap_or(host),
        })
    }
}

/// The shelves of all runtimes.
#[derive(Default)]
pub(crate) struct Shelves {
    all: RwLock<Vec<(runtime::Id, Arc<Shelf>)>>,
}

impl Shelves {
    /// The shelf of the runtime that this is called in.
    pub(crate) fn here(self: &Arc<Self>) -> Arc<Shelf> {
        let runtime = Handle::current();
        let id = runtime.id();
        if let Some((_, shelf)) = self.all.read().iter().find(|(of, _)| *of == id) {
            return shelf.clone();
        }
        let mut all = self.all.write();
        if let Some((_, shelf)) = all.iter().find(|(of, _)| *of == id) {
            return shelf.clone();
        }
        let new = Arc::new(Shelf::default());
        all.push((id, new.clone()));
        let sweeper = Sweeper {
            shelves: Arc::downgrade(self),
            shelf: Arc::downgrade(&new),
            id,
        };
        runtime.spawn(async move { sweeper.run().await });
        new
    }
}

/// Closes what nobody calls for, as long as the runtime lasts; with it the shelf ends.
struct Sweeper {
    shelves: Weak<Shelves>,
    shelf: Weak<Shelf>,
    id: runtime::Id,
}

impl Sweeper {
    async fn run(self) {
        loop {
            sleep(SWEPT_EVERY).await;
            let Some(swept) = self.shelf.upgrade() else {
                return;
            };
            swept.sweep();
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        if let Some(shelves) = self.shelves.upgrade() {
            let mut all = shelves.all.write();
            if let Some(at) = all.iter().position(|(of, _)| *of == self.id) {
                let ended = all.swap_remove(at);
                drop(all);
                drop(ended);
            }
        }
    }
}

/// Each is taken out as it lies here and goes on with its call.
type Lines = Vec<Box<Line>>;

/// The waiting connections of one runtime: by host, the one that was used last on top.
#[derive(Default)]
pub(crate) struct Shelf {
    /// Few, so that looking through them costs less than a hash.
    waiting: Mutex<Vec<Host>>,
}

struct Host {
    name: HeaderValue,
    is_tls: bool,
    lines: Lines,
}

impl Host {
    fn is(&self, name: &[u8], is_tls: bool) -> bool {
        self.is_tls == is_tls && self.name.as_bytes() == name
    }
}

impl Shelf {
    /// A connection to this origin, if one waits, for a call that leaves now.
    pub(crate) fn take(&self, origin: Origin<'_>, now: Instant) -> Option<Box<Line>> {
        let mut waiting = self.waiting.lock();
        let name = origin.host.as_bytes();
        let lines = &mut waiting
            .iter_mut()
            .find(|host| host.is(name, origin.is_tls))?
            .lines;
        let mut line = lines.pop()?;
        if line.has_waited(now) < IDLE_MAX {
            return Some(line);
        }
        // All others wait longer.
        let old = std::mem::take(lines);
        drop(waiting);
        drop(old);
        None
    }

    /// Takes a connection back that is free.
    pub(crate) fn put(&self, line: Box<Line>) {
        let (name, is_tls) = (line.origin(), line.is_tls());
        let mut waiting = self.waiting.lock();
        let known = waiting.iter().position(|host| host.is(name.as_bytes(), is_tls));
        let at = known.unwrap_or_else(|| {
            waiting.push(Host {
                name: name.clone(),
                is_tls,
                lines: Vec::new(),
            });
            waiting.len() - 1
        });
        let lines = &mut waiting[at].lines;
        if lines.len() < IDLE_AT_ONCE {
            lines.push(line);
        }
    }

    fn sweep(&self) {
        let now = Instant::now();
        let mut ended = Vec::new();
        let mut waiting = self.waiting.lock();
        waiting.retain_mut(|host| {
            ended.extend(
                host.lines
                    .extract_if(.., |line| line.has_waited(now) >= IDLE_MAX || line.has_ended()),
            );
            !host.lines.is_empty()
        });
        drop(waiting);
        drop(ended);
    }
}
