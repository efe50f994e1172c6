//! A small HTTP client for one manager: one request at a time, bounded in time and size.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::{Admin, CliError};
use crate::runtime::tokens::Token;
use crate::tls::{Connector, Connectors};
use crate::types::Address;
use crate::types::tls::WorkerTls;

/// Above the time that the manager gives itself for an answer, so that its own words arrive.
const TIME: Duration = Duration::from_secs(35);
/// How long the connection may take.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Bytes of an answer.
const BODY_LIMIT: usize = 64 * 1024 * 1024;

pub(super) struct Client {
    admin: Address,
    token: Option<Token>,
    http: legacy::Client<Connector, Full<Bytes>>,
}

impl Client {
    pub(super) fn new(admin: &Admin) -> Result<Self, CliError> {
        let (token, tls) = (admin.token.clone(), Arc::new(admin.tls.clone()));
        let admin: Address = admin
            .url
            .parse()
            .map_err(|error| CliError::Usage(format!("--admin or FOREBAY_ADMIN: {error}")))?;
        if !admin.is_tls() && *tls != WorkerTls::default() {
            let message = format!(
                "--admin or FOREBAY_ADMIN: {admin} must begin with https:// where certificates are given"
            );
            return Err(CliError::Usage(message));
        }
        let connector = Connector::new(admin.clone(), tls, Connectors::default(), CONNECT_TIME);
        let http = legacy::Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { admin, token, http })
    }

    pub(super) async fn get(&self, path: &str) -> Result<String, CliError> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<String, CliError> {
        self.send(Method::POST, path, Bytes::from(body.to_string())).await
    }

    pub(super) fn understand<T: DeserializeOwned>(&self, answer: &str) -> Result<T, CliError> {
        serde_json::from_str(answer).map_err(|error| self.not_understood(error.to_string()))
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<String, CliError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.admin))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| CliError::Usage(format!("{path}: {error}")))?;
        if let Some(token) = &self.token {
            request.headers_mut().insert(header::AUTHORIZATION, token.header());
        }
        timeout(TIME, self.exchange(request))
            .await
            .unwrap_or_else(|_| Err(self.unreachable(format!("no answer in {TIME:?}"))))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<String, CliError> {
        let answer = self.http.request(request).await.map_err(|e| self.unreachable(root(&e)))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), BODY_LIMIT)
            .collect()
            .await
            .map_err(|error| self.unreachable(error.to_string()))?
            .to_bytes();
        let text =
            String::from_utf8(body.into()).map_err(|e| self.not_understood(e.to_string()))?;
        if status.is_success() { Ok(text) } else { Err(self.refusal(status, &text)) }
    }

    /// The manager's own words, where it has some.
    fn refusal(&self, status: http::StatusCode, text: &str) -> CliError {
        let json: Value = serde_json::from_str(text).unwrap_or_default();
        match json["error"]["message"].as_str() {
            Some(message) => CliError::Refused(message.to_owned()),
            None => self.not_understood(format!("status {status}")),
        }
    }

    fn unreachable(&self, reason: String) -> CliError {
        CliError::Unreachable { admin: self.admin.to_string(), reason }
    }

    fn not_understood(&self, reason: String) -> CliError {
        CliError::NotUnderstood { admin: self.admin.to_string(), reason }
    }
}

/// The innermost cause, which is the one that tells.
fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}
