//! The life of one request: from its head to the answer's.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request};
use hyper::body::Incoming;
use serde_json::json;
use tokio::time::Instant;

use super::body::{self, AnswerBody, Arrived};
use super::desk::{Desk, Ticket};
use super::fail::Faults;
use super::openai::{self, Form, Job};
use super::options::WorkerOptions;
use super::pace::Pace;
use super::plain::{self, Identity};
use super::stream;
use super::wish::Wish;
use crate::decision::signals::orca;

/// A connection is closed without an answer.
#[derive(Debug)]
pub(super) struct Dropped;

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the worker closes the connection without an answer")
    }
}

impl std::error::Error for Dropped {}

/// Everything that the connections of one worker share.
#[derive(Debug)]
pub(super) struct Worker {
    options: WorkerOptions,
    who: Identity,
    faults: Faults,
    desk: Arc<Desk>,
    healthy_at: Instant,
    interval: Duration,
    /// Connections accepted since the start.
    pub(super) accepted: AtomicU64,
    /// Connections open now.
    pub(super) open: AtomicU64,
}

impl Worker {
    /// One that listens on `address` from now on.
    pub(super) fn new(options: WorkerOptions, faults: Faults, address: String) -> Self {
        Self {
            who: Identity {
                model: options.model.clone(),
                instance_type: options.instance_type.clone(),
                address,
            },
            faults,
            desk: Arc::new(Desk::new(options.max_concurrency, options.max_queue)),
            healthy_at: Instant::now() + options.startup_delay,
            interval: options
                .tokens_per_second
                .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate)),
            accepted: AtomicU64::new(0),
            open: AtomicU64::new(0),
            options,
        }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// The connection is to be closed without an answer: as told, or because the body broke off.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<AnswerBody>, Dropped> {
        if self.reached(self.faults.freeze_after) {
            return std::future::pending().await;
        }
        if self.faults.refuse_startup || Instant::now() < self.healthy_at {
            return Ok(plain::error(
                StatusCode::SERVICE_UNAVAILABLE,
                "the model is not loaded yet",
            ));
        }
        if let Some(answer) = self.housekeeping(request.method(), request.uri().path()) {
            return Ok(answer);
        }
        self.work(request).await
    }

    fn reached(&self, count: Option<u64>) -> bool {
        count.is_some_and(|count| self.desk.started() >= count)
    }

    /// Answers what is no work, and counts as no request.
    fn housekeeping(&self, method: &Method, path: &str) -> Option<Response<AnswerBody>> {
        if method != Method::GET && method != Method::HEAD {
            return None;
        }
        Some(match path {
            "/ping" | "/health" if self.reached(self.faults.unhealthy_after) => {
                plain::error(StatusCode::SERVICE_UNAVAILABLE, "unhealthy as told")
            }
            "/ping" | "/health" => {
                plain::json(StatusCode::OK, &json!({"status": "ok"}), None, false)
            }
            "/v1/models" => plain::json(StatusCode::OK, &plain::models(&self.who), None, false),
            "/stats" => self.stats(),
            "/metrics" => {
                let text = Bytes::from(self.desk.prometheus(&self.who.model));
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                plain::answer(StatusCode::OK, kind, body::plain(text, None, false))
            }
            _ => return None,
        })
    }

    fn stats(&self) -> Response<AnswerBody> {
        let mut stats = json!(self.desk.counts());
        stats["model"] = self.who.model.as_str().into();
        stats["instance_type"] = self.who.instance_type.as_str().into();
        stats["connections_accepted"] = self.accepted.load(Ordering::Relaxed).into();
        stats["connections_open"] = self.open.load(Ordering::Relaxed).into();
        plain::json(StatusCode::OK, &stats, None, false)
    }

    async fn work(&self, request: Request<Incoming>) -> Result<Response<AnswerBody>, Dropped> {
        let ticket = self.desk.start();
        if self.faults.die_after.is_some_and(|count| ticket.number() >= count) {
            std::process::exit(1);
        }
        let (head, incoming) = request.into_parts();
        let wish = match Wish::read(&head.headers, self.faults) {
            Ok(wish) => wish,
            Err(why) => return Ok(refuse(ticket, StatusCode::BAD_REQUEST, &why)),
        };
        if wish.faults.drop_connection {
            ticket.fail();
            return Err(Dropped);
        }
        if wish.faults.fail_fast {
            return Ok(refuse(ticket, StatusCode::INTERNAL_SERVER_ERROR, "failing fast as told"));
        }
        let path = head.uri.path();
        let keep = if openai::reads_body(path) { body::KEPT_BYTES } else { 0 };
        let arrived = body::read(incoming, keep).await.map_err(|_| Dropped)?;
        if path.starts_with("/v1/") && openai::reads_body(path) && head.method != Method::POST {
            let mut answer = refuse(ticket, StatusCode::METHOD_NOT_ALLOWED, "use POST");
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
            return Ok(answer);
        }
        match openai::job(path, &arrived, &wish, self.options.default_tokens) {
            Ok(job) => Ok(self.perform(job, ticket, wish, &head, &arrived).await),
            Err(refusal) => {
                let status =
                    StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
                Ok(refuse(ticket, status, &refusal.message))
            }
        }
    }

    async fn perform(
        &self,
        job: Job,
        mut ticket: Ticket,
        wish: Wish,
        head: &request::Parts,
        arrived: &Arrived,
    ) -> Response<AnswerBody> {
        if ticket.line_up().is_err() {
            return refuse(ticket, StatusCode::SERVICE_UNAVAILABLE, "the worker's queue is full");
        }
        if wish.faults.hang_after.is_some_and(|count| ticket.number() > count) {
            ticket.enter().await;
            return std::future::pending().await;
        }
        let mut pace = Pace::new(
            Arc::clone(&self.desk),
            wish.first_token.unwrap_or(self.options.first_token),
            wish.interval.unwrap_or(self.interval),
            self.options.slowdown,
        );
        if job.stream && wish.faults.error.is_none() {
            let events = stream::events(&self.who, job, ticket, pace, wish.faults.cut_stream);
            return plain::answer(StatusCode::OK, "text/event-stream; charset=utf-8", events);
        }
        ticket.enter().await;
        pace.first().await;
        if let Some(status) = wish.faults.error {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return refuse(ticket, status, "failing as told");
        }
        pace.rest(job.tokens.saturating_sub(1)).await;
        let report = self.load_report(&head.headers);
        let mut answer = self.reply(&job, ticket, wish, head, arrived);
        if let Some(report) = report {
            answer.headers_mut().insert(orca::LOAD_METRICS, report);
        }
        answer
    }

    /// What the request asks to be told of the load, as vLLM tells it with plain answers.
    fn load_report(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let form = headers.get(orca::LOAD_METRICS_FORMAT)?.to_str().ok()?.to_ascii_lowercase();
        let waiting = self.desk.counts().waiting as f64;
        let mut named = vec![("num_requests_waiting", waiting)];
        named.extend(self.desk.cache_use().map(|share| ("kv_cache_usage_perc", share)));
        let report = match form.as_str() {
            "text" => {
                let pairs =
                    named.iter().map(|(name, value)| format!("named_metrics.{name}={value:?}"));
                format!("TEXT {}", pairs.collect::<Vec<_>>().join(", "))
            }
            "json" => {
                let named: serde_json::Map<_, _> = named
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), json!(value)))
                    .collect();
                format!("JSON {}", json!({ "named_metrics": named }))
            }
            _ => return None,
        };
        HeaderValue::from_str(&report).ok()
    }

    fn reply(
        &self,
        job: &Job,
        ticket: Ticket,
        wish: Wish,
        head: &request::Parts,
        arrived: &Arrived,
    ) -> Response<AnswerBody> {
        let cut = wish.faults.cut_body;
        // A HEAD request's answer has no body whose end could complete it.
        if head.method == Method::HEAD && matches!(job.form, Form::Echo) {
            ticket.complete();
            let value = plain::reply(&self.who, job, head, arrived.length);
            return plain::json(StatusCode::OK, &value, None, false);
        }
        if let Some(length) = wish.body_bytes {
            return plain::answer(
                StatusCode::OK,
                "text/plain",
                body::padding(length, Some(ticket), cut),
            );
        }
        let value = plain::reply(&self.who, job, head, arrived.length);
        plain::json(StatusCode::OK, &value, Some(ticket), cut)
    }
}

fn refuse(ticket: Ticket, status: StatusCode, message: &str) -> Response<AnswerBody> {
    ticket.fail();
    plain::error(status, message)
}
