-- The first L1 block that was ever read (`l1.start_block`), a part of the identity: what a reorg below the recorded window
-- means, and where reading begins anew, follows from it. Null in a database of an older version until its next start.
ALTER TABLE identity ADD COLUMN l1_start INTEGER CHECK (l1_start >= 0);
