//! Asks instances whether they are healthy: a GET, of which any 2xx in time is a yes, or gRPC's health
//! checking protocol (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>), of which
//! `SERVING` is. What an instance sends along is read up to a limit, so that its connection can be used
//! again. One that is asked over TLS is connected to anew each time, so that the certificates and roots in
//! force are looked at.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prost::Message;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::over_tls;
use crate::decision::controller::{Event, Probe};
use crate::runtime::tasks::Tasks;
use crate::tls::{Connectors, Peer};
use crate::types::Protocol;
use crate::types::spec::HealthCheck;

/// Probes under way at once.
const PROBES: usize = 256;
/// Bytes read of an answer.
const BODY_LIMIT: usize = 64 * 1024;
/// The method that tells a server's health.
const GRPC_CHECK: &str = "/grpc.health.v1.Health/Check";
/// What comes before each message of a gRPC stream.
const FRAME_HEAD: usize = 5;
/// How long a connection waits for the next probe.
const IDLE: Duration = Duration::from_secs(3);

/// What asks the instances.
#[derive(Clone)]
pub(super) struct Prober {
    http1: Client<HttpConnector, Full<Bytes>>,
    http2: Client<HttpConnector, Full<Bytes>>,
    tls: Connectors,
    slots: Arc<Semaphore>,
    events: mpsc::Sender<Event>,
    tasks: Tasks,
}

impl Prober {
    pub(super) fn new(events: mpsc::Sender<Event>, tls: Connectors) -> Self {
        let client = |http2| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(1)
                .http2_only(http2)
                .build_http()
        };
        let (http1, http2) = (client(false), client(true));
        let slots = Arc::new(Semaphore::new(PROBES));
        Self { http1, http2, tls, slots, events, tasks: Tasks::new() }
    }

    /// Asks all of them, and answers each with an [`Event::Probed`] of its own.
    pub(super) fn probe(&self, probes: &[Probe]) {
        for probe in probes {
            self.probe_one(probe.clone());
        }
    }

    fn probe_one(&self, probe: Probe) {
        let prober = self.clone();
        self.tasks.spawn_until_stopped("probe", async move {
            // The wait for a slot is ours and must not count against the instance.
            let slot = prober.slots.acquire().await;
            let result = match timeout(probe.timeout, prober.ask(&probe)).await {
                Ok(result) => result,
                Err(_elapsed) => Err(format!("no answer in {:?}", probe.timeout)),
            };
            drop(slot);
            // The driver is only gone when everything ends.
            let _ = prober.events.send(Event::Probed { probes: [probe].into(), result }).await;
        });
    }

    /// Drops every probe that is under way.
    pub(super) async fn stop(&self) {
        self.tasks.stop(Duration::from_secs(1)).await;
    }

    async fn ask(&self, probe: &Probe) -> Result<(), String> {
        if probe.address.is_tls() {
            return self.ask_over_tls(probe).await;
        }
        let client = match probe.protocol {
            Protocol::Http1 => &self.http1,
            Protocol::H2c | Protocol::H2 => &self.http2,
        };
        let answer = client.request(question(probe)?).await.map_err(|error| whole(&error))?;
        judge(probe, answer).await
    }

    async fn ask_over_tls(&self, probe: &Probe) -> Result<(), String> {
        let peer =
            Peer { address: &probe.address, tls: probe.tls.as_ref(), protocol: probe.protocol };
        over_tls::exchange(&self.tls, peer, question(probe)?, |answer| judge(probe, answer)).await
    }
}

/// What the answer says of the instance's health.
async fn judge(probe: &Probe, answer: Response<Incoming>) -> Result<(), String> {
    let status = answer.status();
    if !status.is_success() {
        return Err(format!("answered {status}"));
    }
    let HealthCheck::Grpc(_) = probe.check else {
        // An endless or broken body does not make a healthy answer unhealthy.
        let _ = Limited::new(answer.into_body(), BODY_LIMIT).collect().await;
        return Ok(());
    };
    let head = answer.headers().clone();
    let body = Limited::new(answer.into_body(), BODY_LIMIT).collect().await;
    let body = body.map_err(|error| whole(&*error))?;
    // An answer without a message has its status in the head.
    let trailers = body.trailers().unwrap_or(&head);
    let code = trailers.get("grpc-status").and_then(|code| code.to_str().ok());
    match code {
        Some("0") => serving(&body.to_bytes()),
        Some("5") => Err("it knows no such service (grpc-status 5)".into()),
        Some("12") => Err("it has no grpc.health.v1.Health (grpc-status 12)".into()),
        Some(code) => Err(format!("answered grpc-status {code}")),
        None => Err("answered without a grpc-status".into()),
    }
}

