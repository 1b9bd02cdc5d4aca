"""The bounds of a role rule: what a kernel has room for, and what keeps its states apart. Standard library only."""

from typing import Final

from serving.core import RoleRule
from serving.sampling.headers import LONGEST_HEADER_TOKENS

MOST_PATHS: Final = 32
MOST_PATH_TOKENS: Final = 512
"""Of all paths together."""
MOST_NAME_TOKENS: Final = 32
"""Of names that the model chooses."""
LONGEST_PATH: Final = LONGEST_HEADER_TOKENS - MOST_NAME_TOKENS - 8
"""A generated header must end before a history counts it as content."""


def check(rule: RoleRule) -> None:
    """Raises ValueError saying what is impossible."""
    paths = (*rule.headers, *rule.open_names)
    if len(paths) > MOST_PATHS or sum(map(len, paths)) > MOST_PATH_TOKENS:
        raise ValueError(f"the headers allowed are over {MOST_PATHS}, or over {MOST_PATH_TOKENS} tokens together")
    if any(not 0 < len(path) <= LONGEST_PATH for path in paths):
        raise ValueError(f"a header must have 1 to {LONGEST_PATH} tokens")
    for number, opened in enumerate(rule.open_names):
        others = (*rule.headers, *rule.open_names[:number], *rule.open_names[number + 1 :])
        if any(path[: len(opened)] == opened for path in others):
            raise ValueError("a header with names of the model's choice begins another header")
    if rule.minimum_content < 0:
        raise ValueError("roles.minimum_content must not be negative")
