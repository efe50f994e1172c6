//! What the proxy itself answers: every status in one place, each with a type, whether it is safe to
//! send the request again, and the two shapes that clients expect.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use thiserror::Error;

use super::body::{BodyError, ResponseBody};
use super::exchange::CLIENT_LEFT;
use super::upstream::UpstreamError;
use crate::tls::Fault;

/// Names what went wrong, in what the proxy itself answers and in nothing else.
pub(super) const ERROR: HeaderName = HeaderName::from_static("x-forebay-error");

/// Why a request got no worker's answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Refusal {
    #[error("no endpoint is called \"{0}\"")]
    UnknownEndpoint(String),
    #[error(
        "there are several endpoints: name one in the header x-forebay-endpoint or as the body's \"model\""
    )]
    EndpointNotNamed,
    #[error("endpoint \"{endpoint}\" has no variant \"{variant}\"")]
    UnknownVariant { endpoint: String, variant: String },
    #[error(
        "a key is needed: send a known one as \"Authorization: Bearer KEY\" or \"x-api-key: KEY\""
    )]
    Unauthenticated,
    #[error("the key \"{key}\" is not for endpoint \"{endpoint}\"")]
    NotAllowed { key: String, endpoint: String },
    #[error("this key may send {per_minute} requests a minute; try again later")]
    RateLimited { per_minute: u32, retry_after: u32 },
    #[error("the request's head is malformed: {0}")]
    Malformed(&'static str),
    #[error("the request's head is larger, or has more fields, than may be")]
    HeadTooLarge,
    #[error("as many requests as may be are under way over HTTP/2; try again later")]
    TooManyStreams,
    #[error("no instance is in service yet; try again in a moment")]
    NoInstance,
    #[error("{waiting} requests wait already, which is the limit; try again later")]
    QueueFull { waiting: u32, retry_after: u32 },
    #[error("no slot came free within {waited:?}; try again later")]
    QueueTimeout { waited: Duration, retry_after: u32 },
    #[error("the endpoint was removed while the request waited")]
    VariantRemoved,
    #[error(
        "the request was not run: no instance could be connected to, or would take it, and none is left to try"
    )]
    NoOtherInstance,
    #[error(
        "the request was not sent: no instance could be spoken to over TLS, the last one because {0}"
    )]
    TlsFailed(Fault),
    #[error("the instance broke the connection before it answered; the request may have run")]
    UpstreamBroken,
    #[error("the request's body broke off or was malformed")]
    BadBody,
    #[error("the client left in the middle of the request's body")]
    ClientLeft,
    #[error("the body has more than one \"model\": name one")]
    ModelTwice,
    #[error("the request's body has more than {0} bytes, which is the limit (`max_body_bytes`)")]
    BodyTooLarge(u64),
    #[error("no 100 (Continue) is sent over HTTP/2; send the request again without Expect")]
    ExpectationFailed,
    #[error("too little of the request's body came for {0:?}; send it again, without such a pause")]
    BodyTimeout(Duration),
    #[error("the request took longer than it or its variant allows; it may have run")]
    DeadlineExceeded,
    #[error("the instance did not begin to answer within {0:?}; the request may have run")]
    FirstByteTimeout(Duration),
    #[error("the instance sent nothing of the answer for {0:?}; the request may have run")]
    StreamIdle(Duration),
    #[error(
        "too many large bodies are being read to find out which model they ask for; name the endpoint in the header x-forebay-endpoint, or try again later"
    )]
    BodyBuffersFull,
}

/// How a client wants to be told what went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// As the `OpenAI` API does, and most others.
    OpenAi,
    /// As the SageMaker runtime does.
    SageMaker,
    /// By `grpc-status`.
    Grpc,
}

impl Refusal {
    /// What is wrong with a body that did not come whole.
    pub(super) fn of_body(error: &BodyError) -> Self {
        match error {
            BodyError::Stalled(limit) => Self::BodyTimeout(*limit),
            BodyError::Expectation => Self::ExpectationFailed,
            BodyError::TooLarge(most) => Self::BodyTooLarge(*most),
            BodyError::ModelTwice => Self::ModelTwice,
            BodyError::Io(_) => Self::ClientLeft,
            BodyError::Http2(error) if broke_off(error) => Self::ClientLeft,
            BodyError::Http2(_) | BodyError::Malformed(_) | BodyError::Trailers => Self::BadBody,
        }
    }

