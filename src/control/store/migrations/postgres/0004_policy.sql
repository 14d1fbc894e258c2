-- The [grants] section that nodes of a network take where they have none of their own: JSON.
ALTER TABLE network ADD COLUMN grants TEXT;
