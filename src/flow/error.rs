//! Why the flow could not decide, and how bad that is.

use crate::decide::stall::{Reason, Stall};
use crate::error::{PortError, Severity};

/// The flow could not decide.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FlowError {
    /// A port could not answer.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Something changed under way, or the world contradicts itself: told by its reason.
    #[error("{0}")]
    Stall(Stall),
}

impl FlowError {
    /// L1 changed between two reads that belong together.
    pub fn l1_changed(detail: impl Into<String>) -> Self {
        Self::Stall(Stall::new(Reason::L1Reorg, detail))
    }

    /// The local chain changed between two reads that belong together.
    pub fn local_changed(detail: impl Into<String>) -> Self {
        Self::Stall(Stall::new(Reason::LocalChainChanged, detail))
    }

    /// What the worker is asked to do about it.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Port(error) => error.severity(),
            Self::Stall(stall) if stall.reason == Reason::L1Reorg => Severity::Reset,
            Self::Stall(stall) if stall.reason.is_halt() => Severity::Halt,
            Self::Stall(_) => Severity::Temporary,
        }
    }

    /// The same as a stall with its reason code (P9).
    pub fn stall(&self) -> Stall {
        match self {
            Self::Stall(stall) => stall.clone(),
            Self::Port(error) => Stall::new(Reason::of(error), error.to_string()),
        }
    }
}
