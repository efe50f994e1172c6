//! Free ports for workers. A port is found by binding it for a moment, so two finds could give the same
//! one before the first worker has bound it; the latest finds, of all providers together, are remembered and not given
//! out again: of two workers with one address the one that has no port would seem as healthy as the other.
//! A program of somebody else can still take the port in between: that worker fails to bind, ends and
//! is replaced.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Mutex;

use super::locked;

/// Finds that are remembered; a worker has bound its port long before so many others were launched.
const REMEMBERED: usize = 1024;
/// Candidates looked at before giving up.
const TRIES: usize = 64;

/// The latest finds of this process.
static LATEST: Mutex<VecDeque<u16>> = Mutex::new(VecDeque::new());

/// A port on `host` that nobody listens on, that was not given out lately and is not `taken`.
pub(super) fn find(host: IpAddr, taken: &HashSet<u16>) -> io::Result<u16> {
    let mut latest = locked(&LATEST);
    // Refused candidates stay bound until we are done, so that each try sees another one.
    let mut refused = Vec::new();
    for _ in 0..TRIES {
        let listener = TcpListener::bind(SocketAddr::new(host, 0))?;
        let port = listener.local_addr()?.port();
        if !taken.contains(&port) && !latest.contains(&port) {
            latest.push_back(port);
            if latest.len() > REMEMBERED {
                latest.pop_front();
            }
            return Ok(port);
        }
        refused.push(listener);
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port was found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_out_twice() {
        let host = IpAddr::from([127, 0, 0, 1]);
        // Whoever asks: each of these could be a provider.
        let one = |_| (0..100).map(|_| find(host, &HashSet::new()).expect("a port")).collect();
        let all: Vec<Vec<u16>> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..4).map(|n| scope.spawn(move || one(n))).collect();
            asking.into_iter().map(|one| one.join().expect("done")).collect()
        });
        let found: HashSet<u16> = all.iter().flatten().copied().collect();
        assert_eq!(found.len(), 400);
        let other = find(host, &found).expect("a port");
        assert!(!found.contains(&other));
    }
}
