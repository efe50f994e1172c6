//! How long a request may take. Its variant may say so (`request_timeout`, `first_byte_timeout`,
//! `stream_idle_timeout`), and the client itself: `x-forebay-timeout-ms`, or `grpc-timeout`
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>); the earliest holds. A request for
//! which none is set arms no timer, and few others do ([`super::alarm`]).

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};

use super::alarm::Alarm;
use super::headers;
use super::names::Names;
use super::refusal::Refusal;
use crate::runtime::clock;
use crate::types::spec::RequestPolicy;

/// A client's own limit, in milliseconds from the request's arrival.
const TIMEOUT_MS: HeaderName = HeaderName::from_static("x-forebay-timeout-ms");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// What both may ask for at most; more is refused, like whatever else is no limit.
const MOST_DIGITS: usize = 8;

/// When a request must be over, and how long its worker may be silent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Deadline {
    /// Its last byte at the latest.
    end: Option<Instant>,
    /// From being sent until the answer begins.
    first_byte: Option<Duration>,
    /// Between two pieces of the answer.
    idle: Option<Duration>,
}

impl Deadline {
    /// What the client asks for, of a request that arrived at `arrived_at`, whose fields have these names.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] where that cannot be read: a client that believes in a limit must not wait
    /// without one.
    pub(super) fn asked(
        fields: &HeaderMap,
        names: Names,
        arrived_at: Instant,
    ) -> Result<Self, Refusal> {
        let limit = |name: &HeaderName, read: fn(&str) -> Option<Duration>| {
            let said = headers::only(fields, names, name)?;
            said.map(|text| read(text).ok_or(())).transpose()
        };
        let own = limit(&TIMEOUT_MS, own_timeout).map_err(|()| {
            Refusal::Malformed("x-forebay-timeout-ms is not one number from 1 to 99999999")
        })?;
        let grpc = limit(&GRPC_TIMEOUT, grpc_timeout)
            .map_err(|()| Refusal::Malformed("grpc-timeout is not one number with a unit"))?;
        let limit = own.into_iter().chain(grpc).min();
        Ok(Self { end: limit.map(|limit| arrived_at + limit), ..Self::default() })
    }

    /// Together with what the variant says.
    pub(super) fn with(self, policy: &RequestPolicy, arrived_at: Instant) -> Self {
        let end = policy.request_timeout.map(|limit| arrived_at + limit);
        Self {
            end: self.end.into_iter().chain(end).min(),
            first_byte: policy.first_byte_timeout,
            idle: policy.stream_idle_timeout,
        }
    }

    /// `work`, unless the request must be over before. It is to be pinned where it is: taken by value it would be moved
    /// into the future of the wait.
    pub(super) async fn bound<T>(
        self,
        alarm: &Alarm,
        mut work: impl Future<Output = Result<T, Refusal>> + Unpin,
    ) -> Result<T, Refusal> {
        poll_fn(|cx| {
            if let Poll::Ready(done) = Pin::new(&mut work).poll(cx) {
                return Poll::Ready(done);
            }
            let Some(end) = self.end else { return Poll::Pending };
            alarm.poll(cx, end).map(|()| Err(Refusal::DeadlineExceeded))
        })
        .await
    }

    /// The head of the answer to a request that is sent now, unless it comes too late.
    pub(super) async fn head<T>(
        self,
        alarm: &Alarm,
        sent_at: Instant,
        mut answer: impl Future<Output = T> + Unpin,
    ) -> Result<T, Refusal> {
        let late = self.first_byte.map(|limit| (sent_at + limit, Refusal::FirstByteTimeout(limit)));
        let end = self.end.map(|end| (end, Refusal::DeadlineExceeded));
        let mut first = late.into_iter().chain(end).min_by_key(|(at, _)| *at);
        poll_fn(|cx| {
            if let Poll::Ready(answer) = Pin::new(&mut answer).poll(cx) {
                return Poll::Ready(Ok(answer));
            }
            let Some((at, _)) = &first else { return Poll::Pending };
            ready!(alarm.poll(cx, *at));
            first.take().map_or(Poll::Pending, |(_, refusal)| Poll::Ready(Err(refusal)))
        })
        .await
    }

    /// Watches over an answer's body, or a tunnel.
    pub(super) fn watch(self, alarm: Rc<Alarm>) -> Watch {
        Watch { end: self.end, idle: self.idle, alarm, silent_since: None }
    }
}

/// Why the rest of an answer is not waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// The whole request took too long.
    Whole,
    /// The worker has sent nothing for so long.
    Idle(Duration),
}

