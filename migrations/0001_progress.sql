-- The worker's memory: how far L1 was read, what became of every batch, and what is still open.
--
-- Every number is the i64 of a u64 (the store refuses larger ones), every hash its 32 bytes, every enum its name.
-- One row tables hold id = 1.

-- "morD": tells our file from any other SQLite database.
PRAGMA application_id = 0x6d6f7244;

-- Which networks and contracts all the rest belongs to. Written once.
CREATE TABLE identity (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    l1_chain_id   INTEGER NOT NULL CHECK (l1_chain_id >= 0),
    l2_chain_id   INTEGER NOT NULL CHECK (l2_chain_id >= 0),
    rollup        BLOB    NOT NULL CHECK (length(rollup) = 20),
    queue         BLOB    NOT NULL CHECK (length(queue) = 20),
    l2_genesis    BLOB    NOT NULL CHECK (length(l2_genesis) = 32)
) STRICT;

-- How far L1 was read: up to and with log_index of the block, or the whole block where log_index is null.
CREATE TABLE cursor (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    block_number  INTEGER NOT NULL CHECK (block_number >= 0),
    block_hash    BLOB    NOT NULL CHECK (length(block_hash) = 32),
    log_index     INTEGER          CHECK (log_index >= 0)
) STRICT;

-- L1 blocks of the reorg window.
CREATE TABLE l1_blocks (
    number        INTEGER PRIMARY KEY CHECK (number >= 0),
    hash          BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;

-- One row for each CommitBatch log, by its place on L1: an index can be committed, reverted and committed again.
CREATE TABLE batches (
    l1_number       INTEGER NOT NULL CHECK (l1_number >= 0),
    log_index       INTEGER NOT NULL CHECK (log_index >= 0),
    l1_hash         BLOB    NOT NULL CHECK (length(l1_hash) = 32),
    tx_hash         BLOB    NOT NULL CHECK (length(tx_hash) = 32),
    batch_index     INTEGER NOT NULL CHECK (batch_index >= 0),
    hash            BLOB    NOT NULL CHECK (length(hash) = 32),
    outcome         TEXT    NOT NULL CHECK (outcome IN ('verified', 'genesis', 'reverted')),
    handling        TEXT             CHECK (handling IN ('consistent', 'self-heal', 'fill-gap', 'wait')),
    first_block     INTEGER          CHECK (first_block >= 0),
    last_number     INTEGER          CHECK (last_number >= 0),
    last_hash       BLOB             CHECK (length(last_hash) = 32),
    post_state_root BLOB    NOT NULL CHECK (length(post_state_root) = 32),
    withdrawal_root BLOB    NOT NULL CHECK (length(withdrawal_root) = 32),
    total_l1_popped INTEGER NOT NULL CHECK (total_l1_popped >= 0),
    rewritten       INTEGER NOT NULL CHECK (rewritten >= 0),
    encoder_drift   INTEGER NOT NULL CHECK (encoder_drift IN (0, 1)),
    -- The L1 block of the revert that took a standing batch down, with the outcome before it, so that an L1 reorg that
    -- drops the revert puts the batch back; or of the revert for which a commit was never looked at (no outcome before),
    -- so that such a reorg has it looked at.
    reverted_at     INTEGER          CHECK (reverted_at >= 0),
    reverted_was    TEXT             CHECK (reverted_was IN ('verified', 'genesis')),
    PRIMARY KEY (l1_number, log_index),
    CHECK ((last_number IS NULL) = (last_hash IS NULL)),
    CHECK (reverted_was IS NULL OR reverted_at IS NOT NULL),
    CHECK (reverted_at IS NULL OR outcome = 'reverted')
) STRICT, WITHOUT ROWID;

-- At most one batch of an index stands.
CREATE UNIQUE INDEX batches_standing ON batches (batch_index) WHERE outcome IN ('verified', 'genesis');
CREATE INDEX batches_by_index ON batches (batch_index);

-- One row for each RevertBatch log.
CREATE TABLE reverts (
    l1_number     INTEGER NOT NULL CHECK (l1_number >= 0),
    log_index     INTEGER NOT NULL CHECK (log_index >= 0),
    l1_hash       BLOB    NOT NULL CHECK (length(l1_hash) = 32),
    tx_hash       BLOB    NOT NULL CHECK (length(tx_hash) = 32),
    tx_index      INTEGER NOT NULL CHECK (tx_index >= 0),
    batch_index   INTEGER NOT NULL CHECK (batch_index >= 0),
    batch_hash    BLOB    NOT NULL CHECK (length(batch_hash) = 32),
    PRIMARY KEY (l1_number, log_index)
) STRICT, WITHOUT ROWID;

-- L1 messages, to be put back in front of their blocks.
CREATE TABLE l1_messages (
    queue_index   INTEGER PRIMARY KEY CHECK (queue_index >= 0),
    hash          BLOB    NOT NULL CHECK (length(hash) = 32),
    raw           BLOB    NOT NULL,
    l1_number     INTEGER NOT NULL CHECK (l1_number >= 0),
    l1_hash       BLOB    NOT NULL CHECK (length(l1_hash) = 32)
) STRICT;
CREATE INDEX l1_messages_by_block ON l1_messages (l1_number);

-- The heads that were verified.
CREATE TABLE heads (
    kind          TEXT    PRIMARY KEY CHECK (kind IN ('safe', 'finalized')),
    number        INTEGER NOT NULL CHECK (number >= 0),
    hash          BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT, WITHOUT ROWID;

-- A pause of the reactors that was begun and not yet ended.
CREATE TABLE lease (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    height        INTEGER NOT NULL CHECK (height >= 0),
    since         INTEGER NOT NULL CHECK (since >= 0)
) STRICT;

-- Every write to the node.
CREATE TABLE journal (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    at            INTEGER NOT NULL CHECK (at >= 0),
    batch_index   INTEGER NOT NULL CHECK (batch_index >= 0),
    number        INTEGER NOT NULL CHECK (number >= 0),
    old_hash      BLOB             CHECK (length(old_hash) = 32),
    new_hash      BLOB    NOT NULL CHECK (length(new_hash) = 32),
    why           TEXT    NOT NULL
) STRICT;
