-- The process that writes has the right to do so for a time, and renews it.
ALTER TABLE owner
  ADD COLUMN holder  text NOT NULL DEFAULT '', -- application_name of the sessions in which it writes
  ADD COLUMN address text NOT NULL DEFAULT '', -- where the others find it
  ADD COLUMN until   timestamptz NOT NULL DEFAULT '-infinity';

-- How often streams, their states or their configs were changed.
CREATE TABLE catalog (version int8 NOT NULL);
INSERT INTO catalog VALUES (0);

-- fence ends a transaction that writes unless it is of the owner (0 = not one), and else
-- keeps the next owner waiting until the transaction has ended. It takes the
-- lock first, and each statement of it sees what was committed before: so the
-- epoch is the one of then.
CREATE FUNCTION fence(lock int8, mine int8) RETURNS void LANGUAGE plpgsql AS $fence$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(lock);
  IF mine = 0 OR mine <> (SELECT epoch FROM owner) THEN
    RAISE EXCEPTION 'not the owner' USING ERRCODE = 'SL001';
  END IF;
END
$fence$;
