"""The evaluation of a model on a corpus by Ray workers."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import ray
from markupsafe import escape
from typer.testing import CliRunner

from asap.corpus.reader import read_split
from asap.errors import CheckpointError, ConfigError, CorpusError, StorageError
from asap.evaluation.metrics import Evaluation
from asap.limits import NO_FAMILIARITY
from asap.model.asap import Asap
from asap.newsroom import generate
from asap.policy import Policy
from asap.weights.model_folder import load_folder, model_id, save
from jobs import cluster
from jobs.cli.app import app
from jobs.errors import JobDiffers, JobError, JobFailed
from jobs.evaluate import shards as module
from jobs.evaluate.plan import OUTPUTS, plan_evaluation
from jobs.evaluate.run import evaluate
from jobs.evaluate.settings import EvaluateSettings
from jobs.evaluate.shards import evaluate_shard, explain_pairs, explain_worst, merge_shards
from jobs.node_types import NodeType
from jobs.policy.familiarize import familiarize
from jobs.policy.settings import FamiliarizeSettings
from jobs.reach import PathUse
from jobs.sharing import Claim, held_share
from jobs.stall import StallWatch
from tests.support.busy import start_task
from tests.support.many_pairs import repeat_pairs
from tests.support.uploads import upload_folder
from tests.support.waiting import HANG_S

PAIRS = 24


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "corpus"
    generate(folder, pairs=PAIRS, seed=5, workers=1, splits=(0.0, 0.0, 1.0))
    return folder


@pytest.fixture
def settings(drawn: Path, model_folder: Path, tmp_path: Path) -> Callable[..., EvaluateSettings]:
    def make(**changes: Any) -> EvaluateSettings:
        defaults = {"model": str(model_folder), "corpus": str(drawn), "out": str(tmp_path / "out"), "device": "cpu"}
        return EvaluateSettings(**(defaults | changes))

    return make


def shard(model: Path, drawn: Path, start: int, stop: int) -> Evaluation:
    return evaluate_shard(str(model), model_id(model), "cpu", 1, 8, read_split(drawn, "test")[start:stop])


# Before Ray starts.


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> Iterator[None]:
        pytest.fail("Ray was started")

    monkeypatch.setattr("jobs.evaluate.run.ray_running", start)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"corpus": "/nowhere"}, CorpusError, "metadata/test.json"),
        ({"split": "val"}, CorpusError, "val.json .* is empty"),
        ({"split": "dev"}, ConfigError, "split 'dev' is unknown; train, val, test are known"),
        ({"model": "/nowhere"}, CheckpointError, "'/nowhere' does not exist"),
        ({"out": "/proc/evaluation"}, StorageError, "/proc/evaluation"),
    ],
)
def test_errors_in_the_settings_are_raised_before_ray_starts(
    settings: Any, no_ray: None, changes: dict[str, str], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence) as caught:
        evaluate(settings(**changes))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_a_model_is_refused(settings: Any, no_ray: None, drawn: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model folder .*corpus has no "):
        evaluate(settings(model=str(drawn)))


def test_a_corpus_without_the_split_is_refused(settings: Any, no_ray: None, drawn: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "no-test"
    shutil.copytree(drawn / "metadata", corpus / "metadata")
    (corpus / "metadata/test.json").unlink()
    with pytest.raises(CorpusError, match=r"no-test/metadata/test\.json does not exist"):
        evaluate(settings(corpus=str(corpus)))


def test_an_output_folder_with_other_files_is_left_alone(settings: Any, no_ray: None, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"out holds 'thesis\.tex', which does not belong to an evaluation"):
        evaluate(settings())
    assert (tmp_path / "out/thesis.tex").read_text() == "mine"


def test_another_evaluation_in_the_folder_is_refused_with_the_differences(
    settings: Any, no_ray: None, tmp_path: Path
) -> None:
    about = plan_evaluation(settings(limit=5)).about()
    (tmp_path / "out/metrics.json").write_text(json.dumps({"about": about}))
    with pytest.raises(JobDiffers, match=r"holds another evaluation: limit 5 \(now 6\)\. Choose another --out"):
        evaluate(settings(limit=6))
    assert plan_evaluation(settings(limit=5)).about() == about


def test_the_folder_of_the_results_must_be_one_that_all_machines_share(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert PathUse("--out", str(tmp_path / "out"), writes=True) in plan_evaluation(settings(out="out")).path_uses()


# Shards.


def test_the_metrics_do_not_depend_on_how_the_split_is_cut_into_shards(drawn: Path, model_folder: Path) -> None:
    whole = shard(model_folder, drawn, 0, PAIRS)
    parts = {start: shard(model_folder, drawn, start, min(start + 16, PAIRS)) for start in (16, 0)}
    merged = merge_shards(parts, PAIRS)
    assert merged.compute() == whole.compute()
    assert merged.predictions().margin.tolist() == whole.predictions().margin.tolist()


@pytest.mark.parametrize(("starts", "pairs"), [((0, 8), 16), ((0,), 12), ((4, 12), 16), ((), 4)])
def test_a_missing_or_doubled_shard_is_found(
    drawn: Path, model_folder: Path, starts: tuple[int, ...], pairs: int
) -> None:
    one = shard(model_folder, drawn, 0, 8)
    double = Evaluation()
    double.merge(one)
    double.merge(one)
    held = {start: double if start else one for start in starts}
    with pytest.raises(JobFailed, match=f"and the split has {pairs}"):
        merge_shards(held, pairs)


def test_a_model_that_changed_since_the_check_is_refused(drawn: Path, model_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="and was other@1"):
        evaluate_shard(str(model_folder), "other@1", "cpu", 1, 8, read_split(drawn, "test")[:2])


def test_pairs_are_explained_by_the_model_that_is_evaluated(drawn: Path, model_folder: Path) -> None:
    records = read_split(drawn, "test")[:3]
    found = explain_pairs(str(model_folder), model_id(model_folder), "cpu", 1, records)
    margin = evaluate_shard(str(model_folder), model_id(model_folder), "cpu", 1, 8, records).predictions().margin
    assert [finding.model_id for finding in found] == [load_folder(model_folder).model_id] * 3
    assert [finding.score > 0.5 for finding in found] == (margin > 0).tolist()


@pytest.mark.slow
def test_the_breakdown_has_the_classes_of_the_evaluated_corpus(
    ray_here: None, settings: Any, model_folder: Path, jpeg: Callable[..., bytes], tmp_path: Path
) -> None:
    loaded = load_folder(model_folder)
    samm = dataclasses.replace(loaded.config, label_set="samm")
    model = save(Asap(samm), tmp_path / "samm-model", tokenizer=loaded.tokenizer)
    face = {"fake_image_box": [8, 8, 40, 40], "fake_text_pos": [0]}
    touched = {"orig": {}, "swap_manipulation": face, "attribute_manipulation": face}
    rows = [
        {"id": number, "image": f"emotion_jpg/{number}.jpg", "text": "Angry workers leave", "fake_cls": name} | marks
        for number, (name, marks) in enumerate([*touched.items()] * 2)
    ]
    corpus = tmp_path / "samm"
    for folder in ("jsons", "emotion_jpg"):
        (corpus / folder).mkdir(parents=True)
    (corpus / "jsons/test.json").write_text(json.dumps(rows))
    for number in range(len(rows)):
        (corpus / f"emotion_jpg/{number}.jpg").write_bytes(jpeg(number))

    report = evaluate(settings(model=str(model), corpus=str(corpus), shard_pairs=4))

    pairs = {name: figures["pairs"] for name, figures in report["by_class"].items()}
    assert pairs == {"orig": 2, "swap_manipulation": 2, "attribute_manipulation": 2}
    assert "<td>swap_manipulation" in (tmp_path / "out/index.html").read_text()


# Familiarity.


@pytest.fixture(scope="module")
def familiar_model(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose familiarity was fitted to many texts beside few pictures."""
    home = tmp_path_factory.mktemp("familiar")
    generate(home / "corpus", pairs=60, seed=7, workers=1, splits=(0.5, 0.3, 0.2))
    repeat_pairs(home / "corpus", train=1020, val=1010)
    model = Path(shutil.copytree(model_folder, home / "model"))
    shutil.copytree(model_folder, home / "bare")
    familiarize(FamiliarizeSettings(model=str(model), corpus=str(home / "corpus"), device="cpu"))
    return model


