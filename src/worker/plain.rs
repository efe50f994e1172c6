//! Plain answers: JSON in OpenAI's shapes, and the echo that tells a test what arrived.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Response, StatusCode, header, request};
use serde::Serialize;
use serde_json::{Value, json};

use super::body::{self, AnswerBody};
use super::desk::Ticket;
use super::openai::{Form, Job};
use super::stream::token_text;
use crate::runtime::{clock, rng};

/// Who answers.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// `--model`. Answers carry this name, whatever the request asked for.
    pub(super) model: String,
    /// `--instance-type`. OpenAI's answers carry it as `system_fingerprint`.
    pub(super) instance_type: String,
    /// The address that the worker listens on.
    pub(super) address: String,
}

/// JSON with a status. With a ticket, its last byte completes the request.
pub(super) fn json(
    status: StatusCode,
    value: &impl Serialize,
    ticket: Option<Ticket>,
    cut: bool,
) -> Response<AnswerBody> {
    // Serializing a value made of texts, numbers and maps of texts cannot fail.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    answer(status, "application/json", body::plain(Bytes::from(bytes), ticket, cut))
}

/// Any body with a status and a content type.
pub(super) fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: AnswerBody,
) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let value = header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

/// An error in OpenAI's shape.
pub(super) fn error(status: StatusCode, message: &str) -> Response<AnswerBody> {
    let kind = match status.as_u16() {
        429 => "rate_limit_error",
        400..500 => "invalid_request_error",
        503 => "service_unavailable_error",
        _ => "server_error",
    };
    let error = json!({"error": {
        "message": message, "type": kind, "param": null, "code": status.as_u16(),
    }});
    json(status, &error, None, false)
}

/// The complete answer to a job.
pub(super) fn reply(who: &Identity, job: &Job, head: &request::Parts, length: u64) -> Value {
    match &job.form {
        Form::Chat => completion(who, job, "chat.completion", "chatcmpl", |text| {
            json!({
                "index": 0, "message": {"role": "assistant", "content": text},
                "logprobs": null, "finish_reason": finish_reason(job),
            })
        }),
        Form::Completion => completion(who, job, "text_completion", "cmpl", |text| {
            json!({
                "index": 0, "text": text, "logprobs": null, "finish_reason": finish_reason(job),
            })
        }),
        Form::Embeddings(inputs) => embeddings(who, job, *inputs),
        Form::Invocation(input) => {
            let mut value = echo(who, head, length);
            value["text"] = text(job.tokens).into();
            value["tokens"] = job.tokens.into();
            value["input"] = input.clone().unwrap_or(Value::Null);
            value
        }
        Form::Echo => echo(who, head, length),
    }
}

fn completion(
    who: &Identity,
    job: &Job,
    object: &str,
    prefix: &str,
    choice: impl Fn(String) -> Value,
) -> Value {
    json!({
        "id": id(prefix),
        "object": object,
        "created": clock::now().0 / 1000,
        "model": who.model,
        "system_fingerprint": who.instance_type,
        "choices": [choice(text(job.tokens))],
        "usage": usage(job),
    })
}

fn embeddings(who: &Identity, job: &Job, inputs: usize) -> Value {
    let data: Vec<Value> = (0..inputs)
        .map(|index| {
            let numbers: Vec<f64> =
                (0..8_u32).map(|at| f64::from(at) / 8.0 + index as f64).collect();
            json!({"object": "embedding", "index": index, "embedding": numbers})
        })
        .collect();
    json!({
        "object": "list",
        "model": who.model,
        "data": data,
        "usage": {"prompt_tokens": job.prompt_tokens, "total_tokens": job.prompt_tokens},
    })
}

/// The list of the one model.
pub(super) fn models(who: &Identity) -> Value {
    let model = json!({"id": who.model, "object": "model", "created": 0, "owned_by": "forebay"});
    json!({"object": "list", "data": [model]})
}

/// What arrived: method, path, query, headers (lower-cased name to list of values), body length.
fn echo(who: &Identity, head: &request::Parts, length: u64) -> Value {
    let mut headers: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers.entry(name.as_str()).or_default().push(value);
    }
    json!({
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": head.uri.query().unwrap_or_default(),
        "version": format!("{:?}", head.version),
        "headers": headers,
        "body_bytes": length,
        "instance_type": who.instance_type,
        "model": who.model,
        "worker": who.address,
    })
}

/// Why the answer ends, in OpenAI's words.
pub(super) fn finish_reason(job: &Job) -> &'static str {
    if job.at_limit { "length" } else { "stop" }
}

/// The token counts, in OpenAI's words.
pub(super) fn usage(job: &Job) -> Value {
    json!({
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.tokens,
        "total_tokens": job.prompt_tokens + u64::from(job.tokens),
    })
}

/// A name for an answer that no other answer has.
pub(super) fn id(prefix: &str) -> String {
    format!("{prefix}-{}", rng::unique_suffix())
}

fn text(tokens: u32) -> String {
    let mut text = String::new();
    for index in 0..tokens {
        text.push_str(&token_text(index));
    }
    text
}
