//! `[instance_type.NAME]`: who provides it and what one instance of it can do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::engine::{self, Runner};
use super::limits;
use super::mistake::Sink;
use super::provider::{Kind, Providers};
use super::reader::{Located, Table};
use super::values::shortened;
use super::{signals, suggest, worker_tls};
use crate::types::spec::{Engine, InstanceTypeSpec, OnClientAbort};
use crate::types::{Address, InstanceTypeName, Protocol, ProviderName};

/// What the file says about instance types. As with providers, wrong ones are known too.
#[derive(Debug, Default)]
pub(super) struct InstanceTypes {
    /// Where each is, by name.
    pub(super) known: BTreeMap<String, usize>,
    /// Those without a mistake.
    pub(super) specs: BTreeMap<InstanceTypeName, InstanceTypeSpec>,
    /// Who runs and stops them, where somebody does.
    pub(super) runners: BTreeMap<InstanceTypeName, Runner>,
}

/// Reads all instance types, and warns of providers that none of them uses.
pub(super) fn read(root: &Table<'_>, providers: &Providers) -> InstanceTypes {
    let mut types = InstanceTypes::default();
    let mut servers = BTreeMap::new();
    let mut used = BTreeSet::new();
    for (name, table) in root.named_tables("instance_type") {
        if table.has_only_tables() {
            split_names(*name, &table, &mut types);
            continue;
        }
        let valid = InstanceTypeName::new(*name)
            .map_err(|refusal| root.sink().error(name.at, refusal.to_string()))
            .ok();
        let provider = table.need::<ProviderName>("provider", "the name of the one that runs it");
        let kind = provider.as_ref().and_then(|provider| kind_of(provider, providers, root.sink()));
        let runner = provider.as_ref().and_then(|name| Runner::new(name, kind, providers));
        let spec = instance_type(&table, provider.as_ref(), kind, runner.as_ref(), &mut servers);
        used.extend(provider.map(|provider| provider.value));
        types.known.insert(name.value.to_owned(), name.at);
        if let (Some(valid), Some(spec)) = (valid, spec) {
            types.runners.extend(runner.map(|runner| (valid.clone(), runner)));
            types.specs.insert(valid, spec);
        }
    }
    for (name, provider) in &providers.known {
        if !used.contains(name.as_str()) {
            let rule = format!("provider \"{name}\" is unused: no instance type names it");
            root.sink().warning(provider.at, rule);
        }
    }
    types
}

/// `[instance_type.ml.p5]` without quotes is a table `p5` in a table `ml`: says so, instead of a mistake
/// for each key of both.
fn split_names(first: &str, table: &Table<'_>, types: &mut InstanceTypes) {
    for rest in table.innermost() {
        let name = format!("{first}.{}", rest.value);
        let shown = shortened(&name);
        let rule = format!("a name with dots needs quotes: write [instance_type.\"{shown}\"]");
        table.sink().error(rest.at, rule);
        types.known.insert(name, rest.at);
    }
}

fn kind_of(
    provider: &Located<ProviderName>,
    providers: &Providers,
    sink: &Sink<'_>,
) -> Option<Kind> {
    let name = provider.as_str();
    if let Some(known) = providers.known.get(name) {
        return known.value;
    }
    let hint = suggest::did_you_mean(name, providers.known.keys().map(String::as_str));
    let rule = format!("there is no provider \"{name}\"; define it as [provider.{name}]{hint}");
    sink.missing(provider.at, rule);
    None
}

fn instance_type(
    table: &Table<'_>,
    provider: Option<&Located<ProviderName>>,
    kind: Option<Kind>,
    runner: Option<&Runner>,
    servers: &mut BTreeMap<Address, usize>,
) -> Option<InstanceTypeSpec> {
    let protocol = table.get::<Protocol>("protocol");
    let capacity = capacity(table, kind);
    let addresses = addresses(table, kind, servers);
    if let Some(protocol) = &protocol {
        check_protocol(protocol, kind, &addresses, table.sink());
    }
    // Wrong addresses have been complained about already.
    let speaks_tls = addresses.iter().any(|address| address.value.is_tls())
        || addresses.is_empty() && kind != Some(Kind::Process);
    let tls = worker_tls::read(table, speaks_tls).map(Arc::new);
    let engine = table.get::<Engine>("engine");
    if let (Some(engine), Some(runner)) = (&engine, runner) {
        engine::check_command(engine, runner, table.sink());
    }
    let amount = |key| table.get_in(key, limits::AMOUNT, f64::to_string).map(|found| found.value);
    let spec = InstanceTypeSpec {
        capacity,
        on_client_abort: table.or("on_client_abort", OnClientAbort::default()),
        max_concurrency: table.number_or("max_concurrency", limits::CONCURRENCY, 256),
        copies: table.number_or("copies", limits::COPIES, 1),
        protocol: protocol.map_or_else(Protocol::default, |found| found.value),
        tls,
        addresses: addresses.into_iter().map(|address| address.value).collect(),
        price_per_hour: amount("price_per_hour"),
        watts: amount("watts"),
        engine: engine.map(|found| found.value),
        signals: signals::read(table, kind),
        // Last, so that every key has been read before an incomplete type is given up.
        provider: provider?.value.clone(),
    };
    Some(spec)
}

fn capacity(table: &Table<'_>, kind: Option<Kind>) -> Option<u32> {
    if kind == Some(Kind::Static) {
        let rule =
            "is for types of process providers; a static one has as many as it has `addresses`";
        table.refuse("capacity", rule);
        return None;
    }
    table.get_in("capacity", limits::INSTANCES, u32::to_string).map(|found| found.value)
}

/// The addresses of a static type. `servers` holds those of all types: one server is one instance, so
/// a second mention would count it twice.
fn addresses(
    table: &Table<'_>,
    kind: Option<Kind>,
    servers: &mut BTreeMap<Address, usize>,
) -> Vec<Located<Address>> {
    let addresses = match kind {
        Some(Kind::Process) => {
            table.refuse(
                "addresses",
                "are for types of static providers; a process provider picks its own",
            );
            return Vec::new();
        }
        Some(Kind::Static) => table.need_list(
            "addresses",
            "the servers that there are, such as [\"http://127.0.0.1:9001\"]",
        ),
        None => table.list("addresses"),
    };
    let Some(addresses) = addresses else { return Vec::new() };
    if addresses.is_empty() {
        table.sink().error(addresses.at, "`addresses` must name at least one server");
    }
    for address in &addresses.value {
        match servers.get(&address.value) {
            Some(known) => {
                let line = table.sink().line(*known);
                let rule =
                    format!("the server {} is already in line {line}; name it once", address.value);
                table.sink().error(address.at, rule);
            }
            None => {
                servers.insert(address.value.clone(), address.at);
            }
        }
    }
    addresses.value
}

fn check_protocol(
    protocol: &Located<Protocol>,
    kind: Option<Kind>,
    addresses: &[Located<Address>],
    sink: &Sink<'_>,
) {
    if protocol.value == Protocol::H2 && kind == Some(Kind::Process) {
        let rule = "`protocol` \"h2\" needs TLS, which workers of a process provider are not reached over; \
                    write \"h2c\"";
        sink.error(protocol.at, rule);
    }
    for address in addresses {
        match (protocol.value, address.is_tls()) {
            (Protocol::H2, false) => sink.error(
                address.at,
                format!("`protocol` \"h2\" needs https, but the address is {}", address.value),
            ),
            (Protocol::H2c, true) => sink.error(
                address.at,
                format!("`protocol` \"h2c\" needs http, but the address is {}", address.value),
            ),
            _ => {}
        }
    }
}