def test_shards_carry_the_familiarity_that_a_scan_computes(drawn: Path, familiar_model: Path) -> None:
    whole = shard(familiar_model, drawn, 0, PAIRS)
    merged = merge_shards(
        {start: shard(familiar_model, drawn, start, min(start + 16, PAIRS)) for start in (16, 0)}, PAIRS
    )
    familiarity = merged.predictions().familiarity
    assert familiarity.tolist() == whole.predictions().familiarity.tolist()
    findings = explain_pairs(str(familiar_model), model_id(familiar_model), "cpu", 1, read_split(drawn, "test"))
    # An evaluation reads one pass of a text. Whole texts have the same features, but for rounding.
    whole_text = [number for number, finding in enumerate(findings) if not any("passes" in w for w in finding.warnings)]
    assert len(whole_text) > 2
    for number in whole_text:
        assert familiarity[number] == pytest.approx(findings[number].familiarity, abs=0.005)
    # Every other figure is that of the model without the file.
    assert whole.compute() == shard(familiar_model.parent / "bare", drawn, 0, PAIRS).compute()


@pytest.mark.slow
def test_coverage_is_reported_beside_the_figures_of_all_pairs(
    ray_here: None, settings: Any, familiar_model: Path, model_folder: Path, tmp_path: Path
) -> None:
    policy = Policy(unfamiliar=0.5)
    policy.save(familiar_model / "policy.json")
    log = tmp_path / "states.jsonl"
    report = evaluate(settings(model=str(familiar_model), shard_pairs=16, log_file=str(log), stall_after_s=HANG_S))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["state"] for line in lines] == ["validating", "running", "finalizing", "completed"]
    assert (lines[3]["kind"], lines[3]["counts"]) == ("evaluate", {"done": PAIRS, "total": PAIRS})
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == report
    assert 0 < report["coverage"] < 1
    assert report["verdicts"]["not_judged"] == pytest.approx(1 - report["coverage"])
    assert report["verdicts"]["policy_id"] == policy.policy_id
    bare = evaluate(settings(out=str(tmp_path / "bare"), shard_pairs=16))
    for name in ("coverage", "AUC_covered", "ACC_covered"):
        assert bare[name] is None
    same = {"pairs", "AUC", "ACC", "EER", "mAP", "IoU_mean", "token_F1", "by_class", "calibration"}
    assert {name: bare[name] for name in same} == {name: report[name] for name in same}
    assert bare["limits"].startswith("Nobody has recorded what small was made from.")
    assert escape(NO_FAMILIARITY) in (tmp_path / "bare/index.html").read_text()
    assert report["sentence"] in (tmp_path / "out/index.html").read_text()


