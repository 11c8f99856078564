-- 500 even ids SELL, 500 odd ids BUY; quantity is (id + 1) * 1e-8.
from market.trades select side, count(*) as n, sum(quantity) as quantity, min(price) as low, max(price) as high
group by side order by side
