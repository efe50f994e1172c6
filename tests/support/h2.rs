//! A client of the h2 crate, which shows what HTTP/2 itself says of a request.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::DEADLINE;

/// One connection, and the runtime that drives it.
pub struct H2 {
    pub runtime: Runtime,
    pub sender: SendRequest<Bytes>,
    /// Ends with the connection.
    pub connection: JoinHandle<Result<(), h2::Error>>,
}

/// How a stream ended: what came of its body, and the error it ended with.
pub type Ended = (Vec<u8>, Option<h2::Error>);

impl H2 {
    pub fn connect(proxy: SocketAddr) -> Self {
        Self::over(async { TcpStream::connect(proxy).await.expect("connects") })
    }

    /// The same over TLS, to the name that the certificate is for.
    pub fn connect_tls(proxy: SocketAddr, config: ClientConfig, name: &'static str) -> Self {
        Self::over(async move {
            let socket = TcpStream::connect(proxy).await.expect("connects");
            let name = ServerName::try_from(name).expect("a name");
            TlsConnector::from(Arc::new(config)).connect(name, socket).await.expect("TLS")
        })
    }

    fn over<S>(socket: impl Future<Output = S>) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (sender, connection) = runtime.block_on(async {
            let (sender, connection) = h2::client::handshake(socket.await).await.expect("HTTP/2");
            (sender, tokio::spawn(connection))
        });
        Self { runtime, sender, connection }
    }

    pub fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(async {
            tokio::time::timeout(DEADLINE, what).await.expect("within the deadline")
        })
    }

    /// Sends a whole request; its answer is asked for later.
    pub fn send(&mut self, path: &str, body: &str) -> ResponseFuture {
        self.try_send(path, body).expect("the connection takes more")
    }

    /// The same on a connection that the other side may be leaving.
    pub fn try_send(&mut self, path: &str, body: &str) -> Result<ResponseFuture, h2::Error> {
        let request = Request::post(format!("http://models.example{path}"))
            .header("content-type", "application/json")
            .body(())
            .expect("a request");
        self.sender = self.wait(self.sender.clone().ready())?;
        let (answer, mut rest) = self.sender.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            rest.send_data(Bytes::copy_from_slice(body.as_bytes()), true)?;
        }
        Ok(answer)
    }

    pub fn chat(&mut self, tokens: u32, stream: bool) -> ResponseFuture {
        let body = format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],"max_tokens":{tokens},"stream":{stream}}}"#
        );
        self.send("/v1/chat/completions", &body)
    }

    pub fn head(&self, answer: ResponseFuture) -> Response<h2::RecvStream> {
        self.wait(answer).expect("an answer")
    }

    pub fn rest(&self, answer: Response<h2::RecvStream>) -> Ended {
        self.wait(async { Self::read(answer).await })
    }

    pub async fn read(answer: Response<h2::RecvStream>) -> Ended {
        let mut body = answer.into_body();
        let mut all = Vec::new();
        while let Some(piece) = body.data().await {
            match piece {
                Ok(bytes) => {
                    drop(body.flow_control().release_capacity(bytes.len()));
                    all.extend_from_slice(&bytes);
                }
                Err(error) => return (all, Some(error)),
            }
        }
        (all, None)
    }
}
