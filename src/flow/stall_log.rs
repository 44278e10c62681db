//! The log of stalls (P9): each stall under its reason's code, and its end once.
//!
//! The log itself leaves out repetitions, by code and entity (`telemetry`). So a stall names its batch as the entity: a
//! halt at another batch is another fault, and is logged at once.

use std::collections::BTreeSet;

use tracing::{error, info, warn};

use crate::decide::stall::Stall;
use crate::types::BatchIndex;

/// What is done about a stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It ends by itself.
    Waiting,
    /// The poll failed and is repeated.
    TryingAgain,
    /// L1 changed: it is read again after a second at most.
    ReadingAgain,
    /// L1 or an operator must change something.
    Halted,
}

/// The stalls that were logged and whose end was not: by batch, or about none.
#[derive(Debug, Default)]
pub struct StallLog {
    open: BTreeSet<Option<BatchIndex>>,
}

impl StallLog {
    /// A poll ended on `stall`. A flow that is stalled at one batch is no longer stalled at another.
    pub fn stalled(&mut self, stall: &Stall, doing: Doing) {
        if stall.batch.is_some() {
            let over: Vec<_> = self.open.iter().copied().filter(|b| b.is_some() && *b != stall.batch).collect();
            over.into_iter().for_each(|batch| self.over(batch));
        }
        let (code, detail) = (stall.reason().code(), stall.detail());
        let (batch, entity) = (stall.batch.map(BatchIndex::get), entity_of(stall.batch));
        match doing {
            Doing::Waiting => warn!(target: "stall", code, entity, batch, detail, "stalled; the next poll looks again"),
            Doing::TryingAgain => warn!(target: "stall", code, entity, batch, detail, "poll failed; trying again"),
            Doing::ReadingAgain => {
                warn!(target: "stall", code, entity, batch, detail, "L1 changed during the poll; reading it again")
            }
            Doing::Halted => {
                error!(target: "stall", code, entity, batch, detail, "halted until L1 or an operator changes something")
            }
        }
        self.open.insert(stall.batch);
    }

    /// A poll ended on no stall.
    pub fn goes_on(&mut self) {
        while let Some(batch) = self.open.first().copied() {
            self.over(batch);
        }
    }

    fn over(&mut self, batch: Option<BatchIndex>) {
        self.open.remove(&batch);
        info!(target: "stall", entity = entity_of(batch), recovered = true, "stall ended");
    }
}

/// Empty for a stall that is about no batch.
fn entity_of(batch: Option<BatchIndex>) -> String {
    batch.map(|batch| format!("batch {batch}")).unwrap_or_default()
}
