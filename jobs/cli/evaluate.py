"""`asap evaluate`: evaluate a model on labeled pairs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from jobs.cli.options import (
    ADDRESS_HELP,
    DEVICE_HELP,
    MODEL_HELP,
    Change,
    LogFile,
    Notify,
    NotifyFor,
    changes_of,
    is_only_checked,
    settings_of,
)


def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    corpus: Annotated[str, typer.Argument(help="Labeled corpus: a folder in DGM4's layout, or s3://.")],
    split: Annotated[str, typer.Option(help="Split to evaluate: train, val or test.")] = "test",
    out: Annotated[
        str, typer.Option(help="Folder or s3:// prefix for the metrics, the charts and the page.")
    ] = "evaluation",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of pairs to evaluate, from the start. Default: all.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of shards evaluated in parallel. Default: as many as fit.")
    ] = None,
    address: Annotated[str | None, typer.Option(help=ADDRESS_HELP)] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    notify: Notify = None,
    notify_for: NotifyFor = 5,
    log_file: LogFile = None,
    change: Change = None,
) -> None:
    """Evaluate a model on labeled pairs: the papers' table, charts, and the worst pairs with their evidence."""
    from asap.limits import NO_FAMILIARITY
    from jobs.cli.display import count_shown, evaluation_tables, print_plain, print_tables
    from jobs.cli.ray_log import ray_output_logged
    from jobs.evaluate.run import evaluate as run
    from jobs.evaluate.settings import EvaluateSettings

    options: dict[str, Any] = {
        "model": model,
        "corpus": corpus,
        "split": split,
        "out": out,
        "limit": limit,
        "workers": workers,
    }
    options |= {"address": address, "device": device}
    options |= {"notify": notify or (), "notify_for_s": notify_for, "log_file": log_file}
    settings = settings_of(EvaluateSettings, **(options | changes_of(change or [])))
    if is_only_checked(settings):
        return
    console = Console()
    with count_shown(console, "evaluating") as progress, ray_output_logged():
        report = run(settings, progress, lambda note: print_plain(console, note))
    print_plain(console, "\n".join(report["read"]))
    print_tables(console, evaluation_tables(report))
    print_plain(console, report["sentence"])
    print_plain(console, report["limits"])
    if report["coverage"] is None:
        print_plain(console, NO_FAMILIARITY)
    print_plain(console, f"page: {out.rstrip('/')}/index.html")
