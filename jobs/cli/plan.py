"""`asap plan`: show what a scan would read, before it reads it."""

from __future__ import annotations

import json
import os
import shlex
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from asap.errors import ConfigError
from jobs.cli.options import (
    DEVICE_HELP,
    MODEL_HELP,
    Change,
    Delimiter,
    Encoding,
    IdColumn,
    ImageColumn,
    TextColumn,
    changes_of,
    settings_of,
)

if TYPE_CHECKING:
    from jobs.scan.pilot import Fleet
    from jobs.scan.settings import ScanSettings


def plan(
    input: Annotated[str, typer.Argument(help="The pairs, as for `asap scan`.")],
    limit: Annotated[int | None, typer.Option(help="Number of pairs to read, from the start. Default: all.")] = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    full: Annotated[bool, typer.Option("--full", help="Read all rows, however long it takes.")] = False,
    pilot: Annotated[
        int | None,
        typer.Option(min=8, help="Judge a seeded sample of so many pairs here, and forecast the hours of all of them."),
    ] = None,
    model: Annotated[str | None, typer.Option(help=f"For --pilot. {MODEL_HELP} Default: demo.")] = None,
    device: Annotated[str | None, typer.Option(help=f"For --pilot. {DEVICE_HELP} Default: auto.")] = None,
    machines: Annotated[int | None, typer.Option(min=1, help="Machines of the forecast. Default: this one.")] = None,
    machine_cpus: Annotated[
        int | None,
        typer.Option(min=1, help="CPUs of a machine, as fast as those here. Default: those of this machine."),
    ] = None,
    machine_gpus: Annotated[
        int | None,
        typer.Option(min=0, help="GPUs of a machine, of the kind here. Default: 1 if the pilot ran on a GPU, else 0."),
    ] = None,
    machine_price: Annotated[float | None, typer.Option(min=0, help="Price of an hour of one machine.")] = None,
    get_price: Annotated[float | None, typer.Option(min=0, help="Price of 1,000 GET requests to S3.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    change: Change = None,
) -> None:
    """Show what a scan would read: files, columns, counts, the first pairs, and how a sample of pictures fares.

    Nothing is written, and neither Ray nor, without --pilot, a model is started. The exit code is 1 for an input that a
    scan refuses.
    """
    from jobs.cli.display import print_plain, print_tables
    from jobs.cli.input_tables import look_tables, pilot_tables
    from jobs.scan.input.sources import find_source
    from jobs.scan.look import PLAN_S, look_at
    from jobs.scan.pilot import forecast, run_pilot
    from jobs.scan.settings import ScanSettings

    options = {
        "limit": limit, "model": model, "device": device, "image_column": image_column, "text_column": text_column,
        "id_column": id_column, "encoding": encoding, "delimiter": delimiter,
    }  # fmt: skip
    values = {name: value for name, value in options.items() if value is not None or name not in ("model", "device")}
    settings = settings_of(ScanSettings, input=input, out="OUT", **(values | changes_of(change or [])))
    of_pilot = {
        "--model": model, "--device": device, "--machines": machines, "--machine-cpus": machine_cpus,
        "--machine-gpus": machine_gpus, "--machine-price": machine_price, "--get-price": get_price,
    }  # fmt: skip
    if pilot is None and (given := [name for name, value in of_pilot.items() if value is not None]):
        raise ConfigError(f"{given[0]} is for a pilot, and there is none. Add --pilot with a number of pairs.")
    source = find_source(settings.input, settings.limit, settings.table_options)
    look = look_at(source, settings, seconds=None if full else PLAN_S, kept=pilot or 0)
    command = _scan_command(input, options, change or [])
    if pilot is not None:
        look.check(input)
        fleet = _fleet(settings, machines, machine_cpus, machine_gpus, machine_price, get_price)
        measured = run_pilot(settings, look.kept, fleet)
        whole = forecast(measured, look.rows, fleet)
    if as_json:
        found = look.to_json() | {"command": command}
        if pilot is not None:
            found |= {"pilot": measured.to_json(), "forecast": whole.to_json()}
        typer.echo(json.dumps(found, ensure_ascii=False, allow_nan=False))
    else:
        console = Console()
        print_tables(console, look_tables(look))
        if pilot is not None:
            print_tables(console, pilot_tables(measured, whole, is_whole=look.is_whole))
        if not look.is_unreadable:
            print_plain(console, f"to scan it: {command}")
    look.check(input)


def _fleet(
    settings: ScanSettings,
    machines: int | None,
    cpus: int | None,
    gpus: int | None,
    price: float | None,
    get_price: float | None,
) -> Fleet:
    """Return the machines of a forecast; those that are not given are this one."""
    from jobs.scan.pilot import Fleet, device_of

    own_gpus = 0 if device_of(settings) == "cpu" else 1
    return Fleet(
        machines=machines or 1,
        cpus=cpus or len(os.sched_getaffinity(0)),
        gpus=own_gpus if gpus is None else gpus,
        machine_price=price or 0,
        get_price=get_price or 0,
    )


def _scan_command(address: str, options: dict[str, str | int | None], changes: list[str]) -> str:
    """Return the scan of this input as a command line."""
    words = ["asap", "scan", address, "--out", "OUT"]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    for change in changes:
        words += ["--set", change]
    return shlex.join(words)
