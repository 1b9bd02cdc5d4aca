"""Livepeer's text generation API: `POST /llm`."""
