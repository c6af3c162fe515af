"""A job over the pairs of an input in the terminal: its progress, its summary, and how failed pairs end it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from jobs.cli.display import print_plain, print_tables, progress_shown
from jobs.cli.fitting import Fitted
from jobs.cli.ray_log import ray_output_logged
from jobs.errors import JobError, TooManyErrors

if TYPE_CHECKING:
    from jobs.scan.passes import Watch


def run_shown(
    run: Callable[[Watch], dict[str, Any]],
    table: Callable[[dict[str, Any]], Fitted],
    lines: Callable[[dict[str, Any]], Sequence[str]],
    max_error_rate: float,
    *,
    where: str = "{errors_file}",
    as_json: bool = False,
) -> None:
    """Run or resume a job with its progress, and print its summary: as a table and lines, or as one JSON document.

    Args:
        run: Runs the job and returns its summary.
        table: Returns the table of a summary.
        lines: Returns the lines below the table.
        max_error_rate: Share of the pairs that may fail.
        where: The place to look if all pairs failed, with fields of the summary.
        as_json: True for one JSON document.

    Raises:
        JobError: All pairs failed.
        TooManyErrors: More than `max_error_rate` failed.
    """
    console = Console()
    with ray_output_logged() as stderr, progress_shown(Console(file=stderr) if as_json else console) as watch:
        summary = run(watch)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        print_tables(console, table(summary))
        for line in lines(summary):
            print_plain(console, line)
    if summary["errors"] == summary["pairs"]:
        raise JobError(f"all {summary['pairs']} pairs failed. See {where.format(**summary)}.")
    if summary["errors"] > max_error_rate * summary["pairs"]:
        raise TooManyErrors(
            f"{summary['errors']:,} of {summary['pairs']:,} pairs failed, more than --max-error-rate allows "
            f"({max_error_rate:g}). See {summary['errors_file']}."
        )
