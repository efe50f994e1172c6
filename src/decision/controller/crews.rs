//! How many instances of each type every variant has in service. The instances of one type that a variant has are a
//! crew, and each knows the number of its own: what is counted of single instances many times a minute is added up by
//! that, and no names are compared.

use std::collections::BTreeMap;

use crate::types::{InstanceTypeName, VariantKey};

/// The number of a crew; used again when its last member is gone.
pub(super) type CrewNumber = u32;

/// All crews that have members.
#[derive(Debug, Default)]
pub(super) struct Crews {
    numbers: BTreeMap<VariantKey, BTreeMap<InstanceTypeName, CrewNumber>>,
    all: Vec<Crew>,
    /// Numbers without a crew.
    free: Vec<CrewNumber>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Crew {
    members: u32,
    serving: u32,
}

impl Crews {
    /// One more member, whatever its state; returns the number of its crew.
    pub(super) fn join(&mut self, variant: &VariantKey, kind: &InstanceTypeName) -> CrewNumber {
        let numbers = self.numbers.entry(variant.clone()).or_default();
        let number = *numbers.entry(kind.clone()).or_insert_with(|| {
            self.free.pop().unwrap_or_else(|| {
                self.all.push(Crew::default());
                // There is room for as many in no memory.
                CrewNumber::try_from(self.all.len() - 1).unwrap_or(CrewNumber::MAX)
            })
        });
        self.all[number as usize].members += 1;
        number
    }

    /// A member that is not in service is gone.
    pub(super) fn leave(&mut self, variant: &VariantKey, kind: &InstanceTypeName) {
        let Some(numbers) = self.numbers.get_mut(variant) else { return };
        let Some(number) = numbers.get(kind).copied() else { return };
        let crew = &mut self.all[number as usize];
        crew.members -= 1;
        if crew.members == 0 {
            self.free.push(number);
            numbers.remove(kind);
            if numbers.is_empty() {
                self.numbers.remove(variant);
            }
        }
    }

    /// A member comes into service.
    pub(super) fn serves(&mut self, number: CrewNumber) {
        self.all[number as usize].serving += 1;
    }

    /// A member leaves service.
    pub(super) fn rests(&mut self, number: CrewNumber) {
        self.all[number as usize].serving -= 1;
    }

    /// A variant's crews of which some are in service: their types, numbers, and how many are; by type.
    pub(super) fn serving(
        &self,
        variant: &VariantKey,
    ) -> impl Iterator<Item = (&InstanceTypeName, CrewNumber, u32)> {
        let numbers = self.numbers.get(variant).into_iter().flatten();
        let crews = numbers.map(|(kind, number)| (kind, *number, self.all[*number as usize]));
        crews.filter(|(.., crew)| crew.serving > 0).map(|(kind, n, crew)| (kind, n, crew.serving))
    }

    /// A place for each number, to add up in.
    pub(super) fn zeros(&self) -> Vec<u64> {
        vec![0; self.all.len()]
    }
}
