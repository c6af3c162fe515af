"""Descriptions by a model of transformers in this process. Code that comes with the model is not run.

A model with a chat template gets the prompt as a message. One without gets plain words: its task words if they are
known, or the prompt of the settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from PIL import Image

from asap.errors import ConfigError
from jobs.descriptions.engine import Failure, FailureKind, Outcome, Request, Usage
from jobs.descriptions.model_files import find_commit, is_hub_name, local_source
from jobs.descriptions.pixels import cap_pixels
from jobs.descriptions.prompts import chat_prompt, fill, plain_prompt
from jobs.descriptions.replies import read_reply
from jobs.descriptions.settings import DescriptionSettings

_CPU_ALLOCATOR = "DefaultCPUAllocator"
"""Words of torch's message if a CPU has no memory left."""
_UNUSED = (
    "max_length", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "num_return_sequences", "return_dict_in_generate",
)  # fmt: skip
"""Generation settings of a folder that do not act: nothing is sampled, the limit is `max_new_tokens`, and one text is
written."""


class TransformersEngine:
    """An image-text-to-text model, or a language model for explanations.

    Raises `ConfigError` if the source is no such model, or if nobody knows how to ask it.

    Args:
        settings: Settings of the engine.
        device: Device of the model. None: CUDA if there is any, else the CPU.
    """

    def __init__(self, settings: DescriptionSettings, device: str | None = None) -> None:
        import torch

        self._settings = settings
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model, self._processor, self._revision = _load(settings, self._device)
        cap_pixels(self._processor, settings.max_side, self._model.config)
        self._tokenizer = getattr(self._processor, "tokenizer", self._processor)
        self._is_chat = bool(getattr(self._processor, "chat_template", None))
        self._prompt = chat_prompt(settings) if self._is_chat else plain_prompt(settings, self._model.config.model_type)
        writer = _find_writer(self._model)
        if not writer.config.is_encoder_decoder:
            self._tokenizer.padding_side = "left"  # a batch of prompts must end together
            if self._tokenizer.pad_token is None:
                self._tokenizer.pad_token = self._tokenizer.eos_token
        self._generation = writer.generation_config
        # Each batch would warn of settings that do not act, and the record would hold them.
        self._generation.update(do_sample=False, **dict.fromkeys(_UNUSED))
        self._ends = _end_tokens(self._model, self._generation, self._tokenizer)

    def describe(self, requests: Sequence[Request]) -> list[Outcome]:
        """Describe in batches. A batch that fails is halved until only the culprit is left.

        `Predictor` halves too, but by rows and then by the passes of one row, and its device errors are raised.

        No request is to blame for a broken device (`AcceleratorError`): it ends the process.
        """
        outcomes: list[Outcome | None] = [self._missing(request) for request in requests]
        positions = [position for position, outcome in enumerate(outcomes) if outcome is None]
        size = self._settings.batch_size
        for start in range(0, len(positions), size):
            batch = positions[start : start + size]
            described = self._describe_safely([requests[position] for position in batch])
            for position, outcome in zip(batch, described, strict=True):
                outcomes[position] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def record(self) -> dict[str, Any]:
        """Return the model, its revision, the prompt and the generation settings."""
        import transformers

        config, settings = self._model.config, self._settings
        return {
            "engine": "transformers", "model": settings.source, "model_type": config.model_type,
            "revision": self._revision, "prompt": self._prompt,
            "max_new_tokens": settings.max_new_tokens, "max_side": settings.max_side,
            "batch_size": settings.batch_size, "do_sample": False, "num_beams": self._generation.num_beams or 1,
            "generation": _settings_of_folder(self._generation), "device": self._device,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "attention": getattr(config, "_attn_implementation", None), "transformers": transformers.__version__,
        }  # fmt: skip

    def close(self) -> None:
        """Free the memory of the model."""
        import torch

        del self._model
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _missing(self, request: Request) -> Failure | None:
        if self._settings.kind == "caption":
            return Failure("no_input", "there is no picture") if request.image is None else None
        return None if (request.text or "").strip() else Failure("no_input", "there is no text")

    def _describe_safely(self, requests: Sequence[Request]) -> list[Outcome]:
        import torch

        try:
            return self._generate(requests)
        except torch.AcceleratorError:
            os._exit(1)  # the device computes nothing more in this process: let Ray start another and try again
        except Exception as error:
            # torch has no class for a CPU without memory.
            out_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _CPU_ALLOCATOR in str(error)
            kind: FailureKind = "out_of_memory" if out_of_memory else "model_error"
            failure = Failure(kind, f"{type(error).__name__}: {error}")
        if out_of_memory and self._device.startswith("cuda"):  # outside the handler: its traceback holds the tensors
            torch.cuda.empty_cache()
        if len(requests) == 1:
            return [failure]
        half = (len(requests) + 1) // 2
        return self._describe_safely(requests[:half]) + self._describe_safely(requests[half:])

    def _generate(self, requests: Sequence[Request]) -> list[Outcome]:
        import torch

        inputs = self._inputs(requests).to(self._device)
        for name, value in inputs.items():
            if torch.is_floating_point(value):
                inputs[name] = value.to(self._model.dtype)
        with torch.inference_mode():
            beginning = _Beginning()
            output = self._model.generate(
                **inputs, max_new_tokens=self._settings.max_new_tokens, logits_processor=[beginning]
            )
        mask = inputs.get("attention_mask")
        prompt_tokens = [0] * len(requests) if mask is None else mask.sum(dim=1).tolist()
        new = output[:, beginning.length :].tolist()
        return [self._read(tokens, count) for tokens, count in zip(new, prompt_tokens, strict=True)]

    def _read(self, tokens: list[int], prompt_tokens: int) -> Outcome:
        end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
        written = tokens if end is None else tokens[:end]
        special = set(self._tokenizer.all_special_ids) - self._ends
        text = self._tokenizer.decode(written, skip_special_tokens=True)
        # Some models are made to end their text at the limit, wherever they are in it (`forced_eos_token_id`).
        forced = end is not None and self._generation.forced_eos_token_id is not None
        return read_reply(
            text,
            is_cut=(end is None or forced) and len(written) + forced >= self._settings.max_new_tokens,
            wrote_special=any(token in special for token in written),
            usage=Usage(prompt_tokens, len(written)),
        )

    def _inputs(self, requests: Sequence[Request]) -> Any:
        """Return the tensors of a batch: pictures and prompts, or prompts with the texts in them."""
        if self._settings.kind == "explanation":
            texts = [fill(self._prompt or "", request.text) for request in requests]
            if self._is_chat:
                texts = [self._chat([{"type": "text", "text": text}]) for text in texts]
            # Many models refuse token types, and none needs them here.
            return self._tokenizer(texts, **self._text_options(texts), return_token_type_ids=False)
        images = [self._shrunk(request.image) for request in requests]
        if self._is_chat:
            texts = [
                self._chat([{"type": "image"}, {"type": "text", "text": fill(self._prompt or "", request.text)}])
                for request in requests
            ]
            return self._processor(images=[[image] for image in images], text=texts, **self._text_options(texts))
        if self._prompt is None:
            return self._processor(images=images, return_tensors="pt")
        texts = [fill(self._prompt, request.text) for request in requests]
        options = self._text_options(texts)
        if self._model.config.model_type == "git":  # it goes on with its words, which may not have ended
            texts = [f"{self._tokenizer.cls_token}{text}" for text in texts]
            options |= {"add_special_tokens": False, "return_token_type_ids": False}
        return self._processor(images=images, text=texts, **options)

    def _text_options(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return how texts become tokens. The first token of a prompt comes from the tokenizer or from the template."""
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        # Templates of language models write it. Those of models that see differ, so transformers looks, as here.
        first = self._tokenizer.bos_token
        if self._is_chat and (self._processor is self._tokenizer or (first and texts[0].startswith(first))):
            options["add_special_tokens"] = False
        return options

    def _chat(self, content: list[dict[str, str]]) -> str:
        """Return a message as the model's template writes it."""
        # Templates of language models take a string, those of models that see take parts.
        message: Any = content[0]["text"] if self._processor is self._tokenizer else content
        text: str = self._processor.apply_chat_template(
            [{"role": "user", "content": message}], add_generation_prompt=True, tokenize=False
        )
        return text

    def _shrunk(self, image: Image.Image | None) -> Image.Image:
        if image is None:
            raise ValueError("there is no picture")
        shrunk = image.convert("RGB")
        shrunk.thumbnail((self._settings.max_side, self._settings.max_side))
        return shrunk


def _load(settings: DescriptionSettings, device: str) -> tuple[Any, Any, str | None]:
    """Load the model and what prepares its inputs; return them with the revision, which is a commit on the hub.

    Raises `ConfigError`, in a sentence, if they are not there.
    """
    import torch
    import transformers
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        GenerationMixin,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a plan would show the bar of the weights between its tables
    source = local_source(settings.place)
    revision = settings.revision
    wanted = "captions" if settings.kind == "caption" else "explanations"
    try:
        if is_hub_name(source):
            revision = find_commit(source, revision or "main")
        common: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
        config = AutoConfig.from_pretrained(source, **common)
        sees = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        kinds = {
            AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            AutoModelForSeq2SeqLM: MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
            AutoModelForImageTextToText: MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        }
        if settings.kind == "caption":
            kinds = {AutoModelForImageTextToText: MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
        kind = next((kind for kind, names in kinds.items() if config.model_type in names), None)
        # Some of these types move a robot, or write all words at once.
        if kind is None or not issubclass(getattr(transformers, kinds[kind][config.model_type]), GenerationMixin):
            raise ConfigError(
                f"the model {settings.source} (type {config.model_type}) cannot write {wanted}. Give "
                f"{'an image-text-to-text model' if settings.kind == 'caption' else 'a language model'}."
            )
        dtype = getattr(torch, settings.dtype or ("bfloat16" if device.startswith("cuda") else "float32"))
        attention = {} if settings.attention is None else {"attn_implementation": settings.attention}
        model = kind.from_pretrained(source, dtype=dtype, **attention, **common).to(device).eval()
        processor = _load_processor(source, common) if sees else AutoTokenizer.from_pretrained(source, **common)
    except ConfigError:
        raise
    except Exception as error:  # a folder may be wrong in any way, and its readers raise anything
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"the model {settings.source} for {wanted} needs code that lies beside it, and such code is not run. "
                "Give a model of a type that transformers has itself."
            ) from error
        reason = " ".join(str(error).split())
        raise ConfigError(f"the model {settings.source} for {wanted} cannot be loaded: {reason[:400]}") from error
    return model, processor, revision


class _PicturesAndTokens:
    """The processor of a model whose folder holds an image processor and a tokenizer, and nothing that joins them."""

    def __init__(self, images: Any, tokenizer: Any) -> None:
        self._images, self.tokenizer = images, tokenizer

    def __call__(self, images: Any, return_tensors: str) -> Any:
        return self._images(images=images, return_tensors=return_tensors)


def _load_processor(source: str, common: dict[str, Any]) -> Any:
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    try:
        processor = AutoProcessor.from_pretrained(source, **common)
    except (OSError, ValueError, KeyError):
        processor = None
    if getattr(processor, "tokenizer", None) is not None:
        return processor
    return _PicturesAndTokens(
        AutoImageProcessor.from_pretrained(source, **common), AutoTokenizer.from_pretrained(source, **common)
    )


class _Beginning:
    """The number of tokens that stand in the output before the first new one.

    They are the prompt, tokens that the model puts in the place of a picture, or the token that starts a decoder.
    Models differ in what they return of them, and what they return is what they hand to a processor of their scores.
    """

    length: int | None = None

    def __call__(self, tokens: Any, scores: Any) -> Any:
        if self.length is None:
            self.length = tokens.shape[1]
        return scores


def _find_writer(model: Any) -> Any:
    """Return the part of a model that writes. Some hand the work to a language model with settings of its own."""
    from transformers import GenerationMixin

    if type(model).generate is GenerationMixin.generate:
        return model
    return next((part for part in model.children() if isinstance(part, GenerationMixin)), model)


def _settings_of_folder(generation: Any) -> dict[str, Any]:
    """Return the generation settings that a model's folder gives and that may change a text."""
    left_out = [*_UNUSED, "do_sample", "num_beams", "output_attentions", "output_hidden_states", "use_cache"]
    given: dict[str, Any] = json.loads(generation.to_json_string(ignore_metadata=True, keys_to_pop=left_out))
    return given


def _end_tokens(model: Any, generation: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end a text, or fill it up after its end."""
    config = model.config
    texts = [config, getattr(config, "text_config", None), getattr(config, "decoder", None), generation]
    names = ("eos_token_id", "pad_token_id", "sep_token_id")
    found = [getattr(owner, name, None) for owner in [*texts, tokenizer] if owner is not None for name in names]
    ids = [token for value in found for token in (value if isinstance(value, list) else [value])]
    return {token for token in ids if token is not None}
