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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
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
