-- The example's tables, and what Sluice needs of the source: wal_level=logical (see
-- compose.yaml), a publication called powersync, and a role that may read and replicate.
CREATE TABLE categories (id text PRIMARY KEY, name text NOT NULL);
CREATE TABLE lists (id text PRIMARY KEY, owner_id text NOT NULL, name text NOT NULL);
CREATE TABLE members (id text PRIMARY KEY, list_id text NOT NULL REFERENCES lists ON DELETE CASCADE, user_id text NOT NULL);
CREATE TABLE todos (
  id text PRIMARY KEY,
  list_id text NOT NULL REFERENCES lists ON DELETE CASCADE,
  description text NOT NULL,
  done boolean NOT NULL DEFAULT false
);
INSERT INTO categories VALUES ('c1', 'home'), ('c2', 'work');
INSERT INTO lists VALUES ('l1', 'alice', 'Groceries'), ('l2', 'bob', 'Garden');
INSERT INTO members VALUES ('m1', 'l2', 'alice');
INSERT INTO todos VALUES ('t1', 'l1', 'milk', false), ('t2', 'l2', 'water the roses', false);

-- Deletes and updates are replicated by primary key. A table without one needs
-- ALTER TABLE ... REPLICA IDENTITY FULL.
CREATE PUBLICATION powersync FOR ALL TABLES;

\getenv replication_password REPLICATION_PASSWORD
CREATE ROLE sluice WITH REPLICATION LOGIN PASSWORD :'replication_password';
GRANT USAGE ON SCHEMA public TO sluice;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO sluice;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO sluice;
