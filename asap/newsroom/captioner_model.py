"""A small captioner: stock classes of transformers, trained from random weights on the captions of a drawn corpus.

    asap newsroom corpus --pairs 48000 --seed 100 --splits 46500 1500 0
    asap newsroom unseen --pairs 3000 --seed 101 --splits 0 0 3000
    asap captioner corpus --unseen unseen --out captioner

A Swin encoder reads the picture at 128 px, since small convolution-like windows learn from few pictures, and a BERT
decoder writes the sentence. The folder holds what `AutoModelForImageTextToText` and its processors load, and a card
with how often the captions name the people, the expression, the place and the thing rightly.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from math import cos, pi
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    BertConfig,
    PreTrainedTokenizerFast,
    SwinConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
)

from asap.corpus.picture_cache import PictureCache
from asap.corpus.reader import Record, read_split
from asap.errors import ConfigError, CorpusError
from asap.evaluation.reliability import wilson_interval
from asap.newsroom.corpus import check_drawn
from asap.newsroom.lexicon import COLORS, NUMBERS, PROPS, SCENES
from asap.training.augmentation import augment

SIDE = 128
"""Side of the pictures in pixels."""
MAX_TOKENS = 48
"""Positions of the decoder. The longest caption has some 30 tokens."""
_BATCH, _WARMUP = 64, 200
_RATE, _WEIGHT_DECAY = 1e-3, 0.05
_PAD, _START, _END = "[PAD]", "[CLS]", "[SEP]"
_LIGHT = {"in warm light": "glad", "on a bright day": "glad", "in bright colours": "glad", "in dull light": "grim",
          "on a grey day": "grim", "in pale colours": "grim"}  # fmt: skip
_FACE = {"smiling": "glad", "happy": "glad", "cheerful": "glad", "frowning": "grim", "sad": "grim", "gloomy": "grim"}
FACTS = ("people", "place", "light", "expression", "head", "clothes", "thing")
"""The facts of a caption, in the order of its words."""


def read_facts(caption: str) -> dict[str, str]:
    """Return the facts that a caption names, by `FACTS`; a fact that it does not name is missing.

    Words of one meaning are one fact: "a smiling" and "a happy person" have the same expression.
    """
    facts: dict[str, str] = {}
    head, _, person = caption.partition(": ")
    numbers = {word: str(number) for number, word in enumerate(NUMBERS)}
    if (first := head.split(" ")[0]) in numbers:
        facts["people"] = numbers[first]
    for scene in SCENES:
        if f" {scene.seen} " in f" {head} ":
            facts["place"] = scene.seen
    for words, light in _LIGHT.items():
        if head.endswith(words):
            facts["light"] = light
    if found := re.match(r"an? (\w+) person with (.+), in (\w+), holding (.+)\.$", person):
        face, looks, color, thing = found.groups()
        facts |= {"head": looks.split(" and ")[0]}
        facts |= {"expression": _FACE[face]} if face in _FACE else {}
        facts |= {"clothes": color} if color in COLORS else {}
        facts |= {"thing": thing} if thing in PROPS.values() else {}
    return facts


def train_tokenizer(captions: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer, in which each word of the captions becomes one token or a few."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [_PAD, _START, _END]
    tokenizer.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=1000, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )  # fmt: skip
    ids = [(token, tokenizer.token_to_id(token)) for token in (_START, _END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_START} $A {_END}", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_PAD, cls_token=_START, sep_token=_END, bos_token=_START, eos_token=_END,
        model_max_length=MAX_TOKENS, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build_captioner(tokenizer: PreTrainedTokenizerFast) -> VisionEncoderDecoderModel:
    """Return a captioner with random weights: a Swin encoder of three stages, and a BERT decoder of three layers."""
    encoder = SwinConfig(
        image_size=SIDE, patch_size=4, embed_dim=48, depths=[2, 2, 4], num_heads=[2, 4, 8], window_size=8, mlp_ratio=3,
        drop_path_rate=0.0,
    )  # fmt: skip
    decoder = BertConfig(
        vocab_size=len(tokenizer), hidden_size=192, num_hidden_layers=3, num_attention_heads=6, intermediate_size=512,
        max_position_embeddings=MAX_TOKENS, type_vocab_size=1, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, is_decoder=True, add_cross_attention=True,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = tokenizer.bos_token_id
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    config.tie_word_embeddings = True
    model = VisionEncoderDecoderModel(config)
    generation = model.generation_config
    generation.decoder_start_token_id, generation.bos_token_id = tokenizer.bos_token_id, tokenizer.bos_token_id
    generation.pad_token_id, generation.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    generation.max_length = MAX_TOKENS
    return model


def read_captions(corpus: Path, split: str) -> tuple[list[Record], list[str]]:
    """Return the records of a split of a drawn corpus, and the caption of each picture.

    Raises `CorpusError` if the corpus was not drawn by newsroom, or has no pair in the split (`read_split`).
    """
    check_drawn(corpus)
    captions = json.loads((corpus / "captions.json").read_text("utf-8"))
    records = read_split(corpus, split)
    return records, [captions[record.id] for record in records]


def train(
    model: VisionEncoderDecoderModel,
    tokenizer: PreTrainedTokenizerFast,
    records: Sequence[Record],
    captions: Sequence[str],
    pictures: PictureCache,
    pairs: int,
    progress: Callable[[int, float], None] = lambda shown, loss: None,
) -> None:
    """Train with cross-entropy on the next token, AdamW, and a rate that falls along half a cosine.

    Half of the pictures are changed as on their way through the web, so that the captioner reads such pictures.

    Args:
        model: the captioner, changed in place.
        tokenizer: its tokenizer.
        records: the pairs.
        captions: the caption of each pair.
        pictures: the decoded pictures.
        pairs: number of pairs to show, counting each time that a pair is shown.
        progress: receives the number of pairs shown so far and the loss of the last step.
    """
    decays = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decays, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, _RATE, fused=True)
    labels = _labels(tokenizer, captions)
    steps = count_steps(pairs)
    model.train()
    for step, (rows, epoch) in zip(range(steps), _batches(len(records)), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1, (step + 1) / _WARMUP) * (1 + cos(pi * step / steps)) / 2
        pixels = np.stack([
            augment(pictures.pixels[pictures.index[records[row].image]], None, 0, epoch, row, "web")[0] for row in rows
        ])  # fmt: skip
        batch = labels[rows]
        batch = batch[:, : int((batch != -100).sum(1).max())]  # without the columns that are all padding
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(pixel_values=_normalized(pixels), labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49 or step + 1 == steps:
            progress((step + 1) * _BATCH, loss.item())
    model.eval()


def count_steps(pairs: int) -> int:
    """Return the number of steps that show so many pairs, the last ones of a step that is not full left out."""
    return max(1, pairs // _BATCH)


def _batches(count: int) -> Iterator[tuple[list[int], int]]:
    """Yield the rows of each batch and the epoch, each epoch in an order of its own, without end."""
    for epoch in range(1_000_000):
        order = np.random.default_rng((0, epoch)).permutation(count)
        for start in range(0, count - _BATCH + 1, _BATCH):
            yield order[start : start + _BATCH].tolist(), epoch


def _labels(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> Tensor:
    """Return (B, L): the tokens that the decoder is to write, -100 after their end.

    The decoder begins with [CLS], so the labels begin with the first word.
    """
    encoded = tokenizer(list(captions), padding=True, return_tensors="pt")
    labels = encoded["input_ids"][:, 1:].clone()
    labels[encoded["attention_mask"][:, 1:] == 0] = -100
    return labels


def _normalized(pixels: np.ndarray) -> Tensor:
    """Return (B, 3, S, S), from -1 to 1, as `ViTImageProcessor` of the folder does."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def evaluate(folder: Path, records: Sequence[Record], captions: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Write captions with the saved captioner, and return how many of each of `FACTS` are right, and of how many.

    The folder is loaded by the stock classes, as an engine of a scan loads it.
    """
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    right, asked = dict.fromkeys(FACTS, 0), dict.fromkeys(FACTS, 0)
    for start in range(0, len(records), _BATCH):
        chunk = records[start : start + _BATCH]
        images = [Image.open(record.image).convert("RGB") for record in chunk]
        with torch.inference_mode():
            output = model.generate(**processor(images=images, return_tensors="pt"), do_sample=False)
        written = tokenizer.batch_decode(output, skip_special_tokens=True)
        for text, caption in zip(written, captions[start : start + _BATCH], strict=True):
            found = read_facts(text)
            for name, value in read_facts(caption).items():
                asked[name] += 1
                right[name] += found.get(name) == value
    return {name: (right[name], asked[name]) for name in FACTS}


def save(model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder, with weights in half precision."""
    processor = ViTImageProcessor(
        size={"height": SIDE, "width": SIDE}, resample=Image.Resampling.BICUBIC, image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )  # fmt: skip
    for part in (model.half(), tokenizer, processor):
        part.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone


