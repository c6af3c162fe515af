"""Tell manipulated texts of newsroom that contradict themselves from those that only the picture disproves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

TextEvidence = Literal["true", "contradicts itself", "only the picture disproves it"]

_EVIDENCE: dict[str, TextEvidence] = {
    "": "true",
    "text": "contradicts itself",
    "picture": "only the picture disproves it",
}


def text_evidence(corpus: Path, split: str) -> Mapping[int, TextEvidence]:
    """Return what disproves the text of each record of a split, by the record's id.

    Raises `SystemExit` if the corpus does not say so.
    """
    records = json.loads((corpus / "metadata" / f"{split}.json").read_text("utf-8"))
    try:
        return {record["id"]: _EVIDENCE[record["disproved_by"]] for record in records}
    except KeyError as error:
        version = json.loads((corpus / "newsroom.json").read_text("utf-8"))["corpus_version"]
        raise SystemExit(
            f"the records of {corpus} ({version}) do not say what disproves a text: {error}. "
            "Draw the corpus again; newsroom-3 is the first version that does."
        ) from error
