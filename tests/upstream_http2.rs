//! Workers that speak HTTP/2 with prior knowledge: the stand-in worker, and servers of the h2 crate that
//! have their own ideas of limits and ends.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{HeaderMap, Method, Request, Response};
use support::frames::{
    self, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, OK, Raw, frame, literal,
};
use support::h2::H2;
use support::http::{self as plain, Client};
use support::{Forebay, Worker, eventually};
use tokio::runtime::Runtime;

/// The proxy before these, each of them a type of its own with so many slots.
fn in_front_of(addresses: &[SocketAddr], slots: u32, extra: &str) -> Forebay {
    let types: Vec<_> =
        addresses.iter().map(|address| (*address, slots, "protocol = \"h2c\"\n")).collect();
    Forebay::in_front_of_types(&types, extra)
}

fn chat(tokens: u32, stream: bool) -> String {
    format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],"max_tokens":{tokens},"stream":{stream}}}"#
    )
}

/// What a server has seen.
#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    running: AtomicUsize,
    most_running: AtomicUsize,
}

type Answering = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A server of the h2 crate. Health checks are answered; everything else is up to its `answer`.
struct Server {
    runtime: Runtime,
    address: SocketAddr,
    seen: Arc<Seen>,
}

/// After so many requests a connection gets a GOAWAY; 0 is never.
struct Manners {
    streams: u32,
    goaway_after: usize,
}

impl Server {
    fn start(
        manners: Manners,
        answer: fn(Request<h2::RecvStream>, SendResponse<Bytes>, Arc<Seen>) -> Answering,
    ) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let seen = Arc::new(Seen::default());
        let listener =
            runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("address");
        let (manners, noted) = (Arc::new(manners), Arc::clone(&seen));
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(converse(socket, Arc::clone(&manners), Arc::clone(&noted), answer));
            }
        });
        Self { runtime, address, seen }
    }

    fn count(&self, of: impl Fn(&Seen) -> &AtomicUsize) -> usize {
        of(&self.seen).load(Ordering::Relaxed)
    }
}

async fn converse(
    socket: tokio::net::TcpStream,
    manners: Arc<Manners>,
    seen: Arc<Seen>,
    answer: fn(Request<h2::RecvStream>, SendResponse<Bytes>, Arc<Seen>) -> Answering,
) {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(manners.streams);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(socket).await else { return };
    let mut served = 0;
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if request.uri().path() == "/ping" {
            drop(respond.send_response(Response::new(()), true));
            continue;
        }
        if served == 0 {
            seen.connections.fetch_add(1, Ordering::Relaxed);
        }
        served += 1;
        seen.requests.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(answer(request, respond, Arc::clone(&seen)));
        if served == manners.goaway_after {
            connection.graceful_shutdown();
        }
    }
}

fn ok(_: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>, _: Arc<Seen>) -> Answering {
    Box::pin(async move {
        let mut body = respond.send_response(Response::new(()), false).expect("is sent");
        body.send_data(Bytes::from_static(b"fine"), true).expect("is sent");
    })
}

/// Holds each request for a while and notes how many there are at once.
fn slow(
    _: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: Arc<Seen>,
) -> Answering {
    Box::pin(async move {
        let running = seen.running.fetch_add(1, Ordering::Relaxed) + 1;
        seen.most_running.fetch_max(running, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(300)).await;
        seen.running.fetch_sub(1, Ordering::Relaxed);
        drop(respond.send_response(Response::new(()), true));
    })
}

/// A head, and the end a while later in a frame of its own. Streams that were reset meanwhile are noted as running.
fn late_end(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: Arc<Seen>,
) -> Answering {
    Box::pin(async move {
        let status = if request.method() == Method::HEAD { 200 } else { 204 };
        let head = Response::builder().status(status).body(()).expect("a head");
        let mut body = respond.send_response(head, false).expect("is sent");
        let reset = std::future::poll_fn(|cx| body.poll_reset(cx));
        if tokio::time::timeout(Duration::from_millis(20), reset).await.is_ok() {
            seen.running.fetch_add(1, Ordering::Relaxed);
        }
        drop(body.send_data(Bytes::new(), true));
    })
}

fn refuse(_: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>, _: Arc<Seen>) -> Answering {
    Box::pin(async move { respond.send_reset(Reason::REFUSED_STREAM) })
}

