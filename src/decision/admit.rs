//! The order of those who wait: a bounded queue, first come first served within a priority and a caller,
//! and fair between callers.
//!
//! Each caller (an API key, a configured header; 0 when there is none) has its own line per priority. A
//! higher priority is served before a lower one; within one, the caller that was served least lately, and
//! of equals whoever came first. With a single caller that is plain first come first served; one that
//! sends ten times the others waits behind itself. How much a caller was served is a count of its turns,
//! each forgotten with a time constant of [`MEMORY_MS`].
//!
//! Taking turns one by one instead was simulated as well: it shares the slots as evenly, but a caller below
//! its share then waits behind the one above it, and the p99 wait of the others rises by 50 to 90 % where
//! this raises it by 20 % at most (four slots, five callers at a load of 62 to 87 %).
//!
//! Every operation costs O(log callers that wait), leaving in the middle included. Of whoever has left only
//! the count is kept, of [`MOST_REMEMBERED`] callers. Properties, each tested against a naive model: P1
//! never more than `limit` wait; P2 whoever entered leaves exactly once, by turn, by cancellation or because
//! it was crowded out; P3 order within a line is arrival order; P4 the turn is the least served caller's; P5
//! one caller at ten times the others' rate raises their p99 wait by no more than a fifth, and none of them
//! is refused.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

/// After so long a turn counts for 1/e of what it did: many times as long as a request takes.
const MEMORY_MS: f64 = 300_000.0;
/// Callers of which nobody waits that are remembered.
const MOST_REMEMBERED: usize = 1_024;

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
    /// The lines in which somebody waits, in the order of their turns.
    turns: BTreeSet<Turn>,
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

/// A caller's line.
#[derive(Debug, Clone, Copy)]
struct Line {
    head: u32,
    tail: u32,
    len: u32,
    served: Served,
}

/// How much a caller was served: the logarithm of the sum of e^(t / [`MEMORY_MS`]) over its turns at t. In
/// this scale forgetting changes no order, so nothing has to be kept up to date.
#[derive(Debug, Clone, Copy)]
struct Served(f64);

impl Served {
    const NEVER: Self = Self(f64::NEG_INFINITY);

    fn once_more(self, now_ms: u64) -> Self {
        let turn = now_ms as f64 / MEMORY_MS;
        let (more, less) = if self.0 > turn { (self.0, turn) } else { (turn, self.0) };
        Self(more + (less - more).exp().ln_1p())
    }
}

impl PartialEq for Served {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Served {}

impl PartialOrd for Served {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Served {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Where a line stands: compared from the first field to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    priority: u8,
    served: Served,
    /// When its first request came.
    serial: u64,
    id: u64,
}

impl Turn {
    fn caller(self) -> Caller {
        Caller { priority: self.priority, id: self.id }
    }
}

impl<T> Default for WaitQueue<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            lines: HashMap::new(),
            turns: BTreeSet::new(),
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
        let line = self.lines.get(&caller).copied().unwrap_or(Line::EMPTY);
        let place = Place { value: Some(value), caller, serial, previous: line.tail, next: NONE };
        let slot = self.occupy(place);
        if line.len == 0 {
            self.turns.insert(Turn {
                priority: caller.priority,
                served: line.served,
                serial,
                id: caller.id,
            });
        } else {
            self.places[line.tail as usize].next = slot;
        }
        let head = if line.len == 0 { slot } else { line.head };
        self.lines.insert(caller, Line { head, tail: slot, len: line.len + 1, ..line });
        self.len += 1;
        Ok(Ticket { slot, serial })
    }

    /// Makes room in a full queue for one more of `caller`, where that is fair: takes out the last of the
    /// longest line of the lowest priority, if that is below the caller's, or the same and its line longer
    /// than the caller's will be. So whoever floods the queue crowds out nobody but itself. Costs a look at
    /// each line.
    pub fn crowd_out(&mut self, caller: Caller) -> Option<T> {
        let waiting = self.lines.iter().filter(|(_, line)| line.len > 0);
        let (other, line) = waiting.max_by_key(|(other, line)| (other.priority, line.len))?;
        let own = self.lines.get(&caller).map_or(0, |line| line.len);
        let gives_way = match other.priority.cmp(&caller.priority) {
            Ordering::Greater => true,
            Ordering::Equal => line.len > own + 1,
            Ordering::Less => false,
        };
        let last = line.tail;
        if gives_way { self.take(last) } else { None }
    }

