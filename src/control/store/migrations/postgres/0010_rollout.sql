-- When the nodes fetch a desired release, and when an operator had it retried where it was given up.
ALTER TABLE wanted_release ADD COLUMN spread_seconds BIGINT NOT NULL DEFAULT 0;
ALTER TABLE wanted_release ADD COLUMN since_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE wanted_release ADD COLUMN renewed_ms BIGINT NOT NULL DEFAULT 0;
