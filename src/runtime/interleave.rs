//! For tests: plays a few threads in every order that few switches allow.
//!
//! Threads switch only at the accesses of [`super::sync`], so that what runs is the real code, and one
//! thread at a time. Every schedule with at most so many pre-emptions (switches away from a thread that
//! could go on) is played, each once: context bounding, after Musuvathi and Qadeer, "Iterative context
//! bounding for systematic testing of multithreaded programs" (PLDI 2007), whose finding is that two or
//! three suffice for nearly all real bugs. The words are sequentially consistent, so that orders are all
//! there is to explore.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

use super::rng;

/// What one thread does.
pub type Part = Box<dyn FnOnce() + Send>;

/// The threads of one play, and what must hold after all of them.
pub struct Scene {
    /// One for each thread.
    pub parts: Vec<Part>,
    /// Called when all have ended.
    pub check: Box<dyn FnOnce()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ready,
    /// Waits for a lock; tries again once another thread has moved.
    Blocked,
    Done,
}

/// Which of how many alternatives was taken.
#[derive(Debug, Clone, Copy)]
struct Choice {
    taken: usize,
    of: usize,
}

struct State {
    running: usize,
    status: Vec<Status>,
    path: Vec<Choice>,
    at: usize,
    preemptions_left: u32,
}

struct Stage {
    state: Mutex<State>,
    turn: Condvar,
}

thread_local! {
    static PLAYER: RefCell<Option<(Arc<Stage>, usize)>> = const { RefCell::new(None) };
}

/// Plays `scene` in every order with at most `preemptions` pre-emptions; how many there were.
///
/// # Panics
/// As a part or the check does, after printing the schedule.
pub fn explore(preemptions: u32, scene: impl Fn() -> Scene) -> usize {
    let mut path = Vec::new();
    for played in 1.. {
        path = play(path, preemptions, scene());
        // The next path: the last choice that has another alternative, taken otherwise.
        while path.last().is_some_and(|choice: &Choice| choice.taken + 1 == choice.of) {
            path.pop();
        }
        match path.last_mut() {
            Some(choice) => choice.taken += 1,
            None => return played,
        }
    }
    unreachable!("the paths are finite")
}

fn play(path: Vec<Choice>, preemptions: u32, scene: Scene) -> Vec<Choice> {
    let mut state = State {
        running: usize::MAX,
        status: vec![Status::Ready; scene.parts.len()],
        path,
        at: 0,
        preemptions_left: preemptions,
    };
    state.pass_on(usize::MAX);
    let play = Arc::new(Stage { state: Mutex::new(state), turn: Condvar::new() });
    let ends: Vec<_> = std::thread::scope(|scope| {
        let perform = |(me, part): (usize, Part)| {
            let play = Arc::clone(&play);
            scope.spawn(move || play.perform(me, part))
        };
        let threads: Vec<_> = scene.parts.into_iter().enumerate().map(perform).collect();
        threads.into_iter().map(|thread| thread.join().expect("it catches panics")).collect()
    });
    let path = std::mem::take(&mut play.lock().path);
    let fault = ends.into_iter().find_map(Result::err);
    let checked = fault.map_or_else(|| catch_unwind(AssertUnwindSafe(scene.check)), Err);
    if let Err(fault) = checked {
        let taken: Vec<_> = path.iter().map(|choice| choice.taken).collect();
        eprintln!("schedule: {taken:?}");
        resume_unwind(fault);
    }
    path
}

impl Stage {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn perform(self: &Arc<Self>, me: usize, part: Part) -> std::thread::Result<()> {
        PLAYER.with_borrow_mut(|player| *player = Some((Arc::clone(self), me)));
        // The same path is the same play.
        rng::begin_with(me as u64);
        self.wait(me, self.lock());
        let end = catch_unwind(AssertUnwindSafe(part));
        PLAYER.with_borrow_mut(|player| *player = None);
        self.give_way(me, Status::Done);
        end
    }

    /// Lets another go on, or the same one, and waits for the turn unless `status` is that it is done.
    fn give_way(&self, me: usize, status: Status) {
        let mut state = self.lock();
        state.status[me] = status;
        if status != Status::Blocked {
            for other in state.status.iter_mut().filter(|other| **other == Status::Blocked) {
                *other = Status::Ready;
            }
        }
        state.pass_on(me);
        if state.running != me {
            self.turn.notify_all();
        }
        if status != Status::Done {
            self.wait(me, state);
        }
    }

