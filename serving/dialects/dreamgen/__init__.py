"""DreamGen's native API."""