/// Small frames, as many as the query says, as fast as they are taken.
fn flood(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    _: Arc<Seen>,
) -> Answering {
    Box::pin(async move {
        let frames: usize = request.uri().query().and_then(|q| q.parse().ok()).expect("a number");
        let mut body = respond.send_response(Response::new(()), false).expect("is sent");
        for _ in 0..frames {
            body.reserve_capacity(FRAME.len());
            while body.capacity() < FRAME.len() {
                if !matches!(std::future::poll_fn(|cx| body.poll_capacity(cx)).await, Some(Ok(_))) {
                    return;
                }
            }
            if body.send_data(Bytes::from_static(FRAME), false).is_err() {
                return;
            }
        }
        drop(body.send_data(Bytes::new(), true));
    })
}

const FRAME: &[u8; 60] = b"data: {\"choices\":[{\"delta\":{\"content\":\"token\"}}]}         \n\n";

#[test]
fn requests_share_a_connection_and_answers_are_as_over_http1() {
    let worker = Worker::start(&["--max-concurrency", "20", "--first-token", "200ms"]);
    let forebay = in_front_of(&[worker.address], 20, "");
    std::thread::scope(|scope| {
        for number in 0..20 {
            let forebay = &forebay;
            scope.spawn(move || {
                let body = chat(5, number % 2 == 0);
                let answer = plain::post(forebay.proxy, "/v1/chat/completions", &[], &body);
                assert_eq!(answer.status, 200);
                assert!(answer.header("x-forebay-instance").is_some());
                assert_eq!(answer.text().ends_with("data: [DONE]\n\n"), number % 2 == 0);
            });
        }
    });
    assert_eq!(worker.stat("max_running"), 20);
    // One of each thread, one of the health checks, one of this very question.
    let open = worker.stat("connections_open");
    assert!(open <= 4, "{open} connections");
    let mut client = Client::connect(forebay.proxy);
    client.send("HEAD", "/x", &[("connection", "upgrade"), ("upgrade", "websocket")], b"");
    assert_eq!(client.read_head().status, 200);
    forebay.wait_all_zero();
}

#[test]
fn a_client_that_leaves_cancels_its_stream_and_no_other() {
    let worker = Worker::start(&["--first-token", "200ms", "--tokens-per-second", "20"]);
    let forebay = in_front_of(&[worker.address], 8, "");
    let ask = |stream: bool| {
        let mut client = Client::connect(forebay.proxy);
        client.send("POST", "/v1/chat/completions", &[], chat(400, stream).as_bytes());
        client
    };
    let (waiting, mut streaming, mut staying) = (ask(false), ask(true), ask(true));
    streaming.read_head();
    staying.read_head();
    for (leaves, cancelled) in [(waiting, 1), (streaming, 2)] {
        let start = Instant::now();
        drop(leaves);
        eventually("the worker has noticed", || {
            (worker.stat("cancelled") == cancelled).then_some(())
        });
        assert!(start.elapsed() < Duration::from_millis(100), "after {:?}", start.elapsed());
    }
    assert!(staying.read_chunk().is_some_and(|chunk| chunk.is_ok()), "the other goes on");
    drop(staying);
    forebay.wait_all_zero();
}

#[test]
fn what_breaks_off_is_told_as_over_http1() {
    let cutting = Worker::start(&["--fail", "cut-stream=3"]);
    let forebay = in_front_of(&[cutting.address], 4, "");
    let mut client = Client::connect(forebay.proxy);
    client.send("POST", "/v1/chat/completions", &[], chat(9, true).as_bytes());
    assert_eq!(client.read_head().status, 200);
    let mut chunks = 0;
    let end = loop {
        match client.read_chunk() {
            Some(Ok(_)) => chunks += 1,
            end => break end,
        }
    };
    assert!(chunks > 0);
    assert_eq!(end, Some(Err(())), "an unfinished body");
    let dying = Worker::start(&["--fail", "die-after=1"]);
    let forebay = in_front_of(&[dying.address], 4, "");
    let answer = plain::post(forebay.proxy, "/x", &[], "{}");
    assert_eq!((answer.status, answer.header("x-forebay-error")), (502, Some("upstream_broken")));
    forebay.wait_all_zero();
}

