-- What changed, for a day: numbered in the order of the commits, because the number is taken under the lock of event_head.
CREATE TABLE event (
    id BIGINT PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    kind TEXT NOT NULL,
    entity_type TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    details TEXT NOT NULL
);
CREATE TABLE event_head (
    name TEXT PRIMARY KEY,
    last BIGINT NOT NULL
);
INSERT INTO event_head (name, last) VALUES ('event', 0);
