"""Pre-train the encoders of a small model on true descriptions of pictures: a stand-in for ALBEF's weights.

As in ALBEF (Li et al., NeurIPS 2021): the contrast of pictures and texts with momentum queues, image-text matching with
hard negatives, and masked language modeling with the picture. No label of a manipulation is read. The text of a pair is
used only if the pair is authentic; any other picture is shown with its caption, which describes it as it is shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.storage.files import write_atomically
from asap.training.batch import Tokens
from asap.training.dataset import Sample, TrainingSet, collate
from asap.training.losses import contrastive_loss, diagonal_targets, masked_word_loss, soft_targets
from asap.training.momentum import FeatureQueues, MomentumTwin
from asap.training.optimizer import adamw, warmup_cosine
from asap.training.word_prediction import MaskedWordHead, mask_words

BATCH = 32
QUEUE = 2048
ALPHA = 0.4
LEARNING_RATE = 1e-3
WARMUP_STEPS = 100
STEPS_A_CHECKPOINT = 200
PRETRAINED = (
    "image_encoder.", "text_encoder.", "fusion_encoder.", "image_projection.", "text_projection.", "temperature",
)  # fmt: skip
"""The weights that a start holds, as ALBEF's weights do; all heads and the image side are fresh."""


class Described(NamedTuple):
    """A picture with a true description: a record, and whether its text or its caption is shown."""

    record: int
    shows_text: bool


def descriptions(pairs: TrainingSet) -> list[Described]:
    """Return the true descriptions of a corpus: texts of authentic pairs twice, captions of all others once.

    A third of the pairs is authentic, so that texts and captions are about as frequent.
    """
    found: list[Described] = []
    for number, record in enumerate(pairs.records):
        authentic = record.fake_cls == "orig"
        found += [Described(number, authentic)] * (2 if authentic else 1)
    return found


class Pretraining(nn.Module):
    """The student, its momentum twin, and the three terms of ALBEF."""

    def __init__(self, config: ModelConfig, mask_id: int) -> None:
        super().__init__()
        self.student = Asap(config)
        self.twin = MomentumTwin(self.student, 0.995)
        self.queues = FeatureQueues(config, QUEUE)
        self.masked_words = MaskedWordHead(config)
        self.match_head = nn.Linear(config.width, 2)
        self.mask_id = mask_id

    def forward(self, images: Tensor, text: Tokens, alpha: float) -> dict[str, Tensor]:
        """Return the terms: contrast (`itc`), matching (`itm`) and masked words (`mlm`)."""
        student, twin = self.student, self.twin.model
        with torch.no_grad():
            student.temperature.clamp_(0.001, 0.5)
            self.twin.update_parameters(student)
            keys = {"image": twin.image_features(twin.encode_image(images)),
                    "text": twin.text_features(twin.encode_text(*text))}  # fmt: skip
        image_BNW, text_BLW = student.encode_image(images), student.encode_text(*text)
        features = {"image": student.image_features(image_BNW), "text": student.text_features(text_BLW)}
        terms = {"itc": self._contrast(features, keys, alpha)}
        self.queues.enqueue(keys)
        with torch.no_grad():
            similarity_BB = features["image"] @ features["text"].t() / student.temperature
        terms["itm"] = self._matching(image_BNW, text_BLW, text.mask, similarity_BB)
        terms["mlm"], _ = self.predict_words(image_BNW, text)
        return terms | {"total": torch.stack(list(terms.values())).sum()}

    def _contrast(self, features: dict[str, Tensor], twin: dict[str, Tensor], alpha: float) -> Tensor:
        temperature = self.student.temperature
        terms = []
        for query, key in (("image", "text"), ("text", "image")):
            keys_EK = self.queues.keys(key, twin[key])
            hard_BK = diagonal_targets(torch.ones(len(twin[key])), keys_EK.shape[1])
            targets_BK = soft_targets(twin[query], keys_EK, hard_BK, temperature.detach(), alpha)
            terms.append(contrastive_loss(features[query], keys_EK, targets_BK, temperature))
        return torch.stack(terms).mean()

    def _matching(self, image_BNW: Tensor, text_BLW: Tensor, mask_BL: Tensor, similarity_BB: Tensor) -> Tensor:
        """Return the cross entropy of matched against hard unmatched pairs: each picture's and each text's nearest."""
        own_BB = torch.eye(len(image_BNW), dtype=torch.bool)
        text_of_image = torch.multinomial(similarity_BB.masked_fill(own_BB, -1e4).softmax(dim=1), 1).squeeze(1)
        image_of_text = torch.multinomial(similarity_BB.t().masked_fill(own_BB, -1e4).softmax(dim=1), 1).squeeze(1)
        images = torch.cat([image_BNW, image_BNW, image_BNW[image_of_text]])
        texts = torch.cat([text_BLW, text_BLW[text_of_image], text_BLW])
        masks = torch.cat([mask_BL, mask_BL[text_of_image], mask_BL])
        tokens_TLW, _ = self.student.fusion_encoder(texts, masks, images)
        labels_T = torch.arange(len(images)) < len(image_BNW)
        return F.cross_entropy(self.match_head(tokens_TLW[:, 0]), labels_T.long())

    def predict_words(self, image_BNW: Tensor, text: Tokens) -> tuple[Tensor, Tensor]:
        """Return the loss of the hidden words, and the share of them that is predicted."""
        shown_BL, hidden_BL = mask_words(text, self.mask_id, self.student.config.vocab_size)
        tokens_BLW, _ = self.student.fusion_encoder(self.student.encode_text(shown_BL, text.mask), text.mask, image_BNW)
        words_VW = self.student.text_encoder.embeddings.word_embeddings.weight
        logits_TV = self.masked_words(tokens_BLW[hidden_BL], words_VW)
        right = (logits_TV.argmax(dim=1) == text.input_ids[hidden_BL]).float().mean()
        return masked_word_loss(logits_TV, text.input_ids, hidden_BL), right.detach()


