//! What holds for any routing table, whoever made it.

use std::collections::HashSet;

use super::Violation;
use super::ledger::Known;
use crate::types::table::{BackendRoute, EndpointRoute, RoutingTable, VariantRoute};
use crate::types::{InstanceState, VariantKey};

/// Checks a table by itself and beside the one published before it: versions grow strictly, names and
/// (instance, generation) pairs are unique, counts are at least 1, weights are numbers of at least 0.
#[must_use]
pub fn check_table(previous: Option<&RoutingTable>, next: &RoutingTable) -> Vec<Violation> {
    let mut found = Vec::new();
    if let Some(previous) = previous.filter(|previous| next.version <= previous.version) {
        found.push(Violation::VersionNotGrowing { previous: previous.version, next: next.version });
    }
    if next.format != RoutingTable::FORMAT {
        found.push(wrong(format!("table {}", next.version), "format", next.format.to_string()));
    }
    let mut endpoints = HashSet::new();
    let mut backends = HashSet::new();
    for endpoint in &next.endpoints {
        if !endpoints.insert(&endpoint.name) {
            let name = endpoint.name.to_string();
            found.push(Violation::WrongName { name, problem: "is in the table twice" });
        }
        check_variants(endpoint, &mut found);
        for backend in endpoint.variants.iter().flat_map(|variant| &variant.backends) {
            if !backends.insert((&backend.instance, backend.generation)) {
                found.push(Violation::DuplicateBackend {
                    instance: backend.instance.clone(),
                    generation: backend.generation,
                });
            }
        }
    }
    found
}

fn check_variants(endpoint: &EndpointRoute, found: &mut Vec<Violation>) {
    if endpoint.variants.is_empty() {
        let name = endpoint.name.to_string();
        found.push(Violation::WrongName { name, problem: "is in the table without a variant" });
    }
    let mut names = HashSet::new();
    for variant in &endpoint.variants {
        let name = || format!("{}/{}", endpoint.name, variant.name);
        if !names.insert(&variant.name) {
            found.push(Violation::WrongName { name: name(), problem: "is in the table twice" });
        }
        if !variant.weight.is_finite() || variant.weight < 0.0 {
            found.push(wrong(name(), "weight", variant.weight.to_string()));
        }
        check_backends(variant, found);
    }
}

fn check_backends(variant: &VariantRoute, found: &mut Vec<Violation>) {
    for backend in &variant.backends {
        for (field, value) in
            [("copies", backend.copies), ("max_concurrency", backend.max_concurrency)]
        {
            if value == 0 {
                found.push(wrong(format!("backend {}", backend.instance), field, "0".into()));
            }
        }
    }
}

pub(super) fn wrong(what: String, field: &'static str, value: String) -> Violation {
    Violation::WrongValue { what, field, value }
}

/// Whether a backend is what the books know of the instance.
pub(super) fn check_backend(
    known: Option<&Known>,
    variant: &VariantKey,
    backend: &BackendRoute,
) -> Vec<Violation> {
    let Some(known) = known.filter(|known| known.record.state == InstanceState::InService) else {
        let state = known.map(|known| known.record.state);
        return vec![Violation::NotInService { instance: backend.instance.clone(), state }];
    };
    let record = &known.record;
    let mut found = Vec::new();
    let mut compare = |field, right: bool, value: String| {
        if !right {
            found.push(wrong(format!("backend {}", backend.instance), field, value));
        }
    };
    compare("variant", record.variant == *variant, variant.to_string());
    compare(
        "generation",
        record.generation == backend.generation,
        format!("{} for {}", backend.generation, record.generation),
    );
    compare(
        "address",
        record.address.as_ref() == Some(&backend.address),
        backend.address.to_string(),
    );
    compare("model", record.model == backend.model, backend.model.to_string());
    compare("copies", record.copies == backend.copies, backend.copies.to_string());
    compare(
        "max_concurrency",
        record.max_concurrency == backend.max_concurrency,
        backend.max_concurrency.to_string(),
    );
    let type_matches = record.instance_type == backend.instance_type;
    compare("instance_type", type_matches, backend.instance_type.to_string());
    found
}
