//! What a single value may be: [`Read`] turns TOML values into the types that the sections ask for, and
//! says in words what would have been right. [`Word`] is for the closed sets.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio_rustls::rustls;
use toml::de::DeValue;

use super::suggest;
use crate::types::spec::{Engine, Fallback, Rebalance, RoutingStrategy};
use crate::types::{
    Address, EndpointName, InstanceTypeName, KeyName, ModelName, Network, Protocol, ProviderName,
    VariantName,
};

/// Why a value is not what was asked for.
#[derive(Debug)]
pub(super) enum Wrong {
    /// It is of another type altogether.
    Type,
    /// It is of the right type; the text completes "`key` …", for example `must not be empty`.
    Value(String),
}

/// A type that a value can be read as.
pub(super) trait Read: Sized {
    /// What is expected, completing "`key` must be …".
    const EXPECTED: &'static str;

    /// Reads it.
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong>;
}

/// A closed set of words, each standing for one value.
pub(super) trait Word: Copy + 'static {
    /// All of them, in the order in which they are listed to people.
    const WORDS: &'static [(&'static str, Self)];
}

impl<W: Word> Read for W {
    const EXPECTED: &'static str = "one of its words, in quotes";

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let words = || W::WORDS.iter().map(|(word, _)| *word);
        let Some(text) = value.as_str() else {
            return Err(Wrong::Value(format!("must be one of {}", quoted(words()))));
        };
        W::WORDS.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let hint = suggest::nearest(text, words())
                .map_or_else(String::new, |near| format!("; did you mean \"{near}\"?"));
            Wrong::Value(format!("must be one of {}, not {}{hint}", quoted(words()), shown(value)))
        })
    }
}

impl Word for RoutingStrategy {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("LEAST_OUTSTANDING_REQUESTS", Self::LeastOutstandingRequests),
        ("RANDOM", Self::Random),
        ("LEAST_UTILIZATION", Self::LeastUtilization),
        ("PREDICTED_LATENCY", Self::PredictedLatency),
    ];
}

impl Word for Fallback {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("after_window", Self::AfterWindow),
        ("at_once", Self::AtOnce),
        ("parallel", Self::Parallel),
    ];
}

impl Word for Rebalance {
    const WORDS: &'static [(&'static str, Self)] =
        &[("on_scale_out", Self::OnScaleOut), ("active", Self::Active)];
}

impl Word for Protocol {
    const WORDS: &'static [(&'static str, Self)] =
        &[("http1", Self::Http1), ("h2c", Self::H2c), ("h2", Self::H2)];
}

impl Word for Engine {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("vllm", Self::Vllm),
        ("sglang", Self::Sglang),
        ("tgi", Self::Tgi),
        ("triton", Self::Triton),
        ("llama.cpp", Self::LlamaCpp),
        ("openai", Self::OpenAi),
    ];
}

impl Read for String {
    const EXPECTED: &'static str = "a text in quotes";

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        value.as_str().map(str::to_owned).ok_or(Wrong::Type)
    }
}

impl Read for PathBuf {
    const EXPECTED: &'static str = "a path in quotes";

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value.as_str().ok_or(Wrong::Type)? {
            "" => Err(Wrong::Value("must not be empty".to_owned())),
            path if path.contains('\0') => Err(Wrong::Value("must not contain NUL".to_owned())),
            path => Ok(path.into()),
        }
    }
}

/// A name that a certificate can be for.
#[derive(Debug)]
pub(super) struct ServerName(pub(super) String);

impl Read for ServerName {
    const EXPECTED: &'static str = "a name in quotes";

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = value.as_str().ok_or(Wrong::Type)?;
        match rustls::pki_types::ServerName::try_from(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err(Wrong::Value(format!(
                "must be a host's name or an IP address, without a port, not {}",
                shown(value)
            ))),
        }
    }
}

impl Read for bool {
    const EXPECTED: &'static str = "true or false";

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        value.as_bool().ok_or(Wrong::Type)
    }
}

