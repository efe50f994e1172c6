//! Logs: lines on standard error, chosen by two environment variables. `FOREBAY_LOG` is a filter such as
//! `info` (the default) or `forebay::proxy=debug,warn`; `FOREBAY_LOG_FORMAT=json` writes one JSON object
//! a line for machines, anything else lines for people.

use std::io::IsTerminal as _;

use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The variable with the filter.
pub const FILTER: &str = "FOREBAY_LOG";
/// The variable with the format.
pub const FORMAT: &str = "FOREBAY_LOG_FORMAT";

/// Why there will be no logs as they were asked for.
#[derive(Debug, Error)]
pub enum LogError {
    /// The filter cannot be read.
    #[error("{FILTER}=\"{filter}\" is no filter ({reason}); write for example {FILTER}=info")]
    Filter {
        /// What it said.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Unknown format.
    #[error("{FORMAT}=\"{0}\" is no format; write {FORMAT}=text or {FORMAT}=json")]
    Format(String),
    /// Logs were set up before in this process.
    #[error("logs are set up already: {0}")]
    Already(String),
}

/// Sets up logs for the whole process, as the environment says.
///
/// # Errors
/// [`LogError`] when the environment asks for something that there is not, or on a second call.
pub fn init() -> Result<(), LogError> {
    let filter = std::env::var(FILTER).unwrap_or_default();
    let format = std::env::var(FORMAT).unwrap_or_default();
    let colours = std::io::stderr().is_terminal();
    let subscriber = subscriber(&filter, &format, colours, std::io::stderr)?;
    subscriber.try_init().map_err(|error| LogError::Already(error.to_string()))
}

/// What [`init`] sets up, writing wherever it is told.
fn subscriber<W>(
    filter: &str,
    format: &str,
    colours: bool,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let directives = if filter.is_empty() { "info" } else { filter };
    let filter = EnvFilter::try_new(directives).map_err(|error| LogError::Filter {
        filter: directives.to_owned(),
        reason: error.to_string(),
    })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        "" | "text" => Ok(Box::new(lines.with_ansi(colours).finish())),
        "json" => Ok(Box::new(lines.json().flatten_event(true).finish())),
        other => Err(LogError::Format(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("lock").write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, format: &str) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            subscriber(filter, format, false, move || writer.clone()).expect("a subscriber");
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(instance = "i-1", "in service");
            tracing::debug!("a detail");
        });
        let bytes = lines.0.lock().expect("lock").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn the_default_is_info_for_people() {
        let text = logged("", "");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("INFO") && text.contains("in service instance=\"i-1\""), "{text}");
        assert_eq!(logged("debug", "text").lines().count(), 2);
        assert_eq!(logged("warn", "").lines().count(), 0);
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = logged("", "json");
        let object: serde_json::Value = serde_json::from_str(&text).expect("one object");
        assert_eq!(object["message"], "in service");
        assert_eq!(object["instance"], "i-1");
        assert_eq!(object["level"], "INFO");
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_advice() {
        let refusal = |filter, format| {
            let refused = subscriber(filter, format, false, std::io::sink);
            refused.err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(
            refusal("forebay=loud", "").starts_with("FOREBAY_LOG=\"forebay=loud\" is no filter")
        );
        assert!(refusal("", "xml").starts_with("FOREBAY_LOG_FORMAT=\"xml\" is no format"));
    }
}
