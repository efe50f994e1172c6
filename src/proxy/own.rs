//! What is answered here, whatever workers there are: the list of models, and an OPTIONS that goes no further.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};

use super::body::ResponseBody;
use super::head;
use super::keys::Key;
use super::refusal::Refusal;
use super::router::Router;
use crate::types::EndpointName;

/// What a request asks of the proxy itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    /// `GET /v1/models`.
    Models,
    /// Its last forward was the one to us (RFC 9110, 7.6.2).
    Options,
}

impl Own {
    /// `None`: it is for a worker.
    ///
    /// # Errors
    /// [`Refusal::Malformed`]: it does not say how far it may go.
    pub(super) fn of(parts: &mut Parts) -> Result<Option<Self>, Refusal> {
        if parts.method == Method::GET && parts.uri.path() == "/v1/models" {
            return Ok(Some(Self::Models));
        }
        Ok(head::ends_here(parts)?.then_some(Self::Options))
    }

    /// The answer to whoever has `key`.
    pub(super) fn answer(self, router: &Router, key: Option<&Key>) -> Response<ResponseBody> {
        match self {
            Self::Models => list_models(router, key),
            Self::Options => {
                let mut response = Response::new(ResponseBody::full(Bytes::new()));
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
        }
    }
}

/// What whoever has the key may ask for.
fn list_models(router: &Router, key: Option<&Key>) -> Response<ResponseBody> {
    let snapshot = router.current();
    let may_ask = |endpoint: &EndpointName| key.is_none_or(|key| key.may_ask(endpoint));
    let mut names = snapshot.model_names(may_ask);
    let endpoints = snapshot.endpoints.iter().map(|endpoint| &endpoint.name);
    for name in endpoints.filter(|name| may_ask(name)).map(EndpointName::as_str) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let data: Vec<_> = names
        .iter()
        .map(|id| serde_json::json!({ "id": id, "object": "model", "created": 0, "owned_by": "forebay" }))
        .collect();
    let body = serde_json::json!({ "object": "list", "data": data }).to_string();
    let mut response = Response::new(ResponseBody::full(Bytes::from(body)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
