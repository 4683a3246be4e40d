-- Names and positions are bytea: whatever bytes they have, they are kept, and
-- sort as bytes. What is looked up by a name that may be long is found by the
-- first half of its SHA-256.

CREATE TABLE streams (
  id         int8 PRIMARY KEY,
  definition bytea NOT NULL, -- JSON of all that does not change
  activated  int8 NOT NULL
);

-- One narrow row a stream, replaced by every commit within its page.
CREATE TABLE heads (
  stream               int8 PRIMARY KEY,
  state                int2 NOT NULL,
  epoch                int8 NOT NULL DEFAULT 0,
  applied_position     bytea NOT NULL DEFAULT '',
  applied_offset       int8 NOT NULL DEFAULT 0,
  persisted            int8 NOT NULL DEFAULT 0,
  checkpoint           int8 NOT NULL DEFAULT 0,
  checkpoint_position  bytea NOT NULL DEFAULT '',
  snapshot_done        bool NOT NULL DEFAULT false,
  no_checkpoint_before bytea NOT NULL DEFAULT '',
  origin               bytea NOT NULL DEFAULT '',
  commit_time          int8 NOT NULL DEFAULT 0,
  heartbeat            int8 NOT NULL DEFAULT 0,
  published_at         int8 NOT NULL DEFAULT 0,
  evaluated_at         int8 NOT NULL DEFAULT 0,
  stored_at            int8 NOT NULL DEFAULT 0,
  last_error           bytea NOT NULL DEFAULT '',
  last_error_at        int8 NOT NULL DEFAULT 0,
  buckets              int4 NOT NULL DEFAULT 0, -- the highest id given to a bucket
  lookups_cleared      int8 NOT NULL DEFAULT 0  -- op up to which superseded lookups may be gone
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- How often another process became the one that writes.
CREATE TABLE owner (epoch int8 NOT NULL);
INSERT INTO owner VALUES (0);

-- Write checkpoints by user key: those handed out here, the custom ones of a
-- stream in users_<stream>.
CREATE TABLE users (
  hash         uuid PRIMARY KEY, -- of the key
  key          bytea NOT NULL,
  id           int8 NOT NULL,
  head         bytea NOT NULL,
  reached_id   int8 NOT NULL,
  reached_head bytea NOT NULL,
  requested    int8 NOT NULL
) WITH (fillfactor = 80);

-- make_stream makes the tables of a stream. It has its own so that clearing it
-- is dropping them: no deleted rows, no vacuum.
CREATE FUNCTION make_stream(stream int8) RETURNS void LANGUAGE plpgsql AS $make$
BEGIN
  -- The running sum of each bucket: up to its last op; and base, as of the
  -- checkpoint that readers saw when the op "first" was stored.
  EXECUTE format($sql$
    CREATE TABLE buckets_%1$s (
      hash          uuid PRIMARY KEY, -- of the name
      id            int4 NOT NULL,
      name          bytea NOT NULL,
      checksum      int8 NOT NULL DEFAULT 0,
      count         int8 NOT NULL DEFAULT 0,
      last          int8 NOT NULL DEFAULT 0,
      base_checksum int8 NOT NULL DEFAULT 0,
      base_count    int8 NOT NULL DEFAULT 0,
      base_last     int8 NOT NULL DEFAULT 0,
      first         int8 NOT NULL DEFAULT 0,
      cleared       int8 NOT NULL DEFAULT 0, -- id of the CLEAR; reads below it are invalid
      changes       int8 NOT NULL DEFAULT 0  -- ops since the last compaction
    ) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.1)
  $sql$, stream);
  EXECUTE format('CREATE INDEX ON buckets_%s (substring(name from 1 for 512))', stream);
  -- The widest columns come first, so that a row has no padding; a column that
  -- is null costs nothing.
  EXECUTE format($sql$
    CREATE TABLE ops_%1$s (
      op       int8 NOT NULL,
      target   int8, -- of MOVE and CLEAR
      bucket   int4 NOT NULL,
      checksum int4 NOT NULL,
      kind     int2 NOT NULL,
      name     bytea, -- of PUT and REMOVE: source table and row, object type and id
      data     bytea, -- of PUT
      PRIMARY KEY (bucket, op)
    ) WITH (autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_insert_scale_factor = 0.1)
  $sql$, stream);
  -- What is known of the source rows.
  EXECUTE format($sql$
    CREATE TABLE records_%1$s (
      tbl   uuid NOT NULL,
      rid   uuid NOT NULL,
      value bytea NOT NULL,
      PRIMARY KEY (tbl, rid)
    ) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.1)
  $sql$, stream);
  -- The parameter index, with its versions.
  EXECUTE format($sql$
    CREATE TABLE lookups_%1$s (
      lookup uuid NOT NULL, -- hash
      tbl    uuid NOT NULL,
      rid    uuid NOT NULL,
      op     int8 NOT NULL,
      vals   bytea NOT NULL -- '' = removed
    ) WITH (autovacuum_vacuum_scale_factor = 0.1)
  $sql$, stream);
  EXECUTE format('CREATE UNIQUE INDEX ON lookups_%s (lookup, tbl, rid, op DESC)', stream);
  EXECUTE format('CREATE TABLE progress_%s (tbl uuid PRIMARY KEY, value bytea NOT NULL) WITH (fillfactor = 50)', stream);
  EXECUTE format('CREATE TABLE users_%s (LIKE users INCLUDING ALL)', stream);
  -- LZ4 where the server has it: it is several times faster than its own way.
  IF current_setting('server_version_num')::int >= 140000 THEN
    BEGIN
      EXECUTE format('ALTER TABLE ops_%s ALTER COLUMN data SET COMPRESSION lz4', stream);
      EXECUTE format('ALTER TABLE records_%s ALTER COLUMN value SET COMPRESSION lz4', stream);
    EXCEPTION WHEN feature_not_supported THEN
      NULL;
    END;
  END IF;
END
$make$;

CREATE FUNCTION drop_stream(stream int8) RETURNS void LANGUAGE plpgsql AS $drop$
BEGIN
  EXECUTE format('DROP TABLE IF EXISTS buckets_%1$s, ops_%1$s, records_%1$s, lookups_%1$s, progress_%1$s, users_%1$s', stream);
END
$drop$;
