select trade_id, symbol, price, event_time, trade_conditions from market.trades where trade_id < 0
