import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from PIL import Image
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from asap.corpus.reader import read_corpus
from asap.errors import AsapError, ConfigError
from asap.model.asap import Asap
from asap.preprocessing.text import train_tokenizer
from asap.training.dataset import epoch_order
from asap.weights.start import Start
from jobs.errors import TrainingDiverged
from jobs.train.data.feed import Order
from jobs.train.data.splits import Split, prepare_splits
from jobs.train.data.stream import Decoding, StreamFeed
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings
from jobs.train.trainer import Trainer, model_config

MODEL: dict[str, Any] = {
    "image_size": 32, "width": 48, "heads": 4, "image_layers": 1, "image_mlp_width": 48, "text_layers": 1,
    "fusion_layers": 1, "text_mlp_width": 48, "embed_dim": 8, "dropout": 0.2,
}  # fmt: skip
CLASSES = ("orig", "face_swap", "text_swap", "face_attribute&text_attribute", "orig")
PAIRS = 10


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run folder beside a corpus of ten pairs."""
    corpus = tmp_path_factory.mktemp("run") / "corpus"
    (corpus / "metadata").mkdir(parents=True)
    rows = []
    for number in range(PAIRS):
        noise = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(corpus / f"{number}.png")
        name = CLASSES[number % len(CLASSES)]
        rows.append({
            "id": number, "image": f"{number}.png", "text": f"the {'calm' if number % 2 else 'angry'} man {number}",
            "fake_cls": name, "fake_image_box": [5, 5, 25, 30] if "face" in name else [],
            "fake_text_pos": [1] if "text" in name else [],
        })  # fmt: skip
    (corpus / "metadata/train.json").write_text(json.dumps(rows))
    folder = RunFolder(corpus.parent / "out")
    train_tokenizer([row["text"] for row in rows], 200).save_pretrained(folder.tokenizer)
    return folder


@pytest.fixture(scope="module")
def settings(folder: RunFolder) -> TrainSettings:
    return TrainSettings(
        corpus=str(folder.path.parent / "corpus"), out=str(folder.path), model=MODEL, pairs=24, batch_size=4,
        warmup_pairs=8, alpha_ramp_pairs=12, queue_size=16, momentum=0.9, augmentation="published",
        words_until=0, alignment_from=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def split(folder: RunFolder, settings: TrainSettings) -> Split:
    config = model_config(settings, vocabulary(folder))
    prepare_splits(folder, settings, {"train": read_corpus(settings.corpus, "train")}, config, lambda event: None)
    return Split.open(settings, folder, "train", config)


def vocabulary(folder: RunFolder) -> int:
    return len(json.loads((folder.tokenizer / "tokenizer.json").read_text())["model"]["vocab"])


def changed(settings: TrainSettings, **changes: Any) -> TrainSettings:
    return settings.model_copy(update=changes)


def run(fit: Trainer, steps: int | None = None) -> list[dict[str, float]]:
    """So many steps, or all; without the time that each took."""
    seen = []
    for terms in fit.steps():
        seen.append({name: value for name, value in terms.items() if name != "seconds"})
        if len(seen) == steps:
            break
    return seen


def test_a_run_takes_its_steps_and_learns(settings: TrainSettings, split: Split) -> None:
    fit = Trainer(settings, split)
    before = {name: value.clone() for name, value in fit.module.student.state_dict().items()}
    terms = run(fit)
    assert (len(terms), fit.done, fit.pairs_done) == (6, 6, 24)
    assert all(math.isfinite(value) for step in terms for value in step.values())
    assert not torch.equal(fit.module.student.patch_head.weight, before["patch_head.weight"])
    assert run(fit) == []


def test_a_run_that_was_killed_ends_where_an_uninterrupted_one_does(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    whole = Trainer(settings, split)
    terms = run(whole)

    killed = Trainer(settings, split)
    assert run(killed, 3) == terms[:3]
    killed.save(tmp_path)
    torch.manual_seed(99)  # another process knows nothing of this one's generator
    resumed = Trainer(settings, split)
    resumed.restore(tmp_path)

    assert resumed.done == 3
    assert run(resumed) == terms[3:]
    torch.testing.assert_close(resumed.module.state_dict(), whole.module.state_dict(), rtol=0, atol=0)
    assert resumed.schedule.get_last_lr() == whole.schedule.get_last_lr()


def test_a_streamed_run_that_was_killed_ends_where_a_cached_one_does(
    ray_here: None, settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    order, decoding = Order.of(settings, len(split.pairs)), Decoding(1, 0.5)
    first, second = (StreamFeed(split.pairs, split.config, settings, order, decoding) for _ in range(2))
    whole = Trainer(settings, split)
    terms = run(whole)
    killed = Trainer(settings, split, feed=first)
    assert run(killed, 3) == terms[:3]
    killed.save(tmp_path)
    first.close()
    resumed = Trainer(settings, split, feed=second)
    resumed.restore(tmp_path)

    assert run(resumed) == terms[3:]
    torch.testing.assert_close(resumed.module.state_dict(), whole.module.state_dict(), rtol=0, atol=0)


def test_the_second_worker_goes_on_with_its_own_stream(settings: TrainSettings, split: Split, tmp_path: Path) -> None:
    second = Trainer(settings, split, rank=1, world=2)
    own = torch.get_rng_state()
    second.save(tmp_path, {"rng": torch.stack([torch.zeros_like(own), own])})
    torch.manual_seed(99)
    Trainer(settings, split, rank=1, world=2).restore(tmp_path)
    assert torch.equal(torch.get_rng_state(), own)


def test_dropout_is_on_and_follows_the_seed(settings: TrainSettings, split: Split) -> None:
    one, again, other = (run(Trainer(changed(settings, seed=seed), split), 1) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    calm = dataclasses.replace(split, config=dataclasses.replace(split.config, dropout=0.0))
    assert run(Trainer(settings, calm), 1) != one


def test_a_checkpoint_is_read_as_plain_tensors_and_holds_the_twin(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    fit = Trainer(settings, split)
    run(fit, 2)
    fit.save(tmp_path)
    torch.testing.assert_close(Trainer.twin_weights(tmp_path), fit.module.twin.model.state_dict(), rtol=0, atol=0)
    assert not torch.equal(Trainer.twin_weights(tmp_path)["patch_head.weight"], fit.module.student.patch_head.weight)


def test_every_epoch_shows_each_pair_at_most_once_whatever_the_number_of_workers(
    settings: TrainSettings, split: Split
) -> None:
    alone = Trainer(settings, split)
    workers = [Trainer(settings, split, rank=rank, world=2) for rank in range(2)]
    seen: dict[int, list[int]] = {}
    for step in range(6):
        for fit in (alone, *workers):
            fit.done = step
        numbers, epoch = alone._numbers()
        parts = [worker._numbers() for worker in workers]
        assert [number for part, _ in parts for number in part] == numbers
        assert {number for _, number in parts} == {epoch}
        seen.setdefault(epoch, []).extend(numbers)
    assert sorted(seen) == [0, 1, 2]
    assert all(len(set(numbers)) == len(numbers) == 8 for numbers in seen.values())
    assert seen[0] != seen[1]


def test_workers_start_alike_and_draw_their_own_dropout(settings: TrainSettings, split: Split) -> None:
    def drawn(rank: int) -> tuple[dict[str, torch.Tensor], float]:
        fit = Trainer(settings, split, rank=rank, world=2)
        return fit.module.state_dict(), torch.rand(()).item()

    (first, one), (second, other) = drawn(0), drawn(1)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert one != other


def test_a_run_goes_on_with_fewer_workers_and_ends_with_every_pair_of_the_epoch_once(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    settings = changed(settings, workers=2, pairs=8)  # two steps, an epoch
    two = Trainer(settings, split, rank=0, world=2)
    other = Trainer(settings, split, rank=1, world=2)
    seen = [*two._numbers()[0], *other._numbers()[0]]
    two.done = 1
    two.save(tmp_path)
    alone = Trainer(settings, split)
    alone.restore(tmp_path)
    seen += alone._numbers()[0]
    assert len(seen) == len(set(seen)) == 8
    assert sorted(seen) == sorted(epoch_order(PAIRS, settings.seed, 0)[:8].tolist())
    assert len(run(alone)) == 1
    torch.testing.assert_close(alone.module.queues.pointer, torch.tensor(4))


def test_another_number_of_workers_draws_streams_of_its_own(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    settings = changed(settings, workers=2)
    one = Trainer(settings, split, rank=0, world=2)
    state = torch.get_rng_state()
    one.save(tmp_path, {"rng": torch.stack([state, torch.flip(state, [0])])})

    def drawn(rank: int, world: int) -> float:
        fit = Trainer(settings, split, rank=rank, world=world)
        fit.restore(tmp_path)
        return torch.rand(()).item()

    torch.set_rng_state(state)
    assert drawn(0, 2) == torch.rand((), generator=_generator(state)).item()
    assert drawn(0, 1) == drawn(0, 1)
    assert len({drawn(0, 1), drawn(0, 2), drawn(0, 3), drawn(1, 3)}) == 4


def _generator(state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator


def test_a_run_begins_from_a_warm_start(settings: TrainSettings, split: Split, tmp_path: Path) -> None:
    weight = torch.full((96,), 7.0)
    Start({"box_head.0.bias": weight}).save(tmp_path / "weights.safetensors")
    fit, plain = Trainer(settings, split), Trainer(settings, split)
    fit.begin_from(tmp_path / "weights.safetensors")
    for model in (fit.module.student, fit.module.twin.model):
        torch.testing.assert_close(model.box_head[0].bias.detach(), weight)
        torch.testing.assert_close(model.patch_head.weight.detach(), plain.module.student.patch_head.weight.detach())


def gradients(fit: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in fit.module.student.named_parameters() if p.grad is not None}


def test_a_step_in_micro_batches_has_the_gradients_of_one_batch(settings: TrainSettings, split: Split) -> None:
    calm = dataclasses.replace(split, config=dataclasses.replace(split.config, dropout=0.0, patch_embedding="linear"))
    weights = {"vlc": 0.0, "mlm": 0.0}  # each micro batch draws what it hides
    whole, parts = (Trainer(changed(settings, accumulation=count, loss_weights=weights), calm) for count in (1, 2))
    terms, again = run(whole, 1)[0], run(parts, 1)[0]
    assert again == pytest.approx(terms, abs=1e-5)
    torch.testing.assert_close(gradients(parts), gradients(whole), atol=1e-5, rtol=0)


def test_fewer_workers_compute_more_micro_batches_of_the_same_size(settings: TrainSettings) -> None:
    given = TrainSettings(**settings.model_dump() | {"batch_size": 48, "workers": 4, "accumulation": 2})
    assert [given.micro_batches(world) for world in (4, 3, 2, 1)] == [2, 4, 4, 8]


def test_what_is_how_and_not_what_may_change_between_starts(settings: TrainSettings) -> None:
    how = changed(settings, workers=2, min_workers=1, checkpoint_activations=True, compile="on", export="last")
    assert how.identity() == settings.identity()
    for what in ({"accumulation": 2}, {"init": ("demo",)}, {"tokenizer": "train"}):
        assert changed(settings, **what).identity() != settings.identity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 32, "workers": 4, "min_workers": 2}, "divide among 3 workers, which 2 to 4 may come to"),
        ({"batch_size": 4, "workers": 3}, "batch_size 4 does not divide among 3 workers"),
        ({"batch_size": 4, "workers": 1, "min_workers": 2}, "min_workers 2 is more than workers 1"),
        ({"batch_size": 4, "accumulation": 3}, "4 pairs of a step do not divide into 3 micro batches"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(
    settings: TrainSettings, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**settings.model_dump() | changes)


def test_words_are_trained_alone_before_anything_else(settings: TrainSettings, split: Split) -> None:
    fit = Trainer(changed(settings, words_until=0.5, alignment_from=0.5, pairs=32), split)
    before = {name: value.clone() for name, value in fit.module.student.state_dict().items()}
    assert [set(step) for step in run(fit, 4)] == [{"tmg", "mlc", "total"}] * 4
    moved = {name for name, value in fit.module.student.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in moved} == {"text_encoder", "fusion_encoder", "token_head", "type_head"}
    assert not any(name.startswith("type_head.image") for name in moved)
    assert not any("crossattention" in name for name in moved)
    assert "vlc" in run(fit, 1)[0]


def test_words_come_before_alignment(settings: TrainSettings) -> None:
    given = settings.model_dump() | {"words_until": 0.5, "alignment_from": 0.4}
    with pytest.raises(ValueError, match="comes before words_until 0"):
        TrainSettings(**given)


def test_labels_are_trained_on_first_then_everything_and_alpha_rises(settings: TrainSettings, split: Split) -> None:
    fit = Trainer(changed(settings, alignment_from=0.25, pairs=32), split)
    alphas, terms = [], []
    for _ in range(8):
        alphas.append(fit._alpha())
        terms += run(fit, 1)
    assert alphas == pytest.approx([0, 0, 0, 0.4 / 3, 0.8 / 3, 0.4, 0.4, 0.4])
    labelled = {"bic", "mlc", "tmg", "mgca", "bbox_l1", "giou", "mpp", "cwp", "mlm", "total"}
    assert all(set(step) == labelled for step in terms[:2])
    assert all({"vlc", "bic", "tmg", "ied", "mpp"} < set(step) for step in terms[2:])


def test_a_run_killed_before_everything_is_trained_goes_on_to_the_rest(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    settings = changed(settings, alignment_from=0.5)
    killed, resumed = (Trainer(settings, split) for _ in range(2))
    terms = run(killed, 2)
    killed.save(tmp_path)
    resumed.restore(tmp_path)
    terms += run(resumed)
    whole = Trainer(settings, split)
    assert run(whole) == terms
    torch.testing.assert_close(resumed.module.state_dict(), whole.module.state_dict(), rtol=0, atol=0)


def test_in_bfloat16_layers_compute_and_float32_keeps(settings: TrainSettings, split: Split) -> None:
    calm = dataclasses.replace(split, config=dataclasses.replace(split.config, dropout=0.0))
    half = Trainer(changed(settings, precision="bfloat16"), calm)
    types = set()
    half.module.student.text_encoder.layers[0].attention.self.query.register_forward_hook(
        lambda module, inputs, output: types.add(output.dtype)
    )
    one = run(half, 1)[0]
    other = run(Trainer(changed(settings, precision="float32"), calm), 1)[0]
    assert types == {torch.bfloat16}
    assert {parameter.dtype for parameter in half.module.student.parameters()} == {torch.float32}
    assert one == pytest.approx(other, rel=0.02)
    assert one != other
    assert not Trainer(settings, split).in_bfloat16  # on a CPU it is slower


def test_a_loss_that_explodes_stops_the_run_before_it_harms_the_weights(settings: TrainSettings, split: Split) -> None:
    fit = Trainer(changed(settings, pairs=1000), split)
    run(fit, 100)
    before = {name: value.clone() for name, value in fit.module.student.named_parameters()}
    with torch.no_grad():
        fit.module.student.type_head.text.weight.mul_(-1e6)  # surely wrong
        before["type_head.text.weight"] *= -1e6
    with pytest.raises(TrainingDiverged, match=r"the loss of step 100 is [\d.e+]+ after a mean of \d") as caught:
        run(fit)
    assert "lower learning_rate" in str(caught.value)
    torch.testing.assert_close(dict(fit.module.student.named_parameters()), before, rtol=0, atol=0)


def test_terms_that_join_are_no_explosion(settings: TrainSettings, split: Split) -> None:
    fit = Trainer(changed(settings, pairs=16, words_until=0.5, alignment_from=0.5), split)
    words = run(fit, 2)
    fit._losses.extend([0.01] * 100)  # of words that are nearly learned
    everything = run(fit)
    assert [len(terms) for terms in (*words, *everything)] == [3, 3, 12, 12]


def test_a_loss_that_is_no_number_names_the_step_and_its_pairs(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    fit = Trainer(settings, split)
    run(fit, 2)
    fit.save(tmp_path)
    numbers, _ = fit._numbers()
    with torch.no_grad():
        fit.module.student.box_head[0].weight[0, 0] = math.nan
    ids = [split.pairs.records[number].id for number in numbers]

    with pytest.raises(TrainingDiverged, match="the loss of step 2 is not finite") as caught:
        run(fit)

    assert f"its pairs are {ids}" in str(caught.value)
    assert "giou nan" in str(caught.value)
    assert fit.done == 2
    resumed = Trainer(settings, split)
    resumed.restore(tmp_path)
    assert all(value.isfinite().all() for value in resumed.module.state_dict().values())


def make_gradients_nan(fit: Trainer) -> None:
    """Of one weight, from now on; losses stay what they are."""
    fit.module.student.box_head[0].weight.register_hook(lambda gradient: gradient * math.nan)


def test_gradients_that_are_no_numbers_stop_the_run_before_they_reach_the_weights(
    settings: TrainSettings, split: Split
) -> None:
    fit = Trainer(settings, split)
    run(fit, 2)
    before = {name: value.clone() for name, value in fit.module.student.named_parameters()}
    ids = [split.pairs.records[number].id for number in fit._numbers()[0]]
    make_gradients_nan(fit)

    with pytest.raises(TrainingDiverged, match=r"the gradients of step 2 are not finite \(bic \d.*total \d") as caught:
        run(fit)

    assert f"its pairs are {ids}" in str(caught.value)
    torch.testing.assert_close(dict(fit.module.student.named_parameters()), before, rtol=0, atol=0)


def seen_by_the_optimiser(settings: TrainSettings, split: Split) -> dict[str, torch.Tensor]:
    """The gradients of the first step, as the optimiser takes them."""
    fit, seen = Trainer(settings, split), {}

    def look(*_: Any) -> None:
        seen.update({name: p.grad.clone() for name, p in fit.module.named_parameters() if p.grad is not None})

    fit.optimiser.register_step_pre_hook(look)
    run(fit, 1)
    return seen


def test_gradients_are_cut_to_the_norm_that_is_set_and_keep_their_direction(
    settings: TrainSettings, split: Split
) -> None:
    whole, cut = (seen_by_the_optimiser(changed(settings, gradient_norm=norm), split) for norm in (1e9, 1e-3))

    def norm(of: dict[str, torch.Tensor]) -> float:
        return math.sqrt(sum(gradient.square().sum().item() for gradient in of.values()))

    assert norm(whole) > 1
    assert norm(cut) == pytest.approx(1e-3, rel=1e-3)
    shorter = {name: gradient * (norm(cut) / norm(whole)) for name, gradient in whole.items()}
    torch.testing.assert_close(cut, shorter, atol=1e-9, rtol=1e-4)


def test_a_split_smaller_than_a_batch_is_refused(settings: TrainSettings, split: Split) -> None:
    with pytest.raises(AsapError, match="10 training pairs do not fill one batch of 12"):
        Trainer(changed(settings, batch_size=12), split)


def test_a_run_of_less_than_a_batch_takes_one_step(settings: TrainSettings, split: Split) -> None:
    assert len(run(Trainer(changed(settings, pairs=1), split))) == 1


def test_a_split_may_be_cut_short(folder: RunFolder, settings: TrainSettings, split: Split) -> None:
    short = Split.open(settings, folder, "train", split.config, limit=3)
    assert [record.id for record in short.pairs.records] == ["0", "1", "2"]
    assert len(split.pairs) == PAIRS


def test_the_model_is_the_preset_with_the_settings_changes(settings: TrainSettings) -> None:
    config = model_config(settings, 77)
    assert (config.width, config.vocab_size, config.patch_embedding) == (48, 77, "conv")
    assert model_config(changed(settings, model={"vocab_size": 99}), 77).vocab_size == 99
    with pytest.raises(ConfigError, match="width 50 is not a multiple of heads"):
        model_config(changed(settings, model={"width": 50}), 77)


def test_a_locked_run_that_was_killed_ends_where_an_uninterrupted_one_does(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    settings = changed(settings, lock_image_from=0.5, pairs=48)
    whole = Trainer(settings, split)
    terms = run(whole, 6)
    locked = {name: value.clone() for name, value in whole.module.twin.model.image_encoder.state_dict().items()}
    head = whole.module.student.box_head[0].weight.clone()
    terms += run(whole)
    torch.testing.assert_close(whole.module.student.image_encoder.state_dict(), locked, rtol=0, atol=0)
    assert not torch.equal(whole.module.student.box_head[0].weight, head)

    for stopped_at in (6, 9):
        killed = Trainer(settings, split)
        run(killed, stopped_at)
        killed.save(tmp_path)
        resumed = Trainer(settings, split)
        resumed.restore(tmp_path)
        assert run(resumed) == terms[stopped_at:]
        torch.testing.assert_close(resumed.module.state_dict(), whole.module.state_dict(), rtol=0, atol=0)


def test_memory_for_tokens_decides_how_long_a_locked_step_takes_and_not_what_it_learns(
    settings: TrainSettings, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = Asap.encode_image

    def counted(model: Asap, images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        return encode(model, images)

    monkeypatch.setattr(Asap, "encode_image", counted)
    settings = changed(settings, lock_image_from=0, pairs=80)
    terms = run(Trainer(changed(settings, tokens_gib=1), split))
    few = len(encoded)
    assert run(Trainer(changed(settings, tokens_gib=0), split)) == terms
    assert few < len(encoded) - few == 20


@contextmanager
def together(rank: int, settings: TrainSettings, place: Path) -> Iterator[Callable[[Path | None], Trainer]]:
    """Join the other of two workers over gloo; gives what makes this worker's part of a run, from a checkpoint."""
    torch.set_num_threads(1)
    folder = RunFolder(Path(settings.out))
    split = Split.open(settings, folder, "train", model_config(settings, vocabulary(folder)))
    dist.init_process_group("gloo", init_method=f"file://{place}/rendezvous", rank=rank, world_size=2)

    def begin(checkpoint: Path | None) -> Trainer:
        fit = Trainer(settings, split, rank=rank, world=2)
        if checkpoint:
            fit.restore(checkpoint)
        fit.distribute(DistributedDataParallel(fit.module, broadcast_buffers=False, find_unused_parameters=True))
        return fit

    try:
        yield begin
    finally:  # where one fails, the other must not wait for it
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    """Two, for workers that train together; each takes seconds to start."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield pool


def of_two_workers(
    processes: Executor, work: Callable[[int, TrainSettings, Path], None], settings: TrainSettings, place: Path
) -> list[dict[str, Any]]:
    """What two workers leave after `work`, by rank."""
    ends = [processes.submit(work, rank, changed(settings, workers=2), place) for rank in range(2)]
    for end in ends:
        end.result()
    return [torch.load(place / f"{rank}.pt", weights_only=True) for rank in range(2)]  # noqa: TID251  # our own file


def train_together(rank: int, settings: TrainSettings, place: Path) -> None:
    """Keeps the gradients of the first step, how often gradients were averaged, and the state at the end."""
    averaged: list[int] = []

    def count(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        averaged.append(bucket.index())
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]  # None is the whole world

    with together(rank, settings, place) as begin:
        fit = begin(None)
        fit.step_module.register_comm_hook(None, count)  # type: ignore[operator]  # of DistributedDataParallel
        run(fit, 1)
        first = {name: value.clone() for name, value in gradients(fit).items()}
        run(fit)
        torch.save({"first": first, "averaged": averaged, "module": fit.module.state_dict()}, place / f"{rank}.pt")


@pytest.mark.parametrize("embedding", ["linear", "conv"])
def test_two_workers_with_micro_batches_average_once_a_step_and_stay_alike(
    processes: Executor, settings: TrainSettings, split: Split, folder: RunFolder, tmp_path: Path, embedding: str
) -> None:
    calm = MODEL | {"dropout": 0.0, "patch_embedding": embedding}
    settings = changed(settings, model=calm, loss_weights={"vlc": 0.0, "mlm": 0.0}, lock_image_from=0.5)
    alone = Trainer(settings, dataclasses.replace(split, config=model_config(settings, vocabulary(folder))))
    run(alone, 1)

    two = of_two_workers(processes, train_together, changed(settings, accumulation=2), tmp_path)

    for worker in two:
        if embedding == "linear":  # the convolutional one normalises over what it sees together
            torch.testing.assert_close(worker["first"], gradients(alone), atol=1e-5, rtol=0)
        assert worker["averaged"].count(0) == alone.total_steps == 6
    torch.testing.assert_close(two[0]["module"], two[1]["module"], rtol=0, atol=0)


@pytest.mark.slow
def test_two_workers_with_compiled_encoders_have_the_gradients_of_such_without(
    processes: Executor, settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    calm = changed(settings, model=MODEL | {"dropout": 0.0}, accumulation=2)
    runs = {}
    for compile in ("off", "on"):
        (place := tmp_path / compile).mkdir()
        runs[compile] = of_two_workers(processes, train_together, changed(calm, compile=compile), place)
    one, other = runs["on"]
    torch.testing.assert_close(one["module"], other["module"], rtol=0, atol=0)
    torch.testing.assert_close(one["first"], runs["off"][0]["first"], atol=1e-4, rtol=1e-3)


def stop_and_go_on_together(rank: int, settings: TrainSettings, place: Path) -> None:
    """Keeps the state of a run at its end, and that of one from the checkpoint which the first worker saved."""
    with together(rank, settings, place) as begin:
        whole = begin(None)
        run(whole, 2)
        random_states = whole.random_states()
        if rank == 0:
            whole.save(place, random_states)
        run(whole)
        resumed = begin(place)
        run(resumed)
        torch.save({"whole": whole.module.state_dict(), "resumed": resumed.module.state_dict()}, place / f"{rank}.pt")


def test_two_workers_that_were_killed_end_where_uninterrupted_ones_do(
    processes: Executor, settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    two = of_two_workers(processes, stop_and_go_on_together, settings, tmp_path)

    assert any(name.endswith("running_var") for name in two[0]["whole"])
    for worker in two:
        torch.testing.assert_close(worker["resumed"], worker["whole"], rtol=0, atol=0)
        torch.testing.assert_close(worker["whole"], two[0]["whole"], rtol=0, atol=0)


def diverge_together(rank: int, settings: TrainSettings, place: Path) -> None:
    """Keeps how the run ends where the gradients of the second worker are no numbers."""
    with together(rank, settings, place) as begin:
        fit = begin(None)
        if rank == 1:
            make_gradients_nan(fit)
        with pytest.raises(TrainingDiverged) as caught:
            run(fit)
        torch.save({"message": str(caught.value)}, place / f"{rank}.pt")


def test_every_worker_stops_where_the_gradients_of_one_are_no_numbers_and_tells_the_whole_steps_pairs(
    processes: Executor, settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    ids = [split.pairs.records[number].id for number in Trainer(settings, split)._numbers()[0]]
    for worker in of_two_workers(processes, diverge_together, settings, tmp_path):
        assert worker["message"].startswith("the gradients of step 0 are not finite")
        assert f"its pairs are {ids}" in worker["message"]
