"""The published initial values as a table: mean and standard deviation of each kind of weight."""

import re

import pytest
import torch
from torch import Tensor

from asap.model.asap import Asap
from asap.model.initial_values import initialize_as_published
from tests.support.tiny import tiny_config

WIDTH = 96
GLOROT = (2 / (WIDTH + 3 * WIDTH)) ** 0.5
PATCH_EMBEDDING = (3 * 16 * 16) ** -0.5 / 3**0.5
NORM = r"(.*\.)?(norm\d?|LayerNorm|image_side_norm|aggregate_norm|\w+_head\.[14])"

# The first pattern that matches a name decides: (mean, standard deviation), exact where it is 0.
TABLE: dict[str, tuple[float, float]] = {
    rf"{NORM}\.weight": (1.0, 0.0),
    rf"{NORM}\.bias": (0.0, 0.0),
    r"temperature": (0.07, 0.0),
    r"(real_fake|type)_scale": (0.5, 0.0),
    r"image_encoder\.patch_embed\.proj\.(weight|bias)": (0.0, PATCH_EMBEDDING),
    r".*\.in_proj_weight": (0.0, GLOROT),
    r".*bias": (0.0, 0.0),
    r"image_encoder\.(cls_token|pos_embed)": (0.0, 0.02),
    r"aggregate_token": (0.0, 0.02),
    r"text_encoder\.embeddings\.\w+_embeddings\.weight": (0.0, 0.02),
    r".*\.out_proj\.weight": (0.0, 0.02),
    r".*\.weight": (0.0, 0.02),
}


def published(variant: str) -> Asap:
    torch.manual_seed(0)
    shape = {"width": WIDTH, "image_mlp_width": WIDTH, "text_mlp_width": WIDTH, "image_layers": 2, "embed_dim": 64}
    forms = {"patch_embedding": "linear", "text_norm": "post", "text_heads": "mlp", "type_heads": "joint"}
    model = Asap(tiny_config(variant=variant, vocab_size=400, **shape, **forms))
    initialize_as_published(model)
    return model


def check(name: str, value: Tensor, mean: float, std: float) -> None:
    value = value.detach().double()
    if std == 0:
        assert torch.equal(value, torch.full_like(value, torch.tensor(mean).item())), name
        return
    # Six standard errors, of a mean and of a standard deviation.
    assert value.mean().item() == pytest.approx(mean, abs=6 * std / value.numel() ** 0.5), name
    assert value.std().item() == pytest.approx(std, rel=6 / (2 * value.numel()) ** 0.5), name


@pytest.mark.parametrize("variant", ["asap", "hammer"])
def test_every_weight_starts_at_its_published_value(variant: str) -> None:
    used = set()
    for name, value in published(variant).named_parameters():
        kind = next(pattern for pattern in TABLE if re.fullmatch(pattern, name))
        used.add(kind)
        check(name, value, *TABLE[kind])
    only_asap = {r"(real_fake|type)_scale"}
    assert used == set(TABLE) - (only_asap if variant == "hammer" else set())


def test_a_new_model_has_the_published_scalars_whatever_its_other_values() -> None:
    model = Asap(tiny_config())
    assert (model.real_fake_scale.item(), model.type_scale.item()) == (0.5, 0.5)
    assert Asap(tiny_config(type_heads="apart")).real_fake_scale.item() == 0.5
