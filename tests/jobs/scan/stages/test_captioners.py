import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from asap.errors import CorpusError, StorageError
from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import MANIFEST_SCHEMA
from jobs.scan.settings import CaptionSettings
from jobs.scan.stages.caption import CaptionStage
from jobs.scan.stages.captioners import (
    CaptionFailed,
    CaptionRequest,
    PrecomputedCaptioner,
    TransformersCaptioner,
    check_captioner,
    load_captioner,
)
from jobs.scan.stages.prepare import PREPARED_FIELDS

INPUT = Location("/data/news/images")
WORDS = ["a", "man", "woman", "smiles", "crowd", "in", "the", "street"]


def _request(name: str = "p", uri: str = "/data/news/images/a.jpg", seed: int = 0) -> CaptionRequest:
    noise = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    return CaptionRequest(name, uri, Image.fromarray(noise))


@pytest.mark.parametrize("key", ["p", "/data/news/images/a.jpg", "images/a.jpg", "a.jpg"])
def test_a_precomputed_caption_is_found_by_id_or_path(tmp_path: Path, key: str) -> None:
    (tmp_path / "captions.json").write_text(json.dumps({key: "a man smiles", "other": "x"}))
    assert PrecomputedCaptioner(str(tmp_path / "captions.json"), INPUT).caption([_request()]) == ["a man smiles"]


def test_an_id_takes_precedence_over_a_path_and_a_path_matches_whole_parts(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps({"p": "by id", "images/a.jpg": "by path", "es/a.jpg": "wrong"}))
    captioner = PrecomputedCaptioner(str(tmp_path / "captions.json"), INPUT)
    assert captioner.caption([_request(), _request("q"), _request("q", "/x/faces/a.jpg")])[:2] == ["by id", "by path"]
    assert isinstance(captioner.caption([_request("q", "/x/faces/b.jpg")])[0], CaptionFailed)


def test_a_bare_file_name_matches_a_picture_at_the_top_of_the_input_only(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps({"a.jpg": "at the top", "deep/a.jpg": "below"}))
    beside = PrecomputedCaptioner(str(tmp_path / "captions.json"), Location("s3://bucket/news/pairs.jsonl"))
    top, below, elsewhere = beside.caption(
        [
            _request("1", "s3://bucket/news/a.jpg"),
            _request("2", "s3://bucket/news/deep/a.jpg"),
            _request("3", "/x/a.jpg"),
        ]
    )
    assert (top, below) == ("at the top", "below")
    assert isinstance(elsewhere, CaptionFailed)


