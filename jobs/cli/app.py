"""The `asap` command. Each command is one function; what is slow to import is imported inside it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from asap.errors import AsapError, ConfigError, TextInvalid, TextMissing
from jobs.cli.options import MODEL_HELP, Change, changes_of, settings_of
from jobs.cli.serve import serving
from jobs.errors import JobError

if TYPE_CHECKING:
    from asap.finding import Finding

app = typer.Typer(
    name="asap",
    help="Find manipulated faces and words in image-text pairs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(serving, name="serve")
_INTERRUPTED = 130


def main() -> None:
    """The entry point: an `AsapError` is one sentence on stderr and exit code 1; an interruption is 130."""
    signal.signal(signal.SIGTERM, _interrupt)  # a job that is told to stop records it
    try:
        app()
    except AsapError as error:
        _complain(str(error))
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:  # typer has turned the KeyboardInterrupt into it
            kept = "what was done is kept, give the same command to go on"
            _complain("stopped at once" if sys.argv[1:2] == ["serve"] else f"interrupted; {kept}")
        raise


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _complain(message: str) -> None:
    Console(stderr=True).print(f"asap: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


@app.command()
def scan(
    input: Annotated[str, typer.Argument(help="DGM4 JSON, JSONL, CSV or Parquet, or a folder of pictures; or s3://.")],
    out: Annotated[str, typer.Option(help="Where job folders are kept: a folder or s3://.")],
    job: Annotated[str | None, typer.Option(help="Name of the job folder; by default the input's.")] = None,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "demo",
    limit: Annotated[int | None, typer.Option(help="Scan only the first so many pairs.")] = None,
    caption_engine: Annotated[
        str | None, typer.Option(help="Caption pictures with 'transformers' or 'precomputed'; by default not at all.")
    ] = None,
    captioner: Annotated[
        str | None, typer.Option(help="The captioner's model folder or hub name, or the file of captions.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster ('auto' on one of its machines); by default here.")
    ] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu' or 'cuda'.")] = "auto",
    precision: Annotated[str, typer.Option(help="'auto', 'float32' or 'bfloat16'.")] = "auto",
    detectors: Annotated[int | None, typer.Option(help="Detector actors; by default as many as fit.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs that are judged together.")] = None,
) -> None:
    """Scan pairs in bulk. The same command again goes on with a scan that was stopped."""
    from jobs.cli.display import errors_line, progress_shown, summary_table
    from jobs.scan.run import scan as run
    from jobs.scan.settings import ScanSettings

    if (caption_engine is None) != (captioner is None):
        missing = "--caption-engine" if caption_engine is None else "--captioner"
        raise ConfigError(f"--caption-engine and --captioner belong together, and {missing} is not given")
    captions = {"engine": caption_engine, "source": captioner} if caption_engine else None
    settings = settings_of(
        ScanSettings, input=input, out=out, job=job, model=model, limit=limit, captions=captions, address=address,
        device=device, precision=precision, detectors=detectors, batch_size=batch_size,
    )  # fmt: skip
    console = Console()
    with progress_shown(console) as watch:
        summary = run(settings, watch)
    console.print(summary_table(summary))
    for line in filter(None, (errors_line(summary), f"report: {summary['report']}")):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if summary["errors"] == summary["pairs"]:
        raise JobError(f"none of the {summary['pairs']} pairs could be judged; the errors say why")


@app.command()
def detect(
    image: Annotated[str, typer.Argument(help="A picture: a path or s3://.")],
    text: Annotated[str | None, typer.Option(help="The text that goes with it.")] = None,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "demo",
    as_json: Annotated[bool, typer.Option("--json", help="Print the finding as JSON.")] = False,
    save: Annotated[Path | None, typer.Option(help="Save the picture with the evidence drawn on it.")] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu' or 'cuda'.")] = "auto",
    url: Annotated[str | None, typer.Option(help="Of a server, which judges instead; ASAP_KEY is its key.")] = None,
) -> None:
    """Judge one pair: verdict, types, face and words."""
    if save is not None:
        _check_saving(save)
    source = _object_bytes(image) if image.startswith("s3://") else Path(image)
    if url is not None:
        told, finding = _judged_at(url, source, text)
    else:
        from asap.finding import Pair
        from asap.predictor import Predictor

        finding = Predictor.from_folder(model, device).predict([Pair(source, text)])[0]
        told = finding.to_dict()
    if as_json:
        typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
    if finding.error is not None:
        raise _named(finding.error, image)
    if not as_json:
        from jobs.cli.display import show_finding

        Console().print(show_finding(finding, text))
    if save is not None:
        from asap.preprocessing.images import decode_image
        from asap.render import draw_evidence

        draw_evidence(decode_image(source).image, finding, text).save(save)


def _named(error: AsapError, image: str) -> AsapError:
    """The error of a pair, with its picture where that is at fault and not named yet."""
    if isinstance(error, TextMissing):
        return ConfigError(f"{error}; give --text")
    if isinstance(error, TextInvalid) or image in str(error):
        return error
    return ConfigError(f"{image}: {error}")


def _check_saving(save: Path) -> None:
    from PIL import Image

    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.SAVE}
    if save.suffix.lower() not in suffixes:
        raise ConfigError(f"--save {str(save)!r} does not end in a picture's suffix; write .png or .jpg")
    if not save.absolute().parent.is_dir():
        raise ConfigError(f"--save {str(save)!r} lies in a folder that is not there; make it, or name another")


def _object_bytes(image: str) -> bytes:
    """Of an s3:// picture, unless it is too large."""
    from asap.preprocessing.images import DEFAULT_LIMITS
    from asap.storage.fetch import FetchSettings, fetch
    from asap.storage.location import Location

    return fetch(Location.parse(image).uri, DEFAULT_LIMITS.max_bytes, FetchSettings()).data


