"""The README and the documents: their commands, links, map and credits are true."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from jobs.cli.app import app
from tests.support.commands import shell_commands

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted({line for document in DOCUMENTS for line in shell_commands(document.read_text())})


@pytest.mark.parametrize("line", COMMANDS)
def test_the_options_of_each_command_exist(line: str) -> None:
    command, words = typer.main.get_command(app), shlex.split(line)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
    command.make_parser(typer.Context(command, **command.context_settings)).parse_args(words)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("submit ")])
def test_the_options_of_each_submitted_command_exist(line: str) -> None:
    group: Any = typer.main.get_command(app)
    submit = group.commands["submit"]
    parsed, _, _ = submit.make_parser(typer.Context(submit, **submit.context_settings)).parse_args(
        shlex.split(line)[1:]
    )
    command = group.commands.get(parsed["command"])
    if command is not None:  # `logs` and `stop` are commands of submit alone
        command.make_parser(typer.Context(command)).parse_args(list(parsed["arguments"]))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_links_of_a_document_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)[^):]*\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_code_that_a_document_names_exists(document: Path) -> None:
    names = re.findall(r"`((?:asap|jobs|serve|tests|bench)/[\w/.]+)`", document.read_text())
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_map_has_a_line_for_each_room() -> None:
    rooms = {path.parent for package in ("asap", "jobs", "serve") for path in (ROOT / package).glob("*/__init__.py")}
    assert [room.name for room in rooms if f"`{room.relative_to(ROOT)}/`" not in README] == []


def test_the_credits_name_the_papers_and_whose_terms_bind_the_reader() -> None:
    credits = README.partition("## Credits and licenses")[2]
    for fact in (
        "ASAP: Zhang",
        "HAMMER and DGM4: Shao",
        "ALBEF: Li",
        "names no license",
        "non-commercial",
        "caption cleaning",
    ):
        assert fact in credits
