describe select symbol, price, event_time from market.trades