    fn wait(&self, me: usize, state: MutexGuard<'_, State>) {
        let waited = self.turn.wait_while(state, |state| state.running != me);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl State {
    /// Chooses who goes on after `me`, which goes on itself where that is the first alternative.
    fn pass_on(&mut self, me: usize) {
        let ready = |thread: &usize| self.status[*thread] == Status::Ready;
        let others = (0..self.status.len()).filter(|thread| *thread != me).filter(ready);
        let goes_on = self.status.get(me) == Some(&Status::Ready);
        let mut alternatives: Vec<usize> = goes_on.then_some(me).into_iter().collect();
        if !goes_on || self.preemptions_left > 0 {
            alternatives.extend(others);
        }
        if alternatives.is_empty() {
            assert!(self.status.iter().all(|s| *s == Status::Done), "deadlock: {:?}", self.status);
            return;
        }
        if self.at == self.path.len() {
            self.path.push(Choice { taken: 0, of: alternatives.len() });
        }
        let choice = self.path[self.at];
        assert_eq!(choice.of, alternatives.len(), "the same path is the same play");
        self.at += 1;
        self.running = alternatives[choice.taken];
        if goes_on && self.running != me {
            self.preemptions_left -= 1;
        }
    }
}

fn player() -> Option<(Arc<Stage>, usize)> {
    PLAYER.with_borrow(Clone::clone)
}

/// An access of shared memory comes next.
pub fn step() {
    if let Some((stage, me)) = player() {
        stage.give_way(me, Status::Ready);
    }
}

/// The lock, once no other thread of the play holds it; `None` outside of plays.
pub fn lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    let (stage, me) = player()?;
    stage.give_way(me, Status::Ready);
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => stage.give_way(me, Status::Blocked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sync;
    use super::*;

    /// Dekker's pattern: of two that each say so and then look at the other, one sees the other. Each
    /// thread moves three times (up to its first access, to its second, to its end), which makes
    /// 6! / (3! 3!) orders.
    #[test]
    fn every_order_is_played_once() {
        let seen = Arc::new(Mutex::new(std::collections::BTreeMap::new()));
        let played = explore(9, || {
            let words = Arc::new([sync::AtomicU32::default(), sync::AtomicU32::default()]);
            let saw = Arc::new(Mutex::new([9; 2]));
            let part = |me: usize| {
                let (words, saw) = (Arc::clone(&words), Arc::clone(&saw));
                Box::new(move || {
                    words[me].store(1);
                    let other = words[1 - me].load();
                    saw.lock().expect("no panic")[me] = other;
                }) as Part
            };
            let parts = vec![part(0), part(1)];
            let seen = Arc::clone(&seen);
            let check = move || {
                let saw = *saw.lock().expect("no panic");
                *seen.lock().expect("no panic").entry(saw).or_insert(0) += 1;
            };
            Scene { parts, check: Box::new(check) }
        });
        let seen = seen.lock().expect("no panic").clone();
        assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [[0, 1], [1, 0], [1, 1]]);
        assert_eq!((seen.values().sum::<usize>(), played), (20, 20));
    }

    #[test]
    #[should_panic(expected = "two at once")]
    fn a_lost_update_is_found_with_one_pre_emption() {
        explore(1, || {
            let word = Arc::new(sync::AtomicU32::default());
            let part = || {
                let word = Arc::clone(&word);
                Box::new(move || word.store(word.load() + 1)) as Part
            };
            let parts = vec![part(), part()];
            Scene { parts, check: Box::new(move || assert_eq!(word.load(), 2, "two at once")) }
        });
    }

    #[test]
    fn a_lock_is_held_by_one_at_a_time() {
        explore(4, || {
            let word = Arc::new(sync::AtomicU32::default());
            let lock = Arc::new(sync::Mutex::default());
            let part = || {
                let (word, lock) = (Arc::clone(&word), Arc::clone(&lock));
                Box::new(move || {
                    let _held: MutexGuard<'_, ()> = lock.lock();
                    word.store(word.load() + 1);
                }) as Part
            };
            let parts = vec![part(), part(), part()];
            Scene { parts, check: Box::new(move || assert_eq!(word.load(), 3)) }
        });
    }
}
