"""What the commands have in common: settings out of options, and `--set` for those that have no option."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

import typer

from asap.errors import ConfigError

_Kind = TypeVar("_Kind")
Change = Annotated[
    list[str] | None, typer.Option("--set", help="Any other setting, NAME=VALUE (JSON), such as batch_size=64.")
]
MODEL_HELP = "A model folder, or 'demo', the small model that ships with asap."


def settings_of(kind: type[_Kind], **values: Any) -> _Kind:
    """Settings, or what is wrong with them in one sentence."""
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{name} {first['input']!r}: {message}" if name else message) from error


def changes_of(assignments: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, the value read as JSON where it is JSON."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment!r} is not NAME=VALUE")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            changes[name] = value
    return changes
