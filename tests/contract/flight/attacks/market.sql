-- Changing what is not the session's: the market, the tail, the catalog; by any name that may lead there.

-- PERMISSION_DENIED: INSERT
INSERT INTO market.trades SELECT * FROM market.trades
-- PERMISSION_DENIED: INSERT, the whole name
INSERT INTO k2.market.trades SELECT * FROM market.trades
-- PERMISSION_DENIED: INSERT, quoted
INSERT INTO "k2"."market"."trades" SELECT * FROM market.trades
-- PERMISSION_DENIED: INSERT OR REPLACE
INSERT OR REPLACE INTO market.trades SELECT * FROM market.trades
-- PERMISSION_DENIED | INVALID_ARGUMENT: INSERT by position in a comment
INSERT /* scratch */ INTO market.trades DEFAULT VALUES
-- PERMISSION_DENIED: UPDATE
UPDATE market.trades SET price = 0
-- PERMISSION_DENIED: UPDATE behind a common table expression
WITH x AS (SELECT 1) UPDATE market.trades SET price = 0
-- PERMISSION_DENIED: DELETE
DELETE FROM market.trades
-- PERMISSION_DENIED: DELETE behind a common table expression
WITH x AS (SELECT 1) DELETE FROM market.trades
-- PERMISSION_DENIED: TRUNCATE
TRUNCATE market.trades
-- PERMISSION_DENIED | UNIMPLEMENTED: MERGE
MERGE INTO market.trades USING scratch ON false WHEN NOT MATCHED THEN INSERT DEFAULT VALUES
-- PERMISSION_DENIED: DROP VIEW
DROP VIEW market.trades
-- PERMISSION_DENIED: DROP TABLE
DROP TABLE market.trades
-- PERMISSION_DENIED: DROP TABLE IF EXISTS
DROP TABLE IF EXISTS market.trades
-- PERMISSION_DENIED | UNIMPLEMENTED: DROP SCHEMA
DROP SCHEMA market CASCADE
-- PERMISSION_DENIED | UNIMPLEMENTED: DROP SCHEMA of the tail
DROP SCHEMA k2.tail CASCADE
-- PERMISSION_DENIED | UNIMPLEMENTED | INVALID_ARGUMENT: DROP DATABASE
DROP DATABASE k2
-- PERMISSION_DENIED: ALTER
ALTER TABLE market.trades ADD COLUMN evil INTEGER
-- PERMISSION_DENIED: ALTER VIEW
ALTER VIEW market.trades RENAME TO stolen
-- PERMISSION_DENIED: CREATE TABLE in market
CREATE TABLE market.evil (a INTEGER)
-- PERMISSION_DENIED: CREATE TABLE AS in market
CREATE TABLE market.evil AS SELECT 1 AS a
-- PERMISSION_DENIED: CREATE OR REPLACE VIEW over trades
CREATE OR REPLACE VIEW market.trades AS SELECT 1 AS price
-- PERMISSION_DENIED: CREATE OR REPLACE VIEW over trades, the whole name
CREATE OR REPLACE VIEW k2.market.trades AS SELECT 1 AS price
-- PERMISSION_DENIED: INSERT into the tail
INSERT INTO k2.tail.positions VALUES (1, 1)
-- PERMISSION_DENIED: UPDATE of the tail
UPDATE tail.positions SET next_offset = 0
-- PERMISSION_DENIED: DELETE from the tail
DELETE FROM k2.tail.positions
-- PERMISSION_DENIED: CREATE TABLE in the tail
CREATE TABLE k2.tail.evil (a INTEGER)
-- PERMISSION_DENIED | UNIMPLEMENTED | INVALID_ARGUMENT: CREATE INDEX
CREATE INDEX evil ON market.trades (price)
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: CREATE TABLE in main
CREATE TABLE memory.main.evil (a INTEGER)
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: CREATE VIEW in main
CREATE VIEW k2.main.evil AS SELECT 1
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: CREATE TABLE in the system catalog
CREATE TABLE system.main.evil (a INTEGER)
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: CREATE VIEW in pg_catalog
CREATE VIEW pg_catalog.evil AS SELECT 1
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: INSERT into ops
INSERT INTO ops.sessions SELECT * FROM ops.sessions
-- PERMISSION_DENIED | NOT_FOUND | INVALID_ARGUMENT: DROP of ops
DROP VIEW ops.statements
-- NOT_FOUND | INVALID_ARGUMENT | PERMISSION_DENIED: KILL of what is not there
KILL SESSION 'everybody'
-- NOT_FOUND | INVALID_ARGUMENT | PERMISSION_DENIED: KILL with SQL in its id
KILL STATEMENT ''' OR 1 = 1 --'
-- NOT_FOUND | INVALID_ARGUMENT: the scratch of another session
SELECT * FROM theirs
-- NOT_FOUND | INVALID_ARGUMENT: the scratch of another session, the whole name
SELECT * FROM temp.main.theirs
-- NOT_FOUND | INVALID_ARGUMENT: the scratch of another session by query_table
SELECT * FROM query_table('theirs')
-- NOT_FOUND | INVALID_ARGUMENT | PERMISSION_DENIED: changing the scratch of another session
DELETE FROM theirs
-- NOT_FOUND | INVALID_ARGUMENT | PERMISSION_DENIED: dropping the scratch of another session
DROP TABLE theirs
-- PERMISSION_DENIED | INVALID_ARGUMENT: a research table whose name leads out of the warehouse
CREATE TABLE research."../../evil" AS SELECT 1 AS a
-- PERMISSION_DENIED | INVALID_ARGUMENT: a research table whose name is a path
CREATE TABLE research."/tmp/evil" AS SELECT 1 AS a
-- PERMISSION_DENIED | INVALID_ARGUMENT: a research table whose name holds quotes
CREATE TABLE research."a' OR 'b" AS SELECT 1 AS a
-- PERMISSION_DENIED | INVALID_ARGUMENT | NOT_FOUND: another namespace of the catalog
CREATE TABLE k2.secret_namespace.evil AS SELECT 1 AS a
