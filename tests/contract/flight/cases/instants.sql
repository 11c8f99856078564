-- Trade 7 happened 7 ms after 1,723,100,000 s of Unix time; trade 6 has a transaction time, 7 has none.
select trade_id, event_time, transaction_time, date_trunc('hour', event_time) as hour
from market.trades where trade_id in (6, 7) order by trade_id;
