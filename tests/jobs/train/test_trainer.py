"""A trainer on one worker, in this process."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from asap.errors import ConfigError
from asap.model.asap import Asap
from asap.training.dataset import epoch_order
from asap.weights.start import Start
from jobs.errors import TrainingDiverged
from jobs.train import trainer as trainer_module
from jobs.train.data.feed import Order
from jobs.train.data.splits import Split
from jobs.train.data.stream import Decoding, StreamFeed
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings
from jobs.train.trainer import Trainer, model_config, read_state, read_weights
from tests.support.ten_pairs import (
    PAIRS,
    changed,
    gradients,
    make_gradients_nan,
    make_run_folder,
    prepare_split,
    run,
    settings_in,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run_folder(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def settings(folder: RunFolder) -> TrainSettings:
    return settings_in(folder)


@pytest.fixture(scope="module")
def split(folder: RunFolder, settings: TrainSettings) -> Split:
    return prepare_split(folder, settings)


def test_a_run_takes_its_steps_and_learns(settings: TrainSettings, split: Split) -> None:
    trainer = Trainer(settings, split)
    before = {name: value.clone() for name, value in trainer.module.student.state_dict().items()}
    terms = run(trainer)
    assert (len(terms), trainer.done, trainer.pairs_done) == (6, 6, 24)
    assert all(math.isfinite(value) for step in terms for value in step.values())
    assert not torch.equal(trainer.module.student.patch_head.weight, before["patch_head.weight"])
    assert run(trainer) == []


def test_a_run_that_was_killed_ends_where_an_uninterrupted_one_does(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    whole = Trainer(settings, split)
    terms = run(whole)

    killed = Trainer(settings, split)
    assert run(killed, 3) == terms[:3]
    killed.save(tmp_path)
    torch.manual_seed(99)  # a new process has another state of the generator
    resumed = Trainer(settings, split)
    resumed.restore(tmp_path)

    assert resumed.done == 3
    assert run(resumed) == terms[3:]
    torch.testing.assert_close(resumed.module.state_dict(), whole.module.state_dict(), rtol=0, atol=0)
    assert resumed.schedule.get_last_lr() == whole.schedule.get_last_lr()


@pytest.mark.slow
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


def test_the_second_worker_resumes_its_own_random_stream(settings: TrainSettings, split: Split, tmp_path: Path) -> None:
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
    without_dropout = dataclasses.replace(split, config=dataclasses.replace(split.config, dropout=0.0))
    assert run(Trainer(settings, without_dropout), 1) != one


def test_a_checkpoint_is_read_as_plain_tensors_and_holds_the_twin(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    trainer = Trainer(settings, split)
    run(trainer, 2)
    trainer.save(tmp_path)
    average, student = (read_weights(tmp_path, which) for which in ("average", "student"))
    torch.testing.assert_close(average, trainer.module.twin.model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(student, trainer.module.student.state_dict(), rtol=0, atol=0)
    assert not torch.equal(average["patch_head.weight"], student["patch_head.weight"])


def test_every_epoch_shows_each_pair_at_most_once_whatever_the_number_of_workers(
    settings: TrainSettings, split: Split
) -> None:
    alone = Trainer(settings, split)
    workers = [Trainer(settings, split, rank=rank, world=2) for rank in range(2)]
    seen: dict[int, list[int]] = {}
    for step in range(6):
        for trainer in (alone, *workers):
            trainer.done = step
        numbers, epoch = alone.order.rows_of_step(alone.done)
        parts = [worker.order.rows_of_step(worker.done) for worker in workers]
        assert [number for part, _ in parts for number in part] == numbers
        assert {number for _, number in parts} == {epoch}
        seen.setdefault(epoch, []).extend(numbers)
    assert sorted(seen) == [0, 1, 2]
    assert all(len(set(numbers)) == len(numbers) == 8 for numbers in seen.values())
    assert seen[0] != seen[1]


def test_workers_start_alike_and_draw_their_own_dropout(settings: TrainSettings, split: Split) -> None:
    def drawn(rank: int) -> tuple[dict[str, torch.Tensor], float]:
        trainer = Trainer(settings, split, rank=rank, world=2)
        return trainer.module.state_dict(), torch.rand(()).item()

    (first, one), (second, other) = drawn(0), drawn(1)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert one != other


def test_a_run_continues_with_fewer_workers_and_shows_every_pair_of_the_epoch_once(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    settings = changed(settings, workers=2, pairs=8)  # two steps, an epoch
    two = Trainer(settings, split, rank=0, world=2)
    other = Trainer(settings, split, rank=1, world=2)
    seen = [*two.order.rows_of_step(two.done)[0], *other.order.rows_of_step(other.done)[0]]
    two.done = 1
    two.save(tmp_path)
    alone = Trainer(settings, split)
    alone.restore(tmp_path)
    seen += alone.order.rows_of_step(alone.done)[0]
    assert len(seen) == len(set(seen)) == 8
    assert sorted(seen) == sorted(epoch_order(PAIRS, settings.seed, 0)[:8].tolist())
    assert len(run(alone)) == 1
    torch.testing.assert_close(alone.module.queues.pointer, torch.tensor(4))


def test_another_number_of_workers_draws_new_random_streams(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    settings = changed(settings, workers=2)
    one = Trainer(settings, split, rank=0, world=2)
    state = torch.get_rng_state()
    one.save(tmp_path, {"rng": torch.stack([state, torch.flip(state, [0])])})

    def drawn(rank: int, world: int) -> float:
        trainer = Trainer(settings, split, rank=rank, world=world)
        trainer.restore(tmp_path)
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
    trainer, plain = Trainer(settings, split), Trainer(settings, split)
    trainer.begin_from(tmp_path / "weights.safetensors")
    for model in (trainer.module.student, trainer.module.twin.model):
        torch.testing.assert_close(model.box_head[0].bias.detach(), weight)
        torch.testing.assert_close(model.patch_head.weight.detach(), plain.module.student.patch_head.weight.detach())


def test_a_step_in_micro_batches_has_the_gradients_of_one_batch(settings: TrainSettings, split: Split) -> None:
    without_dropout = dataclasses.replace(
        split, config=dataclasses.replace(split.config, dropout=0.0, patch_embedding="linear")
    )
    weights = {"vlc": 0.0, "mlm": 0.0}  # MLM draws the hidden words anew for each micro batch
    whole, parts = (
        Trainer(changed(settings, accumulation=count, loss_weights=weights), without_dropout) for count in (1, 2)
    )
    terms, again = run(whole, 1)[0], run(parts, 1)[0]
    assert again == pytest.approx(terms, abs=1e-5)
    torch.testing.assert_close(gradients(parts), gradients(whole), atol=1e-5, rtol=0)


def test_words_are_trained_alone_before_anything_else(settings: TrainSettings, split: Split) -> None:
    trainer = Trainer(changed(settings, words_until=0.5, alignment_from=0.5, pairs=32), split)
    before = {name: value.clone() for name, value in trainer.module.student.state_dict().items()}
    assert [set(step) for step in run(trainer, 4)] == [{"tmg", "mlc", "total"}] * 4
    moved = {
        name for name, value in trainer.module.student.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {name.partition(".")[0] for name in moved} == {"text_encoder", "fusion_encoder", "token_head", "type_head"}
    assert not any(name.startswith("type_head.image") for name in moved)
    assert not any("crossattention" in name for name in moved)
    assert "vlc" in run(trainer, 1)[0]


def test_labels_are_trained_first_then_everything_and_alpha_rises(settings: TrainSettings, split: Split) -> None:
    trainer = Trainer(changed(settings, alignment_from=0.25, pairs=32), split)
    alphas, terms = [], []
    for _ in range(8):
        alphas.append(trainer._alpha())
        terms += run(trainer, 1)
    assert alphas == pytest.approx([0, 0, 0, 0.4 / 3, 0.8 / 3, 0.4, 0.4, 0.4])
    label_terms = {"bic", "mlc", "tmg", "mgca", "bbox_l1", "giou", "mpp", "cwp", "mlm", "total"}
    assert all(set(step) == label_terms for step in terms[:2])
    assert all({"vlc", "bic", "tmg", "ied", "mpp"} < set(step) for step in terms[2:])


def test_a_run_killed_before_alignment_resumes_and_trains_everything(
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


def test_layers_compute_in_bfloat16_and_weights_stay_in_float32(settings: TrainSettings, split: Split) -> None:
    without_dropout = dataclasses.replace(split, config=dataclasses.replace(split.config, dropout=0.0))
    half = Trainer(changed(settings, precision="bfloat16"), without_dropout)
    types = set()
    half.module.student.text_encoder.layers[0].attention.self.query.register_forward_hook(
        lambda module, inputs, output: types.add(output.dtype)
    )
    one = run(half, 1)[0]
    other = run(Trainer(changed(settings, precision="float32"), without_dropout), 1)[0]
    assert types == {torch.bfloat16}
    assert {parameter.dtype for parameter in half.module.student.parameters()} == {torch.float32}
    assert one == pytest.approx(other, rel=0.02)
    assert one != other
    assert not Trainer(settings, split).in_bfloat16  # bfloat16 is slower on a CPU


@pytest.mark.slow
def test_a_loss_that_explodes_stops_the_run_before_it_harms_the_weights(settings: TrainSettings, split: Split) -> None:
    trainer = Trainer(changed(settings, pairs=1000), split)
    run(trainer, 100)
    before = {name: value.clone() for name, value in trainer.module.student.named_parameters()}
    with torch.no_grad():
        trainer.module.student.type_head.text.weight.mul_(-1e6)  # wrong with certainty
        before["type_head.text.weight"] *= -1e6
    with pytest.raises(TrainingDiverged, match=r"the loss of step 100 is [\d.e+]+ after a mean of \d") as caught:
        run(trainer)
    assert "lower learning_rate" in str(caught.value)
    torch.testing.assert_close(dict(trainer.module.student.named_parameters()), before, rtol=0, atol=0)


def test_terms_that_join_do_not_count_as_an_explosion(settings: TrainSettings, split: Split) -> None:
    trainer = Trainer(changed(settings, pairs=16, words_until=0.5, alignment_from=0.5), split)
    words = run(trainer, 2)
    trainer._losses.extend([0.01] * 100)  # the losses of words that are nearly learned
    everything = run(trainer)
    assert [len(terms) for terms in (*words, *everything)] == [3, 3, 12, 12]


def test_a_loss_that_is_not_finite_names_the_step_and_its_pairs(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    trainer = Trainer(settings, split)
    run(trainer, 2)
    trainer.save(tmp_path)
    numbers, _ = trainer.order.rows_of_step(trainer.done)
    with torch.no_grad():
        trainer.module.student.box_head[0].weight[0, 0] = math.nan
    ids = [split.pairs.records[number].id for number in numbers]

    with pytest.raises(TrainingDiverged, match="the loss of step 2 is not finite") as caught:
        run(trainer)

    assert f"its pairs are {', '.join(ids)}. Checkpoints are kept" in str(caught.value)
    assert "giou nan" in str(caught.value)
    assert trainer.done == 2
    resumed = Trainer(settings, split)
    resumed.restore(tmp_path)
    assert all(value.isfinite().all() for value in resumed.module.state_dict().values())


def test_the_error_of_a_large_batch_names_some_of_its_pairs(
    settings: TrainSettings, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "_IDS_NAMED", 2)
    trainer = Trainer(settings, split)
    numbers, _ = trainer.order.rows_of_step(0)
    ids = [split.pairs.records[number].id for number in numbers]
    make_gradients_nan(trainer)
    with pytest.raises(TrainingDiverged, match=f"its pairs are {ids[0]}, {ids[1]} and {len(ids) - 2} more"):
        run(trainer)


def test_the_stage_of_a_step_is_named_with_the_pairs_at_which_it_ends(settings: TrainSettings, split: Split) -> None:
    trainer = Trainer(settings, split)
    found = []
    for done in range(1, trainer.total_steps + 1):
        trainer.done = done
        if trainer.run_stage not in found:
            found.append(trainer.run_stage)
    ends = [stage.last_step * settings.batch_size for stage in trainer.stages]
    assert found == [{"number": 1 + number, "of": len(ends), "ends": end} for number, end in enumerate(ends)]
    assert ends[-1] == trainer.pairs_in_all


def test_gradients_that_are_not_finite_stop_the_run_before_they_reach_the_weights(
    settings: TrainSettings, split: Split
) -> None:
    trainer = Trainer(settings, split)
    run(trainer, 2)
    before = {name: value.clone() for name, value in trainer.module.student.named_parameters()}
    ids = [split.pairs.records[number].id for number in trainer.order.rows_of_step(trainer.done)[0]]
    make_gradients_nan(trainer)

    with pytest.raises(TrainingDiverged, match=r"the gradients of step 2 are not finite \(bic \d.*total \d") as caught:
        run(trainer)

    assert f"its pairs are {', '.join(ids)}. Checkpoints are kept" in str(caught.value)
    torch.testing.assert_close(dict(trainer.module.student.named_parameters()), before, rtol=0, atol=0)


def gradients_of_the_optimizer(settings: TrainSettings, split: Split) -> dict[str, torch.Tensor]:
    """Return the gradients that the optimizer gets in the first step."""
    trainer, found = Trainer(settings, split), {}

    def keep(*_: Any) -> None:
        found.update({name: p.grad.clone() for name, p in trainer.module.named_parameters() if p.grad is not None})

    trainer.optimizer.register_step_pre_hook(keep)
    run(trainer, 1)
    return found


def test_gradients_are_clipped_to_the_set_norm_and_keep_their_direction(settings: TrainSettings, split: Split) -> None:
    whole, cut = (gradients_of_the_optimizer(changed(settings, gradient_norm=norm), split) for norm in (1e9, 1e-3))

    def norm(of: dict[str, torch.Tensor]) -> float:
        return math.sqrt(sum(gradient.square().sum().item() for gradient in of.values()))

    assert norm(whole) > 1
    assert norm(cut) == pytest.approx(1e-3, rel=1e-3)
    shorter = {name: gradient * (norm(cut) / norm(whole)) for name, gradient in whole.items()}
    torch.testing.assert_close(cut, shorter, atol=1e-9, rtol=1e-4)


def test_a_split_smaller_than_a_batch_is_refused(settings: TrainSettings, split: Split) -> None:
    with pytest.raises(ConfigError, match="10 training pairs do not fill one batch of 12"):
        Trainer(changed(settings, batch_size=12), split)


def test_a_run_of_less_than_a_batch_takes_one_step(settings: TrainSettings, split: Split) -> None:
    assert len(run(Trainer(changed(settings, pairs=1), split))) == 1


def test_a_split_can_be_limited(folder: RunFolder, settings: TrainSettings, split: Split) -> None:
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


def test_token_memory_changes_the_time_of_a_locked_step_and_not_its_result(
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


NEVER_S = 1e9
"""Seconds between reads of losses that no test waits for: only checkpoints and the end read them."""


def test_losses_that_are_read_late_are_the_same_and_all_are_read_at_a_checkpoint(
    settings: TrainSettings, split: Split
) -> None:
    at_once = run(Trainer(settings, split))
    late = Trainer(changed(settings, checkpoint_pairs=8), split, read_every_s=NEVER_S)
    counts, read = [], []
    for losses in late.steps():
        counts.append(len(losses))
        read += losses
    assert counts == [0, 2, 0, 2, 0, 2]
    for terms, again in zip(at_once, read, strict=True):
        assert again.pop("seconds") > 0
        assert again == pytest.approx(terms, rel=1e-4)  # the optimizer's fused form rounds differently


@pytest.mark.parametrize("fault", ["gradients", "loss"])
def test_a_step_whose_losses_are_not_read_yet_is_withheld_from_the_weights_if_it_diverges(
    settings: TrainSettings, split: Split, fault: str
) -> None:
    trainer = Trainer(changed(settings, checkpoint_pairs=24), split, read_every_s=NEVER_S)
    steps = trainer.steps()
    next(steps), next(steps)
    if fault == "loss":
        with torch.no_grad():
            trainer.module.student.box_head[0].weight[0, 0] = math.nan
    else:
        make_gradients_nan(trainer)
    before = {name: value.clone() for name, value in trainer.module.student.named_parameters()}
    ids = [split.pairs.records[number].id for number in trainer.order.rows_of_step(2)[0]]

    with pytest.raises(TrainingDiverged, match=f"the {fault} of step 2 (is|are) not finite") as caught:
        list(steps)

    assert trainer.done == 6  # nobody waited for the losses
    assert f"its pairs are {', '.join(ids)}. Checkpoints are kept" in str(caught.value)
    after = dict(trainer.module.student.named_parameters())
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


def test_an_explosion_that_is_not_read_yet_is_withheld_from_the_weights(settings: TrainSettings, split: Split) -> None:
    trainer = Trainer(changed(settings, checkpoint_pairs=24), split, read_every_s=NEVER_S)
    steps = trainer.steps()
    next(steps)
    trainer._losses.extend([0.01] * 100)  # the losses of a model that has nearly learned everything
    before = {name: value.clone() for name, value in trainer.module.student.named_parameters()}
    with pytest.raises(TrainingDiverged, match=r"the loss of step 0 is \d.* after a mean of 0\.01"):
        list(steps)
    torch.testing.assert_close(dict(trainer.module.student.named_parameters()), before, rtol=0, atol=0)


def test_a_checkpoint_of_late_reads_resumes_in_a_run_that_reads_at_once_and_the_other_way_round(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    whole = run(Trainer(settings, split))
    for first, second in ((0.0, NEVER_S), (NEVER_S, 0.0)):
        killed = Trainer(changed(settings, checkpoint_pairs=12), split, read_every_s=first)
        run(killed, 3)
        killed.save(tmp_path)
        resumed = Trainer(settings, split, read_every_s=second)
        resumed.restore(tmp_path)
        rest = run(resumed)
        assert [terms["total"] for terms in rest] == pytest.approx([terms["total"] for terms in whole[3:]], rel=1e-4)


def test_a_snapshot_does_not_change_while_the_training_goes_on(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    trainer = Trainer(settings, split)
    run(trainer, 2)
    state = trainer.snapshot()
    run(trainer)
    stopped = Trainer(settings, split)
    run(stopped, 2)
    stopped.save(tmp_path)
    torch.testing.assert_close(state, read_state(tmp_path), rtol=0, atol=0)
