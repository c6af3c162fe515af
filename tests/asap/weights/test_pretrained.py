import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from asap.errors import CheckpointError
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.preprocessing.text import train_tokenizer
from asap.weights.pretrained import bert_encoders, bert_tokenizer, timm_encoder

CONFIG = ModelConfig(
    image_size=64, width=48, heads=4, image_layers=2, image_mlp_width=96, text_layers=2, fusion_layers=1,
    text_mlp_width=96, vocab_size=60, max_positions=24, max_tokens=24, embed_dim=16,
)  # fmt: skip


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """A folder as timm saves it, with a ViT of 48 px and three classes."""
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=48, patch_size=16, embed_dim=48, depth=2, num_heads=4, mlp_ratio=2, num_classes=3
    )
    folder = tmp_path / "vit"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A folder as transformers saves it, with a BERT of four layers."""
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=60, hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96,
            max_position_embeddings=24,
        )
    )  # fmt: skip
    folder = tmp_path / "bert"
    model.save_pretrained(folder)
    return folder


def changed(**changes: object) -> ModelConfig:
    return ModelConfig.from_dict(vars(CONFIG) | changes)


def test_the_image_encoder_computes_the_same_as_timms_vit(vit: Path) -> None:
    weights, report = timm_encoder(str(vit), changed(image_size=48))
    theirs = load_file(vit / "model.safetensors")
    model = Asap(changed(image_size=48))
    assert model.load_state_dict(weights, strict=False).unexpected_keys == []

    assert set(weights) == {name for name in model.state_dict() if name.startswith("image_encoder.")}
    assert report.dropped == ["head.bias", "head.weight"]
    assert report.resized == []
    original = VisionTransformer(
        img_size=48, patch_size=16, embed_dim=48, depth=2, num_heads=4, mlp_ratio=2, num_classes=3
    )
    original.load_state_dict(theirs)
    images = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval().encode_image(images), original.eval().forward_features(images))


def test_positions_of_another_image_size_are_resized(vit: Path) -> None:
    weights, report = timm_encoder(str(vit), CONFIG)
    assert report.resized == ["image_encoder.pos_embed"]
    assert weights["image_encoder.pos_embed"].shape == (1, 17, 48)


def test_a_conv_stem_stays_fresh(vit: Path) -> None:
    weights, report = timm_encoder(str(vit), changed(patch_embedding="conv"))
    assert not any("patch_embed" in name for name in weights)
    assert "patch_embed.proj.weight" in report.dropped


def test_a_vit_with_other_parts_is_refused_with_its_keys(vit: Path) -> None:
    state = load_file(vit / "model.safetensors")
    save_file(state | {"norm_pre.weight": torch.ones(48)}, vit / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"timm:.*does not fit.*(\n.*)*1 unexpected: image_encoder\.norm_pre"):
        timm_encoder(str(vit), CONFIG)


def test_a_vit_of_another_depth_or_width_is_refused(vit: Path) -> None:
    with pytest.raises(CheckpointError, match=r"12 missing: image_encoder\.blocks\.2\."):
        timm_encoder(str(vit), changed(image_layers=3))
    with pytest.raises(CheckpointError, match=r"attn\.proj\.bias is \(48,\), not \(96,\)"):
        timm_encoder(str(vit), changed(width=96))


def test_a_weights_file_can_be_named_itself(vit: Path) -> None:
    by_file, _ = timm_encoder(str(vit / "model.safetensors"), CONFIG)
    torch.save(load_file(vit / "model.safetensors"), vit / "vit.pth")
    by_pickle, _ = timm_encoder(str(vit / "vit.pth"), CONFIG)
    torch.testing.assert_close(by_file, timm_encoder(str(vit), CONFIG)[0])
    torch.testing.assert_close(by_pickle, by_file)


def test_a_folder_without_weights_and_a_path_to_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has none of model\.safetensors, pytorch_model\.bin"):
        timm_encoder(str(tmp_path), CONFIG)
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        timm_encoder(str(tmp_path / "nowhere"), CONFIG)


def test_a_damaged_file_is_named(vit: Path) -> None:
    (vit / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read as safetensors"):
        timm_encoder(str(vit), CONFIG)


def test_a_name_that_cannot_be_downloaded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, pretrained: bool) -> None:
        assert pretrained
        raise OSError(f"no way to {name}")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(
        CheckpointError, match="vit_of_nobody is not a folder on this machine and could not be downloaded"
    ):
        timm_encoder("vit_of_nobody", CONFIG)


def test_bert_becomes_the_text_encoder_and_the_fusion_layers(bert: Path) -> None:
    weights, report = bert_encoders(str(bert), CONFIG)
    theirs = load_file(bert / "model.safetensors")

    torch.testing.assert_close(
        weights["text_encoder.layers.1.attention.self.key.weight"],
        theirs["encoder.layer.1.attention.self.key.weight"],
    )
    torch.testing.assert_close(
        weights["fusion_encoder.layers.0.output.dense.weight"], theirs["encoder.layer.2.output.dense.weight"]
    )
    assert {key.split(".")[0] for key in report.dropped} == {"encoder", "pooler"}
    assert {key.split(".")[2] for key in report.dropped if key.startswith("encoder.")} == {"3"}
    assert not any("crossattention" in name for name in weights)


def test_the_text_encoder_computes_the_same_as_bert(bert: Path) -> None:
    weights, _ = bert_encoders(str(bert), CONFIG)
    model = Asap(CONFIG).eval()
    model.load_state_dict(weights, strict=False)
    ids, mask = torch.randint(1, 60, (2, 7)), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    with torch.inference_mode():
        states = BertModel.from_pretrained(bert).eval()(ids, attention_mask=mask, output_hidden_states=True)
        ours = model.encode_text(ids, mask)
    torch.testing.assert_close(ours, states.hidden_states[2], atol=1e-5, rtol=1e-5)


def test_older_names_of_norms_and_a_prefix_are_translated(bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    older = {
        f"bert.{key}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in state.items()
    }
    expected, _ = bert_encoders(str(bert), CONFIG)
    save_file(older | {"cls.predictions.bias": torch.zeros(60)}, bert / "model.safetensors")
    found, report = bert_encoders(str(bert), CONFIG)
    torch.testing.assert_close(found, expected)
    assert "cls.predictions.bias" in report.dropped


def test_words_of_another_tokenizer_are_left_out(bert: Path) -> None:
    weights, report = bert_encoders(str(bert), changed(vocab_size=70), takes_words=False)
    assert "text_encoder.embeddings.word_embeddings.weight" not in weights
    assert "embeddings.word_embeddings.weight" in report.dropped
    with pytest.raises(CheckpointError, match=r"word_embeddings\.weight is \(60, 48\), not \(70, 48\)"):
        bert_encoders(str(bert), changed(vocab_size=70))


def test_a_model_that_is_not_a_bert_or_has_other_heads_is_refused(bert: Path) -> None:
    with pytest.raises(CheckpointError, match="has num_attention_heads 4 and not 6; nothing was loaded"):
        bert_encoders(str(bert), changed(heads=6))
    file = bert / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="has model_type 'gpt2' and not 'bert'"):
        bert_encoders(str(bert), CONFIG)
    file.write_text("[")
    with pytest.raises(CheckpointError, match=r"config\.json does not describe a BERT"):
        bert_encoders(str(bert), CONFIG)


def test_a_model_with_pre_norm_refuses_a_bert(bert: Path) -> None:
    with pytest.raises(CheckpointError, match="the run's text_norm is 'pre'"):
        bert_encoders(str(bert), changed(text_norm="pre"))


def test_the_tokenizer_of_a_bert_is_read_from_its_folder_if_it_has_one(bert: Path) -> None:
    assert bert_tokenizer(str(bert)) is None
    made = train_tokenizer(["a man smiles at the crowd"], 100)
    made.save_pretrained(bert)
    assert bert_tokenizer(str(bert)).get_vocab() == made.get_vocab()
    assert isinstance(bert_tokenizer(str(bert)).backend_tokenizer, Tokenizer)
