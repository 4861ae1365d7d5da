//! Who waits for a budget, and whose turn it is: the urgent first, callers in turn within a lane, and nobody never.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use evergrant_domain::call_budget::Lane;

/// How many may wait for one budget. At HubSpot's rate the last of them would wait for minutes.
const WAITING_MAX: usize = 2048;
/// How many of one caller, so that no caller keeps the others out of the queue.
const OF_ONE_CALLER_MAX: usize = WAITING_MAX / 4;
/// Every so many turns one goes to the less urgent, however many of the urgent wait.
const LESS_URGENT_EVERY: usize = 8;

/// Whoever is in the queue, in the order of arrival.
pub(super) struct Queue<W> {
    /// Each with its callers in the order of their turns.
    lanes: [VecDeque<Line<W>>; Lane::ALL.len()],
    arrived: u64,
    turns: usize,
}

/// One caller's in one lane.
struct Line<W> {
    caller: Option<Arc<str>>,
    waiting: VecDeque<(u64, W)>,
}

/// Where in the queue somebody stands.
#[derive(Debug, Clone)]
pub(super) struct Place {
    lane: Lane,
    caller: Option<Arc<str>>,
    arrived: u64,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self {
            lanes: [const { VecDeque::new() }; Lane::ALL.len()],
            arrived: 0,
            turns: 0,
        }
    }
}

impl<W> Queue<W> {
    /// Takes a place at the end; none where the queue is full, or the caller has too many in it.
    pub(super) fn push(&mut self, lane: Lane, caller: Option<Arc<str>>, waiter: W) -> Option<Place> {
        let of_caller: usize = self
            .lanes
            .iter()
            .flatten()
            .filter(|line| line.caller == caller)
            .map(|line| line.waiting.len())
            .sum();
        if of_caller >= OF_ONE_CALLER_MAX || self.len() >= WAITING_MAX {
            return None;
        }
        self.arrived += 1;
        let place = Place {
            lane,
            caller: caller.clone(),
            arrived: self.arrived,
        };
        let lines = &mut self.lanes[lane as usize];
        match lines.iter_mut().find(|line| line.caller == caller) {
            Some(own) => own.waiting.push_back((self.arrived, waiter)),
            None => lines.push_back(Line {
                caller,
                waiting: VecDeque::from([(self.arrived, waiter)]),
            }),
        }
        Some(place)
    }

    /// Whose turn it is.
    pub(super) fn pop(&mut self) -> Option<W> {
        let urgent = self.most_urgent()?;
        self.turns += 1;
        let lane = if self.turns.is_multiple_of(LESS_URGENT_EVERY) {
            // Of the others the one that has waited longest.
            let longest = Lane::ALL
                .into_iter()
                .filter(|lane| *lane > urgent)
                .filter_map(|lane| Some((self.oldest(lane)?, lane)))
                .min();
            longest.map_or(urgent, |(_, lane)| lane)
        } else {
            urgent
        };
        let lines = &mut self.lanes[lane as usize];
        let mut first = lines.pop_front()?;
        let (_, waiter) = first.waiting.pop_front()?;
        if !first.waiting.is_empty() {
            lines.push_back(first);
        }
        Some(waiter)
    }

    /// Gives up a place. `false` where it was called already.
    pub(super) fn leave(&mut self, place: &Place) -> bool {
        let lines = &mut self.lanes[place.lane as usize];
        let Some(index) = lines.iter().position(|line| line.caller == place.caller) else {
            return false;
        };
        let waiting = &mut lines[index].waiting;
        let Ok(at) = waiting.binary_search_by_key(&place.arrived, |(arrived, _)| *arrived) else {
            return false;
        };
        waiting.remove(at);
        if waiting.is_empty() {
            lines.remove(index);
        }
        true
    }

    /// Takes out those of whom this is true, told by how many are called before them as things are.
    pub(super) fn take_if(&mut self, mut is_so: impl FnMut(usize, &W) -> bool) -> Vec<W> {
        let turns = self.turns();
        let mut taken = Vec::new();
        for lines in &mut self.lanes {
            for line in lines.iter_mut() {
                let (out, stay): (Vec<_>, Vec<_>) = line
                    .waiting
                    .drain(..)
                    .partition(|(arrived, waiter)| is_so(turns[arrived], waiter));
                taken.extend(out.into_iter().map(|(_, waiter)| waiter));
                line.waiting.extend(stay);
            }
            lines.retain(|line| !line.waiting.is_empty());
        }
        taken
    }

    /// How many are called before each.
    fn turns(&self) -> HashMap<u64, usize> {
        let mut shadow = Queue {
            lanes: self.lanes.each_ref().map(|lines| {
                let lines = lines.iter().map(|line| Line {
                    caller: None,
                    waiting: line
                        .waiting
                        .iter()
                        .map(|(arrived, _)| (*arrived, *arrived))
                        .collect(),
                });
                lines.collect()
            }),
            arrived: self.arrived,
            turns: self.turns,
        };
        std::iter::from_fn(|| shadow.pop())
            .enumerate()
            .map(|(turn, arrived)| (arrived, turn))
            .collect()
    }

    /// The most urgent lane in which anybody waits.
    pub(super) fn most_urgent(&self) -> Option<Lane> {
        Lane::ALL
            .into_iter()
            .find(|lane| !self.lanes[*lane as usize].is_empty())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.most_urgent().is_none()
    }

    pub(super) fn len(&self) -> usize {
        Lane::ALL.into_iter().map(|lane| self.len_of(lane)).sum()
    }