    /// Where an exchange broke off because the client's request did: what is wrong with that.
    pub(super) fn of_request(error: &UpstreamError) -> Option<Self> {
        match error {
            UpstreamError::Body(body) => Some(Self::of_body(body)),
            UpstreamError::Unsayable => {
                Some(Self::Malformed("its target cannot be said in HTTP/2"))
            }
            _ => None,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::UnknownEndpoint(_) | Self::UnknownVariant { .. } => StatusCode::NOT_FOUND,
            Self::EndpointNotNamed
            | Self::Malformed(_)
            | Self::BadBody
            | Self::ModelTwice
            | Self::ClientLeft => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::NotAllowed { .. } => StatusCode::FORBIDDEN,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ExpectationFailed => StatusCode::EXPECTATION_FAILED,
            Self::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::QueueFull { .. } | Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::TooManyStreams
            | Self::NoInstance
            | Self::QueueTimeout { .. }
            | Self::VariantRemoved
            | Self::BodyBuffersFull => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoOtherInstance | Self::TlsFailed(_) | Self::UpstreamBroken => {
                StatusCode::BAD_GATEWAY
            }
            Self::DeadlineExceeded | Self::FirstByteTimeout(_) | Self::StreamIdle(_) => {
                StatusCode::GATEWAY_TIMEOUT
            }
        }
    }

    /// The stable word in `x-forebay-error`.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::UnknownEndpoint(_) => "unknown_endpoint",
            Self::EndpointNotNamed => "endpoint_not_named",
            Self::UnknownVariant { .. } => "unknown_variant",
            Self::Unauthenticated => "unauthenticated",
            Self::NotAllowed { .. } => "endpoint_not_allowed",
            Self::RateLimited { .. } => "rate_limited",
            Self::Malformed(_) => "malformed_request",
            Self::HeadTooLarge => "head_too_large",
            Self::TooManyStreams => "too_many_connections",
            Self::NoInstance => "no_instance",
            Self::QueueFull { .. } => "queue_full",
            Self::QueueTimeout { .. } => "queue_timeout",
            Self::VariantRemoved => "variant_removed",
            Self::NoOtherInstance => "connect_failed",
            Self::TlsFailed(_) => "tls_failed",
            Self::UpstreamBroken => "upstream_broken",
            Self::BadBody => "bad_body",
            Self::ClientLeft => "client_left",
            Self::ModelTwice => "ambiguous_model",
            Self::BodyTooLarge(_) => "body_too_large",
            Self::ExpectationFailed => "expectation_failed",
            Self::BodyTimeout(_) => "body_timeout",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::FirstByteTimeout(_) => "first_byte_timeout",
            Self::StreamIdle(_) => "stream_idle",
            Self::BodyBuffersFull => "body_buffers_full",
        }
    }

    fn retry_after(&self) -> Option<u32> {
        match self {
            Self::NoInstance => Some(5),
            Self::TooManyStreams
            | Self::VariantRemoved
            | Self::NoOtherInstance
            | Self::TlsFailed(_)
            | Self::BodyBuffersFull => Some(1),
            Self::QueueFull { retry_after, .. }
            | Self::QueueTimeout { retry_after, .. }
            | Self::RateLimited { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// The code that it is counted under: the status that clients see, if there is still one to see it.
    pub(super) fn code(&self) -> u16 {
        if *self == Self::ClientLeft { CLIENT_LEFT } else { self.status().as_u16() }
    }

    /// The answer, in the shape that the client expects.
    pub(super) fn into_response(self, dialect: Dialect) -> Response<ResponseBody> {
        let message = self.to_string();
        let body = match dialect {
            Dialect::OpenAi => {
                serde_json::json!({ "error": { "type": self.kind(), "message": message } })
            }
            Dialect::SageMaker => {
                serde_json::json!({ "Message": message, "ErrorCode": self.sagemaker_code() })
            }
            Dialect::Grpc => return self.into_grpc(&message),
        };
        let mut response = Response::new(ResponseBody::full(Bytes::from(body.to_string())));
        *response.status_mut() = match self.status() {
            // The runtime protocol answers 400 for what it cannot find.
            StatusCode::NOT_FOUND if dialect == Dialect::SageMaker => StatusCode::BAD_REQUEST,
            status => status,
        };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.explain(response.headers_mut());
        if dialect == Dialect::SageMaker {
            let kind = HeaderValue::from_static(self.sagemaker_type());
            response.headers_mut().insert("x-amzn-errortype", kind);
        }
        response
    }

    /// A response of trailers alone, which come as its head
    /// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
    fn into_grpc(self, message: &str) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::full(Bytes::new()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(self.grpc_status()));
        let escaped: String = message
            .chars()
            .map(|c| if c == '%' || !(' '..='~').contains(&c) { '?' } else { c })
            .collect();
        if let Ok(message) = HeaderValue::from_str(&escaped) {
            headers.insert("grpc-message", message);
        }
        self.explain(headers);
        response
    }

    /// What is told whatever the shape.
    fn explain(&self, headers: &mut HeaderMap) {
        headers.insert(ERROR, HeaderValue::from_static(self.kind()));
        if let Some(seconds) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self, Self::Malformed(_) | Self::BadBody | Self::BodyTimeout(_)) {
            // What comes next on this connection may be anything (RFC 9112, 11.2), and is not waited for after
            // a 408 (RFC 9110, 15.5.9). HTTP/2 has no such field, and no such doubt.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if *self == Self::Unauthenticated {
            // RFC 9110, 11.6.1.
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"forebay\""));
        }
    }

    /// gRPC's code: `UNAVAILABLE` is what its clients try again by themselves. A head that is none is `INTERNAL`, as
    /// its own servers and the mapping of HTTP's codes have it
    /// (<https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>).
    fn grpc_status(&self) -> &'static str {
        match self.status() {
            _ if matches!(self, Self::Malformed(_)) => "13",
            StatusCode::BAD_REQUEST | StatusCode::EXPECTATION_FAILED => "3",
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "4",
            StatusCode::NOT_FOUND => "5",
            StatusCode::FORBIDDEN => "7",
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "8",
            StatusCode::UNAUTHORIZED => "16",
            _ => "14",
        }
    }

    fn sagemaker_type(&self) -> &'static str {
        match self.status() {
            StatusCode::NOT_FOUND
            | StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            | StatusCode::EXPECTATION_FAILED
            | StatusCode::REQUEST_TIMEOUT => "ValidationError",
            StatusCode::UNAUTHORIZED => "UnrecognizedClientException",
            StatusCode::FORBIDDEN => "AccessDeniedException",
            StatusCode::TOO_MANY_REQUESTS => "ThrottlingException",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
            _ => "InternalFailure",
        }
    }

    fn sagemaker_code(&self) -> &'static str {
        match self {
            Self::UnknownEndpoint(_) => "NO_SUCH_ENDPOINT",
            Self::UnknownVariant { .. } => "NO_SUCH_VARIANT",
            other => other.kind(),
        }
    }
}

