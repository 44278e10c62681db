//! How something in the flow ends early: with a verdict, or because nothing could be decided.
//!
//! Neither turns into the other. A verdict ends a poll well, and the worker waits as for any other poll; an error ends
//! it badly, and its severity says what the worker does.

use crate::decide::stall::{Cause, Reason, Stall};
use crate::error::{PortError, Severity};
use crate::types::BatchIndex;

/// What was decided, or why it ended early.
pub type Decided<T> = Result<T, Stop>;

/// Why something ended early.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Stop {
    /// A verdict: the flow is stalled, for this reason.
    #[error("{0}")]
    Stands(Stall),
    /// It could not be decided.
    #[error(transparent)]
    Failed(FlowError),
}

impl Stop {
    /// The same at batch `index`. An error keeps the batch that it names itself, if any.
    pub(crate) fn at(self, index: BatchIndex) -> Self {
        match self {
            Self::Stands(stall) => Self::Stands(Stall { batch: Some(index), ..stall }),
            Self::Failed(error) => Self::Failed(error),
        }
    }

    /// What was decided, for callers that take a verdict as one more answer: it becomes none.
    ///
    /// # Errors
    /// What could not be decided.
    pub(crate) fn none_if_it_stands<T>(decided: Decided<T>) -> Result<Option<T>, FlowError> {
        match decided {
            Ok(decided) => Ok(Some(decided)),
            Err(Self::Stands(_)) => Ok(None),
            Err(Self::Failed(error)) => Err(error),
        }
    }
}

impl From<Stall> for Stop {
    fn from(stall: Stall) -> Self {
        Self::Stands(stall)
    }
}

impl From<Cause> for Stop {
    fn from(cause: Cause) -> Self {
        Self::Stands(Stall::new(cause))
    }
}

impl From<FlowError> for Stop {
    fn from(error: FlowError) -> Self {
        Self::Failed(error)
    }
}

impl From<PortError> for Stop {
    fn from(error: PortError) -> Self {
        Self::Failed(error.into())
    }
}

/// The flow could not decide.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FlowError {
    /// A port could not answer.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Something changed under way, or the world contradicts itself: the stall names its reason.
    #[error("{0}")]
    Stall(Stall),
}

impl FlowError {
    /// L1 changed between two reads that belong together.
    pub fn l1_changed(detail: impl Into<String>) -> Self {
        Self::Stall(Stall::new(Cause::L1Changed(detail.into())))
    }

    /// The local chain changed between two reads that belong together.
    pub fn local_changed(detail: impl Into<String>) -> Self {
        Self::Stall(Stall::new(Cause::LocalChanged(detail.into())))
    }

    /// What the worker has to do about it.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Port(error) => error.severity(),
            Self::Stall(stall) if stall.reason() == Reason::L1Reorg => Severity::Reset,
            Self::Stall(stall) if stall.reason().is_halt() => Severity::Halt,
            Self::Stall(_) => Severity::Temporary,
        }
    }

    /// The same as a stall, with its cause and code (P9).
    pub fn stall(&self) -> Stall {
        match self {
            Self::Stall(stall) => stall.clone(),
            Self::Port(error) => Stall::new(Cause::Port(error.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{PortErrorKind, Target};
    use crate::flow::PollEnd;

    /// A temporary one, one that halts, one that resets.
    fn causes() -> [Cause; 3] {
        [Cause::BeforeSwitch, Cause::RevertOfProved, Cause::L1Changed("a block".to_owned())]
    }

    #[test]
    fn p9_a_verdict_stays_a_verdict_and_an_error_an_error() {
        for cause in causes() {
            let stall = Stall::new(cause.clone());
            let stands = || Stop::from(stall.clone());
            let Stop::Stands(at) = stands().at(7.into()) else { panic!("{cause} was not decided") };
            assert_eq!(at, Stall::at(7.into(), cause.clone()));
            assert_eq!(PollEnd::of(Err(stands())).unwrap(), PollEnd::Stalled(stall.clone()));
            assert_eq!(Stop::none_if_it_stands::<()>(Err(stands())).unwrap(), None);

            let failed = || Stop::from(FlowError::Stall(stall.clone()));
            let Stop::Failed(error) = failed().at(7.into()) else { panic!("{cause} was decided") };
            assert_eq!(error.stall(), stall, "an error names its own batch");
            assert_eq!(PollEnd::of(Err(failed())).unwrap_err().stall(), stall);
            assert_eq!(Stop::none_if_it_stands::<()>(Err(failed())).unwrap_err().stall(), stall);
        }
        let error = PortError::new(Target::L2, PortErrorKind::Timeout, "");
        assert!(matches!(Stop::from(error), Stop::Failed(FlowError::Port(_))));
    }
}
