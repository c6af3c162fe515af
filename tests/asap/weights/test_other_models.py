"""Checkpoints of other models are recognized by the keys of their public code."""

from pathlib import Path

import pytest
import torch

from asap.errors import CheckpointError
from asap.model.config import ModelConfig
from asap.weights.other_models import recognize
from asap.weights.published import import_published
from asap.weights.start import read_starts
from tests.support.published import golden_state, write_published

State = dict[str, torch.Tensor]
CONFIG = ModelConfig(
    variant="hammer", image_size=64, width=96, image_layers=3, image_mlp_width=384, text_layers=2, fusion_layers=2,
    text_mlp_width=192, vocab_size=512, max_positions=64, max_tokens=64, embed_dim=32,
)  # fmt: skip
CSCL = (
    "fusion_head.0.weight", "itm_head.0.weight", "bbox_head.0.weight", "cls_head_img.6.weight",
    "cls_head_text.6.weight", "img_intra_model.x.weight", "text_extra_model.x.weight",
    "meter.text_transformer.embeddings.word_embeddings.weight", "meter.vit_model.visual.class_embedding",
)  # fmt: skip
AMD = (
    "vision_tower.convs.0.proj.weight", "language_model.model.shared.weight", "language_model.model.learnable_tokens",
    "language_model.model.Bbox_Verification.bbox_head.0.weight", "language_model.model.Second_classifier.weight",
)  # fmt: skip


def zeros(keys: tuple[str, ...]) -> State:
    return {key: torch.zeros(2, 2) for key in keys}


@pytest.fixture(scope="module")
def hammer() -> State:
    return golden_state("hammer_small_0")


def with_three_types(hammer: State) -> State:
    """HAMMER as RamDG's code trains it: its type head has three rows."""
    return hammer | {key: hammer[key][:3] for key in ("cls_head.6.weight", "cls_head.6.bias")}


def ramdg_of(hammer: State) -> State:
    """RamDG's keys: HAMMER's with three types, and modules that read evidence."""
    added = zeros(
        (
            "extra_vision_proj.weight", "extra_text_proj.weight", "extra_vision_proj_m.weight", "extra_image_queue",
            "extraimgs_fusion.in_proj_weight", "binary_dec.in_proj_weight", "patch_dec.in_proj_weight",
            "patch_2dec.0.weight", "patch_2cls_head.weight", "text_decoder_fusion.in_proj_weight",
        )
    )  # fmt: skip
    return with_three_types(hammer) | added | {"extra_temp": torch.tensor(0.07), "extra_queue_ptr": torch.tensor([0])}


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (CSCL, "one of CSCL and cannot be imported: its encoders are those of METER"),
        (AMD, "one of AMD and cannot be imported: it is a Florence-2"),
        (("image_encoder.cls_token", "fusion_encoder.x", "real_fake_head.0.weight"), "names of this library"),
    ],
)
def test_a_checkpoint_of_another_kind_is_named_by_import_and_start(tmp_path: Path, keys: tuple, name: str) -> None:
    file = write_published(tmp_path / "best.pth", zeros(keys), prefix="module.")
    with pytest.raises(CheckpointError, match=name):
        import_published(file)
    with pytest.raises(CheckpointError, match=name):
        read_starts([str(file)], CONFIG)


def test_albef_is_named_on_import_with_the_way_to_use_it(hammer: State, tmp_path: Path) -> None:
    kept = ("visual_encoder.", "text_encoder.bert.", "vision_proj.", "text_proj.", "temp")
    albef = {key: value for key, value in hammer.items() if key.startswith(kept)} | zeros(("itm_head.weight",))
    file = write_published(tmp_path / "ALBEF 4M.pth", albef)
    with pytest.raises(CheckpointError, match=r"one of ALBEF, .*`asap train .*--init '.*ALBEF 4M\.pth' --set preset"):
        import_published(file)
    assert read_starts([str(file)], CONFIG).reports[str(file)].taken


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (ramdg_of, "one of RamDG and cannot be imported"),
        (with_three_types, "one of HAMMER for 3 types, as RamDG's code trains it on SAMM, and cannot be imported"),
    ],
)
def test_ramdg_and_three_types_are_named_and_their_hammer_part_starts_a_training(
    hammer: State, tmp_path: Path, make: object, name: str
) -> None:
    state = make(hammer)  # type: ignore[operator]
    file = write_published(tmp_path / "best.pth", state)
    with pytest.raises(CheckpointError, match=f"{name}.*`asap train CORPUS .*--set recipe=hammer"):
        import_published(file)

    start = read_starts([str(file)], CONFIG, queue_size=8)

    report = start.reports[str(file)]
    assert report.fresh == ["type_head.6.bias", "type_head.6.weight"]
    torch.testing.assert_close(start.weights["type_head.0.weight"], state["cls_head.0.weight"])
    torch.testing.assert_close(
        start.twins.weights["text_projection.weight"], state["text_proj_m.weight"], check_dtype=False
    )
    assert start.twins.queues["image"].shape == (32, 8)
    # Every key of the file is taken, given to the twin, or dropped.
    extra = {key for key in state if key.startswith(("extra", "binary", "patch_", "text_decoder"))}
    assert extra | {"cls_head.6.weight", "cls_head.6.bias"} == set(report.dropped)
    assert len(report.taken) + len(report.for_twins) + len(report.dropped) == len(state)


def test_a_part_of_ramdg_at_another_image_size_is_resized_in_model_and_twin(hammer: State, tmp_path: Path) -> None:
    file = write_published(tmp_path / "best.pth", ramdg_of(hammer))
    config = ModelConfig.from_dict(vars(CONFIG) | {"image_size": 96})
    start = read_starts([str(file)], config)
    assert start.reports[str(file)].resized == ["image_encoder.pos_embed"]
    assert start.twins.weights["image_encoder.pos_embed"].shape == start.weights["image_encoder.pos_embed"].shape


def test_a_part_of_ramdg_that_lacks_a_key_is_refused(hammer: State, tmp_path: Path) -> None:
    state = ramdg_of(hammer)
    del state["itm_head.6.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: itm_head\.6\.bias"):
        read_starts([str(write_published(tmp_path / "best.pth", state))], CONFIG)


def test_asap_and_hammer_and_unknown_keys_are_no_other_model(hammer: State) -> None:
    for state in (hammer, golden_state("asap_small_0"), {"conv1.weight": torch.zeros(3)}, {}):
        assert recognize({key: tuple(value.shape) for key, value in state.items()}, "checkpoint a.pth") == ""
