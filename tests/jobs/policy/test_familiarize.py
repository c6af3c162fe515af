"""The familiarity of an existing model folder."""

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from asap.corpus.reader import read_split
from asap.errors import AsapError, CheckpointError
from asap.familiarity import Familiarity
from asap.finding import Pair
from asap.labels import AUTHENTIC
from asap.newsroom import generate
from asap.predictor import Predictor
from asap.preprocessing.changes import CHANGES
from asap.storage.files import exists
from asap.storage.location import Location
from asap.weights.model_folder import load_folder, model_id, read_familiarity
from jobs.cli.app import app
from jobs.policy.familiarize import familiarize
from jobs.policy.settings import FamiliarizeSettings
from tests.support.many_pairs import repeat_pairs
from tests.support.uploads import upload_folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "corpus"
    generate(folder, pairs=60, seed=7, workers=1, splits=(0.5, 0.3, 0.2))
    return repeat_pairs(folder, train=1020, val=1010)


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "mine"))


def test_a_model_folder_gets_a_familiarity_file_and_keeps_its_id(model: Path, drawn: Path) -> None:
    before = model_id(model)

    result = CliRunner().invoke(app, ["familiarize", str(model), str(drawn), "--device", "cpu"])

    assert result.exit_code == 0, result.output
    familiarity = read_familiarity(model)
    assert familiarity is not None
    assert (
        f"familiarity {familiarity.familiarity_id} of {model}: 1,020 pairs of train, 1,010 held-out pairs of val"
        in result.output
    )
    authentic = {record.image for record in read_split(drawn, "train") if record.fake_cls == AUTHENTIC}
    assert f"/{1020 + 1010 + len(CHANGES) * len(authentic)} pairs" in result.output
    assert familiarity.about["corpus"] == "corpus"
    assert model_id(model) == before
    picture = next(drawn.rglob("*.jpg"))
    finding = Predictor.from_folder(model, "cpu").predict([Pair(picture, "the mayor opens a bridge")])[0]
    assert finding.familiarity_id == familiarity.familiarity_id
    assert not list(model.glob(".*"))


def test_a_file_that_belongs_to_other_weights_is_replaced(model: Path, drawn: Path) -> None:
    (model / "familiarity.safetensors").write_bytes(b"of other weights")
    with pytest.raises(CheckpointError, match="asap familiarize"):
        load_folder(model)
    done = familiarize(FamiliarizeSettings(model=str(model), corpus=str(drawn), device="cpu"))
    assert load_folder(model).familiarity is not None
    assert done.familiarity.about["held_out_pairs"] == "1010"


@pytest.mark.usefixtures("scratch")
def test_a_model_in_a_bucket_gets_a_familiarity_file_there(model: Path, drawn: Path, bucket: str) -> None:
    here = familiarize(FamiliarizeSettings(model=str(model), corpus=str(drawn), device="cpu"))
    (model / "familiarity.safetensors").unlink()
    address = upload_folder(model, bucket, "models/mine")
    there = familiarize(FamiliarizeSettings(model=address, corpus=str(drawn), device="cpu"))
    assert str(there.folder) == address
    loaded = load_folder(address).familiarity
    assert loaded is not None
    assert loaded.familiarity_id == there.familiarity.familiarity_id == here.familiarity.familiarity_id


@pytest.mark.usefixtures("scratch")
def test_weights_in_a_bucket_that_changed_meanwhile_get_no_familiarity(
    model: Path, drawn: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = upload_folder(model, bucket, "models/mine")

    def fit(*_: object, weights_sha256: str, **__: object) -> object:
        (model / "model.safetensors").write_bytes(b"others")
        upload_folder(model, bucket, "models/mine")
        return Familiarity.from_bytes(known, weights_sha256, Path("known"))

    known = familiarize(FamiliarizeSettings(model=str(model), corpus=str(drawn), device="cpu")).familiarity.to_bytes()
    (model / "familiarity.safetensors").unlink()
    monkeypatch.setattr("asap.evaluation.own_pairs.fit_familiarity", fit)
    with pytest.raises(CheckpointError, match="the familiarity"):
        familiarize(FamiliarizeSettings(model=address, corpus=str(drawn), device="cpu"))
    assert not exists(Location(f"{address}/familiarity.safetensors"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "demo"}, "the model 'demo' ships with asap and is not written to"),
        ({"model": "/nowhere"}, "'/nowhere' does not exist"),
        ({"corpus": "/nowhere"}, "/nowhere/metadata/train.json does not exist"),
        ({"held_out_split": "test"}, "split test of .* has 12 pairs that can be used; familiarity needs 1,000"),
        ({"fit_split": "test"}, "split test of .* has 12 pairs"),
        ({"files": {"train": ["metadata/val.json"], "val": ["metadata/val.json"]}}, "split val of .* has 0 pairs"),
    ],
)
def test_errors_in_the_command_are_raised_before_a_pair_is_read(
    model: Path, drawn: Path, changes: dict[str, object], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asap.evaluation.own_pairs.fit_familiarity", lambda *_, **__: pytest.fail("pairs were read"))
    settings = FamiliarizeSettings(**{"model": str(model), "corpus": str(drawn), "device": "cpu"} | changes)
    with pytest.raises(AsapError, match=sentence) as caught:
        familiarize(settings)
    assert "\n" not in str(caught.value)
    assert read_familiarity(model) is None


def test_a_folder_that_cannot_be_written_is_refused_first(
    model: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, who may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(CheckpointError, match="cannot be written to"):
        familiarize(FamiliarizeSettings(model=str(model), corpus="/nowhere"))


def test_one_split_cannot_be_fitted_and_held_out() -> None:
    with pytest.raises(ValueError, match="split val is both fitted and held out"):
        FamiliarizeSettings(model="m", corpus="c", fit_split="val")
