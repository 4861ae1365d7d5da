//! No more calls to a host that answers none: [`evergrant_domain::upstream_breaker`] for each host of this process.
//!
//! While no host fails, a call costs one look at a number.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use evergrant_domain::upstream_breaker::{Passage, Reached, UpstreamBreaker};
use http::Uri;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The hosts that failed lately.
pub(crate) struct Breakers {
    began: Instant,
    failing: AtomicUsize,
    hosts: papaya::HashMap<Host, Arc<Mutex<UpstreamBreaker>>>,
}

/// A call on its way to a host. It is told what became of it; otherwise it was given up.
pub(crate) struct Passing<'a> {
    breakers: &'a Breakers,
    /// What this call finds out for all others.
    probe: Option<Arc<Mutex<UpstreamBreaker>>>,
}

impl Default for Breakers {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            failing: AtomicUsize::new(0),
            hosts: papaya::HashMap::new(),
        }
    }
}

impl Breakers {
    /// Refuses where nothing is sent to the host for this long.
    pub(crate) fn look(&self, uri: &Uri) -> Result<(), Duration> {
        let closed_for = self
            .of(uri)
            .and_then(|breaker| breaker.lock().closed_for(self.now()));
        closed_for.map_or(Ok(()), Err)
    }

    /// Lets a call through that is sent now, or refuses it for this long.
    pub(crate) fn pass(&self, uri: &Uri) -> Result<Passing<'_>, Duration> {
        let mut probe = None;
        if let Some(breaker) = self.of(uri) {
            let passage = breaker.lock().passage(self.now());
            match passage {
                Passage::Open => {}
                Passage::Probe => probe = Some(breaker),
                Passage::Closed(pause) => return Err(pause),
            }
        }
        Ok(Passing {
            breakers: self,
            probe,
        })
    }

    fn of(&self, uri: &Uri) -> Option<Arc<Mutex<UpstreamBreaker>>> {
        if self.failing.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.hosts.pin().get(&HostRef::of(uri)?).cloned()
    }

    fn works(&self, uri: &Uri) {
        if self.failing.load(Ordering::Acquire) > 0
            && let Some(host) = HostRef::of(uri)
            && self.hosts.pin().remove(&host).is_some()
        {
            self.failing.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn fails(&self, uri: &Uri, as_probe: bool) {
        let Some(host) = HostRef::of(uri) else {
            return;
        };
        let now = self.now();
        let hosts = self.hosts.pin();
        let breaker = if let Some(known) = hosts.get(&host) {
            known.clone()
        } else {
            let new = Arc::new(Mutex::new(UpstreamBreaker::new(now)));
            match hosts.try_insert(host.owned(), new) {
                Ok(breaker) => {
                    self.failing.fetch_add(1, Ordering::AcqRel);
                    breaker.clone()
                }
                Err(taken) => taken.current.clone(),
            }
        };
        breaker.lock().failed(as_probe, now);
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Passing<'_> {
    /// Says what became of the call.
    pub(crate) fn tell(mut self, uri: &Uri, reached: Reached) {
        let was_probe = self.probe.take().is_some();
        match reached {
            Reached::Yes => self.breakers.works(uri),
            Reached::No => self.breakers.fails(uri, was_probe),
        }
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        if let Some(breaker) = &self.probe {
            breaker.lock().given_up();
        }
    }
}

/// Scheme and authority.
#[derive(PartialEq, Eq)]
struct Host {
    scheme: Box<str>,
    authority: Box<str>,
}

/// The same, borrowed.
#[derive(PartialEq, Eq, Hash)]
struct HostRef<'a> {
    scheme: &'a str,
    authority: &'a str,
}

impl<'a> HostRef<'a> {
    fn of(uri: &'a Uri) -> Option<Self> {
        Some(Self {
            scheme: uri.scheme_str()?,
            authority: uri.authority()?.as_str(),
        })
    }

    fn owned(&self) -> Host {
        Host {
            scheme: self.scheme.into(),
            authority: self.authority.into(),
        }
    }
}

impl<'a> From<&'a Host> for HostRef<'a> {
    fn from(host: &'a Host) -> Self {
        Self {
            scheme: &host.scheme,
            authority: &host.authority,
        }
    }
}

impl Hash for Host {
    fn hash<H: Hasher>(&self, state: &mut H) {
        HostRef::from(self).hash(state);
    }
}

impl papaya::Equivalent<Host> for HostRef<'_> {
    fn equivalent(&self, host: &Host) -> bool {
        *self == HostRef::from(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &'static str) -> Uri {
        Uri::from_static(text)
    }

    async fn fail(breakers: &Breakers, uri: &Uri, times: u32) {
        for _ in 0..times {
            breakers
                .pass(uri)
                .unwrap_or_else(|_| panic!("open"))
                .tell(uri, Reached::No);
            tokio::time::advance(Duration::from_millis(150)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_host_s_trouble_is_no_other_s_and_one_answer_ends_it() {
        let breakers = Breakers::default();
        let (bad, other) = (uri("https://a.test/x"), uri("http://a.test/x"));
        fail(&breakers, &bad, 20).await;
        assert!(breakers.look(&bad).is_err() && breakers.pass(&bad).is_err());
        assert!(breakers.look(&other).is_ok() && breakers.pass(&other).is_ok());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(breakers.look(&bad).is_ok());
        let probe = breakers.pass(&bad).unwrap_or_else(|_| panic!("a probe"));
        assert!(breakers.pass(&bad).is_err(), "one at a time");
        probe.tell(&uri("https://a.test/y"), Reached::Yes);
        assert!(breakers.pass(&bad).is_ok());
        assert_eq!(breakers.failing.load(Ordering::Relaxed), 0);
        assert!(breakers.hosts.pin().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_between_begins_the_count_anew() {
        let breakers = Breakers::default();
        let uri = uri("https://a.test/x");
        for _ in 0..3 {
            fail(&breakers, &uri, 19).await;
            breakers
                .pass(&uri)
                .unwrap_or_else(|_| panic!("open"))
                .tell(&uri, Reached::Yes);
        }
        assert!(breakers.pass(&uri).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_makes_room_for_the_next() {
        let breakers = Breakers::default();
        let uri = uri("https://a.test/x");
        fail(&breakers, &uri, 20).await;
        tokio::time::advance(Duration::from_secs(2)).await;
        drop(breakers.pass(&uri));
        assert!(breakers.pass(&uri).is_ok_and(|passing| passing.probe.is_some()));
    }
}
