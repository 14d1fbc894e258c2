-- The release that the image of a node shall run: of one node, or, with an empty node, of a whole network.
CREATE TABLE wanted_release (
    network TEXT NOT NULL REFERENCES network (name),
    node TEXT NOT NULL,
    version TEXT NOT NULL,
    source TEXT,
    PRIMARY KEY (network, node)
);
