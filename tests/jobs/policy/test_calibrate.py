"""Calibration: which pairs are counted, which policy is written, and which commands are refused."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asap.corpus.reader import read_split
from asap.errors import (
    AnnotationError,
    AsapError,
    CheckpointError,
    ConfigError,
    CorpusError,
    DecodeFailed,
    PrecisionNotShown,
    ScoreNotFinite,
)
from asap.finding import Finding, Pair
from asap.labels import TYPES, types_of
from asap.model.config import ModelConfig
from asap.policy import Policy
from asap.predictor import Predictor
from asap.storage.files import read_bytes
from asap.storage.location import Location
from asap.weights.model_folder import load_folder, model_id
from jobs.policy import calibrate as module
from jobs.policy import on_cluster
from jobs.policy.calibrate import Calibrated, calibrate, draw_pairs
from jobs.policy.on_cluster import score_on_cluster
from jobs.policy.scores import score_records, score_split
from jobs.policy.settings import CalibrateSettings
from jobs.sharing import Claim, held_share
from tests.support.uploads import upload_folder

PAIRS = 2400
CLASSES = ("orig", "face_swap", "text_swap", "face_attribute&text_attribute", "text_attribute", "orig")


def _write_corpus(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    (folder / "metadata").mkdir(parents=True)
    (folder / "metadata/val.json").write_text(json.dumps(records))
    for record in records:
        (folder / record["image"]).touch()
    return folder


def _record(number: int, **changes: Any) -> dict[str, Any]:
    fake_cls = CLASSES[number % len(CLASSES)]
    has_words = "text" in fake_cls
    record = {"id": number, "image": f"{number}.jpg", "text": "one two three four", "fake_cls": fake_cls}
    return record | {"fake_image_box": [1, 1, 9, 9], "fake_text_pos": [1, 3] if has_words else []} | changes


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    """A corpus of empty pictures, for a model that needs none."""
    return _write_corpus(tmp_path / "corpus", [_record(number) for number in range(PAIRS)])


class _Oracle:
    """A predictor that answers with the truth and noise; it cannot score the pairs that are `failing`."""

    batch_size = 8
    model_id = "oracle@0"
    policy = Policy(word=0.4)
    dtype = "torch.float32"
    config = ModelConfig.tiny()

    def __init__(self, corpus: Path, noise: float = 0.02, failing: Sequence[int] = ()) -> None:
        self._truth = {record.image: record for record in read_split(corpus, "val")}
        self._noise, self._failing = noise, failing
        self._generator = np.random.default_rng(0)

    def predict(self, pairs: Sequence[Pair]) -> list[Finding]:
        return [self._finding(pair) for pair in pairs]

    def _finding(self, pair: Pair) -> Finding:
        record = self._truth[Path(str(pair.image))]
        about: dict[str, Any] = {"model_id": self.model_id, "policy_id": self.policy.policy_id}
        if int(record.id) in self._failing:
            return Finding(**about, error=DecodeFailed("truncated JPEG"))
        types = types_of(record.fake_cls)
        return Finding(
            score=self._score(bool(types)),
            types={name: self._score(name in types) for name in TYPES},
            word_scores=[self._score(position in (record.fake_text_pos or ())) for position in range(4)],
            image_sha256="0" * 64,
            **about,
        )

    def _score(self, true: bool) -> float:
        return float(np.float32(np.clip(0.8 * true + 0.1 + self._noise * self._generator.normal(), 0, 1)))


def _answer_with(oracle: _Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take any folder for the oracle's model folder."""
    monkeypatch.setattr(Predictor, "from_folder", lambda *args, **named: oracle)
    monkeypatch.setattr(module, "check_folder", Path)
    monkeypatch.setattr(module, "model_config", lambda folder: oracle.config)


@pytest.fixture
def oracle(labeled: Path, monkeypatch: pytest.MonkeyPatch) -> _Oracle:
    made = _Oracle(labeled)
    _answer_with(made, monkeypatch)
    return made


