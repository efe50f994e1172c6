//! The cheapest backend that a proxy can be measured against: it answers every request with the same 128
//! bytes, head and body in one write, from one thread. `echo_backend ADDRESS…` listens on each and prints
//! `ready`. It reads requests only as far as it must to find their ends, so feed it nothing hostile.

use std::io::Write;
use std::process::ExitCode;

use forebay::runtime::tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const BODY: [u8; 128] = *b"{\"answer\":\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\
    xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"}";
const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 128\r\n\r\n";
/// Longest request; a longer one ends its connection.
const MAX_REQUEST: usize = 1 << 20;

fn main() -> ExitCode {
    let addresses: Vec<String> = std::env::args().skip(1).collect();
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .and_then(|runtime| runtime.block_on(serve(&addresses)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo_backend: cannot listen on {addresses:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(addresses: &[String]) -> std::io::Result<()> {
    let tasks = Tasks::new();
    for address in addresses {
        let listener = TcpListener::bind(address).await?;
        let connections = tasks.clone();
        tasks.spawn("listener", async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn("connection", async move {
                    // It ends when the other side does; how is its own business.
                    let _ = answer_all(stream).await;
                });
            }
        });
    }
    writeln!(std::io::stdout(), "ready")?;
    std::future::pending().await
}

async fn answer_all(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = [HEAD, &BODY].concat();
    let mut buffer = Vec::with_capacity(8 * 1024);
    loop {
        let Some(length) = request_length(&buffer) else {
            if buffer.len() > MAX_REQUEST || stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            continue;
        };
        buffer.drain(..length);
        stream.write_all(&answer).await?;
    }
}

/// The length of the request at the start of `bytes`; `None` if it has not all arrived.
fn request_length(bytes: &[u8]) -> Option<usize> {
    let head = find(bytes, b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).ok()?;
    let fields = || text.lines().filter_map(|line| line.split_once(':'));
    let field =
        |name: &str| fields().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim());
    let length = if let Some(length) = field("content-length") {
        head + length.parse::<usize>().ok()?
    } else if field("transfer-encoding").is_some() {
        // Good for the bodies of a load test: they hold no such bytes themselves.
        let empty = bytes[head..].starts_with(b"0\r\n\r\n");
        head + if empty { 5 } else { find(&bytes[head..], b"\r\n0\r\n\r\n")? + 7 }
    } else {
        head
    };
    (bytes.len() >= length).then_some(length)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
