-- The chain a record belongs to and its hash in it; empty: written by a release without chains.
ALTER TABLE audit ADD COLUMN chain TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN hash TEXT NOT NULL DEFAULT '';
CREATE INDEX audit_by_chain ON audit (chain, id);
-- The hash of the newest record of each chain, and of the newest one that was deleted for its age; empty: none.
CREATE TABLE audit_chain (
    name TEXT PRIMARY KEY,
    head TEXT NOT NULL,
    anchor TEXT NOT NULL
);
-- Entries of one action by one node or timer on one entity within an hour: after the first few they are counted only.
CREATE TABLE audit_repeat (
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    entity_type TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    since_ms BIGINT NOT NULL,
    last_ms BIGINT NOT NULL,
    entries BIGINT NOT NULL,
    PRIMARY KEY (actor, action, entity_type, entity_id)
);
