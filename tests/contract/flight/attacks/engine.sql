-- Reaching beyond the session: files written, databases attached, extensions, settings, the server's own state.

-- PERMISSION_DENIED: COPY a table out
COPY market.trades TO '{folder}/stolen.csv'
-- PERMISSION_DENIED: COPY a query out
COPY (SELECT 1) TO '{folder}/stolen.parquet' (FORMAT parquet)
-- PERMISSION_DENIED: COPY to a program's input
COPY (SELECT 1) TO '/dev/stdout'
-- PERMISSION_DENIED: COPY in
COPY scratch FROM '{file}'
-- PERMISSION_DENIED | UNIMPLEMENTED: COPY a database
COPY FROM DATABASE k2 TO memory
-- PERMISSION_DENIED: EXPORT
EXPORT DATABASE '{folder}'
-- PERMISSION_DENIED | INVALID_ARGUMENT: IMPORT
IMPORT DATABASE '{folder}'
-- PERMISSION_DENIED: ATTACH a file
ATTACH '{folder}/evil.db' AS evil
-- PERMISSION_DENIED: ATTACH in memory
ATTACH ':memory:' AS evil
-- PERMISSION_DENIED: ATTACH with an extension's type
ATTACH 'host=127.0.0.1' AS evil (TYPE postgres)
-- PERMISSION_DENIED: ATTACH IF NOT EXISTS
ATTACH IF NOT EXISTS '{folder}/evil.db'
-- PERMISSION_DENIED: DETACH
DETACH k2
-- PERMISSION_DENIED: DETACH DATABASE IF EXISTS
DETACH DATABASE IF EXISTS k2
-- PERMISSION_DENIED: INSTALL
INSTALL httpfs
-- PERMISSION_DENIED: FORCE INSTALL from somewhere
FORCE INSTALL evil FROM '{folder}'
-- PERMISSION_DENIED: LOAD
LOAD httpfs
-- PERMISSION_DENIED: LOAD a file
LOAD '{folder}/evil.duckdb_extension'
-- PERMISSION_DENIED: UPDATE EXTENSIONS
UPDATE EXTENSIONS
-- PERMISSION_DENIED: SET external access
SET enable_external_access = true
-- PERMISSION_DENIED: SET GLOBAL external access
SET GLOBAL enable_external_access = true
-- PERMISSION_DENIED: SET with a quoted name
SET "enable_external_access" = true
-- PERMISSION_DENIED: SET allowed directories
SET allowed_directories = ['/']
-- PERMISSION_DENIED: SET lock_configuration
SET lock_configuration = false
-- PERMISSION_DENIED: SET allowed_configs
SET allowed_configs = ['threads']
-- PERMISSION_DENIED: SET memory
SET memory_limit = '1TB'
-- PERMISSION_DENIED: SET threads
SET threads = 1000
-- PERMISSION_DENIED: SET a temporary directory
SET temp_directory = '{folder}'
-- PERMISSION_DENIED: SET home
SET home_directory = '/'
-- PERMISSION_DENIED: SET a log file
SET log_query_path = '{folder}/log'
-- PERMISSION_DENIED: SET a profile's file
SET profiling_output = '{folder}/profile'
-- PERMISSION_DENIED: SET a secret's folder
SET secret_directory = '{folder}'
-- PERMISSION_DENIED: SET python scans
SET python_enable_replacements = true
-- PERMISSION_DENIED: SET python scans of all frames
SET python_scan_all_frames = true
-- PERMISSION_DENIED | INVALID_ARGUMENT: SET the search path
SET search_path = 'tail'
-- PERMISSION_DENIED | INVALID_ARGUMENT: SET schema to the tail
SET schema = 'tail'
-- PERMISSION_DENIED | INVALID_ARGUMENT | NOT_FOUND: USE the tail
USE k2.tail
-- PERMISSION_DENIED | INVALID_ARGUMENT | NOT_FOUND: USE the system
USE system.main
-- PERMISSION_DENIED: RESET
RESET enable_external_access
-- PERMISSION_DENIED: RESET GLOBAL
RESET GLOBAL lock_configuration
-- PERMISSION_DENIED: SET VARIABLE
SET VARIABLE x = 1
-- PERMISSION_DENIED: PRAGMA as a setting
PRAGMA enable_external_access = true
-- PERMISSION_DENIED: PRAGMA memory
PRAGMA memory_limit = '1TB'
-- PERMISSION_DENIED: PRAGMA profiling
PRAGMA enable_profiling = 'json'
-- PERMISSION_DENIED: PRAGMA without a value
PRAGMA enable_profiling
-- PERMISSION_DENIED | INVALID_ARGUMENT: PRAGMA enable_logging
PRAGMA enable_logging
-- PERMISSION_DENIED: PRAGMA force_checkpoint
PRAGMA force_checkpoint
-- PERMISSION_DENIED | INVALID_ARGUMENT: PRAGMA import_database
PRAGMA import_database('{folder}')
-- PERMISSION_DENIED | INVALID_ARGUMENT: PRAGMA with a call
PRAGMA storage_info('market.trades')
-- PERMISSION_DENIED: CALL enable_logging
CALL enable_logging(storage = 'file', storage_path = '{folder}/log')
-- PERMISSION_DENIED: CALL a checkpoint
CALL force_checkpoint('k2')
-- PERMISSION_DENIED | INVALID_ARGUMENT | UNIMPLEMENTED: CHECKPOINT
CHECKPOINT
-- PERMISSION_DENIED | INVALID_ARGUMENT | UNIMPLEMENTED: FORCE CHECKPOINT
FORCE CHECKPOINT k2
-- PERMISSION_DENIED: VACUUM
VACUUM
-- PERMISSION_DENIED: ANALYZE
ANALYZE
-- PERMISSION_DENIED: enable_logging as a table
SELECT * FROM enable_logging(storage = 'file', storage_path = '{folder}/log')
-- PERMISSION_DENIED: disable_logging
SELECT * FROM disable_logging()
-- PERMISSION_DENIED: enable_profiling as a table
SELECT * FROM enable_profiling()
-- PERMISSION_DENIED: write_log
SELECT write_log('forged')
-- PERMISSION_DENIED: duckdb_logs as a function
SELECT * FROM duckdb_logs()
-- PERMISSION_DENIED: duckdb_logs as a view
SELECT * FROM duckdb_logs
-- PERMISSION_DENIED: duckdb_secrets
SELECT * FROM duckdb_secrets()
-- PERMISSION_DENIED: which_secret
SELECT * FROM which_secret('s3://bucket', 's3')
-- PERMISSION_DENIED: duckdb_settings
SELECT * FROM duckdb_settings()
-- PERMISSION_DENIED | NOT_FOUND: duckdb_settings as a view
SELECT * FROM duckdb_settings
-- PERMISSION_DENIED: duckdb_extensions
SELECT * FROM duckdb_extensions()
-- PERMISSION_DENIED: duckdb_temporary_files
SELECT * FROM duckdb_temporary_files()
-- PERMISSION_DENIED: duckdb_external_file_cache
SELECT * FROM duckdb_external_file_cache()
-- PERMISSION_DENIED | INVALID_ARGUMENT: duckdb_connections
SELECT * FROM duckdb_connections()
-- PERMISSION_DENIED: duckdb_prepared_statements
SELECT * FROM duckdb_prepared_statements()
-- PERMISSION_DENIED: duckdb_variables
SELECT * FROM duckdb_variables()
-- PERMISSION_DENIED: duckdb_memory
SELECT * FROM duckdb_memory()
-- PERMISSION_DENIED: pragma_storage_info
SELECT * FROM pragma_storage_info('market.trades')
-- PERMISSION_DENIED: pragma_metadata_info
SELECT * FROM pragma_metadata_info('k2')
-- PERMISSION_DENIED: force_checkpoint
SELECT * FROM force_checkpoint('k2')
-- PERMISSION_DENIED: checkpoint
SELECT * FROM checkpoint('k2')
-- PERMISSION_DENIED | INVALID_ARGUMENT: getenv
SELECT getenv('K2_ATTACK_SECRET')
-- PERMISSION_DENIED: current_setting of a path
SELECT current_setting('allowed_directories')
-- PERMISSION_DENIED: current_setting of a path by a parameter with allowed_directories
SELECT current_setting(?)
-- PERMISSION_DENIED: current_setting of a path behind the one that is allowed
SELECT current_setting('timezone'), current_setting('allowed_directories')
-- PERMISSION_DENIED: current_setting in a view
CREATE TEMP VIEW settings AS SELECT current_setting('allowed_directories') AS a
-- PERMISSION_DENIED: pg_settings
SELECT * FROM pg_catalog.pg_settings
-- PERMISSION_DENIED: sqlite_master, which has the texts of views
SELECT * FROM sqlite_master
-- PERMISSION_DENIED: sqlite_schema
SELECT * FROM sqlite_schema
-- PERMISSION_DENIED | INVALID_ARGUMENT: getvariable
SELECT getvariable('x') FROM duckdb_settings()
-- PERMISSION_DENIED: arrow_scan by pointers
SELECT * FROM arrow_scan(1, 2, 3)
-- PERMISSION_DENIED: arrow_scan_dumb
SELECT * FROM arrow_scan_dumb(1, 2, 3)
-- PERMISSION_DENIED: pandas_scan by a pointer
SELECT * FROM pandas_scan(1)
-- PERMISSION_DENIED: python_map_function by a pointer
SELECT * FROM python_map_function(1)
-- PERMISSION_DENIED: seq_scan
SELECT * FROM seq_scan()
-- PERMISSION_DENIED | INVALID_ARGUMENT: index_scan
SELECT * FROM index_scan()
-- PERMISSION_DENIED: test_vector_types
SELECT * FROM test_vector_types(NULL::INTEGER)
-- NOT_FOUND | INVALID_ARGUMENT: a variable of the server's Python, a module
SELECT * FROM duckdb
-- NOT_FOUND | INVALID_ARGUMENT: a variable of the server's Python, a local one
SELECT * FROM statement
-- NOT_FOUND | INVALID_ARGUMENT: a variable of the server's Python, an attribute
SELECT * FROM self
-- NOT_FOUND | INVALID_ARGUMENT: what the publisher registers
SELECT * FROM k2_rows
-- NOT_FOUND | INVALID_ARGUMENT | PERMISSION_DENIED: the tail
SELECT * FROM k2.tail.positions
-- NOT_FOUND | INVALID_ARGUMENT | PERMISSION_DENIED: the tail, its catalog left out
SELECT * FROM tail.positions
-- NOT_FOUND | INVALID_ARGUMENT | PERMISSION_DENIED: the tail by query_table
SELECT * FROM query_table('k2.tail.positions')
-- NOT_FOUND | INVALID_ARGUMENT | PERMISSION_DENIED: the tail by query_table and a parameter with k2.tail.positions
SELECT * FROM query_table(?)
-- PERMISSION_DENIED | UNIMPLEMENTED: PREPARE by SQL
PREPARE evil AS SELECT * FROM read_text(?)
-- PERMISSION_DENIED | UNIMPLEMENTED: EXECUTE by SQL
EXECUTE evil('{file}')
-- PERMISSION_DENIED | UNIMPLEMENTED: DEALLOCATE
DEALLOCATE evil
-- PERMISSION_DENIED | UNIMPLEMENTED: CREATE SECRET
CREATE SECRET evil (TYPE s3, KEY_ID 'a', SECRET 'b')
-- PERMISSION_DENIED | UNIMPLEMENTED: CREATE PERSISTENT SECRET
CREATE PERSISTENT SECRET evil (TYPE s3, KEY_ID 'a', SECRET 'b')
-- PERMISSION_DENIED | UNIMPLEMENTED | INVALID_ARGUMENT: DROP SECRET
DROP SECRET evil
-- PERMISSION_DENIED | UNIMPLEMENTED: CREATE MACRO
CREATE MACRO evil(a) AS a + 1
-- PERMISSION_DENIED | UNIMPLEMENTED: CREATE FUNCTION
CREATE FUNCTION evil(a) AS a + 1
-- PERMISSION_DENIED | UNIMPLEMENTED: CREATE TYPE
CREATE TYPE evil AS ENUM ('a')
-- PERMISSION_DENIED | UNIMPLEMENTED: CREATE SEQUENCE
CREATE SEQUENCE evil
-- PERMISSION_DENIED | UNIMPLEMENTED: CREATE SCHEMA
CREATE SCHEMA evil
-- PERMISSION_DENIED | UNIMPLEMENTED: CREATE SCHEMA in the catalog
CREATE SCHEMA k2.evil
-- PERMISSION_DENIED | UNIMPLEMENTED | INVALID_ARGUMENT: CREATE DATABASE
CREATE DATABASE evil
-- PERMISSION_DENIED | UNIMPLEMENTED | INVALID_ARGUMENT: CREATE TRIGGER
CREATE TRIGGER evil AFTER INSERT ON market.trades BEGIN SELECT 1; END
-- PERMISSION_DENIED | UNIMPLEMENTED | INVALID_ARGUMENT: COMMENT
COMMENT ON TABLE market.trades IS 'forged'
-- PERMISSION_DENIED | UNIMPLEMENTED | INVALID_ARGUMENT: a multiple statement that ends the transaction
SELECT 1; COMMIT; DROP VIEW market.trades
-- PERMISSION_DENIED | UNIMPLEMENTED | INVALID_ARGUMENT: a commit before a change
COMMIT; BEGIN; CREATE TABLE market.evil (a INTEGER)
-- PERMISSION_DENIED | UNIMPLEMENTED | INVALID_ARGUMENT: a statement behind a comment's end
/* */ SELECT 1 /* ; */; ATTACH ':memory:' AS evil --
