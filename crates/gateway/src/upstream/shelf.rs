//! The connections that wait for their next call.
//!
//! A socket lives in the runtime that opened it. So each runtime has a shelf of its own, and no call wakes another's thread.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
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
    waiting: Mutex<HashMap<Box<str>, Hosts>>,
}

#[derive(Default)]
struct Hosts {
    plain: Lines,
    tls: Lines,
}

impl Hosts {
    fn of(&mut self, is_tls: bool) -> &mut Lines {
        if is_tls { &mut self.tls } else { &mut self.plain }
    }
}

impl Shelf {
    /// A connection to this origin, if one waits.
    pub(crate) fn take(&self, origin: Origin<'_>) -> Option<Box<Line>> {
        let mut waiting = self.waiting.lock();
        let lines = waiting.get_mut(origin.host)?.of(origin.is_tls);
        let line = lines.pop()?;
        if is_current(&line) {
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
        let Ok(host) = line.origin().to_str() else { return };
        let mut waiting = self.waiting.lock();
        if !waiting.contains_key(host) {
            waiting.insert(host.into(), Hosts::default());
        }
        let Some(hosts) = waiting.get_mut(host) else {
            return;
        };
        let lines = hosts.of(line.is_tls());
        if lines.len() < IDLE_AT_ONCE {
            lines.push(line);
        }
    }

    fn sweep(&self) {
        let mut ended = Vec::new();
        let mut waiting = self.waiting.lock();
        waiting.retain(|_, hosts| {
            for lines in [&mut hosts.plain, &mut hosts.tls] {
                ended.extend(lines.extract_if(.., |line| !is_current(line) || line.has_ended()));
            }
            !hosts.plain.is_empty() || !hosts.tls.is_empty()
        });
        drop(waiting);
        drop(ended);
    }
}

fn is_current(line: &Line) -> bool {
    line.idle_since()
        .is_some_and(|since| Instant::now() - since < IDLE_MAX)
}