#[test]
fn a_low_limit_of_streams_opens_more_connections() {
    let server = Server::start(Manners { streams: 2, goaway_after: 0 }, slow);
    let forebay = in_front_of(&[server.address], 6, "");
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| assert_eq!(plain::get(forebay.proxy, "/x").status, 200));
        }
    });
    assert_eq!(server.count(|seen| &seen.most_running), 6, "all slots were used");
    let connections = server.count(|seen| &seen.connections);
    assert!((3..=8).contains(&connections), "{connections} connections");
    forebay.wait_all_zero();
}

#[test]
fn what_a_worker_refuses_is_sent_elsewhere() {
    let refusing = Server::start(Manners { streams: 9, goaway_after: 0 }, refuse);
    let good = Server::start(Manners { streams: 9, goaway_after: 0 }, ok);
    let forebay = in_front_of(&[refusing.address, good.address], 4, "");
    for _ in 0..8 {
        let answer = plain::post(forebay.proxy, "/x", &[], "{}");
        assert_eq!((answer.status, answer.text().as_str()), (200, "fine"));
    }
    assert_eq!(good.count(|seen| &seen.requests), 8);
    assert!(refusing.count(|seen| &seen.requests) > 0);
    forebay.wait_all_zero();
}

#[test]
fn a_goaway_loses_nothing() {
    let server = Server::start(Manners { streams: 100, goaway_after: 5 }, ok);
    let forebay = in_front_of(&[server.address], 4, "");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let answer = plain::post(forebay.proxy, "/x", &[], "{}");
                    assert_eq!(answer.status, 200, "{:?}", answer.header("x-forebay-error"));
                }
            });
        }
    });
    assert!(server.count(|seen| &seen.connections) >= 10);
    forebay.wait_all_zero();
}

/// Says what it was sent: the body, and the names of the trailers.
fn tell(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    _: Arc<Seen>,
) -> Answering {
    Box::pin(async move {
        let mut body = request.into_body();
        let mut told = String::new();
        while let Some(Ok(piece)) = body.data().await {
            drop(body.flow_control().release_capacity(piece.len()));
            told += &String::from_utf8_lossy(&piece);
        }
        let Ok(trailers) = body.trailers().await else { return };
        for name in trailers.iter().flat_map(HeaderMap::keys) {
            told += &format!(" {name}");
        }
        let mut body = respond.send_response(Response::new(()), false).expect("is sent");
        drop(body.send_data(told.into(), true));
    })
}

#[test]
fn a_requests_trailers_have_nothing_that_http2_does_not_take() {
    let server = Server::start(Manners { streams: 100, goaway_after: 0 }, tell);
    let forebay = in_front_of(&[server.address], 1, "");
    for name in [
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Upgrade",
        "HTTP2-Settings",
        "Content_Length",
    ] {
        for is_late in [false, true] {
            let mut client = Client::connect(forebay.proxy);
            let mut send = |bytes: String| client.stream.write_all(bytes.as_bytes()).expect("sent");
            let head =
                "POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n";
            let end = format!("0\r\n{name}: x\r\nx-checksum: c\r\n\r\n");
            if is_late {
                send(head.to_owned());
                eventually("the worker has its head", || {
                    (forebay.gauge("forebay_outstanding_requests") > 0.0).then_some(())
                });
                send(end);
            } else {
                send(head.to_owned() + &end);
            }
            let answer = client.read_answer();
            assert_eq!((answer.status, answer.text().as_str()), (200, "hi x-checksum"), "{name}");
        }
    }
    forebay.wait_all_zero();
}

/// The proxy before two workers of one type, with little patience for clients.
fn strict(workers: &[Worker; 2], protocol: &str) -> Forebay {
    let [one, two] = workers.each_ref().map(|worker| worker.address);
    let forebay = Forebay::serve(&format!(
        "[proxy]\nlisten = \"{{proxy}}\"\nbody_timeout = \"500ms\"\nmax_body_bytes = \"2MiB\"\n\
         [admin]\nlisten = \"{{admin}}\"\n[provider.existing]\nkind = \"static\"\n\
         [instance_type.t]\nprovider = \"existing\"\nprotocol = \"{protocol}\"\nmax_concurrency = 4\n\
         addresses = [\"http://{one}\", \"http://{two}\"]\n\
         [[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\n\
         initial_instance_count = 2\nmin_instance_count = 2\nmax_instance_count = 2\n\
         [[endpoint.variant.pool]]\ninstance_type = \"t\"\n"
    ));
    forebay.wait_in_service(2);
    forebay
}

