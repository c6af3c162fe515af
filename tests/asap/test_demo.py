"""The demo model judges what it was made from, and says so of everything else."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asap.finding import Finding, Pair
from asap.labels import FLAGGED
from asap.limits import limits_sentences
from asap.newsroom import generate
from asap.predictor import Predictor
from asap.weights.model_folder import load_folder, resolve_folder
from tests.support.photographs import CAPTIONS, photographs

PAGE = Path(__file__).parents[2] / "serve/page"
EXAMPLES = json.loads((PAGE / "examples.json").read_text())
ARABIC = "الرئيس يلتقي وزير الخارجية في القاهرة اليوم"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_folder("demo", "cpu")


@pytest.fixture(scope="module")
def newsroom(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:  # type: ignore[type-arg]
    """Draw 300 newsroom pairs of a seed that neither training nor statistics have seen."""
    folder = tmp_path_factory.mktemp("newsroom")
    generate(folder, pairs=300, seed=1407, splits=(0.0, 0.0, 1.0))
    records = json.loads((folder / "metadata/test.json").read_text())
    return [record | {"path": folder / record["image"]} for record in records]


def test_fifteen_photographs_with_their_captions_are_not_judged(predictor: Predictor) -> None:
    paths = photographs()
    assert len(paths) == 15
    findings = predictor.predict([Pair(path, CAPTIONS[name]) for name, path in paths.items()])
    assert {name: one.verdict for name, one in zip(paths, findings, strict=True)} == dict.fromkeys(paths, "unfamiliar")
    assert [(one.flagged_types, one.words, one.box_px) for one in findings] == [([], [], None)] * 15


def test_a_photograph_is_strange_by_its_picture_alone(predictor: Predictor) -> None:
    own_text = EXAMPLES[0]["text"]
    findings = predictor.predict([Pair(path, own_text) for path in photographs().values()])
    assert [one.familiarity_text > 0.05 for one in findings] == [True] * 15  # type: ignore[operator]
    assert [one.verdict for one in findings] == ["unfamiliar"] * 15


def test_an_arabic_headline_is_unreadable(predictor: Predictor) -> None:
    (finding,) = predictor.predict([Pair(PAGE / EXAMPLES[0]["image"], ARABIC)])
    assert finding.error is not None
    assert finding.error.code == "text_unreadable"
    assert finding.verdict is None


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["image"])
def test_a_caption_in_fullwidth_letters_gets_the_verdict_of_its_plain_form(
    predictor: Predictor, example: dict[str, str]
) -> None:
    fullwidth = example["text"].translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)})
    assert fullwidth != example["text"]
    plain, wide = predictor.predict([Pair(PAGE / example["image"], text) for text in (example["text"], fullwidth)])
    assert wide.verdict == plain.verdict != "unfamiliar"
    assert wide.score == pytest.approx(plain.score, abs=1e-4)
    assert any("read anew" in warning for warning in wide.warnings)


def test_newsroom_pairs_of_another_seed_are_judged(predictor: Predictor, newsroom: list[dict]) -> None:  # type: ignore[type-arg]
    findings = predictor.predict([Pair(record["path"], record["text"]) for record in newsroom])
    unfamiliar = [one for one in findings if one.verdict == "unfamiliar"]
    assert len(unfamiliar) <= 5
    judged = [(one, record) for one, record in zip(findings, newsroom, strict=True) if one not in unfamiliar]
    right = [(one.verdict in FLAGGED) == (record["fake_cls"] != "orig") for one, record in judged]
    assert np.mean(right) > 0.9


def test_noise_blanks_and_pages_of_text_are_not_judged(predictor: Predictor) -> None:
    generator = np.random.default_rng(0)
    pictures = {
        "noise": Image.fromarray(generator.integers(0, 255, (128, 128, 3), np.uint8)),
        "white": Image.new("RGB", (128, 128), "white"),
        "black": Image.new("RGB", (128, 128), "black"),
    }
    findings = predictor.predict([Pair(picture, EXAMPLES[0]["text"]) for picture in pictures.values()])
    assert {name: one.verdict for name, one in zip(pictures, findings, strict=True)} == dict.fromkeys(
        pictures, "unfamiliar"
    )


def test_half_precision_calls_the_same_pairs_unfamiliar(predictor: Predictor, newsroom: list[dict]) -> None:  # type: ignore[type-arg]
    own = [Pair(record["path"], record["text"]) for record in newsroom[:60]]
    pairs = own + [Pair(path, CAPTIONS[name]) for name, path in photographs().items()]
    half = Predictor.from_folder("demo", "cpu", "bfloat16")

    def familiarity(findings: list[Finding]) -> list[float]:
        return [one.familiarity or 0 for one in findings]

    single, rounded = familiarity(predictor.predict(pairs)), familiarity(half.predict(pairs))
    assert sum((one < 0.005) != (other < 0.005) for one, other in zip(single, rounded, strict=True)) <= 1
    assert all(value < 0.005 for value in rounded[60:])
    assert np.corrcoef(np.log(single), np.log(rounded))[0, 1] > 0.95


def test_the_statistics_belong_to_the_weights_and_rest_on_enough_pairs() -> None:
    loaded = load_folder("demo")
    assert loaded.familiarity is not None
    assert int(loaded.familiarity.about["held_out_pairs"]) >= 10_000
    assert int(loaded.familiarity.about["fitted_pairs"]) >= 10_000
    assert loaded.limits is not None
    assert loaded.limits.made_from == "drawn pictures"


def test_the_card_carries_the_limits_and_names_the_statistics() -> None:
    loaded = load_folder("demo")
    card = (resolve_folder("demo") / "README.md").read_text()
    assert limits_sentences(loaded.limits, loaded.model_id) in card
    assert loaded.familiarity is not None
    assert f"familiarity file {loaded.familiarity.familiarity_id} " in card
