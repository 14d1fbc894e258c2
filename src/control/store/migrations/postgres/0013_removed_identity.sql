-- Of the identity key that may take an announced name with any token of its network.
ALTER TABLE node ADD COLUMN fingerprint TEXT;

-- The identity keys of removed devices by the name they had: the name may have another holder since. `generation`: the last
-- one of a node whose network was removed.
CREATE TABLE removed_identity (
    identity_key TEXT PRIMARY KEY,
    node TEXT NOT NULL,
    removed_ms BIGINT NOT NULL,
    generation BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX removed_identity_by_node ON removed_identity (node, removed_ms);
INSERT INTO removed_identity (identity_key, node, removed_ms)
    SELECT identity_key, id, 0 FROM node WHERE state = 'removed' AND identity_key IS NOT NULL;

-- When a retired signing key became active again, which orders it behind the others; null: it was active from the beginning.
ALTER TABLE signing_key ADD COLUMN active_ms BIGINT;
