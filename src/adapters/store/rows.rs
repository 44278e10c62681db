//! Rows as they come back: each column checked, each enum through one `TryFrom`.

use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use serde::de::value::StrDeserializer;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::sql::refused;
use crate::error::PortError;
use crate::ports::PortResult;
use crate::types::{
    Address, B256, BatchIndex, BatchRecord, Case, Cursor, Identity, JournalEntry, L1Event, L1EventKind, L1Message,
    L1Number, L1Ref, L2Number, L2Ref, Lease, Outcome, QueueIndex, SpuriousTag, WriteIntent,
};

fn broken(column: &str) -> PortError {
    refused(format!("the database holds a value in {column} that no version wrote"))
}

pub(super) fn number(row: &SqliteRow, column: &str) -> PortResult<u64> {
    let value: i64 = row.try_get(column)?;
    u64::try_from(value).map_err(|_| broken(column))
}

pub(super) fn optional_number(row: &SqliteRow, column: &str) -> PortResult<Option<u64>> {
    let value: Option<i64> = row.try_get(column)?;
    value.map(|value| u64::try_from(value).map_err(|_| broken(column))).transpose()
}

fn as_hash(bytes: &[u8], column: &str) -> PortResult<B256> {
    <[u8; 32]>::try_from(bytes).map(B256).map_err(|_| broken(column))
}

fn hash(row: &SqliteRow, column: &str) -> PortResult<B256> {
    as_hash(row.try_get(column)?, column)
}

fn optional_hash(row: &SqliteRow, column: &str) -> PortResult<Option<B256>> {
    let value: Option<&[u8]> = row.try_get(column)?;
    value.map(|bytes| as_hash(bytes, column)).transpose()
}

fn address(row: &SqliteRow, column: &str) -> PortResult<Address> {
    let bytes: &[u8] = row.try_get(column)?;
    <[u8; 20]>::try_from(bytes).map(ethers_core::types::H160).map_err(|_| broken(column))
}

pub(super) fn text<'r>(row: &'r SqliteRow, column: &str) -> PortResult<&'r str> {
    row.try_get(column).map_err(PortError::from)
}

/// A name in the database that no enum of ours has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown name {0:?}")]
pub struct UnknownName(String);

impl TryFrom<&str> for Outcome {
    type Error = UnknownName;

    fn try_from(name: &str) -> Result<Self, UnknownName> {
        [Self::Verified, Self::Genesis, Self::Reverted]
            .into_iter()
            .find(|outcome| outcome.as_str() == name)
            .ok_or_else(|| UnknownName(name.to_owned()))
    }
}

impl TryFrom<&str> for Case {
    type Error = UnknownName;

    fn try_from(name: &str) -> Result<Self, UnknownName> {
        let reader: StrDeserializer<'_, serde::de::value::Error> = name.into_deserializer();
        Self::deserialize(reader).map_err(|_| UnknownName(name.to_owned()))
    }
}

pub(super) fn batch_record(row: &SqliteRow) -> PortResult<BatchRecord> {
    let case: Option<&str> = row.try_get("handling")?;
    let last = match (optional_number(row, "last_number")?, optional_hash(row, "last_hash")?) {
        (Some(number), Some(hash)) => Some(L2Ref { number: L2Number::new(number), hash }),
        (None, None) => None,
        _ => return Err(broken("last_hash")),
    };
    Ok(BatchRecord {
        index: BatchIndex::new(number(row, "batch_index")?),
        hash: hash(row, "hash")?,
        l1: L1Ref { number: L1Number::new(number(row, "l1_number")?), hash: hash(row, "l1_hash")? },
        log_index: number(row, "log_index")?,
        tx_hash: hash(row, "tx_hash")?,
        outcome: Outcome::try_from(text(row, "outcome")?).map_err(|_| broken("outcome"))?,
        case: case.map(Case::try_from).transpose().map_err(|_| broken("handling"))?,
        first: optional_number(row, "first_block")?.map(L2Number::new),
        last,
        post_state_root: hash(row, "post_state_root")?,
        withdrawal_root: hash(row, "withdrawal_root")?,
        total_l1_popped: number(row, "total_l1_popped")?,
        rewritten: number(row, "rewritten")?,
        encoder_drift: number(row, "encoder_drift")? != 0,
        blobs: optional_number(row, "blobs")?.unwrap_or(0),
    })
}

