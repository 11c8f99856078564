-- What K2 adds to the engine's SQL: SUBSCRIBE and k2_changes, as ways round the lock-down.

-- PERMISSION_DENIED: SUBSCRIBE to a reader of files
SUBSCRIBE (SELECT * FROM read_text('{file}'))
-- PERMISSION_DENIED: SUBSCRIBE to a file in the place of a table
SUBSCRIBE (SELECT * FROM '{file}')
-- PERMISSION_DENIED: SUBSCRIBE to a file, quoted
SUBSCRIBE (FROM "{file}")
-- PERMISSION_DENIED: SUBSCRIBE with a reader of files in WHERE
SUBSCRIBE (SELECT trade_id FROM market.trades WHERE symbol IN (SELECT content FROM read_text('{file}')))
-- PERMISSION_DENIED | INVALID_ARGUMENT: SUBSCRIBE to the data file itself
SUBSCRIBE (FROM read_parquet('{data}'))
-- INVALID_ARGUMENT: SUBSCRIBE to the tail's own tables
SUBSCRIBE (FROM k2.tail.positions)
-- INVALID_ARGUMENT: SUBSCRIBE to a research table
SUBSCRIBE (FROM research.mine)
-- NOT_FOUND: SUBSCRIBE to another session's tables
SUBSCRIBE (FROM theirs)
-- NOT_FOUND | INVALID_ARGUMENT: SUBSCRIBE to one's own
SUBSCRIBE (FROM scratch)
-- INVALID_ARGUMENT: SUBSCRIBE to a table by its name as a text
SUBSCRIBE (FROM query_table('trades'))
-- INVALID_ARGUMENT | PERMISSION_DENIED: SUBSCRIBE to a query as a text
SUBSCRIBE (FROM query('SELECT * FROM market.trades'))
-- PERMISSION_DENIED: SUBSCRIBE to the engine's own tables
SUBSCRIBE (FROM duckdb_settings())
-- INVALID_ARGUMENT | PERMISSION_DENIED: SUBSCRIBE to the environment
SUBSCRIBE (SELECT getenv('K2_ATTACK_SECRET') FROM market.trades)
-- PERMISSION_DENIED: SUBSCRIBE to a setting
SUBSCRIBE (SELECT current_setting('temp_directory') FROM market.trades)
-- UNIMPLEMENTED | INVALID_ARGUMENT: SUBSCRIBE to a change
SUBSCRIBE (INSERT INTO research.mine VALUES (2) RETURNING a)
-- INVALID_ARGUMENT: SUBSCRIBE to a drop
SUBSCRIBE (DROP TABLE research.mine)
-- INVALID_ARGUMENT: SUBSCRIBE with a second statement inside
SUBSCRIBE (SELECT trade_id FROM market.trades; DROP TABLE research.mine)
-- INVALID_ARGUMENT: SUBSCRIBE with a second statement behind
SUBSCRIBE (SELECT trade_id FROM market.trades); DROP TABLE research.mine
-- INVALID_ARGUMENT: SUBSCRIBE with a second statement behind its cut
SUBSCRIBE (SELECT trade_id FROM market.trades) FROM CUT 'x'; DROP TABLE research.mine
-- INVALID_ARGUMENT: SUBSCRIBE that closes its parenthesis itself
SUBSCRIBE (SELECT trade_id FROM market.trades) UNION ALL (SELECT 1)
-- INVALID_ARGUMENT: SUBSCRIBE with a parenthesis in a comment
SUBSCRIBE (SELECT trade_id FROM market.trades -- )
-- INVALID_ARGUMENT: SUBSCRIBE behind a comment, in a SUBSCRIBE
/* SUBSCRIBE */ SUBSCRIBE (SUBSCRIBE (SELECT trade_id FROM market.trades))
-- INVALID_ARGUMENT: SUBSCRIBE as a table
SELECT * FROM (SUBSCRIBE (SELECT trade_id FROM market.trades))
-- INVALID_ARGUMENT: SUBSCRIBE as a new table
CREATE TABLE research.evil AS SUBSCRIBE (SELECT trade_id FROM market.trades)
-- INVALID_ARGUMENT: SUBSCRIBE from a cut that is SQL
SUBSCRIBE (SELECT trade_id FROM market.trades) FROM CUT '0'' OR 1=1 --'
-- INVALID_ARGUMENT: SUBSCRIBE from a cut whose names are SQL
SUBSCRIBE (SELECT trade_id FROM market.trades) FROM CUT '{"market.trades": {"snapshot": 1, "next": "1) OR (1=1"}}'
-- NOT_FOUND: SUBSCRIBE from a cut whose topic is SQL
SUBSCRIBE (SELECT trade_id FROM market.trades) FROM CUT '{"market.trades": {"snapshot": 1, "next": {"c": {"'') OR 1=1 --": {"0": 5}}}}}'
-- INVALID_ARGUMENT: rows of a join without end, as they arrive
SUBSCRIBE (SELECT a.trade_id FROM market.trades a, market.trades b)
-- INVALID_ARGUMENT: a row that becomes many
SUBSCRIBE (SELECT unnest(range(1000000)) FROM market.trades)
-- NOT_FOUND: changes of a file
FROM k2_changes('{file}')
-- NOT_FOUND: changes of the tail's own tables
FROM k2_changes('tail.positions')
-- NOT_FOUND: changes of a research table
FROM k2_changes('research.mine')
-- NOT_FOUND: changes of a table whose name is SQL
FROM k2_changes('market.trades" UNION ALL SELECT 1 --')
-- PERMISSION_DENIED: changes from a cut that reads bytes
FROM k2_changes('market.trades', (SELECT content FROM read_blob('{file}')))
-- PERMISSION_DENIED: changes from a cut that reads a file
FROM k2_changes('market.trades', (SELECT content FROM read_text('{file}')))
-- INVALID_ARGUMENT: changes from a cut that reads a table
FROM k2_changes('market.trades', (SELECT max(message_id) FROM market.trades))
-- INVALID_ARGUMENT: changes from a cut that is SQL
FROM k2_changes('market.trades', '1) OR (1=1')
-- INVALID_ARGUMENT | NOT_FOUND: changes through another name
FROM main.k2_changes('market.trades')
-- INVALID_ARGUMENT | UNIMPLEMENTED: changes in a change of the market
INSERT INTO research.mine SELECT trade_id FROM k2_changes('market.trades', 'x')
