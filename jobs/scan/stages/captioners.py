"""Captioners: the protocol, and the engines that write captions or look them up in a file.

A caption is written to the results as evidence, and replaces a text that is missing. A caption that fails concerns its
own row only: a pair with a text is scored without the caption, a pair without a text becomes `caption_failed`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from asap.corpus.descriptions import KEYS, Descriptions, Entry, PairKeys, entry_of
from asap.corpus.picture_index import canonical
from asap.errors import CorpusError
from asap.storage.failures import storage_errors
from asap.storage.files import file_info, list_files, open_read
from asap.storage.fingerprint import file_fingerprint, files_fingerprint
from asap.storage.location import FileInfo, Location
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import RowError
from jobs.scan.input.tables.columns import require_columns
from jobs.scan.input.tables.record_files import RecordFile, record_file
from jobs.scan.input.tables.table import open_records, records_of
from jobs.scan.settings import CaptionSettings


@dataclass(frozen=True)
class CaptionRequest:
    """A picture to caption."""

    custom_id: str
    """The name of the row, unique in the job."""
    image_uri: str
    image: Image.Image | None
    """None for an engine that does not look at the picture."""
    text: str | None = None
    given_id: str | None = None
    """The caller's name for the row, if an earlier row has that name too."""


class CaptionFailed(Exception):
    """The reason why one picture has no caption."""


class Captioner(Protocol):
    """The interface of a captioner. The constructor loads; a call keeps nothing and can be repeated."""

    def caption(self, requests: Sequence[CaptionRequest]) -> list[str | CaptionFailed]:
        """Return a caption for each request, or the reason why it has none."""
        ...


def load_captioner(settings: CaptionSettings, input: Location, device: str | None = None) -> Captioner:
    """Return the captioner of the settings.

    Args:
        settings: Settings of the captioner.
        input: Input of the scan, from which paths in a file of captions may start.
        device: Device of a model that captions. None: CUDA if there is any, else the CPU.
    """
    if settings.engine == "precomputed":
        return PrecomputedCaptioner(settings.source, input)
    return TransformersCaptioner(settings, device)


def check_captioner(settings: CaptionSettings) -> str:
    """Return a fingerprint of the source of the captions; for a name on the hub, the name itself.

    Raises `InputNotFound` or `CorpusError` for a source that does not exist or cannot be understood.
    """
    source = settings.source
    if settings.engine == "precomputed":
        read_captions(source)
        return file_fingerprint(_find_captions(source)[0])
    if not source or re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", source):
        raise InputNotFound(f"the captioner {source!r} is neither a folder of this machine nor a name on the hub")
    if not re.match(r"[./~]", source) and not Path(source).is_dir():
        return source  # a name on the hub
    if not (Path(source).expanduser() / "config.json").is_file():
        raise InputNotFound(f"the captioner {source} is not a model folder: it has no config.json")
    return files_fingerprint(list_files(Location.parse(source)))


def read_captions(source: str) -> Descriptions:
    """Read a file of captions: one of `asap.corpus.descriptions`, or a CSV or Parquet table with a column `caption`.

    Raises `InputNotFound` for a file that does not exist or is of another kind, `CorpusError` for one that is broken.
    """
    info, name = _find_captions(source)
    location = info.location
    if name.kind in ("csv", "parquet"):
        return Descriptions(str(location), "caption", ((None, entry) for entry in _table_entries(location, name.kind)))
    with storage_errors(location), open_read(location) as file:
        return Descriptions.parse(str(location).removesuffix(name.packed), file.read(), "caption")


def _find_captions(source: str) -> tuple[FileInfo, RecordFile]:
    """Return the file of captions, and the parts of its name. Raises `InputNotFound`."""
    location = Location.parse(source)
    name = record_file(location.name)
    if name is None or (info := file_info(location)) is None:
        raise InputNotFound(f"the captions {source} are not there. Give a .json, .jsonl, .csv or .parquet file.")
    return info, name


def _table_entries(location: Location, kind: str) -> Iterator[Entry]:
    reader = open_records(location, kind)
    require_columns(reader.names or (), str(location), (KEYS, ("caption",)))
    for line, record in records_of(reader, location, kind):
        if isinstance(record, RowError):
            raise CorpusError(f"line {line} of {location}: {record}")
        yield entry_of(str(location), line, record, "caption")


