from pathlib import Path

import pyarrow as pa
import pytest

from asap.preprocessing.text import ReaderSource, TextReader, read_reader_source
from jobs.scan.stages.texts import ENCODED_TEXT, decode_texts, encode_texts

LONG = "Angry workers leave the factory after talks fail. " * 12
TEXTS = ["The president smiles", None, LONG, "... !!", "", "A te\u200bam -- wins", "x" * 400]


@pytest.fixture(scope="module")
def source(model_folder: Path) -> ReaderSource:
    found = read_reader_source(model_folder / "tokenizer", max_words=20, max_tokens=24)
    assert found is not None
    return found


def test_texts_arrive_as_the_reader_of_the_model_reads_them(source: ReaderSource) -> None:
    reader = TextReader(source)
    column = encode_texts(TEXTS, source)
    assert column.type == ENCODED_TEXT
    found = decode_texts(pa.chunked_array([column]), TEXTS, source.reader_id)
    assert [one is not None for one in found] == [True, False, True, False, False, True, True]
    for text, one in zip(TEXTS, found, strict=True):
        if one is None:
            continue
        expected = reader.read(text)
        assert (one.text, one.word_count, one.share_read) == (text, expected.word_count, expected.share_read)
        for part, known in zip(one.passes, expected.passes, strict=True):
            assert list(part.input_ids) == known.input_ids
            assert list(part.word_index) == known.word_index
            assert part.warnings == known.warnings
    assert len(found[2].passes) > 2  # type: ignore[union-attr]


def test_a_part_of_a_column_has_its_own_texts(source: ReaderSource) -> None:
    column = encode_texts(TEXTS, source)
    whole = decode_texts(pa.chunked_array([column]), TEXTS, source.reader_id)
    for chunks in ([column[2:]], [column[2:4], column[4:]]):
        part = decode_texts(pa.chunked_array(chunks), TEXTS[2:], source.reader_id)
        for one, other in zip(part, whole[2:], strict=True):
            assert (one is None) == (other is None)
            assert one is None or [list(each.input_ids) for each in one.passes] == [
                list(each.input_ids)
                for each in other.passes  # type: ignore[union-attr]
            ]


def test_texts_of_another_reader_are_not_taken(source: ReaderSource) -> None:
    column = pa.chunked_array([encode_texts(TEXTS, source)])
    assert decode_texts(column, TEXTS, "another") == [None] * len(TEXTS)


def test_without_a_reader_no_text_is_read() -> None:
    column = encode_texts(TEXTS, None)
    assert (column.type, column.null_count) == (ENCODED_TEXT, len(TEXTS))
    assert decode_texts(pa.chunked_array([column]), TEXTS, "any") == [None] * len(TEXTS)
