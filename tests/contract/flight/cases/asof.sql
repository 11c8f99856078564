-- For each instant the last trade at or before it: trades are 1 ms apart.
with asked (instant) as (values (timestamptz '2024-08-08 06:53:20.0105+00'), (timestamptz '2024-08-08 06:53:19+00'), (timestamptz '2030-01-01 00:00:00+00'))
select instant, trade_id from asked asof left join market.trades on instant >= event_time order by instant