/// Begins a request of unknown length.
fn half(forebay: &Forebay) -> Client {
    let mut client = Client::connect(forebay.proxy);
    let head = b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n";
    client.stream.write_all(head).expect("sent");
    client
}

/// The same, and waits until a worker has its beginning.
fn begin(forebay: &Forebay) -> Client {
    let client = half(forebay);
    eventually("it is on its way", || {
        (forebay.gauge("forebay_outstanding_requests") == 1.0).then_some(())
    });
    client
}

#[test]
fn what_a_client_does_wrong_is_told_as_over_http1_and_is_no_workers_fault() {
    let large = format!("100000\r\n{}\r\n", "x".repeat(1 << 20)).repeat(3);
    let cases = [
        ("zz\r\n", 400, "bad_body"),
        ("0\r\nhost: x\r\n\r\n", 400, "bad_body"),
        ("", 408, "body_timeout"),
        (&large, 413, "body_too_large"),
    ];
    for protocol in ["http1", "h2c"] {
        let workers = [Worker::start(&[]), Worker::start(&[])];
        let forebay = strict(&workers, protocol);
        let counted =
            |code| forebay.gauge_where("forebay_invocations_total", &format!("code=\"{code}\""));
        for (rest, status, kind) in cases {
            let mut client = begin(&forebay);
            // Too much of it may find the connection closed.
            drop(client.stream.write_all(rest.as_bytes()));
            let answer = client.read_answer();
            let told = (answer.status, answer.header("x-forebay-error"));
            assert_eq!(told, (status, Some(kind)), "{protocol}");
            assert_eq!(answer.header("connection"), Some("close"), "{protocol}: {kind}");
            assert!(client.is_closed(), "{protocol}: {kind}");
        }
        // More in a row than an instance would be left alone for.
        for _ in 0..20 {
            let mut client = begin(&forebay);
            client.stream.write_all(b"zz\r\n").expect("sent");
            assert_eq!(client.read_answer().status, 400, "{protocol}");
        }
        drop(begin(&forebay));
        forebay.wait_all_zero();
        assert_eq!(
            [400, 408, 413, 499, 502].map(counted),
            [22.0, 1.0, 1.0, 1.0, 0.0],
            "{protocol}"
        );
        assert_eq!(forebay.gauge("forebay_ejections_total"), 0.0, "{protocol}");
    }
}

/// Answers before the request's body is over, and goes on until it is.
fn talk(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    _: Arc<Seen>,
) -> Answering {
    Box::pin(async move {
        let mut body = respond.send_response(Response::new(()), false).expect("is sent");
        drop(body.send_data(Bytes::from_static(b"hello"), false));
        let mut request = request.into_body();
        while let Some(Ok(_)) = request.data().await {}
        drop(body.send_data(Bytes::from_static(b"bye"), true));
    })
}

#[test]
fn what_a_client_does_wrong_under_an_answer_cuts_it_and_is_no_workers_fault() {
    let servers = [(); 2].map(|()| Server::start(Manners { streams: 100, goaway_after: 0 }, talk));
    // The only instance would never be left alone.
    let addresses = servers.each_ref().map(|server| server.address);
    let forebay = in_front_of(&addresses, 4, "ejection_threshold = 2");
    for _ in 0..10 {
        let mut client = begin(&forebay);
        assert_eq!(client.read_head().status, 200);
        assert_eq!(client.read_chunk(), Some(Ok(b"hello".to_vec())));
        client.stream.write_all(b"zz\r\n").expect("sent");
        assert_eq!(client.read_chunk(), Some(Err(())), "no end");
    }
    forebay.wait_all_zero();
    assert_eq!(forebay.gauge("forebay_ejections_total"), 0.0);
}

/// Begins a stream of events, and says nothing in it.
fn begin_events(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: Arc<Seen>,
) -> Answering {
    if request.method() == http::Method::GET {
        return ok(request, respond, seen);
    }
    Box::pin(async move {
        let head = Response::builder().header("content-type", "text/event-stream");
        let head = head.body(()).expect("a head");
        let _body = respond.send_response(head, false).expect("is sent");
        seen.running.fetch_add(1, Ordering::Relaxed);
        let mut request = request.into_body();
        while let Some(Ok(_)) = request.data().await {}
    })
}