def _batch(pairs: TrainingSet, config: ModelConfig, some: list[Described], **how: Any) -> tuple[Tensor, Tokens]:
    samples: list[Sample] = []
    for described in some:
        sample = pairs.sample(described.record, **how)
        if not described.shows_text:
            words = [0] * (len(sample.caption_ids) - 1)  # labels of tokens that nothing reads
            sample = replace(sample, text_ids=sample.caption_ids, token_labels=words)
        samples.append(sample)
    batch = collate(samples, config, pairs.pad_id).normalized()
    return batch.images, batch.text


def _orders(count: int, total: int, seed: int) -> NDArray[np.int64]:
    epochs = -(-total // count)
    return np.concatenate([np.random.default_rng((seed, epoch)).permutation(count) for epoch in range(epochs)])


def pretrain(
    pairs: TrainingSet, config: ModelConfig, file: Path, budget: int, seed: int = 0
) -> Iterator[dict[str, float]]:
    """Pre-train on `budget` described pictures and write the start; yield the terms of each step.

    The state is kept beside the file, so that the same call continues after an interruption.
    """
    torch.manual_seed(seed)
    mask_id = pairs.codec.tokenizer.mask_token_id
    step_module = Pretraining(config, mask_id)
    steps = budget // BATCH
    optimizer = adamw(step_module, LEARNING_RATE, LEARNING_RATE, 0.02)
    schedule = warmup_cosine(optimizer, WARMUP_STEPS, steps)
    described = descriptions(pairs)
    order = _orders(len(described), budget, seed)
    state_file, done = file.with_suffix(".state.pt"), 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)  # noqa: TID251  # our own file
        step_module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        done = state["done"]
    step_module.train()
    while done < steps:
        started = time.process_time()
        rows = range(done * BATCH, (done + 1) * BATCH)
        some = [described[int(order[row])] for row in rows]
        # The epoch draws the flip: each half of the budget shows a picture anew.
        images, text = _batch(pairs, config, some, augmentation="flip", seed=seed, epoch=rows[0] // len(described))
        optimizer.zero_grad()
        terms = step_module(images, text, ALPHA * min(1.0, 4 * done / steps))
        terms["total"].backward()
        torch.nn.utils.clip_grad_norm_(step_module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        done += 1
        if done % STEPS_A_CHECKPOINT == 0 or done == steps:
            with write_atomically(state_file) as draft:
                torch.save({"module": step_module.state_dict(), "optimizer": optimizer.state_dict(), "done": done,
                            "schedule": schedule.state_dict(), "rng": torch.get_rng_state()}, draft)  # fmt: skip
        values = {name: float(value.detach()) for name, value in terms.items()}
        yield values | {"step": done, "steps": steps, "cpu_ms_a_pair": 1000 * (time.process_time() - started) / BATCH}
    # The average of the weights is the start of student and twin alike.
    weights = step_module.twin.model.state_dict()
    start = {f"student.{name}": value for name, value in weights.items() if name.startswith(PRETRAINED)}
    with write_atomically(file) as draft:
        save_file(start, draft)


@torch.inference_mode()
def evaluate(pairs: TrainingSet, config: ModelConfig, file: Path) -> dict[str, float]:
    """Return what the pre-training learned, on pairs that it has not seen.

    `R@1`: the share of pictures whose own description is the nearest in a batch of 64, and of descriptions likewise.
    `matched`: accuracy of matching (half of the pairs match). `words`: the share of hidden words that is predicted with
    the picture, and `words_elsewhere` with another picture.
    """
    torch.manual_seed(0)
    step_module = Pretraining(config, pairs.codec.tokenizer.mask_token_id)
    state = torch.load(file.with_suffix(".state.pt"), weights_only=True)  # noqa: TID251  # our own file
    step_module.load_state_dict(state["module"])
    step_module.eval()
    sums: dict[str, list[float]] = {}
    described = descriptions(pairs)
    described = [described[int(number)] for number in np.random.default_rng(0).permutation(len(described))]
    for first in range(0, len(described) - 63, 64):
        images, text = _batch(pairs, config, described[first : first + 64])
        model = step_module.student
        image_BNW, text_BLW = model.encode_image(images), model.encode_text(*text)
        similarity_BB = model.image_features(image_BNW) @ model.text_features(text_BLW).t()
        own_B = torch.arange(64)
        matched = [step_module.match_head(model.fusion_encoder(text_BLW, text.mask, images_BNW)[0][:, 0]).argmax(dim=1)
                   for images_BNW in (image_BNW, image_BNW.roll(1, dims=0))]  # fmt: skip
        found = {
            "R@1 text": (similarity_BB.argmax(dim=1) == own_B).float().mean(),
            "R@1 image": (similarity_BB.argmax(dim=0) == own_B).float().mean(),
            "matched": (matched[0].float().mean() + 1 - matched[1].float().mean()) / 2,
            "words": step_module.predict_words(image_BNW, text)[1],
            "words_elsewhere": step_module.predict_words(image_BNW.roll(1, dims=0), text)[1],
        }
        for name, value in found.items():
            sums.setdefault(name, []).append(float(value))
    return {name: round(sum(values) / len(values), 4) for name, values in sums.items()}


def report(line: dict[str, Any]) -> None:
    """Print a line of JSON at once, for a log that is followed."""
    print(json.dumps({name: round(value, 4) for name, value in line.items()}), flush=True)
