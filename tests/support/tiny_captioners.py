"""Captioners and a language model of a few thousand random weights, in the forms that transformers saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "man", "woman", "smiles", "crowd", "in", "the", "street"]
_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_IDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
_VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 16,
}  # fmt: skip
_LLAMA: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "initializer_range": 1.0,
} | _IDS  # fmt: skip
"""The weights are not small (`initializer_range`), so that no two words score alike."""

_SEEING_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
)
"""Chat template of a model that sees."""


def _tokenizer(*more: str) -> Any:
    from transformers import BertTokenizerFast

    tokens = [*_TOKENS, *more, *WORDS]
    tokenizer = BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)})
    if more:
        tokenizer.add_special_tokens({"additional_special_tokens": list(more)})
    return tokenizer


def _words_only(model: Any, special: int) -> None:
    """Have a model write words, whatever its weights."""
    model.generation_config.suppress_tokens = list(range(special))


def save_blip(folder: Path) -> str:
    """Save a captioner that takes no prompt, or the beginning of its caption."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    text = {"vocab_size": 13, "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32,
            "sep_token_id": 3}  # fmt: skip
    torch.manual_seed(0)
    config = BlipConfig(text_config=text | _IDS, vision_config=_VISION, projection_dim=16)
    model = BlipForConditionalGeneration(config)
    _words_only(model, 5)
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), _tokenizer()).save_pretrained(folder)
    return str(folder)


def save_llava(folder: Path, *, with_template: bool = True, writes_first: bool | None = None) -> str:
    """Save a chat model that sees.

    Args:
        folder: Folder of the model.
        with_template: False: nobody knows how to ask it.
        writes_first: True if the template writes the first token, as that of Gemma 3 does. None: there is none.
    """
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": 14} | _LLAMA,
        vision_config={"model_type": "clip_vision_model", "projection_dim": 16} | _VISION,
        image_token_index=5,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    _words_only(model, 6)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    tokenizer = _tokenizer("<image>")
    if writes_first is not None:
        tokenizer.bos_token = "[CLS]"
    template = "[CLS]" * bool(writes_first) + _SEEING_TEMPLATE
    LlavaProcessor(
        images, tokenizer, patch_size=16, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template if with_template else None, image_token="<image>",
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def save_llava_next(folder: Path) -> str:
    """Save a chat model that sees a picture as tiles of 32 pixels, in one of five grids, and once as a whole."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    grids = [[32, 64], [64, 32], [64, 64], [96, 64], [96, 96]]
    config = LlavaNextConfig(
        text_config={"model_type": "llama", "vocab_size": 14, "max_position_embeddings": 512} | _LLAMA,
        vision_config={"model_type": "clip_vision_model", "projection_dim": 16} | _VISION,
        image_token_index=5,
        image_grid_pinpoints=grids,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaNextForConditionalGeneration(config)
    _words_only(model, 6)
    model.save_pretrained(folder)
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grids
    )
    LlavaNextProcessor(
        images, _tokenizer("<image>"), patch_size=16, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=_SEEING_TEMPLATE, image_token="<image>",
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def save_encoder_decoder(folder: Path, *, words_only: bool = True) -> str:
    """Save a ViT that a causal BERT reads. Image processor and tokenizer lie beside each other in the folder."""
    from transformers import (
        BertConfig,
        BertLMHeadModel,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
    )

    torch.manual_seed(0)
    decoder = BertConfig(
        vocab_size=13, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, is_decoder=True, add_cross_attention=True, initializer_range=1.0, **_IDS,
    )  # fmt: skip
    model = VisionEncoderDecoderModel(encoder=ViTModel(ViTConfig(**_VISION)), decoder=BertLMHeadModel(decoder))
    for name, value in ({"decoder_start_token_id": 2} | _IDS).items():
        setattr(model.config, name, value)
        setattr(model.generation_config, name, value)
    if words_only:
        _words_only(model, 5)
    else:
        model.generation_config.suppress_tokens = [0, 3, *range(5, 13)]
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return str(folder)


def save_language_model(folder: Path, *, with_template: bool = True) -> str:
    """Save a language model, with a chat template or without."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=13, max_position_embeddings=512, **_LLAMA))
    _words_only(model, 5)
    model.save_pretrained(folder)
    tokenizer = _tokenizer()
    if with_template:
        tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %} the"
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_paligemma(folder: Path) -> str:
    """Save a model that is asked by task words: it has no chat template."""
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    torch.manual_seed(0)
    tokenizer = _tokenizer("<image>")
    text = GemmaConfig(
        vocab_size=2048, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, initializer_range=1.0, **_IDS,
    )  # fmt: skip
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**_VISION), text_config=text, image_token_index=5, projection_dim=16
    )
    model = PaliGemmaForConditionalGeneration(config)
    model.generation_config.suppress_tokens = [number for number in range(2048) if not 6 <= number < 14]
    model.save_pretrained(folder)
    images = SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 4
    PaliGemmaProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


