-- Each side's first and last trade beside each other, through a CTE, a join and a subquery.
with ends as (select side, min(trade_id) as lo, max(trade_id) as hi from market.trades group by all)
select e.side, a.price as opened, b.price as closed, b.price - a.price as moved
from ends e join market.trades a on a.trade_id = e.lo join market.trades b on b.trade_id = e.hi
where e.side in (select distinct side from market.trades) order by 1
