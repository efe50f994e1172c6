//! The order of those who wait: a bounded queue, first come first served within a priority and a caller,
//! and fair between callers.
//!
//! Each caller (an API key, a configured header; 0 when there is none) has its own line per priority,
//! and the lines of one priority take turns, one request a turn. With a single caller that is plain
//! first come first served; with several, one that sends ten times the others waits behind itself.
//! A higher priority is served before a lower one.
//!
//! Every operation, leaving in the middle included, costs O(1) (plus one hash lookup), and nothing is
//! kept for whoever has left. Properties, each tested against a naive model: P1 never more than `limit`
//! wait; P2 whoever entered leaves exactly once, by turn or by cancellation; P3 order within a line is
//! arrival order; P4 between two turns of one line every other non-empty line of its priority has one.

use std::collections::HashMap;

const NONE: u32 = u32::MAX;

/// Who waits, to the queue: a line of its own for each pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller {
    /// 0 is served first.
    pub priority: u8,
    /// A hash of whatever tells callers apart.
    pub id: u64,
}

/// A place in the queue: handed out by [`WaitQueue::push`], good until the request left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    slot: u32,
    serial: u64,
}

/// The queue is at its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Requests that wait, with a value of type `T` each.
#[derive(Debug)]
pub struct WaitQueue<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    lines: HashMap<Caller, Line>,
    /// One ring of lines for each priority that has any.
    turns: std::collections::BTreeMap<u8, std::collections::VecDeque<Caller>>,
    len: u32,
    serial: u64,
}

#[derive(Debug)]
struct Place<T> {
    value: Option<T>,
    caller: Caller,
    serial: u64,
    previous: u32,
    next: u32,
}

/// A caller's line. An emptied one keeps its place in the ring until its turn comes (or a sweep), so that
/// leaving costs O(1).
#[derive(Debug)]
struct Line {
    head: u32,
    tail: u32,
    len: u32,
}

impl<T> Default for WaitQueue<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            lines: HashMap::new(),
            turns: std::collections::BTreeMap::new(),
            len: 0,
            serial: 0,
        }
    }
}

impl<T> WaitQueue<T> {
    /// How many wait.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Enters `value` at the end of its caller's line.
    ///
    /// # Errors
    /// [`Full`] when `limit` wait already; `value` is dropped.
    pub fn push(&mut self, limit: u32, caller: Caller, value: T) -> Result<Ticket, Full> {
        if self.len >= limit.min(NONE - 1) {
            return Err(Full);
        }
        self.serial += 1;
        let serial = self.serial;
        let previous = self.lines.get(&caller).map_or(NONE, |line| line.tail);
        let place = Place { value: Some(value), caller, serial, previous, next: NONE };
        let slot = self.occupy(place);
        if previous != NONE {
            self.places[previous as usize].next = slot;
        }
        let line = self.lines.entry(caller).or_insert_with(|| {
            self.turns.entry(caller.priority).or_default().push_back(caller);
            Line { head: slot, tail: slot, len: 0 }
        });
        if line.len == 0 {
            line.head = slot;
        }
        line.tail = slot;
        line.len += 1;
        self.len += 1;
        Ok(Ticket { slot, serial })
    }

