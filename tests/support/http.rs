//! A plain HTTP/1.1 client on a socket: it sends what it is told and shows what comes.

use super::*;

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body came to its proper end, by its length or its last chunk.
    pub complete: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

pub fn get(address: SocketAddr, path: &str) -> Answer {
    request(address, "GET", path, &[], b"")
}

pub fn post(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    request(address, "POST", path, headers, body.as_bytes())
}

pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut client = Client::connect(address);
    client.send(method, path, headers, body);
    // The answer to HEAD has the length of the body that it does not have.
    if method == "HEAD" { client.read_head() } else { client.read_answer() }
}

/// One connection.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream, buffer: Vec::new() }
    }

    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() || method == "POST" {
            head += &format!("content-length: {}\r\n", body.len());
        }
        head += "\r\n";
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.stream.write_all(&bytes).expect("sent");
    }

    /// More bytes into the buffer; false at the end of the connection.
    fn fill(&mut self) -> bool {
        let mut piece = [0; 16 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) => false,
            Ok(n) => {
                self.buffer.extend_from_slice(&piece[..n]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("reading: {error}"),
        }
    }

    pub fn read_head(&mut self) -> Answer {
        self.try_read_head().expect("a head before the connection ends")
    }

    fn try_read_head(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if !self.fill() {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|l| l.split(' ').nth(1)?.parse().ok()).expect("status");
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Some(Answer { status, headers, body: Vec::new(), complete: false })
    }

    /// One chunk of a chunked body; `None` at its proper end, `Some(Err)` where it breaks off.
    pub fn read_chunk(&mut self) -> Option<Result<Vec<u8>, ()>> {
        let line_end = loop {
            if let Some(at) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                break at;
            }
            if !self.fill() {
                return Some(Err(()));
            }
        };
        let size = String::from_utf8_lossy(&self.buffer[..line_end]).into_owned();
        let size = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("chunk size {size}"));
        let whole = line_end + 2 + size + 2;
        while self.buffer.len() < whole {
            if !self.fill() {
                return Some(Err(()));
            }
        }
        let chunk = self.buffer[line_end + 2..line_end + 2 + size].to_vec();
        self.buffer.drain(..whole);
        if size == 0 { None } else { Some(Ok(chunk)) }
    }

    pub fn read_answer(&mut self) -> Answer {
        self.try_read_answer().expect("a head before the connection ends")
    }

    /// `None` when the connection ends before a head.
    pub fn try_read_answer(&mut self) -> Option<Answer> {
        let mut answer = self.try_read_head()?;
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                match self.read_chunk() {
                    None => {
                        answer.complete = true;
                        return Some(answer);
                    }
                    Some(Ok(chunk)) => answer.body.extend(chunk),
                    Some(Err(())) => return Some(answer),
                }
            }
        }
        let length: usize =
            answer.header("content-length").map_or(0, |v| v.parse().expect("length"));
        while self.buffer.len() < length {
            if !self.fill() {
                answer.body = std::mem::take(&mut self.buffer);
                return Some(answer);
            }
        }
        answer.body = self.buffer.drain(..length).collect();
        answer.complete = true;
        Some(answer)
    }

    /// Whether the other side closes the connection.
    pub fn is_closed(&mut self) -> bool {
        !self.fill()
    }
}
