import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from asap.corpus.reader import Record
from asap.limits import Limits, limits_sentences
from asap.model.config import ModelConfig
from jobs.cli.app import app
from jobs.train import run as train
from jobs.train.card import METRICS, model_card, model_limits
from jobs.train.settings import TrainSettings

REPORT: dict[str, Any] = {name: (number + 1) / 32 for number, name in enumerate(METRICS)} | {
    "pairs": 321, "AP": [0.5, None, 0.75, 0.25],
    "intervals": {
        "confidence": 0.95, "resamples": 1000, "seed": 0, "items": 107, "method": "by items",
        "figures": {"AUC": [0.25, 0.75], "AP": [[0.4, 0.6], None, None, None]},
    },
}  # fmt: skip

LIMITS = Limits(made_from="drawn pictures", not_for="photographs")
TOO_FEW = "The model has no familiarity file, so it judges every pair: 3 training pairs are too few."


def card_of(settings: TrainSettings, progress: Path, report: dict[str, Any] = REPORT) -> str:
    checkpoint = "the best checkpoint after 640 pairs"
    return model_card(settings, ModelConfig.tiny(), report, progress, checkpoint, LIMITS, TOO_FEW)


@pytest.fixture
def progress(tmp_path: Path) -> Path:
    path = tmp_path / "progress.jsonl"
    at = [0, 500, 1000, 90_000, 90_500]  # the run was stopped for a night
    path.write_text("".join(json.dumps({"at": second}) + "\n" for second in at))
    return path


def corpus(folder: Path, seed: int | None) -> str:
    folder.mkdir()
    if seed is not None:
        splits = {"train": 8000, "val": 1500, "test": 500}
        made = {"corpus_version": "newsroom-2", "seed": seed, "pairs": 10_000, "splits": splits}
        (folder / "newsroom.json").write_text(json.dumps(made))
    return str(folder)


@pytest.mark.parametrize(
    ("labeled", "sentence"), [(0, "There are no figures of words: the corpus has no word positions"), (321, None)]
)
def test_the_card_says_that_a_corpus_has_no_word_positions(
    tmp_path: Path, progress: Path, labeled: int, sentence: str | None
) -> None:
    words = {name: None for name in METRICS if name.startswith("token_")} if sentence else {}
    settings = TrainSettings(corpus=corpus(tmp_path / "drawn", None), out=str(tmp_path / "run"))
    card = card_of(settings, progress, REPORT | {"word_labeled_pairs": labeled} | words)
    assert ("| token_F1 |" in card) is (sentence is None)
    assert (sentence in card) if sentence else ("figures of words" not in card)


def test_the_card_has_the_metrics_and_the_training_of_the_model(tmp_path: Path, progress: Path) -> None:
    settings = TrainSettings(
        corpus=corpus(tmp_path / "drawn", 1), test_corpus=corpus(tmp_path / "unseen", 77), out=str(tmp_path / "run"),
        name="asap-small", pairs=123_456, learning_rate=3e-4, loss_weights={"mpp": 0.5},
    )  # fmt: skip

    card = card_of(settings, progress)

    assert card.startswith("# asap-small\n")
    for name in METRICS:
        limits = "0.250 to 0.750" if name == "AUC" else "–"
        assert f"| {name} | {REPORT[name]:.3f} | {limits} |" in card
    assert "95 % intervals: by items; 1,000 resamples of 107 items, seed 0." in card
    assert "face_swap 0.500 (0.400 to 0.600), text_swap 0.750, text_attribute 0.250." in card
    assert "321 pairs that training never saw" in card
    assert "a drawn corpus (newsroom-2, seed 77, 10000 pairs)" in card
    assert "trained on a drawn corpus (newsroom-2, seed 1, 10000 pairs); 123456 pairs were shown in 0.4 hours" in card
    assert '"learning_rate": 0.0003' in card
    assert '"mpp": 0.5' in card
    assert '"vlc": 0.1' in card  # unchanged weights are shown too
    limits = card.partition("\n## Limits\n\n")[2].splitlines()
    assert limits[0] == limits_sentences(LIMITS, "asap-small")
    assert limits[2] == TOO_FEW
    assert str(tmp_path) not in card


def test_a_metric_that_a_corpus_does_not_define_is_left_out(tmp_path: Path, progress: Path) -> None:
    settings = TrainSettings(corpus=corpus(tmp_path / "real", None), out=str(tmp_path / "run"))
    card = card_of(settings, progress, REPORT | {"AUC": None, "AP": [None] * 4})
    assert "| AUC |" not in card
    assert "Average precision by type: undefined on this split." in card
    assert "| ACC |" in card
    assert "the corpus `real`" in card


