"""A checkpoint becomes a model folder, whole or not at all."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asap.errors import AsapError, CheckpointError, StorageError
from asap.weights.model_folder import load, load_folder, save
from asap.weights.published import import_published
from jobs.model.importing import import_checkpoint
from jobs.model.own_run import run_of
from tests.support.published import golden_arrays, golden_state, spec_of, tokenizer_of, write_published
from tests.support.waiting import HANG_S

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    return {variant: golden_state(f"{variant}_small_0") for variant in ("asap", "hammer")}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_of(512).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def hammer(states: dict[str, State], tmp_path: Path) -> Path:
    return write_published(tmp_path / "hammer.pth", states["hammer"])


@pytest.mark.parametrize(("variant", "prefix"), [("hammer", ""), ("asap", ""), ("asap", "module.")])
def test_the_model_of_a_published_file_gives_the_published_outputs(
    states: dict[str, State], tokenizer: str, tmp_path: Path, variant: str, prefix: str
) -> None:
    file = write_published(tmp_path / "best.pth", states[variant], prefix=prefix)

    done = import_checkpoint(str(file), str(tmp_path / "model"), tokenizer)

    assert (done.what, done.notes) == (f"{variant.upper()}, as published, epoch 49", [])
    golden = golden_arrays(f"{variant}_small_0")
    with torch.inference_mode():
        output = load(done.folder)(golden["image"], golden["input_ids"], golden["attention_mask"])
    for name, value in output._asdict().items():
        torch.testing.assert_close(value, golden[f"out_{name}"], atol=1e-4, rtol=0)
    loaded = load_folder(done.folder)
    assert loaded.limits is None
    assert loaded.familiarity is None
    assert loaded.policy.calibration is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pth", "model"]


def test_the_card_says_where_the_weights_are_from_and_what_is_missing(
    hammer: Path, tokenizer: str, tmp_path: Path
) -> None:
    done = import_checkpoint(str(hammer), str(tmp_path / "m"), tokenizer, name="hammer-1")
    card = (done.folder / "README.md").read_text()
    assert card.startswith("# hammer-1\n\nHAMMER, as published, epoch 49. It was made by `asap import` of `hammer.pth`")
    for fact in (
        "None were measured",
        "Nobody has recorded",
        "no familiarity file",
        "not calibrated",
        "non-commercial",
    ):
        assert fact in card
    assert load_folder(done.folder).model_id.startswith("hammer-1@")


def test_the_config_in_the_file_gives_the_words_and_contradictions_are_noted(
    states: dict[str, State], tokenizer: str, tmp_path: Path
) -> None:
    config = {"image_res": 384, "embed_dim": "\x1b[31m256", "vocab_size": 512, "max_words": 20}
    file = write_published(tmp_path / "best.pth", states["hammer"], config=config)
    done = import_checkpoint(str(file), str(tmp_path / "m"), tokenizer)
    assert load_folder(done.folder).config.max_words == 20
    assert load_folder(done.folder).config.image_size == 64
    assert done.notes == [
        "the file's config says image_res 384 and its tensors 64; the tensors were followed",
        "the file's config says embed_dim '\\x1b[31m256' and its tensors 32; the tensors were followed",
    ]


@pytest.mark.parametrize("words", [0, 65, True, "50", None, [50]])
def test_a_number_of_words_that_is_none_is_not_followed(
    states: dict[str, State], tokenizer: str, tmp_path: Path, words: Any
) -> None:
    file = write_published(tmp_path / "best.pth", states["hammer"], config={"max_words": words})
    done = import_checkpoint(str(file), str(tmp_path / "m"), tokenizer)
    assert load_folder(done.folder).config.max_words == 50
    assert done.notes == [f"the file's config says max_words {words!r}, which is no number of words; 50 is used"]


@pytest.mark.parametrize("config", [None, [1], "base", 3])
def test_a_config_of_another_form_tells_nothing(
    states: dict[str, State], tokenizer: str, tmp_path: Path, config: Any
) -> None:
    file = write_published(tmp_path / "best.pth", states["hammer"], config=config, epoch="last")
    done = import_checkpoint(str(file), str(tmp_path / "m"), tokenizer)
    assert (done.notes, done.what) == ([], "HAMMER, as published")


def refused(tmp_path: Path, checkpoint: object, out: object, tokenizer: str | None, **more: Any) -> str:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AsapError) as caught:
        import_checkpoint(str(checkpoint), str(out), tokenizer, **more)
    assert sorted(tmp_path.rglob("*")) == before
    return str(caught.value)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if the content of a checkpoint is read."""

    def read(path: Path) -> None:
        pytest.fail(f"{path} was read")

    monkeypatch.setattr("jobs.model.importing.read_checkpoint", read)


