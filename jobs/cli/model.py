"""`asap import` and `asap model`: a model folder of a checkpoint, and what is known of a model."""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import typer
from rich.console import Console

from jobs.cli.options import MODEL_HELP


def import_checkpoint(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A .pth file of ASAP or HAMMER as published, or state.pt of a checkpoint of `asap train`."),
    ],
    out: Annotated[str, typer.Option(help="Model folder to make. Its parent must exist.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Tokenizer of the weights: a folder, or a name that is downloaded, such as bert-base-uncased. "
            "Default: that of the run, for a checkpoint of `asap train`."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model; its id begins with it. Default: the folder's.")
    ] = None,
) -> None:
    """Make a model folder of a published checkpoint, or of a checkpoint of a training run."""
    from jobs.cli.display import print_plain
    from jobs.cli.model_tables import facts_table
    from jobs.model.facts import model_facts
    from jobs.model.importing import import_checkpoint as run

    console = Console()
    with console.status("") as status:
        done = run(checkpoint, out, tokenizer, name, lambda stage: status.update(f"{stage} …"))
    print_plain(console, "\n".join([f"{done.folder}: {done.what}", *(f"note: {note}" for note in done.notes)]))
    console.print(facts_table(model_facts(out)))
    model = shlex.quote(out)
    print_plain(
        console,
        "next:\n"
        f"  asap familiarize {model} CORPUS    # teaches it which pairs it can judge, from the corpus of its training\n"
        f"  asap calibrate {model} LABELED --precision 0.95 --prevalence 0.01    # thresholds for your prevalence\n"
        f"  asap scan INPUT --out SCANS --model {model}",
    )


def model(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what is known of a model: origin, figures, limits, thresholds, familiarity, sizes."""
    from jobs.model.facts import model_facts

    facts = model_facts(model)
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    from jobs.cli.model_tables import facts_tables

    Console().print(facts_tables(facts))