    fn occupy(&mut self, place: Place<T>) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.places[slot as usize] = place;
            return slot;
        }
        self.places.push(place);
        u32::try_from(self.places.len() - 1).unwrap_or(NONE)
    }

    /// Whose turn it is: the value stays in the queue.
    pub fn peek(&mut self) -> Option<(Ticket, &T)> {
        let slot = self.head()?;
        let place = &self.places[slot as usize];
        let ticket = Ticket { slot, serial: place.serial };
        place.value.as_ref().map(|value| (ticket, value))
    }

    /// Takes out whoever's turn it is; that line's next turn comes after all others of its priority.
    pub fn pop(&mut self) -> Option<T> {
        let slot = self.head()?;
        let caller = self.places[slot as usize].caller;
        if let Some(ring) = self.turns.get_mut(&caller.priority) {
            ring.rotate_left(1);
        }
        self.take(slot)
    }

    /// The first place of the line whose turn it is; forgets emptied lines on the way.
    fn head(&mut self) -> Option<u32> {
        while let Some(mut ring) = self.turns.first_entry() {
            let Some(caller) = ring.get().front().copied() else {
                ring.remove();
                continue;
            };
            match self.lines.get(&caller) {
                Some(line) if line.len > 0 => return Some(line.head),
                _ => {
                    ring.get_mut().pop_front();
                    self.lines.remove(&caller);
                }
            }
        }
        None
    }

    /// Takes out whoever holds `ticket`; `None` if its turn has come already.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let place = self.places.get(ticket.slot as usize)?;
        if place.serial != ticket.serial || place.value.is_none() {
            return None;
        }
        self.take(ticket.slot)
    }

    fn take(&mut self, slot: u32) -> Option<T> {
        let place = &mut self.places[slot as usize];
        let value = place.value.take()?;
        let (previous, next, caller) = (place.previous, place.next, place.caller);
        if previous != NONE {
            self.places[previous as usize].next = next;
        }
        if next != NONE {
            self.places[next as usize].previous = previous;
        }
        if let Some(line) = self.lines.get_mut(&caller) {
            if line.head == slot {
                line.head = next;
            }
            if line.tail == slot {
                line.tail = previous;
            }
            line.len -= 1;
        }
        self.free.push(slot);
        self.len -= 1;
        if self.len == 0 {
            self.forget_all();
        } else if self.lines.len() > 2 * self.len as usize + 64 {
            self.sweep();
        }
        Some(value)
    }

    /// Callers that came and left have piled up: forget their emptied lines. Amortised O(1).
    fn sweep(&mut self) {
        self.lines.retain(|_, line| line.len > 0);
        let lines = &self.lines;
        self.turns.retain(|_, ring| {
            ring.retain(|caller| lines.contains_key(caller));
            !ring.is_empty()
        });
    }

    /// Nobody waits: give back what a burst has taken.
    fn forget_all(&mut self) {
        self.lines.clear();
        self.turns.clear();
        self.places.clear();
        self.free.clear();
        self.places.shrink_to(1024);
        self.free.shrink_to(1024);
        self.lines.shrink_to(64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    const ANYBODY: Caller = Caller { priority: 0, id: 0 };

    #[test]
    fn one_caller_is_served_in_order() {
        let mut queue = WaitQueue::default();
        for value in 0..5 {
            queue.push(5, ANYBODY, value).expect("room");
        }
        assert_eq!(queue.push(5, ANYBODY, 5), Err(Full));
        assert_eq!(queue.peek().map(|(_, value)| *value), Some(0));
        let served: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(served, [0, 1, 2, 3, 4]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_loud_caller_waits_behind_itself() {
        let mut queue = WaitQueue::default();
        let caller = |id| Caller { priority: 1, id };
        for value in 0..10 {
            queue.push(100, caller(1), ("loud", value)).expect("room");
        }
        queue.push(100, caller(2), ("quiet", 0)).expect("room");
        queue.push(100, Caller { priority: 0, id: 9 }, ("urgent", 0)).expect("room");
        assert_eq!(queue.pop(), Some(("urgent", 0)));
        assert_eq!(queue.pop(), Some(("loud", 0)));
        assert_eq!(queue.pop(), Some(("quiet", 0)));
        assert_eq!(queue.pop(), Some(("loud", 1)));
    }

    #[test]
    fn a_ticket_is_good_once() {
        let mut queue = WaitQueue::default();
        let first = queue.push(9, ANYBODY, 1).expect("room");
        let second = queue.push(9, ANYBODY, 2).expect("room");
        assert_eq!(queue.remove(first), Some(1));
        assert_eq!(queue.remove(first), None);
        let third = queue.push(9, ANYBODY, 3).expect("room");
        assert_eq!(queue.remove(first), None, "the place is somebody else's now");
        assert_eq!(queue.pop(), Some(2));
        assert_eq!(queue.remove(second), None);
        assert_eq!(queue.remove(third), Some(3));
    }

    #[test]
    fn those_who_left_cost_nothing() {
        let mut queue = WaitQueue::default();
        queue.push(1_000, ANYBODY, 0).expect("room");
        for round in 1..100_000_u64 {
            let caller = Caller { priority: 0, id: round };
            let ticket = queue.push(1_000, caller, round).expect("room");
            queue.remove(ticket).expect("still there");
        }
        assert_eq!(queue.len(), 1);
        assert!(queue.places.len() < 10 && queue.lines.len() < 100);
    }

    /// The same rules over plain vectors, in O(n).
    #[derive(Default)]
    struct Naive {
        lines: Vec<(Caller, VecDeque<u32>)>,
    }

    impl Naive {
        fn push(&mut self, caller: Caller, value: u32) {
            match self.lines.iter_mut().find(|(c, _)| *c == caller) {
                Some((_, line)) => line.push_back(value),
                None => self.lines.push((caller, VecDeque::from([value]))),
            }
        }
        /// An emptied line keeps its turn until it comes; when nobody waits all is forgotten.
        fn pop(&mut self) -> Option<u32> {
            loop {
                let top = self.lines.iter().map(|(c, _)| c.priority).min()?;
                let at = self.lines.iter().position(|(c, _)| c.priority == top)?;
                let (caller, mut line) = self.lines.remove(at);
                if let Some(value) = line.pop_front() {
                    self.lines.push((caller, line));
                    self.forget();
                    return Some(value);
                }
            }
        }
        fn forget(&mut self) {
            if self.lines.iter().all(|(_, line)| line.is_empty()) {
                self.lines.clear();
            }
        }
        fn remove(&mut self, value: u32) -> bool {
            for (_, line) in &mut self.lines {
                if let Some(at) = line.iter().position(|v| *v == value) {
                    line.remove(at);
                    self.forget();
                    return true;
                }
            }
            false
        }
    }

    proptest! {
        #[test]
        fn behaves_like_the_naive_model(
            steps in proptest::collection::vec((0_u8..10, 0_u8..2, 0_u64..4, any::<u16>()), 0..300),
        ) {
            let (mut queue, mut naive) = (WaitQueue::default(), Naive::default());
            let mut tickets: Vec<(Ticket, u32)> = Vec::new();
            let mut entered = 0_u32;
            for (what, priority, id, pick) in steps {
                match what {
                    0..6 => {
                        let caller = Caller { priority, id };
                        if let Ok(ticket) = queue.push(20, caller, entered) {
                            naive.push(caller, entered);
                            tickets.push((ticket, entered));
                        } else {
                            prop_assert_eq!(queue.len(), 20);
                        }
                        entered += 1;
                    }
                    6..8 if !tickets.is_empty() => {
                        let (ticket, value) = tickets.swap_remove(usize::from(pick) % tickets.len());
                        prop_assert_eq!(queue.remove(ticket).is_some(), naive.remove(value));
                    }
                    _ => prop_assert_eq!(queue.pop(), naive.pop()),
                }
                let waiting: usize = naive.lines.iter().map(|(_, line)| line.len()).sum();
                prop_assert_eq!(queue.len() as usize, waiting);
            }
        }
    }
}
