//! When clients send requests: the shapes that a rate may have over time, and the moments that a stream of
//! random numbers makes of them. A rate is in requests per second over all proxies; arrivals are a Poisson
//! process of that rate (drawn by thinning: candidates at the highest rate there is, each kept with the
//! probability of the present one to that).

use std::time::Duration;

use super::service::Work;
use crate::sim::rng::Rng;
use crate::types::EndpointName;

/// Requests of one kind for one endpoint.
#[derive(Debug, Clone)]
pub(in crate::sim) struct Source {
    pub(in crate::sim) endpoint: EndpointName,
    /// Nobody asks before,
    pub(in crate::sim) from: Duration,
    /// or after.
    pub(in crate::sim) until: Duration,
    pub(in crate::sim) shape: Shape,
}

/// How a source's rate goes over time since the start.
#[derive(Debug, Clone)]
pub(in crate::sim) enum Shape {
    /// Always the same.
    Constant(f64),
    /// Each rate from its moment on until the next one's; ascending.
    Steps(Vec<(Duration, f64)>),
    /// A wave with one peak in each period, the first at `peak_at`.
    Diurnal { low: f64, high: f64, peak_at: Duration, period: Duration },
    /// `rate` for `lasts` at the start of every period, the first at `first`; nothing else.
    Bursts { rate: f64, lasts: Duration, first: Duration, period: Duration },
    /// What was recorded, ascending.
    Trace(Vec<Recorded>),
}

/// A request of a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::sim) struct Recorded {
    pub(in crate::sim) at: Duration,
    /// How long it ran; `None`: as long as others do.
    pub(in crate::sim) lasts: Option<Duration>,
}

/// A source's requests, one after the other.
#[derive(Debug)]
pub(super) struct Stream {
    source: Source,
    rng: Rng,
    /// Seconds since the start of the last candidate.
    at: f64,
    /// Requests of a trace that have come.
    replayed: usize,
}

impl Source {
    /// Requests that are to be expected until `end`: what is played must be bounded.
    pub(in crate::sim) fn expected(&self, end: Duration) -> f64 {
        let (from, until) = self.within(end);
        self.shape.requests(from, until)
    }

    /// Moments that are tried for them until `end`: those that the highest rate gives while there is any.
    pub(in crate::sim) fn tried(&self, end: Duration) -> f64 {
        let (from, until) = self.within(end);
        match &self.shape {
            Shape::Steps(steps) => {
                let any = |(at, rate): &(Duration, f64)| (*at, if *rate > 0.0 { 1.0 } else { 0.0 });
                Shape::Steps(steps.iter().map(any).collect()).requests(from, until)
                    * self.shape.peak()
            }
            Shape::Diurnal { .. } => (until - from) * self.shape.peak(),
            Shape::Constant(_) | Shape::Bursts { .. } | Shape::Trace(_) => {
                self.shape.requests(from, until)
            }
        }
    }

    /// From when until when it asks, in seconds since the start.
    fn within(&self, end: Duration) -> (f64, f64) {
        let (from, until) = (self.from.as_secs_f64(), self.until.min(end).as_secs_f64());
        (from, until.max(from))
    }
}

impl Shape {
    /// Requests per second at that many seconds since the start.
    fn rate(&self, at: f64) -> f64 {
        match self {
            Self::Constant(rate) => *rate,
            Self::Steps(steps) => {
                let begun = steps.iter().take_while(|(from, _)| from.as_secs_f64() <= at);
                begun.last().map_or(0.0, |(_, rate)| *rate)
            }
            Self::Diurnal { low, high, peak_at, period } => {
                let turns = (at - peak_at.as_secs_f64()) / period.as_secs_f64();
                let wave = (turns * std::f64::consts::TAU).cos();
                low + (high - low) * (1.0 + wave) / 2.0
            }
            Self::Bursts { rate, lasts, first, period } => {
                let into = (at - first.as_secs_f64()) % period.as_secs_f64();
                if (0.0..lasts.as_secs_f64()).contains(&into) { *rate } else { 0.0 }
            }
            Self::Trace(_) => 0.0,
        }
    }

    /// How many requests it comes to from one moment to another: the integral of its rate.
    fn requests(&self, from: f64, until: f64) -> f64 {
        match self {
            Self::Constant(rate) => rate * (until - from),
            Self::Steps(steps) => {
                let ends = steps.iter().skip(1).map(|(at, _)| at.as_secs_f64());
                let lasts =
                    steps.iter().zip(ends.chain([f64::INFINITY])).map(|((at, rate), ends)| {
                        rate * (ends.min(until) - at.as_secs_f64().max(from)).max(0.0)
                    });
                lasts.sum()
            }
            Self::Diurnal { low, high, peak_at, period } => {
                let turn = period.as_secs_f64() / std::f64::consts::TAU;
                let wave = |at: f64| ((at - peak_at.as_secs_f64()) / turn).sin() * turn;
                let span = until - from;
                low * span + (high - low) / 2.0 * (span + wave(until) - wave(from))
            }
            Self::Bursts { rate, lasts, first, period } => {
                let (period, first) = (period.as_secs_f64(), first.as_secs_f64());
                let each = lasts.as_secs_f64().min(period);
                let so_far = |at: f64| {
                    let since = (at - first).max(0.0);
                    let whole = (since / period).floor();
                    whole * each + (since - whole * period).min(each)
                };
                rate * (so_far(until) - so_far(from))
            }
            Self::Trace(requests) => requests.len() as f64,
        }
    }

