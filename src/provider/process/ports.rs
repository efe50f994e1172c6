//! Free ports for workers. A port is found by binding it for a moment, so two finds could give the same
//! one before the first worker has bound it; the latest finds are remembered and not given out again.
//! A program of somebody else can still take the port in between: that worker fails to bind, ends and
//! is replaced.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

/// Finds that are remembered; a worker has bound its port long before so many others were launched.
const REMEMBERED: usize = 1024;
/// Candidates looked at before giving up.
const TRIES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Ports {
    latest: VecDeque<u16>,
}

impl Ports {
    /// A port on `host` that nobody listens on, that was not given out lately and is not `taken`.
    pub(super) fn find(&mut self, host: IpAddr, taken: &HashSet<u16>) -> io::Result<u16> {
        // Refused candidates stay bound until we are done, so that each try sees another one.
        let mut refused = Vec::new();
        for _ in 0..TRIES {
            let listener = TcpListener::bind(SocketAddr::new(host, 0))?;
            let port = listener.local_addr()?.port();
            if !taken.contains(&port) && !self.latest.contains(&port) {
                self.latest.push_back(port);
                if self.latest.len() > REMEMBERED {
                    self.latest.pop_front();
                }
                return Ok(port);
            }
            refused.push(listener);
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port was found"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_out_twice() {
        let host = IpAddr::from([127, 0, 0, 1]);
        let mut ports = Ports::default();
        let mut found = HashSet::new();
        for _ in 0..500 {
            assert!(found.insert(ports.find(host, &HashSet::new()).expect("a port")));
        }
        let other = Ports::default().find(host, &found).expect("a port");
        assert!(!found.contains(&other));
    }
}