def _judged_at(url: str, source: bytes | Path, text: str | None) -> tuple[dict[str, Any], Finding]:
    """What a server of `asap serve` answers, and the same as a finding."""
    from serve.client import Client, finding_of, read_image

    data = source if isinstance(source, bytes) else read_image(str(source))
    answer = Client(url, os.environ.get("ASAP_KEY")).detect(data, text or "")
    return answer, finding_of(answer)


@app.command()
def newsroom(
    out: Annotated[Path, typer.Argument(help="A new folder for the corpus.")],
    pairs: Annotated[int, typer.Option(min=1, help="Image-text pairs, over all splits.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same corpus.")] = 0,
    splits: Annotated[tuple[float, float, float], typer.Option(help="Shares of train, val and test.")] = (
        0.8,
        0.1,
        0.1,
    ),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
) -> None:
    """Draw a small corpus in DGM4's layout: news pictures and captions, some of them manipulated."""
    from asap.newsroom import generate
    from jobs.cli.display import count_shown

    with count_shown(Console(), "drawing") as progress:
        made = generate(out, pairs=pairs, seed=seed, workers=workers, splits=splits, progress=progress)
    counts = ", ".join(f"{count} {name}" for name, count in made.pairs.items())
    typer.echo(f"{made.corpus_version}: {counts}; {made.pictures} pictures in {made.out}")