def save_florence2(folder: Path) -> str:
    """Save a model whose processor turns its task words into a question, and which is made to end at the limit."""
    from transformers import (
        BertTokenizerFast,
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
    )

    tokens = [*_TOKENS, "<image>", *WORDS, "what", "does", "image", "describe"]
    tokenizer = BertTokenizerFast(
        vocab={token: number for number, token in enumerate(tokens)}, bos_token="[CLS]", eos_token="[SEP]",
        extra_special_tokens={"image_token": "<image>"}, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    text = {
        "model_type": "bart", "vocab_size": len(tokens), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
        "max_position_embeddings": 128, "decoder_start_token_id": 3, "forced_eos_token_id": 3, "init_std": 1.0,
    } | _IDS  # fmt: skip
    vision = {
        "in_channels": 3, "depths": (1, 1, 1, 1), "embed_dim": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1),
        "num_groups": (1, 1, 1, 1), "window_size": 2, "projection_dim": 16, "max_temporal_embeddings": 4,
        "max_position_embeddings": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Florence2ForConditionalGeneration(Florence2Config(text_config=text, vision_config=vision, image_token_id=5))
    model.generation_config.suppress_tokens = [0, 1, 2, 4, 5]
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    images.image_seq_length = 2
    Florence2Processor(images, tokenizer, num_additional_image_tokens=0).save_pretrained(folder)
    return str(folder)


def _opt() -> Any:
    """Return the configuration of OPT, whose first token is its end token too."""
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=14, hidden_size=16, word_embed_proj_dim=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, init_std=1.0, bos_token_id=3, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip


def _t5() -> Any:
    """Return the configuration of T5, whose decoder starts with the token that pads."""
    from transformers import T5Config

    return T5Config(
        vocab_size=14, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, bos_token_id=3,
        eos_token_id=3, pad_token_id=0,
    )  # fmt: skip


_QFORMER: dict[str, Any] = {
    "vocab_size": 13, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "encoder_hidden_size": 16, "initializer_range": 1.0,
}  # fmt: skip
_OWN_VISION = _VISION | {"initializer_range": 1.0}


def _mute_special_tokens(language_model: Any, special: int) -> None:
    """Have a model write words by its weights: the settings of its folder do not reach its language model."""
    with torch.no_grad():
        weights = language_model.get_output_embeddings().weight
        weights[:special] = 0
        # A word or its opposite scores more than nothing.
        weights[special + 4 : special + 8] = -weights[special : special + 4]


def _framed_tokenizer(text_model: str) -> Any:
    """Return a tokenizer that begins a text as OPT does, or ends it as T5 does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = _tokenizer("<image>")
    template = "[SEP] $A" if text_model == "opt" else "$A [SEP]"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("[SEP]", 3)])
    tokenizer.bos_token = tokenizer.eos_token = "[SEP]"
    return tokenizer


def save_blip2(folder: Path, *, text_model: str = "opt") -> str:
    """Save a model that puts tokens in the place of a picture before a language model's text."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor

    torch.manual_seed(0)
    text = _opt() if text_model == "opt" else _t5()
    config = Blip2Config(
        vision_config=_OWN_VISION, qformer_config=_QFORMER, text_config=text.to_dict(), num_query_tokens=2,
        image_token_index=5,
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    torch.nn.init.normal_(model.language_projection.weight)
    _mute_special_tokens(model.language_model, 6)
    model.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(images, _framed_tokenizer(text_model), num_query_tokens=2).save_pretrained(folder)
    return str(folder)


def save_instructblip(folder: Path, *, text_model: str = "opt") -> str:
    """Save a model like BLIP-2 that reads an instruction twice, and does not say that its T5 has a decoder."""
    from transformers import (
        BlipImageProcessor,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
    )

    torch.manual_seed(0)
    text = _opt() if text_model == "opt" else _t5()
    config = InstructBlipConfig(
        vision_config=_OWN_VISION, qformer_config=_QFORMER, text_config=text.to_dict(), num_query_tokens=2,
        image_token_index=5,
    )  # fmt: skip
    model = InstructBlipForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    torch.nn.init.normal_(model.language_projection.weight)
    _mute_special_tokens(model.language_model, 6)
    model.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    InstructBlipProcessor(images, _framed_tokenizer(text_model), _tokenizer(), num_query_tokens=2).save_pretrained(
        folder
    )
    return str(folder)


def save_kosmos2(folder: Path) -> str:
    """Save a model that goes on with the words `An image of`, behind 64 tokens in the place of a picture."""
    from transformers import (
        BertTokenizerFast,
        CLIPImageProcessor,
        Kosmos2Config,
        Kosmos2ForConditionalGeneration,
        Kosmos2Processor,
    )

    # The tokens of a picture are the 64 after the unknown one.
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *(f"[{number}]" for number in range(64)), *WORDS, "an", "image", "of"]
    tokenizer = BertTokenizerFast(
        vocab={token: number for number, token in enumerate(tokens)}, bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", unk_token="<unk>", sep_token="</s>", cls_token="<s>",
    )  # fmt: skip
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    processor = Kosmos2Processor(images, tokenizer, num_patch_index_tokens=4)
    text = {
        "vocab_size": len(tokenizer), "embed_dim": 16, "layers": 1, "ffn_dim": 16, "attention_heads": 2,
        "init_std": 1.0, "max_position_embeddings": 128,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Kosmos2ForConditionalGeneration(Kosmos2Config(text_config=text, vision_config=_VISION, latent_query_num=64))
    _mute_special_tokens(model.text_model, 68)
    with torch.no_grad():
        model.text_model.get_output_embeddings().weight[76:] = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def save_git(folder: Path) -> str:
    """Save a model that begins with a token of its own and returns it."""
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    torch.manual_seed(0)
    config = GitConfig(
        vision_config=_VISION, vocab_size=13, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, initializer_range=1.0, **_IDS,
    )  # fmt: skip
    model = GitForCausalLM(config)
    _words_only(model, 5)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    GitProcessor(images, _tokenizer()).save_pretrained(folder)
    return str(folder)


def change_weights(folder: Path) -> None:
    """Replace the weights of a saved model by others of the same size, as a copy of another model would."""
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    draft = folder / "draft"  # what a process has mapped stays as it is
    draft.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    draft.replace(weights)
