import dataclasses
import re
from typing import Any

import pytest

from asap.errors import ConfigError
from asap.labels import IMAGE_TYPES, TEXT_TYPES, TYPES
from asap.model.config import ModelConfig
from asap.training.objective import LossWeights, PublishedDefects


def test_the_types_are_in_the_published_order() -> None:
    assert TYPES == ("face_swap", "face_attribute", "text_swap", "text_attribute")
    assert IMAGE_TYPES + TEXT_TYPES == TYPES


def test_the_defaults_are_the_published_size() -> None:
    base = ModelConfig.base()
    assert base == ModelConfig()
    assert (base.image_size, base.width, base.heads, base.image_layers, base.text_layers, base.fusion_layers) == (
        256, 768, 12, 12, 6, 6,
    )  # fmt: skip
    assert (base.variant, base.patch_embedding, base.max_words, base.max_tokens) == ("asap", "linear", 50, 128)
    assert base.patches_per_side == 16


def test_tiny_has_a_convolutional_stem_and_takes_changes() -> None:
    tiny = ModelConfig.tiny(width=48, heads=4)
    assert (tiny.patch_embedding, tiny.width, tiny.heads) == ("conv", 48, 4)
    assert ModelConfig.preset("tiny", width=48, heads=4) == tiny
    assert ModelConfig.preset("base") == ModelConfig()


def test_a_misspelled_change_to_a_preset_is_refused() -> None:
    for preset in (ModelConfig.base, ModelConfig.tiny):
        with pytest.raises(ConfigError, match=r"unknown model settings \['wdith'\]"):
            preset(wdith=48)


def test_an_unknown_preset_is_reported_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="preset 'large' is unknown; 'base' and 'tiny' are known"):
        ModelConfig.preset("large")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 250}, "image_size 250 is not a multiple of patch_size 16; 240 and 256 are"),
        ({"image_size": 10}, "image_size 10 is not a multiple of patch_size 16; 16 are"),
        ({"width": 100}, "width 100 is not a multiple of heads 12"),
        ({"variant": "hamer"}, "variant 'hamer' is unknown"),
        ({"patch_embedding": "resnet"}, "patch_embedding 'resnet' is unknown"),
        ({"text_norm": "middle"}, "text_norm 'middle' is unknown; 'post' and 'pre' are known"),
        ({"type_heads": "many"}, "type_heads 'many' is unknown; 'joint' and 'apart' are known"),
        ({"text_heads": "deep"}, "text_heads 'deep' is unknown; 'mlp' and 'linear' are known"),
        ({"patch_embedding": "conv", "patch_size": 32}, "patch_size 32 does not fit the conv embedding"),
        ({"max_tokens": 513}, "max_tokens 513 exceeds the position table, max_positions 512"),
        ({"label_set": "coco"}, "label_set 'coco' is unknown; dgm4, samm, dgm4+ are known"),
        ({"dropout": 1}, "dropout 1 is not a probability below 1"),
        ({"dropout": -0.1}, "dropout -0.1 is not a probability"),
        ({"dropout": float("nan")}, "dropout nan is not a probability"),
        ({"heads": 0}, "heads 0 is not a whole number of at least 1"),
        ({"text_layers": 0}, "text_layers 0 is not a whole number of at least 1"),
        ({"width": 768.0}, "width 768.0 is not a whole number"),
        ({"image_layers": True}, "image_layers True is not a whole number"),
        ({"embed_dim": "256"}, "embed_dim '256' is not a whole number"),
    ],
)
def test_a_configuration_that_cannot_work_fails_when_it_is_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ModelConfig(**changes)


def test_a_configuration_survives_a_dict_and_refuses_unknown_fields() -> None:
    tiny = ModelConfig.tiny(variant="hammer")
    assert ModelConfig.from_dict(dataclasses.asdict(tiny)) == tiny
    with pytest.raises(ConfigError, match=r"unknown model settings \['depth', 'wdith'\]; known are \['box_gate'"):
        ModelConfig.from_dict({"wdith": 96, "depth": 3})


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().width = 100  # type: ignore[misc]


def test_the_loss_weights_are_the_published_recipe() -> None:
    assert dataclasses.asdict(LossWeights()) == {
        "vlc": 0.1, "bic": 1, "bbox_l1": 0.1, "giou": 0.1, "tmg": 1, "mlc": 1, "mgca": 0.1, "ied": 0.1, "mpp": 0.01,
        "cwp": 0, "mlm": 0, "mgca_patches": 0, "mgca_words": 0, "patch_consistency": 0, "word_consistency": 0,
        "presence": 0, "hard_negative": 0,
    }  # fmt: skip


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_a_loss_weight_below_zero_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=f"loss weight giou {weight} is negative; 0 leaves a term out"):
        LossWeights(giou=weight)


def test_loss_weights_are_changed_by_known_names_only() -> None:
    assert LossWeights.from_dict({"giou": 2}) == LossWeights(giou=2)
    with pytest.raises(ConfigError, match=r"unknown loss weights \['gious'\]; known are \['vlc', 'bic'"):
        LossWeights.from_dict({"gious": 1})


def test_no_published_defect_is_on_by_default() -> None:
    assert not any(dataclasses.asdict(PublishedDefects()).values())
    assert all(dataclasses.asdict(PublishedDefects.all()).values())
