DROP FUNCTION fence(int8, int8);
DROP TABLE catalog;
ALTER TABLE owner DROP COLUMN holder, DROP COLUMN address, DROP COLUMN until;
