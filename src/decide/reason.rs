//! The reason codes of a stalled worker (P9): the names in status, metrics and logs, and which stalls end by
//! themselves.
//!
//! Which code a cause has is decided in [`super::stall`].

use std::fmt;

use serde::Serialize;

use crate::error::{PortError, PortErrorKind, Target};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $lasting:literal;)*) => {
        /// One reason for a stall, as status, metric and log name it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Reason { $($(#[$doc])* #[serde(rename = $code)] $name,)* }

        impl Reason {
            /// All of them, for metrics and documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The code.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// Whether the stall lasts until L1 or an operator changes something: a halt and not a wait.
            pub const fn is_halt(self) -> bool {
                match self { $(Self::$name => $lasting,)* }
            }
        }
    };
}

reasons! {
    /// The batch's blocks are missing and the node is expected to bring them.
    WaitingForBlocks = "waiting_for_blocks", false;
    /// The batch lies before the single-sequencer switch: its blocks are never derived from L1.
    BeforeSwitch = "before_switch", false;
    /// The execution node says that it is syncing.
    NodeSyncing = "node_syncing", false;
    /// The node's head fell below what was verified.
    NodeLostBlocks = "node_lost_blocks", false;
    /// The execution node gives no block at a height below its head, poll after poll.
    BlockMissing = "block_missing", false;
    /// The local chain changed while it was read or before it was written.
    LocalChainChanged = "local_chain_changed", false;
    /// L1 could not be asked.
    L1Unavailable = "l1_unavailable", false;
    /// The L1 node's head lies below what was already read.
    L1Behind = "l1_behind", false;
    /// The newest L1 block is older than it may be: the L1 node is frozen, or the whole of L1 is.
    L1Stale = "l1_stale", false;
    /// L1 changed between two reads of one poll; the poll is done again.
    L1Reorg = "l1_reorg", false;
    /// A search on L1 for a log that lies far away; it continues in the next poll.
    SearchingL1 = "searching_l1", false;
    /// The recorded fixture holds no answer to a request (`replay` only).
    FixtureIncomplete = "fixture_incomplete", false;
    /// The beacon node could not be asked.
    BeaconUnavailable = "beacon_unavailable", false;
    /// No configured beacon endpoint has the blobs any more.
    BlobPruned = "blob_pruned", false;
    /// No configured beacon endpoint has the blobs.
    BlobMissing = "blob_missing", false;
    /// The L2 node could not be asked.
    L2Unavailable = "l2_unavailable", false;
    /// The engine could not be asked.
    EngineUnavailable = "engine_unavailable", false;
    /// A root could not be checked: the node has pruned the state, and its logs do not show the root.
    RootsUnavailable = "roots_unavailable", false;
    /// The reactors could not be paused or resumed.
    ReactorsDegraded = "reactors_degraded", false;
    /// The pause's budget was used up; the rest is written in the next poll.
    PauseBudget = "pause_budget", false;
    /// Following: no source could be asked.
    SourceUnavailable = "source_unavailable", false;
    /// Following: what the sources say is not taken over; the text gives the reason.
    SourceRefused = "source_refused", false;
    /// Following: the source has read L1 up to a block that is too old.
    SourceStale = "source_stale", false;
    /// Following: the local chain has another block at the height of the source's safe head.
    SourceDiffers = "source_differs", false;
    /// The database cannot be written.
    StoreUnavailable = "store_unavailable", false;
    /// A batch was reverted on L1, in a block that is not confirmed yet.
    RevertPending = "revert_pending", false;
    /// Reading L1 goes back to the same place again and again.
    NoProgress = "no_progress", false;
    /// Observe mode: the batch differs and would have been rewritten.
    WouldSelfHeal = "would-self-heal", false;
    /// Observe mode: the batch is missing and would have been written.
    WouldFillGap = "would-fill-gap", false;
    /// A commit or a revert is missing in the logs, or the contract denies a revert.
    Gap = "gap", true;
    /// The commit could not be found in its transaction, or the earlier commit whose blobs it takes could not be found
    /// among the commits of its index.
    UnknownCommit = "unknown_commit", true;
    /// The commit does not give the event's hash, or does not continue the batch before.
    Unbound = "unbound", true;
    /// The batch's version is not supported by this program.
    UnsupportedVersion = "unsupported_version", true;
    /// The batch's content is malformed or contradicts its calldata.
    PoisonBatch = "poison_batch", true;
    /// The state root differs from calldata's.
    StateRoot = "state_root", true;
    /// The withdrawal root differs from calldata's.
    WithdrawalRoot = "withdrawal_root", true;
    /// L1 reorganised below the recorded window.
    ReorgTooDeep = "reorg_too_deep", true;
    /// L1 shows a revert of a batch that it had proved: it contradicts itself.
    RevertBelowFinalized = "revert_below_finalized", true;
    /// The local chain differs from L1 at or below the finalized head.
    DivergesBelowFinalized = "diverges_below_finalized", true;
    /// The local chain differs from L1 before the single-sequencer switch, where nothing is derived from L1.
    DivergesBeforeSwitch = "diverges_before_switch", true;
    /// The execution node cannot write below its head.
    ElCannotReorg = "el_cannot_reorg", true;
    /// The node no longer has the state that a rewrite must be executed on.
    StateMissing = "state_missing", true;
    /// The reader and the engine are two nodes: what is read from one must not be written to the other.
    EngineIsAnotherNode = "engine_is_another_node", true;
    /// The execution node's finalized tag is on a block off its chain: the node answers every write with an error.
    FinalizedElsewhere = "finalized_elsewhere", true;
    /// The execution node refused a block, for good or many times in a row, or made a different block from the one that
    /// it was given.
    BlockRefused = "block_refused", true;
    /// An endpoint or the database belongs to another network.
    WrongNetwork = "wrong_network", true;
}