def test_precomputed_captions_may_be_lines(tmp_path: Path) -> None:
    lines = [{"id": 7, "caption": "seven"}, {"image": "images/a.jpg", "caption": "picture"}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    captioner = PrecomputedCaptioner(str(tmp_path / "captions.jsonl"), INPUT)
    assert captioner.caption([_request("7"), _request("8", "s3://bucket/images/a.jpg")]) == ["seven", "picture"]


ROWS = [
    {"custom_id": "7", "image_uri": None, "caption": "seven"},
    {"custom_id": None, "image_uri": "images/a.jpg", "caption": "picture"},
    {"custom_id": "9", "image_uri": None, "caption": None},
]


def _csv(path: Path) -> None:
    path.write_text("custom_id,image_uri,caption\n7,,seven\n,images/a.jpg,picture\n9,,\n")


def _gzipped_jsonl(path: Path) -> None:
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.parquet", lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path)),
        ("a.csv", _csv),
        ("a.jsonl.gz", _gzipped_jsonl),
        ("a.json", lambda path: path.write_text(json.dumps(ROWS))),
    ],
)
def test_precomputed_captions_may_be_a_table(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    captioner = PrecomputedCaptioner(str(tmp_path / name), INPUT)
    seven, picture, nine = captioner.caption([_request("7", "/b.jpg"), _request("8"), _request("9", "/b.jpg")])
    assert (seven, picture) == ("seven", "picture")
    assert isinstance(nine, CaptionFailed), "null means that there is no caption"


def test_a_caption_that_may_belong_to_another_picture_is_not_used(tmp_path: Path) -> None:
    lines = [{"id": 1, "image": "x/a.jpg", "caption": "of a"}, {"id": 1, "image": "x/b.jpg", "caption": "of b"},
             {"id": 2, "caption": "one"}, {"id": 2, "caption": "or another"}]  # fmt: skip
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    captioner = PrecomputedCaptioner(str(tmp_path / "captions.jsonl"), INPUT)
    found = captioner.caption([_request("1", "/x/b.jpg"), _request("1", "/x/c.jpg"), _request("2", "/x/d.jpg")])
    assert found[0] == "of b"
    (renamed,) = captioner.caption([CaptionRequest("2#9", "/x/d.jpg", None, given_id="2")])
    assert isinstance(renamed, CaptionFailed), "an id that another row has identifies no picture"
    (renamed,) = captioner.caption([CaptionRequest("1#9", "/x/b.jpg", None, given_id="1")])
    assert renamed == "of b"
    assert "no caption that is certainly of '1'" in str(found[1])
    assert "no caption that is certainly of '2'" in str(found[2])


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", "[1]", "is not a JSON object from record id"),
        ("a.json", '{"1": 5}', "has 5 for '1', which is no text"),
        ("a.jsonl", '{"id": 1}', "which is no text"),
        ("a.jsonl", '{"id": 1, "caption": ["x"]}', r"\['x'\] for 'entry 0'"),
        ("a.csv", "id,text\n1,x\n", "it needs a column 'caption'"),
        ("a.csv", "caption\nx\n", "it needs a column 'id' or 'custom_id' or 'image' or 'image_uri'"),
        ("a.csv", "id,image,caption\n,,lost\n", "entry 1 of .*a.csv has neither an id nor an image"),
        ("a.jsonl", '{"id": 1.5, "caption": "x"}', "has the id 1.5, which is neither"),
        ("a.csv", "id,caption\n1,x,y\n", "line 1 of .*a.csv: the line has 3 cells"),
        ("a.parquet", "PAR1", "cannot be read as parquet"),
        ("a.txt", "x", "Give a .json, .jsonl, .csv or .parquet file"),
    ],
)
def test_a_broken_file_of_captions_is_named_with_the_reason(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    settings = CaptionSettings(engine="precomputed", source=str(tmp_path / name))
    with pytest.raises((InputNotFound, CorpusError), match=reason) as caught:
        check_captioner(settings)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.csv.gz"])
def test_a_truncated_file_of_captions_is_named(tmp_path: Path, name: str) -> None:
    whole = gzip.compress(b"id,caption\n" + b"1,x\n" * 50_000)
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises((StorageError, CorpusError), match=name):
        check_captioner(CaptionSettings(engine="precomputed", source=str(tmp_path / name)))


def test_a_captioner_folder_is_found_by_its_bare_name(
    blip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(blip).parent)
    bare = CaptionSettings(engine="transformers", source=Path(blip).name)
    assert check_captioner(bare) == check_captioner(bare.model_copy(update={"source": blip}))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputNotFound, match=r"no config\.json"):
        check_captioner(bare.model_copy(update={"source": "empty"}))
    for source in ("", "s3://bucket/model"):
        with pytest.raises(InputNotFound, match="neither a folder of this machine nor a name"):
            check_captioner(bare.model_copy(update={"source": source}))


def test_changed_captions_have_another_fingerprint(tmp_path: Path, blip: str) -> None:
    path = tmp_path / "captions.json"
    settings = CaptionSettings(engine="precomputed", source=str(path))
    path.write_text('{"1": "a man"}')
    first = check_captioner(settings)
    assert check_captioner(settings) == first
    path.write_text('{"1": "a cat"}')
    assert check_captioner(settings) != first

    model = tmp_path / "model"
    shutil.copytree(blip, model)
    settings = CaptionSettings(engine="transformers", source=str(model))
    first = check_captioner(settings)
    assert check_captioner(settings) == first
    (model / "generation_config.json").write_text("{}")
    assert check_captioner(settings) != first


