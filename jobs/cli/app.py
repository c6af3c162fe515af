"""The `asap` command: its subcommands in the order of `asap --help`, and how errors and interruptions end it.

Each command has a file of its own. The command imports what loads slowly (torch, Ray, pyarrow) inside its function, so
that `asap --help` stays quick.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import typer
from rich.console import Console

from asap.errors import AsapError
from jobs.cli.detect import detect
from jobs.cli.evaluate import evaluate
from jobs.cli.newsroom import newsroom
from jobs.cli.policy import calibrate, familiarize, repolicy
from jobs.cli.scan import scan
from jobs.cli.serve import serving
from jobs.cli.train import train
from jobs.errors import InputUnfamiliar

app = typer.Typer(
    name="asap",
    help="Find manipulated faces and words in image-text pairs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (scan, detect, newsroom, train, evaluate, familiarize, calibrate, repolicy):
    app.command()(command)
app.add_typer(serving, name="serve")

_INTERRUPTED = 130
_UNFAMILIAR = 4


def main() -> None:
    """Run the command line.

    An `AsapError` becomes one sentence on stderr and exit code 1; the code is 4 if a scan stopped because its input is
    unfamiliar to the model. An interruption (Ctrl-C or SIGTERM) exits with 130.
    """
    # SIGTERM must unwind the stack as Ctrl-C does, so that a job records that it was stopped.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except AsapError as error:
        _complain(" ".join([str(error), *getattr(error, "__notes__", ())]))
        sys.exit(_UNFAMILIAR if isinstance(error, InputUnfamiliar) else 1)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:  # typer has turned the KeyboardInterrupt into it
            if sys.argv[1:2] == ["serve"]:
                _complain("stopped immediately")
            else:
                _complain("interrupted. Finished work is kept. Run the same command again to resume.")
        raise


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _complain(message: str) -> None:
    Console(stderr=True).print(f"asap: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