def _settings(source: Path, folder: Path, **changes: Any) -> CalibrateSettings:
    defaults: dict[str, Any] = {"model": str(folder), "corpus": str(source), "precision": 0.8, "prevalence": 0.2}
    return CalibrateSettings(**(defaults | changes))


# Counting.


def _real_corpus(folder: Path, jpeg: Callable[..., bytes]) -> Path:
    """Write a corpus of six pairs with pictures, one of which has a long text."""
    records = [_record(number, text="one two " * (40 if number == 1 else 2)) for number in range(6)]
    corpus = _write_corpus(folder / "corpus", records)
    for number in range(6):
        (corpus / f"{number}.jpg").write_bytes(jpeg(number))
    return corpus


@pytest.mark.slow
def test_a_machine_of_a_cluster_gives_the_scores_of_this_one_and_only_it_is_claimed(
    ray_here: None, tmp_path: Path, jpeg: Callable[..., bytes], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = _real_corpus(tmp_path, jpeg)
    records = read_split(corpus, "val")
    settings = _settings(corpus, model_folder, address="the Ray of the tests", device="cpu", batch_size=2)
    counts: list[tuple[int, int]] = []
    claims: list[Claim] = []

    def await_and_note(*arguments: Any) -> None:
        share = held_share()
        assert share is not None
        claims.append(share.claim)
        wait(*arguments)

    wait = on_cluster._await
    monkeypatch.setattr(on_cluster, "_await", await_and_note)
    found = score_on_cluster(settings, model_folder, records, lambda *now: counts.append(now), pytest.fail)
    expected = score_split(Predictor.from_folder(model_folder, "cpu", batch_size=2), records, 0.0, lambda *_: None)
    for field in dataclasses.fields(found.scores):
        there, here = getattr(found.scores, field.name), getattr(expected.scores, field.name)
        if isinstance(here, np.ndarray):  # another number of threads rounds otherwise
            np.testing.assert_allclose(there, here, atol=1e-6)
        else:
            assert there == here
    assert dataclasses.replace(found, scores=expected.scores) == expected
    assert claims == [Claim({"CPU": 2.0}, {"CPU": 2.0}, is_at_work=True)]
    assert held_share() is None
    # What the worker raises is raised here, and another model there is noticed.
    (corpus / "3.jpg").write_bytes(b"no picture")
    strict = settings.model_copy(update={"max_failed_share": 0.0})
    with pytest.raises(CorpusError, match="1 of 6 pairs cannot be scored"):
        score_on_cluster(strict, model_folder, records, lambda *_: None, pytest.fail)
    monkeypatch.setattr(on_cluster, "model_id", lambda _: "another@0")
    with pytest.raises(CheckpointError, match=r"differs on this machine: it is .*, and was another@0"):
        score_on_cluster(settings, model_folder, records, lambda *_: None, pytest.fail)


def test_a_calibration_that_its_cluster_can_never_hold_is_refused(
    ray_here: None, tmp_path: Path, jpeg: Callable[..., bytes], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(_real_corpus(tmp_path, jpeg), model_folder, address="the Ray of the tests", device="cuda")
    monkeypatch.setattr("jobs.cluster.node_types", list)
    with pytest.raises(ConfigError, match="no machine of the cluster holds 1 worker with 1 GPU"):
        calibrate(settings)


def test_every_pair_is_scored_as_in_a_scan_and_counted_by_its_labels(
    tmp_path: Path, jpeg: Callable[..., bytes], model_folder: Path
) -> None:
    corpus = _real_corpus(tmp_path, jpeg)
    records = [_record(number, text="one two " * (40 if number == 1 else 2)) for number in range(6)]
    predictor = Predictor.from_folder(model_folder, "cpu", batch_size=2)
    counts: list[tuple[int, int]] = []
    scores = score_records(predictor, read_split(corpus, "val"), 0.0, lambda *now: counts.append(now))

    pairs = [Pair(corpus / record["image"], record["text"]) for record in records]
    findings = predictor.predict(pairs)
    assert scores.score_B.tolist() == [finding.score for finding in findings]
    assert scores.types_B4.tolist() == [list((finding.types or {}).values()) for finding in findings]
    assert counts[-1] == (6, 6)
    decisions = scores.decisions()
    assert decisions["manipulated"].authentic.tolist() == [findings[0].score, findings[5].score]
    assert decisions["text_attribute"].positive.tolist() == [
        (findings[number].types or {})["text_attribute"] for number in (3, 4)
    ]
    assert decisions["text_attribute"].other.tolist() == [
        (findings[number].types or {})["text_attribute"] for number in (1, 2)
    ]
    words = [finding.word_scores or [] for finding in findings]
    assert decisions["word"].authentic.tolist() == [max(words[0]), max(words[5])]
    assert decisions["word"].other.tolist() == [max(words[1])]
    assert decisions["word"].positive.tolist() == [max(words[number][1], words[number][3]) for number in (2, 3, 4)]
    assert decisions["word"].stray is not None
    assert decisions["word"].stray.tolist() == [max(words[number][0], words[number][2]) for number in (2, 3, 4)]


def _without_words(number: int) -> dict[str, Any]:
    record = _record(number)
    return {name: value for name, value in record.items() if name != "fake_text_pos"}


def test_manipulated_texts_without_word_positions_take_no_part_in_the_threshold_of_words(tmp_path: Path) -> None:
    rows = [_without_words(number) if number == 2 else _record(number) for number in range(12)]
    corpus = _write_corpus(tmp_path / "corpus", rows)
    decisions = score_records(_Oracle(corpus), read_split(corpus, "val"), 0.0, lambda *_: None).decisions()
    assert len(decisions["word"].authentic) == 4
    assert len(decisions["word"].positive) == 5, "pair 2 does not count as one with manipulated words"
    assert len(decisions["word"].other) == 2, "nor as one without"
    assert len(decisions["text_swap"].positive) == 2


def test_a_corpus_without_word_positions_cannot_calibrate_words_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = _write_corpus(tmp_path / "corpus", [_without_words(number) for number in range(PAIRS)])
    _answer_with(_Oracle(corpus), monkeypatch)
    message = r"for word \(there are 800 authentic pairs and 0 that have it; 1200 more have a manipulated text without"
    with pytest.raises(PrecisionNotShown, match=message):
        calibrate(_settings(corpus, tmp_path))
    made = calibrate(_settings(corpus, tmp_path, keep=("word",), out=str(tmp_path / "policy.json")))
    assert made.policy.word == _Oracle.policy.word


def test_the_fingerprint_depends_on_the_labels_and_not_on_the_run(labeled: Path, tmp_path: Path) -> None:
    changed = [_record(number) for number in range(PAIRS)]
    changed[8]["fake_cls"] = "face_swap"
    other = _write_corpus(tmp_path / "other", changed)
    prints = [
        score_records(_Oracle(corpus), read_split(corpus, "val"), 0.0, lambda *_: None).fingerprint
        for corpus in (labeled, labeled, other)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_a_few_pairs_that_cannot_be_scored_are_left_out_and_counted(labeled: Path) -> None:
    records = read_split(labeled, "val")
    scores = score_records(_Oracle(labeled, failing=[3, 4]), records, 0.01, lambda *_: None)
    assert scores.failed == {"decode_failed": 2}
    assert len(scores.score_B) == len(scores.has_word_B) == PAIRS - 2


def test_too_many_pairs_that_cannot_be_scored_are_refused_and_the_first_is_named(labeled: Path) -> None:
    records = read_split(labeled, "val")
    with pytest.raises(CorpusError, match=r"25 of 2400 pairs cannot be scored.*record 3: truncated JPEG"):
        score_records(_Oracle(labeled, failing=range(3, 28)), records, 0.01, lambda *_: None)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"score": float("nan")}, "score"),
        ({"types": {"face_swap": None}}, "face_swap"),
        ({"word_scores": [0.1, float("nan"), 0.1, 0.1]}, "score of word 1"),
    ],
)
def test_a_score_that_is_not_a_number_names_its_record(
    labeled: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], name: str
) -> None:
    predictor = _Oracle(labeled)
    predict = predictor.predict

    def broken(pairs: Sequence[Pair]) -> list[Finding]:
        findings = predict(pairs)
        return [
            dataclasses.replace(finding, **changes) if str(pair.image).endswith("/11.jpg") else finding
            for pair, finding in zip(pairs, findings, strict=True)
        ]

    monkeypatch.setattr(predictor, "predict", broken)
    with pytest.raises(ScoreNotFinite, match=rf"record 11: the {name} is (nan|None), not a number"):
        score_records(predictor, read_split(labeled, "val"), 0.01, lambda *_: None)


