import pytest
from torch.utils.flop_counter import FlopCounterMode

from asap.model.asap import Asap
from asap.training.memory import longest_batch
from asap.training.step import TrainingStep
from jobs.train.settings import TrainSettings
from jobs.train.speed import LEAST_MFU, MFU, MOST_MFU, PEAK_TFLOPS, flops_of_pair, gpu_speeds
from jobs.train.trainer import model_config

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"image_size": 64, "image_layers": 2, "text_layers": 2, "fusion_layers": 2, "width": 96}


@pytest.mark.parametrize("recipe", ["hammer", "asap"])
def test_the_products_of_a_pair_are_those_of_a_real_step(recipe: str) -> None:
    settings = TrainSettings(corpus="c", out="o", recipe=recipe, model=SMALL)
    config = model_config(settings, 300)
    step = TrainingStep(Asap(config), weights=settings.objective.weights, queue_size=64)
    batch = longest_batch(config, 2, min(64, config.max_tokens))
    with FlopCounterMode(display=False) as counter:
        step.train()(batch, 0.4)["total"].backward()
    counted = counter.get_total_flops() / len(batch.images)
    assert flops_of_pair(settings, config) == pytest.approx(counted, rel=0.1)


def test_the_slowest_part_is_the_bottleneck() -> None:
    peak = PEAK_TFLOPS["bfloat16"]["H100"] * 1e12
    by_gpu = {speed.gpu: speed for speed in gpu_speeds(MFU * peak / 1000, "stream", None)}
    assert by_gpu["H100"].pairs_per_s == pytest.approx(1000)
    assert by_gpu["H100"].mfu == pytest.approx(MFU)
    assert by_gpu["H100"].decoding_cores == pytest.approx(12.0)
    assert "the GPU at 35%" in by_gpu["H100"].bottleneck
    assert by_gpu["H100"].least_pairs_per_s == pytest.approx(1000 * LEAST_MFU / MFU)
    assert by_gpu["H100"].most_pairs_per_s == pytest.approx(1000 * MOST_MFU / MFU)
    assert by_gpu["A100"].pairs_per_s == pytest.approx(1000 * 312 / 989)

    exact = gpu_speeds(MFU * peak / 1000, "stream", None, "float32")[1]
    assert exact.pairs_per_s == pytest.approx(1000 * 67 / 989)

    decoding = gpu_speeds(MFU * peak / 1000, "stream", 2)[0]
    assert decoding.bottleneck == "decoding in decode_tasks=2"
    assert decoding.pairs_per_s == pytest.approx(2000 / 12.0)
    assert decoding.mfu < MFU
    small = gpu_speeds(1e9, "cache", None)[0]
    assert small.bottleneck == "batches made by one core of the worker"
    assert small.decoding_cores == 0
