"""Defaults that follow from first weights and from the published recipe, and the training that they give."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from asap.training.objective import RECIPES, LossWeights, PublishedDefects
from jobs.train.data.splits import Split
from jobs.train.defaults import published_defaults
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings
from jobs.train.trainer import Trainer, model_config, read_weights
from tests.support.ten_pairs import MODEL, changed, make_run_folder, prepare_split, run, settings_in

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLISHED: dict[str, Any] = {
    "epochs": 50, "pairs": None, "learning_rate": 2e-5, "image_learning_rate": 1e-4, "weight_decay": 0.02,
    "optimizer_groups": "published", "schedule": "published", "gradient_norm": None, "initial_values": "published",
    "augmentation": "published", "words_until": 0, "alignment_from": 0, "lock_image_from": 1, "alpha": 0.4,
    "alpha_ramp_pairs": None, "queue_size": 65_536, "momentum": 0.995, "twin_dropout": True, "precision": "tf32",
    "checkpoint_pairs": "epoch", "validation_pairs": None, "weights": "student", "export": "best", "size": "base",
    "accumulation": 1, "loss_weights": {}, "model": {},
}  # fmt: skip


def given(**changes: Any) -> TrainSettings:
    return TrainSettings(corpus="corpus", out="out", **changes)


def values_of(settings: TrainSettings, names: Any) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in names}


# The published recipe.


def test_one_word_sets_everything_that_the_published_training_of_asap_does() -> None:
    settings = given(preset="published", workers=8)
    assert values_of(settings, PUBLISHED) == PUBLISHED
    assert settings.batch_size == 8 * 128
    assert settings.objective == RECIPES["asap-as-published"]
    assert model_config(settings, 30_522).variant == "asap"
    assert settings.default_notes() == ["preset=published: the settings are those of the published training"]


def test_one_word_and_its_recipe_set_everything_that_the_published_training_of_hammer_does() -> None:
    settings = given(preset="published", recipe="hammer", workers=8)
    assert values_of(settings, PUBLISHED) == PUBLISHED
    assert settings.batch_size == 8 * 32
    assert settings.objective.weights == LossWeights(mgca=0, ied=0, mpp=0)
    assert settings.objective.defects.boxless_pairs
    assert (settings.objective.mpp_labels, model_config(settings, 30_522).variant) == ("published", "hammer")


def test_every_part_of_the_published_recipe_can_be_set_otherwise() -> None:
    others: dict[str, Any] = {
        "name": "mine", "recipe": "hammer+lma", "defects": False, "initial_values": "ours", "batch_size": 64,
        "learning_rate": 1e-3, "image_learning_rate": 1e-3, "weight_decay": 0.0, "optimizer_groups": "ours",
        "schedule": "ours", "gradient_norm": 1.0, "augmentation": "flip", "words_until": 0.1, "alignment_from": 0.2,
        "alpha": 0.1, "alpha_ramp_pairs": 5, "queue_size": 8, "momentum": 0.9, "twin_dropout": False,
        "loss_weights": {"vlc": 0.2}, "model": {"image_size": 128}, "accumulation": 2, "lock_image_from": 0.5,
        "precision": "bfloat16", "checkpoint_pairs": 6_400, "validation_pairs": 1000, "weights": "average",
        "export": "last",
    }  # fmt: skip
    assert others.keys() == published_defaults({}).keys() - {"epochs"}
    settings = given(preset="published", pairs=140_000, **others)
    assert values_of(settings, others) == others
    assert (settings.pairs, settings.epochs, settings.size) == (140_000, None, "base")
    assert settings.objective.defects == PublishedDefects()
    (note,) = settings.default_notes()
    assert note.startswith("preset=published: the settings are those of the published training, but for recipe, ")
    assert all(f", {name}" in note for name in others.keys() - {"name", "recipe"})


@pytest.mark.parametrize("changes", [{}, {"recipe": "hammer"}, {"pairs": 4096}, {"epochs": 3, "init": ("demo",)}])
def test_settings_survive_the_way_to_the_workers(changes: dict[str, Any]) -> None:
    settings = given(preset="published", **changes)
    assert TrainSettings(**settings.model_dump()) == settings


def test_pairs_and_epochs_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"pairs 64 and epochs 2 are both given\. Give one of them"):
        given(pairs=64, epochs=2)
    assert (given(epochs=2).pairs, given(epochs=2).total_steps(100)) == (None, 6)
    assert (given(epochs=0.5).total_steps(100), given(pairs=64).total_steps(100)) == (2, 2)


# First weights.


@pytest.mark.parametrize(
    ("preset", "rates"), [("base", (2e-5, 1e-4)), ("tiny", (1e-4, 1e-4)), ("published", (2e-5, 1e-4))]
)
@pytest.mark.parametrize("sources", [("ALBEF.pth",), ("folder",), ("bert:bert-base-uncased", "timm:vit_base")])
def test_a_start_from_weights_never_takes_the_defaults_for_random_ones(
    preset: str, sources: tuple[str, ...], rates: tuple[float, float]
) -> None:
    settings = given(preset=preset, init=sources)
    assert (settings.learning_rate, settings.image_learning_rate) == rates
    assert settings.recipe == ("asap" if preset == "published" else "asap-ray-pretrained")
    assert (settings.words_until, settings.alignment_from) == (0, 0)
    assert (settings.warmup_pairs if preset != "published" else None, settings.alpha_ramp_pairs) == (None, None)
    assert settings.default_notes()


def test_the_defaults_for_pretrained_weights_are_stated_and_given_values_win() -> None:
    settings = given(preset="base", init=("ALBEF.pth",), learning_rate=1e-3, warmup_pairs=6400)
    assert (settings.learning_rate, settings.image_learning_rate, settings.warmup_pairs) == (1e-3, 1e-4, 6400)
    assert settings.default_notes() == [
        "defaults for pretrained weights, since init is given: recipe=asap-ray-pretrained, "
        "image_learning_rate=0.0001, words_until=0, alignment_from=0, alpha_ramp_pairs=by epoch"
    ]
    assert given(init=("x",), words_until=0.3).alignment_from == 0.3
    assert given(init=("x",), recipe="hammer").recipe == "hammer"
    assert given(words_until=0).default_notes() == []


def test_a_side_whose_weights_no_source_brings_keeps_the_defaults_for_random_ones() -> None:
    image, text = given(init=("timm:vit_tiny",)), given(init=("bert:tiny",))
    assert (image.recipe, text.recipe) == ("asap-ray", "asap-ray")
    assert (image.learning_rate, image.image_learning_rate, image.words_until) == (1e-3, 1e-4, 0.57)
    assert (text.learning_rate, text.image_learning_rate, text.words_until, text.alignment_from) == (1e-4, 1e-3, 0, 0.9)
    assert image.default_notes() == ["defaults for pretrained weights, since init is given: image_learning_rate=0.0001"]


def test_random_weights_keep_their_defaults() -> None:
    for settings in (given(), given(preset="base"), given(init=())):
        assert (settings.learning_rate, settings.image_learning_rate, settings.pairs) == (1e-3, 1e-3, 140_000)
        assert (settings.recipe, settings.words_until, settings.alignment_from) == ("asap-ray", 0.57, 0.9)
        assert (settings.warmup_pairs, settings.alpha_ramp_pairs, settings.epochs) == (6_400, 20_000, None)
        assert (settings.schedule, settings.optimizer_groups, settings.initial_values) == ("ours", "ours", "ours")
        assert (settings.twin_dropout, settings.weights, settings.defects) == (False, "average", False)


def test_a_warmup_without_a_length_takes_an_epoch_but_at_most_a_tenth_of_the_run() -> None:
    settings = given(init=("x",))
    assert [settings.warmup_steps(total, 30) for total in (1000, 200, 5)] == [30, 20, 1]
    assert given().warmup_steps(1000, 30) == 200


# The training of ten pairs.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run_folder(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module", params=["asap", "hammer"])
def settings(folder: RunFolder, request: pytest.FixtureRequest) -> TrainSettings:
    """The published training, of a small model: two steps an epoch."""
    shape = MODEL | {"patch_embedding": "linear", "text_norm": "post", "vocab_size": 200}
    few = {"model": shape, "batch_size": 4, "epochs": 3, "queue_size": 16, "recipe": request.param}
    typed = settings_in(folder).model_dump(include={"corpus", "out"})
    return TrainSettings(**typed, **few, preset="published")


@pytest.fixture(scope="module")
def split(folder: RunFolder, settings: TrainSettings) -> Split:
    return prepare_split(folder, settings)


def test_a_published_run_has_the_published_rates_and_alpha_and_a_checkpoint_each_epoch(
    settings: TrainSettings, split: Split
) -> None:
    trainer = Trainer(settings, split)
    assert (trainer.total_steps, trainer.checkpoints.regular) == (6, 2)
    rates, alphas = [], []
    for _ in range(6):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        alphas.append(trainer._alpha())
        run(trainer, 1)
    assert alphas == pytest.approx([0, 0.2, 0.4, 0.4, 0.4, 0.4])
    for number, peak in enumerate((2e-5, 1e-4)):
        falling = [1e-6 + (peak - 1e-6) * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in (1, 1, 2, 2)]
        assert [step[number] for step in rates] == pytest.approx([1e-6, 1e-6, *falling])
    assert all(group["weight_decay"] == 0.02 for group in trainer.optimizer.param_groups)


def test_a_published_run_starts_from_the_published_values(settings: TrainSettings, split: Split) -> None:
    trainer = Trainer(settings, split)
    state = trainer.module.student.state_dict()
    assert state["box_head.0.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert not state["box_head.0.bias"].any()
    torch.testing.assert_close(trainer.module.twin.model.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(trainer.module.queues.caption, trainer.module.queues.text, rtol=0, atol=0)
    assert trainer.module.criterion.defects.boxless_pairs


def test_the_targets_of_a_published_run_have_dropout(settings: TrainSettings, split: Split) -> None:
    def spread(dropout: bool) -> float:
        trainer = Trainer(changed(settings, twin_dropout=dropout), split)
        trainer.module.train()
        text = trainer.feed.batch(0).text
        with torch.no_grad():
            one, other = (trainer.module.twin.model.encode_text(*text) for _ in range(2))
        return float((one - other).abs().max())

    assert spread(True) > 0
    assert spread(False) == 0


def test_the_gradients_of_a_published_run_are_not_clipped(settings: TrainSettings, split: Split) -> None:
    trainer, seen = Trainer(settings, split), {}
    token = trainer.module.student.aggregate_token

    def enlarge(gradient: torch.Tensor) -> torch.Tensor:
        seen["whole"] = 1e4 * gradient
        return seen["whole"]

    token.register_hook(enlarge)
    trainer.optimizer.register_step_pre_hook(lambda *_: seen.update(used=token.grad.clone()))
    run(trainer, 1)
    assert seen["whole"].norm() > 1
    torch.testing.assert_close(seen["used"], seen["whole"], rtol=0, atol=0)


def test_the_student_of_a_published_run_is_evaluated_and_exported(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    trainer = Trainer(settings, split)
    run(trainer)
    trainer.save(tmp_path)
    assert trainer.evaluated_model is trainer.module.student
    exported = read_weights(tmp_path, settings.weights)
    torch.testing.assert_close(exported, trainer.module.student.state_dict(), rtol=0, atol=0)
    averaged = Trainer(changed(settings, weights="average"), split)
    assert averaged.evaluated_model is averaged.module.twin.model


def test_a_published_run_that_was_killed_ends_where_an_uninterrupted_one_does(
    settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    whole, killed, resumed = (Trainer(settings, split) for _ in range(3))
    torch.manual_seed(3)
    whole_terms = run(whole)
    torch.manual_seed(3)
    assert run(killed, 3) == whole_terms[:3]
    killed.save(tmp_path)
    resumed.restore(tmp_path)
    assert run(resumed) == whole_terms[3:]
    torch.testing.assert_close(resumed.module.state_dict(), whole.module.state_dict(), rtol=0, atol=0)
