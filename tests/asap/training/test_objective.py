from dataclasses import replace

import pytest

from asap.errors import ConfigError
from asap.model.config import ModelConfig
from asap.training.objective import RECIPES, LossWeights, PublishedDefects, recipe_called
from asap.training.step import TrainingStep
from tests.support.tiny import draw_batch, tiny_model

TERMS_OF = {
    "hammer": {"vlc", "bic", "mlc", "bbox_l1", "giou", "tmg"},
    "hammer+lma": {"vlc", "bic", "mlc", "bbox_l1", "giou", "tmg", "ied"},
    "hammer+lma+mgca": {"vlc", "bic", "mlc", "bbox_l1", "giou", "tmg", "ied", "mgca"},
    "asap": {"vlc", "bic", "mlc", "bbox_l1", "giou", "tmg", "ied", "mgca", "mpp"},
    "asap-as-published": {"vlc", "bic", "mlc", "bbox_l1", "giou", "tmg", "ied", "mgca", "mpp"},
    "asap-ray": {"vlc", "bic", "mlc", "bbox_l1", "giou", "tmg", "ied", "mgca", "mpp", "cwp", "mlm"},
    "asap-ray-pretrained": {
        "vlc", "bic", "mlc", "bbox_l1", "giou", "tmg", "ied", "mgca", "mpp", "cwp", "mlm", "patch_consistency"
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_its_terms_and_all_its_parameters(name: str) -> None:
    recipe = RECIPES[name]
    step = TrainingStep(
        tiny_model(**recipe.model), weights=recipe.weights, defects=recipe.defects, queue_size=12, mask_id=3
    ).train()
    terms = step(draw_batch(), 0.4)
    assert set(terms) == TERMS_OF[name] | {"total"}
    terms["total"].backward()
    unused = {parameter for parameter, value in step.named_parameters() if value.requires_grad and value.grad is None}
    assert all(parameter.startswith(("student.explanation_head", "student.patch_head")) for parameter in unused)
    assert not unused or name in ("hammer+lma", "hammer+lma+mgca")


def test_the_published_recipes_use_the_published_model_and_weights() -> None:
    assert RECIPES["asap"].weights == LossWeights()
    assert RECIPES["asap"].defects == PublishedDefects()
    assert RECIPES["asap-as-published"].defects == PublishedDefects.all()
    assert ModelConfig.base(**RECIPES["asap"].model) == ModelConfig.base()


def test_the_recipe_for_pretrained_weights_adds_one_term_to_that_for_random_ones() -> None:
    random, pretrained = RECIPES["asap-ray"], RECIPES["asap-ray-pretrained"]
    assert replace(pretrained, weights=random.weights) == random
    assert replace(pretrained.weights, patch_consistency=0.0) == random.weights


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"recipe 'asap2' is unknown; hammer, hammer\+lma, .* are known"):
        recipe_called("asap2")
