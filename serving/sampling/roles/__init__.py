"""Roles: which messages a model may write, who speaks in them, and how soon they may end."""