    pub(super) fn len_of(&self, lane: Lane) -> usize {
        let lines = &self.lanes[lane as usize];
        lines.iter().map(|line| line.waiting.len()).sum()
    }

    /// How many will have been called before a newcomer of this lane, at least.
    pub(super) fn ahead_of(&self, lane: Lane, caller: Option<&Arc<str>>) -> usize {
        let own = self.lanes[lane as usize]
            .iter()
            .find(|line| line.caller.as_ref() == caller)
            .map_or(0, |line| line.waiting.len());
        // Callers take turns: of the others in this lane no more are before it than of its own.
        let in_turn: usize = self.lanes[lane as usize]
            .iter()
            .map(|line| line.waiting.len().min(own))
            .sum();
        let more_urgent: usize = Lane::ALL
            .into_iter()
            .filter(|other| *other < lane)
            .map(|other| self.len_of(other))
            .sum();
        // One turn in eight may be theirs, whoever waits before them.
        in_turn + more_urgent.min(own * (LESS_URGENT_EVERY - 1))
    }

    fn oldest(&self, lane: Lane) -> Option<u64> {
        let fronts = self.lanes[lane as usize].iter();
        fronts
            .filter_map(|line| line.waiting.front())
            .map(|(arrived, _)| *arrived)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str) -> Arc<str> {
        name.into()
    }

    fn queue(waiting: &[(Lane, &'static str, u32)]) -> Queue<&'static str> {
        let mut queue = Queue::default();
        for (lane, name, times) in waiting {
            for _ in 0..*times {
                queue.push(*lane, Some(caller(name)), *name).unwrap();
            }
        }
        queue
    }

    fn order(mut queue: Queue<&'static str>) -> String {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn the_urgent_go_first() {
        let order = order(queue(&[
            (Lane::Backfill, "b", 2),
            (Lane::Sync, "s", 2),
            (Lane::Interactive, "i", 2),
        ]));
        assert_eq!(order, "iissbb");
    }

    #[test]
    fn callers_take_turns_however_many_calls_they_have() {
        let order = order(queue(&[
            (Lane::Sync, "a", 5),
            (Lane::Sync, "b", 2),
            (Lane::Sync, "c", 1),
        ]));
        assert_eq!(order, "abcabaaa");
    }

    #[test]
    fn one_turn_in_eight_is_for_the_less_urgent() {
        let order = order(queue(&[
            (Lane::Backfill, "b", 2),
            (Lane::Sync, "s", 2),
            (Lane::Interactive, "i", 20),
        ]));
        assert_eq!(order, "iiiiiiibiiiiiiibiiiiiiss");
    }

    #[test]
    fn whoever_leaves_is_not_called() {
        let mut queue = Queue::default();
        let places: Vec<_> = ["1", "2", "3"]
            .into_iter()
            .map(|name| queue.push(Lane::Sync, Some(caller("a")), name).unwrap())
            .collect();
        assert!(queue.leave(&places[1]));
        assert!(!queue.leave(&places[1]), "once only");
        assert_eq!(queue.pop(), Some("1"));
        assert!(!queue.leave(&places[0]), "was called");
        assert_eq!(queue.take_if(|ahead, name| ahead == 0 && *name == "2"), [""; 0]);
        assert_eq!(queue.take_if(|ahead, name| ahead == 0 && *name == "3"), ["3"]);
        assert!(queue.is_empty() && queue.pop().is_none());
        assert!(!queue.leave(&places[2]));
    }

    #[test]
    fn the_queue_is_bounded_and_no_caller_fills_it() {
        let mut queue = Queue::default();
        for _ in 0..OF_ONE_CALLER_MAX {
            assert!(queue.push(Lane::Sync, Some(caller("a")), ()).is_some());
        }
        assert!(queue.push(Lane::Interactive, Some(caller("a")), ()).is_none());
        for n in 0..WAITING_MAX - OF_ONE_CALLER_MAX {
            assert!(queue.push(Lane::Sync, Some(caller(&n.to_string())), ()).is_some());
        }
        assert!(queue.push(Lane::Sync, Some(caller("last")), ()).is_none());
        assert_eq!(queue.len(), WAITING_MAX);
    }

    #[test]
    fn what_is_ahead_of_a_newcomer_is_never_more_than_it_will_see() {
        let mut queue = queue(&[
            (Lane::Interactive, "i", 30),
            (Lane::Sync, "a", 12),
            (Lane::Sync, "b", 3),
            (Lane::Backfill, "c", 1),
        ]);
        for (lane, name) in [
            (Lane::Interactive, "new"),
            (Lane::Interactive, "i"),
            (Lane::Sync, "new"),
            (Lane::Sync, "b"),
            (Lane::Backfill, "new"),
        ] {
            let caller = caller(name);
            let ahead = queue.ahead_of(lane, Some(&caller));
            let mut seen = 0;
            queue.push(lane, Some(caller), "?").unwrap();
            let mut after = Vec::new();
            while let Some(next) = queue.pop() {
                after.push(next);
            }
            seen += after.iter().take_while(|name| **name != "?").count();
            assert!(ahead <= seen, "{lane:?} {name}: {ahead} > {seen}");
            queue = self::queue(&[
                (Lane::Interactive, "i", 30),
                (Lane::Sync, "a", 12),
                (Lane::Sync, "b", 3),
                (Lane::Backfill, "c", 1),
            ]);
        }
    }
}