def test_a_missing_source_is_reported_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="captions"):
        check_captioner(CaptionSettings(engine="precomputed", source=str(tmp_path / "none.json")))
    with pytest.raises(InputNotFound, match=r"no config\.json"):
        check_captioner(CaptionSettings(engine="transformers", source=str(tmp_path)))
    assert check_captioner(CaptionSettings(engine="transformers", source="some/hub-name")) == "some/hub-name"


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Save a tiny image-to-text model with random weights."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)})
    ids = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {"vocab_size": len(tokens), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 16}  # fmt: skip
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text | ids, vision_config=vision, projection_dim=16))
    model.generation_config.suppress_tokens = list(range(5))  # words only, whatever the weights
    folder = tmp_path_factory.mktemp("blip")
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Save a tiny chat model that takes pictures, with random weights."""
    from transformers import (
        BertTokenizerFast,
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<image>", *WORDS]
    tokenizer = BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = {"model_type": "llama", "vocab_size": len(tokens), "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0,
            "bos_token_id": 2, "eos_token_id": 3, "initializer_range": 1.0}  # fmt: skip
    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 32, "patch_size": 16, "projection_dim": 16}  # fmt: skip
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=5, vision_feature_layer=-1)
    torch.manual_seed(0)  # the weights are not small (`initializer_range`), so that no two words score alike
    model = LlavaForConditionalGeneration(config)
    model.generation_config.suppress_tokens = list(range(6))  # words only, whatever the weights
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}"
    )
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        images, tokenizer, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template, image_token="<image>",
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


@pytest.mark.parametrize("model", ["blip", "llava"])
def test_a_transformers_model_captions_each_picture(model: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(model)
    settings = CaptionSettings(engine="transformers", source=source, max_new_tokens=5, batch_size=2, prompt="the man")
    captioner = load_captioner(settings, INPUT)
    captions = captioner.caption([_request(seed=seed) for seed in range(3)])
    assert len(captions) == 3
    for caption in captions:
        assert isinstance(caption, str)
        assert set(caption.split()) <= set(WORDS)
        assert 1 <= len(caption.split()) <= 5, "the prompt is not part of a caption"
    assert captioner.caption([_request(seed=0)])[0] == captions[0], "a picture's caption does not depend on the batch"


def test_a_picture_that_breaks_the_model_fails_alone(blip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = TransformersCaptioner(CaptionSettings(engine="transformers", source=blip, max_new_tokens=3))
    whole = captioner._generate

    def breaking(images: list[Image.Image | None]) -> list[str]:
        if any(image and image.width == 1 for image in images):
            raise RuntimeError("no such size")
        return whole(images)

    monkeypatch.setattr(captioner, "_generate", breaking)
    bad = CaptionRequest("bad", "/bad.jpg", Image.new("RGB", (1, 1)))
    captions = captioner.caption([_request(), bad, _request(seed=1)])
    assert isinstance(captions[1], CaptionFailed)
    assert "no such size" in str(captions[1])
    assert not any("no such size" in str(caption) for caption in (captions[0], captions[2]))


def _prepared(*rows: dict[str, Any]) -> pa.Table:
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    schema = MANIFEST_SCHEMA.remove(MANIFEST_SCHEMA.get_field_index("row_error"))
    for name, kind in PREPARED_FIELDS:
        if name not in schema.names:
            schema = schema.append(pa.field(name, kind))
    filled = [
        {"row_id": number, "custom_id": str(number), "image_uri": "/a.jpg", "warnings": [],
         "thumbnail": buffer.getvalue()} | row
        for number, row in enumerate(rows)
    ]  # fmt: skip
    return pa.Table.from_pylist(filled, schema)


class _Named:
    """A captioner that names the row in its caption, and fails for two rows."""

    def caption(self, requests: Sequence[CaptionRequest]) -> list[str | CaptionFailed]:
        return [
            CaptionFailed("no idea") if request.custom_id in ("1", "2") else f"caption {request.custom_id}\ud800"
            for request in requests
        ]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> CaptionStage:
    monkeypatch.setattr("jobs.scan.stages.caption.load_captioner", lambda *_: _Named())
    return CaptionStage(CaptionSettings(engine="precomputed", source="x"), INPUT)


def test_the_stage_captions_good_rows_and_gives_failures_their_code(stage: CaptionStage) -> None:
    table = stage(_prepared(
        {"text": "t"}, {"text": "t"}, {"text": None}, {"text": None},
        {"text": None, "error_code": "not_found", "error_detail": "gone", "retryable": False, "thumbnail": None},
    ))  # fmt: skip
    assert table["caption"].to_pylist() == ["caption 0\ufffd", None, None, "caption 3\ufffd", None]
    assert table["error_code"].to_pylist() == [None, None, "caption_failed", None, "not_found"]
    assert table["retryable"].to_pylist()[2] is False
    assert "no idea" in table["warnings"].to_pylist()[1][0]
    assert "no idea" in table["error_detail"].to_pylist()[2]
    assert table["error_detail"].to_pylist()[4] == "gone"
    assert "thumbnail" not in table.column_names


def test_the_engine_receives_both_names_of_a_row(stage: CaptionStage, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[CaptionRequest] = []

    class Recorder:
        def caption(self, requests: Sequence[CaptionRequest]) -> list[str | CaptionFailed]:
            received.extend(requests)
            return ["x"] * len(requests)

    stage._captioner = Recorder()
    stage(_prepared({"text": "t"}, {"text": "t", "custom_id": "0#1", "given_id": "0"}))
    assert [(request.custom_id, request.given_id) for request in received] == [("0", None), ("0#1", "0")]


def test_an_engine_that_needs_no_picture_gets_none(stage: CaptionStage) -> None:
    assert stage(_prepared({"text": "t", "thumbnail": None}))["caption"].to_pylist() == ["caption 0\ufffd"]


def test_a_broken_device_ends_the_process_so_that_another_process_retries(
    stage: CaptionStage, process_end: type[BaseException]
) -> None:
    class Broken(TransformersCaptioner):
        def __init__(self) -> None:
            self._settings = CaptionSettings(engine="transformers", source="x")

        def _generate(self, images: list[Image.Image | None]) -> list[str]:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    stage._captioner = Broken()
    with pytest.raises(process_end):
        stage(_prepared({"text": "t"}, {"text": "t"}))


def test_a_batch_of_failures_passes_through(stage: CaptionStage) -> None:
    row = {"error_code": "not_found", "error_detail": "gone", "retryable": False, "thumbnail": None}
    assert stage(_prepared(row))["error_code"].to_pylist() == ["not_found"]
