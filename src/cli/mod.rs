//! The client's side of the management API: what `forebay status`, `scale`, `drain` and `explain` do.
//! Each function answers with the text to print, or with an error that says what to do.

mod client;
mod render;

use std::io;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;
use thiserror::Error;

use client::Client;

use crate::runtime::tokens::{self, Token};
use crate::runtime::{clock, rng};
use crate::types::access::Digest;
use crate::types::status::{Explanation, FleetStatus};
use crate::types::tls::WorkerTls;
use crate::types::{EndpointName, InstanceId, VariantName};

/// How keys begin that are made here, so that they are known for what they are wherever they turn up.
const KEY_PREFIX: &str = "fbk_";
/// Shorter ones could be guessed: their digests are not salted.
const SHORTEST_KEY: usize = 20;
/// Bytes that are read to find a key.
const LONGEST_KEY: u64 = 4_096;

/// Where a manager is, and what it wants to be sent.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Its management address.
    pub url: String,
    /// The token that it wants, if it wants one.
    pub token: Option<Token>,
    /// How it is spoken to where its address is `https`.
    pub tls: WorkerTls,
}

impl Admin {
    /// With the token in `file`, or else the one in `given` (the environment's), or none.
    ///
    /// # Errors
    /// [`CliError::Usage`] when what is there is no token.
    pub fn new(
        url: String,
        tls: WorkerTls,
        file: Option<&Path>,
        given: Option<&str>,
    ) -> Result<Self, CliError> {
        let of_file = |path: &Path| {
            let found = tokens::read(path).map_err(|error| format!("--token-file: {error}"))?;
            Ok(found.into_iter().next())
        };
        let token = match (file, given) {
            (Some(path), _) => of_file(path),
            (None, Some(text)) => {
                Token::new(text).map(Some).map_err(|rule| format!("FOREBAY_TOKEN: {rule}"))
            }
            (None, None) => Ok(None),
        };
        token.map(|token| Self { url, token, tls }).map_err(CliError::Usage)
    }
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CliError {
    /// The command line makes no sense; exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Nobody answers there.
    #[error(
        "cannot reach the manager at {admin}: {reason}; is it running? set --admin or FOREBAY_ADMIN"
    )]
    Unreachable {
        /// Where it was looked for.
        admin: String,
        /// What happened.
        reason: String,
    },
    /// The manager refused.
    #[error("{0}")]
    Refused(String),
    /// Whoever answers is no manager of this kind.
    #[error("{admin} gave an answer that is not understood: {reason}; is it a forebay manager?")]
    NotUnderstood {
        /// Who answered.
        admin: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl CliError {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::Usage(_)) { 2 } else { 1 }
    }
}

/// The fleet, as aligned tables, or as the very JSON of the API.
///
/// # Errors
/// [`CliError`].
pub async fn status(admin: &Admin, json: bool) -> Result<String, CliError> {
    let client = Client::new(admin)?;
    let answer = client.get("/api/v1/status").await?;
    let status: FleetStatus = client.understand(&answer)?;
    Ok(if json { answer } else { render::status(&status, clock::now()) })
}

/// Sets the desired instance count of `target`, an `ENDPOINT` or `ENDPOINT/VARIANT`.
///
/// # Errors
/// [`CliError`].
pub async fn scale(admin: &Admin, target: &str, count: u32) -> Result<String, CliError> {
    let (endpoint, variant) = match target.split_once('/') {
        Some((endpoint, variant)) => (endpoint, Some(name::<VariantName>(variant)?)),
        None => (target, None),
    };
    let endpoint: EndpointName = name(endpoint)?;
    let client = Client::new(admin)?;
    let body = json!({ "variant": variant, "desired_instance_count": count });
    let path = format!("/api/v1/endpoints/{endpoint}/scale");
    let scaled: Scaled = client.understand(&client.post(&path, &body).await?)?;
    let Scaled { endpoint, variant, desired_instance_count } = scaled;
    Ok(format!("{endpoint}/{variant} is to have {desired_instance_count} instances"))
}

