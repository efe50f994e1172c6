//! Clients' keys: who asks, whether they may, and how often. A key comes as `Authorization: Bearer KEY` or as
//! `x-api-key: KEY` and is known by its digest; looking a digest up tells nothing of a key by the time it
//! takes. Whatever field a known key came in goes no further: workers never see it. A field with anything else
//! does, so that a worker's own credentials may come beside the key.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwapOption;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use metrics::Counter;

use super::refusal::Refusal;
use super::sticky;
use crate::decision::rate::{Bucket, Empty};
use crate::runtime::clock;
use crate::telemetry::keys::{KeyTraffic, unauthenticated};
use crate::types::access::{ApiKey, Digest, RateLimit};
use crate::types::{EndpointName, KeyName};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The keys in force; shared by all threads. Without any, everybody may ask.
#[derive(Debug)]
pub struct ApiKeys {
    known: ArcSwapOption<HashMap<Digest, Arc<Key>>>,
    unauthenticated: Counter,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: KeyName,
    /// By which the queue knows its requests.
    pub(super) caller: u64,
    endpoints: Option<Vec<EndpointName>>,
    rate: Option<RateLimit>,
    bucket: Arc<Bucket>,
    traffic: KeyTraffic,
}

impl ApiKeys {
    /// These are in force.
    #[must_use]
    pub fn new(keys: &[ApiKey]) -> Arc<Self> {
        let none = Self { known: ArcSwapOption::empty(), unauthenticated: unauthenticated() };
        none.replace(keys);
        Arc::new(none)
    }

    /// These are from now on. One that keeps its name and its rate keeps what it has taken of it; requests that
    /// have been let in go on.
    pub fn replace(&self, keys: &[ApiKey]) {
        let before = self.known.load();
        let bucket = |spec: &ApiKey| {
            let stays = |key: &&Arc<Key>| key.name == spec.name && key.rate == spec.rate;
            before.as_ref()?.values().find(stays).map(|key| Arc::clone(&key.bucket))
        };
        let key = |spec: &ApiKey| Key {
            name: spec.name.clone(),
            caller: sticky::hash(spec.name.as_str().as_bytes()),
            endpoints: spec.endpoints.clone(),
            rate: spec.rate,
            bucket: bucket(spec).unwrap_or_default(),
            traffic: KeyTraffic::new(&spec.name),
        };
        let known: HashMap<_, _> =
            keys.iter().map(|spec| (spec.digest, Arc::new(key(spec)))).collect();
        self.known.store((!known.is_empty()).then(|| Arc::new(known)));
    }

    /// Whose request this is, taken off its head; `None` where no key is needed. It counts against the key's
    /// rate.
    ///
    /// # Errors
    /// [`Refusal`] when there is no known key, or it has asked too often.
    pub(super) fn admit(
        &self,
        headers: &mut HeaderMap,
        now: Instant,
    ) -> Result<Option<Arc<Key>>, Refusal> {
        let known = self.known.load();
        let Some(known) = known.as_ref() else { return Ok(None) };
        let mut admitted = None;
        for field in FIELDS {
            let values = headers.get_all(&field).iter();
            let found = values
                .filter_map(|value| secret(&field, value))
                .find_map(|secret| known.get(&Digest::of(secret)));
            if let Some(key) = found {
                headers.remove(&field);
                admitted = admitted.or_else(|| Some(Arc::clone(key)));
            }
        }
        let Some(key) = admitted else {
            self.unauthenticated.increment(1);
            return Err(Refusal::Unauthenticated);
        };
        key.take(now)?;
        Ok(Some(key))
    }
}

/// Where a key may be.
const FIELDS: [HeaderName; 2] = [AUTHORIZATION, X_API_KEY];

/// The key in a field's value: all of it, or what is behind `Bearer` (RFC 6750, 2.1).
fn secret<'v>(field: &HeaderName, value: &'v HeaderValue) -> Option<&'v [u8]> {
    if *field == X_API_KEY {
        return Some(value.as_bytes().trim_ascii());
    }
    let (scheme, secret) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| secret.trim_ascii())
}

impl Key {
    fn take(&self, now: Instant) -> Result<(), Refusal> {
        let Some(rate) = self.rate else {
            self.traffic.allowed();
            return Ok(());
        };
        match self.bucket.take(rate, clock::uptime_ns_at(now)) {
            Ok(()) => {
                self.traffic.allowed();
                Ok(())
            }
            Err(Empty { wait_ms }) => {
                self.traffic.rate_limited();
                let seconds = u32::try_from(wait_ms.div_ceil(1_000)).unwrap_or(u32::MAX);
                Err(Refusal::RateLimited { per_minute: rate.per_minute, retry_after: seconds })
            }
        }
    }

    /// Whether it may ask this endpoint.
    pub(super) fn may_ask(&self, endpoint: &EndpointName) -> bool {
        self.endpoints.as_ref().is_none_or(|endpoints| endpoints.contains(endpoint))
    }

