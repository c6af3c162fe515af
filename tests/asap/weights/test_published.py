import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from asap.errors import CheckpointError, ConfigError
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.preprocessing.text import train_tokenizer
from asap.training.momentum import FeatureQueues
from asap.weights.matching import expected_shapes
from asap.weights.published import import_published, published_name, published_twins
from tests.golden.weights import golden_state_dict
from tests.support.published import tokenizer_of

GOLDEN = Path(__file__).parents[2] / "golden"
State = dict[str, torch.Tensor]


def spec_of(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    names = {"asap": "asap_small_0", "hammer": "hammer_small_0"}
    return {
        variant: {key: torch.from_numpy(np.asarray(value)) for key, value in golden_state_dict(spec_of(name)).items()}
        for variant, name in names.items()
    }


@pytest.fixture
def state(states: dict[str, State]) -> State:
    return dict(states["asap"])


@pytest.mark.parametrize("variant", ["asap", "hammer"])
def test_a_published_checkpoint_gives_the_published_outputs(states: dict[str, State], variant: str) -> None:
    model = import_published(states[variant])
    golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{variant}_small_0.npz").items()}

    with torch.inference_mode():
        output = model(golden["image"], golden["input_ids"], golden["attention_mask"])

    assert not model.training
    for name, value in output._asdict().items():
        torch.testing.assert_close(value, golden[f"out_{name}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ["asap", "hammer"])
def test_every_size_follows_from_the_shapes(states: dict[str, State], variant: str) -> None:
    assert import_published(states[variant]).config == ModelConfig(
        variant=variant,  # type: ignore[arg-type]
        image_size=64, width=96, image_layers=3, image_mlp_width=384, text_layers=2, fusion_layers=2,
        text_mlp_width=192, vocab_size=512, max_positions=64, max_tokens=64, embed_dim=32,
    )  # fmt: skip


@pytest.mark.parametrize("variant", ["asap", "hammer"])
def test_no_two_parameters_share_a_published_name(variant: str) -> None:
    config = ModelConfig(variant=variant, width=48, heads=4, vocab_size=10)  # type: ignore[arg-type]
    names = list(expected_shapes(config))
    assert len({published_name(name, config) for name in names}) == len(names)


def test_missing_unexpected_and_wrongly_shaped_keys_are_all_in_the_error(state: State) -> None:
    del state["bbox_head.6.bias"]
    state["surprise.weight"] = torch.zeros(2)
    state["aggregator.in_proj_bias"] = torch.zeros(7)

    with pytest.raises(CheckpointError) as caught:
        import_published(state)

    assert "nothing was loaded" in str(caught.value)
    assert "1 missing: bbox_head.6.bias" in str(caught.value)
    assert "1 unexpected: surprise.weight" in str(caught.value)
    assert "1 wrongly shaped: aggregator.in_proj_bias is (7,), not (288,)" in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "visual_encoder.norm.weight",
        "visual_encoder.cls_token",
        "visual_encoder.blocks.0.mlp.fc1.weight",
        "text_encoder.bert.encoder.layer.1.intermediate.dense.weight",
        "text_proj.weight",
        "visual_encoder_m.blocks.1.attn.qkv.weight",
        "temp",
        "image_queue",
        "itm_head_m.0.weight",
    ],
)
def test_one_damaged_tensor_is_the_only_one_named(state: State, key: str) -> None:
    state[key] = torch.zeros(*(side + 1 for side in state[key].shape or (3,)))
    with pytest.raises(CheckpointError) as caught:
        import_published(state)
    assert f"1 wrongly shaped: {key} is" in str(caught.value)
    assert "missing" not in str(caught.value)
    assert "unexpected" not in str(caught.value)


def test_a_long_list_of_keys_is_shortened_and_counted(state: State) -> None:
    for index in range(53):
        state[f"surprise.{index:02}"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"53 unexpected: surprise\.00, .*surprise\.19, and 33 more"):
        import_published(state)


def test_the_explanation_head_is_part_of_the_model_and_not_a_twin(state: State) -> None:
    key = "itm_head_m.6.weight"
    expected = state[key]
    torch.testing.assert_close(import_published(state).explanation_head[6].weight.detach(), expected)

    del state[key]
    with pytest.raises(CheckpointError, match=re.escape(f"1 missing: {key}")):
        import_published(state)


def test_twins_and_queues_may_be_absent(state: State) -> None:
    lean = {
        key: value
        for key, value in state.items()
        if not re.match(r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\.|.*_queue", key)
    }
    assert len(lean) < len(state)
    torch.testing.assert_close(import_published(lean).state_dict(), import_published(state).state_dict())
    assert published_twins(lean).weights == {}
    assert published_twins(lean).queues == {}


@pytest.mark.parametrize(
    "kept", ["text_proj_m.bias", "visual_encoder_m.norm.weight", "prom_queue", "text_encoder_m.classifier.6.bias"]
)
def test_incomplete_twins_or_queues_are_refused(state: State, kept: str) -> None:
    group = "_queue" if kept.endswith("_queue") else "_m."
    incomplete = {key: value for key, value in state.items() if group not in key or "itm_head" in key or key == kept}
    with pytest.raises(CheckpointError, match=r"\d+ missing: "):
        import_published(incomplete)


def test_the_twins_load_into_a_model_and_the_queues_into_feature_queues(state: State) -> None:
    twins = published_twins(state | {"queue_ptr": torch.tensor([12])})
    model = import_published(state)

    loaded = model.load_state_dict(twins.weights, strict=False)
    queues = FeatureQueues(model.config, 64)
    queues.load_state_dict(twins.queues)

    assert loaded.unexpected_keys == []
    assert all(re.match(r"image_side|aggregat|\w+_scale|temperature|(?!token)\w+_head", k) for k in loaded.missing_keys)
    torch.testing.assert_close(model.token_head[0].weight.detach(), state["text_encoder_m.classifier.0.weight"])
    torch.testing.assert_close(queues.explanation, state["prom_queue"])
    assert queues.pointer == 12


def test_buffers_that_follow_from_other_tensors_are_optional(state: State) -> None:
    state |= {
        "queue_ptr": torch.zeros(1, dtype=torch.long),
        "text_encoder.bert.embeddings.position_ids": torch.arange(64)[None],
        "text_encoder_m.bert.embeddings.position_ids": torch.arange(64)[None],
    }
    assert import_published(state).config.variant == "asap"
    state["text_encoder.bert.embeddings.position_ids"] = torch.arange(65)[None]
    with pytest.raises(CheckpointError, match=r"position_ids is \(1, 65\), not \(1, 64\)"):
        import_published(state)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_is_read_bare_or_with_the_rest_of_the_training_state(state: State, tmp_path: Path, zipped: bool) -> None:
    wrapped = {
        "model": {f"module.{key}": value for key, value in state.items()},
        "epoch": 49,
        "optimizer": {"lr": 1e-5},
    }
    torch.save(wrapped, tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped)
    torch.save(state, tmp_path / "bare.pth", _use_new_zipfile_serialization=zipped)

    whole, bare = import_published(tmp_path / "whole.pth"), import_published(str(tmp_path / "bare.pth"))

    torch.testing.assert_close(whole.state_dict(), bare.state_dict())


class _Dangerous:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "executed")


def test_a_file_with_python_objects_is_refused_and_nothing_in_it_runs(state: State, tmp_path: Path) -> None:
    torch.save({"model": state, "config": _Dangerous(tmp_path / "proof")}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"bad\.pth cannot be read as plain tensors"):
        import_published(tmp_path / "bad.pth")
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(40)])
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.pth cannot be read"):
        import_published(tmp_path / "bad.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth is not a file"):
        import_published(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("content", [{}, {"model": {}}, [], {"model": {"weight": "heavy"}}])
def test_a_mapping_without_tensors_is_refused(content: object) -> None:
    with pytest.raises(CheckpointError, match=r"no state dict|no tensors"):
        import_published(content)  # type: ignore[arg-type]


def test_the_checkpoint_of_another_model_is_refused_with_some_of_its_keys() -> None:
    with pytest.raises(CheckpointError, match=r"not a published ASAP or HAMMER.* 1 keys: conv1\.weight") as caught:
        import_published({"conv1.weight": torch.zeros(3)})
    assert "it has no visual_encoder.pos_embed. It" in str(caught.value)


def test_a_size_that_no_key_tells_is_named_without_a_pattern(state: State) -> None:
    for dropped, named in (
        ("fc1.weight", "it has no visual_encoder.blocks.N.mlp.fc1.weight. It"),
        ("intermediate.dense.weight", "it has no text_encoder.bert.encoder.layer.N.intermediate.dense.weight. It"),
        ("_proj", "it has no vision or text_proj.weight or bias. It"),
    ):
        with pytest.raises(CheckpointError) as caught:
            import_published({key: value for key, value in state.items() if dropped not in key})
        assert named in str(caught.value)


def test_position_embeddings_that_form_no_square_are_refused(state: State) -> None:
    for key in ("visual_encoder.pos_embed", "visual_encoder_m.pos_embed"):
        state[key] = torch.zeros(1, 16, 96)
    with pytest.raises(CheckpointError, match="15 patches, which is not a square"):
        import_published(state)


def test_a_checkpoint_without_fusion_layers_is_refused(state: State) -> None:
    text_only = {key: value for key, value in state.items() if "crossattention" not in key}
    with pytest.raises(CheckpointError, match="image, text or fusion layers are absent"):
        import_published(text_only)


def test_the_caller_gives_the_number_of_heads(state: State) -> None:
    assert import_published(state, heads=6).config.heads == 6
    with pytest.raises(ConfigError, match="width 96 is not a multiple of heads 7"):
        import_published(state, heads=7)


def test_weights_of_half_precision_and_numpy_arrays_become_float32(state: State) -> None:
    halves = {key: value.half() for key, value in state.items()}
    arrays = {key: value.float().numpy() for key, value in halves.items()}
    assert {tensor.dtype for tensor in import_published(halves).state_dict().values()} == {torch.float32}
    torch.testing.assert_close(import_published(halves).state_dict(), import_published(arrays).state_dict())


def test_the_model_owns_its_weights(state: State) -> None:
    model = import_published(state)
    with torch.no_grad():
        model.patch_head.bias += 1
    assert model.patch_head.bias.item() == pytest.approx(state["patch_head.bias"].item() + 1)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_another_image_size_resizes_the_positions_of_model_and_twin(state: State) -> None:
    model, twins = import_published(state, image_size=96), published_twins(state, image_size=96)

    assert model.config.image_size == 96
    for resized, key in [(model.image_encoder.pos_embed.detach(), "visual_encoder.pos_embed"),
                         (twins.weights["image_encoder.pos_embed"], "visual_encoder_m.pos_embed")]:  # fmt: skip
        grid = state[key][:, 1:].reshape(1, 4, 4, 96).permute(0, 3, 1, 2)
        expected = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
        torch.testing.assert_close(resized[:, 0], state[key][:, 0])
        torch.testing.assert_close(resized[:, 1:], expected.permute(0, 2, 3, 1).reshape(1, 36, 96))
    with torch.inference_mode():
        output = model(torch.zeros(1, 3, 96, 96), torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3))
    assert output.box_cxcywh.isfinite().all()


def test_a_tokenizer_of_another_vocabulary_is_refused(state: State, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a man smiles"], 100)
    with pytest.raises(CheckpointError, match=f"{len(tokenizer)} pieces and the word embedding 512 rows"):
        import_published(state, tokenizer=tokenizer)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="512 rows"):
        import_published(state, tokenizer=tmp_path)


def test_a_fitting_tokenizer_is_accepted(state: State) -> None:
    assert isinstance(import_published(state, tokenizer=tokenizer_of(512)), Asap)
