//! gRPC through the proxy, both ways: tonic's client on one side, tonic's server on the other, each of them
//! as it would be without a proxy in between.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::uri::PathAndQuery;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::grpc::Plain;
use support::pki::{self, Authority};
use support::{DEADLINE, Forebay, eventually};
use tokio::runtime::Runtime;
use tokio_rustls::rustls::version::TLS13;
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

#[derive(Default)]
struct State {
    healthy: AtomicBool,
    /// Streams that are held open now.
    held: AtomicUsize,
}

struct Held(Arc<State>);

impl Held {
    fn new(state: &Arc<State>) -> Self {
        state.held.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(state))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// The methods: `Echo` and `Fail` answer once, `Chat` answers each message as it comes, `Hold` never ends.
#[derive(Clone)]
struct Method(Arc<State>, String);

impl UnaryService<Bytes> for Method {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let Self(state, path) = self.clone();
        Box::pin(async move {
            match path.as_str() {
                "/test.Echo/Echo" => {
                    let asked = request.metadata().get("x-asked").cloned();
                    let mut response = Response::new(request.into_inner());
                    if let Some(asked) = asked {
                        response.metadata_mut().insert("x-answered", asked);
                    }
                    Ok(response)
                }
                "/test.Echo/Fail" => {
                    let mut status = Status::failed_precondition("not today");
                    status.metadata_mut().insert("x-detail", MetadataValue::from_static("why"));
                    Err(status)
                }
                "/grpc.health.v1.Health/Check" => {
                    let service = request.into_inner();
                    if &service[..] != b"\x0a\x09test.Echo" {
                        return Err(Status::not_found("no such service"));
                    }
                    let serving = if state.healthy.load(Ordering::Relaxed) { 1 } else { 2 };
                    Ok(Response::new(Bytes::from(vec![8, serving])))
                }
                _ => Err(Status::unimplemented(path)),
            }
        })
    }
}

impl StreamingService<Bytes> for Method {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let Self(state, path) = self.clone();
        Box::pin(async move {
            let mut number = 0;
            let answers = request.into_inner().map(move |message| {
                number += 1;
                if number == 4 {
                    return Err(Status::out_of_range("four are too many"));
                }
                message
            });
            if path == "/test.Echo/Hold" {
                let held = Held::new(&state);
                let endless = answers.chain(futures_util::stream::pending()).inspect(move |_| {
                    let _until_the_end = &held;
                });
                return Ok(Response::new(Box::pin(endless) as Answers));
            }
            Ok(Response::new(Box::pin(answers) as Answers))
        })
    }
}

fn serve(runtime: &Runtime, state: &Arc<State>) -> SocketAddr {
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
    let address = listener.local_addr().expect("address");
    let state = Arc::clone(state);
    runtime.spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let state = Arc::clone(&state);
            let service = hyper::service::service_fn(move |request: http::Request<_>| {
                let method = Method(Arc::clone(&state), request.uri().path().to_owned());
                async move {
                    let mut grpc = Grpc::new(Plain);
                    let response: http::Response<Body> = match request.uri().path() {
                        "/test.Echo/Chat" | "/test.Echo/Hold" => {
                            grpc.streaming(method, request).await
                        }
                        _ => grpc.unary(method, request).await,
                    };
                    Ok::<_, Infallible>(response)
                }
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(socket), service);
            tokio::spawn(connection);
        }
    });
    address
}

struct House {
    runtime: Runtime,
    state: Arc<State>,
    forebay: Forebay,
    channel: Channel,
    /// What the config names, where it names any.
    files: Option<tempfile::TempDir>,
}

impl House {
    fn new(extra: &str) -> Self {
        Self::with(|_, address| {
            let keys = format!("health_grpc_service = \"test.Echo\"\n{extra}");
            Forebay::in_front_of_types(&[(address, 2, "protocol = \"h2c\"\n")], &keys)
        })
    }

