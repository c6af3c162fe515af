"""`asap train`: train a model, or show the plan of a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from jobs.cli.options import (
    ADDRESS_HELP,
    Change,
    LogFile,
    MetricsTargets,
    Notify,
    NotifyFor,
    changes_of,
    is_only_checked,
    settings_of,
)

if TYPE_CHECKING:
    from jobs.train.settings import TrainSettings


def train(
    corpus: Annotated[str, typer.Argument(help="Folder in DGM4's layout, such as `asap newsroom` draws; or s3://.")],
    out: Annotated[str, typer.Option(help="Run folder. The trained model is written to OUT/model.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the model. The model id begins with it. Default: asap-tiny.")
    ] = None,
    test_corpus: Annotated[
        str | None, typer.Option(help="Corpus whose test split evaluates the model. Default: CORPUS.")
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of pairs to train on. A pair counts each time it is seen. Default: 140000.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of weights, order and augmentation.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of Ray Train workers. Default: 1; with preset=published, one on each GPU of the machine.",
        ),
    ] = None,
    init: Annotated[
        list[str] | None,
        typer.Option(
            help="Weights to start from: a .pth file, a model folder, timm:NAME_OR_FOLDER or bert:NAME_OR_FOLDER. "
            "Can be repeated."
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what the run would do, without running it.")] = False,
    address: Annotated[str | None, typer.Option(help=ADDRESS_HELP)] = None,
    notify: Notify = None,
    notify_for: NotifyFor = 5,
    log_file: LogFile = None,
    metrics_targets: MetricsTargets = None,
    change: Change = None,
) -> None:
    """Train a model. Run the same command again to resume a run that was stopped."""
    from jobs.cli.display import plan_tables, print_tables
    from jobs.cli.training_progress import training_shown
    from jobs.train.check import check_command
    from jobs.train.settings import TrainSettings

    options: dict[str, Any] = {"corpus": corpus, "out": out, "test_corpus": test_corpus}
    # Options that are not given have the default of the settings, which may follow from other settings.
    typed = (("name", name), ("pairs", pairs), ("workers", workers))
    options |= {option: value for option, value in typed if value is not None}
    options |= {"seed": seed, "address": address, "init": init or ()}
    options |= {"notify": notify or (), "notify_for_s": notify_for, "log_file": log_file}
    options |= {"metrics_targets": metrics_targets}
    settings = settings_of(TrainSettings, **(options | changes_of(change or [])))
    if is_only_checked(settings):
        return
    if plan:
        check_command(settings)
        with training_shown(Console()) as progress:
            progress({"phase": "loading torch and Ray"})
            from jobs.train.run import plan as plan_run

            tables = plan_tables(plan_run(settings, progress))
        print_tables(Console(), tables)
        return
    run_training(settings)


def run_training(settings: TrainSettings, *, as_json: bool = False) -> None:
    """Run or resume a training with its progress, and print the address of its model, as a line or as JSON."""
    from jobs.cli.ray_log import ray_output_logged
    from jobs.cli.training_progress import training_shown
    from jobs.train.check import check_command

    check_command(settings)
    with ray_output_logged() as stderr, training_shown(Console(file=stderr if as_json else None)) as progress:
        progress({"phase": "loading torch and Ray"})
        from jobs.train.run import train as run

        folder = run(settings, progress)
    typer.echo(json.dumps({"model": str(folder)}) if as_json else f"model: {folder}")
