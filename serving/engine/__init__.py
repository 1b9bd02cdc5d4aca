"""Where tokens come from: one port, `base.Engine`, and its implementations."""
