"""Real training through Ray Train, on a corpus of a hundred pairs."""

import json
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import ray
import torch

from asap.corpus.reader import fingerprint, read_split
from asap.errors import AnnotationError, ConfigError, CorpusError, StorageError
from asap.finding import Pair
from asap.predictor import Predictor
from asap.weights.model_folder import load_folder
from jobs import cluster
from jobs.errors import JobError, JobFailed, TrainingDiverged
from jobs.sharing import Claim, held_share
from jobs.train import run as train_module
from jobs.train.data.splits import data_of, read_splits
from jobs.train.data.stream import Decoding
from jobs.train.fit import count_memory
from jobs.train.gpus import cpu_here
from jobs.train.run import train, workers_claim
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings
from jobs.train.trainer import read_state, read_weights
from tests.support.small_run import MODEL, draw_corpus, settings_for
from tests.support.waiting import HANG_S


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_corpus(tmp_path_factory)


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    """Events that the run of `trained` reports."""
    return []


@pytest.fixture(scope="module")
def settings(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    # Paths as a user types them: relative to the working folder.
    here = Path(os.path.relpath(corpus)), Path(os.path.relpath(tmp_path_factory.mktemp("run") / "out"))
    log = str(tmp_path_factory.mktemp("log") / "states.jsonl")
    return settings_for(*here, workers=2, log_file=log, stall_after_s=HANG_S)  # a slow machine is no stall


@pytest.fixture(scope="module")
def trained(ray_here: None, settings: TrainSettings, events: list[dict[str, Any]]) -> RunFolder:
    """The folder of a finished run of two workers."""
    train(settings, events.append)
    return RunFolder(Path(settings.out))


def test_a_run_writes_a_model_folder_that_detects_manipulated_pairs(trained: RunFolder, corpus: Path) -> None:
    record = json.loads((corpus / "metadata/test.json").read_text())[0]
    predictor = Predictor.from_folder(trained.model, device="cpu")
    finding = predictor.predict([Pair(corpus / record["image"], record["text"])])[0]
    assert finding.error is None
    assert finding.model_id.startswith("small@")
    assert load_folder(trained.model).config.width == 48


def test_the_states_of_a_run_are_logged(trained: RunFolder, settings: TrainSettings) -> None:
    lines = [json.loads(line) for line in Path(settings.log_file or "").read_text().splitlines()][:4]
    assert [line["state"] for line in lines] == ["validating", "running", "finalizing", "completed"]
    assert (lines[3]["kind"], lines[3]["job"]) == ("train", "out")
    assert Path(lines[3]["folder"]).samefile(trained.path)
    assert lines[3]["counts"] == {"done": 64, "total": 64}


def test_the_card_has_the_metrics_of_the_test_split(trained: RunFolder) -> None:
    metrics = json.loads((trained.path / "test_metrics.json").read_text())
    card = (trained.model / "README.md").read_text()
    assert metrics["pairs"] == 20
    for name in ("AUC", "mAP", "token_F1"):
        assert f"| {name} | {metrics[name]:.3f} |" in card
    assert "seed 3, 100 pairs" in card


def test_the_averaged_twin_of_the_best_checkpoint_becomes_the_model(trained: RunFolder) -> None:
    exported = load_folder(trained.model).model.state_dict()
    record = json.loads(trained.record.read_text())["starts"][-1]["model"]
    lines = [json.loads(line) for line in trained.progress.read_text().splitlines()]
    scores = {line["pairs"]: line["validation"]["AUC"] for line in lines if "validation" in line}
    best = max(scores, key=lambda pairs: (scores[pairs], pairs))
    assert record["pairs"] == best
    assert record["validation_AUC"] == pytest.approx(scores[best])

    # Only the best and the last checkpoint are kept.
    kept = {read_state(path)["done"] * 8: path for path in trained.path.glob("ray_train/checkpoint_*") if path.is_dir()}
    assert set(kept) == {best, 64}
    for name, value in read_weights(kept[best], "average").items():
        torch.testing.assert_close(exported[name], value.half().to(value.dtype) if value.is_floating_point() else value)
    assert f"the best checkpoint after {best} pairs" in (trained.model / "README.md").read_text()


def test_the_record_has_the_settings_as_they_were_typed(trained: RunFolder, settings: TrainSettings) -> None:
    record = json.loads(trained.record.read_text())
    assert record["settings"]["corpus"] == settings.corpus  # a relative path, as typed
    assert record["starts"][-1]["cluster"]["cpus"] == 2
    assert record["starts"][-1]["seconds"] > 0


@pytest.mark.slow
def test_a_run_at_s3_from_a_model_folder_ends_with_everything_there(
    trained: RunFolder, corpus: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    events: list[dict[str, Any]] = []
    settings = settings_for(corpus, f"s3://{bucket}/runs/one", pairs=32, init=(str(trained.model),), export="last")

    model = train(settings, events.append)

    assert str(model) == f"s3://{bucket}/runs/one/model"
    listed = boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]
    names = {entry["Key"].removeprefix("runs/one/") for entry in listed}
    assert {
        "train.json", "run.json", "progress.jsonl", "test_metrics.json", "start/report.txt", "tokenizer/tokenizer.json",
        "model/config.json", "model/model.safetensors", "model/README.md",
    } <= names  # fmt: skip
    assert any(name.startswith("tensorboard/") for name in names)
    assert any(name.startswith("ray_train/checkpoint_") for name in names)
    assert "left fresh: none" in next(event["report"] for event in events if "start" in event)
    assert [event["pairs"] for event in events if "validation" in event] == [32]
    assert train(settings) == model  # the run is finished, so nothing is done again
    with pytest.raises(ConfigError, match=r"s3://.* holds a run with other settings: learning_rate"):
        train(settings.model_copy(update={"learning_rate": 0.5}))


def test_losses_and_validation_metrics_are_reported_and_kept(
    trained: RunFolder, corpus: Path, events: list[dict[str, Any]]
) -> None:
    lines = [json.loads(line) for line in trained.progress.read_text().splitlines()]
    assert [event for event in events if "pairs" in event] == lines
    (found,) = [event for event in events if "corpus" in event]
    assert found["ingest"] == "cache"
    assert [line.partition(":")[0] for line in found["corpus"]].count("captions") == 3
    kept = json.loads(trained.corpus.read_text())
    assert [kept[split]["pairs"] for split in ("train", "val", "test")] == [60, 20, 20]
    recorded = json.loads(trained.record.read_text())["data"]
    prints = {split: fingerprint(read_split(corpus, split)) for split in ("train", "val", "test")}
    assert {split: data["fingerprint"] for split, data in recorded.items()} == prints
    assert {event["stage"] for event in events if "stage" in event} == {
        "decoding train pictures",
        "decoding val pictures",
        "decoding test pictures",
        "evaluating the test pairs",
    }
    assert [line["pairs"] for line in lines if "validation" in line] == [32, 64]
    last = next(line for line in reversed(lines) if "losses" in line)
    assert (last["pairs"], last["of"]) == (64, 64)
    assert {"total", "vlc", "bic", "giou", "mpp"} <= set(last["losses"])
    assert all(np.isfinite(value) for value in last["losses"].values())


def test_tensorboard_shows_the_losses_and_the_validation_metrics(trained: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [json.loads(line) for line in trained.progress.read_text().splitlines()]
    curves = EventAccumulator(str(trained.curves)).Reload()
    last = next(line for line in reversed(lines) if "losses" in line)
    shown = {name: curves.Scalars(f"losses/{name}")[-1].value for name in last["losses"]}
    assert shown == pytest.approx(last["losses"], abs=1e-4)
    assert [point.step for point in curves.Scalars("validation/AUC")] == [32, 64]
    assert curves.Scalars("pairs_per_s")


def test_the_same_command_again_returns_at_once(
    trained: RunFolder, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_run_workers", lambda *_: pytest.fail("there was nothing left to train"))
    before = (trained.model / "model.safetensors").stat().st_mtime_ns
    assert train(settings) == trained.model.resolve()
    assert (trained.model / "model.safetensors").stat().st_mtime_ns == before
    train(
        settings.model_copy(update={"cpus_per_worker": 2, "checkpoint_pairs": 8, "ingest": "stream"})
    )  # execution settings may differ


def test_other_settings_are_refused_with_the_differences(trained: RunFolder, settings: TrainSettings) -> None:
    other = settings.model_copy(update={"learning_rate": 0.5, "model": MODEL | {"width": 96}})
    with pytest.raises(
        ConfigError, match=r"run with other settings: model \{.*'width': 48.*\(now \{.*'width': 96"
    ) as caught:
        train(other)
    assert "learning_rate 0.001 (now 0.5)" in str(caught.value)
    assert "vocab_size" not in str(caught.value)


def test_a_run_of_an_older_version_is_continued_by_the_command_that_began_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    command = TrainSettings(corpus="corpus", out=str(folder.path), init=("demo",), alignment_from=0.95)
    # The older version had fewer settings, and its defaults did not follow from init.
    older = json.loads(TrainSettings(corpus="corpus", out="", alignment_from=0.95).model_dump_json())
    new = ("epochs", "defects", "initial_values", "optimizer_groups", "schedule", "twin_dropout", "weights")
    recorded = {name: value for name, value in older.items() if name in command.identity() and name not in new}
    folder.settings.write_text(json.dumps(recorded | {"init": ["demo"]}))

    continued = train_module._with_older_defaults(folder, command)

    assert (continued.learning_rate, continued.words_until, continued.alignment_from) == (1e-3, 0.57, 0.95)
    train_module._check_folder(folder, continued, command.model_fields_set)  # raises nothing
    other = train_module._with_older_defaults(folder, command.model_copy(update={"learning_rate": 0.5}))
    with pytest.raises(ConfigError, match=r"learning_rate 0\.001 \(now 0\.5\)"):
        train_module._check_folder(folder, other, command.model_fields_set)
    assert train_module._with_older_defaults(RunFolder(tmp_path / "new"), command) == command

    # A later version had all settings, and another recipe by default.
    folder.settings.write_text(json.dumps(command.identity() | {"recipe": "asap-ray"}))
    assert train_module._with_older_defaults(folder, command).recipe == "asap-ray"
    named = TrainSettings(corpus="corpus", out=str(folder.path), init=("demo",), recipe="asap")
    assert train_module._with_older_defaults(folder, named).recipe == "asap"


def test_a_run_keeps_its_micro_batch_on_other_workers_and_refuses_another_given_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    command = TrainSettings(corpus="corpus", out=str(folder.path), batch_size=32)
    train_module._claim(folder, command, {})
    fitted = train_module._fit(folder, command, command.model_fields_set, False, lambda event: None)
    assert json.loads(folder.settings.read_text())["fitted"]["micro_batch"] == 32
    assert fitted == command

    # As if a smaller device had taken eight pairs at once.
    recorded = json.loads(folder.settings.read_text())
    recorded["fitted"]["micro_batch"] = 8
    folder.settings.write_text(json.dumps(recorded))
    on_two = command.model_copy(update={"workers": 2})
    for resumed, accumulation in ((command, 4), (on_two, 2)):
        kept = train_module._with_kept_choices(folder, resumed, command.model_fields_set)
        assert kept.accumulation == accumulation
        train_module._check_folder(folder, kept, command.model_fields_set)  # raises nothing
    with pytest.raises(ConfigError, match=r"accumulation 1 \(now 16\)"):
        train_module._check_folder(folder, command.model_copy(update={"accumulation": 16}), {"accumulation"})


def test_a_run_that_never_began_may_be_given_another_accumulation(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    first = TrainSettings(corpus="corpus", out=str(folder.path), accumulation=1)
    train_module._claim(folder, first, {})  # and then nothing fitted
    train_module._check_folder(folder, first.model_copy(update={"accumulation": 8}), {"accumulation"})  # raises nothing


def test_a_run_of_an_older_version_computes_as_many_micro_batches_as_it_did(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    command = TrainSettings(corpus="corpus", out=str(folder.path))
    folder.settings.write_text(json.dumps(command.identity() | {"accumulation": 4, "data": {}}))
    kept = train_module._with_kept_choices(folder, command, command.model_fields_set)
    assert kept.accumulation == 4
    train_module._claim(folder, kept, {})
    assert json.loads(folder.settings.read_text())["fitted"]["micro_batch"] == 8


@pytest.mark.slow
def test_a_run_on_a_small_device_trains_in_micro_batches(ray_here: None, corpus: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    settings = settings_for(corpus, tmp_path / "out", pairs=16, words_until=0, alignment_from=0)
    config = train_module.model_config(settings, settings.vocab_size)
    memory = count_memory(settings, config, cpu_here())
    # A device that holds four of the eight pairs, and no fewer with checkpointing.
    few = memory.needed(4, checkpointed=False, workers=1)
    assert few < memory.needed(8, checkpointed=True, workers=1)
    settings = settings_for(
        corpus, tmp_path / "out", pairs=16, words_until=0, alignment_from=0,
        device_gib=(few + 1000) / 2**30, checkpoint_activations=False,
    )  # fmt: skip

    train(settings, lambda event: notes.append(event.get("note", "")))

    recorded = json.loads((tmp_path / "out/train.json").read_text())
    assert (recorded["accumulation"], recorded["fitted"]["micro_batch"]) == (2, 4)
    assert any("computes its 8 pairs in 2 micro batches" in note for note in notes)
    assert load_folder(tmp_path / "out/model").config.width == 48


def test_a_run_that_ended_before_the_model_was_written_writes_it_and_starts_no_workers(
    trained: RunFolder, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (trained.model / "model.safetensors").read_bytes()
    trained.model.rename(trained.path / "former")
    monkeypatch.setattr(train_module, "_run_workers", lambda *_: pytest.fail("there was nothing left to train"))

    train(settings)

    assert (trained.model / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_a_corpus_in_a_bucket_is_streamed_and_trains(ray_here: None, bucket: str, corpus: Path, tmp_path: Path) -> None:
    client = boto3.client("s3")
    for path in filter(Path.is_file, corpus.rglob("*")):
        client.upload_file(str(path), bucket, f"news/{path.relative_to(corpus).as_posix()}")
    events: list[dict[str, Any]] = []
    settings = settings_for(corpus, tmp_path / "out", workers=2, pairs=32)
    settings = settings.model_copy(update={"corpus": f"s3://{bucket}/news"})
    folder = train(settings, events.append)

    assert load_folder(folder).config.width == 48
    assert [event["ingest"] for event in events if "ingest" in event] == ["stream"]
    assert not (tmp_path / "out/pictures").exists()
    assert json.loads((tmp_path / "out/test_metrics.json").read_text())["pairs"] == 20


@pytest.mark.slow
@pytest.mark.parametrize("failing_step", [8])
def test_a_checkpoint_that_cannot_be_written_beside_the_training_sends_the_run_back(
    ray_here: None, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_step: int
) -> None:
    failed = tmp_path / "failed"

    def run_with_a_full_disk(arguments: dict[str, Any]) -> None:
        from jobs.train import worker

        write_state = worker.write_state

        def write_once(state: dict[str, Any], folder: Path) -> None:
            if state["done"] == failing_step and not failed.exists():
                failed.touch()
                raise OSError("no space left on device")
            write_state(state, folder)

        worker.write_state = write_once  # type: ignore[attr-defined]  # in the worker's own process
        worker.run_worker(arguments)

    monkeypatch.setattr(train_module, "run_worker", run_with_a_full_disk)
    folder = train(settings_for(corpus, tmp_path / "out"))

    assert failed.exists()
    assert load_folder(folder).config.width == 48
    lines = [json.loads(line) for line in (tmp_path / "out/progress.jsonl").read_text().splitlines()]
    validated = [line["pairs"] for line in lines if "validation" in line]
    # A run whose first checkpoint fails starts anew; one whose last checkpoint fails repeats the steps since the first.
    assert validated[-2:] == ([32, 64] if failing_step == 4 else [64, 64])


# Errors that are found before any training


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "_run_workers", lambda *_: pytest.fail("this cannot be trained"))


def test_a_folder_of_something_else_is_refused(corpus: Path, tmp_path: Path, no_training: None) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds something that is not a training run\. Choose another folder"):
        train(settings_for(corpus, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"width": 50}}, "width 50 is not a multiple of heads 6"),
        ({"model": {"wdith": 48}}, "wdith"),
        ({"loss_weights": {"giou": -1}}, "loss weight giou -1"),
        ({"loss_weights": {"gious": 1}}, "gious"),
        ({"model": {"variant": "hammer"}}, r"HAMMER model has no head for \['ied', 'mpp'\]"),
    ],
)
def test_a_model_or_objective_that_cannot_work_is_refused(
    corpus: Path, tmp_path: Path, no_training: None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(settings_for(corpus, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_batch_larger_than_the_training_split_is_refused_before_anything_is_written(
    corpus: Path, tmp_path: Path, no_training: None
) -> None:
    with pytest.raises(ConfigError, match="60 training pairs do not fill one batch of 64"):
        train(settings_for(corpus, tmp_path / "out", batch_size=64))
    assert not (tmp_path / "out").exists()


def test_a_corpus_that_does_not_exist_is_named(tmp_path: Path, no_training: None) -> None:
    with pytest.raises(CorpusError, match=r"nowhere/metadata/train\.json does not exist"):
        train(settings_for(tmp_path / "nowhere", tmp_path / "out"))


@pytest.fixture
def copied(corpus: Path, tmp_path: Path) -> Path:
    """A corpus that a test may break."""
    folder = tmp_path / "copied"
    (folder / "metadata").mkdir(parents=True)
    (folder / "images").symlink_to(corpus / "images")
    for split in ("train", "val", "test"):
        (folder / f"metadata/{split}.json").write_text((corpus / f"metadata/{split}.json").read_text())
    return folder


def test_a_run_folder_that_cannot_be_written_is_found_before_training(corpus: Path, s3: str, no_training: None) -> None:
    with pytest.raises(StorageError, match=r"the bucket of s3://nobodys-bucket/run.* does not exist. Check its name"):
        train(settings_for(corpus, "s3://nobodys-bucket/run"))


def test_a_missing_test_split_is_found_before_training(copied: Path, tmp_path: Path, no_training: None) -> None:
    (copied / "metadata/test.json").unlink()
    with pytest.raises(CorpusError, match=r"metadata/test\.json does not exist"):
        train(settings_for(copied, tmp_path / "out"))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_record_that_cannot_be_used_is_found_before_training(
    copied: Path, tmp_path: Path, no_training: None, split: str
) -> None:
    path = copied / f"metadata/{split}.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows[:-1], rows[-1] | {"fake_text_pos": [99]}]))
    with pytest.raises(AnnotationError, match=f"record {rows[-1]['id']}: fake_text_pos has 99"):
        train(settings_for(copied, tmp_path / "out", stray_positions="refuse"))


def test_changed_data_are_refused_with_the_differences(copied: Path, tmp_path: Path, no_training: None) -> None:
    settings = settings_for(copied, tmp_path / "out")
    corpora = read_splits(settings, "dgm4")
    data = {split: data_of(corpus) for split, corpus in corpora.items()}
    train_module._claim(RunFolder(tmp_path / "out"), settings_for(copied.resolve(), tmp_path / "out"), data)
    path = copied / "metadata/val.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:-1]))
    with pytest.raises(
        ConfigError, match=r"a run on other data: val \{'pairs': 20, .* \(now \{'pairs': 19, "
    ) as caught:
        train(settings)
    assert "train" not in str(caught.value).partition("other data")[2]


def test_a_picture_that_cannot_be_decoded_is_named(
    ray_here: None, copied: Path, tmp_path: Path, no_training: None
) -> None:
    path = copied / "metadata/train.json"
    rows = json.loads(path.read_text())
    (copied / "empty.jpg").touch()
    path.write_text(json.dumps([*rows[:-1], rows[-1] | {"image": "empty.jpg"}]))
    with pytest.raises(
        CorpusError, match=r"1 of 60 pairs .* 1\.67% where .* 1\.00%: .*empty\.jpg: the image has no bytes"
    ):
        train(settings_for(copied, tmp_path / "out"))


# The machines


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def alive(*nodes: dict[str, float]) -> None:
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])

    return alive


def resources(events: list[dict[str, Any]], **changes: Any) -> dict[str, int]:
    settings = settings_for("corpus", "out", **({"cpus_per_worker": None} | changes))
    return train_module._resources_per_worker(settings, events.append)


def test_a_worker_gets_the_cpus_that_machines_of_the_cluster_have(
    machines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)  # the machine of the driver, which is not in the cluster
    machines({"CPU": 0}, {"CPU": 4}, {"CPU": 4}, {"CPU": 8, "GPU": 1})
    reported: list[dict[str, Any]] = []
    assert resources(reported, workers=2) == {"CPU": 4}
    assert reported == [{"note": "training on CPUs: 2 GPUs are needed and 1 are available"}]
    assert resources([], workers=1, address="auto") == {"CPU": 2, "GPU": 1}
    assert resources([], workers=1, address="auto", cpus_per_worker=6) == {"CPU": 6, "GPU": 1}
    assert resources([], workers=1, device="cpu") == {"CPU": 8}
    assert resources([], workers=4, device="cpu", cpus_per_worker=2) == {"CPU": 2}


@pytest.mark.parametrize(("cpus", "each", "tasks"), [(96, 2, 10), (16, 2, 1), (8, 1, 1)])
def test_the_cpus_of_eight_gpus_decode(
    machines: Any, monkeypatch: pytest.MonkeyPatch, cpus: int, each: int, tasks: int
) -> None:
    machines({"CPU": cpus, "GPU": 8})
    assert resources([], workers=8) == {"CPU": each, "GPU": 1}
    monkeypatch.setattr("jobs.train.data.stream.cpus_of_this_job", lambda: float(cpus))
    assert Decoding.beside(8, each).tasks == tasks


def test_a_run_claims_its_workers_and_the_tasks_that_decode_for_them() -> None:
    def claim(cpus: float, *, streams: bool, **changes: Any) -> Claim:
        settings = TrainSettings(corpus="c", out="o", **{"workers": 4, "batch_size": 24} | changes)
        return workers_claim(settings, {"CPU": 2, "GPU": 1}, cpus, streams=streams)

    worker = {"CPU": 2, "GPU": 1}
    assert claim(64, streams=False) == Claim.of_workers([worker] * 4, is_at_work=True)
    streamed = claim(64, streams=True, min_workers=2)
    needed = [worker, worker, {"CPU": 1}, {"CPU": 1}]
    assert streamed == Claim.of_workers(needed, {"CPU": math.inf, "GPU": 4}, is_at_work=True)
    assert claim(64, streams=True, decode_tasks=3).most == {"CPU": 20, "GPU": 4}
    assert claim(9, streams=True).needs["CPU"] == 9
    assert claim(8, streams=True).needs["CPU"] == 8  # the tasks ask for no CPU


def test_a_run_on_a_cluster_claims_its_workers_before_it_prepares_and_until_it_ends(
    ray_here: None, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims: list[Claim] = []

    def stop(*_: Any, trains: bool) -> None:
        share = held_share()
        assert share is not None
        claims.append(share.claim)
        raise JobFailed("far enough")

    monkeypatch.setattr(train_module, "_prepare", stop)
    settings = settings_for(corpus, tmp_path / "out", address="the Ray of the tests", ingest="stream")
    with pytest.raises(JobFailed, match="far enough"):
        train(settings)
    decodes = {"CPU": 1}
    assert claims == [Claim.of_workers([{"CPU": 1}, decodes], {"CPU": math.inf}, is_at_work=True)]
    assert held_share() is None


def test_an_elastic_run_needs_machines_for_its_fewest_workers(machines: Any) -> None:
    machines({"CPU": 1})
    assert resources([], workers=2, min_workers=1) == {"CPU": 1}


def test_a_run_waits_for_gpus_that_a_cluster_may_bring(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machines({"CPU": 0}, {"CPU": 16})

    def reserve(bundles: list[dict[str, int]], wait_s: float) -> bool:
        machines({"CPU": 0}, {"CPU": 16}, *[{"CPU": 8, "GPU": 1}] * len(bundles))
        return (bundles, wait_s) == ([{"CPU": 1, "GPU": 1}] * 2, 900)

    monkeypatch.setattr(cluster, "_reserve", reserve)
    reported: list[dict[str, Any]] = []
    assert resources(reported, workers=2, device="cuda", address="auto") == {"CPU": 2, "GPU": 1}
    assert [event["note"].partition(":")[0] for event in reported] == [
        "waiting up to 15 min for machines to hold 2 workers with 1 CPU, 1 GPU each"
    ]


def test_training_on_cpus_of_a_cluster_is_reported(machines: Any) -> None:
    machines({"CPU": 0}, {"CPU": 16})
    reported: list[dict[str, Any]] = []
    assert resources(reported, workers=2, address="auto") == {"CPU": 8}
    assert [event["note"] for event in reported] == [
        "training on CPUs: 2 GPUs are needed and 0 are available; --set device=cuda waits for more"
    ]


def test_workers_that_this_machine_cannot_hold_are_refused_before_pictures_are_decoded(
    ray_here: None, corpus: Path, tmp_path: Path, no_training: None
) -> None:
    with pytest.raises(
        ConfigError,
        match=r"4 workers with 1 CPU each do not fit .*\(2 CPUs, 0 GPUs\)\. Give fewer --workers or a",
    ) as caught:
        train(settings_for(corpus, tmp_path / "out", workers=4))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out/pictures").exists()


@pytest.fixture
def gpus_here(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that gives this machine some GPUs. Ray does not run, and may not be started."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(train_module, "ray_running", lambda *_: pytest.fail("Ray was started"))
    return lambda gpus: monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(
    ("gpus", "changes", "message"),
    [
        (0, {"device": "cuda"}, "device 'cuda' needs 1 GPU, and torch can use 0 .* Give --address of a cluster with"),
        (1, {"device": "cuda", "workers": 2}, "needs 2 GPUs, and torch can use 1 on .* Give fewer --workers, --addr"),
        (1, {"device_gib": 0.5}, "the run does not fit into a GPU of 0.5 GiB: a step of 1 pair with activation"),
        (0, {"address": "10.0.0.1:6379", "gpu": "L4", "device_gib": 0.5}, "the run does not fit into L4: a step of"),
        (0, {"device_gib": 0.001}, "the run does not fit into CPU: a step of 1 pair"),
    ],
)
def test_a_run_that_no_device_can_hold_is_refused_before_ray_starts_and_writes_nothing(
    corpus: Path, tmp_path: Path, gpus_here: Any, gpus: int, changes: dict[str, Any], message: str
) -> None:
    gpus_here(gpus)
    with pytest.raises(ConfigError, match=message):
        train(settings_for(corpus, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def _check(folder: RunFolder, **changes: Any) -> None:
    settings = settings_for("corpus", folder.path, **changes)
    train_module._check_device(folder, settings, settings.model_fields_set)


def test_what_only_ray_can_tell_is_not_refused(tmp_path: Path, gpus_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus_here(0)
    folder = RunFolder(tmp_path)
    _check(folder, device="cuda", address="10.0.0.1:6379")
    _check(folder, preset="published", gpu="L4", device_gib=0.5, address="10.0.0.1:6379")
    # Ray runs in this process, on a cluster perhaps.
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    _check(folder, device="cuda")


def test_a_run_that_was_trained_to_its_end_needs_no_device(tmp_path: Path, gpus_here: Any) -> None:
    gpus_here(0)
    (tmp_path / "ray_train").mkdir()
    for pairs, is_trained in ((64, True), (32, False)):
        snapshot = {"latest_checkpoint_result": {"metrics": {"pairs": pairs, "of": 64}}}
        (tmp_path / "ray_train" / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
        with nullcontext() if is_trained else pytest.raises(ConfigError, match="device 'cuda' needs 1 GPU"):
            _check(RunFolder(tmp_path), device="cuda")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({}, 300), ({"init": ("demo",)}, 1), ({"tokenizer": "a"}, 1), ({"init": ("demo",), "tokenizer": "train"}, 300)],
)
def test_words_of_a_source_that_is_not_read_yet_take_no_memory(
    tmp_path: Path, gpus_here: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: int
) -> None:
    gpus_here(0)
    configs: list[Any] = []
    monkeypatch.setattr(train_module, "fit_to_device", lambda settings, config, *_: configs.append(config))
    _check(RunFolder(tmp_path), device_gib=3, **changes)
    assert [config.vocab_size for config in configs] == [words]


def test_a_run_that_would_never_reach_the_whole_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="Input should be less than 1"):
        settings_for(Path("corpus"), Path("out"), alignment_from=1)


@pytest.mark.slow
def test_a_run_whose_loss_explodes_stops_once_and_names_its_pairs(ray_here: None, corpus: Path, tmp_path: Path) -> None:
    reported: list[dict[str, Any]] = []
    settings = settings_for(
        corpus, tmp_path / "out", learning_rate=1e6, image_learning_rate=1e6, pairs=1600, warmup_pairs=8
    )
    with pytest.raises(TrainingDiverged, match=r"the loss of step \d+ is .*; its pairs are .*Checkpoints are kept"):
        train(settings, reported.append)
    done = [event["pairs"] for event in reported if "losses" in event]
    assert done == sorted(set(done))  # no step was taken twice
    assert len(list((tmp_path / "out/tensorboard").iterdir())) == 1  # and the run was not started again
    assert not (tmp_path / "out/model").exists()


def test_a_run_on_busy_machines_says_what_it_waits_for_and_gives_up(
    ray_here: None, busy: None, corpus: Path, tmp_path: Path, no_training: None
) -> None:
    events: list[dict[str, Any]] = []
    with pytest.raises(JobError, match=r"the machines are busy: 1 worker with 1 CPU had no room within 3 s"):
        train(settings_for(corpus, tmp_path / "out", wait_for_machines_s=3), events.append)
    notes = [event["note"] for event in events if "note" in event]
    assert any("for other jobs to free 1 worker with 1 CPU: 0 CPUs are free" in note for note in notes)