def test_the_command_says_what_the_model_can_judge(
    ray_here: None, drawn: Path, model_folder: Path, tmp_path: Path
) -> None:
    command = ["evaluate", str(model_folder), str(drawn), "--out", str(tmp_path / "out"), "--device", "cpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    for sentence in (report["sentence"], report["limits"], NO_FAMILIARITY):
        assert f"{sentence}\n" in result.output


# The machines.


def machines(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])


@pytest.mark.parametrize(
    ("nodes", "workers", "wanted"),
    [
        ([{"CPU": 4}], None, (2, 2, 2)),
        ([{"CPU": 1}], None, (1, 1, 1)),
        ([{"CPU": 2}], 4, (4, 1, 0.5)),
        ([{"CPU": 0}, {"CPU": 4}, {"CPU": 8}], 1, (1, 4, 4)),  # a task must fit into one machine
    ],
)
def test_the_cpus_are_divided_among_the_workers(
    settings: Any, monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], workers: int | None, wanted: Any
) -> None:
    machines(monkeypatch, *nodes)
    pool = module.worker_pool(settings(workers=workers))
    assert (pool.workers, pool.threads, pool.options["num_cpus"]) == wanted
    assert pool.device == "cpu"


def test_a_worker_takes_a_gpu_if_there_are_any(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machines(monkeypatch, {"CPU": 8, "GPU": 2})
    pool = module.worker_pool(settings(device="auto"))
    assert (pool.workers, pool.device, pool.options["num_gpus"]) == (2, "cuda", 1)
    assert pool.options["max_calls"] == 0  # else Ray ends each process after a shard, and with it the model
    assert "num_gpus" not in module.worker_pool(settings(device="cpu")).options


def test_without_a_cluster_there_is_no_wait_for_gpus(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machines(monkeypatch, {"CPU": 8})
    with pytest.raises(ConfigError, match=r"1 worker with 1 CPU, 1 GPU .*1 x \(8 CPUs, 0 GPUs\)\. Use --device auto"):
        module.worker_pool(settings(device="cuda"))


def test_a_gpu_is_requested_from_a_cluster_and_waited_for(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machines(monkeypatch, {"CPU": 0}, {"CPU": 16})
    requests: list[Any] = []

    def reserve(bundles: list[dict[str, int]], wait_s: float) -> bool:
        requests.append((bundles, wait_s))
        machines(monkeypatch, {"CPU": 0}, {"CPU": 16}, {"CPU": 8, "GPU": 1})
        return True

    monkeypatch.setattr(cluster, "_reserve", reserve)
    notes: list[str] = []
    pool = module.worker_pool(settings(device="cuda", address="auto", wait_for_machines_s=120), notes.append)
    assert requests == [([{"CPU": 1, "GPU": 1}], 120)]
    assert (pool.workers, pool.device) == (1, "cuda")
    assert [line.partition(":")[0] for line in notes] == [
        "waiting up to 2 min for machines to hold 1 worker with 1 CPU, 1 GPU"
    ]


def test_a_cluster_without_gpus_evaluates_on_cpus_and_says_so(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machines(monkeypatch, {"CPU": 0}, {"CPU": 16})
    notes: list[str] = []
    monkeypatch.setattr(cluster, "_gpu_machine_types", list)
    assert module.worker_pool(settings(device="auto", address="auto"), notes.append).device == "cpu"
    assert notes == ["running on CPUs, since no machine has a GPU now. --device cuda waits for GPUs."]


@pytest.mark.parametrize(
    ("address", "workers", "follows"), [("auto", None, True), ("auto", 3, False), (None, None, False)]
)
def test_workers_follow_a_cluster_unless_their_number_is_given(
    settings: Any, monkeypatch: pytest.MonkeyPatch, address: str | None, workers: int | None, *, follows: bool
) -> None:
    machines(monkeypatch, {"CPU": 0}, {"CPU": 4}, {"CPU": 4})
    pool = module.worker_pool(settings(address=address, workers=workers, device="cpu"))
    assert pool.follows == follows
    share: Any = SimpleNamespace(resources={"CPU": 16.0})

    def places(*, can_grow: bool = False) -> int:
        return module._count_places(pool, share if address else None, can_grow=can_grow)

    assert places() == (workers or 4)
    machines(monkeypatch, {"CPU": 0}, *[{"CPU": 4}] * 3)
    assert places() == (6 if follows else workers or 4)
    # One shard waits for a machine that an autoscaler could add, unless other jobs are what limits the share.
    assert places(can_grow=True) == (7 if follows else workers or 4)
    share.resources = {"CPU": 8.0}  # another job came
    assert places(can_grow=True) == (4 if follows else workers or 4)
    share.resources = {"CPU": 0.0}
    assert places() == (1 if follows else workers or 4)


def test_workers_of_a_given_number_are_claimed_together(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machines(monkeypatch, {"CPU": 0}, {"CPU": 4, "GPU": 2}, {"CPU": 4, "GPU": 2})
    three = module.worker_pool(settings(address="auto", workers=3, device="cuda")).claim
    assert three == Claim.of_workers([{"CPU": 1, "GPU": 1}] * 3, is_at_work=True)
    grows = module.worker_pool(settings(address="auto", device="cuda")).claim
    assert grows == Claim({"CPU": 1, "GPU": 1}, {"CPU": math.inf, "GPU": math.inf})


@pytest.mark.parametrize(
    ("types", "grows"),
    [
        (None, True),  # nobody knows
        ([], False),
        ([NodeType("cpu", {"CPU": 4}, 2)], True),
        ([NodeType("cpu", {"CPU": 1}, 2), NodeType("none", {"CPU": 8}, 0)], False),
    ],
)
def test_a_cluster_can_grow_for_workers_that_a_machine_of_its_autoscaler_would_hold(
    monkeypatch: pytest.MonkeyPatch, types: list[NodeType] | None, *, grows: bool
) -> None:
    monkeypatch.setattr(cluster, "node_types", lambda: types)
    assert cluster.could_grow({"CPU": 2}) == grows


# On Ray.


def test_an_evaluation_on_busy_machines_says_what_it_waits_for_and_gives_up(
    ray_here: None, busy: None, settings: Any
) -> None:
    notes: list[str] = []
    with pytest.raises(JobError, match=r"the machines are busy: 1 worker with 2 CPUs had no room within 3 s; 0 CPUs"):
        evaluate(settings(wait_for_machines_s=3), on_note=notes.append)
    assert [note.partition(":")[0] for note in notes] == [
        "waiting up to 3 s for other jobs to free 1 worker with 2 CPUs"
    ]


def test_an_evaluation_holds_its_claim_for_the_worst_pairs_too(
    ray_here: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(address="which is already joined", shard_pairs=12)
    claims: list[Claim] = []

    def note(*arguments: Any) -> Any:
        share = held_share()
        assert share is not None
        claims.append(share.claim)
        return explain_worst(*arguments)

    monkeypatch.setattr(module, "explain_worst", note)
    monkeypatch.setattr(cluster, "node_types", list)
    assert evaluate(made)["pairs"] == PAIRS
    assert claims == [Claim({"CPU": 2}, {"CPU": math.inf})]
    assert held_share() is None


def test_a_shard_that_takes_long_is_reported_with_what_is_waited_for(ray_here: None, busy: None) -> None:
    waits = start_task(1)
    notes: list[str] = []

    def free(note: str) -> None:
        notes.append(note)
        ray.cancel(waits)

    module._wait_for_shard([waits], StallWatch("shard", 1, cluster.describe_waits), 0, free, lambda: None)
    assert len(notes) == 1
    assert re.search(
        r"no shard has finished for 1 s.* while evaluating: 1 x \(1 CPU\) is waited for; 0 CPUs are", notes[0]
    )


def _dies_once(marker: Path) -> Callable[..., Evaluation]:
    """Return an `evaluate_shard` that kills its first process. Ray pickles the inner function by value."""

    def evaluate_and_die(*arguments: Any) -> Evaluation:
        from jobs.evaluate.shards import evaluate_shard

        evaluation = evaluate_shard(*arguments)
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            return evaluation
        os.kill(os.getpid(), signal.SIGKILL)
        return evaluation

    return evaluate_and_die


@pytest.mark.chaos
def test_a_worker_killed_midway_loses_and_doubles_no_pair(
    ray_here: None, settings: Any, drawn: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, counts = tmp_path / "killed", []
    monkeypatch.setattr(module, "evaluate_shard", _dies_once(killed))
    report = evaluate(
        settings(shard_pairs=8, batch_size=8, worst=3, workers=2), lambda now, total: counts.append((now, total))
    )
    assert killed.exists()
    assert counts == [(0, PAIRS), (8, PAIRS), (16, PAIRS), (PAIRS, PAIRS)]
    wanted = shard(model_folder, drawn, 0, PAIRS).compute()
    assert {name: report[name] for name in wanted} == wanted

    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == set(OUTPUTS)
    assert json.loads((out / "metrics.json").read_text()) == report
    assert report["about"]["pairs_in_split"] == report["pairs"] == PAIRS
    records = {record.id: record for record in read_split(drawn, "test")}
    errors = [abs(pair["score"] - (records[pair["id"]].fake_cls != "orig")) for pair in report["worst"]]
    assert errors == sorted(errors, reverse=True)
    html = (out / "index.html").read_text()
    assert f"all {PAIRS} of the split, each once" in html
    assert html.count("data:image/webp") == 3


@pytest.mark.slow
def test_a_corpus_and_a_model_in_a_bucket_have_the_metrics_of_the_same_on_a_disk(
    ray_here: None, settings: Any, drawn: Path, model_folder: Path, bucket: str
) -> None:
    client = boto3.client("s3")
    upload_folder(drawn, bucket, "news")
    out = f"s3://{bucket}/evaluated"
    model = upload_folder(model_folder, bucket, "model")
    args = ["evaluate", model, f"s3://{bucket}/news", "--out", out, "--device", "cpu"]

    result = CliRunner().invoke(app, [*args, "--set", "shard_pairs=16", "--set", "worst=2"])

    assert result.exit_code == 0, result.output
    assert f"page: {out}/index.html" in result.output
    listed = client.list_objects_v2(Bucket=bucket, Prefix="evaluated/")["Contents"]
    assert {entry["Key"].removeprefix("evaluated/") for entry in listed} == set(OUTPUTS)
    report = json.loads(client.get_object(Bucket=bucket, Key="evaluated/metrics.json")["Body"].read())
    wanted = shard(model_folder, drawn, 0, PAIRS).compute()
    metrics = ("pairs", "AUC", "ACC", "mAP", "IoU_mean", "token_F1")
    assert [report[name] for name in metrics] == pytest.approx([wanted[name] for name in metrics], abs=1e-5)
    assert report["about"]["corpus"] == f"s3://{bucket}/news"
    assert report["about"]["model_id"] == model_id(model_folder)
    page = client.get_object(Bucket=bucket, Key="evaluated/index.html")["Body"].read()
    assert page.count(b"data:image/webp") == 2


@pytest.mark.slow
def test_a_picture_that_cannot_be_used_ends_the_evaluation_and_is_named(
    ray_here: None, settings: Any, drawn: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "torn"
    shutil.copytree(drawn, corpus)
    image = read_split(corpus, "test")[3].image
    image.write_bytes(image.read_bytes()[:500])
    with pytest.raises(Exception, match=image.name) as caught:
        evaluate(settings(corpus=str(corpus), shard_pairs=8))
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, ray.exceptions.RayError)
    assert not (tmp_path / "out/metrics.json").exists()
