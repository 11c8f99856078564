-- Reading files by functions, by names, by whatever the parser or a replacement scan takes for a file.
-- Each attack stands under a header `-- <STATUS>[ | <STATUS>...]: <what it tries>[ with <parameter>]`.
-- {file} holds a secret outside of the warehouse, {data} is a Parquet file and {metadata} the metadata of a research
-- table inside of it, {folder} is a folder that can be written.

-- PERMISSION_DENIED: read_csv
SELECT * FROM read_csv('{file}')
-- PERMISSION_DENIED: read_csv_auto
SELECT * FROM read_csv_auto('{file}')
-- PERMISSION_DENIED: read_text
SELECT content FROM read_text('{file}')
-- PERMISSION_DENIED: read_blob
SELECT content FROM read_blob('{file}')
-- PERMISSION_DENIED: sniff_csv
SELECT * FROM sniff_csv('{file}')
-- PERMISSION_DENIED: glob
SELECT * FROM glob('/etc/*')
-- PERMISSION_DENIED: read_json
SELECT * FROM read_json('{file}')
-- PERMISSION_DENIED: read_json_auto
SELECT * FROM read_json_auto('{file}')
-- PERMISSION_DENIED: read_json_objects
SELECT * FROM read_json_objects('{file}')
-- PERMISSION_DENIED: read_ndjson
SELECT * FROM read_ndjson('{file}')
-- PERMISSION_DENIED: read_ndjson_auto
SELECT * FROM read_ndjson_auto('{file}')
-- PERMISSION_DENIED: read_parquet of the warehouse, round the cut
SELECT * FROM read_parquet('{data}')
-- PERMISSION_DENIED: parquet_scan
SELECT * FROM parquet_scan('{data}')
-- PERMISSION_DENIED: parquet_metadata
SELECT * FROM parquet_metadata('{data}')
-- PERMISSION_DENIED: parquet_schema
SELECT * FROM parquet_schema('{data}')
-- PERMISSION_DENIED: parquet_file_metadata
SELECT * FROM parquet_file_metadata('{data}')
-- PERMISSION_DENIED: parquet_kv_metadata
SELECT * FROM parquet_kv_metadata('{data}')
-- PERMISSION_DENIED: parquet_bloom_probe
SELECT * FROM parquet_bloom_probe('{data}', 'a', 1)
-- PERMISSION_DENIED: parquet_full_metadata
SELECT * FROM parquet_full_metadata('{data}')
-- PERMISSION_DENIED: iceberg_scan
SELECT * FROM iceberg_scan('{metadata}')
-- PERMISSION_DENIED: iceberg_metadata
SELECT * FROM iceberg_metadata('{metadata}')
-- PERMISSION_DENIED: iceberg_snapshots
SELECT * FROM iceberg_snapshots('{metadata}')
-- PERMISSION_DENIED: read_avro
SELECT * FROM read_avro('{data}')
-- PERMISSION_DENIED: from a file's name, outside
FROM '{file}'
-- PERMISSION_DENIED | NOT_FOUND: from a quoted name that is a path
SELECT * FROM "{file}"
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: from a file's name, inside
SELECT * FROM '{data}'
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: from a quoted name, inside
SELECT * FROM "{data}"
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: from a file's URL, inside
SELECT * FROM 'file://{data}'
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: from a pattern of files
SELECT * FROM '{folder}/*.csv'
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: from a file over the network
SELECT * FROM 'http://127.0.0.1:1/secret.csv'
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: from a bucket
SELECT * FROM 's3://bucket/secret.parquet'
-- PERMISSION_DENIED: a space before the parenthesis
SELECT * FROM read_text ('{file}')
-- PERMISSION_DENIED: a comment before the parenthesis
SELECT * FROM read_text/* */('{file}')
-- PERMISSION_DENIED: a line comment before the parenthesis
SELECT * FROM read_text -- (
('{file}')
-- PERMISSION_DENIED: a quoted function name
SELECT * FROM "read_text"('{file}')
-- PERMISSION_DENIED: a quoted function name and a comment
SELECT * FROM "read_text" /*"*/ ('{file}')
-- PERMISSION_DENIED: upper case
SELECT * FROM READ_TEXT('{file}')
-- PERMISSION_DENIED: with its schema
SELECT * FROM main.read_text('{file}')
-- PERMISSION_DENIED: with its catalog and schema
SELECT * FROM system.main.read_text('{file}')
-- PERMISSION_DENIED: with its catalog and schema, quoted
SELECT * FROM "system"."main"."read_text"('{file}')
-- PERMISSION_DENIED | INVALID_ARGUMENT: in unicode escapes
SELECT * FROM U&"read\005ftext"('{file}')
-- PERMISSION_DENIED: after a no-break space
SELECT * FROM read_text ('{file}')
-- PERMISSION_DENIED | INVALID_ARGUMENT: after other spaces of unicode
SELECT * FROM read_text  ('{file}')
-- PERMISSION_DENIED | INVALID_ARGUMENT: after a tab and a form feed
SELECT * FROM read_text	('{file}')
-- PERMISSION_DENIED: in a subquery
SELECT (SELECT content FROM read_text('{file}'))
-- PERMISSION_DENIED: in a common table expression
WITH secret AS (FROM read_text('{file}')) SELECT * FROM secret
-- PERMISSION_DENIED: in a recursive one
WITH RECURSIVE secret AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM secret, read_text('{file}') WHERE n < 2) FROM secret
-- PERMISSION_DENIED: in a lateral join
SELECT * FROM (VALUES ('{file}')) AS files(name), LATERAL (SELECT * FROM read_text(name))
-- PERMISSION_DENIED: in a lambda
SELECT list_transform(['{file}'], lambda f: (SELECT content FROM read_text(f)))
-- PERMISSION_DENIED: in EXISTS
SELECT EXISTS (FROM read_text('{file}'))
-- PERMISSION_DENIED: in VALUES
VALUES ((SELECT content FROM read_text('{file}')))
-- PERMISSION_DENIED: in ORDER BY
SELECT 1 ORDER BY (SELECT content FROM read_text('{file}'))
-- PERMISSION_DENIED: in DESCRIBE
DESCRIBE FROM read_csv('{file}')
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: DESCRIBE of a file
DESCRIBE '{data}'
-- PERMISSION_DENIED: in SUMMARIZE
SUMMARIZE FROM read_csv('{file}')
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: SUMMARIZE of a file
SUMMARIZE '{data}'
-- PERMISSION_DENIED: in EXPLAIN ANALYZE
EXPLAIN ANALYZE SELECT * FROM read_text('{file}')
-- PERMISSION_DENIED: in EXPLAIN with options
EXPLAIN (ANALYZE, FORMAT json) SELECT * FROM read_text('{file}')
-- PERMISSION_DENIED | INVALID_ARGUMENT | UNIMPLEMENTED: in PIVOT
PIVOT (FROM read_csv('{file}')) ON column0 IN ('a') USING count(*)
-- PERMISSION_DENIED: by a parameter with {file}
SELECT * FROM read_text(?)
-- PERMISSION_DENIED: by a parameter with a name with {file}
SELECT * FROM read_csv($file)
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: by query_table
SELECT * FROM query_table('{file}')
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: by query_table, inside
SELECT * FROM query_table('{data}')
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: by query_table, several
SELECT * FROM query_table(['{data}', 'market.trades'], true)
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: by query_table and a parameter with {data}
SELECT * FROM query_table(?)
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: by query_table and a list of parameters with {data}
SELECT * FROM query_table([?])
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: a function inside query_table
SELECT * FROM query_table('read_text(''{file}'')')
-- PERMISSION_DENIED: SQL in a string
SELECT * FROM query('FROM read_text(''{file}'')')
-- PERMISSION_DENIED: SQL in a parameter with SELECT 1
SELECT * FROM query(?)
-- PERMISSION_DENIED: serialised SQL, as a function
SELECT json_execute_serialized_sql(json_serialize_sql('SELECT 1'))
-- PERMISSION_DENIED: serialised SQL, as a table
FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))
-- PERMISSION_DENIED: serialised SQL, as a PRAGMA
PRAGMA json_execute_serialized_sql('{serialised}')
-- PERMISSION_DENIED: serialised SQL, as a PRAGMA behind a comment
/* */ PRAGMA/**/"json_execute_serialized_sql"/**/('{serialised}')
-- PERMISSION_DENIED | INVALID_ARGUMENT: serialised SQL, as a PRAGMA, of nothing
PRAGMA json_execute_serialized_sql('{}')
-- PERMISSION_DENIED | INVALID_ARGUMENT | UNIMPLEMENTED: a function behind a semicolon
SELECT 1; SELECT * FROM read_text('{file}')
-- PERMISSION_DENIED: a macro that hides it
CREATE TEMP MACRO secret() AS TABLE SELECT * FROM read_text('{file}')
-- PERMISSION_DENIED: a view that hides it
CREATE TEMP VIEW secret AS SELECT * FROM read_text('{file}')
-- PERMISSION_DENIED: a view of a file's name
CREATE TEMP VIEW secret_file AS SELECT * FROM '{data}'
-- PERMISSION_DENIED: a view of a file's name, quoted
CREATE TEMP VIEW secret_file AS SELECT * FROM "{data}"
-- PERMISSION_DENIED: a view of a file's name in escapes
CREATE TEMP VIEW secret_file AS SELECT * FROM E'{data}'
-- PERMISSION_DENIED: a view of a file's name between dollars
CREATE TEMP VIEW secret_file AS SELECT * FROM $${data}$$
-- PERMISSION_DENIED: a view of a file's name behind a comma
CREATE TEMP VIEW secret_file AS SELECT * FROM scratch AS s JOIN scratch AS t ON s.a = t.a, '{data}'
-- PERMISSION_DENIED: a view of a file's name behind a comment
CREATE TEMP VIEW secret_file AS SELECT * FROM/**/'{data}'
-- PERMISSION_DENIED: a view of a file's name under an alias that stands first
CREATE TEMP VIEW secret_file AS SELECT * FROM f: '{data}'
-- PERMISSION_DENIED: a view of a file by query_table
CREATE TEMP VIEW secret_file AS SELECT * FROM query_table('{data}')
-- PERMISSION_DENIED: a view of a file by query_table, computed
CREATE TEMP VIEW secret_file AS SELECT * FROM query_table(concat('{data}', ''))
-- PERMISSION_DENIED: a view of a file by query_table and a parameter with {data}
CREATE TEMP TABLE secret_file AS SELECT * FROM query_table(?)
-- PERMISSION_DENIED: a table of a file's name
CREATE TEMP TABLE secret_file AS FROM '{data}'
-- PERMISSION_DENIED: a file's name inserted
INSERT INTO scratch SELECT a FROM '{data}'
-- PERMISSION_DENIED: a file's name inserted, behind a list of columns
INSERT INTO scratch (a) FROM "{data}"
-- PERMISSION_DENIED: a file's name in an update
UPDATE scratch SET a = (SELECT max(a) FROM '{data}')
-- PERMISSION_DENIED: a file's name in an update's FROM
UPDATE scratch SET a = f.a FROM '{data}' AS f
-- PERMISSION_DENIED: a file's name in a delete
DELETE FROM scratch USING '{data}' AS f WHERE scratch.a = f.a
-- PERMISSION_DENIED: a file's name in a merge
MERGE INTO scratch USING '{data}' AS f ON true WHEN NOT MATCHED THEN INSERT (a) VALUES (f.a)
-- PERMISSION_DENIED: a table made of it
CREATE TEMP TABLE secret AS SELECT * FROM read_text('{file}')
-- PERMISSION_DENIED: a table in research made of it
CREATE TABLE research.secret AS SELECT * FROM read_text('{file}')
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: a table in research made of a file's name
CREATE TABLE research.secret AS SELECT * FROM '{data}'
-- PERMISSION_DENIED: a default that reads it
CREATE TEMP TABLE secret (a VARCHAR DEFAULT (SELECT content FROM read_text('{file}')))
-- PERMISSION_DENIED: inserted
INSERT INTO scratch SELECT length(content) FROM read_text('{file}')
-- PERMISSION_DENIED: in an update
UPDATE scratch SET a = (SELECT length(content) FROM read_text('{file}'))
-- PERMISSION_DENIED: in a delete
DELETE FROM scratch USING read_text('{file}') AS f WHERE length(f.content) > 0
-- PERMISSION_DENIED | INVALID_ARGUMENT | UNIMPLEMENTED: in a merge
MERGE INTO scratch USING read_text('{file}') AS f ON true WHEN MATCHED THEN DELETE
-- PERMISSION_DENIED | INVALID_ARGUMENT: as a scalar function
SELECT read_text('{file}')
-- PERMISSION_DENIED | INVALID_ARGUMENT: as a method
SELECT '{file}'.read_text()
-- PERMISSION_DENIED | INVALID_ARGUMENT | NOT_FOUND: as a positional join with a file
SELECT * FROM market.trades POSITIONAL JOIN '{data}'
-- PERMISSION_DENIED: AT of a file
SELECT * FROM '{data}' AT (VERSION => 1)