    /// The same, for a request that does ask it.
    ///
    /// # Errors
    /// [`Refusal::NotAllowed`].
    pub(super) fn asks(&self, endpoint: &EndpointName) -> Result<(), Refusal> {
        if self.may_ask(endpoint) {
            return Ok(());
        }
        self.traffic.not_allowed();
        Err(Refusal::NotAllowed { key: self.name.to_string(), endpoint: endpoint.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(name: &str, secret: &str) -> ApiKey {
        ApiKey {
            name: name.parse().expect("a name"),
            digest: Digest::of(secret.as_bytes()),
            endpoints: None,
            rate: None,
        }
    }

    /// Who is let in, or the refusal, and the names of the fields that are left.
    fn admit(keys: &ApiKeys, fields: &[(&'static str, &str)]) -> (String, Vec<String>) {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).expect("valid"));
        }
        let admitted = match keys.admit(&mut headers, clock::monotonic()) {
            Ok(None) => "anybody".to_owned(),
            Ok(Some(key)) => key.name.to_string(),
            Err(refusal) => refusal.kind().to_owned(),
        };
        (admitted, headers.keys().map(|name| name.as_str().to_owned()).collect())
    }

    #[test]
    fn a_known_key_is_taken_off_and_all_else_is_left() {
        let keys = ApiKeys::new(&[key("a", "secret-a"), key("b", "secret-b")]);
        for (fields, who, left) in [
            (&[("authorization", "Bearer secret-a")][..], "a", &[][..]),
            (&[("authorization", "bearer  secret-a ")], "a", &[]),
            (&[("x-api-key", "secret-b")], "b", &[]),
            (
                &[("x-api-key", "secret-b"), ("authorization", "Bearer theirs")],
                "b",
                &["authorization"],
            ),
            (&[("x-api-key", "theirs"), ("authorization", "Bearer secret-a")], "a", &["x-api-key"]),
            // The first of two decides, and neither goes on.
            (&[("x-api-key", "secret-b"), ("authorization", "Bearer secret-a")], "a", &[]),
            (&[("authorization", "Bearer theirs"), ("authorization", "Bearer secret-a")], "a", &[]),
            (&[], "unauthenticated", &[]),
            (&[("authorization", "Bearer ")], "unauthenticated", &["authorization"]),
            (&[("authorization", "Bearer secret-")], "unauthenticated", &["authorization"]),
            (&[("authorization", "Basic secret-a")], "unauthenticated", &["authorization"]),
            (&[("authorization", "secret-a")], "unauthenticated", &["authorization"]),
            (&[("x-api-key", "Bearer secret-a")], "unauthenticated", &["x-api-key"]),
        ] {
            let left: Vec<_> = left.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(admit(&keys, fields), (who.to_owned(), left), "{fields:?}");
        }
    }

    #[test]
    fn without_keys_nothing_is_looked_at() {
        let keys = ApiKeys::new(&[]);
        let (who, left) = admit(&keys, &[("authorization", "Bearer x")]);
        assert_eq!((who.as_str(), left.len()), ("anybody", 1));
    }

    #[test]
    fn a_key_that_stays_keeps_what_it_has_taken() {
        let limited = |per_minute| ApiKey {
            rate: Some(RateLimit { per_minute, burst: 1 }),
            ..key("a", "secret-a")
        };
        let keys = ApiKeys::new(&[limited(1)]);
        let ask = |keys: &ApiKeys| admit(keys, &[("x-api-key", "secret-a")]).0;
        assert_eq!(ask(&keys), "a");
        assert_eq!(ask(&keys), "rate_limited");
        keys.replace(&[limited(1), key("b", "secret-b")]);
        assert_eq!(ask(&keys), "rate_limited");
        keys.replace(&[limited(2)]);
        assert_eq!(ask(&keys), "a");
        keys.replace(&[key("a", "secret-new")]);
        assert_eq!(ask(&keys), "unauthenticated");
        keys.replace(&[]);
        assert_eq!(ask(&keys), "anybody");
    }

    #[test]
    fn the_next_token_is_told_in_whole_seconds() {
        let keys = ApiKeys::new(&[ApiKey {
            rate: Some(RateLimit { per_minute: 40, burst: 1 }),
            ..key("a", "s")
        }]);
        let now = clock::monotonic();
        let mut headers = HeaderMap::new();
        let mut ask = |at| {
            headers.insert(X_API_KEY, HeaderValue::from_static("s"));
            keys.admit(&mut headers, at).map(|_| ())
        };
        assert_eq!(ask(now), Ok(()));
        assert_eq!(ask(now), Err(Refusal::RateLimited { per_minute: 40, retry_after: 2 }));
        assert_eq!(ask(now + Duration::from_secs(2)), Ok(()));
    }

    #[test]
    fn endpoints_are_those_that_are_named() {
        let keys = ApiKeys::new(&[ApiKey {
            endpoints: Some(vec!["e".parse().expect("a name")]),
            ..key("a", "s")
        }]);
        let mut headers = HeaderMap::new();
        headers.insert(X_API_KEY, HeaderValue::from_static("s"));
        let key = keys.admit(&mut headers, clock::monotonic()).expect("known").expect("a key");
        assert_eq!(key.asks(&"e".parse().expect("a name")), Ok(()));
        let refused = key.asks(&"other".parse().expect("a name")).expect_err("not its own");
        assert_eq!(refused.kind(), "endpoint_not_allowed");
        assert!(!format!("{keys:?}").contains("secret"));
    }
}
