//! A finished request as OTLP spans, named and described by OpenTelemetry's semantic conventions for HTTP
//! (stable) and for generative AI (in development; only what the proxy knows for certain: the operation
//! that the path stands for and the model that was asked). What has no convention is under `forebay.`.

use std::time::Instant;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};

use super::Traced;
use crate::telemetry::finished::{Attempt, FinishedRequest};
use crate::types::Address;

/// The trace is sampled (W3C), and whether a parent is remote is known (OTLP's `SpanFlags`).
const FLAGS: u32 = 0x101;
const PARENT_IS_REMOTE: u32 = 0x200;

/// Wall time, told from one reading of both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct WallClock {
    pub(super) now: Instant,
    pub(super) now_nanos: u64,
}

impl WallClock {
    fn at(self, instant: Instant) -> u64 {
        let ago = self.now.saturating_duration_since(instant);
        self.now_nanos.saturating_sub(u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// How many spans `request` has.
pub(super) fn count(request: &FinishedRequest) -> u64 {
    let earlier = request.traced.as_ref().map_or(0, |traced| traced.earlier.len());
    1 + earlier as u64 + u64::from(request.attempt.is_some())
}

/// The spans of `request`, the server's first; none if it is in no trace.
pub(super) fn of(request: &FinishedRequest, clock: WallClock) -> Vec<Span> {
    let Some(traced) = &request.traced else { return Vec::new() };
    let tries = traced.earlier.iter().chain(&request.attempt);
    let tries = tries.enumerate().map(|(number, attempt)| {
        let resend = i64::try_from(number).unwrap_or(i64::MAX);
        client(request, traced, attempt, resend, clock)
    });
    std::iter::once(server(request, traced, clock)).chain(tries).collect()
}

fn server(request: &FinishedRequest, traced: &Traced, clock: WallClock) -> Span {
    let route = route(request.path());
    let method = method(request);
    let code = request.code();
    let mut attributes = vec![
        text("http.request.method", method),
        text("url.scheme", "http"),
        text("url.path", request.path()),
        number("http.response.status_code", code),
        count_of("http.request.body.size", request.bytes_in),
        count_of("http.response.body.size", request.bytes_out),
        KeyValue {
            value: any(Value::BoolValue(request.client_left)),
            ..key("forebay.client_left")
        },
        milliseconds("forebay.queue_ms", request.queued),
        number("forebay.tries", request.tries),
    ];
    if method == OTHER {
        attributes.push(text("http.request.method_original", request.method.as_str()));
    }
    attributes.extend(route.map(|route| text("http.route", route)));
    attributes.extend(places(request));
    if let Some(attempt) = &request.attempt {
        attributes.push(text("forebay.instance", attempt.instance.as_str()));
        attributes.push(text("forebay.instance_type", attempt.instance_type.as_str()));
    }
    // Of a server only its own failures are errors.
    let failure = request.has_failed().then(|| failure(request.error, code));
    let left = (request.client_left && request.status.is_none()).then(|| "client_left".to_owned());
    attributes.extend(failure.clone().or(left).map(|word| text("error.type", &word)));
    let parent_is_remote = if traced.parent.is_some() { PARENT_IS_REMOTE } else { 0 };
    Span {
        trace_id: traced.trace_id.to_vec(),
        span_id: traced.span_id.to_vec(),
        trace_state: state(traced),
        parent_span_id: traced.parent.map(|id| id.to_vec()).unwrap_or_default(),
        flags: FLAGS | parent_is_remote,
        name: match (name_of(method), route) {
            (method, Some(route)) => format!("{method} {route}"),
            (method, None) => method.to_owned(),
        },
        kind: SpanKind::Server.into(),
        start_time_unix_nano: clock.at(request.arrived_at),
        end_time_unix_nano: clock.at(request.ended_at),
        attributes,
        status: failure.map(error_status),
        ..Span::default()
    }
}

fn client(
    request: &FinishedRequest,
    traced: &Traced,
    attempt: &Attempt,
    resend: i64,
    clock: WallClock,
) -> Span {
    let method = method(request);
    let path = worker_path(request.path());
    let mut attributes = vec![text("http.request.method", method)];
    if let Some(address) = &attempt.address {
        let (host, port) = host_and_port(address);
        attributes.push(text("server.address", host));
        attributes.extend(port.map(|port| number("server.port", port)));
        attributes.push(text("url.full", &format!("{address}{path}")));
    }
    attributes.extend(attempt.status.map(|code| number("http.response.status_code", code)));
    if resend > 0 {
        let value = any(Value::IntValue(resend));
        attributes.push(KeyValue { value, ..key("http.request.resend_count") });
    }
    attributes.extend(places(request));
    attributes.push(text("forebay.instance", attempt.instance.as_str()));
    attributes.push(text("forebay.instance_type", attempt.instance_type.as_str()));
    if let Some(first) = attempt.first_chunk_at {
        let after = first.saturating_duration_since(attempt.sent_at);
        attributes.push(milliseconds("forebay.first_chunk_ms", after));
    }
    let operation = operation(path);
    if let Some(operation) = operation {
        attributes.push(text("gen_ai.operation.name", operation));
        attributes.push(text("gen_ai.request.model", attempt.model.as_str()));
    }
    // Of a client every answer that says so is an error.
    let failed = attempt.error.is_some() || attempt.status.is_some_and(|code| code >= 400);
    let failure = failed.then(|| failure(attempt.error, attempt.status.unwrap_or(0)));
    attributes.extend(failure.as_ref().map(|word| text("error.type", word)));
    Span {
        trace_id: traced.trace_id.to_vec(),
        span_id: attempt.span_id.to_vec(),
        trace_state: state(traced),
        parent_span_id: traced.span_id.to_vec(),
        flags: FLAGS,
        name: match operation {
            Some(operation) => format!("{operation} {}", attempt.model),
            None => name_of(method).to_owned(),
        },
        kind: SpanKind::Client.into(),
        start_time_unix_nano: clock.at(attempt.sent_at),
        end_time_unix_nano: clock.at(attempt.ended_at.unwrap_or(request.ended_at)),
        attributes,
        status: failure.map(error_status),
        ..Span::default()
    }
}

fn places(request: &FinishedRequest) -> Vec<KeyValue> {
    let Some(variant) = &request.variant else { return Vec::new() };
    vec![
        text("forebay.endpoint", variant.endpoint.as_str()),
        text("forebay.variant", variant.variant.as_str()),
    ]
}

/// What `error.type` says: our own word, or the status.
fn failure(error: Option<&'static str>, code: u16) -> String {
    error.map_or_else(|| code.to_string(), str::to_owned)
}

fn error_status(message: String) -> Status {
    Status { message, code: StatusCode::Error.into() }
}

/// For methods that nobody knows, of which there may be any number.
const OTHER: &str = "_OTHER";

fn method(request: &FinishedRequest) -> &str {
    match request.method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE"
        | "PATCH" | "QUERY") => known,
        _ => OTHER,
    }
}

/// A method as a span is named by it.
fn name_of(method: &str) -> &str {
    if method == OTHER { "HTTP" } else { method }
}

/// The path's pattern, for those that are few.
fn route(path: &str) -> Option<&'static str> {
    match after_endpoint(path) {
        Some("invocations") => Some("/endpoints/{endpoint}/invocations"),
        Some("invocations-response-stream") => {
            Some("/endpoints/{endpoint}/invocations-response-stream")
        }
        _ => [
            "/v1/models",
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/responses",
            "/v1/embeddings",
        ]
        .into_iter()
        .find(|known| *known == path),
    }
}