class PrecomputedCaptioner:
    """A captioner that looks captions up in a file, by the id of the row, else by the path of its picture.

    An entry may name a picture by its path below the input, or by the end of its path from some folder on.
    """

    def __init__(self, source: str, input: Location) -> None:
        self._captions = read_captions(source)
        self._input = input

    def caption(self, requests: Sequence[CaptionRequest]) -> list[str | CaptionFailed]:
        """Look up each caption. It fails if the file has no caption for the picture, or several."""
        name = Location.parse(self._captions.name).name
        captions: list[str | CaptionFailed] = []
        for request in requests:
            paths = tuple(_names_of(request.image_uri, self._input))
            pair = PairKeys(request.custom_id, paths, request.text or "")
            caption = self._captions.lookup(pair, request.given_id)
            failure = CaptionFailed(f"{name} has no caption that is certainly of {request.custom_id!r} or its image")
            captions.append(failure if caption is None else caption)
        return captions


def _names_of(uri: str, input: Location) -> Iterator[str]:
    """Yield the names that an entry may use for a picture.

    The name of the file alone is one only for a picture beside the manifest, or at the top of an input folder.
    """
    yield "/".join(canonical(uri))
    for folder in (input, input.parent):
        if uri.startswith(f"{folder}/"):
            yield "/".join(canonical(uri.removeprefix(f"{folder}/")))
    parts = canonical(re.sub(r"^s3://[^/]*", "", uri))
    for start in range(len(parts) - 1):
        yield "/".join(parts[start:])


class TransformersCaptioner:
    """An image-text-to-text model of transformers, from a folder or a hub name. Code that comes with it is not run."""

    def __init__(self, settings: CaptionSettings, device: str | None = None) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._settings = settings
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        source = str(Path(settings.source).expanduser()) if settings.source.startswith("~") else settings.source
        self._processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, trust_remote_code=False)
        self._model = model.to(self._device).eval()
        self._chats = bool(getattr(self._processor, "chat_template", None))
        if self._chats and getattr(self._processor, "tokenizer", None) is not None:
            self._processor.tokenizer.padding_side = "left"  # a batch of prompts must end together

    def caption(self, requests: Sequence[CaptionRequest]) -> list[str | CaptionFailed]:
        """Caption the pictures in batches. A batch that fails is halved until only the culprit is left.

        `Predictor` halves too, but by rows and then by the passes of one row, and its device errors are raised.

        No picture is to blame for a broken device (`AcceleratorError`): it ends the process.
        """
        size = self._settings.batch_size
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        return [caption for batch in batches for caption in self._caption_safely(batch)]

    def _caption_safely(self, requests: Sequence[CaptionRequest]) -> list[str | CaptionFailed]:
        import torch

        try:
            texts = [" ".join(text.split()) for text in self._generate([request.image for request in requests])]
            return [text or CaptionFailed("the model wrote no words") for text in texts]
        except torch.AcceleratorError:
            os._exit(1)  # the device computes nothing more in this process: let Ray start another and try again
        except Exception as error:
            failure = CaptionFailed(f"{type(error).__name__}: {error}")
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
        if out_of_memory:  # outside the handler, because its traceback holds the tensors
            torch.cuda.empty_cache()
        if len(requests) == 1:
            return [failure]
        half = (len(requests) + 1) // 2
        return self._caption_safely(requests[:half]) + self._caption_safely(requests[half:])

    def _generate(self, images: list[Image.Image | None]) -> list[str]:
        import torch

        inputs = self._inputs(images).to(self._device, self._model.dtype)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=self._settings.max_new_tokens, do_sample=False)
        if self._chats:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]  # a chat model repeats the prompt before its answer
        texts: list[str] = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return texts

    def _inputs(self, images: list[Image.Image | None]) -> Any:
        """Return the tensors of a batch; a chat model gets the prompt with each picture."""
        if not self._chats:
            return self._processor(images=images, return_tensors="pt")
        content = [{"type": "image"}, {"type": "text", "text": self._settings.prompt}]
        prompt = self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        prompts = [prompt] * len(images)
        return self._processor(images=[[image] for image in images], text=prompts, padding=True, return_tensors="pt")
