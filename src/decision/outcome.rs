//! What the end of a try says of the instance: good, bad, or nothing.
//!
//! Clients' own mistakes and a full instance are no illness: they change no breaker in either direction
//! (peers whose clients' 400s opened the breaker, or closed it again during an outage, taught this).

use super::engine;
use crate::types::spec::Engine;

/// What one request's end says of the instance that it was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It works.
    Good,
    /// It fails.
    Bad,
    /// Nothing: the client's fault, the client's leaving.
    Neutral,
    /// It is well and takes no more for now.
    Full,
}

/// The header by which a worker says that it has not run a request: `x-forebay-not-run: true` on a 503 (or 429).
pub const NOT_RUN_HEADER: &str = "x-forebay-not-run";

/// What an answer's status says of the instance. Failures without an answer (refused, broken, timed out) are
/// [`Outcome::Bad`].
#[must_use]
pub fn of_status(engine: Option<Engine>, status: u16) -> Outcome {
    match status {
        100..=399 => Outcome::Good,
        400..=499 => Outcome::Neutral,
        503 if refuses_before_running(engine) => Outcome::Neutral,
        _ => Outcome::Bad,
    }
}

/// Whether an answer says that the request was not run, so that it may be sent elsewhere whatever it is: by
/// [`NOT_RUN_HEADER`], or because the engine answers so only when it is full. `header` looks up a header's value
/// by its lower-case name.
pub fn not_run<'a>(
    engine: Option<Engine>,
    status: u16,
    header: impl Fn(&str) -> Option<&'a str>,
) -> bool {
    match status {
        503 | 429 if header(NOT_RUN_HEADER).is_some_and(is_true) => true,
        503 => refuses_before_running(engine),
        429 => engine.is_some_and(|engine| engine::profile(engine).full_by_429),
        _ => false,
    }
}

fn is_true(value: &str) -> bool {
    matches!(value.trim(), "1" | "true")
}

/// Whether the engine's 503 means that its queue is full or that it is not ready.
fn refuses_before_running(engine: Option<Engine>) -> bool {
    engine.is_some_and(|engine| engine::profile(engine).full_by_503)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_mistakes_and_a_full_house_say_nothing() {
        for status in [400, 401, 404, 408, 413, 422, 429, 499] {
            assert_eq!(of_status(None, status), Outcome::Neutral, "{status}");
        }
        assert_eq!(of_status(Some(Engine::Vllm), 503), Outcome::Neutral);
        assert_eq!(of_status(None, 503), Outcome::Bad);
        for status in [500, 502, 504, 599] {
            assert_eq!(of_status(Some(Engine::Vllm), status), Outcome::Bad, "{status}");
        }
        for status in [101, 200, 204, 302] {
            assert_eq!(of_status(None, status), Outcome::Good, "{status}");
        }
    }

    #[test]
    fn not_run_is_said_by_the_worker_or_known_of_the_engine() {
        let says =
            |value: &'static str| move |name: &str| (name == NOT_RUN_HEADER).then_some(value);
        assert!(not_run(None, 503, says("true")));
        assert!(not_run(None, 429, says("1")));
        assert!(!not_run(None, 503, says("false")));
        assert!(!not_run(None, 500, says("true")), "a failure may have run");
        assert!(!not_run(None, 503, |_| None));
        assert!(not_run(Some(Engine::Sglang), 503, |_| None));
        assert!(not_run(Some(Engine::Tgi), 429, |_| None));
        assert!(!not_run(Some(Engine::Vllm), 429, |_| None));
    }
}
