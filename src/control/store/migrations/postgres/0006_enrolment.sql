-- Which token enrolled a node, so that a removal can revoke it; no row: enrolled by an earlier release.
CREATE TABLE enrolment (
    node TEXT PRIMARY KEY REFERENCES node (id),
    token TEXT NOT NULL
);
-- Whether a device must prove that it holds the WireGuard key it names; null: made by an earlier release.
ALTER TABLE token ADD COLUMN key_proof BIGINT;
