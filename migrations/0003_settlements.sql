-- What is known of reverts and proofs ahead of the batches: finality looks at it before it takes a batch for final.

-- One row for each FinalizeBatch log: the batch is proved on the contract, and no revert can take it back.
CREATE TABLE proofs (
    l1_number     INTEGER NOT NULL CHECK (l1_number >= 0),
    log_index     INTEGER NOT NULL CHECK (log_index >= 0),
    l1_hash       BLOB    NOT NULL CHECK (length(l1_hash) = 32),
    tx_hash       BLOB    NOT NULL CHECK (length(tx_hash) = 32),
    tx_index      INTEGER NOT NULL CHECK (tx_index >= 0),
    batch_index   INTEGER NOT NULL CHECK (batch_index >= 0),
    batch_hash    BLOB    NOT NULL CHECK (length(batch_hash) = 32),
    PRIMARY KEY (l1_number, log_index)
) STRICT, WITHOUT ROWID;
CREATE INDEX proofs_by_index ON proofs (batch_index);

-- The block up to which every RevertBatch and FinalizeBatch log is stored; they may lie above the cursor.
CREATE TABLE settled (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    block_number  INTEGER NOT NULL CHECK (block_number >= 0),
    block_hash    BLOB    NOT NULL CHECK (length(block_hash) = 32)
) STRICT;
