"""`asap plan`: show what a scan would read, before it reads it."""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import typer
from rich.console import Console

from jobs.cli.options import (
    Change,
    Delimiter,
    Encoding,
    IdColumn,
    ImageColumn,
    TextColumn,
    changes_of,
    settings_of,
)


def plan(
    input: Annotated[str, typer.Argument(help="The pairs, as for `asap scan`.")],
    limit: Annotated[int | None, typer.Option(help="Number of pairs to read, from the start. Default: all.")] = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    full: Annotated[bool, typer.Option("--full", help="Read all rows, however long it takes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    change: Change = None,
) -> None:
    """Show what a scan would read: files, columns, counts, the first pairs, and how a sample of pictures fares.

    Nothing is written, and neither Ray nor a model is started. The exit code is 1 for an input that a scan refuses.
    """
    from jobs.cli.display import print_plain, print_tables
    from jobs.cli.input_tables import look_tables
    from jobs.scan.input.sources import find_source
    from jobs.scan.look import PLAN_S, look_at
    from jobs.scan.settings import ScanSettings

    options = {
        "limit": limit, "image_column": image_column, "text_column": text_column, "id_column": id_column,
        "encoding": encoding, "delimiter": delimiter,
    }  # fmt: skip
    settings = settings_of(ScanSettings, input=input, out="OUT", **(options | changes_of(change or [])))
    source = find_source(settings.input, settings.limit, settings.table_options)
    look = look_at(source, settings, seconds=None if full else PLAN_S)
    command = _scan_command(input, options, change or [])
    if as_json:
        typer.echo(json.dumps(look.to_json() | {"command": command}, ensure_ascii=False, allow_nan=False))
    else:
        console = Console()
        print_tables(console, look_tables(look))
        if not look.is_unreadable:
            print_plain(console, f"to scan it: {command}")
    look.check(input)


def _scan_command(address: str, options: dict[str, str | int | None], changes: list[str]) -> str:
    """Return the scan of this input as a command line."""
    words = ["asap", "scan", address, "--out", "OUT"]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    for change in changes:
        words += ["--set", change]
    return shlex.join(words)
