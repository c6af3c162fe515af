"""A model judged on a corpus by Ray workers."""

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import ray
from typer.testing import CliRunner

from asap.errors import CheckpointError, ConfigError, CorpusError, StorageError
from asap.evaluation.metrics import Evaluation
from asap.model.asap import Asap
from asap.newsroom import generate
from asap.training.dataset import read_split
from asap.weights.model_folder import load_folder, model_id, save
from jobs import cluster
from jobs.cli.app import app
from jobs.errors import JobDiffers, JobFailed
from jobs.evaluate import run as module
from jobs.evaluate.run import OUTPUTS, evaluate, evaluate_shard, explain_pairs, merge_shards, plan_evaluation
from jobs.evaluate.settings import EvaluateSettings

PAIRS = 24


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "corpus"
    generate(folder, pairs=PAIRS, seed=5, workers=1, splits=(0.0, 0.0, 1.0))
    return folder


@pytest.fixture
def settings(drawn: Path, model_folder: Path, tmp_path: Path) -> Callable[..., EvaluateSettings]:
    def make(**changes: Any) -> EvaluateSettings:
        given = {"model": str(model_folder), "corpus": str(drawn), "out": str(tmp_path / "out"), "device": "cpu"}
        return EvaluateSettings(**(given | changes))

    return make


def shard(model: Path, drawn: Path, start: int, stop: int) -> Evaluation:
    return evaluate_shard(str(model), model_id(model), "cpu", 1, 8, read_split(drawn, "test")[start:stop])


