//! `[[proxy.api_key]]`: who may ask. What is given here is never shown back, not even in a mistake: it may be
//! the very secret that has no place in a file.

use toml::de::DeValue;

use super::reader::{Located, Table};
use super::values::{Read, Wrong};
use crate::types::access::{ApiKey, Digest, RateLimit};
use crate::types::spec::EndpointSpec;
use crate::types::{EndpointName, KeyName};

const PER_MINUTE: std::ops::RangeInclusive<u32> = 1..=60_000_000;
const BURST: std::ops::RangeInclusive<u32> = 1..=1_000_000;

impl Read for Digest {
    const EXPECTED: &'static str = "the SHA-256 of a key, as `forebay api-key` prints it";

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
            Wrong::Value(format!("must be {}: 64 hexadecimal digits in quotes", Self::EXPECTED))
        })
    }
}

/// The keys, and the places of the endpoints that they name.
pub(super) type Found = (Vec<ApiKey>, Vec<Located<EndpointName>>);

/// Reads the keys of `[proxy]`.
pub(super) fn read(proxy: &Table<'_>) -> Found {
    let mut keys: Vec<ApiKey> = Vec::new();
    let mut named = Vec::new();
    for table in proxy.tables("api_key", "[[proxy.api_key]]") {
        let name = table.need::<KeyName>("name", "which metrics and logs have");
        let digest = table.need::<Digest>("sha256", "as `forebay api-key` prints it");
        let endpoints = table.list::<EndpointName>("endpoints");
        let rate = rate(&table);
        if let Some(endpoints) = &endpoints {
            if endpoints.is_empty() {
                let rule =
                    "`endpoints` is empty: the key would be for none; without it, it is for all";
                table.sink().error(endpoints.at, rule);
            }
            named.extend(endpoints.value.iter().cloned());
        }
        let (Some(name), Some(digest)) = (name, digest) else { continue };
        if keys.iter().any(|key| key.name == name.value) {
            table.sink().error(name.at, format!("there are two keys called \"{}\"", name.value));
        }
        if let Some(other) = keys.iter().find(|key| key.digest == digest.value) {
            let rule = format!("`sha256` is that of the key \"{}\" as well", other.name);
            table.sink().error(digest.at, rule);
        }
        let endpoints = endpoints.map(|found| found.value.into_iter().map(|e| e.value).collect());
        keys.push(ApiKey { name: name.value, digest: digest.value, endpoints, rate });
    }
    (keys, named)
}

fn rate(table: &Table<'_>) -> Option<RateLimit> {
    let per_minute = table.get_in("requests_per_minute", PER_MINUTE, u32::to_string);
    let burst = table.get_in("burst", BURST, u32::to_string);
    if let (None, Some(burst)) = (&per_minute, &burst) {
        let rule = "`burst` goes with `requests_per_minute`, which is not there";
        table.sink().error(burst.at, rule);
    }
    let per_minute = per_minute?.value;
    // What comes in ten seconds.
    let burst = burst.map_or_else(|| per_minute.div_ceil(6), |found| found.value);
    Some(RateLimit { per_minute, burst })
}

/// In a file with endpoints, keys are for some of these. A proxy alone learns of them from its manager.
pub(super) fn check_endpoints(
    named: &[Located<EndpointName>],
    endpoints: &[EndpointSpec],
    sink: &super::mistake::Sink<'_>,
) {
    for name in named {
        if !endpoints.is_empty() && endpoints.iter().all(|endpoint| endpoint.name != name.value) {
            sink.error(name.at, format!("there is no endpoint \"{}\" in this file", name.value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_str;

    const SHA: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn read(keys: &str) -> Result<Vec<ApiKey>, String> {
        match load_str(keys, "t.toml") {
            Ok((config, _)) => Ok(config.api_keys),
            Err(mistakes) => {
                Err(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
            }
        }
    }

    #[test]
    fn keys_have_a_name_a_digest_and_what_they_may() {
        assert_eq!(read(""), Ok(Vec::new()));
        let keys = read(&format!(
            "[[proxy.api_key]]\nname = \"all\"\nsha256 = \"{SHA}\"\n\
             [[proxy.api_key]]\nname = \"some\"\nsha256 = \"{}\"\nendpoints = [\"e\", \"f\"]\n\
             requests_per_minute = 100\n",
            SHA.replace('b', "c")
        ))
        .expect("valid");
        assert_eq!(keys[0].digest, Digest::of(b"abc"));
        assert_eq!((&keys[0].endpoints, keys[0].rate), (&None, None));
        assert_eq!(keys[1].endpoints.as_ref().map(Vec::len), Some(2));
        assert_eq!(keys[1].rate, Some(RateLimit { per_minute: 100, burst: 17 }));
    }

    #[test]
    fn mistakes_say_what_is_wrong_and_never_what_was_given() {
        let key = format!("name = \"a\"\nsha256 = \"{SHA}\"\n");
        for (keys, says) in [
            ("[proxy]\napi_key = \"sesame-1\"".to_owned(), "write [[proxy.api_key]], not a text"),
            ("[proxy]\napi_key = [\"sesame-1\"]".to_owned(), "must be a table, not a text"),
            ("[[proxy.api_key]]".to_owned(), "needs `name`"),
            ("[[proxy.api_key]]\nname = \"a\"\nsha256 = \"sesame-1\"".to_owned(), "64 hexadecimal"),
            ("[[proxy.api_key]]\nname = \"a\"\nsha256 = 5318008".to_owned(), "64 hexadecimal"),
            ("[[proxy.api_key]]\nname = \"a\"\nsha256 = sesame-1".to_owned(), "not TOML"),
            ("[[proxy.api_key]]\nname = \"a\"\nkey = \"sesame-1\"".to_owned(), "unknown key `key`"),
            (format!("[[proxy.api_key]]\n{key}[[proxy.api_key]]\n{key}"), "two keys called \"a\""),
            (
                format!("[[proxy.api_key]]\n{key}[[proxy.api_key]]\n{key}"),
                "of the key \"a\" as well",
            ),
            (format!("[[proxy.api_key]]\n{key}endpoints = []"), "would be for none"),
            (format!("[[proxy.api_key]]\n{key}burst = 5"), "goes with `requests_per_minute`"),
            (format!("[[proxy.api_key]]\n{key}requests_per_minute = 0"), "must be 1 to"),
        ] {
            let mistakes = read(&keys).expect_err(&keys);
            assert!(mistakes.contains(says), "{keys}: {mistakes}");
            assert!(!mistakes.contains("sesame"), "{keys}: {mistakes}");
            assert!(!mistakes.contains("5318008"), "{keys}: {mistakes}");
        }
    }
}
