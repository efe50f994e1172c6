//! One series of the metrics store: what was sampled of one metric of one type, by slots of several lengths, and
//! what becomes of a period of it.
//!
//! Each length has a fixed number of slots, and slots without data take none. Equal neighbours of the long range
//! are kept as one.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::Timestamp;
use crate::types::durations::middle;
use crate::types::scaling::Statistic;

/// The usual fine resolution.
pub const FINE: Duration = Duration::from_secs(10);
/// How far the fine resolution reaches back, in slots of [`FINE`].
const FINE_SLOTS: u64 = 1_080;
const COARSE_MS: u64 = 60_000;
/// 15 days of minutes.
const COARSE_SLOTS: u32 = 21_600;

/// The samples of a slot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Summary {
    count: f32,
    sum: f32,
    least: f32,
    most: f32,
}

impl Summary {
    const NONE: Self = Self { count: 0.0, sum: 0.0, least: f32::INFINITY, most: f32::NEG_INFINITY };

    #[allow(clippy::cast_possible_truncation, reason = "seven digits are enough")]
    pub(super) fn of(count: u64, sum: f64, least: f64, most: f64) -> Self {
        Self { count: count as f32, sum: sum as f32, least: least as f32, most: most as f32 }
    }

    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.least = self.least.min(other.least);
        self.most = self.most.max(other.most);
    }
}

/// A fine slot: its number, its samples, and how many fell into which bucket.
#[derive(Debug, Clone, PartialEq)]
struct Fine {
    slot: u64,
    summary: Summary,
    buckets: Vec<(u8, u32)>,
}

/// Minutes of equal samples.
#[derive(Debug, Clone, PartialEq)]
struct Run {
    first: u32,
    last: u32,
    summary: Summary,
}

/// Slots as long as a period, and how many of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) length_ms: u64,
    pub(super) slots: u64,
}

impl Own {
    /// For so many periods, where the usual slots cannot tell of them.
    pub(super) fn needed(length_ms: u64, count: u32) -> Option<Self> {
        // The one under way is one more.
        let (usual, slots) = (millis(FINE), u64::from(count) + 1);
        let reaches = length_ms.saturating_mul(slots) <= usual * FINE_SLOTS;
        (!reaches || !length_ms.is_multiple_of(usual)).then_some(Self { length_ms, slots })
    }
}

/// Slots of one length.
#[derive(Debug)]
struct Slots {
    length_ms: u64,
    kept: VecDeque<Fine>,
    /// From this moment on nothing is missing in them, in milliseconds.
    whole_from: u64,
}

impl Slots {
    fn since(whole_from: u64, length_ms: u64) -> Self {
        Self { length_ms, kept: VecDeque::new(), whole_from }
    }

    /// Adds to the slot of that moment, which becomes the latest of `most`.
    fn put(&mut self, at: Timestamp, most: u64, summary: &Summary, buckets: &[(u8, u32)]) {
        let slot = at.0 / self.length_ms;
        while self.kept.back().is_some_and(|last| last.slot > slot) {
            self.kept.pop_back();
        }
        match self.kept.back_mut() {
            Some(last) if last.slot == slot => {
                last.summary.add(summary);
                merge(&mut last.buckets, buckets);
            }
            _ => {
                // Before there is one more.
                while let Some(first) = self.kept.pop_front_if(|first| first.slot + most <= slot) {
                    self.whole_from = (first.slot + 1) * self.length_ms;
                }
                let len = self.kept.len();
                if len == self.kept.capacity() {
                    // There will be no more than `most`.
                    let room = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(len);
                    self.kept.reserve_exact(len.max(4).min(room));
                }
                self.kept.push_back(Fine { slot, summary: *summary, buckets: buckets.to_vec() });
            }
        }
    }

    /// Adds what there is of a span.
    fn collect(&self, from: Timestamp, to: Timestamp, into: &mut Window) {
        let (first, end) = (from.0.div_ceil(self.length_ms), to.0.div_ceil(self.length_ms));
        let begin = self.kept.partition_point(|one| one.slot < first);
        for one in self.kept.range(begin..).take_while(|one| one.slot < end) {
            into.summary.add(&one.summary);
            merge(&mut into.buckets, &one.buckets);
        }
    }
}

/// One metric of one type, over time.
#[derive(Debug)]
pub(super) struct Series {
    /// Slots of [`FINE`].
    usual: Slots,
    /// The same in slots of other lengths, where those are wanted.
    own: Vec<Slots>,
    coarse: VecDeque<Run>,
    /// The minute under way.
    minute: Option<(u32, Summary)>,
}

impl Default for Series {
    fn default() -> Self {
        let usual = Slots::since(0, millis(FINE));
        Self { usual, own: Vec::new(), coarse: VecDeque::new(), minute: None }
    }
}

impl Series {
    pub(super) fn record(
        &mut self,
        at: Timestamp,
        own: &[Own],
        summary: &Summary,
        buckets: &[(u8, u32)],
    ) {
        let is_first = self.minute.is_none();
        self.usual.put(at, FINE_SLOTS, summary, buckets);
        for Own { length_ms, slots } in own {
            let known = self.own.iter().position(|own| own.length_ms == *length_ms);
            let known = known.unwrap_or_else(|| {
                // Of what was before, these tell nothing, if there was something.
                let next = (at.0 / length_ms + 1) * length_ms;
                self.own.push(Slots::since(if is_first { 0 } else { next }, *length_ms));
                self.own.len() - 1
            });
            self.own[known].put(at, *slots, summary, buckets);
        }
        let minute = minute(at.0 / COARSE_MS);
        self.forget_after(minute);
        match &mut self.minute {
            Some((current, sum)) if *current == minute => sum.add(summary),
            _ => {
                self.close_minute();
                self.minute = Some((minute, *summary));
            }
        }
    }

