import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from asap.errors import ConfigError
from asap.labels import TYPES
from asap.policy import Policy, apply_policy


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (0.0, "authentic"),
        (0.29, "authentic"),
        (0.3, "review"),
        (0.79, "review"),
        (0.8, "manipulated"),
        (1.0, "manipulated"),
    ],
)
def test_a_score_that_reaches_a_threshold_counts(score: float, verdict: str) -> None:
    assert Policy(manipulated=0.8, review=0.3).verdict(score) == verdict


def test_without_a_review_band_nothing_goes_to_a_person() -> None:
    assert {Policy().verdict(score / 100) for score in range(101)} == {"authentic", "manipulated"}
    assert Policy().verdict(0.5) == "manipulated"


def test_types_are_flagged_by_their_own_thresholds_in_the_published_order() -> None:
    policy = Policy(types={"text_swap": 0.9, "text_attribute": 0.1, "face_attribute": 0.5, "face_swap": 0.5})
    assert policy.flagged_types(dict.fromkeys(TYPES, 0.5)) == ["face_swap", "face_attribute", "text_attribute"]
    assert policy.flagged_types(dict.fromkeys(TYPES, 0.0)) == []
    assert policy.flagged_types(dict.fromkeys(TYPES, 0.5) | {"face_swap": None}) == ["face_attribute", "text_attribute"]


@pytest.mark.parametrize(
    ("flagged", "a_face"),
    [
        ([], False),
        (["text_swap", "text_attribute"], False),
        (["face_attribute"], True),
        (["face_swap", "text_swap"], True),
    ],
)
def test_a_box_is_reported_only_if_an_image_type_is_flagged(flagged: list[str], a_face: bool) -> None:
    assert Policy.flags_a_face(flagged) is a_face


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"manipulated": 1.1}, "threshold manipulated 1.1 is not a probability"),
        ({"review": -0.1}, "threshold review -0.1 is not"),
        ({"word": float("nan")}, "threshold word nan is not"),
        ({"manipulated": "0.5"}, "threshold manipulated '0.5' is not"),
        ({"types": dict.fromkeys(TYPES, 2)}, "threshold types.face_swap 2 is not"),
        ({"types": {"face_swap": 0.5}}, "policy types {'face_swap': 0.5} are not thresholds of the four known ones"),
        ({"types": dict.fromkeys([*TYPES, "audio"], 0.5)}, "'audio'.* are not thresholds of the four"),
        ({"types": None}, "policy types None"),
        ({"types": [0.5, 0.5, 0.5, 0.5]}, "policy types"),
        ({"manipulated": 0.4, "review": 0.5}, "review 0.5 is above manipulated 0.4"),
        (
            {"calibration": "by eye"},
            "calibration 'by eye' is neither null nor an object that describes the calibration",
        ),
    ],
)
def test_thresholds_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Policy(**changes)


def test_the_id_depends_on_the_thresholds_and_not_on_the_calibration() -> None:
    halves = Policy()
    assert len(halves.policy_id) == 12
    assert Policy(calibration={"on": "newsroom"}).policy_id == halves.policy_id
    assert Policy(types=dict(reversed(halves.types.items()))).policy_id == halves.policy_id
    others = [
        Policy(manipulated=0.6),
        Policy(review=0.4),
        Policy(word=0.6),
        Policy(types=halves.types | {"text_swap": 0.6}),
    ]
    assert len({policy.policy_id for policy in [halves, *others]}) == 5


def test_a_whole_number_is_the_same_threshold_as_its_decimal() -> None:
    whole, decimal = (Policy(manipulated=value, types=dict.fromkeys(TYPES, value)) for value in (1, 1.0))
    assert whole.policy_id == decimal.policy_id


def test_a_saved_policy_loads_again(tmp_path: Path) -> None:
    policy = Policy(manipulated=0.9, review=0.2, calibration={"precision": 0.95, "prevalence": 0.01})
    policy.save(tmp_path / "policy.json")
    assert Policy.load(tmp_path / "policy.json") == policy
    assert json.loads((tmp_path / "policy.json").read_text()) == dataclasses.asdict(policy)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it is not JSON, .*Create one with `asap calibrate`, or copy policy.json"),
        ("[]", r"it has no fields, known are .*'word', 'unfamiliar', 'calibration'"),
        ("null", "it has no fields"),
        ('{"threshold": 0.5}', r"it has the unknown fields \['threshold'\]"),
        ('{"manipulated": 7}', "manipulated 7 is not a probability"),
        ('{"types": null}', "types None are not"),
        ('{"types": [0.5]}', r"types \[0.5\] are not"),
        ("\xff", "it is not JSON"),
    ],
)
def test_a_file_that_is_not_a_policy_is_refused_by_name(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=rf"policy file .*policy\.json cannot be used: .*{reason}"):
        Policy.load(path)


def test_a_missing_policy_is_reported_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy file .*policy\.json cannot be used"):
        Policy.load(tmp_path / "policy.json")


def test_a_pair_below_the_familiarity_threshold_is_unfamiliar_whatever_its_score() -> None:
    policy = Policy(manipulated=0.9, review=0.3)
    for score in (0.0, 0.5, 1.0):
        assert policy.verdict(score, 0.0049) == "unfamiliar"
        assert policy.verdict(score, 0.005) == policy.verdict(score, 1.0) == policy.verdict(score)
    assert Policy(unfamiliar=0.0).verdict(0.9, 1e-9) == "manipulated"
    assert Policy(unfamiliar=1.0).verdict(0.9, 0.99) == "unfamiliar"


def test_an_unfamiliar_pair_has_no_evidence() -> None:
    types = dict.fromkeys(TYPES, 1.0)
    pair = {"score": 1.0, "types": types, "raw_box": (0, 0, 1, 1), "text": "two words"}
    found = apply_policy(Policy(), **pair, word_scores=[1.0, 1.0], familiarity=0.001)
    assert found == {"verdict": "unfamiliar", "flagged_types": [], "box_px": None, "words": []}
    assert apply_policy(Policy(), **pair, word_scores=None, familiarity=0.001)["words"] is None
    assert apply_policy(Policy(), **pair, word_scores=[1.0, 1.0], familiarity=None)["verdict"] == "manipulated"


def test_the_default_familiarity_threshold_leaves_the_id_of_older_policies() -> None:
    assert Policy().policy_id == Policy(unfamiliar=0.005).policy_id == "4845301bb427"
    assert Policy(unfamiliar=0.01).policy_id != Policy().policy_id
    older = json.loads(Policy().to_json())
    del older["unfamiliar"]
    assert Policy.from_json(json.dumps(older).encode(), "policy.json") == Policy()


@pytest.mark.parametrize("unfamiliar", [-0.1, 1.1, float("nan"), "0.1", None])
def test_a_familiarity_threshold_that_is_no_share_is_refused(unfamiliar: object) -> None:
    with pytest.raises(ConfigError, match="policy threshold unfamiliar"):
        Policy(unfamiliar=unfamiliar)  # type: ignore[arg-type]
