//! What a request asks for, read from its path and body: OpenAI's forms, and SageMaker's
//! `/invocations`, whose body may be anything.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::body::{Arrived, KEPT_BYTES};
use super::wish::{MAX_TOKENS, Wish};

/// The form of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Form {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
    /// `/v1/embeddings`, for so many inputs
    Embeddings(usize),
    /// `/invocations`: tells what arrived; with the body if it was JSON and short
    Invocation(Option<Value>),
    /// Any other path: tells what arrived
    Echo,
}

/// One piece of work.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Job {
    pub(super) form: Form,
    pub(super) stream: bool,
    /// Whether the stream ends with the token counts (`stream_options.include_usage`).
    pub(super) include_usage: bool,
    /// Tokens to answer with.
    pub(super) tokens: u32,
    /// Whether `max_tokens` is what ends the answer.
    pub(super) at_limit: bool,
    /// An estimate, four bytes of the body each.
    pub(super) prompt_tokens: u64,
}

/// A request that is answered with a status from 400 to 499.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self { status: 400, message: message.into() }
    }
}

/// The parts of a request's body that matter here; all else is skipped. That an object has a `role`,
/// or a list elements, is checked by the types.
#[derive(Debug, Default, Deserialize)]
struct Asked<'a> {
    #[serde(borrow)]
    messages: Option<Vec<Message<'a>>>,
    prompt: Option<IgnoredAny>,
    input: Option<Value>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    n: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Message<'a> {
    #[serde(borrow, rename = "role")]
    _role: Cow<'a, str>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// Longest body that `/invocations` sends back.
const ECHOED_BYTES: usize = 64 * 1024;

/// The path's form, if its body has to be read for it; `None` for a plain echo.
pub(super) fn reads_body(path: &str) -> bool {
    matches!(path, "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings" | "/invocations")
}

/// What a request asks for.
///
/// # Errors
/// What is wrong with it, for the client.
pub(super) fn job(path: &str, body: &Arrived, wish: &Wish, tokens: u32) -> Result<Job, Refusal> {
    let prompt_tokens = (body.length / 4).max(1);
    if path == "/invocations" {
        return Ok(invocation(body, wish, tokens, prompt_tokens));
    }
    if !reads_body(path) {
        let (include_usage, at_limit, tokens) = (false, false, wish.tokens.unwrap_or(0));
        let form = Form::Echo;
        return Ok(Job { form, stream: false, include_usage, tokens, at_limit, prompt_tokens });
    }
    let asked = parse(body)?;
    let form = match path {
        "/v1/embeddings" => Form::Embeddings(inputs(asked.input.as_ref())?),
        "/v1/completions" if asked.prompt.is_none() => return Err(missing("prompt")),
        "/v1/completions" => Form::Completion,
        _ if asked.messages.as_ref().is_none_or(Vec::is_empty) => return Err(missing("messages")),
        _ => Form::Chat,
    };
    if asked.n.is_some_and(|n| n != 1) {
        return Err(Refusal::bad("'n' must be 1: this server gives one choice"));
    }
    let limit = limit(&asked)?;
    let wanted = wish.tokens.or(limit).unwrap_or(tokens);
    let tokens = if matches!(form, Form::Embeddings(_)) { 0 } else { wanted };
    Ok(Job {
        stream: asked.stream.unwrap_or(false) && !matches!(form, Form::Embeddings(_)),
        form,
        include_usage: asked.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
        tokens: limit.map_or(tokens, |limit| tokens.min(limit)),
        at_limit: limit.is_some_and(|limit| limit <= tokens),
        prompt_tokens,
    })
}

fn parse(body: &Arrived) -> Result<Asked<'_>, Refusal> {
    let Some(bytes) = &body.kept else {
        let message = format!("the body is longer than {KEPT_BYTES} bytes");
        return Err(Refusal { status: 413, message });
    };
    // serde would take a list for a struct, too.
    if bytes.trim_ascii_start().first().is_some_and(|byte| *byte != b'{') {
        return Err(Refusal::bad("the body is not a JSON object"));
    }
    serde_json::from_slice(bytes)
        .map_err(|why| Refusal::bad(format!("the body is not a valid request: {why}")))
}

fn missing(field: &str) -> Refusal {
    Refusal::bad(format!("'{field}' is missing or empty"))
}

/// How many embeddings are asked for: a text or a list of tokens is one, a list of either so many.
fn inputs(input: Option<&Value>) -> Result<usize, Refusal> {
    match input {
        Some(Value::String(_)) => Ok(1),
        Some(Value::Array(list)) if !list.is_empty() => {
            Ok(if list.iter().all(Value::is_number) { 1 } else { list.len() })
        }
        Some(Value::Null | Value::Array(_)) | None => Err(missing("input")),
        Some(_) => Err(Refusal::bad("'input' must be a text or a list")),
    }
}

fn limit(asked: &Asked<'_>) -> Result<Option<u32>, Refusal> {
    let Some(limit) = asked.max_completion_tokens.or(asked.max_tokens) else { return Ok(None) };
    match u32::try_from(limit) {
        Ok(limit @ 1..=MAX_TOKENS) => Ok(Some(limit)),
        _ => Err(Refusal::bad(format!("'max_tokens' must be from 1 to {MAX_TOKENS}, not {limit}"))),
    }
}

