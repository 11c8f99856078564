-- 1,500 rows in order, each with its place: more than one DuckDB vector.
select count(*) as n, sum(place) as places, bool_and(place = id) as ordered from (
  select row_number() over () - 1 as place, range as id from range(1500))
