-- Labels of nodes, by which operators select them.
CREATE TABLE node_label (
    node TEXT NOT NULL REFERENCES node (id),
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (node, key)
);
CREATE INDEX node_by_label ON node_label (key, value, node);
