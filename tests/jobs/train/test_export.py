"""The checkpoint that becomes the model, and the folder that it becomes."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from ray.train import Checkpoint

from asap.corpus.reader import read_split
from asap.errors import StorageError
from asap.evaluation import own_pairs
from asap.evaluation.own_pairs import read_pair
from asap.finding import Pair
from asap.labels import AUTHENTIC
from asap.limits import limits_sentences
from asap.model.asap import Asap
from asap.newsroom import generate
from asap.predictor import Predictor
from asap.preprocessing.changes import CHANGES
from asap.preprocessing.text import load_tokenizer, train_tokenizer
from asap.weights.model_folder import load_folder, weights_sha256
from jobs.train.data.splits import prepare_splits, read_splits
from jobs.train.export import SCORE, ChosenCheckpoint, export_model
from jobs.train.run_folder.folder import RunFolder
from jobs.train.run_folder.record import start_record
from jobs.train.start import prepare_start
from jobs.train.trainer import STATE_FILE, model_config
from tests.support.many_pairs import repeat_pairs
from tests.support.small_run import settings_for


def checkpoint(folder: Path, value: float) -> Checkpoint:
    folder.mkdir()
    torch.save({"module": {"twin.module.weight": torch.tensor(value), "student.weight": torch.tensor(-1.0)}},
               folder / STATE_FILE)  # fmt: skip
    return Checkpoint.from_directory(folder)


def metrics(pairs: int, score: float) -> dict[str, Any]:
    return {"pairs": pairs, SCORE: score}


def test_the_best_checkpoint_by_validation_or_the_last_is_chosen(tmp_path: Path) -> None:
    good, last = checkpoint(tmp_path / "good", 1.0), checkpoint(tmp_path / "last", 2.0)
    kept = [(last, metrics(640, 0.7)), (good, metrics(320, 0.9))]

    best = ChosenCheckpoint.of(kept, last, "best")
    assert (best.weights, best.pairs, best.score) == ({"weight": torch.tensor(1.0)}, 320, 0.9)
    assert str(best) == "the best checkpoint after 320 pairs (validation AUC 0.900)"
    assert str(ChosenCheckpoint.of(kept, last, "last")) == "the last checkpoint after 640 pairs (validation AUC 0.700)"


def test_the_student_is_exported_where_it_is_set(tmp_path: Path) -> None:
    last = checkpoint(tmp_path / "last", 1.0)
    assert ChosenCheckpoint.of([], last, "best", "student").weights == {"weight": torch.tensor(-1.0)}


def test_the_later_of_two_equally_good_checkpoints_is_chosen(tmp_path: Path) -> None:
    one, two = checkpoint(tmp_path / "one", 1.0), checkpoint(tmp_path / "two", 2.0)
    kept = [(two, metrics(640, 0.9)), (one, metrics(320, 0.9))]
    assert ChosenCheckpoint.of(kept, two, "best").pairs == 640


@pytest.mark.parametrize("rule", ["best", "last"])
def test_an_undefined_auc_is_not_shown(tmp_path: Path, rule: Any) -> None:
    last = checkpoint(tmp_path / "last", 1.0)
    chosen = ChosenCheckpoint.of([(last, metrics(64, -1.0))], last, rule)
    assert chosen.score is None
    assert str(chosen) == f"the {rule} checkpoint after 64 pairs"


def test_a_run_without_metrics_exports_its_last_checkpoint(tmp_path: Path) -> None:
    last = checkpoint(tmp_path / "last", 1.0)
    assert str(ChosenCheckpoint.of([], last, "best")) == "the best checkpoint"


# The model folder.


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "corpus"
    generate(folder, pairs=60, seed=3, workers=1, splits=(0.5, 0.3, 0.2))
    return folder


@pytest.fixture(scope="module")
def drawn_often(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("often") / "corpus"
    generate(folder, pairs=400, seed=4, workers=1, splits=(0.6, 0.3, 0.1))
    return repeat_pairs(folder, train=1030, val=1010)


def export(corpus: Path, out: Path, **changes: Any) -> tuple[Path, list[dict[str, Any]]]:
    """Export random weights as a run on this corpus does at its end, and return the model folder and the events."""
    settings = settings_for(corpus, out, device="cpu", **changes)
    folder = RunFolder.open(settings.out)
    folder.path.mkdir(exist_ok=True)
    events: list[dict[str, Any]] = []
    start_record(folder, settings)
    prepare_start(folder, settings, model_config, events.append)
    corpora = read_splits(settings, "dgm4")
    if not folder.tokenizer.exists():
        train_tokenizer([record.text for record in corpora["train"].records], 300).save_pretrained(folder.tokenizer)
    config = model_config(settings, len(load_tokenizer(folder.tokenizer)))
    prepare_splits(folder, settings, corpora, config, events.append)
    folder.progress.write_text('{"at": 0}\n{"at": 60}\n')
    torch.manual_seed(1)  # the convolutions of some random weights cannot tell noise from pictures
    chosen = ChosenCheckpoint(Asap(config).state_dict(), 64, None, "last")
    model = export_model(folder, settings, chosen, events.append)
    assert isinstance(model, Path)
    return model, events


@pytest.mark.slow
def test_a_model_knows_the_pairs_of_its_corpus(drawn_often: Path, tmp_path: Path) -> None:
    model, events = export(drawn_often, tmp_path / "run")

    loaded = load_folder(model)
    assert loaded.familiarity is not None
    assert loaded.familiarity.about == {
        "weights_sha256": weights_sha256(model), "corpus": "corpus", "fitted_pairs": "1030", "held_out_pairs": "1010",
    }  # fmt: skip
    (sentence,) = [event["note"] for event in events if "note" in event]
    assert sentence == (
        f"The model knows what it can judge: its familiarity file {loaded.familiarity.familiarity_id} was fitted to "
        "1,030 training pairs and 1,010 validation pairs."
    )
    card = (model / "README.md").read_text()
    assert sentence in card
    assert limits_sentences(loaded.limits, loaded.model_id) in card
    assert loaded.limits is not None
    assert loaded.limits.prevalence == pytest.approx(2 / 3, abs=0.1)
    steps = [(event["done"], event["total"]) for event in events if "familiarity" in event.get("stage", "")]
    assert steps[-1] == (pairs_read(drawn_often), pairs_read(drawn_often))

    # It tells its own pairs from noise.
    record = read_split(drawn_often, "test")[0]
    noise = Image.fromarray((255 * np.random.default_rng(0).integers(0, 2, (32, 32, 3))).astype(np.uint8))
    own, strange = Predictor(loaded, device="cpu").predict([Pair(record.image, record.text), Pair(noise, record.text)])
    assert own.verdict != "unfamiliar"
    assert strange.verdict == "unfamiliar"


def pairs_read(corpus: Path) -> int:
    """Return how many pairs a fit reads: both splits, and each authentic picture in every change."""
    known = read_split(corpus, "train")
    pictures = {record.image for record in known if record.fake_cls == AUTHENTIC}
    return len(known) + len(read_split(corpus, "val")) + len(CHANGES) * len(pictures)


@pytest.mark.slow
def test_pairs_of_the_test_split_take_no_part_in_familiarity(drawn_often: Path, tmp_path: Path) -> None:
    read: list[str] = []
    with mock.patch.object(own_pairs, "read_pair", lambda record: read.append(record.text) or read_pair(record)):
        export(drawn_often, tmp_path / "run")
    assert len(read) == pairs_read(drawn_often)
    assert not {record.text for record in read_split(drawn_often, "test")} & set(read)


@pytest.mark.slow
def test_a_model_of_too_few_pairs_has_no_familiarity_and_inherits_none(
    drawn: Path, drawn_often: Path, tmp_path: Path
) -> None:
    source, _ = export(drawn_often, tmp_path / "source")
    assert load_folder(source).familiarity is not None

    model, events = export(drawn, tmp_path / "run", init=(str(source),), name="heir")

    loaded = load_folder(model)
    assert loaded.familiarity is None
    assert not (model / "familiarity.safetensors").exists()
    sentence = (
        "The model has no familiarity file, so it judges every pair: 30 training pairs and 18 held-out pairs are too "
        "few, since familiarity needs 1,000 of each."
    )
    assert [event["note"] for event in events if "note" in event] == [sentence]
    card = (model / "README.md").read_text()
    assert sentence in card
    assert limits_sentences(loaded.limits, "heir") in card


def test_stated_limits_are_those_of_the_model_and_may_change_when_a_run_resumes(drawn: Path, tmp_path: Path) -> None:
    stated = {"made_from": "posters of the city", "languages": ("Czech",), "not_for": "faces of children"}
    model, _ = export(drawn, tmp_path / "run", **stated)
    limits = load_folder(model).limits
    assert limits is not None
    assert (limits.made_from, limits.languages, limits.not_for) == tuple(stated.values())
    assert settings_for(drawn, "run", **stated).identity() == settings_for(drawn, "run").identity()


def test_an_export_leaves_no_draft_and_is_not_hindered_by_that_of_a_killed_one(drawn: Path, tmp_path: Path) -> None:
    draft = tmp_path / "run" / "model.draft"
    draft.mkdir(parents=True)
    (draft / "model.safetensors").write_bytes(b"half of it")

    model, _ = export(drawn, tmp_path / "run")

    assert not draft.exists()
    assert load_folder(model).model_id.startswith("small@")
    assert (tmp_path / "run" / "test_metrics.json").exists()


def test_an_export_that_fails_leaves_no_draft(drawn: Path, tmp_path: Path) -> None:
    with (
        mock.patch("jobs.train.export.predict_split", side_effect=StorageError("the pictures are gone")),
        pytest.raises(StorageError, match="the pictures are gone"),
    ):
        export(drawn, tmp_path / "run")
    assert not (tmp_path / "run" / "model.draft").exists()
