-- A whole row of a table, as it is stored: trade 5 is the sixth, and has vendor data.
select * from market.trades where trade_id = 5;
