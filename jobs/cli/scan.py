"""`asap scan`: scan a corpus in bulk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from asap.errors import ConfigError
from asap.preprocessing.words import MIN_TEXT_READ
from jobs.cli.options import (
    DEVICE_HELP,
    MODEL_HELP,
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
    from jobs.scan.settings import ScanSettings


def scan(
    input: Annotated[
        str,
        typer.Argument(help="The pairs: a DGM4 JSON, JSONL, CSV or Parquet file, or a folder of pictures; or s3://."),
    ],
    out: Annotated[str, typer.Option(help="Folder or s3:// prefix that holds the job folders.")],
    job: Annotated[str | None, typer.Option(help="Name of the job folder. Default: the name of INPUT.")] = None,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "demo",
    limit: Annotated[int | None, typer.Option(help="Number of pairs to scan, from the start. Default: all.")] = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    caption_engine: Annotated[
        str | None,
        typer.Option(
            help="Engine that captions the pictures: 'transformers', 'openai' (an endpoint; --set captions gives its "
            "address), 'vllm' (on GPUs) or 'precomputed'. Default: no captions."
        ),
    ] = None,
    captioner: Annotated[
        str | None,
        typer.Option(
            help="The captioner: a model folder or hub name, the endpoint's name of a model, or a file of captions; or "
            "'demo', the small captioner of drawings that ships with asap."
        ),
    ] = None,
    explanation_engine: Annotated[
        str | None,
        typer.Option(
            help="Engine that explains the texts: 'transformers', 'openai' (an endpoint; --set explanations gives its "
            "address), 'vllm' (on GPUs) or 'precomputed'. Default: no explanations."
        ),
    ] = None,
    explainer: Annotated[
        str | None,
        typer.Option(
            help="The explainer: a model folder or hub name, the endpoint's name of a model, or a file of explanations."
        ),
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option(
            help="Pairs that are captioned and explained: 'all' before they are judged; 'flagged' after they are "
            "judged, and pairs without a text are captioned; or 'none'. Default: all, if there is a captioner or an "
            "explainer."
        ),
    ] = None,
    min_text_read: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of a text that the model must be able to read. Less counts as no text."),
    ] = MIN_TEXT_READ,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of a running Ray cluster ('auto' on one of its machines). Default: start Ray on this machine."
        ),
    ] = None,
    allow_unreadable: Annotated[
        bool,
        typer.Option("--allow-unreadable", help="Scan even if every pair of a sample would fail."),
    ] = False,
    allow_unfamiliar: Annotated[
        bool,
        typer.Option(
            "--allow-unfamiliar",
            help="Scan all pairs even if the model has seen nothing like most of a sample of 200. Can be added when a "
            "stopped scan is resumed. Unfamiliar pairs get no judgment in any case.",
        ),
    ] = False,
    retry_errors: RetryErrors = None,
    max_error_rate: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the pairs that may fail. With more, the exit code of a done scan is 3."
        ),
    ] = 1,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    precision: Annotated[str, typer.Option(help="Arithmetic: 'auto', 'float32' or 'bfloat16'.")] = "auto",
    detectors: Annotated[int | None, typer.Option(help="Number of detector actors. Default: as many as fit.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs in one batch of the detector. Default: 64 on CPUs, 256 on GPUs.")
    ] = None,
    notify: Notify = None,
    notify_for: NotifyFor = 5,
    log_file: LogFile = None,
    metrics_targets: MetricsTargets = None,
    change: Change = None,
) -> None:
    """Scan pairs in bulk. Run the same command again to resume a scan that was stopped.

    The exit code is 3 if more pairs failed than --max-error-rate allows. It is 4 if the scan stopped because the model
    has seen nothing like most of a sample of INPUT.
    """
    from jobs.scan.settings import ScanSettings

    described = {
        "captions": engine_of("--caption-engine", caption_engine, "--captioner", captioner),
        "explanations": engine_of("--explanation-engine", explanation_engine, "--explainer", explainer),
    }
    options = {
        "input": input, "out": out, "job": job, "model": model, "limit": limit, **described,
        "image_column": image_column, "text_column": text_column, "id_column": id_column,
        "encoding": encoding, "delimiter": delimiter,
        "min_text_read": min_text_read, "max_error_rate": max_error_rate,
        "allow_unreadable": allow_unreadable, "allow_unfamiliar": allow_unfamiliar,
        "retry_errors": codes_of(retry_errors),
        "address": address, "device": device, "precision": precision, "detectors": detectors, "batch_size": batch_size,
        "notify": notify or (), "notify_for_s": notify_for, "log_file": log_file, "metrics_targets": metrics_targets,
    }  # fmt: skip
    changes = changes_of(change or [])
    for name, engine in described.items():
        if engine and isinstance(changes.get(name), dict):
            changes[name] = engine | changes[name]  # the rest of what the two options began
    if captions is not None:
        changes |= _captioned_pairs(captions, options | changes)
    settings = settings_of(ScanSettings, **(options | changes))
    if not is_only_checked(settings):
        run_scan(settings)


def _captioned_pairs(pairs: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that `--captions` changes. Raises `ConfigError` if they do not work with the others.

    Args:
        pairs: Value of the option.
        values: All other settings.
    """
    if pairs not in ("none", "flagged", "all"):
        raise ConfigError(f"--captions {pairs!r} is unknown. Use 'none', 'flagged' or 'all'.")
    if pairs == "none":
        return {"captions": None, "explanations": None}
    if not values["captions"] and not values["explanations"]:
        raise ConfigError(
            f"--captions {pairs} needs a captioner or an explainer. Give --caption-engine and --captioner, or "
            "--explanation-engine and --explainer."
        )
    return {"caption_pairs": pairs}


def run_scan(settings: ScanSettings, *, as_json: bool = False) -> None:
    """Run or resume a scan with its progress, and print its summary; see `run_shown`."""
    from jobs.cli.display import summary_lines, summary_table
    from jobs.cli.pairs_job import run_shown
    from jobs.scan.run import scan as run

    run_shown(
        lambda watch: run(settings, watch),
        summary_table,
        summary_lines,
        settings.max_error_rate,
        where="the errors listed above",
        as_json=as_json,
    )
