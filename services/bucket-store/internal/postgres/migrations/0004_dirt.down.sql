DO $$
DECLARE
  name text;
BEGIN
  FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND tablename ~ '^buckets_[0-9]+$' LOOP
    EXECUTE format('ALTER TABLE %I DROP COLUMN dirt', name);
  END LOOP;
END
$$;

DROP FUNCTION make_stream(int8);
ALTER FUNCTION make_stream_without_dirt(int8) RENAME TO make_stream;
DROP FUNCTION add_dirt(int8);
