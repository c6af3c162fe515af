import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from asap.errors import CheckpointError
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.preprocessing.text import train_tokenizer
from asap.training.objective import LossWeights
from asap.training.step import TrainingStep, begin_from_start
from asap.weights.model_folder import load, save
from asap.weights.start import Start, has_words, read_starts, source_tokenizer
from tests.golden.weights import golden_state_dict
from tests.support.tiny import tiny_model

State = dict[str, torch.Tensor]
GOLDEN = Path(__file__).parents[2] / "golden"
CONFIG = ModelConfig(
    image_size=64, width=96, image_layers=3, image_mlp_width=384, text_layers=2, fusion_layers=2, text_mlp_width=192,
    vocab_size=512, max_positions=64, max_tokens=64, embed_dim=32,
)  # fmt: skip


def changed(**changes: object) -> ModelConfig:
    return ModelConfig.from_dict(vars(CONFIG) | changes)


def published(name: str, folder: Path) -> str:
    """Write a checkpoint file as the published code does, with its queues."""
    spec = json.loads((GOLDEN / f"{name}.json").read_text())
    state = {key: torch.from_numpy(np.asarray(value)) for key, value in golden_state_dict(spec).items()}
    torch.save({"model": state | {"queue_ptr": torch.tensor([3])}}, folder / f"{name}.pth")
    return str(folder / f"{name}.pth")


@pytest.fixture
def asap_file(tmp_path: Path) -> str:
    return published("asap_small_0", tmp_path)


@pytest.fixture
def hammer_file(tmp_path: Path) -> str:
    return published("hammer_small_0", tmp_path)


@pytest.fixture
def albef_file(tmp_path: Path, asap_file: str) -> str:
    """The parts of a published checkpoint that ALBEF has: encoders, projections, twins, image and text queues."""
    state = torch.load(asap_file, weights_only=True)["model"]  # noqa: TID251
    kept = ("visual_encoder", "text_encoder.bert", "text_encoder_m.bert", "vision_proj", "text_proj", "temp")
    own = {key: value for key, value in state.items() if key.startswith(kept)}
    own |= {name: state[name] for name in ("image_queue", "text_queue", "queue_ptr")}
    torch.save(own | {"itm_head.weight": torch.zeros(2, 96)}, tmp_path / "albef.pth")
    return str(tmp_path / "albef.pth")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(["a man smiles at the crowd", "the minister leaves"], 100)
    return save(tiny_model(vocab_size=len(tokenizer)), tmp_path / "small", tokenizer=tokenizer)


def step_from(start: Start, config: ModelConfig, file: Path, queue_size: int = 8) -> TrainingStep:
    torch.manual_seed(1)
    weights = LossWeights(ied=0, mpp=0) if config.variant == "hammer" else None
    step = TrainingStep(Asap(config), queue_size=queue_size, weights=weights)
    start.save(file)
    begin_from_start(step, file)
    return step


def test_a_published_checkpoint_gives_student_twin_and_queues(asap_file: str, tmp_path: Path) -> None:
    state = torch.load(asap_file, weights_only=True)["model"]  # noqa: TID251
    size = state["image_queue"].shape[1]
    start = read_starts([asap_file], CONFIG, queue_size=size)
    step = step_from(start, CONFIG, tmp_path / "start.safetensors", size)

    torch.testing.assert_close(step.student.box_head[0].weight.detach(), state["bbox_head.0.weight"])
    torch.testing.assert_close(step.twin.model.text_projection.weight, state["text_proj_m.weight"])
    # A module without a twin in the checkpoint starts as a copy of the student's.
    torch.testing.assert_close(step.twin.model.box_head[0].weight, state["bbox_head.0.weight"])
    torch.testing.assert_close(step.queues.caption, state["cap_queue"].roll(-3, dims=1))
    assert start.reports[asap_file].fresh == []
    assert len(start.reports[asap_file].taken) == len(step.student.state_dict())


def test_asap_starts_from_hammer_and_its_other_modules_stay_fresh(hammer_file: str, tmp_path: Path) -> None:
    start = read_starts([hammer_file], CONFIG)
    fresh = {name.partition(".")[0] for name in start.reports[hammer_file].fresh}
    assert fresh == {"image_side_attention", "explanation_head", "patch_head", "real_fake_scale", "type_scale"}
    assert "image_side_attention.cross_attention.in_proj_weight" in start.weights
    step_from(start, CONFIG, tmp_path / "start.safetensors")


def test_hammer_starts_from_asap_and_the_other_modules_are_dropped(asap_file: str, tmp_path: Path) -> None:
    start = read_starts([asap_file], changed(variant="hammer"))
    report = start.reports[asap_file]
    assert report.fresh == []
    assert {"patch_head.weight", "UtilsB", "itm_head_m.0.weight"} <= set(report.dropped)
    step_from(start, changed(variant="hammer"), tmp_path / "start.safetensors")


def test_albef_is_recognized_by_its_keys(albef_file: str, tmp_path: Path) -> None:
    start = read_starts([albef_file], CONFIG, queue_size=8)
    report = start.reports[albef_file]
    assert report.dropped == ["itm_head.weight"]
    assert any(name.startswith("box_head.") for name in report.fresh)
    assert "image_queue" in report.for_twins
    step = step_from(start, CONFIG, tmp_path / "start.safetensors")
    assert not torch.equal(step.twin.model.text_projection.weight, step.student.text_projection.weight)
    torch.testing.assert_close(step.twin.model.box_head[0].weight, step.student.box_head[0].weight.detach())


