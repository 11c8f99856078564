-- Bars of 250 ms: DuckDB's time_bucket, first and last in order of time, and a volume weighted price.
select time_bucket(interval '250 milliseconds', event_time) as bar, first(price order by event_time) as open,
       last(price order by event_time) as close, sum(quantity) as volume,
       (sum(price::double * quantity::double) / sum(quantity::double))::decimal(18, 6) as vwap
from market.trades group by bar order by bar