pub(super) fn l1_ref(row: &SqliteRow, number_column: &str, hash_column: &str) -> PortResult<L1Ref> {
    Ok(L1Ref { number: L1Number::new(number(row, number_column)?), hash: hash(row, hash_column)? })
}

fn settlement(row: &SqliteRow, kind: fn(BatchIndex, B256) -> L1EventKind) -> PortResult<L1Event> {
    Ok(L1Event {
        block: l1_ref(row, "l1_number", "l1_hash")?,
        log_index: number(row, "log_index")?,
        tx_hash: hash(row, "tx_hash")?,
        tx_index: number(row, "tx_index")?,
        kind: kind(BatchIndex::new(number(row, "batch_index")?), hash(row, "batch_hash")?),
    })
}

pub(super) fn revert_of(row: &SqliteRow) -> PortResult<L1Event> {
    settlement(row, |index, hash| L1EventKind::Revert { index, hash })
}

pub(super) fn proof_of(row: &SqliteRow) -> PortResult<L1Event> {
    settlement(row, |index, hash| L1EventKind::Finalize { index, hash })
}

pub(super) fn l1_message(row: &SqliteRow) -> PortResult<L1Message> {
    let raw: Vec<u8> = row.try_get("raw")?;
    Ok(L1Message { index: QueueIndex::new(number(row, "queue_index")?), hash: hash(row, "hash")?, raw: raw.into() })
}

pub(super) fn journal_entry(row: &SqliteRow) -> PortResult<JournalEntry> {
    Ok(JournalEntry {
        at: number(row, "at")?,
        batch: BatchIndex::new(number(row, "batch_index")?),
        number: L2Number::new(number(row, "number")?),
        old_hash: optional_hash(row, "old_hash")?,
        new_hash: hash(row, "new_hash")?,
        why: text(row, "why")?.to_owned(),
    })
}

pub(super) fn write_intent(row: &SqliteRow) -> PortResult<WriteIntent> {
    Ok(WriteIntent {
        number: L2Number::new(number(row, "number")?),
        batch: BatchIndex::new(number(row, "batch_index")?),
        batch_hash: hash(row, "batch_hash")?,
        case: Case::try_from(text(row, "handling")?).map_err(|_| broken("handling"))?,
        old_hash: optional_hash(row, "old_hash")?,
        new_hash: optional_hash(row, "new_hash")?,
        finalized: optional_number(row, "finalized_number")?
            .zip(optional_hash(row, "finalized_hash")?)
            .map(|(number, hash)| L2Ref { number: number.into(), hash }),
        seen: number(row, "seen")? != 0,
    })
}

pub(super) fn spurious_tag(row: &SqliteRow) -> PortResult<SpuriousTag> {
    Ok(SpuriousTag {
        tag: l2_ref(row)?,
        before: optional_number(row, "before_number")?
            .zip(optional_hash(row, "before_hash")?)
            .map(|(number, hash)| L2Ref { number: number.into(), hash }),
    })
}

pub(super) fn identity(row: &SqliteRow) -> PortResult<Identity> {
    Ok(Identity {
        l1_chain_id: number(row, "l1_chain_id")?,
        l2_chain_id: number(row, "l2_chain_id")?,
        rollup: address(row, "rollup")?,
        queue: address(row, "queue")?,
        l2_genesis: hash(row, "l2_genesis")?,
    })
}

pub(super) fn l2_ref(row: &SqliteRow) -> PortResult<L2Ref> {
    Ok(L2Ref { number: L2Number::new(number(row, "number")?), hash: hash(row, "hash")? })
}

pub(super) fn cursor(row: &SqliteRow) -> PortResult<Cursor> {
    Ok(Cursor { block: l1_ref(row, "block_number", "block_hash")?, log_index: optional_number(row, "log_index")? })
}

pub(super) fn lease(row: &SqliteRow) -> PortResult<Lease> {
    Ok(Lease { height: L2Number::new(number(row, "height")?), since: number(row, "since")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_enums_come_back() {
        for outcome in [Outcome::Verified, Outcome::Genesis, Outcome::Reverted] {
            assert_eq!(Outcome::try_from(outcome.as_str()), Ok(outcome));
        }
        for case in [Case::Consistent, Case::SelfHeal, Case::FillGap, Case::Wait] {
            assert_eq!(Case::try_from(case.as_str()), Ok(case));
        }
        assert!(Outcome::try_from("fine").is_err() && Case::try_from("").is_err());
    }
}