    /// The same with TLS between proxy and worker.
    fn behind_tls() -> Self {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().expect("dir"));
        authority.certify(dir.path(), "worker", &["127.0.0.1"]);
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, authority.pem()).expect("written");
        let mut house = Self::with(|runtime, address| {
            let config = pki::server_config(dir.path(), "worker", &[&TLS13], &["h2"]);
            let address = pki::relay(runtime, config, address);
            let forebay = Forebay::serve(&format!(
                "[proxy]\nlisten = \"{{proxy}}\"\n[admin]\nlisten = \"{{admin}}\"\n\
                 [provider.existing]\nkind = \"static\"\n\
                 [instance_type.t]\nprovider = \"existing\"\nmax_concurrency = 2\nprotocol = \"h2\"\n\
                 addresses = [\"https://{address}\"]\n[instance_type.t.tls]\nca_file = \"{}\"\n\
                 [[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\n\
                 health_grpc_service = \"test.Echo\"\n\
                 [[endpoint.variant.pool]]\ninstance_type = \"t\"\npriority = 1\n",
                ca.display()
            ));
            forebay.wait_in_service(1);
            forebay
        });
        house.files = Some(dir);
        house
    }

    fn with(forebay: impl FnOnce(&Runtime, SocketAddr) -> Forebay) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let state = Arc::new(State::default());
        state.healthy.store(true, Ordering::Relaxed);
        let address = serve(&runtime, &state);
        let forebay = forebay(&runtime, address);
        let endpoint = Endpoint::try_from(format!("http://{}", forebay.proxy)).expect("a target");
        let channel = runtime.block_on(endpoint.connect()).expect("connects");
        Self { runtime, state, forebay, channel, files: None }
    }

    fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(async {
            tokio::time::timeout(DEADLINE, what).await.expect("within the deadline")
        })
    }

    fn unary(
        &self,
        path: &'static str,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Status> {
        self.wait(async {
            let mut client = tonic::client::Grpc::new(self.channel.clone());
            client.ready().await.expect("ready");
            client.unary(request, PathAndQuery::from_static(path), Plain).await
        })
    }

    fn streaming(
        &self,
        path: &'static str,
        messages: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Streaming<Bytes>, Status> {
        self.wait(async {
            let mut client = tonic::client::Grpc::new(self.channel.clone());
            client.ready().await.expect("ready");
            let request = Request::new(messages);
            let answer = client.streaming(request, PathAndQuery::from_static(path), Plain).await?;
            Ok(answer.into_inner())
        })
    }
}

#[test]
fn a_call_its_metadata_and_its_status_go_both_ways() {
    goes_both_ways(&House::new(""));
}

#[test]
fn a_worker_behind_tls_is_asked_and_called_the_same_way() {
    let house = House::behind_tls();
    goes_both_ways(&house);
    converses(&house);
}

fn goes_both_ways(house: &House) {
    let mut request = Request::new(Bytes::from_static(b"hello"));
    request.metadata_mut().insert("x-asked", MetadataValue::from_static("this"));
    let answer = house.unary("/test.Echo/Echo", request).expect("an answer");
    assert_eq!(answer.metadata().get("x-answered").expect("metadata"), "this");
    assert!(answer.metadata().contains_key("x-forebay-instance"));
    assert_eq!(answer.into_inner(), "hello");
    let empty = house.unary("/test.Echo/Echo", Request::new(Bytes::new())).expect("an answer");
    assert_eq!(empty.into_inner(), "");
    let status = house.unary("/test.Echo/Fail", Request::new(Bytes::new())).expect_err("fails");
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "not today"));
    assert_eq!(status.metadata().get("x-detail").expect("a trailer"), "why");
    house.forebay.wait_all_zero();
}

#[test]
fn a_conversation_goes_on_message_by_message_and_ends_with_its_trailers() {
    converses(&House::new(""));
}

