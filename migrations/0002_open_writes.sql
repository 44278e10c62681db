-- Blocks that were about to be written for a batch that is not stored yet: noted before the write, gone with the batch's
-- row. What a crash leaves half done is told by it: which blocks are ours, what stood there, and why they were written.
CREATE TABLE open_writes (
    number        INTEGER PRIMARY KEY CHECK (number >= 0),
    batch_index   INTEGER NOT NULL CHECK (batch_index >= 0),
    batch_hash    BLOB    NOT NULL CHECK (length(batch_hash) = 32),
    handling      TEXT    NOT NULL CHECK (handling IN ('self-heal', 'fill-gap')),
    old_hash      BLOB             CHECK (length(old_hash) = 32),
    -- What the journal says was written; null until it says so.
    new_hash      BLOB             CHECK (length(new_hash) = 32),
    -- The node's finalized tag from before the write: where it belongs should the node move it by itself.
    finalized_number INTEGER       CHECK (finalized_number >= 0),
    finalized_hash   BLOB          CHECK (length(finalized_hash) = 32),
    CHECK ((finalized_number IS NULL) = (finalized_hash IS NULL))
) STRICT;
