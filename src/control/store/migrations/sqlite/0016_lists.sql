-- The orders of lists, so that a page reads no more rows than it shows.
CREATE INDEX node_by_label_text ON node (COALESCE(label, ''), id);
CREATE INDEX node_by_network_id ON node (network, id);
CREATE INDEX node_by_state ON node (state, id);
CREATE INDEX node_by_age ON node (created_ms, id);
CREATE INDEX token_by_age ON token (created_ms, id);
CREATE INDEX audit_by_entity_id ON audit (entity_id, id);
CREATE INDEX audit_by_action ON audit (action, id);
