select count(*), count(distinct side), count(*) from market.trades;
