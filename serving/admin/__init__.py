"""The admin API under `/admin/v1`: accounts, keys, plans, credits and usage over HTTP, for who holds the admin key."""