/// The operation that a path of the `OpenAI` API stands for, in the convention's words.
fn operation(path: &str) -> Option<&'static str> {
    match path {
        "/v1/chat/completions" | "/v1/responses" => Some("chat"),
        "/v1/completions" => Some("text_completion"),
        "/v1/embeddings" => Some("embeddings"),
        _ => None,
    }
}

/// What the worker is asked for.
fn worker_path(path: &str) -> &str {
    match after_endpoint(path) {
        Some("invocations" | "invocations-response-stream") => "/invocations",
        _ => path,
    }
}

fn after_endpoint(path: &str) -> Option<&str> {
    path.strip_prefix("/endpoints/")?.split_once('/').map(|(_, rest)| rest)
}

fn host_and_port(address: &Address) -> (&str, Option<u16>) {
    let authority = address.authority();
    match authority.rsplit_once(':') {
        Some((host, port)) => (host.trim_matches(['[', ']']), port.parse().ok()),
        None => (authority, None),
    }
}

fn state(traced: &Traced) -> String {
    let state = traced.state.as_ref().and_then(|state| state.to_str().ok());
    state.unwrap_or_default().to_owned()
}

fn key(name: &str) -> KeyValue {
    KeyValue { key: name.to_owned(), ..KeyValue::default() }
}

#[allow(clippy::unnecessary_wraps, reason = "as the message's field has it")]
fn any(value: Value) -> Option<AnyValue> {
    Some(AnyValue { value: Some(value) })
}

/// An attribute that is a text.
pub(super) fn text(name: &str, value: &str) -> KeyValue {
    KeyValue { value: any(Value::StringValue(value.to_owned())), ..key(name) }
}

fn number(name: &str, value: impl Into<i64>) -> KeyValue {
    KeyValue { value: any(Value::IntValue(value.into())), ..key(name) }
}

fn count_of(name: &str, value: u64) -> KeyValue {
    number(name, i64::try_from(value).unwrap_or(i64::MAX))
}

fn milliseconds(name: &str, duration: std::time::Duration) -> KeyValue {
    KeyValue { value: any(Value::DoubleValue(duration.as_secs_f64() * 1e3)), ..key(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_there_are_few_of_is_in_names() {
        assert_eq!(route("/v1/chat/completions"), Some("/v1/chat/completions"));
        assert_eq!(route("/endpoints/any/invocations"), Some("/endpoints/{endpoint}/invocations"));
        for many in ["/", "/v1/chat/completions/7", "/endpoints/e/other", "/endpoints/e"] {
            assert_eq!(route(many), None, "{many}");
        }
        assert_eq!(worker_path("/endpoints/e/invocations-response-stream"), "/invocations");
        assert_eq!(worker_path("/endpoints/e/other"), "/endpoints/e/other");
    }

    #[test]
    fn hosts_and_ports_are_told_apart() {
        let shown = |address: &str| {
            let address: Address = address.parse().expect("valid");
            let (host, port) = host_and_port(&address);
            (host.to_owned(), port)
        };
        assert_eq!(shown("http://gpu-1:8000"), ("gpu-1".to_owned(), Some(8000)));
        assert_eq!(shown("http://[::1]:80"), ("::1".to_owned(), Some(80)));
    }

    #[test]
    fn times_are_told_from_one_reading() {
        let now = crate::runtime::clock::monotonic();
        let clock = WallClock { now, now_nanos: 10_000_000_000 };
        assert_eq!(clock.at(now), 10_000_000_000);
        let earlier = now.checked_sub(std::time::Duration::from_millis(3)).expect("running");
        assert_eq!(clock.at(earlier), 9_997_000_000);
    }
}
