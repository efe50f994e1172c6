//! `[[endpoint]]`: what clients call, and that names and weights make sense together.

use std::collections::{BTreeMap, BTreeSet};

use super::instance_type::InstanceTypes;
use super::mistake::Sink;
use super::reader::{Located, Table};
use super::variant;
use crate::types::EndpointName;
use crate::types::spec::{EndpointSpec, VariantSpec};

/// Reads all endpoints, in the file's order, and warns of instance types that no pool uses.
pub(super) fn read(root: &Table<'_>, types: &InstanceTypes) -> Vec<EndpointSpec> {
    let mut names = Names::new("endpoint", "their names must be unique");
    let mut used = BTreeSet::new();
    let mut endpoints = Vec::new();
    for table in root.tables("endpoint", "[[endpoint]]") {
        let name = table.need::<EndpointName>("name", "which is what clients call");
        if let Some(name) = &name {
            names.note(name, name.as_str(), root.sink());
        }
        let variants = variants(&table, types, &mut used);
        if let (Some(name), Some(variants)) = (name, variants) {
            endpoints.push(EndpointSpec { name: name.value, variants });
        }
    }
    for (name, at) in &types.known {
        if !used.contains(name) {
            let rule = format!("instance type \"{name}\" is unused: no pool names it");
            root.sink().warning(*at, rule);
        }
    }
    endpoints
}

/// `None` when something in them is wrong.
fn variants(
    table: &Table<'_>,
    types: &InstanceTypes,
    used: &mut BTreeSet<String>,
) -> Option<Vec<VariantSpec>> {
    let sink = table.sink();
    let errors = sink.errors();
    let tables = table.tables("variant", "[[endpoint.variant]]");
    if tables.is_empty() && sink.errors() == errors {
        let rule = "[[endpoint]] needs at least one [[endpoint.variant]] below it";
        sink.missing(table.at, rule);
    }
    let mut names = Names::new("variant", "names must be unique within an endpoint");
    let mut variants = Vec::new();
    for table in &tables {
        let variant = variant::read(table, types, used);
        if let Some(name) = &variant.name {
            names.note(name, name.as_str(), sink);
        }
        variants.extend(variant.spec);
    }
    if sink.errors() != errors || variants.is_empty() {
        return None;
    }
    if variants.iter().all(|variant| variant.weight == 0.0) {
        let rule = "every variant of this endpoint has `weight` 0, so no request could go anywhere; give one \
                    of them a weight above 0";
        sink.error(table.at, rule);
    }
    Some(variants)
}

/// Finds names that are used twice.
#[derive(Debug)]
pub(super) struct Names {
    what: &'static str,
    rule: &'static str,
    seen: BTreeMap<String, usize>,
}

impl Names {
    /// For names of `what`; `rule` says what holds for them.
    pub(super) fn new(what: &'static str, rule: &'static str) -> Self {
        Self { what, rule, seen: BTreeMap::new() }
    }

    /// Takes in one; a mistake if it is known already.
    pub(super) fn note<T>(&mut self, found: &Located<T>, name: &str, sink: &Sink<'_>) {
        match self.seen.get(name) {
            Some(first) => {
                let (what, rule, line) = (self.what, self.rule, sink.line(*first));
                sink.error(
                    found.at,
                    format!("{what} \"{name}\" is already in line {line}; {rule}"),
                );
            }
            None => {
                self.seen.insert(name.to_owned(), found.at);
            }
        }
    }
}
