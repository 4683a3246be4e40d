-- importing: what is here is part of a copy from another storage, and no store
-- yet. last_stream: a stream id that was used, in that storage, and may be higher
-- than those that are here.
ALTER TABLE owner ADD COLUMN importing bool NOT NULL DEFAULT false, ADD COLUMN last_stream int8 NOT NULL DEFAULT 0;
