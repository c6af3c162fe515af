"""Texts as the model reads them, on their way from the tasks that prepare pairs to the detectors.

The tasks have CPUs to spare, and know the tokenizer of the model. A detector that has another one reads the texts
itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa

from asap.errors import InputError
from asap.preprocessing.text import EncodedPass, EncodedText, ReaderSource, TextReader

ENCODED_TEXT = pa.struct(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("word_index", pa.list_(pa.int32())),
        ("passes", pa.list_(pa.int32())),
        ("word_count", pa.int32()),
        ("share_read", pa.float64()),
        ("warnings", pa.list_(pa.string())),
        ("reader_id", pa.string()),
    ]
)
"""An `EncodedText` without its text. `passes` holds the tokens of each pass, whose ids and words follow each other."""


@lru_cache(2)
def _reader(source: ReaderSource) -> TextReader:
    """Return the reader of a source. A process keeps it, and the words that it has read."""
    return TextReader(source)


def encode_texts(texts: Iterable[str | None], source: ReaderSource | None) -> pa.Array:
    """Return texts as a column of `ENCODED_TEXT`.

    A text that cannot be read is null: the detector finds its error again. Without a source, all are null.
    """
    reader = None if source is None else _reader(source)
    return pa.array([_encode(text, reader) for text in texts], ENCODED_TEXT)


def _encode(text: str | None, reader: TextReader | None) -> dict[str, object] | None:
    if text is None or reader is None:
        return None
    try:
        encoded = reader.read(text)
    except InputError:
        return None
    return {
        "input_ids": [piece for part in encoded.passes for piece in part.input_ids],
        "word_index": [word for part in encoded.passes for word in part.word_index],
        "passes": [len(part.input_ids) for part in encoded.passes],
        "word_count": encoded.word_count,
        "share_read": encoded.share_read,
        "warnings": encoded.passes[0].warnings,
        "reader_id": reader.source.reader_id,
    }


def decode_texts(column: pa.ChunkedArray, texts: Sequence[str | None], reader_id: str) -> list[EncodedText | None]:
    """Return the texts of a column of `ENCODED_TEXT`; None for one that is null or was read by another reader.

    Args:
        column: the column.
        texts: the texts themselves.
        reader_id: the id of the reader that the model needs.
    """
    array = column.combine_chunks()
    ids, words = _slices(array.field("input_ids")), _slices(array.field("word_index"))
    same = array.is_valid().to_pylist()
    fields = [array.field(name).to_pylist() for name in ("reader_id", "passes", "word_count", "share_read", "warnings")]
    found: list[EncodedText | None] = []
    for text, is_valid, one_ids, one_words, reader, lengths, count, share, warnings in zip(
        texts, same, ids, words, *fields, strict=True
    ):
        if not is_valid or text is None or reader != reader_id:
            found.append(None)
            continue
        # Most texts take one pass, which is the whole of the lists.
        ends = list(accumulate(lengths, initial=0))
        passes = [
            EncodedPass(
                input_ids=one_ids[start:end],
                word_index=one_words[start - number : end - number - 1],
                warnings=[] if number else warnings,
            )
            for number, (start, end) in enumerate(pairwise(ends))
        ]
        found.append(EncodedText(text=text, passes=passes, word_count=count, share_read=share))
    return found


def _slices(lists: pa.ListArray) -> list[np.ndarray]:
    """Return the lists of a column as views of its values."""
    offsets = lists.offsets.to_numpy()
    values = lists.values.to_numpy()
    return [values[start:end] for start, end in pairwise(offsets.tolist())]
