-- DuckDB's own words: FROM first, EXCLUDE, COLUMNS, list comprehension, unnest, QUALIFY, a trailing comma.
from (select unnest([3, 1, 2]) as a, 'x' as b, 'y' as c,) select * exclude (c), [i * 10 for i in range(a)] as tens order by a
