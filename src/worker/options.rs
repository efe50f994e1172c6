//! The worker's command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::fail::FailMode;

/// What shapes a stand-in model server.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkerOptions {
    /// Address to listen on, as HOST:PORT; port 0 picks a free one
    #[arg(long, value_name = "ADDR")]
    pub listen: String,

    /// Instance type to call itself in its answers
    #[arg(long, value_name = "T")]
    pub instance_type: String,

    /// Name of the model it serves; requests for any other name are answered all the same
    #[arg(long, value_name = "M")]
    pub model: String,

    /// Requests worked on at once; more wait in the worker's own queue [default: no limit]
    #[arg(long, value_name = "N")]
    pub max_concurrency: Option<NonZeroUsize>,

    /// Requests that may wait in the queue; one more is answered with 503
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub max_queue: usize,

    /// Time from getting a slot to the first token
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub first_token: Duration,

    /// Tokens a second for each request after its first token [default: as fast as they can be sent]
    #[arg(long, value_name = "R", value_parser = positive)]
    pub tokens_per_second: Option<f64>,

    /// How much longer all of it takes with every slot taken: 0 is not at all, 1 is twice as long; in
    /// between it grows with the slots taken. Has no effect without --max-concurrency
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = not_negative)]
    pub slowdown: f64,

    /// Tokens in an answer to a request that sets no limit of its own
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub default_tokens: u32,

    /// Time from listening to healthy; until then everything is answered with 503
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub startup_delay: Duration,

    /// Close connections that carried no request for so long, as uvicorn does after 5s [default: never]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub keep_alive: Option<Duration>,

    /// Certificate to speak TLS with, in PEM; HTTP/2 or HTTP/1.1 is agreed on by ALPN [default: no TLS]
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Certificates of those who may vouch for clients, in PEM; with it, clients have to show one
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,

    /// On SIGTERM finish the requests at hand before ending, instead of breaking them as engines do
    #[arg(long)]
    pub graceful: bool,

    /// Fail in this way; may be given several times. refuse-startup: never healthy.
    /// exit-at-start: exit with an error before listening. die-after=N: exit when the N-th request
    /// arrives. hang, hang-after=N: requests (after the first N) get no answer, health checks do.
    /// freeze, freeze-after=N: nothing at all is answered (once N requests have arrived).
    /// unhealthy-after=N: health checks fail once N requests have arrived. error=STATUS: that status
    /// after the usual time. fail-fast: 500 at once, without a slot. drop-connection: close without an
    /// answer. cut-stream=N: close after N events of a stream. cut-body: close halfway through a plain
    /// answer
    #[arg(long, value_name = "MODE")]
    pub fail: Vec<FailMode>,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("a number above 0 is needed".into()),
    }
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("a number that is not below 0 is needed".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        worker: WorkerOptions,
    }

    fn parse(more: &[&str]) -> Result<WorkerOptions, clap::Error> {
        let always = ["worker", "--listen", "127.0.0.1:0", "--instance-type", "t", "--model", "m"];
        Cli::try_parse_from(always.iter().chain(more)).map(|cli| cli.worker)
    }

    #[test]
    fn reads_units_and_repeated_failures() {
        let options =
            parse(&["--first-token", "50ms", "--fail", "hang-after=3", "--fail", "error=500"])
                .expect("valid");
        assert_eq!(options.first_token, Duration::from_millis(50));
        assert_eq!(options.fail, [FailMode::HangAfter(3), FailMode::Error(500)]);
        assert_eq!(options.max_concurrency, None);
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for wrong in [
            ["--max-concurrency", "0"],
            ["--tokens-per-second", "0"],
            ["--tokens-per-second", "NaN"],
            ["--slowdown", "-1"],
            ["--first-token", "50"],
            ["--fail", "explode"],
        ] {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
    }
}