#[test]
fn what_a_client_does_wrong_before_the_first_event_is_told() {
    let server = Server::start(Manners { streams: 100, goaway_after: 0 }, begin_events);
    let keys = "protocol = \"h2c\"\n";
    // Of this engine the first event is waited for: it may say there that it is full.
    let forebay = Forebay::in_front_of_types(&[(server.address, 4, keys)], "engine = \"sglang\"");
    let mut client = half(&forebay);
    eventually("it is being answered", || (server.count(|seen| &seen.running) > 0).then_some(()));
    client.stream.write_all(b"zz\r\n").expect("sent");
    let answer = client.read_answer();
    assert_eq!((answer.status, answer.header("x-forebay-error")), (400, Some("bad_body")));
    forebay.wait_all_zero();
    assert_eq!(forebay.gauge_where("forebay_invocations_total", "code=\"400\""), 1.0);
}

/// Says for which host it was asked.
fn authority(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    _: Arc<Seen>,
) -> Answering {
    Box::pin(async move {
        let asked = request.uri().authority().map_or_else(String::new, ToString::to_string);
        let mut body = respond.send_response(Response::new(()), false).expect("is sent");
        drop(body.send_data(asked.into(), true));
    })
}

#[test]
fn a_request_for_no_host_is_for_the_workers_own() {
    let server = Server::start(Manners { streams: 100, goaway_after: 0 }, authority);
    let forebay = in_front_of(&[server.address], 4, "");
    let own = server.address.to_string();
    for (said, got) in [("", own.as_str()), ("models.example:8080", "models.example:8080")] {
        let mut client = Client::connect(forebay.proxy);
        let head = format!("GET /x HTTP/1.1\r\nHost: {said}\r\n\r\n");
        client.stream.write_all(head.as_bytes()).expect("sent");
        let answer = client.read_answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, got), "{said:?}");
    }
    let mut raw = Raw::connect(forebay.proxy);
    let block = [&[0x82, 0x86][..], &literal(":path", "/x"), &literal("host", "")].concat();
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block));
    assert_eq!(raw.next_of(1).0, HEADERS);
    assert_eq!(raw.next_of(1), (DATA, own.into_bytes()));
}

/// The end of a connection, of whose streams none was looked at.
fn leave() -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[0; 8])
}

#[test]
fn what_a_goaway_leaves_out_goes_on_another_connection() {
    let asked = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&asked);
    let always = Arc::new(AtomicBool::new(false));
    let leaves = Arc::clone(&always);
    let worker = frames::worker(move |id, stream| {
        let number = seen.fetch_add(1, Ordering::Relaxed);
        if leaves.load(Ordering::Relaxed) || number % 3 < 2 {
            return stream.write_all(&leave()).is_ok();
        }
        stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, id, OK)).is_ok()
    });
    let forebay = in_front_of(&[worker], 4, "");
    for _ in 0..10 {
        assert_eq!(plain::post(forebay.proxy, "/x", &[], "{}").status, 200);
    }
    // What is still to come of a body goes there too.
    let mut client = half(&forebay);
    assert_eq!(client.read_head().status, 200);
    assert_eq!(asked.load(Ordering::Relaxed), 33);
    // So often and no more, and that says nothing of the instance: the next one is sent at once.
    for _ in 0..5 {
        always.store(true, Ordering::Relaxed);
        let answer = plain::post(forebay.proxy, "/x", &[], "{}");
        let told = (answer.status, answer.header("x-forebay-error"));
        assert_eq!(told, (502, Some("connect_failed")));
        always.store(false, Ordering::Relaxed);
        let start = Instant::now();
        assert_eq!(plain::post(forebay.proxy, "/x", &[], "{}").status, 200);
        assert!(start.elapsed() < Duration::from_millis(500), "after {:?}", start.elapsed());
    }
    forebay.wait_all_zero();
}

