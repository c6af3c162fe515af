"""The report of a job: one self-contained HTML page with the numbers, and the flagged pairs with their evidence.

Pairs that are unfamiliar to the model are shown apart, without evidence. If they are the most, the page begins with it.

Everything from the data is escaped. A content security policy in the page forbids scripts and requests. Memory and the
size of the page are bounded by the pairs that it shows, not by the corpus.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from asap.errors import StorageError
from asap.finding import NO_EVIDENCE, Word, lacks_evidence, score_text
from asap.job_records.record import read_record, results_folder
from asap.labels import FLAGGED, TYPES, VERDICTS
from asap.policy import UNFAMILIAR
from asap.render import LEVEL_EDGES, level, mark_words_html
from asap.storage.files import write_bytes
from asap.storage.location import Location
from asap.storage.picture_address import PictureAddress
from jobs.pages.page import TEXT_SHOWN, Picture, embed_pictures, render_page, type_label
from jobs.scan.input.manifest import readable_text
from jobs.scan.output.tally import BINS, JUDGED, STRANGEST, TOP, Tally, read_rows, tally_results
from jobs.scan.stages.result_rows import reused_words
from jobs.scan.timeline import speeds


def write_report(
    job_folder: str | Path | Location, top: int = TOP, tally: Tally | None = None, pictures: str | None = None
) -> str:
    """Write `report/index.html` into a job folder, local or s3://, and return its address.

    The report shows the `top` flagged pairs with the highest scores, a few unfamiliar ones, and a sample of those that
    were not flagged. A picture that cannot be read again is replaced by a note. Raises `StorageError` if the folder
    itself cannot be read or written.

    Args:
        job_folder: The folder.
        top: Number of flagged pairs.
        tally: The counts over the results, with the addresses of so many rows. None: the results are counted here.
        pictures: `shown`, `blurred` until a reader asks for them, or `none`. None: as the settings of the job say.
    """
    folder = job_folder if isinstance(job_folder, Location) else Location.parse(job_folder)
    record = read_record(folder)
    if record is None:
        raise StorageError(f"{folder} is not the folder of a job: it has no job.json. Give OUT/JOB.")
    if tally is None:
        tally = tally_results(results_folder(folder, record), top, STRANGEST)
    pictures = pictures or (record.get("settings") or {}).get("report_pictures", "shown")
    data = _page(folder.name, record, tally, read_rows(tally.shown_rows()), pictures)
    html = render_page("report.html.j2", ["report.css"], data)
    page = folder / "report" / "index.html"
    write_bytes(page, html.encode("utf-8", "replace"))
    return page.uri


# The data of the page, for the template.


def _page(
    name: str, job: dict[str, Any], tally: Tally, rows: dict[int, dict[str, Any]], shows_pictures: str
) -> dict[str, Any]:
    best, strange, passed = (
        [rows[address.row_id] for _, _, address in addresses]
        for addresses in (tally.best, tally.least_familiar, tally.sampled)
    )
    fetch = (job.get("settings") or {}).get("fetch") or {}
    pictures = embed_pictures(
        best + strange + passed, left_out=shows_pictures == "none", only_below=fetch.get("only_below")
    )
    cards = [_card(row, pictures[row["row_id"]]) for row in best]
    shown = Counter(kind for card in cards for kind in (*card["flagged_types"], card["verdict"]))
    scored = sum(tally.verdicts[name] for name in JUDGED)
    state = str(job.get("state") or "unknown")
    if state == "finalizing":  # the report is written before the job has ended, and read after it
        state = "unfamiliar" if job.get("error") else "completed"
    facts = _facts(job)
    if tally.reused:
        facts.append(("Not judged again", reused_words(tally.reused)))
    return {
        "name": str(job.get("job_id") or name),
        "state": state,
        "facts": facts,
        "limits": str(job.get("limits") or ""),
        "not_judged": _not_judged(job, tally, scored, state),
        "familiarity": _familiarity_note(job),
        "has_familiarity": bool(job.get("familiarity_id") or tally.unfamiliar),
        "unfamiliar": tally.unfamiliar,
        "strangers": [_stranger(row, _threshold(job), pictures[row["row_id"]]) for row in strange],
        "pairs": tally.pairs,
        "scored": scored,
        "flagged": tally.flagged,
        "verdicts": {name: tally.verdicts[name] for name in VERDICTS},
        "errors_total": tally.errors.total(),
        "split": _split(tally),
        "chart": _chart(tally.scores),
        "types": [(type_label(kind), tally.types[kind]) for kind in TYPES],
        "filters": [(kind, type_label(kind), shown[kind]) for kind in TYPES],
        "verdict_filters": [(verdict, verdict.capitalize(), shown[verdict]) for verdict in FLAGGED],
        "passed": [_card(row, pictures[row["row_id"]]) for row in passed],
        "has_pictures": any(picture.data_uri for picture in pictures.values()),
        "is_blurred": shows_pictures == "blurred",
        "speed": _speed_chart(job),
        "errors": [_error(tally, rows, code, count) for code, count in tally.errors.most_common()],
        "cards": cards,
        "levels": [(1, f"below {LEVEL_EDGES[0]}")] + [(level(edge), f"from {edge}") for edge in LEVEL_EDGES],
        "nothing_flagged": _nothing_flagged(tally, scored),
        "calibration": _calibration(job),
        "imprint": f"Model {job.get('model_id') or 'unknown'}, policy {job.get('policy_id') or 'unknown'}.",
    }


def _facts(job: dict[str, Any]) -> list[tuple[str, str]]:
    """Return input, model, policy, time and speed from the record of the job, those that it has."""
    timings, runs, speed = job.get("timings") or {}, job.get("runs", 1), job.get("pairs_per_s")
    ended = job.get("heartbeat")  # the last heartbeat of a finished job
    if ended:
        ended = f"{datetime.fromisoformat(ended).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    facts = {
        "Input": (job.get("settings") or {}).get("input"),
        "Model": job.get("model_id"),
        "Policy": job.get("policy_id"),
        "Finished": ended,
        f"Took, last of {runs} runs" if runs > 1 else "Took": timings and _format_duration(sum(timings.values())),
        "Speed once started": speed and f"{speed:,.1f} pairs/s",
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _format_duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _model_name(job: dict[str, Any]) -> str:
    return str(job.get("model_id") or "the model").partition("@")[0]


def _not_judged(job: dict[str, Any], tally: Tally, scored: int, state: str) -> list[str]:
    """Return the sentences that the page begins with if most pairs were not judged; none otherwise."""
    if tally.unfamiliar <= scored:
        return []
    read = tally.unfamiliar + scored
    who = f"{tally.unfamiliar:,} of {read:,} pairs were not judged"
    if not scored:
        who = "The one pair was not judged" if read == 1 else f"None of the {read:,} pairs was judged"
    sentences = [f"{who}, because {_model_name(job)} has seen nothing like them."]
    if scored:
        sentences.append(f"Distrust the verdicts on the other {scored:,} pairs too: they come from the same input.")
    else:
        sentences.append("Whether they were manipulated is unknown.")
    if state == "unfamiliar":
        rows = (job.get("manifest") or {}).get("rows", tally.pairs)
        sentences.append(
            f"They are a sample of the {rows:,} pairs of the input. The scan stopped after it; --allow-unfamiliar "
            "scans the rest."
        )
    return sentences


def _familiarity_note(job: dict[str, Any]) -> str:
    """Return a sentence on the pairs that are judged whatever they are; empty if unfamiliar pairs are told apart."""
    if not job.get("familiarity_id"):
        return (
            "The model has no record of what its own pairs look like, so it judged every pair, also what it never saw."
        )
    if not _threshold(job):
        return "The policy judges every pair, also what the model never saw."
    return ""


def _threshold(job: dict[str, Any]) -> float:
    """Return the familiarity below which the job's policy judges nothing."""
    return float((job.get("policy") or {}).get("unfamiliar", UNFAMILIAR))


