//! What follows from the engine that a type or a variant names: the default health path, and warnings of
//! settings that do not go with it. The facts are in [`crate::decision::engine`].

use std::time::Duration;

use super::instance_type::InstanceTypes;
use super::mistake::Sink;
use super::provider::{Kind, ProviderConfig, Providers};
use super::reader::{Located, Table};
use crate::decision::engine::{self, KeepAlive, OnStop, Profile};
use crate::types::ProviderName;
use crate::types::spec::{Engine, FleetSpec, PoolSpec};

/// What is asked for where no engine says better.
const HEALTH_PATH: &str = "/ping";

/// The least time to finish that goes with an engine which breaks off its requests when it is stopped: a long
/// answer takes a minute.
const LONG_ANSWER: Duration = Duration::from_secs(60);

/// The program of a command that starts a stand-in.
const OURSELVES: &str = "{forebay}";

/// The engines of a variant's pools.
#[derive(Debug, Default)]
pub(super) struct Engines {
    /// In the order of the pools, each once; `None`: not told.
    all: Vec<Option<Engine>>,
    /// Those that break off what runs when we stop them, and have not been told not to.
    abort: Vec<&'static Profile>,
}

/// Reads the variant's own `engine` and sees which one each of its pools has.
pub(super) fn of_pools(
    table: &Table<'_>,
    own: Option<&Located<Engine>>,
    pools: &[PoolSpec],
    types: &InstanceTypes,
) -> Engines {
    let mut engines = Engines::default();
    let mut is_used = pools.is_empty();
    for pool in pools {
        let of_type = types.specs.get(&pool.instance_type).and_then(|spec| spec.engine);
        is_used |= of_type.is_none();
        let engine = of_type.or(own.map(|own| own.value));
        if !engines.all.contains(&engine) {
            engines.all.push(engine);
        }
        let Some(engine) = engine else { continue };
        let runner = types.runners.get(&pool.instance_type);
        if of_type.is_none()
            && let (Some(own), Some(runner)) = (own, runner)
        {
            check_command(own, runner, table.sink());
        }
        if runner.is_some_and(|runner| runner.breaks_off(engine)) {
            engines.abort.push(engine::profile(engine));
        }
    }
    if !is_used {
        let rule = "`engine` has no effect here: the instance types of all pools name theirs";
        table.warn_at("engine", rule.to_owned());
    }
    engines
}

impl Engines {
    /// The path that all of them tell their health at. Where they differ, somebody must say.
    pub(super) fn health_path(&self, table: &Table<'_>) -> String {
        let path = |engine: &Option<Engine>| {
            engine.map_or(HEALTH_PATH, |e| engine::profile(e).health_path)
        };
        let Some(first) = self.all.first().map(path) else { return HEALTH_PATH.to_owned() };
        if let Some(other) = self.all.iter().map(path).find(|path| *path != first) {
            let rule = format!(
                "the engines of this variant's pools tell their health at different paths (\"{first}\", \
                 \"{other}\"), so all are asked at \"{first}\": write a `health_path` that all of them have, \
                 or give each engine a variant of its own"
            );
            table.sink().warning(table.at, rule);
        }
        first.to_owned()
    }

    /// Warns of a health path that says nothing of an engine's health.
    pub(super) fn check_health_path(&self, path: &Located<String>, sink: &Sink<'_>) {
        let asked = path.split('?').next().unwrap_or_default();
        for profile in self.all.iter().flatten().map(|engine| engine::profile(*engine)) {
            let misleading = profile.misleading_paths.iter().find(|(bad, _)| *bad == asked);
            if let Some((bad, reason)) = misleading {
                let rule = format!(
                    "`health_path` \"{bad}\" does not tell {}'s health: {reason}; write \"{}\" or leave it out",
                    profile.name, profile.health_path
                );
                sink.warning(path.at, rule);
            }
        }
    }

    /// Warns of a short time to finish where being stopped means being broken off.
    pub(super) fn check_drain(&self, table: &Table<'_>, drain_timeout: Duration) {
        if drain_timeout >= LONG_ANSWER {
            return;
        }
        for profile in &self.abort {
            let rule = format!(
                "`drain_timeout` is {}, and {} breaks off what still runs when it is stopped then: give it \
                 as long as the longest answer takes, at least {}",
                shown(drain_timeout),
                profile.name,
                shown(LONG_ANSWER),
            );
            table.warn_at("drain_timeout", rule);
        }
    }
}

/// Who runs a type's instances, as far as stopping them is concerned.
#[derive(Debug, Clone)]
pub(super) struct Runner {
    provider: ProviderName,
    /// The program and its arguments, where we start it ourselves.
    command: Option<Vec<String>>,
}

impl Runner {
    /// `None` where nobody stops the instances (those of a static provider), and for our stand-in worker,
    /// which takes no engine's flags.
    pub(super) fn new(
        provider: &ProviderName,
        kind: Option<Kind>,
        providers: &Providers,
    ) -> Option<Self> {
        if kind? == Kind::Static {
            return None;
        }
        let command = match providers.configs.get(provider) {
            Some(ProviderConfig::Process { command, .. }) => Some(command.clone()),
            _ => None,
        };
        if command.as_ref().and_then(|parts| parts.first()).is_some_and(|first| first == OURSELVES)
        {
            return None;
        }
        Some(Self { provider: provider.clone(), command })
    }

    /// Whether the engine breaks off its requests when it is stopped, as it is started here.
    fn breaks_off(&self, engine: Engine) -> bool {
        match engine::profile(engine).on_stop {
            OnStop::Aborts { drain_flag: None } => true,
            OnStop::Aborts { drain_flag: Some(flag) } => !self.says(flag),
            OnStop::Finishes | OnStop::Unknown => false,
        }
    }

    /// Whether a part of the command holds `flag`; a part may be a line for a shell.
    fn says(&self, flag: &str) -> bool {
        self.command.iter().flatten().any(|part| part.contains(flag))
    }
}

/// Warns when an engine that must be told to finish its requests is not.
pub(super) fn check_command(engine: &Located<Engine>, runner: &Runner, sink: &Sink<'_>) {
    let profile = engine::profile(engine.value);
    if let OnStop::Aborts { drain_flag: Some(flag) } = profile.on_stop
        && runner.command.is_some()
        && !runner.says(flag)
    {
        let rule = format!(
            "{} breaks off its requests when it is stopped unless it is started with {flag} and a number of \
             seconds: add that to the `command` of provider \"{}\"",
            profile.name, runner.provider
        );
        sink.warning(engine.at, rule);
    }
}

/// Warns of a pool that would keep connections for longer than an engine does.
pub(super) fn check_pool(
    pool_idle_timeout: &Located<Duration>,
    fleet: &FleetSpec,
    sink: &Sink<'_>,
) {
    let pools = fleet.variants().flat_map(|(_, variant)| {
        variant.pools.iter().filter_map(|pool| fleet.engine(&pool.instance_type, variant))
    });
    for profile in pools.map(engine::profile) {
        let Some(KeepAlive { limit, pool_idle }) = profile.keep_alive else { continue };
        if pool_idle_timeout.value >= limit {
            // Said for each pool, but the sink keeps one of those that are equal.
            let rule = format!(
                "`pool_idle_timeout` is {0}, but {1} closes a connection that was idle for {2}: those to it are \
                 kept for {3} only; write less than {2}",
                shown(pool_idle_timeout.value),
                profile.name,
                shown(limit),
                shown(pool_idle),
            );
            sink.warning(pool_idle_timeout.at, rule);
        }
    }
}

fn shown(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(duration)
}
