//! Which variant a request is for: the runtime protocol's path, the header `x-forebay-endpoint`, the
//! body's `model`, the only endpoint there is, in this order.

use std::sync::Arc;

use http::header::HeaderName;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};

use super::body::RequestBody;
use super::headers::{self, Content, Length};
use super::model_field::{Finder, ModelField};
use super::names::Names;
use super::refusal::{Dialect, Refusal};
use super::router::Newest;
use super::snapshot::{Endpoint, Snapshot, Variant};
use crate::runtime::rng;

const ENDPOINT: HeaderName = HeaderName::from_static("x-forebay-endpoint");
const TARGET_VARIANT: HeaderName = HeaderName::from_static("x-amzn-sagemaker-target-variant");

/// What a request's head says of where it wants to go.
#[derive(Debug)]
pub(super) struct Target {
    /// From the runtime protocol's path.
    endpoint: Option<String>,
    /// What the worker is asked for, if not the path as it came.
    pub(super) worker_path: Option<PathAndQuery>,
    /// How its client wants to be told what went wrong.
    pub(super) dialect: Dialect,
    /// Of its fields.
    names: Names,
    content: Content,
}

impl Target {
    /// `POST /endpoints/{endpoint}/invocations` and `…/invocations-response-stream` become
    /// `POST /invocations`; every other path stays as it is.
    pub(super) fn of(parts: &Parts, names: Names) -> Self {
        let content = Content::of(&parts.headers);
        let dialect = if content == Content::Grpc { Dialect::Grpc } else { Dialect::OpenAi };
        let none = Self { endpoint: None, worker_path: None, dialect, names, content };
        let Some(rest) = parts.uri.path().strip_prefix("/endpoints/") else { return none };
        let Some((endpoint, "invocations" | "invocations-response-stream")) = rest.split_once('/')
        else {
            return none;
        };
        if parts.method != Method::POST {
            return none;
        }
        let worker_path = match parts.uri.query() {
            Some(query) => format!("/invocations?{query}").parse().ok(),
            None => Some(PathAndQuery::from_static("/invocations")),
        };
        let (endpoint, dialect) = (Some(endpoint.to_owned()), Dialect::SageMaker);
        Self { endpoint, worker_path, dialect, ..none }
    }

    /// The variant, where the head alone decides: the endpoint is named there, or there is only one
    /// variant. `None`: the body has to be asked.
    pub(super) fn resolve_by_head(
        &self,
        parts: &Parts,
        snapshot: &Snapshot,
    ) -> Option<Result<Arc<Variant>, Refusal>> {
        let Ok(by_header) = headers::only(&parts.headers, self.names, &ENDPOINT) else {
            let why = "x-forebay-endpoint is there more than once, or is no name";
            return Some(Err(Refusal::Malformed(why)));
        };
        let named = self.endpoint.as_deref().or(by_header);
        if let Some(name) = named {
            let endpoint = snapshot.endpoint(name);
            let unknown = || Err(Refusal::UnknownEndpoint(name.to_owned()));
            return Some(endpoint.map_or_else(unknown, |e| self.pick(e, None, &parts.headers)));
        }
        match snapshot.endpoints.as_slice() {
            [only] if only.variants.len() == 1 => Some(self.pick(only, None, &parts.headers)),
            _ => None,
        }
    }

    /// The variant, reading no more of the body than it takes to find its `model`, and of that at most
    /// `most` bytes. For what [`Target::resolve_by_head`] leaves open.
    ///
    /// # Errors
    /// [`Refusal`] when there is no such endpoint or variant, or none can be told.
    pub(super) async fn resolve_by_body(
        &self,
        parts: &Parts,
        body: &mut RequestBody,
        newest: &Newest,
        most: u64,
    ) -> Result<Arc<Variant>, Refusal> {
        let may_name = self.content == Content::Json && body.length() != Length::None;
        let finder = if may_name { read_model(body, most).await? } else { None };
        let model = match finder.as_ref().and_then(Finder::found) {
            Some(ModelField::Named(name)) => Some(name.as_str()),
            Some(ModelField::Twice) => return Err(Refusal::ModelTwice),
            Some(ModelField::Absent) | None => None,
        };
        let variant = newest.look(|snapshot| self.resolve_by_model(parts, model, snapshot));
        if let Some(finder) = finder {
            body.watch_model(finder);
        }
        variant
    }

    fn resolve_by_model(
        &self,
        parts: &Parts,
        model: Option<&str>,
        snapshot: &Snapshot,
    ) -> Result<Arc<Variant>, Refusal> {
        if let Some(model) = model {
            if let Some(endpoint) = snapshot.endpoint(model) {
                return self.pick(endpoint, None, &parts.headers);
            }
            if let Some(endpoint) = snapshot.endpoint_of_model(model) {
                return self.pick(endpoint, Some(model), &parts.headers);
            }
        }
        match (snapshot.endpoints.as_slice(), model) {
            ([only], _) => self.pick(only, None, &parts.headers),
            ([], _) => Err(Refusal::NoInstance),
            (_, Some(model)) => Err(Refusal::UnknownEndpoint(model.to_owned())),
            (_, None) => Err(Refusal::EndpointNotNamed),
        }
    }

    fn pick(
        &self,
        endpoint: &Endpoint,
        model: Option<&str>,
        fields: &HeaderMap,
    ) -> Result<Arc<Variant>, Refusal> {
        let named = headers::only(fields, self.names, &TARGET_VARIANT).map_err(|()| {
            Refusal::Malformed(
                "x-amzn-sagemaker-target-variant is there more than once, or is no name",
            )
        })?;
        let variant = match named {
            Some(name) => endpoint.variant(name).ok_or_else(|| Refusal::UnknownVariant {
                endpoint: endpoint.name.to_string(),
                variant: name.to_owned(),
            })?,
            None => endpoint.choose_variant(model, rng::draw()).ok_or(Refusal::NoInstance)?,
        };
        Ok(Arc::clone(variant))
    }
}

/// Whoever has found what the body says of its model.
async fn read_model(body: &mut RequestBody, most: u64) -> Result<Option<Finder>, Refusal> {
    let mut finder = Finder::new();
    let mut looked_at = 0;
    loop {
        for piece in body.pieces_after(looked_at) {
            looked_at += piece.len();
            finder.look(piece);
        }
        if finder.found().is_some() {
            return Ok(Some(finder));
        }
        if body.is_complete() || body.buffered() >= most {
            return Ok(None);
        }
        if !body.may_read_ahead() {
            return Err(Refusal::BodyBuffersFull);
        }
        std::future::poll_fn(|cx| body.poll_read_more(cx))
            .await
            .map_err(|error| Refusal::of_body(&error))?;
    }
}
