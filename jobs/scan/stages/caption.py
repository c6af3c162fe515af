"""The caption stage of a scan: an actor that adds a caption to each row of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
from PIL import Image

from asap.preprocessing.words import replace_unreadable
from asap.storage.location import Location
from jobs.scan.input.manifest import readable_text, storable
from jobs.scan.settings import CaptionSettings
from jobs.scan.stages.captioners import CaptionFailed, CaptionRequest, load_captioner


class CaptionStage:
    """The actor: prepared rows in, the same with `caption` out; a row without text or caption is an error."""

    def __init__(self, settings: CaptionSettings, input: Location, device: str | None = None) -> None:
        self._captioner = load_captioner(settings, input, device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """See the class."""
        places = [place for place, code in enumerate(batch["error_code"].to_pylist()) if code is None]
        requests = [_request(batch, place) for place in places]
        outcomes: list[str | CaptionFailed | None] = [None] * len(batch)
        for place, outcome in zip(places, self._captioner.caption(requests), strict=True):
            outcomes[place] = outcome
        return _with_captions(batch, outcomes)


_ASKED = ("custom_id", "given_id", "image_uri", "text", "text_escapes")


def _request(batch: pa.Table, place: int) -> CaptionRequest:
    thumbnail = batch["thumbnail"][place].as_py()
    image = None if thumbnail is None else Image.open(BytesIO(thumbnail), formats=["JPEG"])
    told = {name: batch[name][place].as_py() for name in _ASKED}
    text = None if told["text"] is None else readable_text(told["text"], told["text_escapes"])
    return CaptionRequest(told["custom_id"], told["image_uri"], image, text, told["given_id"])


def _with_captions(batch: pa.Table, outcomes: Sequence[str | CaptionFailed | None]) -> pa.Table:
    texts, warnings = batch["text"].to_pylist(), batch["warnings"].to_pylist()
    codes, details = batch["error_code"].to_pylist(), batch["error_detail"].to_pylist()
    retryable = batch["retryable"].to_pylist()
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, CaptionFailed):
            detail = storable(f"the captioner failed, {outcome}")
            if texts[place] is None:
                codes[place], details[place], retryable[place] = "caption_failed", detail, False
            else:
                warnings[place] = [*warnings[place], detail]
    captions = [replace_unreadable(outcome) if isinstance(outcome, str) else None for outcome in outcomes]
    changed: dict[str, list[Any]] = {
        "caption": captions, "error_code": codes, "error_detail": details, "retryable": retryable, "warnings": warnings
    }  # fmt: skip
    for name, values in changed.items():
        field = batch.schema.field(name)
        batch = batch.set_column(batch.schema.get_field_index(name), field, pa.array(values, field.type))
    return batch.drop_columns("thumbnail")
