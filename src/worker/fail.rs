//! The failures a worker can be told to show, for good (`--fail`) or for one request
//! (the header `x-worker-fail`).

use std::str::FromStr;

/// One way to fail. N counts requests in the order they arrived; health checks, `/metrics`, `/stats`
/// and `/v1/models` are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailMode {
    /// `refuse-startup`: listens, but everything is answered with 503 for ever.
    RefuseStartup,
    /// `exit-at-start`: the process exits with an error before it listens.
    ExitAtStart,
    /// `die-after=N`: the process exits, with no farewell, when the N-th request arrives.
    DieAfter(u64),
    /// `hang`, `hang-after=N`: requests after the first N take a slot and are never answered; health
    /// checks are. This is an engine that is stuck behind a web server that is not.
    HangAfter(u64),
    /// `freeze`, `freeze-after=N`: once N requests have arrived nothing is answered, health checks
    /// neither, though connections are accepted. This is a process that is stuck as a whole.
    FreezeAfter(u64),
    /// `unhealthy-after=N`: once N requests have arrived health checks get 503; requests are answered.
    UnhealthyAfter(u64),
    /// `error=STATUS`: requests get this status (400 to 599) after the usual wait for slot and first token.
    Error(u16),
    /// `fail-fast`: requests get 500 at once, without a slot: the broken copy that looks idle.
    FailFast,
    /// `drop-connection`: the connection is closed when a request's head has arrived.
    DropConnection,
    /// `cut-stream=N`: the connection is closed after N events of a streamed answer.
    CutStream(u64),
    /// `cut-body`: the connection is closed after half of a plain answer's body.
    CutBody,
}

impl FromStr for FailMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) =
            text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let count = |least: u64| match value.unwrap_or_default().parse::<u64>() {
            Ok(count) if count >= least => Ok(count),
            _ => Err(format!("{name} needs a number of at least {least}, as in {name}=3")),
        };
        let mode = match name {
            "die-after" => return count(1).map(Self::DieAfter),
            "hang-after" => return count(0).map(Self::HangAfter),
            "freeze-after" => return count(0).map(Self::FreezeAfter),
            "unhealthy-after" => return count(0).map(Self::UnhealthyAfter),
            "cut-stream" => return count(0).map(Self::CutStream),
            "error" => return status(value).map(Self::Error),
            "refuse-startup" => Self::RefuseStartup,
            "exit-at-start" => Self::ExitAtStart,
            "hang" => Self::HangAfter(0),
            "freeze" => Self::FreezeAfter(0),
            "fail-fast" => Self::FailFast,
            "drop-connection" => Self::DropConnection,
            "cut-body" => Self::CutBody,
            _ => return Err(format!("there is no failure named {name:?}")),
        };
        if value.is_some() {
            return Err(format!("{name} takes no value"));
        }
        Ok(mode)
    }
}

fn status(value: Option<&str>) -> Result<u16, String> {
    match value.unwrap_or_default().parse::<u16>() {
        Ok(status) if (400..600).contains(&status) => Ok(status),
        _ => Err("error needs a status from 400 to 599, as in error=500".into()),
    }
}

/// The failures in force, all of them at once. Of two of a kind the later one counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a failure of its own; any may be on")]
pub(super) struct Faults {
    pub(super) refuse_startup: bool,
    pub(super) exit_at_start: bool,
    pub(super) die_after: Option<u64>,
    pub(super) hang_after: Option<u64>,
    pub(super) freeze_after: Option<u64>,
    pub(super) unhealthy_after: Option<u64>,
    pub(super) error: Option<u16>,
    pub(super) fail_fast: bool,
    pub(super) drop_connection: bool,
    pub(super) cut_stream: Option<u64>,
    pub(super) cut_body: bool,
}

impl Faults {
    pub(super) fn new(modes: &[FailMode]) -> Self {
        modes.iter().fold(Self::default(), |faults, mode| faults.with(*mode))
    }

    /// These and one more.
    pub(super) fn with(mut self, mode: FailMode) -> Self {
        match mode {
            FailMode::RefuseStartup => self.refuse_startup = true,
            FailMode::ExitAtStart => self.exit_at_start = true,
            FailMode::DieAfter(count) => self.die_after = Some(count),
            FailMode::HangAfter(count) => self.hang_after = Some(count),
            FailMode::FreezeAfter(count) => self.freeze_after = Some(count),
            FailMode::UnhealthyAfter(count) => self.unhealthy_after = Some(count),
            FailMode::Error(status) => self.error = Some(status),
            FailMode::FailFast => self.fail_fast = true,
            FailMode::DropConnection => self.drop_connection = true,
            FailMode::CutStream(count) => self.cut_stream = Some(count),
            FailMode::CutBody => self.cut_body = true,
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_mode() {
        use FailMode as F;
        let all = [
            ("refuse-startup", F::RefuseStartup),
            ("exit-at-start", F::ExitAtStart),
            ("die-after=4", F::DieAfter(4)),
            ("hang", F::HangAfter(0)),
            ("hang-after=2", F::HangAfter(2)),
            ("freeze", F::FreezeAfter(0)),
            ("freeze-after=7", F::FreezeAfter(7)),
            ("unhealthy-after=1", F::UnhealthyAfter(1)),
            ("error=503", F::Error(503)),
            ("fail-fast", F::FailFast),
            ("drop-connection", F::DropConnection),
            ("cut-stream=2", F::CutStream(2)),
            ("cut-body", F::CutBody),
        ];
        for (text, mode) in all {
            assert_eq!(text.parse(), Ok(mode), "{text}");
        }
    }

    #[test]
    fn refuses_missing_needless_and_odd_values() {
        for text in
            ["", "hang=1", "hang-after", "die-after=0", "die-after=x", "error=200", "error", "cut"]
        {
            assert!(text.parse::<FailMode>().is_err(), "{text}");
        }
    }

    #[test]
    fn failures_add_up_and_the_later_wins() {
        let faults = Faults::new(&[FailMode::Error(500), FailMode::CutBody, FailMode::Error(503)]);
        assert_eq!(faults, Faults { error: Some(503), cut_body: true, ..Faults::default() });
    }
}
