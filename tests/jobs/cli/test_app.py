import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from asap.limits import NO_FAMILIARITY
from jobs.errors import InputUnfamiliar, JobError
from jobs.scan.passes import ScanProgress
from tests.support.pictures import draw_jpeg
from tests.support.waiting import HANG_S


def test_help_names_the_commands_without_loading_torch_or_ray() -> None:
    code = (
        "import sys\nfrom jobs.cli.app import main\nsys.argv = ['asap', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'ray', 'pyarrow', 'transformers'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.rstrip().endswith("[]")
    assert all(name in output for name in ("scan", "detect", "newsroom"))


def test_detect_shows_verdict_types_and_words(run: Any, corpus: Path, model_folder: Path) -> None:
    code, out, _ = run("detect", corpus / "images/0.jpg", "--text", "The president smiles", "--model", model_folder)
    assert code == 0
    assert any(verdict in out for verdict in ("manipulated", "authentic"))
    assert "Nobody has recorded what small was made from." in " ".join(out.split())
    assert "face swap" in out
    assert "The president smiles" in out
    assert "small@" in out


def test_detect_prints_json(run: Any, corpus: Path, model_folder: Path) -> None:
    code, out, _ = run("detect", corpus / "images/0.jpg", "--text", "A team", "--model", model_folder, "--json")
    assert code == 0
    finding = json.loads(out)
    assert set(finding["types"]) == {"face_swap", "face_attribute", "text_swap", "text_attribute"}
    assert finding["error_code"] is None


@pytest.fixture
def model_of_drawings(model_folder: Path, tmp_path: Path) -> Path:
    """Return a model folder that knows its limits, the text "A team", and pictures unlike all that tests draw."""
    import torch

    from asap.familiarity import MIN_PAIRS, Familiarity, PairFeatures
    from asap.finding import Pair
    from asap.limits import Limits
    from asap.predictor import Predictor
    from asap.weights.model_folder import replace_familiarity, weights_sha256

    folder = Path(shutil.copytree(model_folder, tmp_path / "drawings"))
    (folder / "limits.json").write_text(Limits(made_from="drawings", not_for="photographs").to_json())
    features = Predictor.from_folder(folder, "cpu").features([Pair(draw_jpeg(0), "A team")])
    noise = torch.Generator().manual_seed(0)

    def sample() -> PairFeatures:
        image, tokens, text = (torch.randn(MIN_PAIRS, part.shape[1], generator=noise) for part in features)
        return PairFeatures(features.image_ND + 1000 + image, features.tokens_ND + tokens, features.text_ND + text)

    about = {"weights_sha256": weights_sha256(folder), "corpus": "noise"}
    replace_familiarity(folder, Familiarity.fit(sample(), sample(), about))
    return folder


def test_detect_does_not_judge_an_unfamiliar_pair_and_says_why(run: Any, corpus: Path, model_of_drawings: Path) -> None:
    arguments = ("detect", corpus / "images/0.jpg", "--text", "A team", "--model", model_of_drawings)
    code, out, _ = run(*arguments, "--save", corpus / "evidence.png")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].strip() == "unfamiliar, not judged"
    assert lines[1] == "Not judged: the model has seen nothing like this picture."
    assert "small was made from drawings" in out
    assert "Do not use it for photographs." in " ".join(out.split())
    assert "score" not in out
    assert Image.open(corpus / "evidence.png").size[1] > 48

    code, out, _ = run(*arguments, "--json")
    assert code == 0
    fields = json.loads(out)
    assert (fields["verdict"], fields["unfamiliar_parts"]) == ("unfamiliar", ["image"])
    assert fields["familiarity_image"] < 0.005 < fields["familiarity_text"]
    assert fields["familiarity"] < 0.005
    assert len(fields["familiarity_id"]) == 12
    assert fields["limits"].endswith("Do not use it for photographs.")