    fn peak(&self) -> f64 {
        match self {
            Self::Constant(rate) | Self::Bursts { rate, .. } => *rate,
            Self::Steps(steps) => steps.iter().map(|(_, rate)| *rate).fold(0.0, f64::max),
            Self::Diurnal { low, high, .. } => low.max(*high),
            Self::Trace(_) => 0.0,
        }
    }

    /// When there may be requests again, at a moment without: a process without memory can begin anew there.
    fn resumes(&self, at: f64) -> Option<f64> {
        match self {
            Self::Steps(steps) => {
                let later =
                    steps.iter().find(|(from, rate)| from.as_secs_f64() > at && *rate > 0.0);
                later.map(|(from, _)| from.as_secs_f64())
            }
            Self::Bursts { first, period, .. } => {
                let (first, period) = (first.as_secs_f64(), period.as_secs_f64());
                Some(first + (((at - first) / period).floor() + 1.0) * period)
            }
            Self::Diurnal { .. } => Some(at),
            Self::Constant(_) | Self::Trace(_) => None,
        }
    }
}

impl Stream {
    /// The requests of `source`, drawn from `rng`.
    pub(super) fn new(source: Source, rng: Rng) -> Self {
        let at = source.from.as_secs_f64();
        Self { source, rng, at, replayed: 0 }
    }

    pub(super) fn endpoint(&self) -> &EndpointName {
        &self.source.endpoint
    }

    /// When the next one comes, since the start, and what it takes.
    pub(super) fn next(&mut self) -> Option<(Duration, Work)> {
        if let Shape::Trace(requests) = &self.source.shape {
            let Recorded { at, lasts } = *requests.get(self.replayed)?;
            self.replayed += 1;
            let at = self.source.from + at;
            let work = lasts.map_or_else(|| Work::drawn(&mut self.rng), Work::Given);
            return (at < self.source.until).then_some((at, work));
        }
        let peak = self.source.shape.peak();
        if peak <= 0.0 {
            return None;
        }
        loop {
            // From 0 (excluded) to 1, so that the logarithm is finite.
            self.at -= (1.0 - self.rng.unit()).ln() / peak;
            if self.at >= self.source.until.as_secs_f64() {
                return None;
            }
            let rate = self.source.shape.rate(self.at);
            if rate <= 0.0 {
                self.at = self.source.shape.resumes(self.at)?;
            } else if self.rng.unit() * peak < rate {
                let work = Work::drawn(&mut self.rng);
                return Some((Duration::from_secs_f64(self.at), work));
            }
        }
    }
}

