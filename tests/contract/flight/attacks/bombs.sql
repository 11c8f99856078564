-- Work and memory without end: each is refused or stopped, and the server goes on.

-- DEADLINE_EXCEEDED: recursion without end
WITH RECURSIVE bomb AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM bomb) SELECT count(*) FROM bomb
-- DEADLINE_EXCEEDED | UNKNOWN: a cross join
SELECT count(*) FROM range(1000000) AS a, range(1000000) AS b, range(1000000) AS c WHERE a.range + b.range + c.range = 7
-- OK | UNKNOWN | INVALID_ARGUMENT | DEADLINE_EXCEEDED: a huge string, which one function makes without looking up
SELECT length(repeat('x', 200000000))
-- UNKNOWN | INVALID_ARGUMENT: a huge list
SELECT len(range(1000000000000))
-- UNKNOWN | DEADLINE_EXCEEDED: a huge list made of rows
SELECT list(range) FROM range(10000000000)
-- UNKNOWN | DEADLINE_EXCEEDED: a huge sort
SELECT max(b) FROM (SELECT hash(range) AS a, repeat('x', 1000) AS b FROM range(100000000) ORDER BY a LIMIT 50000000)
-- UNKNOWN | DEADLINE_EXCEEDED: a huge hash table
SELECT count(*) FROM (SELECT range, repeat('x', 100) FROM range(1000000000) GROUP BY ALL)
-- UNKNOWN | INVALID_ARGUMENT | DEADLINE_EXCEEDED: a power set
SELECT [a, b, c] FROM (SELECT unnest(range(100000)) AS a, unnest(range(100000)) AS b), (SELECT unnest(range(10000000)) AS c) ORDER BY ALL
-- OK | UNKNOWN | INVALID_ARGUMENT | DEADLINE_EXCEEDED: padding, the same
SELECT length(lpad('x', 100000000, 'y'))
-- UNKNOWN | INVALID_ARGUMENT | DEADLINE_EXCEEDED: a regular expression that backtracks
SELECT max(regexp_matches(repeat('a', 1000) || range, '(a|aa)+$')) FROM range(1000000000)
-- UNKNOWN | INVALID_ARGUMENT | DEADLINE_EXCEEDED: scratch that fills memory
CREATE TEMP TABLE bomb AS SELECT range AS n, repeat('x', 1000) AS s FROM range(1000000000)
