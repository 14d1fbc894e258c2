-- Keys of the operators' HTTP API. Times are milliseconds since 1970; used_ms is at most a minute old while a key is in use.
CREATE TABLE operator_key (
    id TEXT PRIMARY KEY,
    hash TEXT NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT,
    revoked_ms BIGINT,
    used_ms BIGINT
);
