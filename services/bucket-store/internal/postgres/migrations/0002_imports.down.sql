ALTER TABLE owner DROP COLUMN importing, DROP COLUMN last_stream;
