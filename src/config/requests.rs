//! The keys of a variant that say how the proxy treats its requests.

use std::time::Duration;

use http::HeaderName;

use super::limits::{self, Span};
use super::reader::Table;
use super::values::Word;
use crate::types::spec::{EjectionPolicy, OnClientAbort, Replay, RequestPolicy};

impl Word for Replay {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("by_path", Self::ByPath),
        ("before_first_byte", Self::BeforeFirstByte),
        ("never_sent", Self::NeverSent),
    ];
}

impl Word for OnClientAbort {
    const WORDS: &'static [(&'static str, Self)] =
        &[("cancel", Self::Cancel), ("finish", Self::Finish)];
}

pub(super) fn read(table: &Table<'_>) -> RequestPolicy {
    let default = RequestPolicy::default();
    let span = |key, default: Duration| limits::duration_or(table, key, Span::Positive, default);
    RequestPolicy {
        replay: table.or("replay", default.replay),
        retry_percent: table.number_or("retry_percent", limits::PERCENT, default.retry_percent),
        caller_header: header(table, "caller_header").unwrap_or(default.caller_header),
        priority_header: header(table, "priority_header"),
        sticky_header: header(table, "sticky_header"),
        slow_start: limits::duration_or(table, "slow_start", Span::Any, default.slow_start),
        ejection: EjectionPolicy {
            threshold: table.number_or(
                "ejection_threshold",
                limits::EJECTION,
                default.ejection.threshold,
            ),
            base: span("ejection_base", default.ejection.base),
            max: span("ejection_max", default.ejection.max),
            max_share: table.number_or(
                "ejection_max_share",
                limits::SHARE,
                default.ejection.max_share,
            ),
        },
        stall_timeout: limits::duration(table, "stall_timeout", Span::Positive),
        request_timeout: limits::duration(table, "request_timeout", Span::Positive),
        first_byte_timeout: limits::duration(table, "first_byte_timeout", Span::Positive),
        stream_idle_timeout: limits::duration(table, "stream_idle_timeout", Span::Positive),
    }
}

fn header(table: &Table<'_>, key: &'static str) -> Option<String> {
    let found = table.get::<String>(key)?;
    if let Ok(name) = HeaderName::from_bytes(found.value.as_bytes()) {
        return Some(name.as_str().to_owned());
    }
    let rule = format!("`{key}` must be the name of a header, such as \"x-api-key\"");
    table.sink().error(found.at, rule);
    None
}