    fn occupy(&mut self, place: Place<T>) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.places[slot as usize] = place;
            return slot;
        }
        self.places.push(place);
        u32::try_from(self.places.len() - 1).unwrap_or(NONE)
    }

    /// Takes out whoever's turn it is.
    pub fn pop(&mut self, now_ms: u64) -> Option<T> {
        let turn = self.turns.pop_first()?;
        let line = self.lines.get_mut(&turn.caller())?;
        line.served = line.served.once_more(now_ms);
        let head = line.head;
        self.turns.insert(Turn { served: line.served, ..turn });
        let value = self.take(head);
        self.forget();
        value
    }

    /// Takes out whoever holds `ticket`; `None` if its turn has come already.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let place = self.places.get(ticket.slot as usize)?;
        if place.serial != ticket.serial || place.value.is_none() {
            return None;
        }
        let value = self.take(ticket.slot);
        self.forget();
        value
    }

    fn take(&mut self, slot: u32) -> Option<T> {
        let place = &mut self.places[slot as usize];
        let (previous, next, caller) = (place.previous, place.next, place.caller);
        let line = self.lines.get_mut(&caller)?;
        let before = line.turn(caller, &self.places);
        let value = self.places[slot as usize].value.take()?;
        if previous != NONE {
            self.places[previous as usize].next = next;
        }
        if next != NONE {
            self.places[next as usize].previous = previous;
        }
        if line.head == slot {
            line.head = next;
        }
        if line.tail == slot {
            line.tail = previous;
        }
        line.len -= 1;
        let after = line.turn(caller, &self.places);
        if before != after {
            before.map(|turn| self.turns.remove(&turn));
            after.map(|turn| self.turns.insert(turn));
        }
        if line.len == 0 && line.served == Served::NEVER {
            self.lines.remove(&caller);
        }
        self.free.push(slot);
        self.len -= 1;
        Some(value)
    }

    /// Gives back what a burst has taken, and forgets those of whom nobody waits when they are too many.
    /// Amortised O(1).
    fn forget(&mut self) {
        if self.len == 0 && self.places.len() > 1_024 {
            self.places = Vec::new();
            self.free = Vec::new();
        }
        if self.lines.len() > self.turns.len() + MOST_REMEMBERED {
            self.lines.retain(|_, line| line.len > 0);
        }
    }
}

impl Line {
    const EMPTY: Self = Self { head: NONE, tail: NONE, len: 0, served: Served::NEVER };