/// Drains `instance` and lets it go.
///
/// # Errors
/// [`CliError`].
pub async fn drain(admin: &Admin, instance: &str) -> Result<String, CliError> {
    let instance: InstanceId = name(instance)?;
    let client = Client::new(admin)?;
    client.post(&format!("/api/v1/instances/{instance}/drain"), &json!({})).await?;
    Ok(format!("{instance} drains and will be removed"))
}

/// Why the fleet of `endpoint` is what it is.
///
/// # Errors
/// [`CliError`].
pub async fn explain(admin: &Admin, endpoint: &str, json: bool) -> Result<String, CliError> {
    let endpoint: EndpointName = name(endpoint)?;
    let client = Client::new(admin)?;
    let answer = client.get(&format!("/api/v1/endpoints/{endpoint}/explain")).await?;
    let explanation: Explanation = client.understand(&answer)?;
    Ok(if json { answer } else { render::explanation(&explanation) })
}

/// A new key for a client, and the digest by which the config knows it.
///
/// # Errors
/// When the system has no randomness.
pub fn new_api_key() -> io::Result<String> {
    let mut key = KEY_PREFIX.to_owned();
    for byte in rng::secret()? {
        key += &format!("{byte:02x}");
    }
    Ok(format!("key     {key}\nsha256  {}", Digest::of(key.as_bytes())))
}

/// The digest of a key that there is already: the first line of `input`.
///
/// # Errors
/// When it cannot be read, or is no key that could be sent.
pub fn digest_of(input: impl io::Read) -> io::Result<String> {
    let mut text = String::new();
    input.take(LONGEST_KEY).read_to_string(&mut text)?;
    let key = text.lines().next().unwrap_or_default().trim();
    if key.len() < SHORTEST_KEY || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        let what = format!("a key has at least {SHORTEST_KEY} printable ASCII characters");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(Digest::of(key.as_bytes()).to_string())
}

#[derive(Deserialize)]
struct Scaled {
    endpoint: EndpointName,
    variant: VariantName,
    desired_instance_count: u32,
}

fn name<T: std::str::FromStr<Err = crate::types::ids::InvalidName>>(
    text: &str,
) -> Result<T, CliError> {
    text.parse().map_err(|error: crate::types::ids::InvalidName| CliError::Usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn mistakes_on_the_command_line_are_usage_errors() {
        let at = |url: &str| Admin { url: url.to_owned(), token: None, tls: WorkerTls::default() };
        let trusting = WorkerTls { ca_file: Some("ca.pem".into()), ..WorkerTls::default() };
        let admin = &at("http://127.0.0.1:1");
        for error in [
            scale(admin, "no such/name", 1).await,
            scale(admin, "e/v/w", 1).await,
            drain(admin, "../x").await,
            explain(admin, "", false).await,
            status(&at("127.0.0.1:8081"), false).await,
            status(&at("http://127.0.0.1:1/path"), false).await,
            status(&Admin { tls: trusting, ..at("http://127.0.0.1:1") }, false).await,
        ] {
            let error = error.expect_err("wrong");
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }

    #[test]
    fn a_new_key_goes_with_its_digest() {
        let told = new_api_key().expect("randomness");
        let fields: Vec<_> = told.split_whitespace().collect();
        let ["key", key, "sha256", digest] = fields[..] else { panic!("{told}") };
        assert_eq!(key.len(), 68, "{key}");
        assert_eq!(digest_of(format!("{key}\n").as_bytes()).expect("a key"), digest);
        assert_ne!(new_api_key().expect("randomness"), told);
        for wrong in ["", "short", "with a blank in the middle", "not-ascii-é-not-ascii-é"] {
            assert!(digest_of(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn nobody_there_says_what_to_do() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let admin = format!("http://{}", free.local_addr().expect("bound"));
        drop(free);
        let error =
            status(&Admin { url: admin.clone(), token: None, tls: WorkerTls::default() }, false)
                .await
                .expect_err("nobody listens");
        assert_eq!(error.exit_code(), 1);
        let text = error.to_string();
        let expected = format!("cannot reach the manager at {admin}: ");
        assert!(text.starts_with(&expected), "{text}");
        assert!(text.to_lowercase().contains("connection refused"), "{text}");
        assert!(text.ends_with("is it running? set --admin or FOREBAY_ADMIN"), "{text}");
    }
}
