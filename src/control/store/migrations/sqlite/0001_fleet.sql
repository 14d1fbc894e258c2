-- Integers are milliseconds since 1970 where a name ends in _ms, and 0 or 1 where it asks a question.
CREATE TABLE network (
    name TEXT PRIMARY KEY,
    pool4 TEXT,
    pool6 TEXT,
    reserved TEXT NOT NULL,
    dns TEXT NOT NULL,
    interface TEXT NOT NULL,
    mtu BIGINT,
    keepalive BIGINT NOT NULL,
    forwarding BIGINT NOT NULL,
    approval BIGINT NOT NULL,
    access TEXT NOT NULL,
    quarantine_ms BIGINT NOT NULL,
    created_ms BIGINT NOT NULL
);

CREATE TABLE node (
    id TEXT PRIMARY KEY,
    network TEXT NOT NULL REFERENCES network (name),
    role TEXT NOT NULL,
    state TEXT NOT NULL,
    label TEXT,
    wireguard_key TEXT UNIQUE,
    next_key TEXT UNIQUE,
    next_key_hubs TEXT,
    identity_key TEXT UNIQUE,
    endpoint TEXT,
    listen_port BIGINT,
    mtu BIGINT,
    keepalive BIGINT,
    dns TEXT,
    isolated BIGINT NOT NULL,
    version TEXT,
    capabilities TEXT,
    metadata TEXT,
    generation BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    enrolled_ms BIGINT
);
CREATE INDEX node_by_network ON node (network, role, state);

CREATE TABLE lease (
    network TEXT NOT NULL REFERENCES network (name),
    family BIGINT NOT NULL,
    host BIGINT NOT NULL,
    node TEXT,
    until_ms BIGINT,
    PRIMARY KEY (network, family, host)
);
CREATE UNIQUE INDEX lease_by_node ON lease (node, family);

CREATE TABLE token (
    id TEXT PRIMARY KEY,
    hash TEXT NOT NULL,
    network TEXT NOT NULL REFERENCES network (name),
    node TEXT,
    note TEXT,
    uses BIGINT NOT NULL,
    max_uses BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT,
    revoked_ms BIGINT
);

CREATE TABLE signing_key (
    public_key TEXT PRIMARY KEY,
    sealed_seed TEXT NOT NULL,
    state TEXT NOT NULL,
    created_ms BIGINT NOT NULL
);

CREATE TABLE report (
    node TEXT PRIMARY KEY REFERENCES node (id),
    sent_ms BIGINT NOT NULL,
    received_ms BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    reason TEXT,
    healthy BIGINT NOT NULL,
    drift BIGINT NOT NULL,
    version TEXT NOT NULL,
    health TEXT
);

CREATE TABLE registration (
    node TEXT PRIMARY KEY REFERENCES node (id),
    address TEXT NOT NULL,
    wireguard_key TEXT NOT NULL,
    interface TEXT NOT NULL,
    hub_endpoint TEXT NOT NULL,
    registered_at TEXT NOT NULL,
    received_ms BIGINT NOT NULL
);

CREATE TABLE used_nonce (
    node TEXT NOT NULL,
    nonce TEXT NOT NULL,
    until_ms BIGINT NOT NULL,
    PRIMARY KEY (node, nonce)
);

-- Who the contract admits, as last read completely; empty only because the chain said so.
CREATE TABLE admission (
    node TEXT NOT NULL,
    wireguard_key TEXT NOT NULL,
    token_id TEXT NOT NULL,
    PRIMARY KEY (node, wireguard_key)
);

-- Background work, claimed by moving its due time within a row lock.
CREATE TABLE job (
    name TEXT PRIMARY KEY,
    due_ms BIGINT NOT NULL
);

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    entity_type TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    details TEXT NOT NULL
);
CREATE INDEX audit_by_entity ON audit (entity_type, entity_id);

-- Stands in for NOTIFY between processes on one file: '*' is everybody.
CREATE TABLE wake (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    node TEXT NOT NULL
);
