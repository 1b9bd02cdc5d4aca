"""The wire protocols. A dialect is a folder with `wire.py` (what is sent) and `translate.py` (what it means)."""
