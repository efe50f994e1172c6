//! What runs: the states of an instance and where it can be reached.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where an instance is in its life. Spelled so in labels and JSON. One that is gone has no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum InstanceState {
    /// Asked for; the provider has not said yes.
    Pending,
    /// Granted, not healthy yet.
    Starting,
    /// Healthy and in the routing table.
    InService,
    /// Out of the routing table; finishing what it has.
    Draining,
    /// The provider has been told to end it.
    Stopping,
}

impl InstanceState {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Starting, Self::InService, Self::Draining, Self::Stopping];

    /// The state as labels and JSON spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Starting => "Starting",
            Self::InService => "InService",
            Self::Draining => "Draining",
            Self::Stopping => "Stopping",
        }
    }

    /// Whether it is on its way out and so no longer counts towards the desired number.
    #[must_use]
    pub fn is_leaving(self) -> bool {
        matches!(self, Self::Draining | Self::Stopping)
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a worker speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP/1.1, over TLS where the address says `https`.
    #[default]
    #[serde(rename = "http1")]
    Http1,
    /// HTTP/2 over plain TCP with prior knowledge.
    #[serde(rename = "h2c")]
    H2c,
    /// HTTP/2 over TLS.
    #[serde(rename = "h2")]
    H2,
}

/// A worker's base address: scheme, host and port, no path; written `http://127.0.0.1:9001`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    tls: bool,
    port: u16,
    authority: Arc<str>,
}

/// Why a text is not an [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("address \"{0}\" must look like http://host:port, without a path")]
pub struct InvalidAddress(pub String);

impl Address {
    /// A plain HTTP address on a socket.
    #[must_use]
    pub fn http(socket: std::net::SocketAddr) -> Self {
        Self { tls: false, port: socket.port(), authority: socket.to_string().into() }
    }

    /// The same over TLS.
    #[must_use]
    pub fn https(socket: std::net::SocketAddr) -> Self {
        Self { tls: true, ..Self::http(socket) }
    }

    /// `host:port`.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// `host`, in brackets where it is an IPv6 address.
    #[must_use]
    pub fn host(&self) -> &str {
        self.authority.rsplit_once(':').map_or(&self.authority, |(host, _)| host)
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same without brackets: a name or an IP address.
    #[must_use]
    pub fn bare_host(&self) -> &str {
        let host = self.host();
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    /// Whether TLS is spoken there.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let refuse = || InvalidAddress(text.to_owned());
        let uri: http::Uri = text.parse().map_err(|_| refuse())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(refuse()),
        };
        let authority = uri.authority().ok_or_else(refuse)?;
        if !matches!(uri.path(), "" | "/")
            || uri.query().is_some()
            || authority.as_str().contains('@')
        {
            return Err(refuse());
        }
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { tls, port, authority: format!("{}:{port}", authority.host()).into() })
    }
}

impl TryFrom<String> for Address {
    type Error = InvalidAddress;
    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_scheme_host_port() {
        for (text, shown) in [
            ("http://127.0.0.1:9001", "http://127.0.0.1:9001"),
            ("http://127.0.0.1:9001/", "http://127.0.0.1:9001"),
            ("https://gpu-1", "https://gpu-1:443"),
            ("http://[::1]:80", "http://[::1]:80"),
        ] {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()), Ok(shown.to_owned()));
        }
        let port = |text: &str| text.parse::<Address>().map(|a| a.port());
        assert_eq!((port("http://gpu-1:9001"), port("https://gpu-1")), (Ok(9001), Ok(443)));
        let host = |text: &str| text.parse::<Address>().map(|a| a.host().to_owned());
        assert_eq!(host("http://gpu-1:9001"), Ok("gpu-1".to_owned()));
        assert_eq!(host("http://[::1]:80"), Ok("[::1]".to_owned()));
        let bare = |text: &str| text.parse::<Address>().map(|a| a.bare_host().to_owned());
        assert_eq!(bare("https://gpu-1"), Ok("gpu-1".to_owned()));
        assert_eq!(bare("http://[::1]:80"), Ok("::1".to_owned()));
        for bad in ["127.0.0.1:9001", "ftp://x:1", "http://x:1/path", "http://u@x:1", "http://", ""]
        {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
