"""Facts about a model, from the files of its folder. No weight is read, only their names, shapes and types."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from asap.errors import CheckpointError, ConfigError
from asap.familiarity_file import id_of_content, parse_familiarity
from asap.labels import label_set
from asap.limits import NO_FAMILIARITY, limits_sentences
from asap.policy import Policy
from asap.storage.location import Location
from asap.weights.model_folder import model_config, model_id, read_limits, resolve_folder, weights_sha256

_WEIGHTS, _FAMILIARITY, _CARD = "model.safetensors", "familiarity.safetensors", "README.md"
_INTEGERS = ("I8", "I16", "I32", "I64", "U8", "BOOL")
_COUNTS = ("fitted_pairs", "held_out_pairs")
_ROW = re.compile(r"\|\s*([\w@ ]+?)\s*\|\s*(-?\d+(?:\.\d+)?)\s*\|(?:\s*(-?\d+(?:\.\d+)?) to (-?\d+(?:\.\d+)?)\s*\||.*)")
"""A row of the table of metrics on a card: name, value and, if it has one, the interval."""


def model_facts(model: str) -> dict[str, Any]:
    """Return what is known of a model, as JSON values. A value is None if the folder does not say it.

    Args:
        model: A model folder, on this machine or at s3://, or `demo`.

    Raises:
        CheckpointError: The folder, or one of its files, cannot be used.
    """
    folder = resolve_folder(model)
    config, weights = model_config(folder), weights_sha256(folder)
    limits, name = read_limits(folder), model_id(folder, weights)
    types = label_set(config.label_set)
    shown = model if Location.parse(model).is_s3 else str(folder)
    return {
        "model_id": name,
        "folder": shown,
        "limits": None if limits is None else dataclasses.asdict(limits),
        "limits_sentence": limits_sentences(limits, name),
        "label_set": config.label_set,
        "label_set_title": types.title,
        "types": list(types.types),
        "metrics": _metrics(folder),
        "robustness": _robustness(folder),
        "policy": _policy(folder),
        "familiarity": _familiarity(folder, weights),
        "sizes": _sizes(folder) | {
            "image_side": config.image_size,
            "tokens": config.max_tokens,
            "words": config.max_words,
            "vocabulary": config.vocab_size,
        },
        "model": dataclasses.asdict(config),
        "card": f"{shown.rstrip('/')}/{_CARD}" if (folder / _CARD).is_file() else None,
    }  # fmt: skip


def _sizes(folder: Path) -> dict[str, Any]:
    """Return the number of parameters, the bytes of the weights, and the parameters by type."""
    file = folder / _WEIGHTS
    types: Counter[str] = Counter()
    try:
        with safe_open(file, "numpy") as tensors:
            for key in tensors.keys():  # noqa: SIM118  # it is no dictionary
                tensor = tensors.get_slice(key)
                if tensor.get_dtype() not in _INTEGERS:  # counters of batches
                    types[tensor.get_dtype()] += math.prod(tensor.get_shape())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {error}") from error
    return {"parameters": types.total(), "bytes": file.stat().st_size, "parameters_by_type": dict(types)}


def _policy(folder: Path) -> dict[str, Any]:
    """Return thresholds and calibration; raises `CheckpointError` without a policy."""
    if not (folder / "policy.json").is_file():
        raise CheckpointError(f"model folder {folder} has no policy.json")
    try:
        policy = Policy.load(folder / "policy.json")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return {"policy_id": policy.policy_id} | dataclasses.asdict(policy)


def _familiarity(folder: Path, weights: str) -> dict[str, Any] | None:
    """Return what the familiarity was fitted to; None without one."""
    path = folder / _FAMILIARITY
    if not path.is_file():
        return None
    content = path.read_bytes()
    about = parse_familiarity(content, weights, path).about
    pairs = {key: int(about[key]) for key in _COUNTS if key in about}
    return {"familiarity_id": id_of_content(content), "corpus": about.get("corpus")} | pairs


def _section(folder: Path, title: str) -> str:
    """Return the text of a section of the card; empty without a card or without the section."""
    file = folder / _CARD
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def _robustness(folder: Path) -> list[dict[str, str]] | None:
    """Return the first table of the card's section Robustness: for each change of the pictures, its cells by column.

    None if the card has no such table. The cells are texts, as on the card.
    """
    lines = _section(folder, "Robustness").partition("\n|")[2].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [dict(zip(cells[0], row, strict=True)) for row in cells[2:] if len(row) == len(cells[0])]
    return rows or None


def _metrics(folder: Path) -> dict[str, Any] | None:
    """Return the metrics of a card and what they were measured on; None if it has no table of them."""
    section = _section(folder, "Metrics")
    rows = [match for line in section.splitlines() if (match := _ROW.match(line))]
    if not rows:
        return None
    values = {
        name: {"value": float(value), "interval": None if low is None else [float(low), float(high)]}
        for name, value, low, high in (match.groups() for match in rows)
    }
    measured_on = " ".join(section.partition("|")[0].split()).rstrip(":")
    by_type = re.search(r"^Average precision by type: .*$", section, re.MULTILINE)
    return {"measured_on": measured_on, "values": values, "by_type": by_type[0] if by_type else None}


def familiarity_sentence(facts: dict[str, Any]) -> str:
    """Return what the model does with pairs that look like nothing it was made from."""
    familiarity = facts["familiarity"]
    if familiarity is None:
        return NO_FAMILIARITY
    counts = [f"{familiarity[key]:,}" if key in familiarity else "an unknown number of" for key in _COUNTS]
    corpus = f" of the corpus {familiarity['corpus']}" if familiarity["corpus"] else ""
    return (
        f"{familiarity['familiarity_id']}, fitted to {counts[0]} pairs{corpus} and {counts[1]} held-out pairs. A pair "
        f"that is stranger than all but {100 * facts['policy']['unfamiliar']:g} % of these is unfamiliar: not judged."
    )
