-- What an audit of a range of batches adds to the rows of the batches themselves.

-- How many blobs a batch's commit carries. Null in a row that an older version wrote.
ALTER TABLE batches ADD COLUMN blobs INTEGER CHECK (blobs >= 0);

-- The range that this database is about. A database with a row here is an audit's, and no worker may go on from it: a
-- batch row without `handling` was taken on L1's word there.
CREATE TABLE audit (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    from_batch    INTEGER NOT NULL CHECK (from_batch >= 0),
    -- Null: as far as L1 has come.
    to_batch      INTEGER          CHECK (to_batch >= 0),
    -- Which L1 blocks count as settled.
    settled       TEXT    NOT NULL
) STRICT;

-- Batches that the local chain contradicts. One counts while the batch with this hash stands.
CREATE TABLE audit_divergences (
    batch_index   INTEGER NOT NULL CHECK (batch_index >= 0),
    batch_hash    BLOB    NOT NULL CHECK (length(batch_hash) = 32),
    reason        TEXT    NOT NULL,
    block         INTEGER          CHECK (block >= 0),
    detail        TEXT    NOT NULL,
    PRIMARY KEY (batch_index, batch_hash)
) STRICT, WITHOUT ROWID;
