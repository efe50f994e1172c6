//! Who may ask: the keys of clients as the config names them. Keys themselves are kept nowhere, only their
//! digests are.

use std::fmt;
use std::str::FromStr;

use ring::digest::{SHA256, digest};

use super::{EndpointName, KeyName};

/// The SHA-256 of a secret. Neither salted nor slow to compute: the secrets are random and long enough that
/// nobody can try them all, and each request needs one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of these bytes.
    #[must_use]
    pub fn of(secret: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, secret).as_ref());
        Self(bytes)
    }
}

/// Of 64 hexadecimal digits, as `sha256sum` prints them.
impl FromStr for Digest {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(());
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(drop)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Nothing of it: what is for debugging ends up in logs.
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(…)")
    }
}

/// One key that clients may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// What it is called in metrics and logs.
    pub name: KeyName,
    /// By which it is known.
    pub digest: Digest,
    /// The endpoints that it may ask; `None`: all.
    pub endpoints: Option<Vec<EndpointName>>,
    /// How many requests it may send; `None`: any number.
    pub rate: Option<RateLimit>,
}

/// So many requests in the long run, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// In the long run; at least 1.
    pub per_minute: u32,
    /// At once, after a time without any; at least 1.
    pub burst: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2, appendix B.1.
    const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn digests_are_those_of_sha256sum() {
        assert_eq!(Digest::of(b"abc").to_string(), OF_ABC);
        assert_eq!(OF_ABC.parse(), Ok(Digest::of(b"abc")));
        assert_eq!(OF_ABC.to_uppercase().parse(), Ok(Digest::of(b"abc")));
        for wrong in ["", &OF_ABC[1..], &OF_ABC.replace('b', "g"), &format!("{OF_ABC}0")] {
            assert_eq!(wrong.parse::<Digest>(), Err(()), "{wrong}");
        }
        let shown = format!("{:?}", Digest::of(b"abc"));
        assert!(!shown.contains("ba78"), "{shown}");
    }
}