/// Whether a client's connection ended in the middle of its body.
fn broke_off(error: &hyper::Error) -> bool {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    error.is_incomplete_message()
        || h2.is_some_and(|error| error.is_io() || error.is_remote())
        || error.is_closed()
        || io.is_some_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn shown(refusal: Refusal, dialect: Dialect) -> String {
        let response = refusal.into_response(dialect);
        let (parts, body) = response.into_parts();
        let body = futures_util::FutureExt::now_or_never(body.collect())
            .expect("a full body")
            .expect("no error")
            .to_bytes();
        format!("{} {:?} {}", parts.status, parts.headers, String::from_utf8_lossy(&body))
    }

    #[test]
    fn each_protocol_has_its_shape() {
        let refusal = Refusal::QueueFull { waiting: 7, retry_after: 3 };
        assert_eq!(
            shown(refusal.clone(), Dialect::OpenAi),
            r#"429 Too Many Requests {"content-type": "application/json", "x-forebay-error": "queue_full", "retry-after": "3"} {"error":{"message":"7 requests wait already, which is the limit; try again later","type":"queue_full"}}"#
        );
        assert_eq!(
            shown(Refusal::UnknownEndpoint("x".into()), Dialect::SageMaker),
            r#"400 Bad Request {"content-type": "application/json", "x-forebay-error": "unknown_endpoint", "x-amzn-errortype": "ValidationError"} {"ErrorCode":"NO_SUCH_ENDPOINT","Message":"no endpoint is called \"x\""}"#
        );
        assert_eq!(
            shown(Refusal::Unauthenticated, Dialect::SageMaker),
            r#"401 Unauthorized {"content-type": "application/json", "x-forebay-error": "unauthenticated", "www-authenticate": "Bearer realm=\"forebay\"", "x-amzn-errortype": "UnrecognizedClientException"} {"ErrorCode":"unauthenticated","Message":"a key is needed: send a known one as \"Authorization: Bearer KEY\" or \"x-api-key: KEY\""}"#
        );
        assert_eq!(
            shown(refusal, Dialect::Grpc),
            r#"200 OK {"content-type": "application/grpc", "grpc-status": "8", "grpc-message": "7 requests wait already, which is the limit; try again later", "x-forebay-error": "queue_full", "retry-after": "3"} "#
        );
    }

    /// One of each. A new one does not compile before it has its place here.
    fn each() -> Vec<Refusal> {
        let mut all = Vec::new();
        let mut next = Some(Refusal::UnknownEndpoint(String::new()));
        while let Some(refusal) = next {
            next = match &refusal {
                Refusal::UnknownEndpoint(_) => Some(Refusal::EndpointNotNamed),
                Refusal::EndpointNotNamed => Some(Refusal::UnknownVariant {
                    endpoint: String::new(),
                    variant: String::new(),
                }),
                Refusal::UnknownVariant { .. } => Some(Refusal::Unauthenticated),
                Refusal::Unauthenticated => {
                    Some(Refusal::NotAllowed { key: String::new(), endpoint: String::new() })
                }
                Refusal::NotAllowed { .. } => {
                    Some(Refusal::RateLimited { per_minute: 1, retry_after: 1 })
                }
                Refusal::RateLimited { .. } => Some(Refusal::Malformed("")),
                Refusal::Malformed(_) => Some(Refusal::HeadTooLarge),
                Refusal::HeadTooLarge => Some(Refusal::TooManyStreams),
                Refusal::TooManyStreams => Some(Refusal::NoInstance),
                Refusal::NoInstance => Some(Refusal::QueueFull { waiting: 1, retry_after: 1 }),
                Refusal::QueueFull { .. } => {
                    Some(Refusal::QueueTimeout { waited: Duration::ZERO, retry_after: 1 })
                }
                Refusal::QueueTimeout { .. } => Some(Refusal::VariantRemoved),
                Refusal::VariantRemoved => Some(Refusal::NoOtherInstance),
                Refusal::NoOtherInstance => Some(Refusal::TlsFailed(Fault::Expired)),
                Refusal::TlsFailed(_) => Some(Refusal::UpstreamBroken),
                Refusal::UpstreamBroken => Some(Refusal::BadBody),
                Refusal::BadBody => Some(Refusal::ClientLeft),
                Refusal::ClientLeft => Some(Refusal::ModelTwice),
                Refusal::ModelTwice => Some(Refusal::BodyTooLarge(1)),
                Refusal::BodyTooLarge(_) => Some(Refusal::ExpectationFailed),
                Refusal::ExpectationFailed => Some(Refusal::BodyTimeout(Duration::ZERO)),
                Refusal::BodyTimeout(_) => Some(Refusal::DeadlineExceeded),
                Refusal::DeadlineExceeded => Some(Refusal::FirstByteTimeout(Duration::ZERO)),
                Refusal::FirstByteTimeout(_) => Some(Refusal::StreamIdle(Duration::ZERO)),
                Refusal::StreamIdle(_) => Some(Refusal::BodyBuffersFull),
                Refusal::BodyBuffersFull => None,
            };
            all.push(refusal);
        }
        all
    }

    /// The rows of the README's table: status, type, whether it is safe to send again.
    fn documented() -> Vec<(String, String, String)> {
        let readme = include_str!("../../README.md");
        let (_, table) = readme.split_once("| status | type |").expect("the table");
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        rows.flat_map(|row| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let [_, status, kinds, _when, safe, _] = cells[..] else { panic!("{row}") };
            kinds.split(", ").map(move |kind| {
                (status.to_owned(), kind.trim_matches('`').to_owned(), safe.to_owned())
            })
        })
        .collect()
    }

    #[test]
    fn the_readme_has_each_status_and_type_and_no_others() {
        let mut documented = documented();
        for refusal in each() {
            let kind = refusal.kind();
            let row = documented.iter().position(|(_, documented, _)| documented == kind);
            let (status, _, safe) = documented.swap_remove(row.unwrap_or_else(|| panic!("{kind}")));
            assert_eq!(status, refusal.status().as_str(), "{kind}");
            if safe.contains("`Retry-After`") {
                assert!(refusal.retry_after().is_some(), "{kind}");
            }
            if refusal.status() == StatusCode::TOO_MANY_REQUESTS {
                assert!(safe.starts_with("after `Retry-After`"), "{kind}: {safe}");
            }
            assert!(!safe.is_empty(), "{kind}");
        }
        assert_eq!(documented, []);
    }

    #[test]
    fn the_readme_says_what_each_status_is_to_grpc() {
        let readme = include_str!("../../README.md");
        let (_, codes) = readme.split_once("`grpc-status`: ").expect("the list");
        let (codes, _) = codes.split_once(".\n").expect("its end");
        let codes = codes.replace('\n', " ");
        for refusal in each() {
            let (code, status) = (refusal.grpc_status(), refusal.status());
            let told = codes.split(", ").find(|part| part.starts_with(&format!("{code} for ")));
            let told = told.is_some_and(|statuses| statuses.contains(status.as_str()));
            assert!(told, "{code} for {status}: {codes}");
        }
    }
}