impl Reason {
    /// The reason code of a port's failure.
    pub const fn of(error: &PortError) -> Self {
        match (&error.kind, error.target) {
            (PortErrorKind::WrongNetwork | PortErrorKind::StoreRefused, _) => Self::WrongNetwork,
            (PortErrorKind::Pruned, Target::Beacon) => Self::BlobPruned,
            (PortErrorKind::NotFound, Target::Beacon) => Self::BlobMissing,
            (_, Target::L1) => Self::L1Unavailable,
            (_, Target::Fixture) => Self::FixtureIncomplete,
            (_, Target::Beacon) => Self::BeaconUnavailable,
            (_, Target::L2) => Self::L2Unavailable,
            (_, Target::Engine) => Self::EngineUnavailable,
            (_, Target::Reactors) => Self::ReactorsDegraded,
            (_, Target::Source) => Self::SourceUnavailable,
            (_, Target::Store) => Self::StoreUnavailable,
        }
    }

    /// Whether the reason means that the local chain and L1 contradict each other (exit code 3).
    pub const fn is_divergence(self) -> bool {
        matches!(
            self,
            Self::StateRoot
                | Self::WithdrawalRoot
                | Self::DivergesBelowFinalized
                | Self::DivergesBeforeSwitch
                | Self::PoisonBatch
                | Self::Unbound
                | Self::WouldSelfHeal
                | Self::RevertBelowFinalized
        )
    }

    /// Whether every source answered and what is needed to decide is still missing (exit code 4). A source that does
    /// not answer is another matter: it may have what is needed.
    pub const fn is_undecidable(self) -> bool {
        matches!(
            self,
            Self::WaitingForBlocks
                | Self::BeforeSwitch
                | Self::NodeLostBlocks
                | Self::BlockMissing
                | Self::FixtureIncomplete
                | Self::BlobPruned
                | Self::BlobMissing
                | Self::RootsUnavailable
                | Self::RevertPending
                | Self::Gap
                | Self::UnknownCommit
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p9_every_failure_of_every_port_has_its_reason() {
        let of = |target, kind: &PortErrorKind| Reason::of(&PortError::new(target, kind.clone(), ""));
        let unavailable = [
            (Target::L1, Reason::L1Unavailable),
            (Target::Beacon, Reason::BeaconUnavailable),
            (Target::L2, Reason::L2Unavailable),
            (Target::Engine, Reason::EngineUnavailable),
            (Target::Reactors, Reason::ReactorsDegraded),
            (Target::Source, Reason::SourceUnavailable),
            (Target::Store, Reason::StoreUnavailable),
            (Target::Fixture, Reason::FixtureIncomplete),
        ];
        let kinds = [
            PortErrorKind::Unreachable,
            PortErrorKind::Timeout,
            PortErrorKind::RateLimited { retry_after: None },
            PortErrorKind::Unauthorized,
            PortErrorKind::Unsupported,
            PortErrorKind::RangeTooWide,
            PortErrorKind::Refused { code: 3, message: String::new() },
            PortErrorKind::Malformed,
            PortErrorKind::Storage,
        ];
        for (target, expected) in unavailable {
            for kind in &kinds {
                assert_eq!(of(target, kind), expected, "{target} {kind:?}");
            }
            for kind in [PortErrorKind::WrongNetwork, PortErrorKind::StoreRefused] {
                assert_eq!(of(target, &kind), Reason::WrongNetwork, "{target} {kind:?}");
            }
            let blobs = target == Target::Beacon;
            let gone = if blobs { Reason::BlobPruned } else { expected };
            assert_eq!(of(target, &PortErrorKind::Pruned), gone, "{target}");
            let missing = if blobs { Reason::BlobMissing } else { expected };
            assert_eq!(of(target, &PortErrorKind::NotFound), missing, "{target}");
        }
    }

    #[test]
    fn codes_are_unique_and_serialize_as_themselves() {
        let mut codes: Vec<_> = Reason::ALL.iter().map(|r| r.code()).collect();
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.code());
        }
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Reason::ALL.len());
    }
}