/// Reads a trace: a line for each request, `at_s` or `at_s,duration_s`, in seconds since the trace's start;
/// further columns, empty lines, lines that begin with `#` and a first line of names, which begins with `at_s`,
/// are passed over. Lines need not be in order.
///
/// # Errors
/// What is wrong in which line.
pub(in crate::sim) fn read_trace(text: &str) -> Result<Vec<Recorded>, String> {
    let mut requests = Vec::new();
    // Spreadsheets begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut columns = line.split(',').map(str::trim);
        let at = columns.next().unwrap_or_default();
        if at == "at_s" && requests.is_empty() {
            continue;
        }
        let seconds = |text: &str| {
            let seconds = text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
            seconds
                .ok_or_else(|| format!("line {}: \"{text}\" is no number of seconds", number + 1))
        };
        let lasts = columns.next().filter(|text| !text.is_empty()).map(seconds).transpose()?;
        requests.push(Recorded { at: seconds(at)?, lasts });
    }
    requests.sort_by_key(|request| request.at);
    Ok(requests)
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "whole numbers and their halves")]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn source(shape: Shape) -> Source {
        let endpoint = "e".parse().expect("valid");
        Source { endpoint, from: Duration::ZERO, until: 24 * HOUR, shape }
    }

    fn moments(shape: Shape) -> Vec<Duration> {
        let mut stream = Stream::new(source(shape), Rng::new(5));
        std::iter::from_fn(|| stream.next()).map(|(at, _)| at).collect()
    }

    fn within(moments: &[Duration], from: Duration, until: Duration) -> f64 {
        moments.iter().filter(|at| (from..until).contains(at)).count() as f64
    }

    /// Counts of a Poisson process are within four standard deviations of what is expected.
    fn assert_near(count: f64, expected: f64) {
        let most = 4.0 * expected.sqrt();
        assert!((count - expected).abs() <= most, "{count} where {expected} are expected");
    }

    #[test]
    fn each_shape_has_its_rate() {
        let constant = moments(Shape::Constant(0.5));
        assert!(constant.is_sorted());
        assert_near(constant.len() as f64, 0.5 * 86_400.0);

        let steps = moments(Shape::Steps(vec![(HOUR, 1.0), (2 * HOUR, 0.0), (5 * HOUR, 0.25)]));
        assert_near(within(&steps, HOUR, 2 * HOUR), 3_600.0);
        assert_near(within(&steps, 5 * HOUR, 24 * HOUR), 19.0 * 900.0);
        let pause = |at: &&Duration| **at < HOUR || (2 * HOUR..5 * HOUR).contains(*at);
        assert_eq!(steps.iter().filter(pause).count(), 0);

        let diurnal = Shape::Diurnal { low: 0.1, high: 0.9, peak_at: 14 * HOUR, period: 24 * HOUR };
        let day = moments(diurnal.clone());
        assert_near(day.len() as f64, source(diurnal).expected(24 * HOUR));
        assert_near(day.len() as f64, 0.5 * 86_400.0);
        let (peak, trough) = (within(&day, 13 * HOUR, 15 * HOUR), within(&day, HOUR, 3 * HOUR));
        assert!(peak > 7.0 * trough, "{peak} at the peak, {trough} in the night");

        let minute = Duration::from_secs(60);
        let bursts =
            moments(Shape::Bursts { rate: 10.0, lasts: minute, first: minute, period: HOUR });
        assert_near(bursts.len() as f64, 24.0 * 600.0);
        assert!(bursts.iter().all(|at| (60..120).contains(&(at.as_secs() % 3600))));
        assert!(moments(Shape::Constant(0.0)).is_empty());
    }

    #[test]
    fn what_is_to_be_expected_is_the_integral_of_the_rate() {
        let (second, week) = (Duration::from_secs(1), 7 * 24 * HOUR);
        let expected =
            |shape: Shape, from, until| Source { from, until, ..source(shape) }.expected(week);
        let bursts = Shape::Bursts { rate: 1e9, lasts: second, first: HOUR, period: week };
        assert_eq!(expected(bursts.clone(), HOUR, week), 1e9);
        assert_eq!(expected(bursts, Duration::ZERO, HOUR), 0.0);
        let often = Shape::Bursts { rate: 2.0, lasts: second, first: second, period: 4 * second };
        assert_eq!(expected(often.clone(), second, 10 * second), 6.0);
        assert_eq!(expected(often, second, 9 * second + second / 2), 5.0);
        let always = Shape::Bursts { rate: 2.0, lasts: HOUR, first: second, period: second };
        assert_eq!(expected(always, second, 11 * second), 20.0);
        let steps = Shape::Steps(vec![(second, 1e8), (2 * second, 0.0), (4 * second, 0.5)]);
        assert_eq!(expected(steps.clone(), Duration::ZERO, 10 * second), 1e8 + 3.0);
        assert_eq!(expected(steps.clone(), 3 * second, 5 * second), 0.5);
        assert_eq!(source(steps).tried(10 * second), 7.0 * 1e8);
        let wave = Shape::Diurnal { low: 1.0, high: 3.0, peak_at: HOUR, period: 4 * HOUR };
        let quarter = expected(wave.clone(), HOUR, 2 * HOUR);
        let exact = 3600.0 * (2.0 + 2.0 / std::f64::consts::PI);
        assert!((quarter - exact).abs() < 1e-6, "{quarter} is {exact}");
        let whole = expected(wave, HOUR, 9 * HOUR);
        assert!((whole - 8.0 * 3600.0 * 2.0).abs() < 1e-6, "{whole}");
    }

    #[test]
    fn a_trace_is_replayed_as_it_was() {
        let text = "\u{feff}at_s,duration_s,user\n# a comment\n\n2.5,0.75,x\n1\n9,,y\n";
        let requests = read_trace(text).expect("a trace");
        let mut stream = Stream::new(source(Shape::Trace(requests)), Rng::new(5));
        let (at, work) = stream.next().expect("the first");
        assert_eq!(at, Duration::from_secs(1));
        assert!(matches!(work, Work::Drawn(_)));
        let second = Work::Given(Duration::from_millis(750));
        assert_eq!(stream.next(), Some((Duration::from_millis(2_500), second)));
        assert_eq!(stream.next().expect("the last").0, Duration::from_secs(9));
        assert_eq!(stream.next(), None);
        for (bad, line) in [
            ("1\ntwo\n", "line 2: \"two\""),
            ("1,-3\n", "line 1: \"-3\""),
            ("one\n2\n", "line 1: \"one\""),
            ("1\nat_s\n", "line 2: \"at_s\""),
        ] {
            let error = read_trace(bad).expect_err(bad);
            assert!(error.contains(line), "{error}");
        }
    }
}