def test_the_newest_features_of_longer_queues_are_taken_in_order(asap_file: str, tmp_path: Path) -> None:
    state = torch.load(asap_file, weights_only=True)["model"]  # noqa: TID251
    step = step_from(read_starts([asap_file], CONFIG, queue_size=2), CONFIG, tmp_path / "start.safetensors", 2)
    # Column 3 comes next, so 2 is the newest and 1 the one before.
    torch.testing.assert_close(step.queues.image, state["image_queue"][:, [1, 2]])
    assert step.queues.pointer == 0


def test_queues_that_are_too_short_for_the_run_are_dropped_and_reported(asap_file: str) -> None:
    start = read_starts([asap_file], CONFIG, queue_size=10_000)
    report = start.reports[asap_file]
    assert start.twins.queues == {}
    assert {"image_queue", "text_queue", "cap_queue", "prom_queue", "queue_ptr"} <= set(report.dropped)
    assert not any("queue" in key for key in report.for_twins)


@pytest.mark.parametrize("made", ["asap_file", "albef_file"])
def test_positions_are_resized_for_student_and_twin(made: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(made)
    config = changed(image_size=96)
    start = read_starts([source], config)
    assert start.reports[source].resized == ["image_encoder.pos_embed"]
    step = step_from(start, config, tmp_path / "start.safetensors")
    assert step.twin.model.image_encoder.pos_embed.shape == (1, 37, 96)


def test_student_and_twin_start_alike_from_a_model_folder(folder: Path, tmp_path: Path) -> None:
    config = load(folder).config
    start = read_starts([str(folder)], config, words_of=[str(folder)])
    step = step_from(start, config, tmp_path / "start.safetensors")
    expected = load(folder).state_dict()
    torch.testing.assert_close(dict(step.student.state_dict()), dict(expected), rtol=0, atol=0)
    torch.testing.assert_close(dict(step.twin.model.state_dict()), dict(expected), rtol=0, atol=0)


def test_word_embeddings_stay_fresh_if_the_run_has_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    config = ModelConfig.from_dict(vars(load(folder).config) | {"vocab_size": 77})
    start = read_starts([str(folder)], config)
    assert start.reports[str(folder)].fresh == ["text_encoder.embeddings.word_embeddings.weight"]
    step_from(start, config, tmp_path / "start.safetensors")


def test_later_sources_replace_earlier_ones_and_only_the_rest_is_fresh(asap_file: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    vit = VisionTransformer(img_size=64, patch_size=16, embed_dim=96, depth=3, num_heads=12, num_classes=0).state_dict()
    save_file(vit, tmp_path / "vit.safetensors")
    timm = f"timm:{tmp_path / 'vit.safetensors'}"

    over, under = read_starts([asap_file, timm], CONFIG), read_starts([timm, asap_file], CONFIG)

    torch.testing.assert_close(over.weights["image_encoder.norm.bias"], vit["norm.bias"])
    assert "image_encoder.norm.bias" not in over.twins.weights  # the old twin of new weights would pull them back
    assert "text_projection.bias" in over.twins.weights
    assert "image_encoder.norm.bias" in under.twins.weights
    assert list(over.reports) == [asap_file, timm]
    assert over.reports[timm].fresh == []
    assert not any(name.startswith("image_encoder.") for name in under.reports[timm].fresh)
    assert under.reports[timm].fresh != []


def test_a_checkpoint_of_another_shape_is_one_error_with_its_keys(asap_file: str, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)does not fit the model.*is \(2, 192\), not|\(96,\), not \(192,\)"):
        read_starts([asap_file], changed(width=192))
    with pytest.raises(CheckpointError, match=r"missing: image_encoder\.blocks\.3\."):
        read_starts([asap_file], changed(image_layers=4))
    with pytest.raises(CheckpointError, match="has heads 4 and the run 12; nothing was loaded"):
        read_starts([str(folder)], CONFIG)


def test_a_model_with_pre_norm_refuses_a_published_checkpoint(asap_file: str, albef_file: str) -> None:
    for source in (asap_file, albef_file):
        with pytest.raises(CheckpointError, match=r"the run's text_norm is 'pre'; nothing was loaded"):
            read_starts([source], changed(text_norm="pre"))


def test_a_missing_source_raises_an_error_that_lists_the_kinds_of_sources(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth' does not exist\. Name a \.pth file, a model folder"):
        read_starts([str(tmp_path / "nowhere.pth")], CONFIG)


def test_a_source_has_a_tokenizer_or_none(folder: Path, asap_file: str) -> None:
    assert (
        source_tokenizer(str(folder)).get_vocab()
        == train_tokenizer(["a man smiles at the crowd", "the minister leaves"], 100).get_vocab()
    )
    assert source_tokenizer("demo") is not None
    assert source_tokenizer(asap_file) is None
    assert source_tokenizer("timm:anything") is None
    assert [has_words(source) for source in ("timm:x", "bert:x", asap_file, "demo")] == [False, True, True, True]


def test_a_saved_start_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    read_starts([str(folder)], load(folder).config, words_of=[str(folder)]).save(tmp_path / "start.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        begin_from_start(TrainingStep(Asap(CONFIG), queue_size=8), tmp_path / "start.safetensors")
