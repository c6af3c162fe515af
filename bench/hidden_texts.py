"""Measure how many flagged texts stay flagged when their letters are hidden from the model in twenty ways.

The pairs are newsroom pairs whose text alone was manipulated and which the model flags. Each way changes every word of
the text, or one word in three for typos, so that a person still reads it. A row of the table says how many pairs keep
their verdict, how many are refused as unreadable, and how many become authentic.

    python bench/hidden_texts.py [--pairs 1000] [--model demo] [--seed 303] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOOK_ALIKES = str.maketrans("aeopcyxisj", "аеорсухіѕј")  # Cyrillic
GREEK = str.maketrans("aopvu", "αορνυ")
LEET = str.maketrans("aeios", "43105")


def _each_word(change: Callable[[str, random.Random], str]) -> Callable[[str, random.Random], str]:
    return lambda text, rng: " ".join(change(word, rng) for word in text.split())


def _insert(character: str) -> Callable[[str, random.Random], str]:
    """Return a way that puts a character into the middle of each word."""
    return _each_word(lambda word, rng: word[: (len(word) + 1) // 2] + character + word[(len(word) + 1) // 2 :])


def _shift(first_lower: int, first_upper: int) -> Callable[[str, random.Random], str]:
    """Return a way that replaces ASCII letters by those of another block."""
    table = {ord("a") + n: first_lower + n for n in range(26)} | {ord("A") + n: first_upper + n for n in range(26)}
    return lambda text, rng: text.translate(table)


def _typo(word: str, rng: random.Random) -> str:
    """Swap two neighboring letters in one of three words of four letters or more."""
    if len(word) < 4 or rng.random() > 1 / 3:
        return word
    at = rng.randrange(1, len(word) - 2)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


WAYS: dict[str, Callable[[str, random.Random], str]] = {
    "unchanged": lambda text, rng: text,
    "fullwidth letters": _shift(0xFF41, 0xFF21),
    "bold mathematical letters": _shift(0x1D41A, 0x1D400),
    "circled letters": _shift(0x24D0, 0x24B6),
    "Cyrillic look-alikes, all": lambda text, rng: text.translate(LOOK_ALIKES),
    "Cyrillic look-alikes, one in each word": _each_word(
        lambda word, rng: next((word.replace(c, c.translate(LOOK_ALIKES), 1) for c in "aeopcyxi" if c in word), word)
    ),
    "Greek look-alikes": lambda text, rng: text.translate(GREEK),
    "zero-width space in each word": _insert("\u200b"),
    "zero-width joiner in each word": _insert("\u200d"),
    "zero-width spaces for spaces": lambda text, rng: "\u200b".join(text.split()),
    "soft hyphen in each word": _insert("\u00ad"),
    "word joiner in each word": _insert("\u2060"),
    "combining grapheme joiner in each word": _insert("\u034f"),
    "Hangul filler in each word": _insert("\u3164"),
    "decimal entities": lambda text, rng: "".join(c if c == " " else f"&#{ord(c)};" for c in text),
    "hexadecimal entities, vowels": lambda text, rng: "".join(f"&#x{ord(c):x};" if c in "aeiou" else c for c in text),
    "combining strokes": lambda text, rng: "".join(c if c == " " else c + "\u0336" for c in text),
    "accents on vowels": lambda text, rng: unicodedata.normalize(
        "NFC", "".join(c + "\u0301" if c in "aeiou" else c for c in text)
    ),
    "right-to-left override around the text": lambda text, rng: f"\u202d{text}\u202c",
    "capital letters": lambda text, rng: text.upper(),
    "digits for letters (leetspeak)": lambda text, rng: text.translate(LEET),
    "typos in a third of the words": _each_word(_typo),
}
"""The ways to hide a text, by name."""


def flagged_pairs(predictor: Any, folder: Path, count: int, seed: int) -> list[tuple[Any, str]]:
    """Draw pairs until `count` of those with a manipulated text alone are flagged; return their pictures and texts."""
    from asap.labels import types_of
    from asap.newsroom import generate
    from asap.preprocessing.images import prepare_image

    found: list[tuple[Any, str]] = []
    for part in range(100):
        generate(folder / str(part), pairs=2000, seed=seed + part, splits=(0.0, 0.0, 1.0))
        records = json.loads((folder / str(part) / "metadata/test.json").read_text())
        chosen = [record for record in records if _is_text_alone(types_of(record["fake_cls"]))]
        images = [prepare_image(folder / str(part) / record["image"], predictor.image_size) for record in chosen]
        findings = predictor.predict_prepared(images, [record["text"] for record in chosen])
        for record, image, finding in zip(chosen, images, findings, strict=True):
            if finding.verdict == "manipulated":
                found.append((image, record["text"]))
        if len(found) >= count:
            return found[:count]
    raise SystemExit(f"Only {len(found)} of {count} pairs are flagged. Pass fewer --pairs.")


def _is_text_alone(types: Any) -> bool:
    return bool(types) and all(str(kind).startswith("text") for kind in types)


def main() -> None:
    """Hide the texts in each way, print a table, and write JSON if requested."""
    from rich.console import Console
    from rich.table import Table

    from asap.predictor import Predictor

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seed", type=int, default=303)
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args()
    predictor = Predictor.from_folder(options.model)
    with tempfile.TemporaryDirectory() as name:
        pairs = flagged_pairs(predictor, Path(name), options.pairs, options.seed)
    figures = []
    for name, hide in WAYS.items():
        rng = random.Random(options.seed)
        findings = predictor.predict_prepared([image for image, _ in pairs], [hide(text, rng) for _, text in pairs])
        counts = Counter(finding.error.code if finding.error else finding.verdict for finding in findings)
        figures.append({"way": name, "pairs": len(pairs), **counts})
    table = Table("way", "still manipulated", "unfamiliar", "unreadable", "authentic")
    for row in figures:
        table.add_row(
            row["way"], *(str(row.get(k, 0)) for k in ("manipulated", "unfamiliar", "text_unreadable", "authentic"))
        )
    Console(width=120).print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