    /// Where it stands, if somebody waits in it.
    fn turn<T>(&self, caller: Caller, places: &[Place<T>]) -> Option<Turn> {
        let head = places.get(self.head as usize).filter(|_| self.len > 0)?;
        let Caller { priority, id } = caller;
        Some(Turn { priority, served: self.served, serial: head.serial, id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANYBODY: Caller = Caller { priority: 0, id: 0 };

    fn caller(priority: u8, id: u64) -> Caller {
        Caller { priority, id }
    }

    #[test]
    fn one_caller_is_served_in_order() {
        let mut queue = WaitQueue::default();
        for value in 0..5 {
            queue.push(5, ANYBODY, value).expect("room");
        }
        assert_eq!(queue.push(5, ANYBODY, 5), Err(Full));
        let served: Vec<_> = std::iter::from_fn(|| queue.pop(7)).collect();
        assert_eq!(served, [0, 1, 2, 3, 4]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_loud_caller_waits_behind_itself() {
        let mut queue = WaitQueue::default();
        for value in 0..10 {
            queue.push(100, caller(1, 1), ("loud", value)).expect("room");
        }
        queue.push(100, caller(1, 2), ("quiet", 0)).expect("room");
        queue.push(100, caller(0, 9), ("urgent", 0)).expect("room");
        assert_eq!(queue.pop(0), Some(("urgent", 0)));
        assert_eq!(queue.pop(0), Some(("loud", 0)), "of equals whoever came first");
        assert_eq!(queue.pop(0), Some(("quiet", 0)));
        assert_eq!(queue.pop(0), Some(("loud", 1)));
        // It has been served twice by now, and the other once.
        queue.push(100, caller(1, 2), ("quiet", 1)).expect("room");
        assert_eq!(queue.pop(0), Some(("quiet", 1)));
        // Long afterwards that is forgotten but for the order of equals.
        queue.push(100, caller(1, 3), ("new", 0)).expect("room");
        assert_eq!(queue.pop(u64::from(u32::MAX)), Some(("new", 0)));
    }

    #[test]
    fn whoever_floods_a_full_queue_crowds_out_itself() {
        let mut queue = WaitQueue::default();
        for value in 0..10 {
            queue.push(10, caller(5, 1), value).expect("room");
        }
        assert_eq!(queue.crowd_out(caller(5, 1)), None, "its own line is the longest");
        // Others take their share, and no more than that.
        for value in 0..5 {
            assert_eq!(queue.crowd_out(caller(5, 2)), Some(9 - value), "the last of the long line");
            queue.push(10, caller(5, 2), 100 + value).expect("room");
        }
        assert_eq!(queue.crowd_out(caller(5, 2)), None, "both have half");
        assert_eq!(queue.crowd_out(caller(6, 3)), None, "those before it are worth more");
        assert!(queue.crowd_out(caller(4, 3)).is_some(), "those after it are worth less");
        queue.push(10, caller(4, 3), 200).expect("room");
        assert_eq!((queue.pop(0), queue.len()), (Some(200), 9));
    }

    /// Four callers at an even rate and one at `loud` times that, before four slots; arrivals and service
    /// times are drawn, the mean service takes a second. The quiet ones' p99 wait in seconds, and how many of
    /// them are refused.
    fn quiet_ones(rate: f64, loud: f64, seed: u64) -> (f64, usize) {
        const SLOTS: usize = 4;
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut drawn = |rate: f64| -(1.0 - chance.f64()).ln() / rate;
        let mut arrivals: Vec<(f64, usize)> = Vec::new();
        for (id, rate) in [rate, rate, rate, rate, rate * loud].into_iter().enumerate() {
            let mut at = drawn(rate);
            while at < 20_000.0 {
                arrivals.push((at, id));
                at += drawn(rate);
            }
        }
        arrivals.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut queue = WaitQueue::default();
        let mut free_at = [0.0_f64; SLOTS];
        let (mut waits, mut refused) = (Vec::new(), 0);
        for (at, id) in arrivals {
            // What comes free before this arrival serves those who wait.
            while !queue.is_empty() {
                let slot = free_at.iter_mut().min_by(|a, b| a.total_cmp(b)).expect("slots");
                if *slot > at {
                    break;
                }
                let now = std::time::Duration::from_secs_f64(*slot);
                let now_ms = u64::try_from(now.as_millis()).expect("hours");
                let (came, whose): (f64, usize) = queue.pop(now_ms).expect("waits");
                if whose < SLOTS {
                    waits.push(*slot - came);
                }
                *slot += drawn(1.0);
            }
            let slot = free_at.iter_mut().min_by(|a, b| a.total_cmp(b)).expect("slots");
            if *slot <= at {
                if id < SLOTS {
                    waits.push(0.0);
                }
                *slot = at + drawn(1.0);
                continue;
            }
            let whose = caller(5, id as u64);
            let crowded_out = if queue.len() < 100 { None } else { queue.crowd_out(whose) };
            let gone = crowded_out.map(|(_, other)| other);
            let gone = if queue.push(100, whose, (at, id)).is_err() { Some(id) } else { gone };
            refused += usize::from(gone.is_some_and(|id| id < SLOTS));
        }
        waits.sort_by(f64::total_cmp);
        (waits[waits.len() * 99 / 100], refused)
    }

    #[test]
    fn ten_times_the_rate_of_the_others_raises_their_p99_wait_by_no_fifth() {
        for rate in [0.5, 0.6, 0.7] {
            for seed in 0..5 {
                let (even, loud) = (quiet_ones(rate, 1.0, seed), quiet_ones(rate, 10.0, seed));
                assert!(loud.0 <= even.0 * 1.2, "{rate}, seed {seed}: {even:?} -> {loud:?}");
                assert_eq!((even.1, loud.1), (0, 0), "{rate}, seed {seed}: none is refused");
            }
        }
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
        assert_eq!(queue.pop(0), Some(2));
        assert_eq!(queue.remove(second), None);
        assert_eq!(queue.remove(third), Some(3));
    }

    #[test]
    fn those_who_left_cost_nothing() {
        let mut queue = WaitQueue::default();
        queue.push(1_000, ANYBODY, 0).expect("room");
        for round in 1..100_000_u64 {
            let ticket = queue.push(1_000, caller(0, round), round).expect("room");
            queue.remove(ticket).expect("still there");
        }
        assert_eq!(queue.len(), 1);
        assert!(queue.places.len() < 10 && queue.lines.len() < 10 && queue.turns.len() == 1);
        for round in 1..100_000_u64 {
            queue.push(1_000, caller(0, round), round).expect("room");
            queue.pop(round).expect("somebody waits");
        }
        assert!(queue.lines.len() <= MOST_REMEMBERED + 2, "{}", queue.lines.len());
    }

    /// The same rules over plain vectors, in O(n).
    #[derive(Default)]
    struct Naive {
        /// In the order of their coming.
        waiting: Vec<(Caller, u32)>,
        turns: Vec<(Caller, u64)>,
    }

    impl Naive {
        /// What the caller's turns still count for at `now`.
        fn served(&self, caller: Caller, now: u64) -> f64 {
            let own = self.turns.iter().filter(|(other, _)| *other == caller);
            own.map(|(_, at)| ((*at as f64 - now as f64) / MEMORY_MS).exp()).sum()
        }
        fn pop(&mut self, now: u64) -> Option<u32> {
            let next = self.waiting.iter().enumerate().min_by(|(n, (a, _)), (m, (b, _))| {
                let served = |caller| self.served(caller, now);
                a.priority.cmp(&b.priority).then_with(|| {
                    let (x, y) = (served(*a), served(*b));
                    // Sums of the same terms in another order.
                    let same = (x - y).abs() <= 1e-9 * x.max(y);
                    if same { n.cmp(m) } else { x.total_cmp(&y) }
                })
            });
            let (at, (caller, value)) = next.map(|(at, one)| (at, *one))?;
            self.turns.push((caller, now));
            self.waiting.remove(at);
            Some(value)
        }
        fn remove(&mut self, value: u32) -> bool {
            let at = self.waiting.iter().position(|(_, v)| *v == value);
            at.map(|at| self.waiting.remove(at)).is_some()
        }
    }

    proptest! {
        #[test]
        fn behaves_like_the_naive_model(
            steps in proptest::collection::vec((0_u8..11, 0_u8..2, 0_u64..4, any::<u16>()), 0..300),
        ) {
            let (mut queue, mut naive) = (WaitQueue::default(), Naive::default());
            let mut tickets: Vec<(Ticket, u32)> = Vec::new();
            let (mut entered, mut now) = (0_u32, 0_u64);
            for (what, priority, id, pick) in steps {
                // At moments that differ, so that no two callers were served as much by chance.
                now += 1_000 + u64::from(pick);
                let caller = Caller { priority, id };
                match what {
                    0..6 => {
                        if let Ok(ticket) = queue.push(20, caller, entered) {
                            naive.waiting.push((caller, entered));
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
                    8 => {
                        let mine = |naive: &Naive, c: Caller| {
                            naive.waiting.iter().filter(|(other, _)| *other == c).count()
                        };
                        let own = mine(&naive, caller);
                        if let Some(value) = queue.crowd_out(caller) {
                            let at = naive.waiting.iter().position(|(_, v)| *v == value);
                            let (other, _) = naive.waiting[at.expect("it waited")];
                            let longest = naive.waiting.iter().map(|(c, _)| mine(&naive, *c)).max();
                            prop_assert!(other.priority > priority || mine(&naive, other) > own + 1);
                            prop_assert!(other.priority == 1 || Some(mine(&naive, other)) == longest);
                            let last = naive.waiting.iter().rfind(|(c, _)| *c == other);
                            prop_assert_eq!(last.map(|(_, v)| *v), Some(value));
                            naive.remove(value);
                        }
                    }
                    _ => prop_assert_eq!(queue.pop(now), naive.pop(now)),
                }
                prop_assert_eq!(queue.len() as usize, naive.waiting.len());
            }
        }
    }
}
