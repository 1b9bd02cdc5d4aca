"""The two models of the tests, and tokenizers of every other kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.prompting.format import Format
from serving.prompting.prepare import Prompting
from tests.prompting.material import DEMO, FAMILIES, KINDS, LLAMA3, train

Train = Callable[..., Path]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains a tokenizer into a folder of its own."""

    def into(family: str, kind: str, *, special: bool = True, config: dict[str, Any] | None = None) -> Path:
        return train(tmp_path_factory.mktemp("tokenizer"), family, kind, special=special, config=config)

    return into


@pytest.fixture(scope="session")
def chatml() -> Prompting:
    """The demo model's."""
    return Prompting.load(str(DEMO), template="chatml-text")


@pytest.fixture(scope="session")
def llama3() -> Prompting:
    return Prompting.load(str(LLAMA3), template="llama3-writer")


@pytest.fixture(scope="session", params=["chatml", "llama3"])
def prompting(request: pytest.FixtureRequest) -> Prompting:
    """Each of the two."""
    loaded = request.getfixturevalue(request.param)
    assert isinstance(loaded, Prompting)
    return loaded


@pytest.fixture(scope="session", params=[(family, kind) for family in FAMILIES for kind in KINDS], ids=":".join)
def any_format(request: pytest.FixtureRequest, trained: Train) -> Format:
    """Each family with each kind of tokenizer."""
    family, kind = request.param
    return Format.load(trained(family, kind), family)