def test_detect_saves_the_picture_with_its_evidence(run: Any, corpus: Path, model_folder: Path) -> None:
    saved = corpus / "evidence.png"
    code, _, _ = run("detect", corpus / "images/0.jpg", "--text", "A team", "--model", model_folder, "--save", saved)
    assert code == 0
    assert Image.open(saved).size[1] > 48


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.jpg", "--text", "t"], "no file at the image path"),
        (["images/0.jpg"], "the pair has no text. Give --text."),
        (["images/0.jpg", "--text", "... !"], "text"),
        (["a.jsonl", "--text", "t"], "a.jsonl: the bytes are JSON"),
        (["empty.jpg", "--text", "t"], "empty.jpg: the image has no bytes"),
        (["images/0.jpg", "--text", "t", "--model", "/nowhere"], "does not exist"),
        (["s3://no-such-bucket-for-me/a.jpg", "--text", "t"], "does not exist"),
        (["images/0.jpg", "--text", "t", "--save", "x.foo"], "has no suffix of a picture format"),
        (["images/0.jpg", "--text", "t", "--save", "none/x.png"], "is in a folder that does not exist"),
    ],
)
def test_detect_reports_an_error_in_one_line(
    run: Any, s3: str, corpus: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(corpus)
    (corpus / "empty.jpg").touch()
    model = [] if "--model" in arguments else ["--model", model_folder]
    code, out, err = run("detect", *arguments, *model)
    assert code == 1
    assert sentence in err
    assert err.startswith("asap: ")
    assert err.count("\n") == 1
    assert out == ""


def test_detect_reports_an_error_in_its_json_too(run: Any, corpus: Path, model_folder: Path) -> None:
    code, out, _ = run("detect", corpus / "a.jsonl", "--text", "t", "--model", model_folder, "--json")
    assert code == 1
    assert json.loads(out)["error_code"] == "unsupported_format"


def test_detect_reads_from_s3(run: Any, bucket: str, corpus: Path, model_folder: Path) -> None:
    from asap.storage.files import write_bytes
    from asap.storage.location import Location

    address = f"s3://{bucket}/a.jpg"
    write_bytes(Location(address), (corpus / "images/0.jpg").read_bytes())
    code, out, _ = run("detect", address, "--text", "A team", "--model", model_folder, "--json")
    assert code == 0
    assert json.loads(out)["input"]["width"] == 64


def test_detect_reads_no_object_above_the_limit(
    run: Any, bucket: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asap.preprocessing.images import ImageLimits
    from asap.storage.files import write_bytes
    from asap.storage.location import Location

    monkeypatch.setattr("asap.preprocessing.images.DEFAULT_LIMITS", ImageLimits(max_bytes=10))
    write_bytes(Location(f"s3://{bucket}/a.jpg"), b"x" * 11)
    code, _, err = run("detect", f"s3://{bucket}/a.jpg", "--text", "A team", "--model", model_folder)
    assert code == 1
    assert "11 bytes, the limit is 10; it was not read" in err


@pytest.mark.parametrize(
    "command",
    [
        ["scan", "a.jsonl", "--out", "out"],
        ["train", "corpus", "--out", "out"],
        ["evaluate", "demo", "corpus"],
        ["calibrate", "demo", "corpus", "--precision", "0.9", "--prevalence", "0.1"],
    ],
)
def test_a_target_of_notifications_that_cannot_work_is_refused(run: Any, command: list[str]) -> None:
    code, _, err = run(*command, "--notify", "true", "--notify", "no-such-command --key secret")
    assert code == 1
    assert "asap: notify 'no-such-command' is neither an http(s):// address nor a command of this machine." in err
    assert "secret" not in err


_SUMMARY = {
    "job_id": "x", "model_id": "asap-demo@0", "pairs": 1234, "flagged": 2, "unfamiliar": 0, "errors": 0,
    "error_codes": {}, "pairs_per_s": 33.25, "report": "file:///out/in/report/index.html",
    "unfamiliar_file": "file:///out/in/unfamiliar.jsonl", "errors_file": "file:///out/in/errors.jsonl",
}  # fmt: skip


def _pretend(settings: Any, watch: Any) -> dict[str, Any]:
    watch(ScanProgress("detecting", 5, 10, 1, 2, 33.0))
    watch(ScanProgress("detecting", 6, 10, 1, 2, 33.0))
    watch(ScanProgress("writing the summary and the report", 10, 10))
    return _SUMMARY


def test_scan_shows_progress_and_ends_with_a_table_and_the_report(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.scan.run.scan", _pretend)
    monkeypatch.setattr("jobs.cli.display._LINE_EVERY_S", HANG_S)
    code, out, _ = run("scan", "in.jsonl", "--out", "/out")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "detecting  5/10 pairs  33 pairs/s  2 flagged  1 errors"
    assert lines[1].startswith("writing the summary"), "a line every few seconds, not at each report"
    assert all(name in out for name in ("pairs", "flagged", "errors", "pairs/s", "1,234", "33.2"))
    assert lines[-1] == "report: file:///out/in/report/index.html"


def test_scan_counts_its_errors_by_code_and_names_the_file_that_lists_them(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = _SUMMARY | {"errors": 3, "error_codes": {"truncated_image": 2, "fetch_failed": 1}}
    monkeypatch.setattr("jobs.scan.run.scan", lambda *_: summary)
    code, out, _ = run("scan", "in.jsonl", "--out", "/out")
    assert code == 0
    assert "errors: 2 truncated_image, 1 fetch_failed; see file:///out/in/errors.jsonl" in out


def test_scan_ends_with_the_limits_of_the_model_and_the_pairs_that_were_not_judged(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = _SUMMARY | {"unfamiliar": 4, "errors": 34, "limits": "asap-demo was made from drawn pictures."}
    monkeypatch.setattr("jobs.scan.run.scan", lambda *_: summary)
    code, out, _ = run("scan", "in.jsonl", "--out", "/out")
    assert code == 0
    assert "unfamiliar" in out
    assert "limits: asap-demo was made from drawn pictures." in out
    rest = "of 1,200 look like nothing that asap-demo was made from; see file:///out/in/unfamiliar.jsonl"
    assert out.splitlines()[-1] == f"some pairs were not judged: 4 {rest}"
    assert f"limits: asap-demo was made from drawn pictures. {NO_FAMILIARITY}\n" in out
    summary |= {"unfamiliar": 700, "familiarity_id": "0123456789ab"}
    assert NO_FAMILIARITY not in run("scan", "in.jsonl", "--out", "/out")[1]
    assert run("scan", "in.jsonl", "--out", "/out")[1].splitlines()[-1] == f"most pairs were not judged: 700 {rest}"


def test_a_scan_that_stopped_because_its_input_is_unfamiliar_has_an_exit_code_of_its_own(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def stop(settings: Any, watch: Any) -> dict[str, Any]:
        seen.append(settings)
        raise InputUnfamiliar("188 of 200 sampled pairs look like nothing")

    monkeypatch.setattr("jobs.scan.run.scan", stop)
    code, _, err = run("scan", "in.jsonl", "--out", "/out")
    assert code == 4
    assert err == "asap: 188 of 200 sampled pairs look like nothing\n"
    run("scan", "in.jsonl", "--out", "/out", "--allow-unfamiliar")
    assert [settings.allow_unfamiliar for settings in seen] == [False, True]


def test_a_scan_whose_pairs_all_fail_is_a_failure(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = _SUMMARY | {"errors": 1234, "error_codes": {"model_error": 1234}}
    monkeypatch.setattr("jobs.scan.run.scan", lambda *_: summary)
    code, out, err = run("scan", "in.jsonl", "--out", "/out")
    assert code == 1
    assert "1,234 model_error" in out
    assert "all 1234 pairs failed. See the errors listed above." in err


def test_scan_settings_reach_the_scan(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def keep(settings: Any, watch: Any) -> dict[str, Any]:
        seen.append(settings)
        return _pretend(settings, watch)

    monkeypatch.setattr("jobs.scan.run.scan", keep)
    code, _, _ = run(
        "scan", "in.jsonl", "--out", "/out", "--job", "j", "--limit", 5, "--address", "auto", "--detectors", 3,
        "--caption-engine", "precomputed", "--captioner", "c.json", "--batch-size", 7, "--precision", "bfloat16",
    )  # fmt: skip
    assert code == 0
    settings = seen[0]
    assert (settings.job, settings.limit, settings.address, settings.detectors) == ("j", 5, "auto", 3)
    assert (settings.batch_size, settings.precision) == (7, "bfloat16")
    assert (settings.captions.engine, settings.captions.source) == ("precomputed", "c.json")


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        ([], "all"),
        (["--captions", "all"], "all"),
        (["--captions", "flagged"], "flagged"),
        (["--captions", "none"], None),
    ],
)
def test_an_option_says_which_pairs_are_captioned(
    run: Any, monkeypatch: pytest.MonkeyPatch, pairs: list[str], wanted: str | None
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "jobs.scan.run.scan", lambda settings, watch: seen.append(settings) or _pretend(settings, watch)
    )
    captioner = ("--caption-engine", "precomputed", "--captioner", "c.json")
    assert run("scan", "in.jsonl", "--out", "/out", *captioner, *pairs)[0] == 0
    assert (seen[0].captions and seen[0].caption_pairs) == wanted


def test_the_captioner_that_ships_needs_no_engine(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "jobs.scan.run.scan", lambda settings, watch: seen.append(settings) or _pretend(settings, watch)
    )
    assert run("scan", "in.jsonl", "--out", "/out", "--captioner", "demo", "--captions", "flagged")[0] == 0
    assert (seen[0].captions.engine, seen[0].captions.source, seen[0].caption_pairs) == (
        "transformers", "demo", "flagged",
    )  # fmt: skip


def test_further_settings_of_a_captioner_join_its_options(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "jobs.scan.run.scan", lambda settings, watch: seen.append(settings) or _pretend(settings, watch)
    )
    more = '{"prompt": "Say it.", "endpoint": {"address": "http://host/v1"}}'
    code, _, _ = run(
        "scan",
        "in.jsonl",
        "--out",
        "/out",
        "--caption-engine",
        "openai",
        "--captioner",
        "m",
        "--set",
        f"captions={more}",
    )
    assert code == 0
    captions = seen[0].captions
    assert (captions.engine, captions.source, captions.prompt) == ("openai", "m", "Say it.")
    assert captions.endpoint.address == "http://host/v1"


def test_an_explainer_joins_a_captioner_or_works_alone_on_the_pairs_of_the_option(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "jobs.scan.run.scan", lambda settings, watch: seen.append(settings) or _pretend(settings, watch)
    )
    explainer = ("--explanation-engine", "openai", "--explainer", "m")
    more = ("--set", 'explanations={"endpoint": {"address": "http://host/v1"}}')
    for options in (("--captions", "flagged"), ("--captioner", "demo"), ("--captions", "none")):
        assert run("scan", "in.jsonl", "--out", "/out", *explainer, *more, *options)[0] == 0
    alone, both, none = seen
    assert (alone.captions, alone.explanations.kind, alone.caption_pairs) == (None, "explanation", "flagged")
    assert (alone.explanations.source, alone.explanations.endpoint.address) == ("m", "http://host/v1")
    assert list(both.describers) == ["caption", "explanation"]
    assert none.describers == {}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--limit", "0"], "limit 0: Input should be greater than or equal to 1"),
        (["--set", "wait_for_machines_s=-1"], "wait_for_machines_s -1: Input should be greater than or equal to 0"),
        (["--job", "a/b"], "job 'a/b' is not a folder's name"),
        (["--precision", "float8"], "precision 'float8'"),
        (["--caption-engine", "precomputed"], "belong together, and --captioner is missing"),
        (["--captioner", "c.json"], "belong together, and --caption-engine is missing"),
        (["--captions", "flagged"], "--captions flagged needs a captioner or an explainer. Give --caption-engine"),
        (["--explanation-engine", "openai"], "belong together, and --explainer is missing"),
        (["--explanation-engine", "openai", "--explainer", "m"], "the engine openai needs an endpoint"),
        (["--captions", "some"], "--captions 'some' is unknown. Use 'none', 'flagged' or 'all'."),
        (["--device", "tpu"], "device 'tpu': Input should be 'auto', 'cpu' or 'cuda'"),
        (["--caption-engine", "openai", "--captioner", "m"], "the engine openai needs an endpoint"),
        (["--caption-engine", "magic", "--captioner", "x"], "captions.engine 'magic'"),
        ([], "/nowhere.jsonl is not there"),
    ],
)
def test_scan_reports_an_error_in_one_line(run: Any, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    code, _, err = run("scan", "/nowhere.jsonl", "--out", tmp_path / "out", *arguments)
    assert code == 1
    assert sentence in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("often", "'often': Input should be a valid integer, unable to parse string as an integer, or 'epoch'"),
        ("0", "0: Input should be greater than or equal to 1, or 'epoch'"),
    ],
)
def test_a_setting_of_two_kinds_names_both_in_its_error(run: Any, tmp_path: Path, value: str, problem: str) -> None:
    code, _, err = run("train", "corpus", "--out", tmp_path / "out", "--set", f"checkpoint_pairs={value}")
    assert code == 1
    assert f"checkpoint_pairs {problem}" in " ".join(err.split())


def test_what_ray_prints_goes_to_a_file_that_an_error_names(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(settings: Any, watch: Any) -> None:
        os.write(2, b"[C] a trace of C++\n")
        print("a line of Python", file=sys.stderr)  # noqa: T201
        raise JobError("the work stopped.")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("jobs.scan.run.scan", fail)
    code, _, err = run("scan", "in.jsonl", "--out", "/out")
    (log,) = tmp_path.glob("asap-*.log")
    assert (code, err) == (1, f"asap: the work stopped. What Ray printed is in {log}.\n")
    assert log.read_text() == "[C] a trace of C++\na line of Python\n"
    monkeypatch.setattr("jobs.scan.run.scan", _pretend)
    assert run("scan", "in.jsonl", "--out", "/out")[0] == 0
    assert list(tmp_path.glob("asap-*.log")) == [log]  # a job that succeeds leaves none


def test_an_interruption_says_how_to_resume(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(settings: Any, watch: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.scan.run.scan", interrupt)
    code, _, err = run("scan", "in.jsonl", "--out", "/out")
    assert code == 130
    assert "Run the same command again to resume." in err


def test_sigterm_stops_a_command_with_130_and_one_without_work_of_its_own_says_nothing() -> None:
    code = (
        "import time, typer\nfrom jobs.cli import app as cli\n"
        "@cli.app.command()\ndef wait() -> None:\n    print('here', flush=True)\n"
        "    while True:\n        time.sleep(0.1)\n"
        "import sys\nsys.argv = ['asap', 'wait']\ncli.main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.terminate()
        try:
            assert process.wait(HANG_S) == 130
        finally:
            process.kill()
        assert process.stderr.read() == ""


def test_newsroom_draws_a_corpus_and_says_how_large(run: Any, tmp_path: Path) -> None:
    code, out, _ = run("newsroom", tmp_path / "news", "--pairs", 20, "--seed", 3, "--workers", 1)
    assert code == 0
    assert len(json.loads((tmp_path / "news/metadata/test.json").read_text())) == 2
    assert "16 train, 2 val, 2 test" in out


def test_evaluate_prints_the_table_in_the_order_of_the_papers(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.asap.evaluation.test_table import report

    seen: list[Any] = []

    def pretend(settings: Any, progress: Any, on_note: Any) -> dict[str, Any]:
        seen.append(settings)
        on_note("no GPU is alive")
        progress(3, 3)
        about = {"model_id": "m@1", "split": "val"}
        read = ["val of corpus: 3 of 4 pairs", "pictures missing of 1 pairs"]
        said = {"sentence": "Of 100 pairs it finds 9.", "limits": "m was made from drawings.", "coverage": None}
        return {"about": about, "read": read, **said, **report("orig", "face_swap", "text_swap")}

    monkeypatch.setattr("jobs.evaluate.run.evaluate", pretend)
    code, out, _ = run("evaluate", "demo", "corpus", "--split", "val", "--out", "here", "--limit", 3, "--workers", 2)
    assert code == 0
    assert (seen[0].split, seen[0].out, seen[0].limit, seen[0].workers) == ("val", "here", 3, 2)
    positions = [
        out.index(name) for name in ("m@1: 3 pairs of val", "AUC", "EER", "ACC", "mAP", "CF1", "OF1", "IoUmean")
    ]
    assert positions == sorted(positions)
    assert out.splitlines()[:2] == ["reading the model and the corpus", "no GPU is alive"]
    assert out.splitlines()[3:5] == ["val of corpus: 3 of 4 pairs", "pictures missing of 1 pairs"]
    assert all(name in out for name in ("gated", "boxed", "published alignment", "face_swap"))
    *table, sentence, limits, familiarity, page = out.splitlines()
    assert all(len(line.rstrip()) <= 80 for line in table)
    assert (sentence, limits) == ("Of 100 pairs it finds 9.", "m was made from drawings.")
    assert familiarity.endswith("Make one with `asap familiarize`.")
    assert page == "page: here/index.html"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device", "tpu"], "device 'tpu'"),
        (["--split", "dev"], "split 'dev' is unknown"),
        ([], "/nowhere/metadata/test.json does not exist"),
    ],
)
def test_evaluate_reports_an_error_in_one_line(run: Any, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    code, _, err = run("evaluate", "demo", "/nowhere", "--out", tmp_path / "out", *arguments)
    assert code == 1
    assert sentence in err
    assert err.count("\n") == 1


_POINT = {
    "value": 0.97, "precision": 0.99, "precision_lower": 0.951, "recall": 0.8, "false_positive_rate": 0.0,
    "false_positive_rate_upper": 4.2e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("band", "band_shown"), [(None, "no review band"), ({"precision": 0.5, "precision_lower": 0.345}, "0.345")]
)
def test_calibrate_shows_the_rates_of_each_threshold_and_where_the_policies_are(
    run: Any, monkeypatch: pytest.MonkeyPatch, band: dict[str, float] | None, band_shown: str
) -> None:
    from asap.policy import Policy
    from asap.storage.location import Location
    from jobs.policy.calibrate import Calibrated

    seen: list[Any] = []
    review = {"review": _POINT | {"band": band}}
    policy = Policy(manipulated=0.97, calibration={"thresholds": {"manipulated": _POINT, "face_swap": _POINT} | review})

    def pretend(settings: Any, progress: Any, on_note: Any) -> Calibrated:
        seen.append(settings)
        places = Location("/model/policy.json"), Location("/model/policy.former.json")
        return Calibrated(policy, *places, ["val read"], "unfamiliar stays 0.005: no label moves it.")

    monkeypatch.setattr("jobs.policy.calibrate.calibrate", pretend)
    code, out, _ = run(
        "calibrate", "my-model", "corpus", "--precision", 0.95, "--prevalence", 0.001, "--keep", "word", "--keep",
        "text_swap", "--confidence", 0.9, "--review-precision", 0.3, "--dtype", "bfloat16", "--out", "p.json",
    )  # fmt: skip
    assert code == 0
    settings = seen[0]
    assert (settings.model, settings.corpus, settings.split, settings.out) == ("my-model", "corpus", "val", "p.json")
    assert (settings.precision, settings.prevalence, settings.confidence) == (0.95, 0.001, 0.9)
    assert (settings.effective_review_precision, settings.keep, settings.dtype) == (
        0.3,
        ("word", "text_swap"),
        "bfloat16",
    )
    assert all(part in out for part in ("val read", "face swap", "0.951", "4.2e-05", "0.97", band_shown))
    assert out.splitlines()[-3:] == [
        "unfamiliar stays 0.005: no label moves it.",
        f"policy {policy.policy_id}: /model/policy.json",
        "former policy: /model/policy.former.json",
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"--precision": 0.001}, "precision 0.001 is no more than the prevalence 0.001"),
        ({"--precision": 95}, "precision 95.0: Input should be less than 1"),
        ({"--keep": "verdict"}, "keep.0 'verdict'"),
        ({"--prevalence": 0}, "prevalence 0.0: Input should be greater than 0"),
    ],
)
def test_calibrate_reports_an_error_in_one_line(run: Any, options: dict[str, object], sentence: str) -> None:
    arguments = {"--precision": 0.95, "--prevalence": 0.001} | options
    code, _, err = run("calibrate", "m", "c", *(part for option in arguments.items() for part in option))
    assert code == 1
    assert sentence in err
    assert err.count("\n") == 1


def test_a_calibration_that_cannot_show_its_target_ends_with_a_table_of_what_is_missing(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asap.errors import PrecisionNotShown

    def refuse(settings: Any, progress: Any, on_note: Any) -> None:
        shortfall = {"threshold": "face_swap", "target": 0.95, "shown": 0.0412, "authentic": 800, "positive": 400}
        needed = {"authentic_needed": 59_121, "positive_needed": 800}
        raise PrecisionNotShown("All in one sentence.", "0.95 cannot be shown. Add pairs.", [shortfall | needed])

    monkeypatch.setattr("jobs.policy.calibrate.calibrate", refuse)
    code, out, err = run("calibrate", "m", "c", "--precision", 0.95, "--prevalence", 0.001)
    assert (code, err) == (1, "asap: 0.95 cannot be shown. Add pairs.\n")
    assert ["face", "swap", "0.95", "0.0412", "800", "59,121", "400", "800"] in [
        line.split() for line in out.splitlines()
    ]


def test_repolicy_ends_with_a_table_and_the_report(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def pretend(job: str, policy: str, watch: Any) -> dict[str, Any]:
        seen.extend((job, policy))
        watch("applying the policy", 3, 10)
        return _SUMMARY | {"policy_id": "abc", "changes": changes}

    kept = {"before": 9, "after": 9, "added": 0, "removed": 0}
    moved = {"before": 1101, "after": 1102, "added": 3, "removed": 2}
    changes: dict[str, Any] | None = {
        "flagged": moved, "verdicts": {"manipulated": moved, "review": kept}, "types": {"face_swap": moved},
    }  # fmt: skip
    monkeypatch.setattr("jobs.policy.repolicy.repolicy", pretend)
    code, out, _ = run("repolicy", "jobs/a", "--policy", "p.json")
    assert code == 0
    assert seen == ["jobs/a", "p.json"]
    assert "applying the policy  3/10 pairs" in out
    assert "1,234" in out
    assert out.splitlines()[-1] == "report: file:///out/in/report/index.html"
    assert "policy: abc" in out
    assert "flagged 1,101 → 1,102\n" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["manipulated", "1,101", "1,102", "3", "2"] in rows
    assert ["review", "9", "9", "0", "0"] in rows
    assert ["flagged:", "face", "swap", "1,101", "1,102", "3", "2"] in rows

    changes = None
    assert "Nothing has changed." in run("repolicy", "jobs/a", "--policy", "p.json")[1]


def test_repolicy_reports_an_error_in_one_line(run: Any, tmp_path: Path) -> None:
    code, _, err = run("repolicy", tmp_path, "--policy", tmp_path / "none.json")
    assert code == 1
    assert "none.json does not exist" in err
    assert err.count("\n") == 1


def test_detect_shows_saves_and_prints_the_answer_of_a_server(
    run: Any, corpus: Path, model_of_drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asap.finding import Pair
    from asap.predictor import Predictor
    from serve.schemas import Detection, detection

    def answer(self: object, image: Path, text: str) -> Detection:
        finding = Predictor.from_folder(model_of_drawings, "cpu").predict([Pair(image, text)])[0]
        return detection("id-1", finding, {}, None)

    monkeypatch.setattr("serve.client.Client.detect", answer)
    arguments = ("detect", corpus / "images/0.jpg", "--text", "A team", "--url", "http://127.0.0.1:1")
    code, out, _ = run(*arguments, "--save", corpus / "evidence.png")
    assert code == 0
    assert "small@" in out
    assert out.splitlines()[1] == "Not judged: the model has seen nothing like this picture."
    assert "Do not use it for photographs." in " ".join(out.split())
    assert Image.open(corpus / "evidence.png").size[1] > 48
    fields = json.loads(run(*arguments, "--json")[1])
    assert (fields["id"], fields["verdict"]) == ("id-1", "unfamiliar")
    assert fields["limits"].endswith("Do not use it for photographs.")


def test_serve_makes_keys_and_refuses_a_public_address_without_them(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.api.callers.keys import Keyring

    code, out, _ = run("serve", "--new-key", "desk")
    key, line = (printed.split()[-1] for printed in out.splitlines())
    assert code == 0
    made = Keyring.parse([line], "here").find(key)
    assert made is not None
    assert (made.name, made.scopes, made.expires) == ("desk", ("detect",), None)
    code, out, _ = run(
        "serve", "--new-key", "desk", "--scope", "metrics", "--scope", "detect", "--expires", "2999-01-01"
    )
    assert code == 0
    assert out.splitlines()[1].endswith(";scope=metrics+detect;expires=2999-01-01T00:00:00Z")
    code, _, error = run("serve", "--new-key", "desk", "--expires", "2001-01-01")
    assert (code, error) == (1, "asap: expiry '2001-01-01' is in the past. Choose a later one.\n")
    code, _, error = run("serve", "--scope", "metrics")
    assert code == 1
    assert "--scope and --expires describe a new key. Give --new-key NAME with them." in error
    code, _, error = run("serve", "--set", "audit_file=/none/a")
    assert (code, "audit_file '/none/a' cannot be written" in error) == (1, True)
    monkeypatch.delenv("ASAP_KEYS", raising=False)
    code, _, error = run("serve", "--host", "0.0.0.0")
    assert code == 1
    assert "needs keys" in error
    assert "min_replicas 9 is more than max_replicas 2" in run("serve", "--set", "min_replicas=9")[2]


def test_serve_build_writes_the_file_for_a_cluster(run: Any, tmp_path: Path) -> None:
    import yaml

    options = ("--model", "s3://models/mine", "--keys", "/etc/keys", "--set", "max_replicas=8")
    code, out, error = run("serve", "build", *options)
    assert (code, error) == (0, "")
    (application,) = yaml.safe_load(out)["applications"]
    args = {name: application["args"][name] for name in ("model", "host", "keys_file", "max_replicas")}
    assert args == {"model": "s3://models/mine", "host": "0.0.0.0", "keys_file": "/etc/keys", "max_replicas": 8}
    assert run("serve", "build", *options, "--out", tmp_path / "serve.yaml")[0] == 0
    assert (tmp_path / "serve.yaml").read_text() == out
    code, out, error = run("serve", "build")
    assert (code, out.startswith("#")) == (0, True)
    assert "Set it there, or give --keys FILE." in error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--port", "9000", "build"), "Give it after: asap serve build"),
        (("build", "--out", "/no/such/folder/a.yaml"), "cannot be written: No such file"),
        (("build", "--set", "min_replicas=9"), "min_replicas 9 is more than max_replicas 2"),
        (("build", "--model", "my-model"), "Give a whole path"),
    ],
)
def test_serve_build_reports_why_it_cannot_write(run: Any, arguments: tuple[str, ...], sentence: str) -> None:
    code, _, error = run("serve", *arguments)
    assert code == 1
    assert sentence in error
