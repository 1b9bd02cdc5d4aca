"""The OpenAI-compatible API, with DreamGen's additions (names, role config, sampler fields)."""
