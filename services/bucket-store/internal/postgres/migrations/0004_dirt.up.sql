-- The dirt of each bucket, as store.Dirt has it, and an index over it. It changes
-- only a few times between two compactions, so most updates of a bucket's row
-- leave the index alone and stay within its page.

CREATE FUNCTION add_dirt(stream int8) RETURNS void LANGUAGE plpgsql AS $add$
BEGIN
  EXECUTE format($sql$
    ALTER TABLE buckets_%1$s ADD COLUMN dirt int2 NOT NULL GENERATED ALWAYS AS
      (CASE WHEN changes <= 0 OR changes < count / 10 THEN 0 ELSE 65 - position(B'1' IN changes::bit(64)) END) STORED
  $sql$, stream);
  EXECUTE format('CREATE INDEX ON buckets_%s (dirt) WHERE dirt > 0', stream);
END
$add$;

ALTER FUNCTION make_stream(int8) RENAME TO make_stream_without_dirt;

CREATE FUNCTION make_stream(stream int8) RETURNS void LANGUAGE plpgsql AS $make$
BEGIN
  PERFORM make_stream_without_dirt(stream);
  PERFORM add_dirt(stream);
END
$make$;

DO $$
DECLARE
  name text;
BEGIN
  FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND tablename ~ '^buckets_[0-9]+$' LOOP
    PERFORM add_dirt(substring(name FROM 9)::int8);
  END LOOP;
END
$$;
