-- What the contract says of each node and key that wants to be a peer: kept until the chain itself says something else.
DROP TABLE admission;
CREATE TABLE admission (
    node TEXT NOT NULL,
    wireguard_key TEXT NOT NULL,
    granted BIGINT NOT NULL,
    code TEXT NOT NULL,
    token_id TEXT,
    decided_ms BIGINT NOT NULL,
    PRIMARY KEY (node, wireguard_key)
);

-- Work that goes on and on is done by one control plane at a time: until due_ms by its holder.
ALTER TABLE job ADD COLUMN holder TEXT;

-- How far the one that follows the chain has come, for people; one row.
CREATE TABLE chain (
    contract TEXT NOT NULL,
    chain_id BIGINT NOT NULL,
    follower TEXT NOT NULL,
    looked_ms BIGINT NOT NULL,
    heard_ms BIGINT,
    height BIGINT,
    trouble TEXT
);

-- A node that is switched off stays enrolled and is nobody's peer.
ALTER TABLE node ADD COLUMN enabled BIGINT NOT NULL DEFAULT 1;
-- Networks behind the hub, for one node alone.
ALTER TABLE node ADD COLUMN endpoint_allowed_ip TEXT;
