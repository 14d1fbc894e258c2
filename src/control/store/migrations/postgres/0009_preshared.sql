-- Nodes whose program takes preshared keys from its documents.
CREATE TABLE takes_preshared (
    node TEXT PRIMARY KEY REFERENCES node (id)
);
-- The tunnels that have a preshared key: derived from the salt, both public keys and the master key.
CREATE TABLE preshared (
    node TEXT NOT NULL REFERENCES node (id),
    node_key TEXT NOT NULL,
    hub TEXT NOT NULL REFERENCES node (id),
    salt TEXT NOT NULL,
    PRIMARY KEY (node_key, hub)
);
CREATE INDEX preshared_by_node ON preshared (node);
CREATE INDEX preshared_by_hub ON preshared (hub);
