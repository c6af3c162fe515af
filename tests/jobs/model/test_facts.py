"""Facts about a model, from the files of its folder."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from asap.errors import CheckpointError
from asap.limits import NO_FAMILIARITY, Limits
from asap.policy import Policy
from asap.weights.model_folder import load, model_id
from jobs.model.facts import familiarity_sentence, model_facts
from tests.support.uploads import upload_folder

CARD = """# small

## Metrics

On the test split of the corpus `news`, 900 pairs
that training never saw:

| metric | value | 95 % interval |
|---|---|---|
| AUC | 0.912 | 0.880 to 0.940 |
| token_F1 | 0.700 | – |

95 % intervals: bootstrap over news items.

Average precision by type: face_swap 0.9.

## Training

| AUC | 0.1 | 0.0 to 0.2 |
"""


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "small"))


def test_all_that_a_folder_says_is_found(folder: Path) -> None:
    limits = Limits(made_from="news", languages=("English", "Czech"), prevalence=0.5, not_for="drawings")
    calibration = {"target_precision": 0.95, "prevalence": 0.01}
    (folder / "limits.json").write_text(limits.to_json())
    (folder / "README.md").write_text(CARD)
    Policy(manipulated=0.9, review=0.4, calibration=calibration).save(folder / "policy.json")

    facts = model_facts(str(folder))

    config = load(folder).config
    assert facts["model_id"] == model_id(folder)
    assert facts["limits"]["languages"] == ("English", "Czech")
    assert facts["limits_sentence"].startswith("small was made from news")
    assert (facts["label_set"], facts["types"][0], len(facts["types"])) == ("dgm4", "face_swap", 4)
    assert facts["metrics"] == {
        "measured_on": "On the test split of the corpus `news`, 900 pairs that training never saw",
        "values": {
            "AUC": {"value": 0.912, "interval": [0.88, 0.94]},
            "token_F1": {"value": 0.7, "interval": None},
        },
        "by_type": "Average precision by type: face_swap 0.9.",
    }
    assert (facts["policy"]["manipulated"], facts["policy"]["calibration"]) == (0.9, calibration)
    assert facts["familiarity"] is None
    assert facts["robustness"] is None
    assert familiarity_sentence(facts) == NO_FAMILIARITY
    parameters = sum(tensor.numel() for tensor in load(folder).state_dict().values() if tensor.is_floating_point())
    assert facts["sizes"] == {
        "parameters": parameters, "bytes": (folder / "model.safetensors").stat().st_size,
        "parameters_by_type": {"F32": parameters}, "image_side": 32, "tokens": config.max_tokens, "words": 50,
        "vocabulary": config.vocab_size,
    }  # fmt: skip
    assert facts["model"] == dataclasses.asdict(config)
    assert facts["card"] == f"{folder}/README.md"


def test_the_demo_has_figures_limits_and_familiarity() -> None:
    facts = model_facts("demo")
    assert facts["metrics"]["values"]["AUC"] == {"value": 0.983, "interval": [0.978, 0.986]}
    assert len(facts["metrics"]["values"]) == 17
    assert facts["metrics"]["by_type"].startswith("Average precision by type: face_swap 0.958")
    assert [row["picture"] for row in facts["robustness"]][:3] == ["none", "blur of 1 px", "blur of 2 px"]
    for row in facts["robustness"]:
        assert float(row["times clean"].split()[0]) <= 3
    assert facts["limits"]["made_from"] == "drawn pictures"
    assert facts["sizes"]["parameters_by_type"].keys() == {"F16"}
    assert "fitted to 22,000 pairs of the corpus own and 22,000 held-out pairs" in familiarity_sentence(facts)


def test_a_folder_without_card_limits_and_familiarity_says_so(folder: Path) -> None:
    (folder / "README.md").unlink()
    facts = model_facts(str(folder))
    assert [facts[name] for name in ("card", "metrics", "limits", "familiarity")] == [None] * 4
    assert facts["limits_sentence"].startswith("Nobody has recorded what small was made from")


@pytest.mark.parametrize(
    "text", ["", "# small\n", "\n## Metrics\n\nNone were measured.\n", "\n## Metrics\n| a | b |\n"]
)
def test_a_card_without_a_table_has_no_metrics(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text)
    assert model_facts(str(folder))["metrics"] is None


@pytest.mark.parametrize("name", ["config.json", "policy.json", "model.safetensors", "tokenizer"])
def test_a_folder_without_a_part_is_refused(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name) if name == "tokenizer" else (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        model_facts(str(folder))


def test_damaged_parts_are_named(folder: Path) -> None:
    for name, content in (("policy.json", b"{}x"), ("model.safetensors", b"x" * 20), ("limits.json", b"[]")):
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            model_facts(str(folder))
        (folder / name).write_bytes(before) if before is not None else (folder / name).unlink()
    assert model_facts(str(folder))


@pytest.mark.usefixtures("scratch")
def test_a_folder_in_a_bucket_is_described_under_its_address(folder: Path, bucket: str) -> None:
    address = upload_folder(folder, bucket, "models/small")
    facts, here = model_facts(address), model_facts(str(folder))
    assert facts == here | {"folder": address, "card": f"{address}/README.md"}
    with pytest.raises(CheckpointError, match="does not exist, or is none"):
        model_facts(f"s3://{bucket}/models/other")


def test_no_weight_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shapes:
        """Tensors of which only shapes and types can be asked."""

        def __init__(self, *arguments: Any) -> None:
            self.file = safe_open(*arguments)

        def __enter__(self) -> "Shapes":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def keys(self) -> list[str]:
            return list(self.file.keys())

        def get_slice(self, key: str) -> Any:
            return self.file.get_slice(key)

    monkeypatch.setattr("jobs.model.facts.safe_open", Shapes)
    assert model_facts(str(folder))["sizes"]["parameters"] > 0