def test_a_pair_for_which_the_model_returns_nan_stops_the_calibration(labeled: Path) -> None:
    predictor = _Oracle(labeled, failing=[4])
    nan = ScoreNotFinite("the model returned NaN or infinite values for this pair")
    failing = {4: dataclasses.replace(predictor.predict([Pair(labeled / "4.jpg", "")])[0], error=nan)}
    predict = predictor.predict
    predictor.predict = lambda pairs: [
        failing.get(int(Path(str(pair.image)).stem)) or predict([pair])[0] for pair in pairs
    ]  # type: ignore[method-assign]
    with pytest.raises(ScoreNotFinite, match="record 4: the model returned NaN"):
        score_records(predictor, read_split(labeled, "val"), 0.01, lambda *_: None)


def _of_items(folder: Path, pairs: int, pairs_of_an_item: int) -> Path:
    """Write a corpus whose pairs share ids."""
    records = [_record(number, id=number // pairs_of_an_item) for number in range(pairs)]
    return _write_corpus(folder, records)


def test_one_pair_of_each_news_item_is_drawn_whatever_the_order(tmp_path: Path) -> None:
    records = read_split(_of_items(tmp_path / "corpus", 240, 4), "val")
    drawn = draw_pairs(records)
    assert [int(record.id) for record in drawn] == list(range(60))
    assert draw_pairs(records[::-1]) == drawn[::-1]
    pictures = [dataclasses.replace(record, id=str(number)) for number, record in enumerate(records)]
    shared = [dataclasses.replace(record, image=pictures[0].image) for record in pictures[:20]]
    assert len(draw_pairs([*shared, *pictures[20:]])) == 221
    alone = read_split(_of_items(tmp_path / "alone", 240, 1), "val")
    assert draw_pairs(alone) == alone


def test_a_calibration_scores_one_pair_of_each_news_item_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = _of_items(tmp_path / "corpus", 2 * PAIRS, 2)
    _answer_with(_Oracle(corpus), monkeypatch)
    counts: list[tuple[int, int]] = []
    calibrated = calibrate(_settings(corpus, tmp_path), lambda *now: counts.append(now))
    about = calibrated.policy.calibration or {}
    assert (about["pairs"], about["same_item"], counts[-1]) == (PAIRS, PAIRS, (PAIRS, PAIRS))
    assert about["thresholds"]["manipulated"]["negatives"] == about["authentic"]
    assert calibrated.read[-1] == (
        "2,400 pairs were left out: they share a picture or an id with another pair, so they depend on it. "
        "Of each such news item one pair was used."
    )


def test_a_refusal_counts_the_pairs_of_the_same_news_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = _of_items(tmp_path / "corpus", 60, 10)
    _answer_with(_Oracle(corpus), monkeypatch)
    with pytest.raises(PrecisionNotShown, match=r"\(54 pairs of the same news items as others took no part\)"):
        calibrate(_settings(corpus, tmp_path, precision=0.95))


def test_a_position_beyond_the_text_is_refused(tmp_path: Path) -> None:
    corpus = _write_corpus(tmp_path / "corpus", [_record(2, fake_text_pos=[4])])
    with pytest.raises(AnnotationError, match="record 2: fake_text_pos has 4, but the text has words 0 to 3"):
        score_records(_Oracle(corpus), read_split(corpus, "val"), 0.0, lambda *_: None)


# Writing.


def test_the_states_of_a_calibration_are_logged(labeled: Path, oracle: _Oracle, tmp_path: Path) -> None:
    log, policy = tmp_path / "states.jsonl", tmp_path / "p.json"
    calibrate(_settings(labeled, tmp_path, out=str(policy), log_file=str(log)))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["state"] for line in lines] == ["validating", "running", "finalizing", "completed"]
    assert (lines[3]["kind"], lines[3]["folder"]) == ("calibrate", str(policy))
    assert lines[3]["counts"]["done"] == lines[3]["counts"]["total"] == PAIRS


def test_the_policy_says_how_it_was_made(labeled: Path, oracle: _Oracle, tmp_path: Path) -> None:
    made = calibrate(_settings(labeled, tmp_path, out=str(tmp_path / "p.json")))
    assert made.read[0].startswith(f"val of {labeled}: ")
    assert made.kept is None
    policy = Policy.load(tmp_path / "p.json")
    assert policy == made.policy
    calibration = policy.calibration or {}
    assert (calibration["target_precision"], calibration["prevalence"], calibration["confidence"]) == (0.8, 0.2, 0.95)
    assert (calibration["model_id"], calibration["corpus"], calibration["split"]) == ("oracle@0", "corpus", "val")
    assert (calibration["pairs"], calibration["authentic"], calibration["manipulated"]) == (PAIRS, 800, 1600)
    assert set(calibration["thresholds"]) == {"manipulated", "review", *TYPES, "word"}
    values = {name: point["value"] for name, point in calibration["thresholds"].items()}
    assert (policy.manipulated, policy.review, policy.word) == (
        values["manipulated"], values["review"], values["word"],
    )  # fmt: skip
    assert policy.types == {name: values[name] for name in TYPES}
    for name, point in calibration["thresholds"].items():
        assert point["precision_lower"] >= 0.8 or name == "review"
        assert point["recall"] > 0.9
        meaning = point["score_meaning"]
        assert meaning["prevalence"] == 0.2
        assert meaning["right_at_or_above"] == pytest.approx(point["precision"])
        assert meaning["pairs_about"] >= 100
    assert str(tmp_path) not in (tmp_path / "p.json").read_text(), "no path of this machine"


def test_the_review_band_keeps_its_precision_or_is_left_out(
    labeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = _Oracle(labeled, noise=0.3)
    _answer_with(noisy, monkeypatch)
    keep = (*TYPES, "word")
    # At 0.95, `manipulated` is so low that the band below it has too few right flags for any bound of its precision.
    options = {"out": str(tmp_path / "p.json"), "keep": keep, "precision": 0.98, "prevalence": 0.5}
    policy = calibrate(_settings(labeled, tmp_path, **options, review_precision=0.51)).policy
    band = (policy.calibration or {})["thresholds"]["review"]["band"]
    assert policy.review < policy.manipulated
    assert 0.51 <= band["precision_lower"] <= band["precision"] < 0.98
    none = calibrate(_settings(labeled, tmp_path, **options, review_precision=0.97)).policy
    assert none.review == none.manipulated
    assert (none.calibration or {})["thresholds"]["review"]["band"] is None


def test_a_threshold_can_be_kept(labeled: Path, oracle: _Oracle, tmp_path: Path) -> None:
    made = calibrate(_settings(labeled, tmp_path, out=str(tmp_path / "p.json"), keep=("word", "face_swap")))
    assert (made.policy.word, made.policy.types["face_swap"]) == (0.4, 0.5)
    calibration = made.policy.calibration or {}
    assert calibration["kept"] == ["word", "face_swap"]
    assert not {"word", "face_swap"} & set(calibration["thresholds"])


def test_a_model_folder_keeps_its_id_and_a_copy_of_its_former_policy(
    labeled: Path, oracle: _Oracle, model_folder: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    before = model_id(folder)
    first = calibrate(_settings(labeled, folder))
    assert first.kept is None, "the uncalibrated policy needs no copy"
    assert first.written == Location(str(folder / "policy.json"))
    second = calibrate(_settings(labeled, folder, precision=0.9))
    assert second.kept == Location(str(folder / f"policy.{first.policy.policy_id}.json"))
    assert Policy.load(Path(second.kept.uri)) == first.policy
    assert model_id(folder) == before
    assert load_folder(folder).policy == second.policy


def test_a_policy_can_be_written_to_s3(labeled: Path, oracle: _Oracle, tmp_path: Path, bucket: str) -> None:
    out = f"s3://{bucket}/policies/p.json"
    made = calibrate(_settings(labeled, tmp_path, out=out))
    assert Policy.from_json(read_bytes(Location(out)), out) == made.policy


@pytest.mark.usefixtures("scratch")
def test_a_model_in_a_bucket_gets_its_policy_there(
    labeled: Path, oracle: _Oracle, model_folder: Path, bucket: str
) -> None:
    model = upload_folder(model_folder, bucket, "models/mine")
    made = calibrate(_settings(labeled, model_folder, model=model))
    assert made.written == Location(f"{model}/policy.json")
    assert load_folder(model).policy == made.policy
    assert load_folder(model).model_id == model_id(model_folder)


# Refusals.


def _refused(corpus: Path, target: Path, **changes: Any) -> str:
    with pytest.raises(PrecisionNotShown) as caught:
        calibrate(_settings(corpus, target, out=str(target / "p.json"), **changes))
    assert not (target / "p.json").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_too_few_pairs_are_refused_with_the_best_precision_and_the_pairs_needed(
    labeled: Path, oracle: _Oracle, tmp_path: Path
) -> None:
    message = _refused(labeled, tmp_path, precision=0.95, prevalence=0.001)
    assert "precision 0.95 at prevalence 0.001 cannot be shown" in message
    assert "800 authentic and 1,600 manipulated pairs" in message
    best = float(message.partition("manipulated (at best ")[2].partition(";")[0])
    needed = int(message.partition("about ")[2].partition(" ")[0].replace(",", ""))
    assert 0.1 < best < 0.25
    assert 57_000 < needed < 70_000, "-ln(0.05) / (0.05 / 0.95 * 0.001 / 0.999) at a recall near 1"


def test_a_refusal_has_figures_of_each_threshold_for_programs_and_for_the_table(
    labeled: Path, oracle: _Oracle, tmp_path: Path
) -> None:
    options = {"out": str(tmp_path / "p.json"), "precision": 0.95, "prevalence": 0.001, "keep": TYPES}
    with pytest.raises(PrecisionNotShown) as caught:
        calibrate(_settings(labeled, tmp_path, **options))
    manipulated, word = json.loads(json.dumps(caught.value.shortfalls))
    assert (manipulated["threshold"], word["threshold"]) == ("manipulated", "word")
    assert (manipulated["target"], manipulated["authentic"], manipulated["positive"]) == (0.95, 800, 1600)
    assert 0.1 < manipulated["shown"] < 0.25
    assert f"about {manipulated['authentic_needed']:,} authentic pairs would show it" in str(caught.value)
    assert manipulated["positive_needed"] == 1600
    assert caught.value.headline.startswith("precision 0.95 at prevalence 0.001 cannot be shown with confidence 0.95")
    assert len(caught.value.headline.split()) < 45
    assert "manipulated (" not in caught.value.headline


def test_the_best_precision_of_a_refusal_can_be_reached(labeled: Path, oracle: _Oracle, tmp_path: Path) -> None:
    message = _refused(labeled, tmp_path, precision=0.95, prevalence=0.01, keep=(*TYPES, "word"))
    best = float(message.partition("manipulated (at best ")[2].partition(";")[0])
    calibrate(_settings(labeled, tmp_path, out=str(tmp_path / "p.json"), precision=best, prevalence=0.01,
                        keep=(*TYPES, "word")))  # fmt: skip
    assert (tmp_path / "p.json").exists()


def test_a_refusal_that_no_number_of_pairs_would_change_does_not_ask_for_more(
    labeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the scores are those of the other class, so the precision of no threshold comes near the target."""
    _answer_with(_Oracle(labeled, noise=5.0), monkeypatch)
    with pytest.raises(PrecisionNotShown) as caught:
        calibrate(_settings(labeled, tmp_path, precision=0.99, prevalence=0.001))
    assert all(problem["authentic_needed"] is None for problem in caught.value.shortfalls)
    assert "More pairs with such scores would not show it. Lower --precision" in str(caught.value)
    assert "Add pairs" not in str(caught.value)


def test_a_type_that_does_not_occur_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [_record(number) for number in range(PAIRS) if CLASSES[number % 6] != "face_swap"]
    corpus = _write_corpus(tmp_path / "corpus", records)
    made = _Oracle(corpus)
    _answer_with(made, monkeypatch)
    message = _refused(corpus, tmp_path)
    assert "for face_swap (there are 800 authentic pairs and 0 that have it)" in message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "demo"}, "'demo' ships with asap"),
        ({"out": "{tmp}/thesis.txt"}, r"thesis\.txt cannot be used"),
        ({"corpus": "/nowhere"}, "/nowhere/metadata/val.json does not exist"),
        ({"split": "validation"}, "split 'validation' is unknown"),
        ({"model": "/nowhere", "out": "{tmp}/p.json"}, "'/nowhere' does not exist"),
        ({"out": "s3://unknown-bucket-78/p.json"}, "'unknown-bucket-78' does not exist"),
    ],
)
def test_errors_in_the_command_are_raised_before_the_scoring(
    s3: str, labeled: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str], reason: str,
) -> None:  # fmt: skip
    def never(*args: object) -> None:
        raise AssertionError("pairs were scored")

    monkeypatch.setattr(module, "score_split", never)
    (tmp_path / "thesis.txt").write_text("x")
    options = {name: value.replace("{tmp}", str(tmp_path)) for name, value in changes.items()}
    with pytest.raises(AsapError, match=reason) as caught:
        calibrate(_settings(labeled, model_folder, **options))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "thesis.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"precision": 0.2}, "precision 0.2 is no more than the prevalence 0.2"),
        ({"precision": 1.0}, "less than 1"),
        ({"prevalence": 0.0}, "greater than 0"),
        ({"review_precision": 0.1}, "review_precision 0.1 is not above the prevalence 0.2"),
        ({"review_precision": 0.9}, "review_precision 0.9 is not above .* and at most the precision 0.8"),
        ({"keep": ("manipulated",)}, "face_swap"),
        ({"confidence": 0.4}, "greater than or equal to 0.5"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        _settings(Path("c"), Path("m"), **changes)


# Familiarity.


class _Estranged(_Oracle):
    """An oracle with familiarity: the pairs of `strange` have the lowest, and for those of `wrong` it guesses."""

    def __init__(self, corpus: Path, familiarity: Sequence[float], wrong: Sequence[int] = ()) -> None:
        super().__init__(corpus)
        self._familiarity, self._wrong = familiarity, set(wrong)

    def _finding(self, pair: Pair) -> Finding:
        number = int(self._truth[Path(str(pair.image))].id)
        finding = super()._finding(pair)
        changes: dict[str, Any] = {"familiarity": self._familiarity[number], "familiarity_id": "f" * 12}
        if number in self._wrong:
            changes |= {"score": float(np.float32(self._generator.random()))}
        return dataclasses.replace(finding, **changes)


def _estranged(
    labeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, familiarity: Sequence[float],
    wrong: Sequence[int] = (), **changes: Any,
) -> Calibrated:  # fmt: skip
    made = _Estranged(labeled, familiarity, wrong)
    _answer_with(made, monkeypatch)
    return calibrate(_settings(labeled, tmp_path, out=str(tmp_path / "p.json"), **changes))


def test_unfamiliar_pairs_take_no_part_and_are_counted(
    labeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = range(600)
    familiarity = [0.001 if number in strange else 0.5 for number in range(PAIRS)]
    made = _estranged(labeled, tmp_path, monkeypatch, familiarity, wrong=strange)
    calibration = made.policy.calibration or {}
    assert calibration["unfamiliar"] == 600
    assert calibration["pairs"] == PAIRS
    assert calibration["thresholds"]["manipulated"]["negatives"] == 600  # of 800 authentic pairs
    assert calibration["thresholds"]["manipulated"]["recall"] > 0.99, "the guesses would spoil it"
    assert calibration["familiarity"] == {
        "outcome": made.familiarity, "familiarity_id": "f" * 12, "former": 0.005,
    }  # fmt: skip


def test_strange_pairs_whose_labels_do_not_go_with_the_scores_do_not_become_familiar(
    labeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = range(1200)
    familiarity = [0.0001 if number in strange else 0.5 for number in range(PAIRS)]
    made = _estranged(labeled, tmp_path, monkeypatch, familiarity, wrong=strange)
    assert made.policy.unfamiliar == 0.005
    assert made.familiarity.startswith("unfamiliar stays 0.005: 1,200 of 2,400 pairs are below it and took no part")
    # Strange pairs alone choose no thresholds either.
    every = range(PAIRS)
    with pytest.raises(PrecisionNotShown, match=r"0 authentic and 0 manipulated pairs \(2,400 unfamiliar pairs took"):
        _estranged(labeled, tmp_path, monkeypatch, [0.0001] * PAIRS, wrong=every)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_strange_pairs_become_familiar_where_their_own_labels_show_the_precision(
    labeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    familiarity = [0.001 if number < share * PAIRS else 0.5 for number in range(PAIRS)]
    made = _estranged(labeled, tmp_path, monkeypatch, familiarity)
    assert made.policy.unfamiliar == 0.0
    assert made.familiarity.startswith(
        "unfamiliar falls from 0.005 to 0: of the flagged pairs that it admits, at least"
    )
    assert (made.policy.calibration or {})["unfamiliar"] == 0


def test_few_good_strange_pairs_among_many_familiar_ones_show_nothing(
    labeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    familiarity = [0.001 if number < 30 else 0.5 for number in range(PAIRS)]
    assert _estranged(labeled, tmp_path, monkeypatch, familiarity).policy.unfamiliar == 0.005


def test_the_threshold_rises_over_a_band_whose_flagged_pairs_are_shown_to_be_wrong(
    labeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    familiarity = [0.015 if number < 200 else 0.5 for number in range(PAIRS)]
    made = _estranged(labeled, tmp_path, monkeypatch, familiarity, wrong=range(200))
    assert made.policy.unfamiliar == 0.02
    assert made.familiarity.startswith(
        "unfamiliar rises from 0.005 to 0.02: of the flagged pairs just above it, at most"
    )
    assert (made.policy.calibration or {})["unfamiliar"] == 200
    assert Policy.load(tmp_path / "p.json").unfamiliar == 0.02


def test_fewer_than_a_thousand_pairs_move_no_threshold_of_familiarity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = _write_corpus(tmp_path / "few", [_record(number) for number in range(996)])
    made = _estranged(corpus, tmp_path, monkeypatch, [0.001] * 200 + [0.5] * 796, keep=TYPES)
    assert made.policy.unfamiliar == 0.005
    assert made.familiarity == "unfamiliar stays 0.005: 996 pairs are too few to move it; 1,000 can."


def test_a_model_without_a_familiarity_file_is_calibrated_as_ever(
    labeled: Path, oracle: _Oracle, tmp_path: Path
) -> None:
    made = calibrate(_settings(labeled, tmp_path, out=str(tmp_path / "p.json")))
    assert made.policy.unfamiliar == Policy().unfamiliar
    assert made.familiarity == (
        "The model has no familiarity file, so it judges every pair. Make one with `asap familiarize`."
    )
    assert "unfamiliar" not in (made.policy.calibration or {})
