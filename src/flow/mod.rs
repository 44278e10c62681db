//! Ask, decide, act.
//!
//! | file | what it drives |
//! | --- | --- |
//! | [`worker`] | the loop: polls, severities, shutdown, status |
//! | [`pull`] | one poll: snapshot, L1 view, logs, batches, finality, tags |
//! | [`ledger`] | heads, cursor and notes of writes, in memory as in the database |
//! | [`l1_view`] | where L1 stands, and what a reorg takes away |
//! | [`local_chain`] | whether the local head grows, and what of the verified chain the node still holds |
//! | [`l1_range`] | a range of L1, on one chain that builds on what is recorded |
//! | [`commit`] | from an event to a bound outline |
//! | [`batch`] | one batch through the case table |
//! | [`gather`] | what a batch is judged by; only asks |
//! | [`roots`] | the roots at a batch's end |
//! | [`settlement`] | what L1 took back or proved, ahead of the batches |
//! | [`search`] | logs that lie far from what is being read |
//! | [`derive`] | `derive_force`: the only place that writes blocks |
//! | [`open_writes`] | writes that were begun and whose batch is not stored yet |
//! | [`one_node`] | the proof that the node that is read is the node that is written |
//! | [`patience`] | how long a plan that could not be written waits |
//! | [`states`] | a parent whose state the node still has |
//! | [`quiesce`] | the guard that pauses the reactors |
//! | [`finalize`] | finality |
//! | [`stall_log`] | what the log says of stalls |
//! | [`tags`] | the node's tags: what it was told, what it showed, whose mark a tag is |
//!
//! No SQL, no JSON, no HTTP: everything outside is reached through `ports`.

pub(crate) use self::clock::unix_now;
pub use self::error::FlowError;
pub use self::settings::{Ports, Settings};
pub use self::status::{BatchReport, Status};
pub use crate::types::{Confirmations, FinalityMeaning, Mode};

pub mod batch;
mod clock;
pub mod commit;
pub mod derive;
mod error;
pub mod finalize;
pub(crate) mod gather;
pub(crate) mod l1_range;
pub mod l1_view;
pub(crate) mod ledger;
pub(crate) mod local_chain;
pub mod one_node;
pub mod open_writes;
pub(crate) mod patience;
pub mod pull;
pub mod quiesce;
pub mod roots;
pub mod search;
mod settings;
pub mod settlement;
pub mod stall_log;
pub(crate) mod states;
pub mod status;
pub mod tags;
pub mod worker;