impl From<Late> for Refusal {
    fn from(late: Late) -> Self {
        match late {
            Late::Whole => Self::DeadlineExceeded,
            Late::Idle(limit) => Self::StreamIdle(limit),
        }
    }
}

/// Watches over an answer's body.
#[derive(Debug)]
pub(super) struct Watch {
    end: Option<Instant>,
    idle: Option<Duration>,
    alarm: Rc<Alarm>,
    /// Since when there is nothing.
    silent_since: Option<Instant>,
}

impl Watch {
    /// One that waits for ever.
    pub(super) fn without_limit() -> Self {
        Deadline::default().watch(Rc::default())
    }

    /// A piece has come.
    pub(super) fn progressed(&mut self) {
        self.silent_since = None;
    }

    /// Whether the whole has taken too long. To be asked before each piece: one that comes slowly but steadily
    /// must not get around it.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some_and(|end| self.alarm.has_rung() && clock::monotonic() >= end)
    }

    /// Ready once the whole has taken too long, or the worker has been silent for too long. To be asked when it
    /// has nothing.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Late> {
        if let Some(end) = self.end
            && self.alarm.poll(cx, end).is_ready()
        {
            return Poll::Ready(Late::Whole);
        }
        let Some(limit) = self.idle else { return Poll::Pending };
        let since = *self.silent_since.get_or_insert_with(clock::monotonic);
        self.alarm.poll(cx, since + limit).map(|()| Late::Idle(limit))
    }
}

/// A limit of nothing can only be a mistake.
fn own_timeout(text: &str) -> Option<Duration> {
    number(text).filter(|count| *count > 0).map(Duration::from_millis)
}

fn number(digits: &str) -> Option<u64> {
    let fits =
        (1..=MOST_DIGITS).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    if fits { digits.parse().ok() } else { None }
}

/// At most eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count = number(digits)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_limit_holds() {
        let now = clock::monotonic();
        let asked = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs.iter().map(|(name, value)| {
                (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
            });
            let headers = headers.collect();
            Deadline::asked(&headers, Names::of(&headers), now).expect("limits")
        };
        let end = |deadline: Deadline| deadline.end.map(|end| end.duration_since(now).as_millis());
        assert_eq!(asked(&[]), Deadline::default());
        assert_eq!(end(asked(&[("x-forebay-timeout-ms", "1500")])), Some(1_500));
        assert_eq!(end(asked(&[("grpc-timeout", "2S")])), Some(2_000));
        let both = asked(&[("x-forebay-timeout-ms", "1500"), ("grpc-timeout", "1M")]);
        assert_eq!(end(both), Some(1_500));
        let policy = |seconds| RequestPolicy {
            request_timeout: Some(Duration::from_secs(seconds)),
            ..RequestPolicy::default()
        };
        assert_eq!(end(both.with(&policy(1), now)), Some(1_000));
        assert_eq!(end(both.with(&policy(9), now)), Some(1_500));
        assert_eq!(end(asked(&[]).with(&policy(9), now)), Some(9_000));
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        let refused = |name: &'static str, values: &[&'static str]| {
            let headers = values.iter().map(|value| {
                (HeaderName::from_static(name), http::HeaderValue::from_static(value))
            });
            let headers = headers.collect();
            let asked = Deadline::asked(&headers, Names::of(&headers), clock::monotonic());
            matches!(asked, Err(Refusal::Malformed(_)))
        };
        for values in [&["0"][..], &[""], &["soon"], &["+1"], &["123456789"], &["5", "5"]] {
            assert!(refused("x-forebay-timeout-ms", values), "{values:?}");
        }
        for values in [&["5"][..], &["5x"], &["1S", "1S"]] {
            assert!(refused("grpc-timeout", values), "{values:?}");
        }
        // A gRPC client whose time is over says so.
        assert!(!refused("grpc-timeout", &["0n"]));
    }

    #[test]
    fn what_is_no_number_is_no_limit() {
        for text in ["", "S", "1", "1x", "-1S", "+1S", " 1S", "1 S", "123456789S", "1.5S", "é"] {
            assert_eq!(grpc_timeout(text), None, "{text:?}");
        }
        assert_eq!(grpc_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        assert_eq!(grpc_timeout("250m"), Some(Duration::from_millis(250)));
        for text in ["", "1s", "-1", "1e3", "999999999"] {
            assert_eq!(number(text), None, "{text:?}");
        }
        assert_eq!(number("0"), Some(0));
    }
}
