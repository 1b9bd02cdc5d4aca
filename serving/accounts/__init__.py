"""Who calls: keys, and the accounts and plans behind them."""
