"""`asap import` and `asap model`."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from asap.errors import CheckpointError
from tests.support.published import golden_state, tokenizer_of, write_published


@pytest.fixture
def hammer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a published file and its tokenizer to the working folder, and return the file."""
    monkeypatch.chdir(tmp_path)
    tokenizer_of(512).save_pretrained("tokenizer")
    return write_published(Path("hammer.pth"), golden_state("hammer_small_0"), config={"image_res": 256})


def test_import_says_what_the_model_is_and_lacks_and_what_comes_next(run: Any, hammer: Path, corpus: Path) -> None:
    code, out, _ = run("import", hammer, "--tokenizer", "tokenizer", "--out", "my-hammer")
    assert code == 0
    text = " ".join(out.split())
    for fact in (
        "my-hammer: HAMMER, as published, epoch 49",
        "note: the file's config says image_res 256 and its tensors 64; the tensors were followed",
        "1,150,253 parameters, 4 MiB (float32)",
        "64 x 64 px",
        "50 words and 64 tokens in one pass, 512 word pieces",
        "0.5 for all",
        "calibrated no.",
        "The model has no familiarity file, so it judges every pair",
        "Nobody has recorded what my-hammer was made from",
        "asap familiarize my-hammer CORPUS",
        "asap calibrate my-hammer LABELED --precision",
        "asap scan INPUT --out SCANS --model my-hammer",
    ):
        assert fact in text

    code, out, _ = run("detect", corpus / "images/0.jpg", "--text", "A team", "--model", "my-hammer", "--json")
    assert code == 0
    finding = json.loads(out)
    assert finding["error_code"] is None
    assert finding["model_id"].startswith("my-hammer@")


def test_import_and_training_refuse_a_file_of_another_model_in_one_sentence(run: Any, hammer: Path) -> None:
    state = golden_state("hammer_small_0")
    rows = {key: state[key][:3] for key in ("cls_head.6.weight", "cls_head.6.bias")}
    write_published(Path("samm.pth"), state | rows)
    code, out, err = run("import", "samm.pth", "--tokenizer", "tokenizer", "--out", "samm")
    assert (code, out) == (1, "")
    assert "is one of HAMMER for 3 types" in err
    assert not Path("samm").exists()


