//! Which names a head may have, in one word. Most of what is looked for in a request is not there, and each look
//! into its map hashes a name: this tells it of nearly all with one look at each name that is there.

use http::HeaderMap;
use http::header::HeaderName;

/// A set of names that may hold more than were put in, never less: each name has one of 64 bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Names(u64);

impl Names {
    /// Those of a head.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut names = Self::default();
        headers.keys().for_each(|name| names.note(name));
        names
    }

    /// Those of a list.
    pub(super) const fn among(list: &[&str]) -> Self {
        let (mut names, mut at) = (Self(0), 0);
        while at < list.len() {
            names.0 |= bit(list[at].as_bytes());
            at += 1;
        }
        names
    }

    pub(super) fn note(&mut self, name: &HeaderName) {
        self.0 |= bit(name.as_str().as_bytes());
    }

    /// Whether this may be one of them, in whatever case it is written.
    pub(super) fn may_have(self, name: impl AsRef<str>) -> bool {
        self.0 & bit(name.as_ref().as_bytes()) != 0
    }

    /// Whether one of `others` may be.
    pub(super) fn may_have_any(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }
}

/// The length and three letters tell most names apart, and by these factors what is looked for from nearly all that
/// messages have.
const fn bit(name: &[u8]) -> u64 {
    let [first, .., last] = name else { return 1 };
    let letters = letter(*first) * 14 + letter(*last) * 7 + letter(name[name.len() / 2]) * 45;
    1 << ((name.len() * 24 + letters) & 63)
}

/// The same for both cases.
const fn letter(byte: u8) -> usize {
    (byte | 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST, TE, UPGRADE, USER_AGENT};

    #[test]
    fn what_is_there_may_be_there_and_most_that_is_not_cannot() {
        let usual = [HOST, CONTENT_TYPE, CONTENT_LENGTH, ACCEPT, USER_AGENT];
        let headers = usual.iter().map(|name| (name.clone(), "x".parse().expect("a value")));
        let names = Names::of(&headers.collect());
        assert!(usual.iter().all(|name| names.may_have(name)));
        assert!(names.may_have("Content-Length"));
        for absent in [TE, UPGRADE] {
            assert!(!names.may_have(&absent), "{absent}");
        }
        assert!(names.may_have_any(Names::among(&["te", "host"])));
        assert!(!names.may_have_any(Names::among(&["te", "upgrade"])));
    }
}
