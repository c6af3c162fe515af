"""Options that several commands share, and how options become settings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer

from asap.errors import ConfigError

_Kind = TypeVar("_Kind")
MODEL_HELP = "A model folder, on this machine or at s3://; or 'demo', the small model that ships with asap."
_checked: ContextVar[list[Any] | None] = ContextVar("checked", default=None)
"""The list that gets the settings of commands in a block of `checks_only`; None outside of one."""
_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
DEVICE_HELP = "Where the model runs: 'auto', 'cpu' or 'cuda'."
ADDRESS_HELP = "Address of a running Ray cluster. Default: start Ray on this machine."
Change = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting, as NAME=VALUE (JSON), such as batch_size=64. Can be repeated."),
]

Notify = Annotated[
    list[str] | None,
    typer.Option(
        "--notify",
        help="Command or http(s):// address that gets a JSON document when the job ends or stalls. Can be repeated.",
    ),
]
NotifyFor = Annotated[
    float,
    typer.Option("--notify-for", help="Seconds for which a notification is tried. The command's end waits as long."),
]
LogFile = Annotated[
    str | None, typer.Option("--log-file", help="File that gets a JSON line for each change of state; '-' for stderr.")
]
MetricsTargets = Annotated[
    str | None,
    typer.Option("--metrics-targets", help="File that tells Prometheus where the metrics are while the job runs."),
]
RetryErrors = Annotated[
    str | None,
    typer.Option(
        help="Judge failed pairs again, and replace their outcomes: 'retryable' for those that may succeed, or error "
        "codes, such as 'timeout,not_found'. Works on a finished job too."
    ),
]

ImageColumn = Annotated[
    str | None, typer.Option(help="Column or field of the pictures. Default: found by its name, such as image or url.")
]
TextColumn = Annotated[
    str | None, typer.Option(help="Column or field of the texts. Default: found by its name, such as text or caption.")
]
IdColumn = Annotated[
    str | None, typer.Option(help="Column or field of your own names for the pairs. Default: custom_id or id.")
]
Encoding = Annotated[
    str | None, typer.Option(help="Encoding of the text files, such as cp1252. Default: found from their bytes.")
]
Delimiter = Annotated[
    str | None,
    typer.Option(help="Character between two cells of CSV files; 'tab' for a tab. Default: found from their lines."),
]


def settings_of(kind: type[_Kind], **values: Any) -> _Kind:
    """Build settings of a kind. Raises `ConfigError` with one sentence about the first value that is wrong."""
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        # A misspelled name comes first: the right one may be what is missing.
        first, *others = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        if first["type"] == "extra_forbidden":
            raise ConfigError(_unknown_setting(kind, first["loc"])) from error
        place, kind_tried = first["loc"][:-1], first["loc"][-1:]
        # A setting of several kinds has an error for each kind that was tried, with the kind at the end of its place.
        others = [one for one in others if place and one["loc"][:-1] == place and one["input"] == first["input"]]
        name = ".".join(str(part) for part in (place if others else place + kind_tried))
        message = first["msg"].removeprefix("Value error, ")
        for alternative in dict.fromkeys(other["msg"] for other in others):
            message += f", or {alternative.removeprefix('Input should be ')}"
        raise ConfigError(f"{name} {first['input']!r}: {message}" if name else message) from error


def _unknown_setting(kind: Any, path: tuple[int | str, ...]) -> str:
    """Return the message about a setting that does not exist, with the names nearest to it."""
    fields = kind.model_fields
    for part in path[:-1]:
        annotation = fields[part].annotation if part in fields else None
        nested = [item for item in (annotation, *get_args(annotation)) if hasattr(item, "model_fields")]
        fields = nested[0].model_fields if nested else {}
    wrong = str(path[-1])
    nearest = get_close_matches(wrong, list(fields), n=2)
    advice = (
        f"Did you mean {' or '.join(map(repr, nearest))}?" if nearest else f"Known are {', '.join(sorted(fields))}."
    )
    return f"setting {'.'.join(map(str, path))!r} is unknown. {advice}"


def engine_of(engine_option: str, engine: str | None, source_option: str, source: str | None) -> dict[str, str] | None:
    """Return the settings that two options of a command begin, or None if neither is given.

    Raises `ConfigError` if one of them is missing, unless the source is the captioner that ships: its engine is known.

    Args:
        engine_option: Name of the option of the engine.
        engine: Its value.
        source_option: Name of the option of the source.
        source: Its value.
    """
    from jobs.descriptions.settings import DEMO

    if engine is None and source == DEMO:
        engine = "transformers"
    if (engine is None) != (source is None):
        missing = engine_option if engine is None else source_option
        raise ConfigError(f"{engine_option} and {source_option} belong together, and {missing} is missing. Give both.")
    return {"engine": engine, "source": source} if engine and source is not None else None


def changes_of(assignments: list[str]) -> dict[str, Any]:
    """Parse NAME=VALUE pairs. A value that is not JSON is taken as a string."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment!r} is not of the form NAME=VALUE.")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            changes[name] = value
    return changes


def check_local(path: Path, argument: str) -> None:
    """Raise `ConfigError` for an address of a store, which would become a local folder of a strange name."""
    if scheme := re.match(r"([a-z][a-z0-9+.-]+):/", str(path)):
        raise ConfigError(
            f"{argument} {path} is at {scheme[1]}://, and this command works on this machine only. Name a local "
            "folder, and copy it from or to the store."
        )


@contextmanager
def checks_only() -> Iterator[list[Any]]:
    """Let the commands that are called in the block check their options and do no more. Yields their settings."""
    found: list[Any] = []
    token = _checked.set(found)
    try:
        yield found
    finally:
        _checked.reset(token)


def is_only_checked(settings: Any) -> bool:
    """Return True if the command must do no more, because another machine runs it; see `checks_only`."""
    found = _checked.get()
    if found is not None:
        found.append(settings)
    return found is not None


def check_device(device: str) -> None:
    """Raise `ConfigError` for a device that torch does not know. Torch itself takes seconds to ask."""
    if device.partition(":")[0] not in _DEVICES:
        raise ConfigError(f"device {device!r} is unknown. Use 'auto', 'cpu' or 'cuda'.")


def codes_of(codes: str | None) -> tuple[str, ...]:
    """Return the codes of a list that is separated by commas. Raises `ConfigError` for an empty one."""
    if codes is None:
        return ()
    found = tuple(code.strip() for code in codes.split(",") if code.strip())
    if not found:
        raise ConfigError("--retry-errors names no error code. Give 'retryable', or codes with commas between them.")
    return found
