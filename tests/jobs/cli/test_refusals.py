"""Commands that cannot work are refused before torch or Ray is imported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.pictures import draw_jpeg
from tests.support.waiting import HANG_S

_RUN = """
import contextlib, io, json, sys
from jobs.cli import app as cli
outcomes = []
for arguments in json.load(sys.stdin):
    sys.argv = ["asap", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
    loaded = sorted({"torch", "ray", "transformers"} & set(sys.modules))
    outcomes.append([code, out.getvalue(), err.getvalue(), loaded])
    for name in loaded:
        del sys.modules[name]
print(json.dumps(outcomes))
"""
"""Runs commands one after the other in one process, which has loaded neither torch nor Ray before the first."""

_TARGET = ["--precision", "0.9", "--prevalence", "0.01"]
_CASES: list[tuple[str, list[str], str]] = [
    # Pictures and texts.
    ("detect", ["missing.jpg", "--text", "t"], "no file at the image path 'missing.jpg'"),
    ("detect", ["folder", "--text", "t"], "no file at the image path 'folder'"),
    ("detect", ["text.jpg", "--text", "t"], "text.jpg: the bytes are plain text"),
    ("detect", ["a.jpg"], "the pair has no text. Give --text."),
    ("detect", ["a.jpg", "--text", " "], "the text is blank. Give --text."),
    ("detect", ["a.jpg", "--text", "... !"], "no word is left of the text"),
    ("detect", ["a.jpg", "--url", "http://127.0.0.1:9"], "the pair has no text. Give --text."),
    ("detect", ["missing.jpg", "--text", "t", "--url", "http://127.0.0.1:9"], "'missing.jpg' cannot be read"),
    # Inputs and corpora.
    ("plan", ["missing.csv"], "missing.csv is not there"),
    ("plan", ["a.jpg"], "a.jpg is a picture"),
    ("scan", ["missing.csv", "--out", "out"], "missing.csv is not there"),
    ("scan", ["a.jpg", "--out", "out"], "a.jpg is a picture"),
    ("newsroom", ["s3://bucket/out"], "OUT s3:/bucket/out is at s3://, and this command works on this machine only"),
    ("captioner", ["folder", "--unseen", "folder", "--out", "s3://bucket/out"], "--out s3:/bucket/out is at s3://"),
    ("captioner", ["folder", "--unseen", "folder", "--out", "out"], "folder was not drawn by asap newsroom"),
    ("captioner", ["folder", "--unseen", "folder", "--out", "folder"], "folder exists. Name a new folder"),
    ("annotate", ["missing.csv", "--out", "out", "--caption-engine", "precomputed", "--captioner", "c.json"],
     "missing.csv is not there"),
    ("annotate", ["a.csv", "--out", "out"], "neither captions nor explanations are asked for"),
    ("annotate", ["a.csv", "--out", "out", "--captioner", "m"], "--caption-engine is missing"),
    ("annotate", ["a.csv", "--out", "out", "--explanation-engine", "openai"], "--explainer is missing"),
    ("annotate", ["a.csv", "--out", "out", "--caption-engine", "vllm", "--captioner", "m"],
     "the engine vllm is not installed. Install the extra: pip install 'asap-ray[vllm]'"),
    ("scan", ["a.csv", "--out", "out", "--caption-engine", "vllm", "--captioner", "m"],
     "the engine vllm is not installed. Install the extra: pip install 'asap-ray[vllm]'"),
    ("scan", ["a.csv", "--out", "out", "--caption-engine", "vllm", "--captioner", "m", "--device", "cpu"],
     "device is 'cpu', and the engine vllm runs on GPUs only"),
    ("annotate", ["a.csv", "--out", "out", "--caption-engine", "transformers", "--captioner", "./missing"],
     "the captioner ./missing is not a model folder"),
    ("annotate", ["a.csv", "--out", "out", "--caption-engine", "openai", "--captioner", "m"],
     "the engine openai needs an endpoint"),
    ("annotate", ["a.csv", "--out", "out", "--plan", "--caption-engine", "precomputed", "--captioner", "no.json"],
     "the captions no.json are not there"),
    ("train", ["missing", "--out", "out"], "missing/metadata/train.json does not exist"),
    ("train", ["missing", "--out", "out", "--plan"], "missing/metadata/train.json does not exist"),
    ("train", ["file", "--out", "out"], "file is a file"),
    ("train", ["corpus", "--out", "out", "--test-corpus", "missing"], "missing/metadata/test.json does not exist"),
    ("train", ["corpus", "--out", "out", "--set", 'files={"val": ["b.json"]}'], "corpus/b.json does not exist"),
    ("evaluate", ["demo", "missing"], "missing/metadata/test.json does not exist"),
    ("evaluate", ["demo", "file"], "file is a file"),
    ("evaluate", ["demo", "corpus", "--split", "dev"], "split 'dev' is unknown"),
    ("familiarize", ["model", "missing"], "missing/metadata/train.json does not exist"),
    ("calibrate", ["demo", "missing", "--out", "p.json", *_TARGET], "missing/metadata/val.json does not exist"),
    # Models.
    *(
        (command, [*before, model, *after], sentence)
        for command, before, after in (
            ("detect", ["a.jpg", "--text", "t", "--model"], []),
            ("scan", ["a.csv", "--out", "out", "--model"], []),
            ("evaluate", [], ["corpus"]),
            ("familiarize", [], ["corpus"]),
            ("calibrate", [], ["corpus", "--out", "p.json", *_TARGET]),
            ("serve", ["--model"], []),
        )
        for model, sentence in (
            ("missing", "model folder 'missing' does not exist"),
            ("file", "model 'file' is a file and not a model folder"),
            ("folder", "folder has no config.json"),
            ("cut", "model.safetensors cannot be read as safetensors"),
        )
    ),
    ("train", ["corpus", "--out", "out", "--init", "missing.pth"], "init 'missing.pth' does not exist"),
    ("train", ["corpus", "--out", "out", "--init", "folder"], "folder has no config.json"),
    ("train", ["corpus", "--out", "out", "--init", "file"], "init file has word embeddings but no tokenizer"),
    ("train", ["corpus", "--out", "out", "--init", "file", "--set", "tokenizer=train"], "but no tokenizer that says"),
    ("train", ["corpus", "--out", "out", "--set", "tokenizer=./missing"], "folder './missing' does not exist"),
    ("familiarize", ["demo", "corpus"], "the model 'demo' ships with asap"),
    ("calibrate", ["demo", "corpus", *_TARGET], "the model 'demo' ships with asap"),
    # Settings.
    *(
        (command, [*arguments, "--set", "nmae=1" if command == "train" else "modle=1"], sentence)
        for command, arguments, sentence in (
            ("scan", ["a.csv", "--out", "out"], "setting 'modle' is unknown. Did you mean 'model'?"),
            ("plan", ["a.csv"], "setting 'modle' is unknown. Did you mean 'model'?"),
            ("train", ["corpus", "--out", "out"], "setting 'nmae' is unknown. Did you mean 'name'?"),
            ("evaluate", ["demo", "corpus"], "setting 'modle' is unknown. Did you mean 'model'?"),
            ("familiarize", ["model", "corpus"], "setting 'modle' is unknown. Did you mean 'model'?"),
            ("calibrate", ["model", "corpus", *_TARGET], "setting 'modle' is unknown. Did you mean 'model'?"),
            ("serve", [], "setting 'modle' is unknown. Did you mean 'model'?"),
            ("serve", ["build"], "setting 'modle' is unknown. Did you mean 'model'?"),
        )
    ),
    *(
        (command, [*arguments, "--set", "batch_size=many"], "batch_size 'many': Input should be a valid integer")
        for command, arguments in (
            ("scan", ["a.csv", "--out", "out"]), ("train", ["corpus", "--out", "out"]),
            ("evaluate", ["demo", "corpus"]), ("familiarize", ["model", "corpus"]),
            ("calibrate", ["model", "corpus", *_TARGET]), ("serve", []), ("serve", ["build"]),
        )
    ),
    ("scan", ["a.csv", "--out", "out", "--set", "=1"], "setting '' is unknown. Known are"),
    ("scan", ["a.csv", "--out", "out", "--set", 'fetch={"attemps": 1}'], "'fetch.attemps' is unknown. Did you mean "),
    (
        "scan", ["a.csv", "--out", "out", "--set", 'captions={"engin": "x"}'],
        "'captions.engin' is unknown. Did you mean 'engine'",
    ),
    ("train", ["corpus", "--out", "out", "--set", "recipe=best"], "recipe 'best' is unknown"),
    ("train", ["corpus", "--out", "out", "--set", 'model={"widht": 1}'], "unknown model settings ['widht']"),
    ("train", ["corpus", "--out", "out", "--set", 'loss_weights={"bicc": 1}'], "unknown loss weights ['bicc']"),
    ("detect", ["a.jpg", "--text", "t", "--device", "tpu"], "device 'tpu' is unknown"),
    ("serve", ["--set", "device=tpu"], "device 'tpu' is unknown"),
    ("scan", ["a.csv", "--out", "out", "--caption-engine", "precomputed", "--captioner", "no.json"], "no.json"),
    # Outputs.
    ("detect", ["a.jpg", "--text", "t", "--save", "missing/a.png"], "is in a folder that does not exist"),
    ("scan", ["a.csv", "--out", "file"], "file is a file. Choose another folder."),
    ("scan", ["a.csv", "--out", "out", "--log-file", "file/log"], "log_file 'file/log' cannot be written"),
    ("newsroom", ["file"], "file exists and is not an empty folder"),
    ("newsroom", ["file/out"], "file/out cannot be written"),
    ("train", ["corpus", "--out", "file"], "file is a file. Choose another folder."),
    ("train", ["corpus", "--out", "corpus"], "corpus holds something that is not a training run"),
    ("evaluate", ["demo", "corpus", "--out", "file"], "file is a file. Choose another folder."),
    ("evaluate", ["demo", "corpus", "--out", "corpus"], "which does not belong to an evaluation"),
    ("calibrate", ["demo", "corpus", "--out", "folder", *_TARGET], "folder is a folder. Name the policy file"),
    ("calibrate", ["demo", "corpus", "--out", "file/p.json", *_TARGET], "file is a file. Choose another folder."),
    ("calibrate", ["demo", "corpus", "--out", "file", *_TARGET], "policy file"),
    ("serve", ["build", "--out", "folder"], "--out 'folder' cannot be written"),
    # The server.
    ("serve", ["--keys", "missing"], "keys file missing cannot be read: No such file or directory. Name a file"),
    ("serve", ["--keys", "folder"], "keys file folder cannot be read: Is a directory."),
    ("serve", ["--keys", "file"], "key 1 of file is not NAME:SHA256"),
    ("serve", ["--host", "0.0.0.0"], "needs keys"),
    ("serve", ["--host", "127.0.0.300"], "needs keys"),
    ("serve", ["build", "--model", "mine"], "Give a whole path"),
    ("serve", ["build", "--keys", "keys"], "Give a whole path"),
    # Addresses of clusters, and submitted commands.
    *(
        (command, [*arguments, "--address", address], sentence)
        for command, arguments in (
            ("scan", ["a.csv", "--out", "out"]),
            ("train", ["corpus", "--out", "out"]),
            ("evaluate", ["demo", "corpus"]),
            ("annotate", ["a.csv", "--out", "out", "--caption-engine", "precomputed", "--captioner", "c.json"]),
            ("resume", ["missing"]),
        )
        for address, sentence in (
            ("ray://head:10001", "address 'ray://head:10001': asap does not run through Ray Client"),
            ("http://head:8265", "address 'http://head:8265': this is a dashboard, to which asap submit sends"),
        )
    ),
    ("submit", ["scan", "s3://b/p", "--out", "s3://b/o", "--address", "head:6379"], "Give http://head:8265,"),
    ("submit", ["scan", "a.csv", "--out", "s3://b/o"], "input 'a.csv' is relative to a folder of this machine"),
    ("submit", ["scan", "s3://b/p", "--out", "out"], "out 'out' is relative to a folder of this machine"),
    ("submit", ["evaluate", "demo", "s3://b/c"], "out 'evaluation' is relative to a folder of this machine"),
    ("submit", ["train", "s3://b/c", "--out", "s3://b/o", "--init", "file"], "init[0] 'file' is relative"),
    ("submit", ["calibrate", "model", "s3://b/c", *_TARGET], "model 'model' is relative to a folder of this machine"),
    ("submit", ["calibrate", "demo", "s3://b/c", "--out", "p.json", *_TARGET], "out 'p.json' is relative to a folder"),
    ("submit", ["resume", "folder"], "out 'folder' is relative to a folder of this machine"),
    ("submit", ["scan", "s3://b/p", "--out", "s3://b/o", "--set", "modle=1"], "Did you mean 'model'?"),
    ("submit", ["scan", "s3://b/p", "--out", "s3://b/o", "--notify", "https://ops.example/hook"],
     "--notify with an address is not submitted"),
    ("submit", ["plan", "s3://b/p"], "command 'plan' cannot be submitted. Use scan, annotate, train"),
    ("submit", ["stop"], "asap submit stop takes the id of one job"),
    # Jobs.
    ("repolicy", ["missing", "--policy", "missing.json"], "missing.json does not exist"),
    ("repolicy", ["folder", "--policy", "file"], "policy file"),
    ("repolicy", ["folder", "--policy", "policy.json"], "folder is not the folder of a job"),
    *(
        (verb, [folder], "is not the folder of a job")
        for verb in ("status", "watch", "cancel", "resume", "errors", "results", "report", "delete")
        for folder in ("missing", "folder", "file")
    ),
    ("list", ["missing"], "missing is not a folder. Give the --out of your jobs."),
    ("list", ["file"], "file is not a folder. Give the --out of your jobs."),
    ("results", ["folder", "--format", "xml"], "there is no format 'xml'"),
]  # fmt: skip
_Outcome = tuple[int, str, str, list[str]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> list[_Outcome]:
    """The exit code, stdout, stderr and loaded modules of each case, all run in a folder of files to mistake."""
    here = tmp_path_factory.mktemp("mistakes")
    (here / "folder").mkdir()
    (here / "file").write_text("no key, no policy, no picture\n")
    (here / "a.jpg").write_bytes(draw_jpeg(0))
    (here / "text.jpg").write_text("hello")
    (here / "a.csv").write_text("image,text\na.jpg,a team\n")
    (here / "policy.json").write_text("{}")
    (here / "model").symlink_to(model_folder)
    (here / "cut").mkdir()
    for piece in model_folder.iterdir():
        if piece.name == "model.safetensors":
            (here / "cut/model.safetensors").write_bytes(piece.read_bytes()[:-1])
        else:
            (here / "cut" / piece.name).symlink_to(piece)
    row = {"id": 0, "image": "a.jpg", "text": "a team", "fake_cls": "orig", "fake_image_box": [], "fake_text_pos": []}
    for split in ("train", "val", "test"):
        (here / "corpus/metadata").mkdir(parents=True, exist_ok=True)
        (here / f"corpus/metadata/{split}.json").write_text(json.dumps([row]))
    (here / "corpus/a.jpg").write_bytes(draw_jpeg(0))

    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "HF_HUB_OFFLINE": "1"}
    environment.pop("ASAP_KEYS", None)
    done = subprocess.run(
        [sys.executable, "-c", _RUN], input=json.dumps([[command, *rest] for command, rest, _ in _CASES]),
        capture_output=True, text=True, check=True, cwd=here, env=environment, timeout=HANG_S,
    )  # fmt: skip
    (here / "out").rmdir() if (here / "out").exists() else None  # empty: no case began any work
    return [tuple(outcome) for outcome in json.loads(done.stdout)]


@pytest.mark.parametrize("number", range(len(_CASES)), ids=[" ".join([name, *rest]) for name, rest, _ in _CASES])
def test_a_command_that_cannot_work_is_refused_before_torch_and_ray_are_loaded(
    outcomes: list[_Outcome], number: int
) -> None:
    code, out, err, loaded = outcomes[number]
    assert _CASES[number][2] in err
    assert code == 1
    assert loaded == []
    assert err.startswith("asap: ")
    assert err.count("\n") == 1
    assert "\x1b" not in err + out, "no colors where there is no terminal"


def test_a_failed_pair_without_a_model_has_all_fields_of_one_that_a_model_refused(
    outcomes: list[_Outcome], model_folder: Path, corpus: Path, run: Any
) -> None:
    from asap.finding import Pair
    from asap.predictor import Predictor
    from jobs.cli.detect import finding_json

    for picture, text in (
        (corpus / "images/0.jpg", None),
        (corpus / "images/0.jpg", "... !"),
        (corpus / "a.jsonl", "t"),
    ):
        arguments = ["detect", picture, "--model", model_folder, "--json", *(["--text", text] if text else [])]
        code, out, _ = run(*arguments)
        finding = Predictor.from_folder(model_folder, "cpu").predict([Pair(picture, text)])[0]
        assert code == 1
        assert json.loads(out) == json.loads(json.dumps(finding_json(finding)))


def test_a_port_in_use_and_an_address_of_another_machine_are_refused(run: Any, tmp_path: Path) -> None:
    import socket

    key = run("serve", "--new-key", "desk")[1].split()[-1]
    (tmp_path / "keys").write_text(key)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run("serve", "--port", port)
    assert (code, err) == (1, f"asap: port {port} of 127.0.0.1 is in use. Choose another --port.\n")
    code, _, err = run("serve", "--host", "192.0.2.1", "--keys", tmp_path / "keys")
    assert (code, err) == (1, "asap: host '192.0.2.1' is not an address of this machine. Choose another --host.\n")


@pytest.mark.parametrize(
    ("change", "needs"), [("detector_gpus=1", "GPU"), ("min_replicas=9", "CPU"), ("detector_cpus=64", "64 CPU")]
)
def test_detectors_that_can_never_fit_are_refused(run: Any, ray_here: None, change: str, needs: str) -> None:
    from tests.support.serving import free_port

    code, _, err = run("serve", "--port", free_port(), "--set", change, "--set", "max_replicas=9")
    assert code == 1
    assert f"{needs}" in err
    assert "do not fit" in err
    assert err.rstrip().splitlines()[-1].endswith("Lower min_replicas, detector_cpus or detector_gpus.")


def test_a_refused_training_is_notified_like_any_other_failure(run: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code, _, _ = run("train", tmp_path / "none", "--out", tmp_path / "run", "--log-file", log)
    assert code == 1
    states = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(state["kind"], state["state"]) for state in states] == [("train", "validating"), ("train", "failed")]
    assert "none/metadata/train.json does not exist" in states[-1]["error"]


def test_the_version_names_the_packages_without_loading_them(run: Any) -> None:
    code = "import sys\nfrom jobs.cli.app import main\nsys.argv = ['asap', '--version']\n"
    code += "try:\n    main()\nexcept SystemExit as stop:\n"
    code += "    print(stop.code, sorted({'torch', 'ray'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["asap-ray", "Python", "torch", "ray"]
    assert all(re.fullmatch(r"\S+ \d+\.\d+.*", line) for line in lines[:4])
    assert lines[4] == "0 []"


def test_a_misspelled_command_or_option_names_the_nearest(run: Any) -> None:
    code, _, err = run("scna")
    assert code == 2
    assert "No such command 'scna'. Did you mean 'scan'?" in err
    code, _, err = run("detect", "a.jpg", "--modle", "demo")
    assert code == 2
    assert "--model" in err
    assert "\x1b" not in err