@app.command()
def train(
    corpus: Annotated[str, typer.Argument(help="A folder in DGM4's layout, such as asap newsroom draws; or s3://.")],
    out: Annotated[str, typer.Option(help="The run folder; the trained model will be in OUT/model.")],
    name: Annotated[str, typer.Option(help="Of the model; it begins the model id.")] = "asap-tiny",
    test_corpus: Annotated[
        str | None, typer.Option(help="A corpus whose test split judges the model; by default CORPUS.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs to train on, counting each time one is seen.")] = 140_000,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and augmentation.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Ray Train workers.")] = 1,
    init: Annotated[
        list[str] | None,
        typer.Option(
            help="Start from these weights: a .pth file, a model folder, timm:NAME_OR_FOLDER or bert:NAME_OR_FOLDER; "
            "can be repeated."
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what the run will do, and do not do it.")] = False,
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster; by default here.")] = None,
    change: Change = None,
) -> None:
    """Train a model. The same command again goes on with a run that was stopped."""
    from jobs.cli.display import plan_tables, training_shown
    from jobs.train.run import plan as planned
    from jobs.train.run import train as run
    from jobs.train.settings import TrainSettings

    given: dict[str, Any] = {"corpus": corpus, "out": out, "name": name, "test_corpus": test_corpus, "pairs": pairs}
    given |= {"seed": seed, "workers": workers, "address": address, "init": init or ()}
    settings = settings_of(TrainSettings, **(given | changes_of(change or [])))
    if plan:
        with training_shown(Console()) as progress:
            tables = plan_tables(planned(settings, progress))
        Console().print(tables)
        return
    with training_shown(Console()) as progress:
        folder = run(settings, progress)
    typer.echo(f"model: {folder}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    corpus: Annotated[str, typer.Argument(help="A labelled corpus: a folder in DGM4's layout, or s3://.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    out: Annotated[str, typer.Option(help="A folder for figures, pictures and page; or s3://.")] = "evaluation",
    limit: Annotated[int | None, typer.Option(min=1, help="Judge only the first so many pairs.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Shards judged at a time; by default as many as fit.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster; by default here.")] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu' or 'cuda'.")] = "auto",
    change: Change = None,
) -> None:
    """Judge a model on labelled pairs: the paper's table, pictures, and the worst pairs with their evidence."""
    from jobs.cli.display import count_shown, evaluation_tables
    from jobs.evaluate.run import evaluate as run
    from jobs.evaluate.settings import EvaluateSettings

    given = {"model": model, "corpus": corpus, "split": split, "out": out, "limit": limit, "workers": workers}
    given |= {"address": address, "device": device}
    settings = settings_of(EvaluateSettings, **(given | changes_of(change or [])))
    console = Console()
    with count_shown(console, "judging") as progress:
        report = run(
            settings, progress, lambda note: console.print(note, soft_wrap=True, highlight=False, markup=False)
        )
    console.print("\n".join(report["read"]), soft_wrap=True, highlight=False, markup=False)
    console.print(evaluation_tables(report))
    console.print(f"page: {out.rstrip('/')}/index.html", soft_wrap=True, highlight=False, markup=False)


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    corpus: Annotated[
        str, typer.Argument(help="A folder or s3:// in DGM4's layout, with pairs that training never saw.")
    ],
    precision: Annotated[float, typer.Option(help="Of the pairs that are flagged, the share to be flagged rightly.")],
    prevalence: Annotated[float, typer.Option(help="Share of manipulated pairs where the model will be used.")],
    split: Annotated[str, typer.Option(help="Whose scores choose the thresholds.")] = "val",
    out: Annotated[str | None, typer.Option(help="The policy file; by default MODEL/policy.json.")] = None,
    review_precision: Annotated[
        float | None,
        typer.Option(
            help="Of the pairs that go to people; by default a quarter of the way from --prevalence to --precision."
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="With which each threshold keeps its precision.")] = 0.95,
    keep: Annotated[
        list[str] | None, typer.Option(help="A type, or 'word', whose threshold stays as it is; can be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu' or 'cuda'.")] = "auto",
    dtype: Annotated[str, typer.Option(help="'auto', 'float32' or 'bfloat16', as scans will run.")] = "auto",
    change: Change = None,
) -> None:
    """Choose thresholds that keep a precision where manipulation is as rare as you say."""
    from jobs.cli.display import calibration_table, count_shown
    from jobs.policy.calibrate import calibrate as run
    from jobs.policy.settings import CalibrateSettings

    given = {"model": model, "corpus": corpus, "precision": precision, "prevalence": prevalence, "split": split}
    given |= {"out": out, "review_precision": review_precision, "confidence": confidence, "keep": keep or ()}
    given |= {"device": device, "dtype": dtype}
    settings = settings_of(CalibrateSettings, **(given | changes_of(change or [])))
    console = Console()
    with count_shown(console, "scoring") as progress:
        made = run(settings, progress)
    console.print("\n".join(made.read), soft_wrap=True, highlight=False, markup=False)
    console.print(calibration_table((made.policy.calibration or {})["thresholds"]))
    typer.echo(f"policy {made.policy.policy_id}: {made.written}")
    if made.kept:
        typer.echo(f"the policy that was there: {made.kept}")


@app.command()
def repolicy(
    job: Annotated[str, typer.Argument(help="The folder of a finished scan, OUT/JOB; or s3://.")],
    policy: Annotated[str, typer.Option(help="The policy file, such as asap calibrate writes.")],
) -> None:
    """Give a finished scan other thresholds, without scanning again. The same command again goes on."""
    from jobs.cli.display import progress_shown, summary_table
    from jobs.policy.repolicy import repolicy as run
    from jobs.scan.run import ScanProgress

    console = Console()
    with progress_shown(console) as watch:
        summary = run(job, policy, lambda stage, done, total: watch(ScanProgress(stage, done, total)))
    console.print(summary_table(summary))
    typer.echo(f"policy {summary['policy_id']}; report: {summary['report']}")
