//! What a worker says of its own load along with an answer (ORCA's header). It is for the hop that chooses among
//! workers, which is this one: it is taken off the answer, kept until the next report to the manager, and read
//! only then. It goes no further: whoever balances over proxies would take one worker's load for that of all
//! the workers behind this proxy.
//!
//! An answer without it costs nothing, one with it a copy of the value a few times a second.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use http::header::{HeaderMap, HeaderName};

use super::names::Names;
use crate::decision::signals::orca;
use crate::runtime::clock;
use crate::types::report::LoadReport;

/// The header.
pub(super) const LOAD_METRICS: HeaderName = HeaderName::from_static(orca::LOAD_METRICS);
/// What a request asks for it with.
pub(super) const LOAD_METRICS_FORMAT: HeaderName =
    HeaderName::from_static(orca::LOAD_METRICS_FORMAT);

/// One that comes sooner after another is not kept.
const SPACING_MS: u64 = 100;
/// One that is older is not told any more.
const OLDEST_MS: u64 = 60_000;

/// The last that one start of an instance said.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// When, in milliseconds of the process's clock; 0: never.
    at_ms: AtomicU64,
    value: Mutex<Box<[u8]>>,
}

impl Told {
    /// Takes it off an answer whose fields have these names.
    pub(super) fn take_off(&self, headers: &mut HeaderMap, names: Names) {
        if names.may_have(orca::LOAD_METRICS)
            && let Some(value) = headers.remove(LOAD_METRICS)
        {
            self.keep(value.as_bytes(), clock::uptime_ms());
        }
    }

    fn keep(&self, value: &[u8], now_ms: u64) {
        let last = self.at_ms.load(Ordering::Relaxed);
        let is_soon = last != 0 && now_ms.saturating_sub(last) < SPACING_MS;
        if is_soon || value.len() > orca::LONGEST {
            return;
        }
        self.at_ms.store(now_ms, Ordering::Relaxed);
        // A copy: the value is a piece of all that was read from the connection.
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = value.into();
    }

    /// For the manager.
    pub(super) fn report(&self) -> Option<LoadReport> {
        self.report_at(clock::uptime_ms())
    }

    fn report_at(&self, now_ms: u64) -> Option<LoadReport> {
        let at_ms = self.at_ms.load(Ordering::Relaxed);
        let age_ms = now_ms.saturating_sub(at_ms);
        if at_ms == 0 || age_ms > OLDEST_MS {
            return None;
        }
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).clone();
        orca::load_report(&value).map(|signals| LoadReport { age_ms, signals })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::signals::Signals;

    fn waiting(waiting: f64, age_ms: u64) -> LoadReport {
        let signals = Signals { waiting: Some(waiting), ..Signals::default() };
        LoadReport { age_ms, signals }
    }

    fn text(waiting: u32) -> String {
        format!("TEXT named_metrics.num_requests_waiting={waiting}")
    }

    #[test]
    fn the_last_one_is_told_with_its_age_and_not_for_ever() {
        let told = Told::default();
        assert_eq!(told.report_at(1), None);
        told.keep(text(1).as_bytes(), 1_000);
        told.keep(text(2).as_bytes(), 1_099);
        assert_eq!(told.report_at(1_100), Some(waiting(1.0, 100)), "the second came too soon");
        told.keep(text(3).as_bytes(), 1_100);
        assert_eq!(told.report_at(1_350), Some(waiting(3.0, 250)));
        assert_eq!(told.report_at(61_100), Some(waiting(3.0, 60_000)));
        assert_eq!(told.report_at(61_101), None);
        told.keep(b"garbage", 70_000);
        assert_eq!(told.report_at(70_000), None);
        told.keep(&[b' '; orca::LONGEST + 1], 80_000);
        assert_eq!(told.report_at(80_000), None);
    }

    #[test]
    fn it_is_taken_off_the_answer() {
        let told = Told::default();
        let mut headers = HeaderMap::new();
        headers.insert(LOAD_METRICS, text(7).parse().expect("a value"));
        headers.append(LOAD_METRICS, text(8).parse().expect("a value"));
        headers.insert("x", "y".parse().expect("a value"));
        let names = Names::of(&headers);
        told.take_off(&mut headers, names);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x"]);
        assert_eq!(told.report().map(|report| report.signals.waiting), Some(Some(7.0)));
    }
}