def test_an_error_sends_no_escape_codes(run: Any, hammer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run("import", "\x1b[31mred.pth", "--tokenizer", "tokenizer", "--out", "m")
    assert code == 1
    assert "checkpoint \\x1b[31mred.pth is not a file" in err
    assert "\x1b[31mred" not in err


def test_import_without_an_output_is_a_usage_error(run: Any, hammer: Path) -> None:
    assert run("import", hammer)[0] == 2


def test_model_shows_the_demo(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run("model", "demo")
    assert code == 0
    text = " ".join(out.split())
    for fact in (
        "asap-demo@",
        "made from drawn pictures",
        "Do not use it for photographs or real news",
        "languages English",
        "DGM4: face swap, face attribute, text swap, text attribute",
        "calibrated no.",
        "familiarity d08bbf65a16c, fitted to 22,000 pairs",
        "128 x 128 px",
        "AUC 0.983 0.978 to 0.986",
        "robustness: what the model flags if the pictures are changed.",
        "gray 14.8 (12.8 to 17.1) 2.98 (2.23 to 4.21)",
        "unfamiliar below 0.005",
    ):
        assert fact in text


def test_model_shows_intervals_calibration_and_limits_of_a_trained_folder(
    run: Any, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asap.policy import Policy

    monkeypatch.setenv("COLUMNS", "140")
    folder = Path(shutil.copytree(model_folder, tmp_path / "small"))
    (folder / "README.md").write_text(
        "# small\n\n## Metrics\n\nOn 900 pairs:\n\n| metric | value | 95 % interval |\n|---|---|---|\n"
        "| AUC | 0.912 | 0.880 to 0.940 |\n| EER | 0.100 | – |\n"
    )
    point = {
        "value": 0.9, "precision": 0.97, "precision_lower": 0.95, "recall": 0.5, "false_positive_rate": 0.001,
        "false_positive_rate_upper": 0.002,
    }  # fmt: skip
    calibration = {
        "target_precision": 0.95, "prevalence": 0.01, "confidence": 0.95, "authentic": 58_000, "manipulated": 2_000,
        "corpus": "news", "split": "val", "model_id": "small@other", "thresholds": {"manipulated": point},
    }  # fmt: skip
    Policy(manipulated=0.9, review=0.4, calibration=calibration).save(folder / "policy.json")

    code, out, _ = run("model", folder)

    assert code == 0
    text = " ".join(out.split())
    for fact in (
        "precision 0.95 at prevalence 0.01, confidence 0.95, on 58,000 authentic and 2,000 manipulated pairs of news "
        "(val), with another model: small@other",
        "manipulated 0.9, review 0.4, face swap 0.5, face attribute 0.5, text swap 0.5, text attribute 0.5, word 0.5 "
        "(policy",
        "AUC 0.912 0.880 to 0.940",
        "EER 0.100 –",
        "0.970",
    ):
        assert fact in text
    assert "no review band" not in text


def test_model_says_what_a_folder_lacks(run: Any, model_folder: Path) -> None:
    code, out, _ = run("model", model_folder)
    assert code == 0
    text = " ".join(out.split())
    assert "Nobody has recorded what small was made from" in text
    assert "languages not recorded" in text
    assert "figures: the card has none. Measure the model on labeled pairs with `asap evaluate`." in text


def test_model_prints_json(run: Any) -> None:
    code, out, _ = run("model", "demo", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["metrics"]["values"]["AUC"]["value"] == 0.983
    assert facts["sizes"]["image_side"] == 128


def test_model_refuses_what_is_no_folder(run: Any, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"x")
    code, _, err = run("model", tmp_path / "a.pth")
    assert code == 1
    assert "Make a model folder of a .pth file with `asap import`." in err
    assert run("model", "bert-base-uncased")[0] == 1


def test_model_loads_no_torch(model_folder: Path) -> None:
    import subprocess

    code = (
        "import sys\nfrom jobs.model.facts import model_facts\nmodel_facts(sys.argv[1])\n"
        "print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code, model_folder], capture_output=True, text=True, check=True)
    assert output.stdout == "[]\n"


def test_the_public_functions_refuse_another_kind_of_argument(model_folder: Path, tmp_path: Path) -> None:
    import asap
    from asap.errors import ConfigError

    loaded = asap.load_model(model_folder)
    tokenizer = str(model_folder / "tokenizer")
    # A folder is read as one: the length of its name is no size of a vocabulary.
    saved = asap.save_model(loaded.model, tmp_path / "small", tokenizer=tokenizer)
    assert asap.load_model(saved).model_id == loaded.model_id
    arguments: list[tuple[Any, dict[str, Any], str]] = [
        (loaded, {}, r"Pass its \.model"),
        (str(model_folder), {}, "is a str and not a Asap; nothing was saved"),
        (loaded.model, {"policy": "policy.json"}, "policy 'policy.json' is a str and not a Policy"),
        (loaded.model, {"limits": {}}, "limits {} is a dict and not a Limits"),
        (loaded.model, {"card": Path("README.md")}, "and not a str"),
        (loaded.model, {"familiarity": b""}, "and not a Familiarity"),
    ]
    for model, more, sentence in arguments:
        with pytest.raises(ConfigError, match=sentence):
            asap.save_model(model, tmp_path / "other", **{"tokenizer": tokenizer} | more)
    for words in (None, 5, ["a"], loaded):
        with pytest.raises(CheckpointError, match="is no tokenizer but a"):
            asap.save_model(loaded.model, tmp_path / "other", tokenizer=words)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="tokenizer folder 'nowhere' does not exist"):
        asap.save_model(loaded.model, tmp_path / "other", tokenizer="nowhere")
    with pytest.raises(ConfigError, match=r"is a str and not a ModelFolder\. Use Predictor\.from_folder"):
        asap.Predictor(str(model_folder))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"is not a Policy\. Read a file with Policy\.load"):
        asap.Predictor.from_folder(model_folder, policy="policy.json")  # type: ignore[arg-type]
    assert asap.Policy.load(str(model_folder / "policy.json")) == loaded.policy
    assert not (tmp_path / "other").exists()
