import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from asap.errors import CheckpointError, ConfigError
from asap.model.asap import Asap
from asap.newsroom import generate
from asap.training.memory import ACTIVATIONS
from asap.weights.model_folder import load
from jobs.cli.app import app
from jobs.cli.display import plan_tables
from jobs.train import run as train_module
from jobs.train.plan import Plan
from jobs.train.run import plan
from jobs.train.settings import TrainSettings
from jobs.train.stages import augmentation_at, lock_step, plan_stages
from jobs.train.trainer import model_config

MODEL = {
    "image_size": 32, "width": 48, "heads": 4, "image_layers": 1, "image_mlp_width": 48, "text_layers": 1,
    "fusion_layers": 1, "text_mlp_width": 48, "embed_dim": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "corpus"
    generate(folder, pairs=40, seed=3, workers=1, splits=(0.5, 0.25, 0.25))
    return folder


pytestmark = pytest.mark.usefixtures("one_thread")


def settings_for(corpus: Path, **changes: Any) -> TrainSettings:
    few: dict[str, Any] = {
        "corpus": str(corpus), "out": "s3://bucket/run", "model": MODEL, "vocab_size": 300, "pairs": 64,
        "batch_size": 8, "words_until": 0.25, "alignment_from": 0.5, "queue_size": 32, "checkpoint_pairs": 24,
        "workers": 2, "accumulation": 2,
    }  # fmt: skip
    return TrainSettings(**(few | changes))


@pytest.fixture(scope="module")
def made(corpus: Path) -> Plan:
    return plan(settings_for(corpus))


def test_pairs_are_counted_by_split_and_class(made: Plan) -> None:
    assert {split: sum(counts.values()) for split, counts in made.pairs.items()} == {"train": 20, "val": 10, "test": 10}
    assert "orig" in made.pairs["train"]


def test_pairs_with_a_caption_and_with_an_explanation_are_counted(made: Plan) -> None:
    assert made.described == {
        split: {"caption": pairs, "explanation": pairs} for split, pairs in (("train", 20), ("val", 10), ("test", 10))
    }
    console = Console(width=100, record=True)
    console.print(plan_tables(made))
    assert ["with", "explanation", "20", "10", "10"] in [line.split() for line in console.export_text().splitlines()]


def test_steps_epochs_and_the_parts_of_a_batch(made: Plan) -> None:
    assert (made.steps, made.epochs, made.left_out_an_epoch) == (8, 4.0, 4)
    assert made.batch == {
        "pairs of a step": 8, "workers": 2, "pairs of a worker": 4, "micro batches": 2, "pairs of a micro batch": 2,
    }  # fmt: skip
    assert (made.checkpoints_written, made.checkpoints_kept) == (3, 2)


def test_stages_have_their_terms(made: Plan) -> None:
    assert [(stage.first_step, stage.last_step) for stage in made.stages] == [(0, 2), (2, 4), (4, 8)]
    assert made.stages[0].weights == {"tmg": 1.0, "mlc": 1.0}
    assert "vlc" not in made.stages[1].weights
    assert made.stages[2].weights["mpp"] == 2.0


@pytest.mark.parametrize(("words", "alignment"), [(0.0, 0.0), (0.3, 0.3), (0.1, 0.95)])
def test_every_step_has_one_stage(words: float, alignment: float) -> None:
    planned = plan_stages(settings_for(Path("c"), words_until=words, alignment_from=alignment), 8)
    steps = [step for stage in planned for step in range(stage.first_step, stage.last_step)]
    assert steps == list(range(8))


def test_words_that_end_where_alignment_joins_have_their_stage() -> None:
    words, everything = plan_stages(settings_for(Path("c"), words_until=0.5, alignment_from=0.5), 8)
    assert (words.last_step, set(words.weights)) == (4, {"tmg", "mlc"})
    assert {"vlc", "giou"} < set(everything.weights)


def test_the_image_encoder_is_locked_from_a_step_after_the_words() -> None:
    planned = plan_stages(settings_for(Path("c"), words_until=0.25, alignment_from=0.75, lock_image_from=0.5), 8)
    assert [stage.first_step for stage in planned] == [0, 2, 4, 6]
    assert [stage.image_locked for stage in planned] == [False, False, True, True]
    early = settings_for(Path("c"), words_until=0.25, alignment_from=0.75, lock_image_from=0, augmentation="flip")
    assert [stage.first_step for stage in plan_stages(early, 8) if stage.image_locked] == [2, 6]
    assert [augmentation_at(early, step, 8) for step in (0, 1, 2, 7)] == ["flip", "flip", "none", "none"]
    never = settings_for(Path("c"), augmentation="flip")
    assert lock_step(never, 8) == 8
    assert augmentation_at(never, 7, 8) == "flip"


def test_memory_follows_from_the_parameters_and_the_micro_batch(made: Plan, corpus: Path) -> None:
    parameters = sum(p.numel() for p in Asap(model_config(settings_for(corpus), 300)).parameters())
    assert sum(made.parameters.values()) == parameters
    assert made.memory["weights"] == made.memory["twin"] == 4 * parameters
    assert made.memory["queues"] == pytest.approx(4 * 4 * 8 * 32, abs=16)
    alone = plan(settings_for(corpus, accumulation=1)).memory[ACTIVATIONS]
    assert made.memory[ACTIVATIONS] < alone < 2 * made.memory[ACTIVATIONS]  # the keys of the queue are kept once
    assert plan(settings_for(corpus, checkpoint_activations=True)).memory[ACTIVATIONS] < made.memory[ACTIVATIONS]


def test_a_plan_for_a_named_gpu_is_only_estimated(corpus: Path) -> None:
    named = plan(settings_for(corpus, gpu="L4"))
    assert named.fit is not None
    assert named.fit.device.name == "L4"
    assert [speed.gpu for speed in named.speeds] == ["L4"]
    assert "only estimated: L4 at 35% of its peak (50% to 20%), an assumption" in named.hours
    assert named.cpus["workers"] == 4


def test_a_plan_measures_the_device_that_is_here(made: Plan) -> None:
    assert made.fit is not None
    assert made.fit.device.name == "CPU"
    assert "measured: 3 or more passes of 2 pairs in each stage on this machine's CPU" in made.hours
    assert made.cpus == {}


@pytest.mark.parametrize("unknown", [{"device": "cuda"}, {"address": "10.0.0.1:6379"}])
def test_a_plan_without_a_known_device_fits_nothing_and_says_so(corpus: Path, unknown: dict[str, str]) -> None:
    planned = plan(settings_for(corpus, **unknown))
    assert planned.fit is None
    assert planned.batch["micro batches"] == 2
    assert "nothing was fitted: give --set gpu=KIND" in planned.memory_note
    assert "H100" in [speed.gpu for speed in planned.speeds]


def test_a_plan_counts_the_pictures_of_the_cache(corpus: Path) -> None:
    pictures = {row["image"] for split in ("train", "val", "test")
                for row in json.loads((corpus / f"metadata/{split}.json").read_text())}  # fmt: skip
    assert plan(settings_for(corpus)).cache_bytes == len(pictures) * 3 * 32 * 32
    assert plan(settings_for(corpus, ingest="stream")).cache_bytes == 0


def test_a_plan_for_cpus_says_that_the_base_size_is_not_for_them(corpus: Path) -> None:
    hours = plan(settings_for(corpus, preset="base")).hours
    assert "The base size is not sensible on CPUs" in hours
    assert "not sensible" not in plan(settings_for(corpus)).hours


def test_tables_of_80_columns_keep_their_numbers(corpus: Path) -> None:
    console = Console(width=80, record=True)
    planned = plan(settings_for(corpus, gpu="RTX-4090", pairs=400_000_000))
    console.print(plan_tables(planned))
    text = console.export_text()
    assert planned.hours.partition(" ")[0] in text
    assert "…" not in text


def test_checkpoints_come_by_pairs_or_by_time(made: Plan, corpus: Path) -> None:
    assert made.checkpoint_every_s is None
    timed = plan(settings_for(corpus, checkpoint_pairs=None, checkpoint_every_s=60))
    assert (timed.checkpoints_written, timed.checkpoint_every_s) == (1, 60)


def test_a_plan_needs_no_ray_and_writes_nothing(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "ray_running", lambda *_: pytest.fail("a plan starts nothing"))
    options = [f"{name}={value}" for name, value in (("batch_size", 8), ("vocab_size", 300), ("preset", "tiny"))]
    out = tmp_path / "run"
    sets = [part for option in options for part in ("--set", option)]
    result = CliRunner().invoke(app, ["train", str(corpus), "--out", str(out), "--plan", *sets])
    assert result.exit_code == 0, result.output
    for word in (
        "H100",
        "bottleneck",
        "bfloat16",
        "train",
        "orig",
        "epochs",
        "pairs of a micro batch",
        "random weights",
        "activations are counted",
        "measured",
    ):
        assert word in result.output
    assert not out.exists()


def test_a_plan_reports_the_findings_in_the_corpus(corpus: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(corpus / "metadata", copied / "metadata")
    rows = json.loads((copied / "metadata/train.json").read_text())
    boxed = next(row for row in rows if row["fake_image_box"])
    boxed["fake_image_box"] = [9, 9, 3, 3]
    rows[0 if rows[0] is not boxed else 1]["image"] = "images/lost.jpg"
    (copied / "metadata/train.json").write_text(json.dumps(rows))
    named = [str(copied), "--out", str(tmp_path / "run"), "--plan", "--set", f"pictures={corpus}"]
    options = ["--set", "missing_images=0.05", "--set", "batch_size=8"]
    result = CliRunner().invoke(app, ["train", *named, *options])
    assert result.exit_code == 0, result.output
    for line in (
        "pictures missing of 1 pairs (5.00%), left out: images/lost.jpg",
        "1 boxes are no boxes; their pairs are kept without one",
        "captions: none are given; this is a run without them",
        "pictures: decoded once",
    ):
        assert line in result.output


def test_the_tables_show_the_paths_as_they_were_typed(made: Plan) -> None:
    console = Console(width=100, record=True)
    console.print(plan_tables(made))
    text = console.export_text()
    assert "s3://bucket/run" in text
    assert "4 to 8" in text
    assert "at most 2 kept" in text


def test_a_plan_reads_the_starts_and_counts_the_words_that_come_along(corpus: Path, model_folder: Path) -> None:
    theirs = load(model_folder).config
    events: list[dict[str, Any]] = []
    shape = {name: getattr(theirs, name) for name in (*MODEL, "text_mlp_width")}
    made = plan(settings_for(corpus, model=shape, init=(str(model_folder),), recipe="asap"), events.append)
    assert [event["start"] for event in events if "start" in event] == [str(model_folder)]
    assert "taken" in next(event["report"] for event in events if "report" in event)
    assert theirs.vocab_size != 300
    expected = sum(parameter.numel() for parameter in Asap(theirs).parameters())
    assert sum(made.parameters.values()) == expected


def test_a_start_that_does_not_fit_is_refused_by_the_plan(corpus: Path, model_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing was loaded"):
        plan(settings_for(corpus, init=(str(model_folder),)))


def test_a_plan_says_which_defaults_follow_and_counts_epochs(corpus: Path) -> None:
    events: list[dict[str, Any]] = []
    few = {"preset": "published", "model": MODEL, "batch_size": 8, "queue_size": 32, "vocab_size": 300}
    made = plan(TrainSettings(corpus=str(corpus), out="run", **few), events.append)
    assert (made.steps, made.epochs, made.checkpoints_written) == (100, 50, 50)
    assert [(stage.first_step, stage.last_step) for stage in made.stages] == [(0, 100)]
    (note,) = [event["note"] for event in events if "note" in event]
    assert note.endswith("those of the published training, but for model, batch_size, queue_size")


def test_too_few_pairs_for_a_batch_are_refused(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="20 training pairs do not fill one batch of 32"):
        plan(settings_for(corpus, batch_size=32))


def test_kept_tokens_take_memory_if_they_fit(made: Plan, corpus: Path) -> None:
    assert "kept image tokens" not in made.memory
    locked = plan(settings_for(corpus, lock_image_from=0.5))
    assert locked.memory["kept image tokens"] == 2 * 20 * 5 * 48
    assert [stage.image_locked for stage in locked.stages] == [False, False, True]
    assert "kept image tokens" not in plan(settings_for(corpus, lock_image_from=0.5, tokens_gib=0)).memory
