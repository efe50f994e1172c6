//! The cheapest backend that a proxy can be measured against, on one thread.
//!
//! `echo_backend [--slots N] [--slowness F] ADDRESS…` listens on each address and prints `ready`. Every
//! request is answered with 128 bytes, head and body in one write, unless the start of its body asks for
//! something else:
//!
//! * `bench:stream GAP_MS BYTES`: an endless event stream, an event of so many bytes each gap, which says when it
//!   was sent;
//! * `bench:work MICROS`: an answer after so much work, times `--slowness`, on one of the address's `--slots`;
//!   who finds all of them taken waits, first come, first served. The answer says when the work began.
//!
//! `GET /v1/models` names the model `bench`, for proxies that ask.
//!
//! It reads requests only as far as it must to find their ends, so feed it nothing hostile.

#[path = "../wire/mod.rs"]
mod wire;
mod work;

use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Parser;
use forebay::runtime::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio::time::MissedTickBehavior;
use wire::Body;
use work::Desk;

const BODY: &[u8; wire::ANSWER] =
    b"{\"answer\":\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\
    xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"}";
const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 128\r\n\r\n";
const MODELS: &str = r#"{"object":"list","data":[{"id":"bench","object":"model","owned_by":"vllm","root":"bench"}]}"#;
const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
    cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
/// How much of a body is searched for what it asks for.
const SEARCHED: usize = 4096;
const READ: usize = 64 * 1024;

#[derive(Parser)]
struct Options {
    /// Requests that one address works on at once.
    #[arg(long, default_value_t = 1 << 20)]
    slots: usize,
    /// How many times longer all work takes here.
    #[arg(long, default_value_t = 1.0)]
    slowness: f64,
    #[arg(required = true)]
    addresses: Vec<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| LocalSet::new().block_on(&runtime, serve(&options)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo_backend: cannot listen on {:?}: {error}", options.addresses);
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: &Options) -> std::io::Result<()> {
    for address in &options.addresses {
        let listener = TcpListener::bind(address).await?;
        let desk = Rc::new(Desk::new(listener.local_addr()?, options.slots, options.slowness));
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let desk = desk.clone();
                tokio::task::spawn_local(async move {
                    // It ends when the other side does; how is its own business.
                    let _ = answer_all(stream, &desk).await;
                });
            }
        });
    }
    writeln!(std::io::stdout(), "ready")?;
    std::future::pending().await
}

/// What a request wants.
enum Wish {
    Echo,
    Models,
    Stream { gap: Duration, bytes: usize },
    Work(Duration),
}

impl Wish {
    fn of(body: &[u8]) -> Self {
        let start = memchr::memmem::find(body, b"bench:").map(|at| &body[at + 6..]);
        let text = start.map(|start| start.split(|&b| b == b'"').next().unwrap_or(start));
        let Some(text) = text.and_then(|text| std::str::from_utf8(text).ok()) else {
            return Self::Echo;
        };
        let mut words = text.split(' ');
        let verb = words.next();
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        match (verb, number(), number()) {
            (Some("stream"), Some(gap), Some(bytes)) => Self::Stream {
                gap: Duration::from_millis(gap.max(1)),
                bytes: usize::try_from(bytes).unwrap_or(0),
            },
            (Some("work"), Some(micros), _) => Self::Work(Duration::from_micros(micros)),
            _ => Self::Echo,
        }
    }
}

async fn answer_all(mut stream: TcpStream, desk: &Desk) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let echo = [HEAD, BODY].concat();
    let mut buffer = Vec::with_capacity(READ);
    while let Some(wish) = next_request(&mut stream, &mut buffer).await? {
        match wish {
            Wish::Echo => stream.write_all(&echo).await?,
            Wish::Models => {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
                let answer = format!("{head}{}\r\n\r\n{MODELS}", MODELS.len());
                stream.write_all(answer.as_bytes()).await?;
            }
            Wish::Work(work) => stream.write_all(&desk.work(work).await).await?,
            Wish::Stream { gap, bytes } => return events(&mut stream, gap, bytes).await,
        }
    }
    Ok(())
}

/// Reads one request to its end; `None` when there is no further one. What came behind it stays in
/// `buffer`.
async fn next_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<Wish>> {
    let head = loop {
        if let Some(head) = wire::head_end(buffer) {
            break head;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let mut body = Body::of(&buffer[..head]);
    let models = buffer.starts_with(b"GET /v1/models");
    buffer.drain(..head);
    let mut start = Vec::new();
    loop {
        let taken = body.take(buffer, |content| {
            let room = SEARCHED.saturating_sub(start.len()).min(content.len());
            start.extend_from_slice(&content[..room]);
        });
        buffer.drain(..taken);
        if body.is_done() {
            return Ok(Some(if models { Wish::Models } else { Wish::of(&start) }));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// Sends events until the other side is gone. Each has exactly one `~`, to be counted by, and behind it the
/// time at which it is sent.
async fn events(stream: &mut TcpStream, gap: Duration, bytes: usize) -> std::io::Result<()> {
    stream.write_all(STREAM_HEAD).await?;
    let (start, end) = ("data: {\"choices\":[{\"delta\":{\"content\":\"~", "\"}}],\"id\":\"");
    let close = "\"}\n\n";
    let fixed = start.len() + wire::STAMP + end.len() + close.len();
    let padding = "x".repeat(bytes.saturating_sub(fixed));
    let length = fixed + padding.len();
    let mut event = Vec::with_capacity(length + 16);
    let mut ticks = tokio::time::interval(gap);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (now_us, digits) = (clock::wall_nanos() / 1000, wire::STAMP);
        event.clear();
        write!(event, "{length:x}\r\n{start}{now_us:0digits$}{end}{padding}{close}\r\n")?;
        stream.write_all(&event).await?;
    }
}
