-- The later generation that a node's document replaces: a u64, which an integer column does not hold.
CREATE TABLE superseded (
    node TEXT PRIMARY KEY REFERENCES node (id),
    generation TEXT NOT NULL
);