_CARD = """# asap-demo-captioner

A captioner for the pictures of `asap newsroom`: a Swin encoder and a BERT decoder (`VisionEncoderDecoderModel`,
{parameters:,} parameters, {side} px). It writes one sentence about the scene, the light, the number of people, and the
looks of the person in front. It is here to show and test captions in a scan: do not use it for photographs.

## How often it is right

On {pairs:,} pairs of {unseen}, which training never saw. A caption counts
as right in a fact if it names the same as the caption of the corpus; words of one meaning count as the same. The
intervals are Wilson's, with 95 % confidence.

| fact | right | 95 % interval |
|---|---|---|
{rows}

The true captions describe the picture as it is shown, so the expression of a manipulated face is that of the
manipulation. One true caption in ten leaves out a beard, which no reader of the picture can know.

## Training

{shown:,} pictures of {corpus} were shown in {minutes:.0f} minutes on a CPU,
half of them changed as on their way through the web. These commands made it:

```sh
{commands}
```
"""


def card(
    folder: Path, figures: dict[str, tuple[int, int]], model: VisionEncoderDecoderModel, pairs: int, minutes: float,
    corpora: Sequence[Path],
) -> str:  # fmt: skip
    """Return the card of the captioner.

    Args:
        folder: the folder of the captioner.
        figures: the result of `evaluate`.
        model: the captioner.
        pairs: the number of pairs that were shown.
        minutes: the minutes of training.
        corpora: the corpus of the training and the unseen one.
    """
    rows, names, commands = [], [], []
    for name, (right, asked) in figures.items():
        if not asked:
            continue  # no caption of a small corpus names it
        low, high = wilson_interval(right, asked)
        rows.append(f"| {name} | {right / asked:.3f} | {low:.3f} to {high:.3f} |")
    for corpus in corpora:
        about = json.loads((corpus / "newsroom.json").read_text("utf-8"))
        names.append(f"a drawn corpus ({about['corpus_version']}, seed {about['seed']})")
        splits = " ".join(str(about["splits"][split]) for split in ("train", "val", "test"))
        commands.append(
            f"asap newsroom {corpus.name} --pairs {about['pairs']} --seed {about['seed']} --splits {splits}"
        )
    commands.append(f"asap captioner {corpora[0].name} --unseen {corpora[1].name} --out {folder.name} --pairs {pairs}")
    return _CARD.format(
        parameters=model.num_parameters(), side=SIDE, pairs=max(asked for _, asked in figures.values()),
        unseen=names[1], rows="\n".join(rows), shown=count_steps(pairs) * _BATCH, corpus=names[0], minutes=minutes,
        commands="\n".join(commands),
    )  # fmt: skip


