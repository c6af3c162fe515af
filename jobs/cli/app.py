"""The `asap` command: its subcommands in the order of `asap --help`, and how errors and interruptions end it.

Each command has a file of its own. The command imports what loads slowly (torch, Ray, pyarrow) inside its function, so
that `asap --help` stays quick.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import platform
import sys
from typing import Annotated

import typer
from rich.console import Console

from asap.errors import AsapError, printable
from jobs.cli.annotate import annotate
from jobs.cli.captioner import captioner
from jobs.cli.control import cancel, delete, errors, list_jobs, report, results, resume, status, watch
from jobs.cli.detect import detect
from jobs.cli.evaluate import evaluate
from jobs.cli.model import import_checkpoint, model
from jobs.cli.newsroom import newsroom
from jobs.cli.plan import plan
from jobs.cli.policy import calibrate, familiarize, repolicy
from jobs.cli.scan import scan
from jobs.cli.serve import serving
from jobs.cli.submit import submit
from jobs.cli.train import train
from jobs.errors import EXIT_STOPPED, EXIT_TOO_MANY_ERRORS, EXIT_UNFAMILIAR, InputUnfamiliar, TooManyErrors
from jobs.stops import exit_on_signals, ignore_signals, stop_on_signals, what_is_kept

_JOB_FOLDERS = "Job folders"

app = typer.Typer(
    name="asap",
    help="Find manipulated faces and words in image-text pairs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_versions(is_asked: bool) -> None:
    if is_asked:
        # From the metadata of the packages, for torch and Ray take seconds to import.
        found = {"asap-ray": _version("asap-ray"), "Python": platform.python_version()}
        found |= {name: _version(name) for name in ("torch", "ray")}
        typer.echo("\n".join(f"{name} {number}" for name, number in found.items()))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_versions,
            is_eager=True,
            help="Show the versions of asap, Python, torch and Ray, and exit.",
        ),
    ] = False,
) -> None:
    """Find manipulated faces and words in image-text pairs."""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


for command in (plan, scan, detect, annotate, newsroom, train, evaluate):
    app.command()(command)
app.command("import")(import_checkpoint)
app.command()(captioner)
app.command()(model)
app.command()(familiarize)
app.command()(calibrate)
app.command()(repolicy)
app.add_typer(serving, name="serve")
# Options of the submitted command are unknown here, and are passed on to it.
app.command(context_settings={"ignore_unknown_options": True})(submit)
app.command("status", rich_help_panel=_JOB_FOLDERS)(status)
app.command("list", rich_help_panel=_JOB_FOLDERS)(list_jobs)
for verb in (watch, cancel, resume, errors, results, report, delete):
    app.command(rich_help_panel=_JOB_FOLDERS)(verb)

_EXIT_CODES: dict[type[AsapError], int] = {InputUnfamiliar: EXIT_UNFAMILIAR, TooManyErrors: EXIT_TOO_MANY_ERRORS}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KEPT = {
    "scan": "Finished pairs are kept. Run the same command again to resume.",
    "annotate": "Finished rows are kept. Run the same command again to resume.",
    "train": "Nothing was changed. Run the same command again.",
    "resume": "Finished work is kept. Run the same command again to resume.",
    "repolicy": "Run the same command again to resume.",
    "evaluate": "Nothing was written.",
    "calibrate": "Nothing was written.",
    "import": "Nothing was written.",
    "familiarize": "Nothing was written.",
    "serve": "Requests in flight were not answered.",
}
"""The sentence after `stopped`, by command, unless the job says more. Commands that do no work of their own say
nothing."""


def main() -> None:
    """Run the command line.

    An `AsapError` becomes one sentence on stderr and exit code 1, or a code of its own (`jobs.errors`). A stop by
    Ctrl-C, SIGTERM or SIGHUP exits with 130. A reader that closes the pipe early ends the command quietly.
    """
    stop_on_signals()
    try:
        app()
    except AsapError as error:
        _complain(" ".join([str(error), *getattr(error, "__notes__", ())]))
        sys.exit(_EXIT_CODES.get(type(error), 1))
    except OSError as error:
        # Errors of files and stores are AsapErrors. A full disk behind `>` is met by any command that prints.
        if error.errno not in _FULL or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered would fail again at the exit
        _complain(f"the standard output cannot be written: {error.strerror}. Print to another place.")
        sys.exit(1)
    except SystemExit as stop:
        # typer has turned the KeyboardInterrupt into this exit
        if stop.code == EXIT_STOPPED:
            ignore_signals()  # another signal must not break the sentence
            if kept := what_is_kept(stop) or _KEPT.get(sys.argv[1], ""):
                _complain(f"stopped. {kept}")
            exit_on_signals(EXIT_STOPPED)  # nothing is left to do but to leave
        raise


def _complain(message: str) -> None:
    message = printable(message, longest=None, keep="\n\t")  # it may quote the files of others
    Console(stderr=True).print(f"asap: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