#[test]
fn of_many_that_a_goaway_leaves_out_none_is_lost() {
    // As many connections as requests: whoever shares one with another is left out.
    let worker = frames::worker(|id, stream| {
        if id > 1 {
            return true;
        }
        let goaway = frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
        let answer = frame(HEADERS, END_HEADERS | END_STREAM, id, OK);
        stream.write_all(&[goaway, answer].concat()).is_ok()
    });
    let forebay = in_front_of(&[worker], 10, "");
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(plain::post(forebay.proxy, "/x", &[], "{}").status, 200);
                }
            });
        }
    });
    forebay.wait_all_zero();
}

/// Refuses every other request, and says of the rest what [`tell`] does.
fn refuse_every_other(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: Arc<Seen>,
) -> Answering {
    if seen.requests.load(Ordering::Relaxed).is_multiple_of(2) {
        return tell(request, respond, seen);
    }
    Box::pin(async move { respond.send_reset(Reason::REFUSED_STREAM) })
}

#[test]
fn a_refused_stream_is_sent_whole_on_another_connection() {
    let server = Server::start(Manners { streams: 9, goaway_after: 0 }, refuse_every_other);
    let forebay = in_front_of(&[server.address], 4, "");
    for _ in 0..5 {
        let answer = plain::post(forebay.proxy, "/x", &[], "{}");
        assert_eq!((answer.status, answer.text().as_str()), (200, "{}"));
        let before = server.count(|seen| &seen.requests);
        let mut client = begin(&forebay);
        eventually("it was refused", || {
            (server.count(|seen| &seen.requests) == before + 2).then_some(())
        });
        client.stream.write_all(b"1\r\n!\r\n0\r\nx-checksum: c\r\n\r\n").expect("sent");
        let answer = client.read_answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hi! x-checksum"));
    }
    forebay.wait_all_zero();
}

#[test]
fn a_client_that_does_not_read_harms_no_other_on_its_connection() {
    let server = Server::start(Manners { streams: 100, goaway_after: 0 }, flood);
    let address = server.address;
    let forebay = Forebay::serve(&format!(
        "[proxy]\nlisten = \"{{proxy}}\"\nthreads = 1\n[admin]\nlisten = \"{{admin}}\"\n\
         [provider.existing]\nkind = \"static\"\n[instance_type.t]\nprovider = \"existing\"\n\
         protocol = \"h2c\"\naddresses = [\"http://{address}\"]\n\
         [[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\n\
         [[endpoint.variant.pool]]\ninstance_type = \"t\"\npriority = 1\n"
    ));
    forebay.wait_in_service(1);
    let mut silent: Vec<_> = (0..8)
        .map(|_| {
            let mut client = Client::connect(forebay.proxy);
            client.send("GET", "/flood?1000000", &[], b"");
            client.read_head();
            client
        })
        .collect();
    // More small frames than would end the connection if the unread ones of the others counted in full.
    let frames = 100_000;
    let answer = plain::get(forebay.proxy, &format!("/flood?{frames}"));
    assert_eq!((answer.status, answer.body.len()), (200, frames * FRAME.len()));
    assert_eq!(server.count(|seen| &seen.connections), 1, "they shared one");
    for client in &mut silent {
        assert!(client.read_chunk().is_some_and(|chunk| chunk.is_ok()), "it may read on");
    }
    drop(silent);
    forebay.wait_all_zero();
    server.runtime.shutdown_background();
}

#[test]
fn the_end_of_an_answer_without_content_is_waited_for() {
    let server = Server::start(Manners { streams: 100, goaway_after: 0 }, late_end);
    let forebay = in_front_of(&[server.address], 4, "");
    let mut client = H2::connect(forebay.proxy);
    for method in [Method::HEAD, Method::GET].into_iter().cycle().take(10) {
        let status = if method == Method::HEAD { 200 } else { 204 };
        let request = Request::builder().method(method).uri("http://e.example/x").body(());
        client.sender = client.wait(client.sender.clone().ready()).expect("more");
        let (answer, _) = client.sender.send_request(request.expect("one"), true).expect("is sent");
        let head = client.head(answer);
        assert_eq!(head.status(), status);
        let (body, error) = client.rest(head);
        assert!(body.is_empty() && error.is_none(), "{body:?}, {error:?}");
    }
    assert_eq!(server.count(|seen| &seen.requests), 10);
    assert_eq!(server.count(|seen| &seen.running), 0, "none was reset");
    forebay.wait_all_zero();
}
