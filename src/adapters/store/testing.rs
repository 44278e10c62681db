//! Rows and steps for the tests of the store.

use super::SqliteStore;
use crate::ports::{Progress, Rows, Step};
use crate::types::{
    Address, B256, BatchIndex, BatchRecord, Case, Cursor, Identity, L1Event, L1EventKind, L1Message, L1Number, L1Ref,
    L2Number, L2Ref, Outcome, QueueIndex,
};

pub(super) fn h(n: u64) -> B256 {
    B256::from_low_u64_be(n)
}

pub(super) fn l1(number: u64) -> L1Ref {
    L1Ref { number: L1Number::new(number), hash: h(number) }
}

pub(super) fn l2(number: u64) -> L2Ref {
    L2Ref { number: L2Number::new(number), hash: h(number) }
}

pub(super) fn record(index: u64, l1_number: u64) -> BatchRecord {
    BatchRecord {
        index: BatchIndex::new(index),
        hash: h(1_000 + index),
        l1: l1(l1_number),
        log_index: 0,
        tx_hash: h(2_000 + index),
        outcome: Outcome::Verified,
        case: Some(Case::Consistent),
        first: Some(L2Number::new(index * 10)),
        last: Some(l2(index * 10 + 9)),
        post_state_root: h(3),
        withdrawal_root: h(4),
        total_l1_popped: index,
        rewritten: 0,
        encoder_drift: false,
        blobs: 0,
    }
}

pub(super) fn message(index: u64) -> L1Message {
    L1Message { index: QueueIndex::new(index), hash: h(index), raw: vec![0x7e, 1, 2].into() }
}

pub(super) fn revert(index: u64, l1_number: u64) -> L1Event {
    L1Event {
        block: l1(l1_number),
        log_index: 1,
        tx_hash: h(9),
        tx_index: 0,
        kind: L1EventKind::Revert { index: BatchIndex::new(index), hash: h(1_000 + index) },
    }
}

pub(super) fn proof(index: u64, l1_number: u64) -> L1Event {
    let kind = L1EventKind::Finalize { index: BatchIndex::new(index), hash: h(1_000 + index) };
    L1Event { kind, ..revert(index, l1_number) }
}

pub(super) fn cursor_at(number: u64) -> Cursor {
    Cursor { block: l1(number), log_index: None }
}

pub(super) fn network() -> Identity {
    Identity {
        l1_chain_id: 1,
        l2_chain_id: 2818,
        rollup: Address::repeat_byte(1),
        queue: Address::repeat_byte(2),
        l2_genesis: h(7),
    }
}

/// A step that touches every table.
pub(super) fn full_step(index: u64) -> Step {
    Step {
        messages: vec![(l1(index), message(index)), (l1(index), message(index + 1))],
        batch: Some(record(index, index)),
        l1_blocks: vec![l1(index)],
        safe: Some(l2(index * 10 + 9)),
        finalized: Some(l2(1)),
        cursor: Some(cursor_at(index)),
        ..Step::default()
    }
}

pub(super) async fn store_with(batches: u64) -> SqliteStore {
    let store = SqliteStore::in_memory().await.unwrap();
    for index in 1..=batches {
        store.apply(&full_step(index)).await.unwrap();
    }
    store
}

pub(super) async fn indices(store: &SqliteStore) -> Vec<u64> {
    let mut found = Vec::new();
    for index in 0..100 {
        found.extend(store.batch(BatchIndex::new(index)).await.unwrap().map(|row| row.index.get()));
    }
    found
}
