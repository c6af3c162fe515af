import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from asap.preprocessing.images import ImageLimits, prepare_image
from asap.storage.fetch import FetchSettings
from jobs.scan.input.manifest import MANIFEST_SCHEMA
from jobs.scan.stages.prepare import PREPARED_FIELDS, Preparation, prepare_batch
from jobs.scan.stages.result_rows import CALLER_COLUMNS

PREPARATION = Preparation(image_size=32, limits=ImageLimits(max_bytes=20_000), fetch=FetchSettings(threads=4))


def _batch(*rows: dict[str, object]) -> pa.Table:
    filled = [{"row_id": number, "custom_id": str(number), "warnings": []} | row for number, row in enumerate(rows)]
    return pa.Table.from_pylist(filled, MANIFEST_SCHEMA)


def test_a_picture_becomes_the_square_that_prepare_image_makes(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    data = jpeg(0, (100, 60))
    (tmp_path / "a.jpg").write_bytes(data)
    row = prepare_batch(_batch({"image_uri": str(tmp_path / "a.jpg"), "text": "t"}), PREPARATION).to_pylist()[0]
    expected = prepare_image(data, 32)
    assert np.array_equal(np.frombuffer(row["pixels"], np.uint8).reshape(32, 32, 3), expected.pixels)
    assert (row["width"], row["height"], row["image_sha256"]) == (100, 60, expected.sha256)
    assert (row["error_code"], row["attempt"], row["text"]) == (None, 1, "t")


def test_each_broken_row_has_its_own_code_and_harms_no_other(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    for name, data in {
        "good": jpeg(1), "truncated": jpeg(1)[:300], "empty": b"", "text": b"not a picture", "big": b"x" * 20_001,
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
    names = ["good", "truncated", "empty", "text", "big", "gone", "good"]
    rows: list[dict[str, object]] = [{"image_uri": str(tmp_path / name)} for name in names]
    rows += [{"image_uri": None, "text": "t"}, {"row_error": "broken line"}]
    table = prepare_batch(_batch(*rows), PREPARATION)
    assert table["error_code"].to_pylist() == [
        None, "decode_failed", "empty_file", "unsupported_format", "too_large", "not_found", None,
        "image_missing", "row_invalid",
    ]  # fmt: skip
    assert table["row_id"].to_pylist() == list(range(9))
    assert table["retryable"].to_pylist()[1] is False
    assert all(detail for code, detail in zip(table["error_code"], table["error_detail"], strict=True) if code.as_py())
    assert all((code is None) == (pixels is not None) for code, pixels in zip(
        table["error_code"].to_pylist(), table["pixels"].to_pylist(), strict=True
    ))  # fmt: skip


def test_columns_have_their_types_even_if_all_values_are_null() -> None:
    table = prepare_batch(_batch({"row_error": "x"}), PREPARATION)
    for name, kind in PREPARED_FIELDS:
        assert table.schema.field(name).type == kind
    assert set(CALLER_COLUMNS) <= set(table.column_names)


def test_a_byte_range_of_a_file_is_read_as_a_picture(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    data = jpeg(2)
    (tmp_path / "a.tar").write_bytes(b"x" * 512 + data + b"y" * 100)
    row = {"image_uri": str(tmp_path / "a.tar"), "image_offset": 512, "image_length": len(data)}
    assert prepare_batch(_batch(row), PREPARATION)["image_sha256"].to_pylist() == [prepare_image(data, 32).sha256]


def test_warnings_of_the_manifest_and_the_picture_are_kept(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGBA", (40, 40), (255, 0, 0, 100)).save(tmp_path / "a.png")
    table = prepare_batch(_batch({"image_uri": str(tmp_path / "a.png"), "warnings": ["before"]}), PREPARATION)
    warnings = table["warnings"].to_pylist()[0]
    assert warnings[0] == "before"
    assert "transparency" in warnings[1]


def test_a_thumbnail_is_made_if_a_captioner_needs_it(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    from io import BytesIO

    from PIL import Image

    (tmp_path / "a.jpg").write_bytes(jpeg(3, (200, 100)))
    (tmp_path / "b.jpg").write_bytes(jpeg(3, (40, 30)))
    rows = _batch({"image_uri": str(tmp_path / "a.jpg")}, {"image_uri": str(tmp_path / "b.jpg")})
    with_thumbnails = Preparation(image_size=32, limits=PREPARATION.limits, fetch=PREPARATION.fetch, thumbnail_side=64)
    table = prepare_batch(rows, with_thumbnails)
    assert [Image.open(BytesIO(data)).size for data in table["thumbnail"].to_pylist()] == [(64, 32), (40, 30)]
    assert prepare_batch(rows, PREPARATION)["thumbnail"].to_pylist() == [None, None]


def test_preparing_loads_no_torch() -> None:
    code = "import sys, jobs.scan.stages.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
