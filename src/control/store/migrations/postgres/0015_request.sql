-- Requests with an idempotency key, for a day. status is null until the change is committed, 0 while its answer is not kept,
-- and the HTTP status code with a sealed answer after that; claim is of the process that carries it out.
CREATE TABLE request (
    operator TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    digest TEXT NOT NULL,
    claim TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    status BIGINT,
    answer TEXT,
    PRIMARY KEY (operator, idempotency_key)
);
CREATE INDEX request_by_age ON request (at_ms);
