SELECT drop_stream(stream) FROM heads;
DROP FUNCTION make_stream(int8), drop_stream(int8);
DROP TABLE owner, users, heads, streams;