    /// Keeps slots of these lengths only, beside the usual ones.
    pub(super) fn keep(&mut self, own: &[Own]) {
        self.own.retain(|kept| own.iter().any(|own| own.length_ms == kept.length_ms));
    }

    /// A clock that was set back: what it had told of later is not known.
    fn forget_after(&mut self, minute: u32) {
        while let Some(run) = self.coarse.back_mut().filter(|run| run.last >= minute) {
            if run.first < minute {
                run.last = minute - 1;
                break;
            }
            self.coarse.pop_back();
        }
        self.minute = self.minute.take().filter(|(current, _)| *current <= minute);
    }

    fn close_minute(&mut self) {
        let Some((minute, summary)) = self.minute.take() else { return };
        match self.coarse.back_mut() {
            Some(run) if run.last + 1 == minute && run.summary == summary => run.last = minute,
            _ => push(&mut self.coarse, Run { first: minute, last: minute, summary }),
        }
        let oldest = minute.saturating_sub(COARSE_SLOTS - 1);
        while let Some(run) = self.coarse.front_mut() {
            if run.last >= oldest {
                run.first = run.first.max(oldest);
                break;
            }
            self.coarse.pop_front();
        }
    }

    /// Entries of the long range.
    pub(super) fn runs(&self) -> usize {
        self.coarse.len()
    }

    /// The oldest entry of the long range goes.
    pub(super) fn forget_oldest(&mut self) {
        self.coarse.pop_front();
        let len = self.coarse.len();
        if self.coarse.capacity() > len + len / GROWTH + 64 {
            self.coarse.shrink_to(len + len / (2 * GROWTH));
        }
    }

    /// Adds what it has from `from` to `to`, itself not included.
    pub(super) fn collect(&self, from: Timestamp, to: Timestamp, into: &mut Window) {
        let (length, usual) = (to.0 - from.0, millis(FINE));
        let own = self.own.iter().find(|own| own.length_ms == length);
        if let Some(own) = own.filter(|own| length < usual || own.whole_from <= from.0) {
            return own.collect(from, to, into);
        }
        if length < usual {
            // Longer slots tell nothing of what is shorter than they are.
            return;
        }
        if self.usual.whole_from <= from.0 || length < COARSE_MS {
            return self.usual.collect(from, to, into);
        }
        let (first, end) = (minute(from.0.div_ceil(COARSE_MS)), minute(to.0.div_ceil(COARSE_MS)));
        let begin = self.coarse.partition_point(|run| run.last < first);
        for run in self.coarse.range(begin..).take_while(|run| run.first < end) {
            let minutes = run.last.min(end - 1) + 1 - run.first.max(first);
            let times = minutes as f32;
            let all = Summary {
                count: run.summary.count * times,
                sum: run.summary.sum * times,
                ..run.summary
            };
            into.summary.add(&all);
        }
        if let Some((minute, summary)) = &self.minute
            && (first..end).contains(minute)
        {
            into.summary.add(summary);
        }
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        let all = || std::iter::once(&self.usual).chain(&self.own).map(|slots| &slots.kept);
        let buckets: usize = all().flatten().map(|one| one.buckets.capacity()).sum();
        all().map(VecDeque::capacity).sum::<usize>() * size_of::<Fine>()
            + buckets * size_of::<(u8, u32)>()
            + self.coarse.capacity() * size_of::<Run>()
    }
}

/// A queue grows by this part of itself, so that its room to grow is little of it.
const GROWTH: usize = 16;

fn push<T>(queue: &mut VecDeque<T>, one: T) {
    if queue.len() == queue.capacity() {
        queue.reserve_exact(queue.len() / GROWTH + 4);
    }
    queue.push_back(one);
}

/// Adds counts to counts; both are ordered by bucket.
pub(super) fn merge(into: &mut Vec<(u8, u32)>, more: &[(u8, u32)]) {
    for (bucket, count) in more {
        match into.binary_search_by_key(bucket, |(bucket, _)| *bucket) {
            Ok(at) => into[at].1 = into[at].1.saturating_add(*count),
            Err(at) => into.insert(at, (*bucket, *count)),
        }
    }
}

/// The samples of a period, of one series or of several.
#[derive(Debug, Clone)]
pub(super) struct Window {
    summary: Summary,
    buckets: Vec<(u8, u32)>,
}

impl Window {
    pub(super) const EMPTY: Self = Self { summary: Summary::NONE, buckets: Vec::new() };

    pub(super) fn statistic(&self, statistic: Statistic) -> Option<f64> {
        let summary = &self.summary;
        if summary.count <= 0.0 {
            return None;
        }
        match statistic {
            Statistic::Average => Some(f64::from(summary.sum) / f64::from(summary.count)),
            Statistic::Sum => Some(f64::from(summary.sum)),
            Statistic::Minimum => Some(f64::from(summary.least)),
            Statistic::Maximum => Some(f64::from(summary.most)),
            Statistic::SampleCount => Some(f64::from(summary.count)),
            Statistic::Percentile(share) => self.percentile(share),
        }
    }

    fn percentile(&self, share: f64) -> Option<f64> {
        let total: u64 = self.buckets.iter().map(|(_, count)| u64::from(*count)).sum();
        let wanted = share.clamp(0.0, 1.0) * total as f64;
        let mut seen = 0_u64;
        let found = self.buckets.iter().find(|(_, count)| {
            seen += u64::from(*count);
            seen as f64 >= wanted
        });
        found.map(|(bucket, _)| middle(*bucket))
    }
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// The number of a minute, which is small enough for many millennia.
fn minute(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
