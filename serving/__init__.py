"""A serving stack for story and role-play language models. `pipeline.py` is the first file to read."""

__version__ = "0.1.0"
