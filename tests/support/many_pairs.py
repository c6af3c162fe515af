"""A corpus of many pairs that shows few pictures: enough pairs for familiarity, at the cost of drawing a hundred."""

import json
from itertools import cycle, islice
from pathlib import Path


def repeat_pairs(corpus: Path, **pairs: int) -> Path:
    """Repeat the pairs of a drawn corpus until its splits have these numbers. Each repetition has a text of its own."""
    for split, count in pairs.items():
        file = corpus / f"metadata/{split}.json"
        rows = json.loads(file.read_text())
        repeated = [
            row | {"text": f"{row['text']} again {number // len(rows)}" if number >= len(rows) else row["text"]}
            for number, row in enumerate(islice(cycle(rows), count))
        ]
        file.write_text(json.dumps(repeated))
    return corpus
