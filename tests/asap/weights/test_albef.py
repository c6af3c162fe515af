import re

import pytest
import torch
import torch.nn.functional as F

from asap.errors import CheckpointError
from asap.model.config import ModelConfig
from asap.training.momentum import FeatureQueues
from asap.weights.albef import albef_twins, import_albef
from tests.support.published import albef_state

CONFIG = ModelConfig(
    image_size=64, width=48, heads=4, image_mlp_width=96, text_mlp_width=96, vocab_size=60, max_positions=24,
    max_tokens=24, embed_dim=16,
)  # fmt: skip
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def albef() -> State:
    return albef_state()


def test_all_modules_that_albef_pretrained_are_taken(albef: State) -> None:
    torch.manual_seed(1)
    model, report = import_albef({"model": albef}, CONFIG)

    taken = {"image_encoder", "text_encoder", "fusion_encoder", "image_projection", "text_projection", "temperature"}
    assert {name.partition(".")[0] for name in report.taken} == taken
    assert {name.partition(".")[0] for name in report.fresh}.isdisjoint(taken)
    assert sorted(report.taken + report.fresh) == sorted(model.state_dict())
    assert model.training
    for ours, theirs in [
        (model.temperature, "temp"),
        (model.image_encoder.blocks[11].mlp.fc2.weight, "visual_encoder.blocks.11.mlp.fc2.weight"),
        (model.text_encoder.layers[5].output.dense.bias, "text_encoder.bert.encoder.layer.5.output.dense.bias"),
        (
            model.fusion_encoder.layers[0].crossattention.self.key.weight,
            "text_encoder.bert.encoder.layer.6.crossattention.self.key.weight",
        ),
    ]:
        torch.testing.assert_close(ours.detach(), albef[theirs])


def test_every_key_of_the_checkpoint_is_accounted_for(albef: State) -> None:
    _, report = import_albef(albef, CONFIG)

    assert len(report.taken) + len(report.for_twins) + len(report.dropped) == len(albef)
    assert all(re.match(r"itm_head\.|text_encoder(_m)?\.(cls\.|.*position_ids)", key) for key in report.dropped)
    assert {"image_queue", "queue_ptr", "text_proj_m.bias"} <= set(report.for_twins)


def test_the_report_reads_as_a_table(albef: State) -> None:
    _, report = import_albef(albef, CONFIG)
    lines = str(report).splitlines()
    assert lines[0].strip().startswith(f"taken: {len(report.taken)} tensors (fusion_encoder 156, image_encoder 150, ")
    assert lines[1].strip() == "of these resized: none"
    assert "itm_head 2" in lines[-1]


def test_the_fresh_heads_follow_the_seed(albef: State) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(import_albef(albef, CONFIG)[0].box_head[0].weight.detach())
    assert heads[0].equal(heads[1])
    assert not heads[0].equal(heads[2])


def test_positions_of_model_and_twin_are_resized_to_another_image_size(albef: State) -> None:
    config = ModelConfig.from_dict({**vars(CONFIG), "image_size": 96})
    model, report = import_albef(albef, config)
    twins = albef_twins(albef, config)

    assert report.resized == ["image_encoder.pos_embed"]
    assert "of these resized: 1 tensors (image_encoder 1)" in str(report)
    for resized, key in [(model.image_encoder.pos_embed.detach(), "visual_encoder.pos_embed"),
                         (twins.weights["image_encoder.pos_embed"], "visual_encoder_m.pos_embed")]:  # fmt: skip
        grid = albef[key][:, 1:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
        expected = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
        torch.testing.assert_close(resized[:, 1:], expected.permute(0, 2, 3, 1).reshape(1, 36, 48))
        torch.testing.assert_close(resized[:, 0], albef[key][:, 0])


def test_the_twin_is_albefs_own_and_loads_with_its_queues(albef: State) -> None:
    model, _ = import_albef(albef, CONFIG)
    twins = albef_twins(albef, CONFIG)

    assert model.load_state_dict(twins.weights, strict=False).unexpected_keys == []
    torch.testing.assert_close(model.image_projection.bias.detach(), albef["vision_proj_m.bias"])
    torch.testing.assert_close(model.image_encoder.norm.bias.detach(), albef["visual_encoder_m.norm.bias"])
    loaded = FeatureQueues(CONFIG, 8).load_state_dict(twins.queues, strict=False)
    assert loaded.missing_keys == ["caption", "explanation"]
    assert twins.queues["pointer"] == 5


def test_a_checkpoint_without_a_twin_gives_no_twin_weights(albef: State) -> None:
    student = {key: value for key, value in albef.items() if "_m." not in key and "queue" not in key}
    twins = albef_twins(student, CONFIG)
    assert (twins.weights, twins.queues) == ({}, {})
    assert import_albef(student, CONFIG)[1].for_twins == []


def test_a_conv_patch_embedding_stays_fresh(albef: State) -> None:
    _, report = import_albef(albef, ModelConfig.from_dict({**vars(CONFIG), "patch_embedding": "conv"}))
    assert "visual_encoder.patch_embed.proj.weight" in report.dropped
    assert any(name.startswith("image_encoder.patch_embed.proj.") for name in report.fresh)


def test_missing_and_wrongly_shaped_keys_are_all_in_the_error(albef: State) -> None:
    damaged = albef | {"vision_proj.bias": torch.zeros(3)}
    del damaged["text_encoder.bert.encoder.layer.3.output.dense.bias"]
    with pytest.raises(CheckpointError) as caught:
        import_albef(damaged, CONFIG)
    assert "nothing was loaded" in str(caught.value)
    assert "1 missing: text_encoder.bert.encoder.layer.3.output.dense.bias" in str(caught.value)
    assert "1 wrongly shaped: vision_proj.bias is (3,), not (16,)" in str(caught.value)


def test_a_damaged_twin_is_refused_when_it_is_requested(albef: State) -> None:
    damaged = albef | {"vision_proj_m.bias": torch.zeros(3)}
    import_albef(damaged, CONFIG)
    with pytest.raises(CheckpointError, match=r"vision_proj_m\.bias is \(3,\)"):
        albef_twins(damaged, CONFIG)


@pytest.mark.parametrize("shape", [(1, 16, 48), (1, 17, 47), (17, 48)])
def test_positions_that_cannot_be_resized_are_refused(albef: State, shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"visual_encoder\.pos_embed is"):
        import_albef(albef | {"visual_encoder.pos_embed": torch.zeros(shape)}, CONFIG)


def test_a_model_of_another_width_is_refused(albef: State) -> None:
    with pytest.raises(CheckpointError, match="not an ALBEF checkpoint of the configured size"):
        import_albef(albef, ModelConfig.from_dict({**vars(CONFIG), "width": 96}))
