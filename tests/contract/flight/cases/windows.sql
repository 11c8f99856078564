/* Prices rise by 0.01: the mean of three neighbours is the middle one. */
select trade_id, avg(price) over (order by trade_id rows between 1 preceding and 1 following) as mean
from market.trades qualify trade_id in (10, 500) order by 1
