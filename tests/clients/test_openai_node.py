"""The npm package `openai`: its cases are in `openai.test.mjs`."""

from collections.abc import Callable


def test_the_npm_package(run_node: Callable[[str], None]) -> None:
    run_node("openai.test.mjs")
