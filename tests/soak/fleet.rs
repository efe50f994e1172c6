//! What happens to the fleet and to the proxy itself meanwhile.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::support::{self, Forebay, Process, eventually};
use super::{INSTANCES, Tally};

/// The program as it was started first, and those that have taken over from it, one after the other.
pub(crate) struct Generations<'a> {
    forebay: &'a Forebay,
    successors: Mutex<Vec<Process>>,
}

impl<'a> Generations<'a> {
    pub(crate) fn of(forebay: &'a Forebay) -> Self {
        Self { forebay, successors: Mutex::default() }
    }

    /// The one that serves now.
    pub(crate) fn pid(&self) -> u32 {
        let successors = self.successors.lock().expect("not poisoned");
        successors.last().map_or_else(|| self.forebay.process.pid(), Process::pid)
    }

    fn take_over(&self) {
        let (dir, before) = (self.forebay.dir.path(), self.pid());
        let socket = dir.join("takeover.sock");
        eventually("it can be taken over", || socket.exists().then_some(()));
        let args = ["serve", "--config", &self.forebay.config_path().display().to_string()];
        let successor = Process::start(&args, dir, "forebay.log");
        self.successors.lock().expect("not poisoned").push(successor);
        eventually("the one before has ended", || has_ended(before).then_some(()));
    }

    /// Those that have taken over; the last one serves.
    pub(crate) fn into_successors(self) -> Vec<Process> {
        self.successors.into_inner().expect("not poisoned")
    }
}

/// Whether a child of ours has ended that nobody has waited for: it is a zombie then (proc(5)).
fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("not waited for");
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

/// How often what happens.
pub(crate) struct Schedule {
    pub(crate) reload: Duration,
    /// The worker that has lived longest is killed: one that dies young holds up its pool's next launches, and
    /// then there would soon be no fleet to speak of.
    pub(crate) kill: Duration,
    /// One instance more, one less, and so on.
    pub(crate) scale: Duration,
    /// Twice in all, and early: memory is judged over the last one's life.
    pub(crate) take_over: Duration,
}

impl Schedule {
    pub(crate) fn over(length: Duration) -> Self {
        Self {
            reload: (length / 20).min(Duration::from_secs(2)),
            kill: (length / 2).min(Duration::from_secs(10)),
            scale: (length / 4).min(Duration::from_secs(15)),
            take_over: length / 10,
        }
    }
}

/// Reads the config again, kills and scales as it says, and brings in a new binary. `config` writes the config
/// of a round.
pub(crate) fn stir(
    generations: &Generations<'_>,
    tally: &Tally,
    schedule: &Schedule,
    config: impl Fn(u64),
) {
    let forebay = generations.forebay;
    let began = Instant::now();
    let (mut killed, mut scaled, mut taken_over) = (0, 0, 0);
    let is_due = |every: Duration, times: u32| began.elapsed() >= every * (times + 1);
    tally.repeat(|number| {
        let wakes = Instant::now() + schedule.reload;
        while Instant::now() < wakes && !tally.over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if is_due(schedule.kill, killed) {
            killed += 1;
            if let Some(pid) = oldest_worker(forebay.dir.path()) {
                support::signal(pid, "KILL");
                tally.count("a worker", "killed");
            }
        }
        if is_due(schedule.scale, scaled) {
            scaled += 1;
            let size = INSTANCES + 1 - (scaled as usize % 3);
            scale(forebay, size);
            tally.count("the fleet", &format!("scaled to {size}"));
        }
        if taken_over < 2 && is_due(schedule.take_over, taken_over) {
            taken_over += 1;
            generations.take_over();
            tally.count("the binary", "taken over");
        }
        config(number);
        support::signal(generations.pid(), "HUP");
        tally.count("the config", "reloaded");
    });
    scale(forebay, INSTANCES);
}

fn scale(forebay: &Forebay, size: usize) {
    let output = forebay.cli(&["scale", "llm", &size.to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The worker that was launched first of those that run in this folder.
fn oldest_worker(dir: &Path) -> Option<u32> {
    let mark = dir.display().to_string();
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    let ours = processes.filter_map(|entry| {
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        let environment = String::from_utf8_lossy(&environment);
        let is_ours = environment.contains("FOREBAY_INSTANCE=") && environment.contains(&mark);
        let pid: u32 = entry.file_name().to_str()?.parse().ok().filter(|_| is_ours)?;
        // When it began is the 20th field behind the name (proc(5)), which is in brackets.
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let began: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some((began, pid))
    });
    ours.min().map(|(_, pid)| pid)
}
