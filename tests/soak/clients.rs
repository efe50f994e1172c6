//! Clients of what is not a chat in clear: TLS, gRPC, bodies of many megabytes.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::uri::PathAndQuery;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::Runtime;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned};
use tonic::metadata::MetadataValue;
use tonic::server::{Grpc, StreamingService};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Response, Status, Streaming};

use super::Tally;
use super::support::DEADLINE;
use super::support::chaos::{PATH, STREAM};
use super::support::grpc::Plain;
use super::support::h2::H2;
use super::support::http::Client;
use super::support::pki::{Authority, client_config};

/// Who the proxy says it is.
pub(crate) const NAME: &str = "models.example";
/// A large body.
const LARGE: usize = 8 << 20;

/// What the proxy shows its clients over TLS, and what they trust.
pub(crate) struct Tls {
    authority: Authority,
    pub(crate) address: SocketAddr,
}

impl Tls {
    /// With its certificate in `dir`.
    pub(crate) fn new(dir: &Path, address: SocketAddr) -> Self {
        let authority = Authority::new();
        authority.certify(dir, NAME, &[NAME]);
        Self { authority, address }
    }

    fn client(&self, protocol: &str) -> ClientConfig {
        client_config(&self.authority, &[protocol])
    }

    pub(crate) fn http2(&self) -> H2 {
        H2::connect_tls(self.address, self.client("h2"), NAME)
    }

    /// A connection with a handshake of its own for every stream; every fourth leaves in the middle.
    pub(crate) fn fresh_connections(&self, tally: &Tally) {
        let config = Arc::new(self.client("http/1.1"));
        tally.repeat(|number| {
            let (outcome, answer) = self.one_stream(&config, number % 4 == 3);
            tally.count("stream over TLS", &outcome);
            let is_usual = matches!(&*outcome, "left" | "200" | "429" | "502" | "503" | "cut");
            if !is_usual {
                tally.wrong(format!("stream over TLS: {outcome} {answer}"));
            }
        });
    }

    fn one_stream(&self, config: &Arc<ClientConfig>, leaves: bool) -> (String, String) {
        let name = ServerName::try_from(NAME).expect("a name");
        let client = ClientConnection::new(Arc::clone(config), name).expect("a client");
        let socket = TcpStream::connect(self.address).expect("connects");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let mut tls = StreamOwned::new(client, socket);
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nhost: {NAME}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{STREAM}",
            STREAM.len()
        );
        tls.write_all(head.as_bytes()).expect("sent");
        if leaves {
            drop(tls.read(&mut [0; 256]));
            return ("left".to_owned(), String::new());
        }
        let mut answer = Vec::new();
        let ended = tls.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.get(9..12).unwrap_or("nothing");
        let is_whole = ended.is_ok() && answer.ends_with("0\r\n\r\n");
        let outcome = if status == "200" && !is_whole { "cut" } else { status };
        (outcome.to_owned(), answer)
    }
}

/// Bodies of [`LARGE`] bytes there and back; every fifth breaks off in the middle, on either side.
pub(crate) fn large_bodies(proxy: SocketAddr, tally: &Tally) {
    const BULK: (&str, &str) = ("x-forebay-endpoint", "bulk");
    let body = vec![b'x'; LARGE];
    tally.repeat(|number| {
        let mut client = Client::connect(proxy);
        if number % 5 == 4 {
            let head = format!(
                "POST /count HTTP/1.1\r\nhost: x\r\n{}: {}\r\ncontent-length: {LARGE}\r\n\r\n",
                BULK.0, BULK.1
            );
            if number % 2 == 0 {
                drop(client.stream.write_all(head.as_bytes()));
                drop(client.stream.write_all(&body[..LARGE / 2]));
            } else {
                client.send("GET", &format!("/bytes/{LARGE}"), &[BULK], b"");
                drop(client.stream.read_exact(&mut vec![0; LARGE / 2]));
            }
            tally.count("large body", "left");
            return;
        }
        client.send("POST", "/count", &[BULK], &body);
        let counted = client.read_answer().text();
        client.send("GET", &format!("/bytes/{LARGE}"), &[BULK], b"");
        let answer = client.read_answer();
        tally.count("large body", &answer.status.to_string());
        if counted != LARGE.to_string() || !answer.complete || answer.body.len() != LARGE {
            let got = answer.body.len();
            tally.wrong(format!("large body: {counted} arrived, {got} came back"));
        }
        std::thread::sleep(Duration::from_millis(50));
    });
}

type Messages = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Sends each message back as it comes, and says that it is healthy.
struct Mirror {
    is_health_check: bool,
}

impl StreamingService<Bytes> for Mirror {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = std::future::Ready<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let messages: Messages = if self.is_health_check {
            Box::pin(stream::iter([Ok(Bytes::from_static(&[8, 1]))]))
        } else {
            Box::pin(request.into_inner())
        };
        std::future::ready(Ok(Response::new(messages)))
    }
}

/// A gRPC server; it lives as long as `runtime`.
pub(crate) fn mirror(runtime: &Runtime) -> SocketAddr {
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
    let address = listener.local_addr().expect("address");
    runtime.spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|request: http::Request<_>| async {
                let is_health_check = request.uri().path().ends_with("/Check");
                Ok::<_, Infallible>(
                    Grpc::new(Plain).streaming(Mirror { is_health_check }, request).await,
                )
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(socket), service);
            tokio::spawn(connection);
        }
    });
    address
}

/// Conversations over one connection, which tonic replaces when it has to; every fifth is left in the
/// middle.
pub(crate) fn grpc(proxy: SocketAddr, runtime: &Runtime, tally: &Tally) {
    let target = Endpoint::try_from(format!("http://{proxy}")).expect("a target");
    let channel = runtime.block_on(target.connect()).expect("connects");
    tally.repeat(|number| {
        let leaves = number % 5 == 4;
        let said: Vec<_> = (0..6).map(|at| Bytes::from(format!("{at} of {number}"))).collect();
        let asked = stream::iter(said.clone());
        let conversation = async {
            let mut client = tonic::client::Grpc::new(channel.clone());
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            // Says no more and does not end, until it goes: `more` is dropped with the rest.
            let (more, gone) = tokio::sync::oneshot::channel::<()>();
            let silence = stream::pending().take_until(gone);
            let mut request = if leaves {
                Request::new(asked.chain(silence).boxed())
            } else {
                Request::new(asked.boxed())
            };
            let endpoint = MetadataValue::from_static("grpc");
            request.metadata_mut().insert("x-forebay-endpoint", endpoint);
            let path = PathAndQuery::from_static("/test.Mirror/Chat");
            let mut answers = client.streaming(request, path, Plain).await?.into_inner();
            let mut heard = Vec::new();
            while heard.len() < said.len() {
                heard.extend(answers.message().await?);
            }
            if !leaves && answers.message().await?.is_some() {
                return Err(Status::data_loss("more than was said"));
            }
            drop(more);
            Ok::<_, Status>(heard == said)
        };
        let outcome =
            runtime.block_on(async { tokio::time::timeout(DEADLINE, conversation).await });
        match outcome {
            Ok(Ok(true)) => tally.count("gRPC", if leaves { "left" } else { "OK" }),
            // The connection's end came between: the one before has been taken over.
            Ok(Err(status)) if matches!(status.code(), Code::Unavailable | Code::Cancelled) => {
                tally.count("gRPC", &format!("{:?}", status.code()));
            }
            other => tally.wrong(format!("gRPC: {other:?}")),
        }
        std::thread::sleep(Duration::from_millis(10));
    });
}
