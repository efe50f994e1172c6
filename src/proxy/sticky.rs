//! Requests that belong together: what their headers say of it. The rules are in
//! [`crate::decision::session`].

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::admission::Affinity;
use super::names::Names;
use crate::decision::session;
use crate::types::Generation;
use crate::types::spec::RequestPolicy;

const SESSION: HeaderName = HeaderName::from_static("x-amzn-sagemaker-session-id");
const NEW_SESSION: HeaderName = HeaderName::from_static("x-amzn-sagemaker-new-session-id");

/// Where a request belongs, whose fields have these names. A session's name is turned back into the worker's own on
/// the way.
pub(super) fn affinity(headers: &mut HeaderMap, names: Names, policy: &RequestPolicy) -> Affinity {
    if names.may_have(SESSION)
        && let Some(name) = headers.get(SESSION).and_then(|value| value.to_str().ok())
    {
        if name == session::NEW_SESSION {
            return Affinity::None;
        }
        let (own, home) = session::untag(name);
        let key = stable_hash(own.as_bytes());
        let affinity = home.map_or(Affinity::Key(key), |home| Affinity::Home(home, key));
        if home.is_some()
            && let Ok(own) = HeaderValue::from_str(own)
        {
            headers.insert(SESSION, own);
        }
        return affinity;
    }
    let sticky = policy.sticky_header.as_ref().filter(|name| names.may_have(name));
    let sticky = sticky.and_then(|name| headers.get(name));
    sticky.map_or(Affinity::None, |value| Affinity::Key(stable_hash(value.as_bytes())))
}

/// A worker names a new session in `X-Amzn-SageMaker-Session-Id: NAME; Expires=…`; the client gets it as
/// `X-Amzn-SageMaker-New-Session-Id`, with the instance in the name. `…-Closed-Session-Id` is passed on.
pub(super) fn name_sessions(headers: &mut HeaderMap, names: Names, instance: Generation) {
    if !names.may_have(SESSION) {
        return;
    }
    let Some(value) = headers.remove(SESSION) else { return };
    let Ok(text) = value.to_str() else { return };
    let (name, attributes) = text.split_once(';').unwrap_or((text, ""));
    let mut tagged = session::tag(name.trim(), instance);
    if !attributes.is_empty() {
        tagged = format!("{tagged};{attributes}");
    }
    if let Ok(value) = HeaderValue::from_str(&tagged) {
        headers.insert(NEW_SESSION, value);
    }
}

/// A hash that nobody can choose to collide with another's: keyed anew in every process.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    use std::hash::BuildHasher;
    use std::sync::LazyLock;
    static KEY: LazyLock<std::hash::RandomState> = LazyLock::new(Default::default);
    KEY.hash_one(bytes)
}

/// The same in every proxy and after every restart (FNV-1a, 64 bits), so that all of them send a key to the
/// same backend.
fn stable_hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).expect("valid"));
        headers
    }

    #[test]
    fn a_session_goes_home_under_the_workers_own_name() {
        let policy = RequestPolicy::default();
        let affinity = |headers: &mut HeaderMap, policy: &RequestPolicy| {
            let names = Names::of(headers);
            affinity(headers, names, policy)
        };
        let mut headers = request("x-amzn-sagemaker-session-id", "abc-fb7");
        let home = affinity(&mut headers, &policy);
        assert_eq!(home, Affinity::Home(Generation(7), stable_hash(b"abc")));
        assert_eq!(headers[SESSION], "abc");
        let mut headers = request("x-amzn-sagemaker-session-id", "NEW_SESSION");
        assert_eq!(affinity(&mut headers, &policy), Affinity::None);
        let mut headers = request("x-amzn-sagemaker-session-id", "other");
        assert_eq!(affinity(&mut headers, &policy), Affinity::Key(stable_hash(b"other")));
        let policy = RequestPolicy { sticky_header: Some("x-user".into()), ..policy };
        let mut headers = request("x-user", "u1");
        assert_eq!(affinity(&mut headers, &policy), Affinity::Key(stable_hash(b"u1")));
    }

    #[test]
    fn a_new_session_is_renamed_and_tagged() {
        let mut headers =
            request("x-amzn-sagemaker-session-id", "abc; Expires=2030-01-01T00:00:00Z");
        let names = Names::of(&headers);
        name_sessions(&mut headers, names, Generation(3));
        assert_eq!(headers.get(SESSION), None);
        assert_eq!(headers[NEW_SESSION], "abc-fb3; Expires=2030-01-01T00:00:00Z");
    }
}