@pytest.mark.usefixtures("unread")
def test_an_output_that_cannot_be_is_refused_before_anything_is_read(
    hammer: Path, tokenizer: str, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.json").write_text("{}")
    for out, sentence in (
        ("nowhere/model", f"is in a folder that does not exist. Create {tmp_path}/nowhere"),
        ("hammer.pth", "is a file"),
        ("other", "is not empty"),
        ("old", "is a model folder already"),
        ("my model", "is not made of letters"),
    ):
        assert sentence in refused(tmp_path, hammer, tmp_path / out, tokenizer)
    assert "is at s3://, not on this machine" in refused(tmp_path, hammer, "s3://bucket/model", tokenizer)


@pytest.mark.usefixtures("unread")
def test_a_folder_that_cannot_be_written_is_refused(
    hammer: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "is in a folder that you cannot write to" in refused(tmp_path, hammer, tmp_path / "m", tokenizer)


@pytest.mark.usefixtures("unread")
def test_a_checkpoint_that_is_none_is_refused_before_the_tokenizer(
    hammer: Path, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointer = tmp_path / "pointer.pth"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    florence = tmp_path / "florence"
    florence.mkdir()
    (florence / "config.json").write_text("{}")
    monkeypatch.setattr("jobs.model.importing._tokenizer", lambda *_: pytest.fail("the tokenizer was read"))
    for checkpoint, sentence in (
        (pointer, "a Git LFS pointer"),
        (tmp_path / "nowhere.pth", "nothing is there"),
        (tmp_path, "is not a file but a folder"),
        (model_folder, "is a model folder already. Use it"),
        (florence, "is the folder of another library"),
        ("https://example.org/best.pth", "is at https://, not on this machine"),
        (" ", "checkpoint is empty"),
    ):
        assert sentence in refused(tmp_path, checkpoint, tmp_path / "m", "tokenizer")


@pytest.mark.usefixtures("unread")
def test_a_tokenizer_that_is_none_is_refused_before_the_checkpoint_is_read(
    hammer: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vocabulary").mkdir()
    (tmp_path / "vocabulary/vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n")
    for words, sentence in (
        (None, "--tokenizer is missing"),
        (str(tmp_path), "cannot be used"),
        (f"{tokenizer}/tokenizer.json", "is a file. Name the folder"),
        (str(tmp_path / "nowhere"), "does not exist. Name a folder"),
        (str(tmp_path / "vocabulary"), "has vocab.txt alone, which does not say how texts are split"),
        ("s3://bucket/tokenizer", "--tokenizer s3://bucket/tokenizer is at s3://"),
    ):
        assert sentence in refused(tmp_path, hammer, tmp_path / "m", words)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no network.\nlong advice")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    message = refused(tmp_path, hammer, tmp_path / "m", "bert-base-uncased")
    assert message == (
        "bert-base-uncased is not a folder on this machine and could not be downloaded, OSError: no network. "
        "Name a folder that holds the tokenizer, with tokenizer.json."
    )


def test_a_name_is_downloaded_without_its_code(hammer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **options: Any) -> Any:
        assert (name, options) == ("bert-base-uncased", {"trust_remote_code": False})
        return tokenizer_of(512)

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", download)
    assert import_checkpoint(str(hammer), str(tmp_path / "m"), "bert-base-uncased").folder == tmp_path / "m"


def test_a_tokenizer_of_another_vocabulary_is_refused_before_a_weight_is_copied(
    hammer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer_of(300).save_pretrained(tmp_path / "other")
    monkeypatch.setattr("asap.weights.published.build", lambda *_: pytest.fail("the weights were read"))
    message = refused(tmp_path, hammer, tmp_path / "m", str(tmp_path / "other"))
    assert "the tokenizer has 300 pieces and the word embedding 512 rows" in message


def test_a_file_that_does_not_fit_is_named(states: dict[str, State], tokenizer: str, tmp_path: Path) -> None:
    state = {key: value for key, value in states["hammer"].items() if key != "bbox_head.6.bias"}
    file = write_published(tmp_path / "best.pth", state | {"\x1b[31mred": torch.zeros(1)})
    message = refused(tmp_path, file, tmp_path / "m", tokenizer)
    assert message.startswith(f"checkpoint {file}, read as hammer of 64 px")
    assert "1 missing: bbox_head.6.bias\n1 unexpected: \\x1b[31mred" in message


def test_weights_that_are_not_finite_and_a_full_disk_leave_nothing(
    states: dict[str, State], hammer: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = states["hammer"] | {"bbox_head.6.bias": torch.full((4,), torch.nan)}
    file = write_published(tmp_path / "nan.pth", state)
    assert "1 weights are not finite" in refused(tmp_path, file, tmp_path / "m", tokenizer)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StorageError, match=r"No space left on device\. Nothing was left there"):
        import_checkpoint(str(hammer), str(tmp_path / "m"), tokenizer)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_stop_halfway_leaves_no_folder(
    hammer: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("asap.policy.Policy.save", stop)  # after the weights are written
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(str(hammer), str(tmp_path / "m"), tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["hammer.pth"]


def test_vocab_txt_with_the_settings_of_the_error_is_a_tokenizer(hammer: Path, tokenizer: str, tmp_path: Path) -> None:
    pieces = tokenizer_of(512).get_vocab()
    folder = tmp_path / "vocabulary"
    folder.mkdir()
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in sorted(pieces, key=pieces.__getitem__)))
    with pytest.raises(CheckpointError, match="uncased BERT: ") as caught:
        import_checkpoint(str(hammer), str(tmp_path / "m"), str(folder))
    (folder / "tokenizer_config.json").write_text(str(caught.value).partition("uncased BERT: ")[2])
    done = import_checkpoint(str(hammer), str(tmp_path / "m"), str(folder))
    assert load_folder(done.folder).tokenizer.tokenize("The President smiles") == ["the", "president", "smiles"]


@pytest.mark.chaos
def test_a_kill_halfway_leaves_no_model_folder(hammer: Path, tokenizer: str, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom asap.policy import Policy\nfrom jobs.model.importing import import_checkpoint\n"
        "Policy.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"  # after the weights are written
        "import_checkpoint(*sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, str(hammer), str(tmp_path / "m"), tokenizer]
    assert subprocess.run(command, timeout=HANG_S).returncode == -signal.SIGKILL
    assert any((draft / "model.safetensors").is_file() for draft in tmp_path.glob(".m.new-*"))
    assert not (tmp_path / "m").exists()

    assert import_checkpoint(str(hammer), str(tmp_path / "m"), tokenizer).folder.is_dir()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Write a run folder with one checkpoint, as `asap train` does, and return the run folder."""
    from asap.training.step import TrainingStep
    from jobs.train.settings import TrainSettings
    from tests.support.tiny import tiny_model

    folder = tmp_path / "run"
    checkpoint = folder / "ray_train/checkpoint_000001"
    checkpoint.mkdir(parents=True)
    tokenizer_of(80).save_pretrained(folder / "tokenizer")
    model = tiny_model(vocab_size=80, type_heads="apart")
    changed = {
        name: getattr(model.config, name)
        for name in ("image_size", "width", "heads", "image_layers", "image_mlp_width", "text_layers", "fusion_layers",
                     "text_mlp_width", "max_positions", "max_tokens", "embed_dim")
    }  # fmt: skip
    settings = TrainSettings(corpus="corpus", out=str(folder), model=changed, queue_size=8)
    (folder / "train.json").write_text(
        json.dumps(settings.identity() | {"data": {"train": {}}, "fitted": {"micro_batch": 8}})
    )
    step = TrainingStep(model, weights=settings.objective.weights, queue_size=8, mask_id=4)
    state = step.state_dict()
    for key in state:
        if key.startswith("twin.module.box_head"):
            state[key] = state[key] + 1
    torch.save({"done": 1200, "module": state, "optimiser": {}, "schedule": {}}, checkpoint / "state.pt")
    return folder


@pytest.mark.parametrize("weights", ["average", "student"])
def test_a_checkpoint_of_a_run_is_exported_by_the_settings_of_the_run(run: Path, tmp_path: Path, weights: str) -> None:
    settings = json.loads((run / "train.json").read_text())
    (run / "train.json").write_text(json.dumps(settings | {"weights": weights}))
    checkpoint = run / "ray_train/checkpoint_000001"
    state = torch.load(checkpoint / "state.pt", weights_only=True)["module"]  # noqa: TID251

    done = import_checkpoint(str(checkpoint), str(tmp_path / "m"))

    averaged = "averaged over its steps" if weights == "average" else "of its last step"
    assert done.what == f"ASAP, from the run run, after 1,200 steps, {averaged}"
    prefix = "twin.module." if weights == "average" else "student."
    torch.testing.assert_close(load(done.folder).state_dict()["box_head.0.weight"], state[f"{prefix}box_head.0.weight"])
    assert load_folder(done.folder).config.type_heads == "apart"
    assert "license" not in (done.folder / "README.md").read_text().lower()


@pytest.mark.parametrize("named", [".", "ray_train"])
def test_the_folder_of_a_run_is_refused_with_its_checkpoints(run: Path, tmp_path: Path, named: str) -> None:
    assert f"Name one of its checkpoints: {run}/ray_train/checkpoint_000001" in refused(
        tmp_path, run / named, tmp_path / "m", None
    )


def test_a_checkpoint_away_from_its_run_is_refused_with_its_place(run: Path, tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "a/b/c/d").mkdir(parents=True)
    file = Path(shutil.copy(run / "ray_train/checkpoint_000001/state.pt", tmp_path / "a/b/c/d/state.pt"))
    assert run_of(file) is None
    assert "the settings of its run are not beside it" in refused(tmp_path, file, tmp_path / "m", tokenizer)


def test_settings_of_a_run_that_do_not_fit_or_cannot_be_read_are_named(run: Path, tmp_path: Path) -> None:
    settings = json.loads((run / "train.json").read_text())
    checkpoint = run / "ray_train/checkpoint_000001"
    (run / "train.json").write_text(json.dumps(settings | {"model": settings["model"] | {"width": 60}}))
    assert "does not fit the settings in" in refused(tmp_path, checkpoint, tmp_path / "m", None)
    (run / "train.json").write_text("[]")
    assert "cannot be read as the settings of a run" in refused(tmp_path, checkpoint, tmp_path / "m", None)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["hammer", "asap"])
def test_a_file_of_the_published_size_detects_as_the_model_in_memory_does(tmp_path: Path, variant: str) -> None:
    from asap.finding import Pair
    from asap.predictor import Predictor
    from tests.support.pictures import CAPTIONS, draw_jpeg

    state = golden_state(f"{variant}_full_0")
    config = {"image_res": 256, "vision_width": 768, "embed_dim": 256, "max_words": 50}
    file = write_published(tmp_path / "best.pth", state, config=config)
    tokenizer_of(30_522).save_pretrained(tmp_path / "tokenizer")
    memory = save(import_published(state), tmp_path / "memory", tokenizer=tmp_path / "tokenizer", name="m")

    done = import_checkpoint(str(file), str(tmp_path / "m"), str(tmp_path / "tokenizer"))

    assert done.notes == []
    pairs = [Pair(draw_jpeg(number), text) for number, text in enumerate(CAPTIONS)]
    found, wanted = (Predictor.from_folder(folder, "cpu").predict(pairs) for folder in (done.folder, memory))
    for one, other in zip(found, wanted, strict=True):
        assert one.error is None
        assert (one.score, one.types, one.box_px, one.word_scores) == (
            other.score, other.types, other.box_px, other.word_scores,
        )  # fmt: skip
    assert load_folder(done.folder).model_id == load_folder(memory).model_id
    # The model in memory is the published one, by the numbers that its code computed.
    golden = golden_arrays(f"{variant}_full_0")
    images = np.random.RandomState(1000 + spec_of(f"{variant}_full_0")["seed"]).standard_normal((4, 3, 256, 256))
    with torch.inference_mode():
        output = load(done.folder)(torch.from_numpy(images).float(), golden["input_ids"], golden["attention_mask"])
    for name, value in output._asdict().items():
        torch.testing.assert_close(value, golden[f"out_{name}"], atol=1e-4, rtol=0)