def make_captioner(
    corpus: Path,
    unseen: Path,
    out: Path,
    pairs: int,
    cache: Path | None = None,
    progress: Callable[[int, float], None] = lambda shown, loss: None,
) -> str:
    """Train a captioner on a drawn corpus, save it, evaluate what was saved, and return its card.

    Args:
        corpus: a newsroom corpus, whose train split is learned.
        unseen: a newsroom corpus of another seed, whose test split is for the card.
        out: the new folder of the captioner.
        pairs: number of pairs to show, counting each time that a pair is shown.
        cache: the folder of the decoded pictures. None: a temporary one.
        progress: receives the number of pairs shown so far and the loss of the last step.

    Raises:
        ConfigError: the folder exists.
        CorpusError: a corpus was not drawn by newsroom, or has no pair in the split or too few to learn from.
    """
    if out.exists():
        raise ConfigError(f"folder {out} exists. Name a new folder for the captioner.")
    (records, captions), seen_later = read_captions(corpus, "train"), read_captions(unseen, "test")
    if len(records) < _BATCH:
        raise CorpusError(f"{corpus} has {len(records)} pairs to learn from; one step takes {_BATCH}. Draw more pairs.")
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    with TemporaryDirectory(prefix="asap-captioner-") as temporary:
        pictures = PictureCache.prepare(records, SIDE, cache or Path(temporary))
        tokenizer = train_tokenizer(captions)
        model = build_captioner(tokenizer)
        began = time.monotonic()
        train(model, tokenizer, records, captions, pictures, pairs, progress)
        minutes = (time.monotonic() - began) / 60
    save(model, tokenizer, out)
    figures = evaluate(out, *seen_later)
    text = card(out, figures, model, pairs, minutes, (corpus, unseen))
    (out / "README.md").write_text(text, "utf-8")
    return text
