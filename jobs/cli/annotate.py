"""`asap annotate`: captions and explanations in bulk, or the plan of such a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from jobs.cli.options import (
    ADDRESS_HELP,
    DEVICE_HELP,
    Change,
    Delimiter,
    Encoding,
    IdColumn,
    ImageColumn,
    LogFile,
    MetricsTargets,
    Notify,
    NotifyFor,
    RetryErrors,
    TextColumn,
    changes_of,
    codes_of,
    engine_of,
    is_only_checked,
    settings_of,
)

if TYPE_CHECKING:
    from jobs.annotate.settings import AnnotateSettings

_ENGINES = "'transformers', 'openai' (an endpoint; --set {} gives its address), 'vllm' (on GPUs) or 'precomputed'"
_SOURCE = "a model folder or hub name, the endpoint's name of a model, or a file"


def annotate(
    input: Annotated[str, typer.Argument(help="A corpus in DGM4's layout, or any input of `asap scan`; or s3://.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// prefix of the annotations. It is the folder of the job.")],
    caption_engine: Annotated[
        str | None,
        typer.Option(help=f"Engine that captions pictures: {_ENGINES.format('captions')}. Default: no captions."),
    ] = None,
    captioner: Annotated[
        str | None, typer.Option(help=f"The captioner: {_SOURCE} of captions; or 'demo', for drawings.")
    ] = None,
    explanation_engine: Annotated[
        str | None,
        typer.Option(help=f"Engine that explains texts: {_ENGINES.format('explanations')}. Default: no explanations."),
    ] = None,
    explainer: Annotated[str | None, typer.Option(help=f"The model that explains: {_SOURCE} of explanations.")] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Show what the job would do and take, by a pilot of a few pairs, without running."),
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Number of pairs to read, from the start. Default: all.")] = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    address: Annotated[str | None, typer.Option(help=ADDRESS_HELP)] = None,
    allow_unreadable: Annotated[
        bool, typer.Option("--allow-unreadable", help="Start even if every pair of a sample would fail.")
    ] = False,
    retry_errors: RetryErrors = None,
    max_error_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the pairs that may fail. With more, the exit code is 3.")
    ] = 1,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    annotators: Annotated[
        int | None, typer.Option(help="Processes of each engine. Default: one, or as many as the GPUs hold.")
    ] = None,
    notify: Notify = None,
    notify_for: NotifyFor = 5,
    log_file: LogFile = None,
    metrics_targets: MetricsTargets = None,
    change: Change = None,
) -> None:
    """Write captions of pictures and explanations of texts. Run the same command again to resume.

    A picture that occurs again is captioned once, and so is a text. `asap train CORPUS --set 'captions=["OUT"]'` reads
    the result.
    """
    from jobs.annotate.settings import AnnotateSettings

    changes = changes_of(change or [])
    captions = engine_of("--caption-engine", caption_engine, "--captioner", captioner)
    explanations = engine_of("--explanation-engine", explanation_engine, "--explainer", explainer)
    options: dict[str, Any] = {
        "input": input, "out": out, "limit": limit, "captions": captions, "explanations": explanations,
        "image_column": image_column, "text_column": text_column, "id_column": id_column,
        "encoding": encoding, "delimiter": delimiter, "address": address, "allow_unreadable": allow_unreadable,
        "retry_errors": codes_of(retry_errors), "max_error_rate": max_error_rate, "device": device,
        "annotators": annotators, "notify": notify or (), "notify_for_s": notify_for, "log_file": log_file,
        "metrics_targets": metrics_targets,
    }  # fmt: skip
    for name in ("captions", "explanations"):
        if options[name] and isinstance(changes.get(name), dict):
            changes[name] = options[name] | changes[name]  # the rest of what the two options began
    settings = settings_of(AnnotateSettings, **(options | changes))
    if is_only_checked(settings):
        return
    if plan:
        _show_plan(settings)
    else:
        run_annotation(settings)


def _show_plan(settings: AnnotateSettings) -> None:
    from jobs.annotate.preview import preview
    from jobs.cli.annotate_tables import preview_tables
    from jobs.cli.display import print_tables

    print_tables(Console(), preview_tables(preview(settings)))


def run_annotation(settings: AnnotateSettings, *, as_json: bool = False) -> None:
    """Run or resume a job with its progress, and print its summary; see `run_shown`."""
    from jobs.annotate.run import annotate as run
    from jobs.cli.annotate_tables import summary_lines, summary_table
    from jobs.cli.pairs_job import run_shown

    run_shown(
        lambda watch: run(settings, watch), summary_table, summary_lines, settings.max_error_rate, as_json=as_json
    )