def _nothing_flagged(tally: Tally, scored: int) -> str:
    """Return the sentence that replaces the cards if there are none."""
    if not tally.pairs:
        return "The job has no results: there was no pair to scan."
    if not scored and not tally.unfamiliar:
        return "No pair could be scored; see the errors."
    if not scored:
        return "No pair was judged, so none could be flagged. That does not make them authentic."
    others = f" {tally.unfamiliar:,} other pairs were not judged." if tally.unfamiliar else ""
    return f"None of the {scored:,} judged pairs was flagged.{others}"


def _split(tally: Tally) -> Iterator[tuple[str, int, int]]:
    """Yield kind, start and width of each part of the bar, in pairs."""
    start = 0
    for kind in (*VERDICTS, "error"):
        width = tally.errors.total() if kind == "error" else tally.verdicts[kind]
        yield kind, start, width
        start += width


def _chart(scores: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
    """Return a histogram of the scores of judged pairs, each bar colored by its most frequent verdict.

    Its ticks are equally spaced. The scale is linear; if the bars differ more than a hundredfold, it is logarithmic
    above 1.
    """
    counts = sum(scores.values(), np.zeros(BINS, np.int64))
    highest, lowest = int(counts.max()), int(counts[counts > 0].min(initial=counts.max()))
    log = highest > 100 * max(lowest, 1)
    decades = math.ceil(math.log10(max(highest, 10)))
    ceiling = _round_up(highest)
    # A bar that is not empty stays visible, however low it is.
    bins = [
        {
            "number": number,
            "count": int(count),
            "verdict": max(JUDGED, key=lambda name: scores[name][number]),
            "height": max((1 + math.log10(count)) / (1 + decades) if log else count / ceiling, 0.008) if count else 0,
            "label": f"{number / BINS:.2f} to {(number + 1) / BINS:.2f}: {count:,} pairs",
        }
        for number, count in enumerate(counts)
    ]
    ticks = [*(10**power for power in range(decades, -1, -1)), 0] if log else [ceiling, ceiling // 2, 0]
    top = int(counts.argmax())
    summary = f"Histogram of {counts.sum():,} scores from 0 to 1. The tallest of {BINS} bars is {bins[top]['label']}."
    return {"bins": bins, "ticks": ticks, "log": log, "summary": summary}


def _speed_chart(job: dict[str, Any]) -> dict[str, Any] | None:
    """Return the pairs a second over the time of work as bars; None for a job of a few seconds, or without a record."""
    parts = speeds((job.get("timeline") or {}).get("points") or ())
    if len(parts) < _FEWEST_SPEEDS:
        return None
    ceiling, end = _round_up(max(1, math.ceil(max(speed for _, _, speed in parts)))), parts[-1][1]
    bars = [
        {
            "start": start,
            "width": stop - start,
            "height": speed / ceiling,
            "label": f"{_format_duration(start)} to {_format_duration(stop)}: {speed:,.1f} pairs/s",
        }
        for start, stop, speed in parts
    ]
    summary = f"Pairs a second over {_format_duration(end)} of work, at most {ceiling:,}."
    return {"bars": bars, "end": end, "ticks": [ceiling, ceiling // 2, 0], "summary": summary,
            "times": [_format_duration(end * part / 2) for part in range(3)]}  # fmt: skip


_FEWEST_SPEEDS = 3
"""Fewest bars of the chart of speed."""


def _round_up(count: int) -> int:
    """Return the next even number with one leading digit, so that it and its half are good ticks."""
    step = 10 ** (len(str(count)) - 1)
    return next(n * step for n in (2, 4, 6, 8, 10, 20) if n * step >= count)


def _error(tally: Tally, rows: dict[int, dict[str, Any]], code: str, count: int) -> dict[str, Any]:
    retryable = tally.retryable[code]
    retry = "yes" if retryable == count else f"{retryable:,} of them" if retryable else "no"
    return {"code": code, "count": count, "retry": retry, "example": rows[tally.examples[code].row_id]}


def _calibration(job: dict[str, Any]) -> str:
    """Return the sentence about the calibration of the job's policy."""
    calibration = (job.get("policy") or {}).get("calibration")
    if not calibration:
        return (
            "The record of this job names no calibration, so a score of 0.9 does not mean that nine in ten such pairs "
            "are manipulated."
        )
    plain = {name: value for name, value in calibration.items() if not isinstance(value, dict | list)}
    facts = "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in plain.items())
    return f"The thresholds of its policy were calibrated ({facts}). For another kind of corpus they are a guess."


# The card of one pair.


def _card(row: dict[str, Any], picture: Picture) -> dict[str, Any]:
    types = row["types"] or {}
    flagged = [kind for kind in TYPES if kind in (row["flagged_types"] or ())]
    box = row["box_px"] and {
        "x": row["box_px"]["x0"],
        "y": row["box_px"]["y0"],
        "width": max(row["box_px"]["x1"] - row["box_px"]["x0"], 0),
        "height": max(row["box_px"]["y1"] - row["box_px"]["y0"], 0),
    }
    return _pair(row, picture) | {
        "score": row["score"] or 0,
        "types": [(type_label(kind), types[kind], kind in flagged) for kind in TYPES if types.get(kind) is not None],
        "flagged_types": flagged,
        "box": box,
        "unsupported": NO_EVIDENCE if lacks_evidence(row["verdict"], flagged, row["words"], row["box_px"]) else "",
        "notes": _notes(row),
        "agreement": [(label, f"{row[name]:.2f}") for name, label in _AGREEMENTS.items() if row.get(name) is not None],
        "warnings": row["warnings"] or [],
    }


_AGREEMENTS = {
    "agreement_image_text": "picture and text", "agreement_image_caption": "picture and caption",
    "agreement_text_caption": "text and caption",
}  # fmt: skip
"""Columns with the cosine of two sides, and the sides."""


def _notes(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return caption and explanation of a card with their headings, and why one that was asked for is missing."""
    notes = [(name.capitalize(), row[name]) for name in ("caption", "explanation") if row.get(name)]
    for name in ("caption", "explanation"):
        if error := row.get(f"{name}_error"):
            notes.append((f"No {name}", f"{error['detail']} ({error['kind']})"))
    return notes


def _stranger(row: dict[str, Any], threshold: float, picture: Picture) -> dict[str, Any]:
    """Return the card of an unfamiliar pair: it has no evidence, but says whether picture or text is strange."""
    parts = {"Picture": row["familiarity_image"], "Text": row["familiarity_text"]}
    known = {name: value for name, value in parts.items() if value is not None}
    lowest = min(known.values(), default=None)
    strange = {name for name, value in known.items() if value == lowest or value < threshold}
    return _pair(row, picture) | {
        "parts": [(name, _format_share(value), name in strange) for name, value in known.items()]
    }


def _format_share(share: float) -> str:
    """Return a share for a person: `1 in 4,700`, and percent from a tenth on. A share below 1 is never 100 %."""
    if share >= 0.1:
        return f"{min(round(100 * share), 100 if share >= 1 else 99)} %"
    return f"1 in {int(float(f'{1 / max(share, 1e-9):.2g}')):,}"


def _pair(row: dict[str, Any], picture: Picture) -> dict[str, Any]:
    """Return what every card shows: picture, text and details."""
    text, text_note = _marked_text(row)
    return {
        "custom_id": row["custom_id"],
        "verdict": row["verdict"],
        "picture": picture,
        "box": None,
        "alt": f"Picture of the pair {row['custom_id'][:80]}",
        "width": row["width"] or picture.width,
        "height": row["height"] or picture.height,
        "text": text,
        "text_note": text_note,
        "long": len(row["text"] or "") > TEXT_SHOWN / 5,
        "ids": _ids(row),
    }


def _ids(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the details of a card: where the pair comes from, and its evidence in numbers."""
    words = ", ".join(f"{word['word']} {score_text(word['score'])}" for word in row["words"] or [])
    box = row["box_px"] and ", ".join(f"{name} {value:.0f}" for name, value in row["box_px"].items())
    image = row["image_uri"] and PictureAddress.of_row(row)
    named = {"row": row["row_id"], "image": image, "SHA-256": row["image_sha256"], "box, px": box,
             "words": words, "metadata": row["metadata"]}  # fmt: skip
    return [(name, str(value)) for name, value in named.items() if value not in (None, "")]


def _marked_text(row: dict[str, Any]) -> tuple[Markup, str]:
    """Return the text of a card as HTML, and a note on how much of it is left out."""
    if row["text"] is None:
        return Markup(""), "The pair has no text."
    text = readable_text(row["text"], row.get("text_escapes"))
    words = [Word(**word) for word in row["words"] or []]
    if len(text) <= TEXT_SHOWN:
        return mark_words_html(text, words), ""
    beyond = sum(word.start >= TEXT_SHOWN for word in words)
    note = f"{len(text) - TEXT_SHOWN:,} more characters, {beyond} more flagged words."
    return mark_words_html(text[:TEXT_SHOWN], words) + "…", note
