//! How often the same thing is noted about a connection.

use std::collections::HashMap;
use std::time::Duration;

use evergrant_domain::ConnectionId;
use evergrant_domain::event::EventKind;
use parking_lot::Mutex;

/// How often an event of one kind is noted about a connection.
pub(crate) const AT_MOST_EVERY: Duration = Duration::from_secs(10);
/// Above this many entries those that are over are dropped.
const ENTRIES_MAX: usize = 4096;

/// Remembers what was noted lately.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// For each connection the kinds and when they were last noted; there are few kinds.
    noted: Mutex<HashMap<ConnectionId, Vec<(&'static str, Duration)>>>,
}

impl Throttle {
    /// Whether an event of this kind may be noted at `boot`; if so, it counts as noted.
    pub(crate) fn admits(&self, id: &ConnectionId, kind: EventKind, boot: Duration) -> bool {
        let mut noted = self.noted.lock();
        if noted.len() >= ENTRIES_MAX {
            noted.retain(|_, kinds| {
                kinds.retain(|(_, at)| boot < *at + AT_MOST_EVERY);
                !kinds.is_empty()
            });
        }
        if let Some(kinds) = noted.get_mut(id) {
            match kinds.iter_mut().find(|(noted, _)| *noted == kind.as_str()) {
                Some((_, at)) if boot < *at + AT_MOST_EVERY => return false,
                Some((_, at)) => *at = boot,
                None => kinds.push((kind.as_str(), boot)),
            }
            return true;
        }
        if noted.len() >= ENTRIES_MAX {
            return false;
        }
        noted.insert(id.clone(), vec![(kind.as_str(), boot)]);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_one_kind_is_noted_once_in_ten_seconds_for_each_connection() {
        let throttle = Throttle::default();
        let id = |name: &str| ConnectionId::parse(name).expect("a literal id");
        let admits =
            |name: &str, kind, seconds| throttle.admits(&id(name), kind, Duration::from_secs(seconds));
        assert!(admits("a", EventKind::RateLimited, 0));
        assert!(!admits("a", EventKind::RateLimited, 9));
        assert!(admits("a", EventKind::PermissionDenied, 9));
        assert!(admits("b", EventKind::RateLimited, 9));
        assert!(admits("a", EventKind::RateLimited, 10));
    }

    #[test]
    fn a_flood_of_connections_takes_bounded_memory() {
        let throttle = Throttle::default();
        for n in 0..2 * ENTRIES_MAX {
            let id = ConnectionId::parse(&format!("c{n}")).expect("a literal id");
            throttle.admits(&id, EventKind::RateLimited, Duration::ZERO);
        }
        assert_eq!(throttle.noted.lock().len(), ENTRIES_MAX);
    }
}