/// SageMaker leaves the body to the container, so nothing in it is refused: what is not JSON, or says
/// something else with these names, is plain input.
fn invocation(body: &Arrived, wish: &Wish, tokens: u32, prompt_tokens: u64) -> Job {
    let json = |bytes: &Bytes| serde_json::from_slice::<Value>(bytes).ok();
    let short = body.kept.as_ref().filter(|bytes| bytes.len() <= ECHOED_BYTES);
    let input = short.and_then(json);
    let streams = match &input {
        Some(value) => value["stream"] == true,
        None => parse(body).is_ok_and(|asked| asked.stream == Some(true)),
    };
    let limit = input.as_ref().and_then(|value| value["max_tokens"].as_u64());
    let limit = limit.map(|limit| u32::try_from(limit).unwrap_or(MAX_TOKENS).min(MAX_TOKENS));
    let tokens = wish.tokens.or(limit).unwrap_or(tokens);
    Job {
        form: Form::Invocation(input),
        stream: streams,
        include_usage: false,
        tokens: limit.map_or(tokens, |limit| tokens.min(limit)),
        at_limit: limit.is_some_and(|limit| limit <= tokens),
        prompt_tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fail::Faults;
    use super::*;

    const CHAT: &str = "/v1/chat/completions";

    fn wish(tokens: Option<u32>) -> Wish {
        let (first_token, interval, body_bytes) = (None, None, None);
        Wish { first_token, interval, tokens, body_bytes, faults: Faults::default() }
    }

    fn ask(path: &str, body: &str) -> Result<Job, Refusal> {
        let kept = Some(Bytes::copy_from_slice(body.as_bytes()));
        job(path, &Arrived { length: body.len() as u64, kept }, &wish(None), 16)
    }

    #[test]
    fn max_tokens_sets_the_length_and_the_header_stays_below_it() {
        let body = br#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":5}"#;
        let arrived = Arrived { length: 60, kept: Some(Bytes::from_static(body)) };
        for (header, tokens, at_limit) in [(None, 5, true), (Some(3), 3, false), (Some(9), 5, true)]
        {
            let job = job(CHAT, &arrived, &wish(header), 16).expect("valid");
            assert_eq!((job.tokens, job.at_limit), (tokens, at_limit), "{header:?}");
        }
        let free = ask(CHAT, r#"{"messages":[{"role":"user"}]}"#).expect("valid");
        assert_eq!((free.tokens, free.at_limit), (16, false));
    }

    #[test]
    fn bad_requests_are_refused_with_the_reason() {
        let cases = [
            (CHAT, "{", "EOF"),
            (CHAT, "[]", "not a JSON object"),
            (CHAT, "{}", "'messages'"),
            (CHAT, r#"{"messages":[]}"#, "'messages'"),
            (CHAT, r#"{"messages":[{"content":"x"}]}"#, "role"),
            (CHAT, r#"{"messages":[{"role":"user"}],"stream":"yes"}"#, "boolean"),
            (CHAT, r#"{"messages":[{"role":"user"}],"max_tokens":0}"#, "max_tokens"),
            (CHAT, r#"{"messages":[{"role":"user"}],"max_tokens":131073}"#, "max_tokens"),
            (CHAT, r#"{"messages":[{"role":"user"}],"max_tokens":-1}"#, "-1"),
            (CHAT, r#"{"messages":[{"role":"user"}],"n":2}"#, "'n'"),
            ("/v1/completions", "{}", "'prompt'"),
            ("/v1/embeddings", r#"{"input":[]}"#, "'input'"),
            ("/v1/embeddings", r#"{"input":5}"#, "'input'"),
        ];
        for (path, body, reason) in cases {
            let refusal = ask(path, body).expect_err(body);
            assert_eq!(refusal.status, 400, "{body}");
            assert!(refusal.message.contains(reason), "{body}: {}", refusal.message);
        }
        let huge = Arrived { length: 9 << 20, kept: None };
        assert_eq!(job(CHAT, &huge, &wish(None), 16).expect_err("too long").status, 413);
    }

    #[test]
    fn embeddings_count_their_inputs() {
        for (input, count) in [(r#""a""#, 1), ("[1,2]", 1), (r#"["a","b"]"#, 2), ("[[1],[2]]", 2)] {
            let job = ask("/v1/embeddings", &format!("{{\"input\":{input}}}")).expect("valid");
            assert_eq!(job.form, Form::Embeddings(count), "{input}");
        }
    }

    #[test]
    fn invocations_take_any_body() {
        let streamed = ask("/invocations", r#"{"stream":true,"max_tokens":3}"#).expect("valid");
        assert!(streamed.stream);
        assert_eq!(streamed.tokens, 3);
        for body in ["", "\u{1}\u{2}", "[1]", r#"{"stream":"yes","max_tokens":"x"}"#] {
            assert!(!ask("/invocations", body).expect(body).stream, "{body}");
        }
        let huge = Arrived { length: 9 << 20, kept: None };
        let job = job("/invocations", &huge, &wish(None), 16).expect("valid");
        assert_eq!(job.form, Form::Invocation(None));
    }
}
