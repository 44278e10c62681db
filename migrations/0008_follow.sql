-- What the heads of this database rest on, a part of the identity: 1 if they are taken over from another node, 0 if they
-- are derived from L1. Null in a database of an older version, which derives, until its next start.
ALTER TABLE identity ADD COLUMN follows INTEGER CHECK (follows IN (0, 1));