def test_a_drawn_corpus_of_seed_0_is_described_as_drawn(tmp_path: Path, progress: Path) -> None:
    settings = TrainSettings(corpus=corpus(tmp_path / "drawn", 0), out=str(tmp_path / "run"))
    card = card_of(settings, progress)
    assert "seed 0" in card


def test_the_commands_of_the_card_make_the_model_again(
    tmp_path: Path, progress: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings(
        corpus=corpus(tmp_path / "drawn", 1), test_corpus=corpus(tmp_path / "unseen", 77), out=str(tmp_path / "run"),
        name="asap-small", pairs=1_234, seed=5, workers=2, augmentation="none", loss_weights={"mpp": 0.5, "giou": 1},
        model={"width": 96}, learning_rate=3e-4, words_until=0.125, alignment_from=0.25,
    )  # fmt: skip
    card = card_of(settings, progress)
    draw, draw_unseen, command = card.partition("```sh\n")[2].partition("\n```")[0].splitlines()
    trained: list[TrainSettings] = []
    monkeypatch.setattr(train, "train", lambda settings, progress: trained.append(settings) or Path("run/model"))
    monkeypatch.setattr("jobs.train.check.check_command", lambda settings: None)  # its corpus is not here

    result = CliRunner().invoke(app, shlex.split(command)[1:])

    assert draw == "asap newsroom corpus --pairs 10000 --seed 1 --splits 8000 1500 500"
    assert draw_unseen == "asap newsroom unseen --pairs 10000 --seed 77 --splits 8000 1500 500"
    assert result.exit_code == 0, result.output
    assert trained == [settings.model_copy(update={"corpus": "corpus", "test_corpus": "unseen", "out": "run"})]


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "published", "recipe": "hammer"},
        {"preset": "published", "pairs": 4096, "learning_rate": 1e-3, "weights": "average"},
        {"preset": "base", "init": ("bert:bert-base-uncased",), "learning_rate": 1e-3, "words_until": 0.57,
         "alignment_from": 0.9},
    ],
)  # fmt: skip
def test_the_commands_of_the_card_restate_what_differs_from_the_defaults_that_follow(
    tmp_path: Path, progress: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    settings = TrainSettings(corpus=corpus(tmp_path / "real", None), out="run", **changes)
    card = card_of(settings, progress)
    trained: list[TrainSettings] = []
    monkeypatch.setattr(train, "train", lambda settings, progress: trained.append(settings) or Path("run/model"))
    monkeypatch.setattr("jobs.train.check.check_command", lambda settings: None)  # its corpus is not here
    (command,) = card.partition("```sh\n")[2].partition("\n```")[0].splitlines()
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert trained == [settings.model_copy(update={"corpus": "corpus"})]
    assert "queue_size" not in command
    assert ("of its last step" in card) == (settings.weights == "student")
    assert ("50 epochs were shown" in card) == (settings.epochs == 50)


# Limits.


def record(fake_cls: str) -> Record:
    return Record("1", Path("1.jpg"), "a text", fake_cls, (), (), "a text", "a text")


RECORDS = [record("orig"), record("face_swap"), record("text_swap"), record("orig"), record("orig")]


@pytest.mark.parametrize(
    ("seed", "changes", "stated"),
    [
        (1, {}, ("drawn pictures", ("English",), "photographs or texts of other kinds")),
        (None, {}, ("pairs of the corpus places", (), "any other kind of picture or text")),
        (
            1,
            {"made_from": "posters", "languages": ("Czech", "German"), "not_for": " film "},
            ("posters", ("Czech", "German"), "film"),
        ),
    ],
)
def test_the_limits_are_those_of_the_corpus_unless_they_are_stated(
    tmp_path: Path, seed: int | None, changes: dict[str, Any], stated: tuple[Any, ...]
) -> None:
    settings = TrainSettings(corpus=corpus(tmp_path / "places", seed), out="run", **changes)
    limits = model_limits(settings, ModelConfig.tiny(), RECORDS)
    assert (limits.made_from, limits.languages, limits.not_for) == stated
    assert limits.prevalence == 0.4  # measured in the training pairs


def test_the_limits_have_the_label_set_of_the_model(tmp_path: Path) -> None:
    settings = TrainSettings(corpus=corpus(tmp_path / "places", None), out="run")
    assert model_limits(settings, ModelConfig.tiny(label_set="samm"), RECORDS[:1]).label_set == "samm"
