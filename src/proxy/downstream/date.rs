//! The `Date` of an answer that has none (RFC 9110, 6.6.1), written once a second.

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

use bytes::BytesMut;

use crate::runtime::clock;

thread_local! {
    /// The second, and its line.
    static LATEST: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// Writes the line.
pub(super) fn write(into: &mut BytesMut) {
    let second = clock::wall_nanos() / 1_000_000_000;
    LATEST.with_borrow_mut(|(latest, line)| {
        if *latest != second {
            let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
            (*latest, *line) = (second, format!("date: {date}\r\n"));
        }
        into.extend_from_slice(line.as_bytes());
    });
}
