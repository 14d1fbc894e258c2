-- A report's place among those of its node: a run of its program, and the number within it.
ALTER TABLE report ADD COLUMN run TEXT;
ALTER TABLE report ADD COLUMN seq BIGINT;
-- The run before, whose late reports are dropped.
ALTER TABLE report ADD COLUMN previous_run TEXT;
-- The generation last reported as kept; null: none yet.
ALTER TABLE report ADD COLUMN confirmed BIGINT;
UPDATE report SET confirmed = generation WHERE outcome <> 'trial';

-- The generation that named the newest signing key to the node; null: it pinned that key at its enrolment.
ALTER TABLE node ADD COLUMN keys_generation BIGINT;
UPDATE node SET keys_generation = generation
WHERE (SELECT COUNT(*) FROM signing_key WHERE state = 'active') > 1;
