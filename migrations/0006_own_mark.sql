-- Whose mark is the node's finalized tag? Some nodes move it by themselves on a write. Seen to move with a write of ours,
-- it is put back; any other one is somebody else's, and is left alone.

-- Whether the node was looked at since the write: what the write did to its tags is known then.
ALTER TABLE open_writes ADD COLUMN seen INTEGER NOT NULL DEFAULT 0 CHECK (seen IN (0, 1));

-- A tag that the node moved by itself and that is not put back yet. Outlives the writes that it lies on.
CREATE TABLE own_mark (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    number        INTEGER NOT NULL CHECK (number >= 0),
    hash          BLOB    NOT NULL CHECK (length(hash) = 32),
    -- Where the tag was before; null where it was never set.
    before_number INTEGER          CHECK (before_number >= 0),
    before_hash   BLOB             CHECK (length(before_hash) = 32),
    CHECK ((before_number IS NULL) = (before_hash IS NULL))
) STRICT;
