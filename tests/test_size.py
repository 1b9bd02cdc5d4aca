"""Long files and functions are where defects hide: none grows over the design's limits."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 400
MOST_FUNCTION_LINES = 50
MOST_KERNEL_LINES = 120
FILES = sorted(
    path for folder in ("serving", "tests", "loadtests", "deploy", "docs") for path in (ROOT / folder).rglob("*.py")
)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return (node.end_lineno or first) - first + 1


def most_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Kernels, by numba or Triton, may be longer: a call in them is not free, or not possible."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    is_kernel = any(decorator.startswith(("kernel", "_launched", "njit(")) for decorator in decorators)
    return MOST_KERNEL_LINES if is_kernel else MOST_FUNCTION_LINES


def test_there_are_files() -> None:
    assert {"asked.py", "pipeline.py", "test_size.py"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_and_its_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    long = {node.name: lines(node) for node in functions(path) if lines(node) > most_lines(node)}
    assert long == {}


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stat().st_size], ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
