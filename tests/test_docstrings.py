"""The first words of docstrings, and the map in each package's docstring."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INVERTED = {"Of", "What", "Whether", "That", "Who"}
PACKAGES = sorted(path.parent for name in ("asap", "jobs", "serve") for path in (ROOT / name).rglob("__init__.py"))


def inverted_lines(source: str) -> list[int]:
    """Return the lines of the docstrings that begin with an inverted sentence, those under fields and constants too."""
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)]
    texts = [node for node in texts if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.lineno for node in texts if INVERTED & set(node.value.replace(",", " ").split()[:1])]


@pytest.mark.parametrize("folder", ["asap", "jobs", "serve", "bench", "tests"])
def test_no_docstring_begins_with_an_inverted_sentence(folder: str) -> None:
    files = [path for path in sorted((ROOT / folder).rglob("*.py")) if "golden" not in path.parts]
    assert [f"{path}:{line}" for path in files for line in inverted_lines(path.read_text())] == []
    assert files


def test_an_inverted_docstring_is_found_wherever_it_stands() -> None:
    source = '"""What it does."""\nX = 1\n"""Of a server."""\ndef f():\n    """Whether, or not."""\n    return "What"\n'
    assert inverted_lines(source) == [1, 3, 5]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_docstring_of_a_package_has_a_line_for_each_file(package: Path) -> None:
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    listed = {line.split()[0] for line in docstring.splitlines() if line}
    files = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert (files | {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}) - listed == set()
