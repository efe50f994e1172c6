//! Streamed answers: server-sent events, one for each token, produced as the client takes them.

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};

use super::body::{AnswerBody, Broken};
use super::desk::Ticket;
use super::openai::{Form, Job};
use super::pace::Pace;
use super::plain::{self, Identity};
use crate::runtime::clock;

/// The text of one token. Holds nothing that JSON would escape.
pub(super) fn token_text(index: u32) -> String {
    format!("t{index} ")
}

/// The events of one answer. Drop it and the request is cancelled.
///
/// A chat's first event, which carries the role and no text, comes with the first token; the last one
/// holds the finish reason, the usage if it was asked for, and `[DONE]`.
pub(super) fn events(
    who: &Identity,
    job: Job,
    ticket: Ticket,
    pace: Pace,
    cut_after: Option<u64>,
) -> AnswerBody {
    let template = Template::new(who, &job);
    let events = Events { job, ticket, pace, cut_after, template, sent: 0, step: Step::Open };
    StreamBody::new(stream::unfold(Some(events), |events| async move { events?.next().await }))
        .boxed_unsync()
}

struct Events {
    job: Job,
    ticket: Ticket,
    pace: Pace,
    cut_after: Option<u64>,
    template: Template,
    sent: u64,
    step: Step,
}

#[derive(Clone, Copy)]
enum Step {
    /// Waiting for the slot and the first token.
    Open,
    /// The token with this index comes next.
    Token(u32),
}

/// What comes next, and the rest of the answer behind it.
type Item = (Result<Frame<Bytes>, Broken>, Option<Events>);

impl Events {
    async fn next(mut self) -> Option<Item> {
        if self.cut_after == Some(self.sent) {
            // One pause, in which hyper writes out what it has; at an error it would drop that.
            tokio::task::yield_now().await;
            self.ticket.fail();
            return Some((Err(Broken), None));
        }
        self.sent += 1;
        match self.step {
            Step::Open => {
                self.ticket.enter().await;
                self.pace.first().await;
                self.step = Step::Token(0);
                match self.template.opening.take() {
                    Some(opening) => Some((Ok(Frame::data(opening)), Some(self))),
                    None => self.token(0).await,
                }
            }
            Step::Token(index) => self.token(index).await,
        }
    }

    async fn token(mut self, index: u32) -> Option<Item> {
        if index >= self.job.tokens {
            let closing = std::mem::take(&mut self.template.closing);
            self.ticket.complete();
            return Some((Ok(Frame::data(closing)), None));
        }
        if index > 0 {
            self.pace.next().await;
        }
        self.step = Step::Token(index + 1);
        Some((Ok(Frame::data(self.template.token(index))), Some(self)))
    }
}

/// The texts of the events, made once: only the token differs from one to the next.
struct Template {
    opening: Option<Bytes>,
    before: String,
    after: String,
    closing: Bytes,
}

/// Stands for the token's text in the event that is cut in two around it.
const MARK: &str = "\u{fffc}";

impl Template {
    fn new(who: &Identity, job: &Job) -> Self {
        let event = Event::new(who, job);
        let token = event.token(MARK);
        let (before, after) = token.split_once(MARK).unwrap_or((&token, ""));
        let (before, after) = (before.to_owned(), after.to_owned());
        let opening = (job.form == Form::Chat).then(|| Bytes::from(event.role()));
        Self { opening, before, after, closing: Bytes::from(event.closing(job)) }
    }

    fn token(&self, index: u32) -> Bytes {
        Bytes::from([self.before.as_str(), &token_text(index), &self.after].concat())
    }
}

/// Builds the events of one answer.
struct Event {
    chat: bool,
    /// What OpenAI's events have in common; `None` for `/invocations`.
    shared: Option<Value>,
}

impl Event {
    fn new(who: &Identity, job: &Job) -> Self {
        let chat = job.form == Form::Chat;
        let (prefix, object) =
            if chat { ("chatcmpl", "chat.completion.chunk") } else { ("cmpl", "text_completion") };
        let shared = matches!(job.form, Form::Chat | Form::Completion).then(|| {
            json!({
                "id": plain::id(prefix), "object": object, "created": clock::now().0 / 1000,
                "model": who.model, "system_fingerprint": who.instance_type,
            })
        });
        Self { chat, shared }
    }

    fn role(&self) -> String {
        self.choice(&json!({"role": "assistant", "content": ""}), None)
    }

    fn token(&self, text: &str) -> String {
        if self.chat { self.choice(&json!({"content": text}), None) } else { self.text(text, None) }
    }

    fn closing(&self, job: &Job) -> String {
        let reason = Some(plain::finish_reason(job));
        let mut closing = match &self.shared {
            None => String::new(),
            Some(_) if self.chat => self.choice(&json!({}), reason),
            Some(_) => self.text("", reason),
        };
        if let (Some(shared), true) = (&self.shared, job.include_usage) {
            let mut event = shared.clone();
            event["choices"] = json!([]);
            event["usage"] = plain::usage(job);
            closing.push_str(&data(&event));
        }
        closing.push_str("data: [DONE]\n\n");
        closing
    }

    fn choice(&self, delta: &Value, finish_reason: Option<&str>) -> String {
        self.event(json!({
            "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason,
        }))
    }

    fn text(&self, text: &str, finish_reason: Option<&str>) -> String {
        self.event(json!({
            "index": 0, "text": text, "logprobs": null, "finish_reason": finish_reason,
        }))
    }

    fn event(&self, choice: Value) -> String {
        match &self.shared {
            Some(shared) => {
                let mut event = shared.clone();
                event["choices"] = Value::Array(vec![choice]);
                data(&event)
            }
            None => data(&json!({"text": choice["text"]})),
        }
    }
}

fn data(event: &Value) -> String {
    format!("data: {event}\n\n")
}
