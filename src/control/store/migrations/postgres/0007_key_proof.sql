-- Whether the node had to prove that it holds its WireGuard key; null: enrolled without the proof.
ALTER TABLE enrolment ADD COLUMN key_proof BIGINT;