impl Read for u32 {
    const EXPECTED: &'static str = "a whole number";

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let number = value.as_integer().ok_or(Wrong::Type)?;
        Self::from_str_radix(number.as_str(), number.radix()).map_err(|_| {
            let rule = if number.as_str().starts_with('-') {
                "must not be negative"
            } else {
                "is too large a number"
            };
            Wrong::Value(rule.to_owned())
        })
    }
}

impl Read for f64 {
    const EXPECTED: &'static str = "a number";

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = match value {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
            DeValue::Float(number) => number.as_str(),
            _ => return Err(Wrong::Type),
        };
        let number: Self = text.parse().map_err(|_| Wrong::Type)?;
        if number.is_finite() {
            Ok(number)
        } else {
            Err(Wrong::Value(format!("must be a finite number, not {text}")))
        }
    }
}

impl Read for Duration {
    const EXPECTED: &'static str = "a duration in quotes, with a unit, such as \"30s\"";

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let Some(text) = value.as_str() else {
            return Err(match value {
                DeValue::Integer(number) if number.radix() == 10 => Wrong::Value(format!(
                    "must be a duration with a unit: write \"{0}s\" if {0} seconds are meant",
                    number.as_str()
                )),
                _ => Wrong::Type,
            });
        };
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let text = shortened(text);
            return Err(Wrong::Value(format!(
                "must be a duration with a unit: write \"{text}s\" if {text} seconds are meant"
            )));
        }
        humantime::parse_duration(text).map_err(|_| {
            Wrong::Value(format!(
                "must be a duration such as \"500ms\", \"30s\" or \"1h 30m\", not {}",
                shown(value)
            ))
        })
    }
}

impl Read for SocketAddr {
    const EXPECTED: &'static str = "an address and port in quotes, such as \"127.0.0.1:8080\"";

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        value.as_str().ok_or(Wrong::Type)?.parse().map_err(|_| {
            Wrong::Value(format!(
                "must be an IP address and a port, such as \"127.0.0.1:8080\" or \"[::]:8080\", not {}",
                shown(value)
            ))
        })
    }
}

impl Read for Address {
    const EXPECTED: &'static str = "an address in quotes, such as \"http://127.0.0.1:9001\"";

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = value.as_str().ok_or(Wrong::Type)?;
        if text.contains('@') {
            // It may have a password, which is not shown.
            return Err(Wrong::Value("must be an address without user information".to_owned()));
        }
        text.parse().map_err(|_| {
            Wrong::Value(format!(
                "must look like \"http://host:port\", without a path, not {}",
                shown(value)
            ))
        })
    }
}

/// A number of bytes: a plain number, or a text with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ByteCount(pub(super) u64);

impl Read for Network {
    const EXPECTED: &'static str = "an IP address or a network, such as \"10.0.0.0/8\"";

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        value.as_str().ok_or(Wrong::Type)?.parse().map_err(|()| {
            Wrong::Value(format!(
                "must be an IP address or a network, such as \"10.0.0.0/8\", not {}",
                shown(value)
            ))
        })
    }
}

impl Read for ByteCount {
    const EXPECTED: &'static str = "a number of bytes, or a text with a unit such as \"1MiB\"";

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix())
                .map(Self)
                .map_err(|_| Wrong::Value("must be a number of bytes from 0 up".to_owned())),
            DeValue::String(text) => byte_count(text).map(Self).ok_or_else(|| {
                Wrong::Value(format!(
                    "must be a whole number with a unit (B, kB, KiB, MB, MiB, GB, GiB), such as \"1MiB\", not {}",
                    shown(value)
                ))
            }),
            _ => Err(Wrong::Type),
        }
    }
}

fn byte_count(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "b" => 1,
        "kb" => 1_000,
        "kib" => 1 << 10,
        "mb" => 1_000_000,
        "mib" => 1 << 20,
        "gb" => 1_000_000_000,
        "gib" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

macro_rules! read_name {
    ($($type:ty),*) => {$(
        impl Read for $type {
            const EXPECTED: &'static str = "a name in quotes";

            fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
                Self::new(value.as_str().ok_or(Wrong::Type)?)
                    .map_err(|refusal| Wrong::Value(format!("{}, not {}", refusal.rule, shown(value))))
            }
        }
    )*};
}