# Before Ray starts.


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> Iterator[None]:
        pytest.fail("Ray was started")

    monkeypatch.setattr(module, "ray_running", start)


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
def test_what_cannot_be_evaluated_is_told_before_ray_starts(
    settings: Any, no_ray: None, changes: dict[str, str], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence) as caught:
        evaluate(settings(**changes))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_model_is_refused(settings: Any, no_ray: None, drawn: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model folder .*corpus has no "):
        evaluate(settings(model=str(drawn)))


def test_a_corpus_without_the_split_is_refused(settings: Any, no_ray: None, drawn: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "no-test"
    shutil.copytree(drawn / "metadata", corpus / "metadata")
    (corpus / "metadata/test.json").unlink()
    with pytest.raises(CorpusError, match=r"no-test/metadata/test\.json does not exist"):
        evaluate(settings(corpus=str(corpus)))


def test_a_folder_of_something_else_is_left_alone(settings: Any, no_ray: None, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"out holds 'thesis\.tex', which is no part of an evaluation"):
        evaluate(settings())
    assert (tmp_path / "out/thesis.tex").read_text() == "mine"


def test_another_evaluation_is_refused_by_what_differs(settings: Any, no_ray: None, tmp_path: Path) -> None:
    about = plan_evaluation(settings(limit=5)).about()
    (tmp_path / "out/metrics.json").write_text(json.dumps({"about": about}))
    with pytest.raises(JobDiffers, match=r"holds another evaluation: limit 5 \(now 6\); choose another --out"):
        evaluate(settings(limit=6))
    assert plan_evaluation(settings(limit=5)).about() == about


# Shards.


def test_the_figures_do_not_depend_on_how_the_split_was_cut(drawn: Path, model_folder: Path) -> None:
    whole = shard(model_folder, drawn, 0, PAIRS)
    parts = {start: shard(model_folder, drawn, start, min(start + 16, PAIRS)) for start in (16, 0)}
    merged = merge_shards(parts, PAIRS)
    assert merged.compute() == whole.compute()
    assert merged.predictions().margin.tolist() == whole.predictions().margin.tolist()


@pytest.mark.parametrize(("starts", "pairs"), [((0, 8), 16), ((0,), 12), ((4, 12), 16), ((), 4)])
def test_a_shard_that_is_missing_or_doubled_is_found(
    drawn: Path, model_folder: Path, starts: tuple[int, ...], pairs: int
) -> None:
    one = shard(model_folder, drawn, 0, 8)
    double = Evaluation()
    double.merge(one)
    double.merge(one)
    held = {start: double if start else one for start in starts}
    with pytest.raises(JobFailed, match=f"and the split has {pairs}"):
        merge_shards(held, pairs)


def test_a_model_that_changed_meanwhile_is_refused(drawn: Path, model_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="and was other@1"):
        evaluate_shard(str(model_folder), "other@1", "cpu", 1, 8, read_split(drawn, "test")[:2])


def test_pairs_are_explained_by_the_model_that_judged_them(drawn: Path, model_folder: Path) -> None:
    records = read_split(drawn, "test")[:3]
    found = explain_pairs(str(model_folder), model_id(model_folder), "cpu", 1, records)
    margin = evaluate_shard(str(model_folder), model_id(model_folder), "cpu", 1, 8, records).predictions().margin
    assert [finding.model_id for finding in found] == [load_folder(model_folder).model_id] * 3
    assert [finding.score > 0.5 for finding in found] == (margin > 0).tolist()


def test_a_breakdown_has_the_classes_of_the_corpus_that_was_judged(
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
def test_the_cpus_are_shared_out(
    settings: Any, monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], workers: int | None, wanted: Any
) -> None:
    machines(monkeypatch, *nodes)
    crew = module._worker_pool(settings(workers=workers))
    assert (crew.workers, crew.threads, crew.options["num_cpus"]) == wanted
    assert crew.device == "cpu"


def test_a_worker_takes_a_gpu_where_there_are_any(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machines(monkeypatch, {"CPU": 8, "GPU": 2})
    crew = module._worker_pool(settings(device="auto"))
    assert (crew.workers, crew.device, crew.options["num_gpus"]) == (2, "cuda", 1)
    assert crew.options["max_calls"] == 0  # else Ray ends each process after a shard, and with it the model
    assert "num_gpus" not in module._worker_pool(settings(device="cpu")).options


def test_gpus_that_are_not_there_are_not_waited_for(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machines(monkeypatch, {"CPU": 8})
    with pytest.raises(ConfigError, match=r"1 worker with 1 CPU, 1 GPU .*1 x \(8 CPUs, 0 GPUs\); --device auto takes"):
        module._worker_pool(settings(device="cuda"))


def test_a_cluster_is_asked_for_a_gpu_and_given_time_to_bring_it(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines(monkeypatch, {"CPU": 0}, {"CPU": 16})
    asked: list[Any] = []

    def bring(needs: dict[str, int], workers: int, wait_s: float) -> bool:
        asked.append((needs, workers, wait_s))
        machines(monkeypatch, {"CPU": 0}, {"CPU": 16}, {"CPU": 8, "GPU": 1})
        return True

    monkeypatch.setattr(cluster, "_reserve", bring)
    told: list[str] = []
    crew = module._worker_pool(settings(device="cuda", address="auto", wait_for_machines_s=120), told.append)
    assert asked == [({"CPU": 1, "GPU": 1}, 1, 120)]
    assert (crew.workers, crew.device) == (1, "cuda")
    assert [line.partition(":")[0] for line in told] == [
        "waiting up to 2 min for machines to hold 1 worker with 1 CPU, 1 GPU"
    ]


def test_a_cluster_without_gpus_is_told_of_where_the_cpus_judge(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machines(monkeypatch, {"CPU": 0}, {"CPU": 16})
    told: list[str] = []
    assert module._worker_pool(settings(device="auto", address="auto"), told.append).device == "cpu"
    assert told == ["judging on CPUs: no GPU is alive; --device cuda waits for one"]


# On Ray.


def _dies_once(marker: Path) -> Callable[..., Evaluation]:
    """`evaluate_shard`, of which the first process that has begun is killed. Ray pickles what is in here by value."""

    def judge(*given: Any) -> Evaluation:
        from jobs.evaluate.run import evaluate_shard

        evaluation = evaluate_shard(*given)
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            return evaluation
        os.kill(os.getpid(), signal.SIGKILL)
        return evaluation

    return judge


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


def test_a_corpus_in_a_bucket_is_judged_into_a_bucket_with_the_figures_of_one_on_a_disk(
    ray_here: None, settings: Any, drawn: Path, model_folder: Path, bucket: str
) -> None:
    client = boto3.client("s3")
    for path in filter(Path.is_file, drawn.rglob("*")):
        client.upload_file(str(path), bucket, f"news/{path.relative_to(drawn).as_posix()}")
    out = f"s3://{bucket}/judged"
    args = ["evaluate", str(model_folder), f"s3://{bucket}/news", "--out", out, "--device", "cpu"]

    result = CliRunner().invoke(app, [*args, "--set", "shard_pairs=16", "--set", "worst=2"])

    assert result.exit_code == 0, result.output
    assert f"page: {out}/index.html" in result.output
    listed = client.list_objects_v2(Bucket=bucket, Prefix="judged/")["Contents"]
    assert {entry["Key"].removeprefix("judged/") for entry in listed} == set(OUTPUTS)
    report = json.loads(client.get_object(Bucket=bucket, Key="judged/metrics.json")["Body"].read())
    wanted = shard(model_folder, drawn, 0, PAIRS).compute()
    figures = ("pairs", "AUC", "ACC", "mAP", "IoU_mean", "token_F1")
    assert [report[name] for name in figures] == pytest.approx([wanted[name] for name in figures], abs=1e-5)
    assert report["about"]["corpus"] == f"s3://{bucket}/news"
    page = client.get_object(Bucket=bucket, Key="judged/index.html")["Body"].read()
    assert page.count(b"data:image/webp") == 2


def test_a_record_that_cannot_be_judged_ends_the_evaluation_by_its_name(
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
