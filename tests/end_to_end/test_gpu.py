"""Tests that need a GPU; they are skipped without one. The rest of the suite runs on the CPU alone."""

import json
import math
from itertools import islice
from pathlib import Path

import pytest
import torch

from asap.finding import Pair
from asap.predictor import Predictor
from asap.preprocessing.text import load_tokenizer, train_tokenizer
from asap.training.step import TrainingStep
from jobs.cluster import ray_running
from jobs.evaluate.run import evaluate
from jobs.evaluate.settings import EvaluateSettings
from jobs.train.data.feed import CacheFeed, Order
from jobs.train.data.prefetch import Prefetched
from jobs.train.data.splits import Split, prepare_splits, read_splits
from jobs.train.run import train
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings
from jobs.train.trainer import Trainer, model_config
from tests.support.small_run import draw_corpus, settings_for
from tests.support.tiny import draw_batch, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_corpus(tmp_path_factory)


def test_a_step_gives_the_losses_and_gradients_of_a_cpu() -> None:
    def take_step(device: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        step = TrainingStep(tiny_model(), queue_size=12).to(device)
        torch.manual_seed(3)  # so that both steps have the same queues
        for name in ("image", "text", "caption", "explanation"):
            queue = getattr(step.queues, name)
            queue.copy_(torch.nn.functional.normalize(torch.randn(queue.shape), dim=0))
        terms = step(draw_batch().to(device), 0.4)
        terms["total"].backward()
        gradients = {name: p.grad.cpu() for name, p in step.student.named_parameters() if p.grad is not None}
        return {name: term.item() for name, term in terms.items()}, gradients

    torch.backends.cudnn.allow_tf32 = False
    terms, gradients = take_step("cpu")
    gpu_terms, gpu_gradients = take_step("cuda")
    assert gpu_terms == pytest.approx(terms, abs=1e-3, rel=1e-4)
    torch.testing.assert_close(gpu_gradients, gradients, atol=1e-3, rtol=1e-2)


def test_batches_made_ahead_are_pinned_and_reach_the_gpu_unchanged(corpus: Path, tmp_path: Path) -> None:
    settings = settings_for(corpus, tmp_path, augmentation="published")
    split = training_split(settings)
    order, gpu = Order.of(settings, len(split.pairs)), torch.device("cuda", 0)
    feed = CacheFeed(split.pairs, split.config, settings, order)
    prefetched = Prefetched(feed, order.total_steps, gpu)
    for step in range(order.total_steps):
        expected, batch = feed.batch(step), prefetched.batch(step)
        assert batch.images.is_pinned()
        moved = batch.to(gpu, non_blocking=True)
        torch.testing.assert_close(vars(moved.to("cpu")), vars(expected), rtol=0, atol=0)
        torch.testing.assert_close(moved.normalized().images.cpu(), expected.normalized().images)


def test_a_killed_run_resumes_its_random_numbers(corpus: Path, tmp_path: Path) -> None:
    """The run has dropout, and a locked image encoder at its end."""
    settings = settings_for(
        corpus, tmp_path, lock_image_from=0.75, model={"dropout": 0.2}, precision="float32", compile="off"
    )
    split = training_split(settings)
    whole = Trainer(settings, split, device="cuda")
    losses = run(whole, 8)
    assert all(map(math.isfinite, losses))

    killed = Trainer(settings, split, device="cuda")
    assert run(killed, 4) == pytest.approx(losses[:4], rel=2e-3)
    random_state = torch.cuda.get_rng_state()
    (tmp_path / "checkpoint").mkdir()
    killed.save(tmp_path / "checkpoint")
    torch.manual_seed(99)
    resumed = Trainer(settings, split, device="cuda")
    resumed.restore(tmp_path / "checkpoint")
    assert torch.equal(torch.cuda.get_rng_state(), random_state)
    assert run(resumed, 4) == pytest.approx(losses[4:], rel=2e-3)


def training_split(settings: TrainSettings) -> Split:
    """Prepare the run folder as the driver does, and open the training split."""
    folder = RunFolder(Path(settings.out))
    corpora = read_splits(settings, "dgm4")
    train_tokenizer([record.text for record in corpora["train"].records], 300).save_pretrained(folder.tokenizer)
    config = model_config(settings, len(load_tokenizer(folder.tokenizer)))
    prepare_splits(folder, settings, corpora, config, lambda event: None)
    return Split.open(settings, folder, "train", config)


def run(trainer: Trainer, steps: int) -> list[float]:
    """Take so many steps and return their total losses."""
    trainer.read_every_s = 0.0
    return [terms["total"] for losses in islice(trainer.steps(), steps) for terms in losses]


def test_the_demo_model_has_the_findings_of_a_cpu(corpus: Path) -> None:
    records = json.loads((corpus / "metadata/test.json").read_text())
    pairs = [Pair(corpus / record["image"], record["text"]) for record in records]
    on_cpu, on_gpu, in_half = (
        Predictor.from_folder("demo", *execution).predict(pairs)
        for execution in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16"))
    )
    for expected, found, rounded in zip(on_cpu, on_gpu, in_half, strict=True):
        assert found.score == pytest.approx(expected.score, abs=0.005)
        assert rounded.score == pytest.approx(expected.score, abs=0.1)
        assert found.verdict == expected.verdict


def test_ray_train_and_evaluate_use_the_gpu(corpus: Path, tmp_path: Path) -> None:
    settings = settings_for(corpus, tmp_path / "run", device="cuda", model={})
    with ray_running(num_cpus=4, num_gpus=1):
        model = train(settings)
        out = str(tmp_path / "evaluation")
        report = evaluate(EvaluateSettings(model=str(model), corpus=str(corpus), out=out, device="cuda"))
    assert json.loads((tmp_path / "run/run.json").read_text())["starts"][0]["cluster"]["gpus"] == 1
    assert 0 <= report["AUC"] <= 1