fn question(probe: &Probe) -> Result<Request<Full<Bytes>>, String> {
    let (method, path, body) = match &probe.check {
        HealthCheck::Get(path) => (Method::GET, path.as_str(), Bytes::new()),
        HealthCheck::Grpc(service) => (Method::POST, GRPC_CHECK, framed(service)),
    };
    let mut request = Request::builder()
        .method(method)
        .uri(format!("{}{path}", probe.address))
        .header(header::USER_AGENT, concat!("forebay/", env!("CARGO_PKG_VERSION")));
    if matches!(probe.check, HealthCheck::Grpc(_)) {
        request =
            request.header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
    }
    request.body(Full::new(body)).map_err(|error| format!("cannot ask {path}: {error}"))
}

/// `HealthCheckRequest`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `HealthCheckResponse`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: i32 = 1;

/// The question as one message of a gRPC stream: a byte that says it is not compressed, its length in four,
/// itself.
fn framed(service: &str) -> Bytes {
    let message = Question { service: service.to_owned() }.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0][..], &length.to_be_bytes(), &message].concat().into()
}

fn serving(body: &[u8]) -> Result<(), String> {
    let message = body.get(FRAME_HEAD..).ok_or("answered without a message")?;
    let answer = Answer::decode(message).map_err(|error| format!("answered garbage: {error}"))?;
    if answer.status == SERVING {
        return Ok(());
    }
    let names = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
    let name = usize::try_from(answer.status).ok().and_then(|number| names.get(number));
    Err(format!("it is {}", name.unwrap_or(&"in a state that is not known")))
}

/// An error with all its causes.
pub(super) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::types::{Address, Generation, InstanceId};

    /// Serves one connection with `answer` as it is, or nothing at all.
    async fn server(tasks: &Tasks, answer: Option<&'static str>) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = Address::http(listener.local_addr().expect("bound"));
        tasks.spawn_until_stopped("server", async move {
            let (mut socket, _) = listener.accept().await.expect("accepts");
            let mut request = [0; 1024];
            let read = socket.read(&mut request).await.expect("reads");
            assert!(request[..read].starts_with(b"GET /ping HTTP/1.1\r\n"));
            match answer {
                Some(answer) => socket.write_all(answer.as_bytes()).await.expect("writes"),
                None => std::future::pending().await,
            }
        });
        address
    }

    async fn ask(address: Address, limit: Duration) -> Result<(), String> {
        let (events, mut received) = mpsc::channel(1);
        let prober = Prober::new(events, Connectors::default());
        let id = InstanceId::new("i-1").expect("valid");
        let mut probe = Probe::to(id, Generation(3), address);
        probe.timeout = limit;
        prober.probe(&[probe]);
        match received.recv().await {
            Some(Event::Probed { probes, result }) if probes[0].generation.0 == 3 => result,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn only_a_2xx_in_time_is_healthy() {
        let tasks = Tasks::new();
        let long = Duration::from_secs(20);
        let ok = server(&tasks, Some("HTTP/1.1 204 No Content\r\n\r\n")).await;
        assert_eq!(ask(ok, long).await, Ok(()));
        let cut = server(&tasks, Some("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx")).await;
        assert_eq!(ask(cut, long).await, Ok(()), "a body that breaks off changes nothing");
        let bad = server(&tasks, Some("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")).await;
        assert_eq!(ask(bad, long).await, Err("answered 503 Service Unavailable".into()));
        let mute = server(&tasks, None).await;
        let short = Duration::from_millis(50);
        assert_eq!(ask(mute, short).await, Err("no answer in 50ms".into()));
        let free = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let nobody = Address::http(free.local_addr().expect("bound"));
        drop(free);
        let refused = ask(nobody, long).await.expect_err("nobody listens");
        assert!(refused.contains("refused"), "{refused}");
        tasks.stop(long).await;
    }
}
