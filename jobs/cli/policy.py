"""`asap familiarize`, `asap calibrate` and `asap repolicy`: what a model can judge, its thresholds, and others."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from asap.errors import PrecisionNotShown
from jobs.cli.options import (
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


def familiarize(
    model: Annotated[
        str, typer.Argument(help="A model folder, on this machine or at s3://. Its familiarity file is written.")
    ],
    corpus: Annotated[
        str, typer.Argument(help="Corpus that the model was trained on, a folder in DGM4's layout or s3://.")
    ],
    fit_split: Annotated[str, typer.Option(help="Split that the distributions are fitted to.")] = "train",
    held_out_split: Annotated[str, typer.Option(help="Split that training never saw.")] = "val",
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    change: Change = None,
) -> None:
    """Teach an existing model which pairs it can judge. `asap train` does it by itself."""
    from jobs.cli.display import count_shown, print_plain
    from jobs.policy.familiarize import familiarize as run
    from jobs.policy.settings import FamiliarizeSettings

    options = {"model": model, "corpus": corpus, "fit_split": fit_split, "held_out_split": held_out_split}
    settings = settings_of(FamiliarizeSettings, **(options | {"device": device} | changes_of(change or [])))
    console = Console()
    with count_shown(console, "reading pairs and their changed copies") as progress:
        done = run(settings, progress)
    print_plain(console, "\n".join(done.read))
    about = done.familiarity.about
    fitted, held_out = int(about["fitted_pairs"]), int(about["held_out_pairs"])
    print_plain(
        console,
        f"familiarity {done.familiarity.familiarity_id} of {done.folder}: "
        f"{fitted:,} pairs of {settings.fit_split}, {held_out:,} held-out pairs of {settings.held_out_split}",
    )


def calibrate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    corpus: Annotated[
        str,
        typer.Argument(help="Labeled corpus in DGM4's layout, a folder or s3://, with pairs that training never saw."),
    ],
    precision: Annotated[
        float, typer.Option(help="Target precision: fraction of the flagged pairs that must be correct.")
    ],
    prevalence: Annotated[float, typer.Option(help="Fraction of manipulated pairs where the model will be used.")],
    split: Annotated[str, typer.Option(help="Split whose scores choose the thresholds.")] = "val",
    out: Annotated[str | None, typer.Option(help="Policy file to write. Default: MODEL/policy.json.")] = None,
    review_precision: Annotated[
        float | None,
        typer.Option(
            help="Target precision of the pairs that go to human review. "
            "Default: a quarter of the way from --prevalence to --precision."
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Confidence level of the precision bounds.")] = 0.95,
    keep: Annotated[
        list[str] | None, typer.Option(help="A type, or 'word', whose threshold is left unchanged. Can be repeated.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Address of a running Ray cluster, of which one machine scores. Default: this machine."),
    ] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Arithmetic of the scans to come: 'auto', 'float32' or 'bfloat16'.")
    ] = "auto",
    notify: Notify = None,
    notify_for: NotifyFor = 5,
    log_file: LogFile = None,
    change: Change = None,
) -> None:
    """Choose thresholds that keep a precision at the prevalence of manipulation that you expect."""
    from jobs.cli.display import calibration_table, count_shown, print_plain, print_tables, shortfall_table
    from jobs.cli.ray_log import ray_output_logged
    from jobs.policy.calibrate import calibrate as run
    from jobs.policy.settings import CalibrateSettings

    options = {"model": model, "corpus": corpus, "precision": precision, "prevalence": prevalence, "split": split}
    options |= {"out": out, "review_precision": review_precision, "confidence": confidence, "keep": keep or ()}
    options |= {"address": address, "device": device, "dtype": dtype}
    options |= {"notify": notify or (), "notify_for_s": notify_for, "log_file": log_file}
    settings = settings_of(CalibrateSettings, **(options | changes_of(change or [])))
    if is_only_checked(settings):
        return
    console = Console()
    try:
        with count_shown(console, "scoring") as progress, ray_output_logged():
            calibrated = run(settings, progress, lambda note: print_plain(console, note))
    except PrecisionNotShown as error:
        print_tables(console, shortfall_table(error.shortfalls))
        raise PrecisionNotShown(error.headline) from error
    print_plain(console, "\n".join(calibrated.read))
    print_tables(console, calibration_table((calibrated.policy.calibration or {})["thresholds"]))
    print_plain(console, calibrated.familiarity)
    typer.echo(f"policy {calibrated.policy.policy_id}: {calibrated.written}")
    if calibrated.kept:
        typer.echo(f"former policy: {calibrated.kept}")


def repolicy(
    job: Annotated[str, typer.Argument(help="Folder of a finished scan, OUT/JOB; or s3://.")],
    policy: Annotated[str, typer.Option(help="Policy file, such as `asap calibrate` writes.")],
) -> None:
    """Apply other thresholds to a finished scan, without scanning again. Run the same command again to resume."""
    from jobs.cli.display import changes_table, print_plain, print_tables, progress_shown, summary_lines, summary_table
    from jobs.policy.repolicy import repolicy as run
    from jobs.scan.passes import ScanProgress

    console = Console()
    with progress_shown(console) as watch:
        summary = run(job, policy, lambda stage, done, total: watch(ScanProgress(stage, done, total)))
    print_tables(console, summary_table(summary))
    print_plain(console, f"policy: {summary['policy_id']}")
    if changes := summary["changes"]:
        print_tables(console, "", changes_table(changes), "")
        before, after = (f"{changes['flagged'][name]:,}" for name in ("before", "after"))
        print_plain(console, f"flagged {before} → {after}")
    else:
        print_plain(console, "The scan has this policy already. Nothing has changed.")
    for line in summary_lines(summary):
        print_plain(console, line)
