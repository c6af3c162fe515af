"""A job's results -> one self-contained HTML page: the numbers, and the flagged pairs with their evidence.

Everything from the data is escaped, and a content security policy in the page lets no script run and nothing be
fetched. Memory and the page are bounded by the pairs that it shows, not by the corpus.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from asap.finding import Word
from asap.model.config import TYPES
from asap.preprocessing.images import DEFAULT_LIMITS, decode_image
from asap.render import LEVEL_EDGES, level, mark_words_html
from asap.storage.fetch import ByteRange, fetch
from asap.storage.files import Location, write_bytes
from jobs.errors import StorageError
from jobs.scan.input.manifest import readable_text
from jobs.scan.output.job_folder import read_record, results_folder
from jobs.scan.output.tally import BINS, VERDICTS, Tally, read_rows, tally_results
from jobs.settings import FetchSettings

PICTURE_SIDE = 480
"""Pixels of the longer side of a picture on the page."""
PICTURE_BYTES = 56 * 1024
"""At most, before base64: 60 pictures make a page of 4.5 MB at worst."""
TEXT_SHOWN = 2000
"""Code points of a text on its card; what is beyond is counted."""


def write_report(job_folder: str | Path | Location, top: int = 60) -> str:
    """Write `report/index.html` into a job folder, local or s3://, and return where it is.

    Shows the `top` flagged pairs with the highest scores. A picture that cannot be read again leaves a note in its
    place. Raises `StorageError` where the folder itself cannot be read or written.
    """
    folder = job_folder if isinstance(job_folder, Location) else Location.parse(job_folder)
    record = read_record(folder)
    if record is None:
        raise StorageError(f"{folder} is not the folder of a job: it has no job.json; give OUT/JOB_ID")
    tally = tally_results(results_folder(folder, record), top)
    html = render_page("report.html.j2", ["report.css"], _page(folder.name, record, tally, read_rows(tally.wanted())))
    page = folder / "report" / "index.html"
    write_bytes(page, html.encode("utf-8", "replace"))
    return page.uri


# The page, as data for the template.


def _page(name: str, job: dict[str, Any], tally: Tally, rows: dict[int, dict[str, Any]]) -> dict[str, Any]:
    cards = [_card(rows[place.row_id]) for _, _, place in tally.best]
    shown = Counter(kind for card in cards for kind in card["flagged_types"])
    judged = sum(tally.verdicts.values())
    return {
        "name": str(job.get("job_id") or name),
        "state": "completed" if job.get("state") == "finalizing" else str(job.get("state") or "unknown"),
        "facts": _facts(job),
        "pairs": tally.pairs,
        "judged": judged,
        "flagged": tally.flagged,
        "verdicts": {name: tally.verdicts[name] for name in VERDICTS},
        "errors_total": tally.errors.total(),
        "split": _split(tally),
        "chart": _chart(tally.scores),
        "types": [(spoken(kind), tally.types[kind]) for kind in TYPES],
        "filters": [(kind, spoken(kind), shown[kind]) for kind in TYPES],
        "errors": [_error(tally, rows, code, count) for code, count in tally.errors.most_common()],
        "cards": cards,
        "levels": [(1, f"below {LEVEL_EDGES[0]}")] + [(level(edge), f"from {edge}") for edge in LEVEL_EDGES],
        "nothing_flagged": _nothing_flagged(tally.pairs, judged),
        "calibration": _calibration(job),
        "imprint": f"Model {job.get('model_id') or 'unknown'}, policy {job.get('policy_id') or 'unknown'}.",
    }


def _facts(job: dict[str, Any]) -> list[tuple[str, str]]:
    """What the record of the job says of when, with what and how fast; what it does not say is left out."""
    timings, runs, speed = job.get("timings") or {}, job.get("runs", 1), job.get("pairs_per_s")
    facts = {
        "Input": (job.get("settings") or {}).get("input"),
        "Model": job.get("model_id"),
        "Policy": job.get("policy_id"),
        "Finished": _when(job.get("heartbeat")),
        f"Took, last of {runs} runs" if runs > 1 else "Took": timings and _duration(sum(timings.values())),
        "Speed once started": speed and f"{speed:,.1f} pairs/s",
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _when(heartbeat: str | None) -> str:
    return f"{datetime.fromisoformat(heartbeat).astimezone(UTC):%Y-%m-%d %H:%M} UTC" if heartbeat else ""


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def spoken(kind: str) -> str:
    """A type as a person writes it."""
    return kind.replace("_", " ").capitalize()


def _nothing_flagged(pairs: int, judged: int) -> str:
    if not pairs:
        return "The job has no results: there was no pair to judge."
    return f"None of the {judged:,} judged pairs was flagged." if judged else "No pair could be judged; see the errors."


def _split(tally: Tally) -> Iterator[tuple[str, int, int]]:
    """Kind, start and width of each part of the bar, in pairs."""
    start = 0
    for kind in (*VERDICTS, "error"):
        width = tally.errors.total() if kind == "error" else tally.verdicts[kind]
        yield kind, start, width
        start += width


def _chart(scores: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
    """A histogram with equally spaced ticks: linear, or where the bars differ a hundredfold decades above 1."""
    counts = sum(scores.values(), np.zeros(BINS, np.int64))
    highest, lowest = int(counts.max()), int(counts[counts > 0].min(initial=counts.max()))
    log = highest > 100 * max(lowest, 1)
    decades = math.ceil(math.log10(max(highest, 10)))
    ceiling = _round_up(highest)
    bins = [
        {
            "number": number,
            "count": int(count),
            "verdict": max(VERDICTS, key=lambda name: scores[name][number]),
            "height": max((1 + math.log10(count)) / (1 + decades) if log else count / ceiling, 0.008) if count else 0,
            "label": f"{number / BINS:.2f} to {(number + 1) / BINS:.2f}: {count:,} pairs",
        }
        for number, count in enumerate(counts)
    ]
    ticks = [*(10**power for power in range(decades, -1, -1)), 0] if log else [ceiling, ceiling // 2, 0]
    top = int(counts.argmax())
    summary = f"Histogram of {counts.sum():,} scores from 0 to 1. The tallest of {BINS} bars is {bins[top]['label']}."
    return {"bins": bins, "ticks": ticks, "log": log, "summary": summary}


def _round_up(count: int) -> int:
    """The next even number of one leading digit, so that it and its half are good ticks."""
    step = 10 ** (len(str(count)) - 1)
    return next(n * step for n in (2, 4, 6, 8, 10, 20) if n * step >= count)


def _error(tally: Tally, rows: dict[int, dict[str, Any]], code: str, count: int) -> dict[str, Any]:
    retryable = tally.retryable[code]
    retry = "yes" if retryable == count else f"{retryable:,} of them" if retryable else "no"
    return {"code": code, "count": count, "retry": retry, "example": rows[tally.examples[code].row_id]}


def _calibration(job: dict[str, Any]) -> str:
    calibration = (job.get("policy") or {}).get("calibration")
    if not calibration:
        return "The record of this job names no calibration, so 0.9 does not mean that nine in ten are manipulated."
    plain = {name: value for name, value in calibration.items() if not isinstance(value, dict | list)}
    told = "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in plain.items())
    return f"The thresholds of its policy were calibrated ({told}); for another kind of corpus they are a guess."


# One pair.


def _card(row: dict[str, Any]) -> dict[str, Any]:
    types = row["types"] or {}
    flagged = [kind for kind in TYPES if kind in (row["flagged_types"] or ())]
    picture = read_picture(row)
    text, text_note = _marked_text(row)
    box = row["box_px"] and {
        "x": row["box_px"]["x0"],
        "y": row["box_px"]["y0"],
        "width": max(row["box_px"]["x1"] - row["box_px"]["x0"], 0),
        "height": max(row["box_px"]["y1"] - row["box_px"]["y0"], 0),
    }
    return {
        "custom_id": row["custom_id"],
        "verdict": row["verdict"],
        "score": row["score"] or 0,
        "types": [(spoken(kind), types[kind], kind in flagged) for kind in TYPES if types.get(kind) is not None],
        "flagged_types": flagged,
        "picture": picture,
        "alt": f"Picture of the pair {row['custom_id'][:80]}" + (", with a box around the flagged face" if box else ""),
        "box": box,
        "width": row["width"] or picture.width,
        "height": row["height"] or picture.height,
        "text": text,
        "text_note": text_note,
        "long": len(row["text"] or "") > TEXT_SHOWN / 5,
        "said": [(name.capitalize(), row[name]) for name in ("caption", "explanation") if row.get(name)],
        "warnings": row["warnings"] or [],
        "ids": _ids(row),
    }


def _ids(row: dict[str, Any]) -> list[tuple[str, str]]:
    words = ", ".join(f"{word['word']} {word['score']:.2f}" for word in row["words"] or [])
    box = row["box_px"] and ", ".join(f"{name} {value:.0f}" for name, value in row["box_px"].items())
    named = {"row": row["row_id"], "image": row["image_uri"], "SHA-256": row["image_sha256"], "box, px": box,
             "words": words, "metadata": row["metadata"]}  # fmt: skip
    return [(name, str(value)) for name, value in named.items() if value not in (None, "")]


def _marked_text(row: dict[str, Any]) -> tuple[Markup, str]:
    """The text of a card as HTML, and a note on what of it is not there."""
    if row["text"] is None:
        return Markup(""), "The pair has no text."
    text = readable_text(row["text"], row.get("text_escapes"))
    words = [Word(**word) for word in row["words"] or []]
    if len(text) <= TEXT_SHOWN:
        return mark_words_html(text, words), ""
    beyond = sum(word.start >= TEXT_SHOWN for word in words)
    note = f"{len(text) - TEXT_SHOWN:,} more characters, {beyond} more flagged words."
    return mark_words_html(text[:TEXT_SHOWN], words) + "…", note


@dataclass(frozen=True)
class Picture:
    """A picture for the page, or the reason why there is none."""

    data_uri: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


def read_picture(row: dict[str, Any]) -> Picture:
    """The picture of a row, read again by its `image_uri` and held against its `image_sha256`."""
    try:
        decoded = decode_image(_read_image(row), min_side=PICTURE_SIDE)
        if row["image_sha256"] not in (None, decoded.sha256):
            return Picture(problem="The picture has changed since the scan, so the box would not fit.")
        decoded.image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        encoded = base64.b64encode(_encode(decoded.image)).decode()
    except Exception as error:  # whatever it is, the page must still come
        return Picture(problem=f"It could not be read again. {error}")
    return Picture(f"data:image/webp;base64,{encoded}", *decoded.image.size)


def _read_image(row: dict[str, Any]) -> bytes | None:
    """The bytes of a row's image, be it a file, an object or a member of a tar."""
    uri, offset, length = row["image_uri"], row["image_offset"], row["image_length"]
    if uri is None:
        return None
    part = None if offset is None or length is None else ByteRange(offset, length)
    return fetch(uri, DEFAULT_LIMITS.max_bytes, FetchSettings(attempts=2), part).data


def _encode(image: Image.Image) -> bytes:
    """WebP within `PICTURE_BYTES`: at the best quality that fits, and if none does, at a smaller size."""
    for quality in (82, 65, 45, 25):
        buffer = BytesIO()
        image.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= PICTURE_BYTES:
            return buffer.getvalue()
    return _encode(image.resize((max(1, image.width // 2), max(1, image.height // 2))))


# HTML.


def render_page(template: str, styles: Sequence[str], page: dict[str, Any]) -> str:
    """A page of its own: `page` in a template, with these style sheets of the templates folder and no others."""
    environment = Environment(
        loader=PackageLoader("jobs.pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["clip"] = _clip
    source = "".join(PackageLoader("jobs.pages").get_source(environment, name)[0] for name in styles)
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return environment.get_template(template).render(page=page, css=source, css_hash=f"sha256-{digest}")


def _clip(value: object, length: int) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}… ({len(text) - length:,} more characters)"
