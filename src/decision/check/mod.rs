//! The checker: validates routing tables and the controller's actions, apart from whoever made them.
//!
//! It shares no code with the maker. [`check_table`] looks at a table alone and beside the one before it;
//! [`Ledger`] keeps a second set of books out of the very events and actions that pass between a
//! controller and its driver, and says of each action, before it is carried out, what is wrong with it.
//! It knows only what the controller can know: the simulator adds the checks that need the world's truth.
//!
//! What is checked, by the numbers of the invariants in the crate's docs:
//!
//! * 2: nothing but instances in service is in a table; a leaving instance never comes back; it is
//!   stopped when every live proxy routes by a table without it and has no request there, at its
//!   deadline, or when it is dead ([`Violation::StoppedEarly`]).
//! * 3: nothing is removed by choice while a lower priority remains ([`Violation::FallbackNotFirst`]).
//! * 4: a launch has its durable record, an id is launched until it is granted and never after it began to
//!   leave, no variant grows past its size and its surge ([`Violation::TooMany`]), a record is deleted
//!   only once its instance is known to run no more ([`Violation::Forgotten`]).
//! * 6: one list per provider and one launch per id at a time; counts stay within their bounds.
//!
//! Every check costs in proportion to the action and the variants it touches.

mod changes;
mod ledger;
mod table;
#[cfg(test)]
mod tests;

use thiserror::Error;

pub use ledger::Ledger;
pub use table::check_table;

use crate::types::table::TableVersion;
use crate::types::{Generation, InstanceId, InstanceState, ProviderName, VariantKey};

/// What is wrong, as a value that says it in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Violation {
    /// A table's version is not above the one before it.
    #[error("table {next} does not come after {previous}")]
    VersionNotGrowing {
        /// The table before.
        previous: TableVersion,
        /// The table at fault.
        next: TableVersion,
    },
    /// An instance (with its generation) is in a table more than once.
    #[error("instance {instance} generation {generation} is in the table twice")]
    DuplicateBackend {
        /// Which instance.
        instance: InstanceId,
        /// Which start of it.
        generation: Generation,
    },
    /// A name is in a table twice, or is unknown, or is missing from it.
    #[error("{name} {problem}")]
    WrongName {
        /// The endpoint or `endpoint/variant`.
        name: String,
        /// The rest of the sentence.
        problem: &'static str,
    },
    /// A value in a table, a record or a batch that cannot be.
    #[error("{what} has {field} {value}")]
    WrongValue {
        /// Of what.
        what: String,
        /// Which member.
        field: &'static str,
        /// The value found, with what it should be where that helps.
        value: String,
    },
    /// Something is in a table that is not in service.
    #[error("instance {instance} is in the table and {}", state.map_or("has no record", InstanceState::as_str))]
    NotInService {
        /// Which instance.
        instance: InstanceId,
        /// Its recorded state; `None` without a record.
        state: Option<InstanceState>,
    },
    /// Something in service is missing from the table.
    #[error("instance {instance} is in service and missing from the table")]
    MissingFromTable {
        /// Which instance.
        instance: InstanceId,
    },
    /// An edge that the life of an instance does not have.
    #[error("instance {instance} goes from {} to {to}", from.map_or("nothing", InstanceState::as_str))]
    BadTransition {
        /// Which instance.
        instance: InstanceId,
        /// The state before; `None` where there was no record.
        from: Option<InstanceState>,
        /// The state it is put into.
        to: InstanceState,
    },
    /// A generation that another instance has or had.
    #[error("instance {instance} is made with generation {generation}, which is not new")]
    GenerationReused {
        /// The new instance.
        instance: InstanceId,
        /// Its generation.
        generation: Generation,
    },
    /// More instances than the variant's size and its surge allow.
    #[error("{variant} grows to {active} instances with {desired} desired and a surge of {surge}")]
    TooMany {
        /// Which variant.
        variant: VariantKey,
        /// Instances that are not leaving, the new ones included.
        active: usize,
        /// The durable desired count.
        desired: u32,
        /// How many more may exist while some are being replaced.
        surge: usize,
    },
    /// A desired count outside the variant's bounds.
    #[error("{variant} is to have {desired} instances, outside of {min} to {max}")]
    OutOfBounds {
        /// Which variant.
        variant: VariantKey,
        /// The count at fault.
        desired: u32,
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// One was removed by choice while a lower priority remains.
    #[error(
        "instance {removed} of priority {priority} leaves while {kept} of priority {lower} stays"
    )]
    FallbackNotFirst {
        /// The one that leaves.
        removed: InstanceId,
        /// Its priority.
        priority: u32,
        /// One that should have left before it.
        kept: InstanceId,
        /// Its priority.
        lower: u32,
    },
    /// One was removed by choice that was needed.
    #[error(
        "instance {removed} of {variant} leaves by choice; {remaining} remain of {desired} desired"
    )]
    BelowDesired {
        /// Which variant.
        variant: VariantKey,
        /// The one that leaves.
        removed: InstanceId,
        /// Those that are not leaving and at least as far in their lives.
        remaining: usize,
        /// How many there should be.
        desired: u32,
    },
    /// A drain began without a deadline, or with one that is too short.
    #[error("instance {instance} drains until {until}, the drain timeout asks for {least}")]
    WrongDeadline {
        /// Which instance.
        instance: InstanceId,
        /// Its deadline, or `no deadline`.
        until: String,
        /// The earliest allowed.
        least: String,
    },
    /// One is stopped whose requests may still run.
    #[error("instance {instance} is stopped early: {why}")]
    StoppedEarly {
        /// Which instance.
        instance: InstanceId,
        /// What is not over yet.
        why: String,
    },
    /// A record is deleted while its instance may run.
    #[error("the record of instance {instance} ({state}) is deleted while it may still run")]
    Forgotten {
        /// Which instance.
        instance: InstanceId,
        /// The recorded state.
        state: InstanceState,
    },
    /// A launch without the durable record that it needs.
    #[error("instance {instance} is launched and {problem}")]
    WrongLaunch {
        /// Which instance.
        instance: InstanceId,
        /// The rest of the sentence.
        problem: String,
    },
    /// A termination of something that is not being stopped and not an orphan.
    #[error("instance {instance} is terminated and {problem}")]
    WrongTermination {
        /// Which instance.
        instance: InstanceId,
        /// The rest of the sentence.
        problem: String,
    },
    /// A provider is asked for its list while it is being asked already.
    #[error("provider {0} is listed while a list of it is under way")]
    ListedTwice(ProviderName),
    /// A probe of something that has no record with that generation and address.
    #[error("instance {instance} generation {generation} is probed and has no such record")]
    WrongProbe {
        /// Which instance.
        instance: InstanceId,
        /// Which start of it.
        generation: Generation,
    },
}
