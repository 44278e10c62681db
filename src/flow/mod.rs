//! Ask, decide, act: by owners under one loop.
//!
//! [`worker`] is the loop, [`poll`] the order of one poll; only [`audit`], which drives the loop over a range of
//! batches, knows them. Below them every fact has one owner, and only the owner changes it:
//!
//! | what | owner | its doors | only it uses |
//! | --- | --- | --- | --- |
//! | heads, cursor, write intents, a spurious mark of the node | [`ledger`] | `commit`, `begin_writes`, `withdraw_writes`, `journal`, `looked`, `prune` | `Progress` |
//! | the node's tags | [`tags`] | `sync`, `lower`, `restore`, `abandon_safe` | `set_tags` |
//! | the node's blocks | [`writer`] | `derive_force` | `write_blocks` |
//! | when a write is tried again | [`patience`] | `failed`, `succeeded`, `node_changed` | |
//! | pauses of the reactors, their lease | [`quiesce`] | `acquire`, `release`, `recover_lease` | `LeaseStore` |
//! | whether the local head grows, what the node lost | [`local_chain`] | `look`, `observe`, `wrote`, `check_safe` | `Liveness` |
//! | the head by which a poll decides | [`node`] | `poll_begins`, `stands_on` | |
//! | what L1 is this poll, and reorgs | [`l1_view`] | `look` | `Reorg` |
//! | what is looked for far away on L1, and how far that came | [`l1_search`] | `nth_log`, `scan_back`, `begin`, `forget` | `Walk` |
//! | the log to which reading went back | [`continuity`] | `batch_before`, `hidden_logs`, `go_back_to` | `gone_back` |
//! | a verdict that is kept | [`events`] | `read_range` | `VerdictInputs` |
//! | how far reverts and proofs are known | [`settlement`] | `read_ahead`, `left_out`, `holds_proof` | `BLOCKS_MAX` |
//! | why finalized is held | [`finalize`] | `advance` | `StandingFacts` |
//! | what is gathered of the batches that come next | [`ahead`] | `top_up`, `take`, `settle`, `forget` | |
//! | which ranges of L1 were read before their turn | [`l1_ahead`] | `begin`, `readings`, `take`, `forget` | |
//! | which blobs are checked together | [`blob_check`] | `one_by_one`, `together` | `aggregate` |
//! | the batch before an audited range, taken on L1's word | [`audit`] | `run`, `report` | `AuditLog` |
//! | a search for a withdrawal root | [`roots`] | `check` | `last_appended_root` |
//! | what is taken over from a follow source | [`follow`] | `poll`, `run` | `HeadSource` |
//! | where our heads stand on L1 | [`places`] | `look_up`, `show` | `batch_ending_on` |
//! | what the faces show | [`worker`] | `poll` | `Pace` |
//!
//! The other files own nothing: [`commit`] (from an event to a bound commit), [`gather`] (what a batch is judged by;
//! only asks), [`batch`] (one batch through the case table), [`l1_range`] (a range of L1, on one chain), [`intents`]
//! (write intents, begun and closed), [`states`] (a parent whose state the node still has), [`one_node`] (the proof
//! that reader and engine are one node), [`stall_log`] (what the log says of stalls), [`status`].
//!
//! No SQL, no JSON, no HTTP: everything outside is reached through `ports`. A test holds the table to the sources.

pub(crate) use self::clock::unix_now;
pub use self::error::{Decided, FlowError, Stop};
pub use self::settings::{FollowPorts, FollowSettings, Ports, Settings};
pub use self::status::{BatchReport, PollEnd, PollReport, Status};
pub use crate::types::{Confirmations, FinalityMeaning, Mode};

pub(crate) mod ahead;
pub mod audit;
pub(crate) mod batch;
pub(crate) mod blob_check;
mod clock;
pub mod commit;
pub(crate) mod continuity;
mod error;
pub(crate) mod events;
pub(crate) mod finalize;
pub mod follow;
pub(crate) mod gather;
pub(crate) mod intents;
pub(crate) mod l1_ahead;
pub(crate) mod l1_range;
pub(crate) mod l1_search;
pub(crate) mod l1_view;
pub(crate) mod ledger;
pub(crate) mod local_chain;
pub(crate) mod node;
pub(crate) mod one_node;
pub(crate) mod patience;
pub(crate) mod places;
pub(crate) mod poll;
pub mod quiesce;
pub(crate) mod roots;
mod settings;
pub(crate) mod settlement;
pub mod stall_log;
pub(crate) mod states;
pub mod status;
pub(crate) mod tags;
#[cfg(test)]
mod testing;
pub mod worker;
pub mod writer;
