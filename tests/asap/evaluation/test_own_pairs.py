"""Familiarity, fitted to records of a corpus."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from asap.corpus.reader import Record
from asap.errors import ConfigError
from asap.evaluation.own_pairs import fit_familiarity, without
from asap.familiarity import Familiarity
from asap.finding import Pair
from asap.predictor import Predictor
from asap.preprocessing.changes import CHANGES
from asap.weights.model_folder import load_folder

PAIRS = 1100


def records(folder: Path, start: int, count: int) -> list[Record]:
    """Return records that share twenty pictures, each with a text of its own."""
    found = []
    for number in range(start, start + count):
        text, kind = f"a crowd waits for bus {number}", "orig" if number // 20 == 3 else "face_swap"
        found.append(
            Record(
                id=str(number), image=folder / f"{number % 20}.png", text=text, fake_cls=kind, fake_image_box=(),
                fake_text_pos=(), caption=text, explanation=text,
            )
        )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(20):
        pixels = np.full((40, 40, 3), generator.integers(0, 255, 3), np.uint8)
        pixels[10:30, 10:30] = generator.integers(0, 255, 3)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return Predictor.from_folder(model_folder, "cpu", "float32")


def fit(predictor: Predictor, known: Sequence[Record], held_out: Sequence[Record], most: int = 50_000) -> Familiarity:
    return fit_familiarity(predictor, known, held_out, weights_sha256="0" * 64, corpus="drawn", most_pairs=most)


def test_pairs_of_the_corpus_are_familiar_and_noise_is_not(predictor: Predictor, pictures: Path) -> None:
    familiarity = fit(predictor, records(pictures, 0, PAIRS), records(pictures, PAIRS, PAIRS))
    assert familiarity.about == {
        "weights_sha256": "0" * 64, "corpus": "drawn", "fitted_pairs": "1100", "held_out_pairs": "1100",
    }  # fmt: skip
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    pairs = [Pair(pictures / "3.png", "a crowd waits for bus 9000"), Pair(noise, "a crowd waits for bus 9000")]
    own, strange = familiarity.of_pairs(predictor.features(pairs), [False, False])
    assert own.pair > 0.05
    assert strange.pair == strange.image < 0.005


@pytest.mark.slow
def test_the_same_pairs_give_the_same_file_and_more_are_sampled(predictor: Predictor, pictures: Path) -> None:
    known, held_out = records(pictures, 0, PAIRS), records(pictures, PAIRS, PAIRS)
    whole = fit(predictor, known, held_out)
    sampled = fit(predictor, known, held_out, most=1000)
    assert sampled.about["fitted_pairs"] == sampled.about["held_out_pairs"] == "1000"
    assert sampled.familiarity_id == fit(predictor, known, held_out, most=1000).familiarity_id != whole.familiarity_id


def test_too_few_pairs_are_refused_before_any_is_read(predictor: Predictor, tmp_path: Path) -> None:
    known, held_out = records(tmp_path / "nowhere", 0, 1000), records(tmp_path / "nowhere", 1000, 999)
    with pytest.raises(ConfigError, match=r"^1,000 training pairs and 999 held-out pairs are too few"):
        fit(predictor, known, held_out)


@pytest.mark.slow
def test_pairs_that_cannot_be_read_are_left_out(predictor: Predictor, pictures: Path, tmp_path: Path) -> None:
    known, held_out = records(pictures, 0, PAIRS), records(pictures, PAIRS, PAIRS)
    # More than a chunk in which no pair can be read.
    known[:600] = records(tmp_path / "nowhere", 0, 600)
    with pytest.raises(ConfigError, match="500 known pairs are too few"):
        fit(predictor, known, held_out)
    assert fit(predictor, known + records(pictures, 5000, 600), held_out).about["fitted_pairs"] == "1100"


def test_a_held_out_pair_that_was_fitted_does_not_count(predictor: Predictor, pictures: Path) -> None:
    known = records(pictures, 0, PAIRS)
    others = [dataclasses.replace(record, id=f"again {record.id}") for record in known]
    assert without(others, known) == []
    with pytest.raises(ConfigError, match="1,100 training pairs and 0 held-out pairs"):
        fit(predictor, known, others)


def predictor_of_one_verdict(model_folder: Path, logits: list[float]) -> Predictor:
    """Return a predictor with the same logits of authentic and manipulated for every pair."""
    loaded = load_folder(model_folder)
    head = loaded.model.real_fake_head[-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(logits))
    return Predictor(loaded, device="cpu", precision="float32")


def test_changed_pictures_that_the_model_flags_are_not_judged(model_folder: Path, pictures: Path) -> None:
    # A model that flags every picture errs on every change.
    predictor = predictor_of_one_verdict(model_folder, [0.0, 5.0])
    known, held_out = records(pictures, 0, PAIRS), records(pictures, PAIRS, PAIRS)
    familiarity = fit(predictor, known, held_out)
    assert familiarity.changed.weight_DK.shape[1] == len(CHANGES)
    text = "a crowd waits for bus 9000"
    bright = CHANGES["1.5 times as bright"](Image.open(pictures / "3.png"))
    own, changed = familiarity.of_pairs(
        predictor.features([Pair(pictures / "3.png", text), Pair(bright, text)]), [False, False]
    )
    assert changed.image < own.image


def test_a_model_that_errs_on_no_change_learns_none(model_folder: Path, pictures: Path) -> None:
    predictor = predictor_of_one_verdict(model_folder, [5.0, 0.0])
    familiarity = fit(predictor, records(pictures, 0, PAIRS), records(pictures, PAIRS, PAIRS))
    assert familiarity.changed.weight_DK.shape[1] == 0