fn converses(house: &House) {
    let (say, said) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let said = futures_util::stream::unfold(said, |mut said| async {
        said.recv().await.map(|message| (message, said))
    });
    let mut answers = house.streaming("/test.Echo/Chat", said).expect("begins");
    for message in ["a", "b", "c"] {
        say.send(Bytes::from(message)).expect("is sent");
        let answer = house.wait(answers.message()).expect("goes on").expect("an answer");
        assert_eq!(answer, message, "before the next is sent");
    }
    assert_eq!(house.forebay.gauge("forebay_outstanding_requests"), 1.0);
    say.send(Bytes::from("d")).expect("is sent");
    let status = house.wait(answers.message()).expect_err("one too many");
    assert_eq!((status.code(), status.message()), (Code::OutOfRange, "four are too many"));
    let whole: Vec<_> = ["x", "y"].map(Bytes::from).into();
    let mut answers =
        house.streaming("/test.Echo/Chat", futures_util::stream::iter(whole)).expect("begins");
    for message in ["x", "y"] {
        assert_eq!(house.wait(answers.message()).expect("goes on").expect("an answer"), message);
    }
    assert_eq!(house.wait(answers.message()).expect("ends well"), None);
    house.forebay.wait_all_zero();
}

#[test]
fn a_call_that_is_given_up_is_cancelled_at_the_worker() {
    let house = House::new("");
    let once = || futures_util::stream::iter([Bytes::from("x")]);
    let calls: Vec<_> = (0..2)
        .map(|_| {
            let mut answers = house.streaming("/test.Echo/Hold", once()).expect("begins");
            house.wait(answers.message()).expect("goes on").expect("an answer");
            answers
        })
        .collect();
    assert_eq!(house.state.held.load(Ordering::Relaxed), 2);
    // Both slots are taken: one more waits at the proxy, and may be given up there.
    house.runtime.block_on(async {
        let mut client = tonic::client::Grpc::new(house.channel.clone());
        client.ready().await.expect("ready");
        let path = PathAndQuery::from_static("/test.Echo/Echo");
        let waiting = client.unary(Request::new(Bytes::new()), path, Plain);
        tokio::time::timeout(Duration::from_millis(200), waiting).await.expect_err("it waits");
    });
    let start = Instant::now();
    drop(calls);
    eventually("the worker has noticed", || {
        (house.state.held.load(Ordering::Relaxed) == 0).then_some(())
    });
    assert!(start.elapsed() < Duration::from_millis(100), "after {:?}", start.elapsed());
    house.forebay.wait_all_zero();
}

#[test]
fn what_the_proxy_itself_has_to_say_is_a_status_of_grpc() {
    let house = House::new("queue_limit = 0\n");
    let calls: Vec<_> = (0..2)
        .map(|_| {
            let once = futures_util::stream::iter([Bytes::from("x")]);
            house.streaming("/test.Echo/Hold", once).expect("begins")
        })
        .collect();
    let full = house.unary("/test.Echo/Echo", Request::new(Bytes::new())).expect_err("is full");
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    assert_eq!(full.metadata().get("x-forebay-error").expect("a type"), "queue_full");
    drop(calls);
    let mut request = Request::new(Bytes::new());
    request.metadata_mut().insert("x-forebay-endpoint", MetadataValue::from_static("nowhere"));
    let unknown = house.unary("/test.Echo/Echo", request).expect_err("there is none");
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(unknown.message(), "no endpoint is called \"nowhere\"");
    house.forebay.wait_all_zero();
}

#[test]
fn health_is_what_the_service_itself_says() {
    let house = House::new("unhealthy_threshold = 2\nprovision_timeout = \"1s\"\n");
    house.state.healthy.store(false, Ordering::Relaxed);
    eventually("it is out of service", || house.forebay.in_service().is_empty().then_some(()));
    let why = house.forebay.cli(&["explain", "e"]);
    let why = String::from_utf8_lossy(&why.stdout).into_owned();
    assert!(why.contains("it is NOT_SERVING"), "{why}");
    house.state.healthy.store(true, Ordering::Relaxed);
    house.forebay.wait_in_service(1);
}