read_name!(EndpointName, VariantName, InstanceTypeName, ProviderName, ModelName, KeyName);

/// A value as a sentence shows it: strings in quotes and shortened, the rest by its type or figure.
pub(super) fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("\"{}\"", shortened(text)),
        DeValue::Integer(number) => format!("the number {}", shortened(&number.to_string())),
        DeValue::Float(number) => format!("the number {}", shortened(number.as_str())),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// What a value is, where it is of the wrong kind altogether: not what it says, which may be a secret.
pub(super) fn kind(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(_) => "a text".to_owned(),
        other => shown(other),
    }
}

/// At most 60 characters of a text on one line.
pub(super) fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        short.push('…');
    }
    short
}

fn quoted<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    let quoted: Vec<String> = words.into_iter().map(|word| format!("\"{word}\"")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Read>(text: &str) -> Result<T, String> {
        let value = DeValue::parse(text).expect("a TOML value");
        T::read(value.get_ref()).map_err(|wrong| match wrong {
            Wrong::Type => format!("must be {}", T::EXPECTED),
            Wrong::Value(rule) => rule,
        })
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(read("\"30s\""), Ok(Duration::from_secs(30)));
        assert_eq!(read("\"1h 30m\""), Ok(Duration::from_secs(5_400)));
        assert_eq!(read("\"0s\""), Ok(Duration::ZERO));
        for (text, seconds) in [("30", 30), ("\"30\"", 30)] {
            assert_eq!(
                read::<Duration>(text),
                Err(format!(
                    "must be a duration with a unit: write \"{seconds}s\" if {seconds} seconds are meant"
                ))
            );
        }
        for text in
            ["\"\"", "\"-1s\"", "\"30 parsecs\"", "1.5", "true", "\"99999999999999999999s\""]
        {
            assert!(read::<Duration>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_are_numbers_or_have_a_unit() {
        for (text, bytes) in [
            ("1024", 1024),
            ("0x10", 16),
            ("\"1MiB\"", 1 << 20),
            ("\"64 kb\"", 64_000),
            ("\"2GiB\"", 2 << 30),
        ] {
            assert_eq!(read(text), Ok(ByteCount(bytes)), "{text}");
        }
        for text in ["-1", "\"1\"", "\"MiB\"", "\"1.5MiB\"", "\"1XB\"", "\"99999999999GiB\"", "1.0"]
        {
            assert!(read::<ByteCount>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_checked() {
        assert_eq!(read("1_000"), Ok(1_000_u32));
        assert_eq!(read("0xff"), Ok(255_u32));
        assert_eq!(read::<u32>("-1"), Err("must not be negative".to_owned()));
        assert_eq!(read::<u32>("5000000000"), Err("is too large a number".to_owned()));
        assert!(read::<u32>("1.0").is_err());
        assert_eq!(read("1"), Ok(1.0_f64));
        assert_eq!(read("2.5e1"), Ok(25.0_f64));
        assert!(read::<f64>("nan").is_err());
        assert!(read::<f64>("inf").is_err());
        assert!(read::<f64>("1e999").is_err());
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_shown() {
        let refused = read::<Address>("\"http://user:sesame@host:1\"").expect_err("refused");
        assert!(!refused.contains("sesame"), "{refused}");
    }

    #[test]
    fn words_are_listed_and_suggested() {
        assert_eq!(read("\"RANDOM\""), Ok(RoutingStrategy::Random));
        assert_eq!(
            read::<Fallback>("\"at-once\""),
            Err("must be one of \"after_window\", \"at_once\", \"parallel\", not \"at-once\"; \
                 did you mean \"at_once\"?"
                .to_owned())
        );
    }

    #[test]
    fn shown_values_stay_on_one_short_line() {
        let long = format!("\"a\\n{}\"", "x".repeat(1_000));
        let value = DeValue::parse(&long).expect("a string");
        let shown = shown(value.get_ref());
        assert!(shown.starts_with("\"a\\nxxx") && shown.chars().count() < 70, "{shown}");
    }
}
