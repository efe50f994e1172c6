//! Request headers that shape one answer, for tests. They pass any proxy, whatever the body is.
//!
//! | header | instead of |
//! |---|---|
//! | `x-worker-first-token-ms` | `--first-token` |
//! | `x-worker-token-interval-ms` | `--tokens-per-second` |
//! | `x-worker-tokens` | `max_tokens` and `--default-tokens` (`max_tokens` stays the upper limit) |
//! | `x-worker-body-bytes` | the plain answer's body: so many bytes of `x` |
//! | `x-worker-fail` | nothing: failures on top of `--fail`, comma-separated, for this request |

use std::time::Duration;

use http::HeaderMap;

use super::fail::{FailMode, Faults};

/// Most tokens of one answer; what vLLM calls the context length.
pub(super) const MAX_TOKENS: u32 = 131_072;

const MAX_WAIT_MS: u64 = 24 * 60 * 60 * 1000;
const MAX_BODY_BYTES: u64 = 1 << 40;

/// What the headers of one request ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) first_token: Option<Duration>,
    pub(super) interval: Option<Duration>,
    pub(super) tokens: Option<u32>,
    pub(super) body_bytes: Option<u64>,
    pub(super) faults: Faults,
}

impl Wish {
    /// # Errors
    /// A sentence that names the header that is wrong.
    pub(super) fn read(headers: &HeaderMap, faults: Faults) -> Result<Self, String> {
        let wait =
            |name| number(headers, name, MAX_WAIT_MS).map(|ms| ms.map(Duration::from_millis));
        let tokens = number(headers, "x-worker-tokens", u64::from(MAX_TOKENS))?;
        Ok(Self {
            first_token: wait("x-worker-first-token-ms")?,
            interval: wait("x-worker-token-interval-ms")?,
            tokens: tokens.and_then(|tokens| u32::try_from(tokens).ok()),
            body_bytes: number(headers, "x-worker-body-bytes", MAX_BODY_BYTES)?,
            faults: failures(headers, faults)?,
        })
    }
}

fn number(headers: &HeaderMap, name: &str, most: u64) -> Result<Option<u64>, String> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    match value.to_str().ok().and_then(|text| text.parse::<u64>().ok()) {
        Some(number) if number <= most => Ok(Some(number)),
        _ => Err(format!("the header {name} must be a whole number of at most {most}")),
    }
}

fn failures(headers: &HeaderMap, mut faults: Faults) -> Result<Faults, String> {
    for value in headers.get_all("x-worker-fail") {
        let text = value.to_str().map_err(|_| "the header x-worker-fail is not text".to_owned())?;
        for mode in text.split(',') {
            let mode: FailMode =
                mode.trim().parse().map_err(|why| format!("in the header x-worker-fail, {why}"))?;
            faults = faults.with(mode);
        }
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(pairs: &[(&'static str, &'static str)]) -> Result<Wish, String> {
        let headers = pairs
            .iter()
            .map(|(k, v)| (http::HeaderName::from_static(k), HeaderValue::from_static(v)));
        Wish::read(&headers.collect(), Faults::default())
    }

    #[test]
    fn reads_all_of_them() {
        let wish = read(&[
            ("x-worker-first-token-ms", "5"),
            ("x-worker-token-interval-ms", "0"),
            ("x-worker-tokens", "3"),
            ("x-worker-body-bytes", "128"),
            ("x-worker-fail", "cut-body, error=503"),
        ])
        .expect("valid");
        assert_eq!(wish.first_token, Some(Duration::from_millis(5)));
        assert_eq!(wish.interval, Some(Duration::ZERO));
        assert_eq!((wish.tokens, wish.body_bytes), (Some(3), Some(128)));
        assert!(wish.faults.cut_body);
        assert_eq!(wish.faults.error, Some(503));
    }

    #[test]
    fn names_the_header_that_is_wrong() {
        for (name, value) in [
            ("x-worker-tokens", "131073"),
            ("x-worker-first-token-ms", "-1"),
            ("x-worker-body-bytes", "many"),
            ("x-worker-fail", "cut-body,nonsense"),
        ] {
            let why = read(&[(name, value)]).expect_err(name);
            assert!(why.contains(name), "{why}");
        }
    }
}
