"""Who has how much credit: the `base.Ledger` protocol with its laws, and its implementations."""
