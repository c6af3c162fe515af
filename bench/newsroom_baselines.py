"""Baselines on a newsroom corpus that see a part of the evidence: file, text or picture alone, or the faces' residuals.

    asap newsroom out/newsroom --pairs 10000 --seed 1
    python bench/newsroom_baselines.py out/newsroom --model demo --json out/newsroom_baselines.json

The baselines are fitted on the training split and scored on the test split. A figure near 0.5 for the statistics of the
file means that no artifact of the drawing solves the task. The text and the picture alone should be of some use, but
should not be enough. With a model, the bars of the corpus are checked: see `bars`.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torch import nn

from asap.finding import Pair
from asap.newsroom.lexicon import MOOD_VERBS, PROPS, SCENES, TONES
from asap.predictor import Predictor

Record = dict[str, Any]
WORDS = 30  # words of a text that the small transformer reads
SIDE = 128  # pixels a side after resizing, as for the tiny model


def load(corpus: Path, split: str) -> list[Record]:
    """Read the records of a split."""
    records: list[Record] = json.loads((corpus / "metadata" / f"{split}.json").read_text("utf-8"))
    return records


def labels(records: list[Record], part: str) -> np.ndarray:
    """Return (N,): 1 if the class names `part` ("face", "text", "face_swap", ...), or for "fake", if it is not orig."""
    return np.array([r["fake_cls"] != "orig" if part == "fake" else part in r["fake_cls"] for r in records], int)


def file_statistics(corpus: Path, record: Record) -> list[float]:
    """Return the features that need no pixel and no word."""
    path = corpus / record["image"]
    size = path.stat().st_size
    with Image.open(path) as image:
        width, height = image.size
        tables = [q for table in getattr(image, "quantization", {}).values() for q in (sum(table), table[0])]
    return [width, height, size, size / (width * height), *tables, len(record["text"].split()), len(record["text"]),
            len(record["mtcnn_boxes"])]  # fmt: skip


def score_file_statistics(corpus: Path, train: list[Record], test: list[Record]) -> dict[str, float]:
    """Return the AUC of gradient boosting over the statistics of the file."""
    x_train, x_test = (np.array([file_statistics(corpus, r) for r in records]) for records in (train, test))
    out = {}
    for part in ("fake", "face", "text"):
        model = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.05, random_state=0)
        model.fit(x_train, labels(train, part))
        out[part] = float(roc_auc_score(labels(test, part), model.predict_proba(x_test)[:, 1]))
    return out


def residual_statistics(rgb: np.ndarray, box: list[int]) -> list[float]:
    """Return statistics of what a blur removes, in a face box and in a ring around it: no shape, no color, no place.

    A face that was pasted, smoothed or rendered again has another noise than its picture, or traces of resampling.

    Args:
        rgb: (height, width, 3) float32, the picture.
        box: xmin, ymin, xmax, ymax of the face in pixels.
    """
    gray = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    x0, y0, x1, y1 = box
    margin = (x1 - x0) // 3
    inset = (x1 - x0) // 5
    top, left = max(0, y0 - margin), max(0, x0 - margin)
    window = gray[top : y1 + margin, left : x1 + margin]
    inside = np.zeros(window.shape, bool)
    inside[y0 - top : y1 - top, x0 - left : x1 - left] = True
    core = np.zeros(window.shape, bool)
    core[y0 + inset - top : y1 - inset - top, x0 + inset - left : x1 - inset - left] = True
    pixels = Image.fromarray(np.clip(window, 0, 255).astype(np.uint8))
    residuals = [window - np.asarray(pixels.filter(ImageFilter.GaussianBlur(sigma)), np.float32) for sigma in (1, 2)]
    # The second difference along both axes: it cancels smooth shading, and leaves noise.
    rough = window[1:-1, 1:-1] * 4 - 2 * (window[1:-1, 2:] + window[1:-1, :-2] + window[2:, 1:-1] + window[:-2, 1:-1])
    rough += window[2:, 2:] + window[2:, :-2] + window[:-2, 2:] + window[:-2, :-2]
    residuals.append(np.pad(rough, 1))

    regions = (core, inside & ~core, ~inside)
    values = [[_moments(residual[region]) for region in regions] for residual in residuals]
    out: list[float] = []
    for core_values, border_values, ring_values in values:
        out += [*core_values, *ring_values]
        out += [a - b for a, b in zip(core_values, ring_values, strict=True)]
        out += [a - b for a, b in zip(core_values, border_values, strict=True)]
    # Blocks as JPEG cuts them: the calmest and the typical one, in the face and around it.
    blocks = [_block_levels(residuals[0], region) for region in (inside, ~inside)]
    out += [*blocks[0], *(a - b for a, b in zip(*blocks, strict=True))]
    return out + _repetition(residuals[1][y0 - top : y1 - top, x0 - left : x1 - left])


def _moments(values: np.ndarray) -> list[float]:
    """Return the log of the energy, the log of the typical deviation, and the kurtosis."""
    energy = float(np.square(values).mean()) + 0.01
    kurtosis = float((values**4).mean()) / energy**2
    return [np.log(energy), np.log(float(np.median(np.abs(values))) + 0.05), np.log(kurtosis + 0.1)]


def _block_levels(residual: np.ndarray, region: np.ndarray, side: int = 8) -> list[float]:
    """Return the log energy of the calmest tenth and of the median of the blocks that lie in a region."""
    rows, columns = residual.shape[0] // side, residual.shape[1] // side
    cut = (slice(rows * side), slice(columns * side))
    shape = (rows, side, columns, side)
    energy = np.square(residual[cut]).reshape(shape).mean((1, 3))[region[cut].reshape(shape).all((1, 3))]
    return np.log(np.quantile(energy, (0.1, 0.5)) + 0.01).tolist() if energy.size else [0.0, 0.0]


def _repetition(residual: np.ndarray) -> list[float]:
    """Return how far the strongest frequency stands out, and how alike neighbors are along both axes."""
    power = np.abs(np.fft.rfft2(residual - residual.mean())) ** 2
    neighbors = [float((residual[:, k:] * residual[:, : residual.shape[1] - k]).mean()) for k in (1, 2, 4)]
    energy = float(np.square(residual).mean()) + 0.01
    return [float(np.log(power.max() / (np.median(power) + 0.01) + 1)), *(value / energy for value in neighbors)]


def tone_statistics(rgb: np.ndarray, box: list[int]) -> list[float]:
    """Return the colors of the cheeks, and how they differ from those of neck, forehead, ears and chin.

    This is written for how newsroom draws a head: it looks where the skin of a drawn person is to be seen.
    """
    x0, y0, x1, y1 = box
    unit, x, y = (x1 - x0) / 2, (x0 + x1) / 2, (y0 + y1) / 2

    def color(left: float, top: float, right: float, bottom: float) -> np.ndarray:
        rows, columns = (slice(max(0, int(c + a * unit)), max(1, int(c + b * unit)))
                         for c, a, b in ((y, top, bottom), (x, left, right)))  # fmt: skip
        spot = rgb[rows, columns].reshape(-1, 3)
        return np.median(spot, 0) if len(spot) else np.zeros(3)

    cheeks = color(-0.55, 0.0, 0.55, 0.4)
    others = [color(-0.3, 1.3, 0.3, 1.6), color(-0.4, -0.8, 0.4, -0.6), color(-1.12, 0, -0.95, 0.3),
              color(0.95, 0, 1.12, 0.3), color(-0.4, 0.95, 0.4, 1.15)]  # fmt: skip
    differences = [cheeks - other for other in others]
    distances = [float(np.abs(difference).mean()) for difference in differences]
    values = [v for c in (cheeks, *others, *differences) for v in (c.mean(), c[0] - c[1], c[1] - c[2])]
    return [*values, *distances, min(distances), max(distances), float(np.median(distances))]


def score_faces(
    corpus: Path, train: list[Record], test: list[Record], statistics: Callable[[np.ndarray, list[int]], list[float]]
) -> dict[str, float]:
    """Return the AUC of gradient boosting over statistics of the face boxes, against pictures with authentic faces.

    It is fitted on faces. A picture gets the highest score of its faces.
    """
    kinds = ("face_swap", "face_attribute")
    (x_train, face_train, _), (x_test, _, owner) = (
        _face_statistics(corpus, records, statistics) for records in (train, test)
    )
    shown = [_face_kind(record) for record in test]
    out = {}
    for kind in kinds:
        usable = np.isin(face_train, ("", kind))
        model = HistGradientBoostingClassifier(max_iter=150, learning_rate=0.05, random_state=0)
        model.fit(x_train[usable], face_train[usable] == kind)
        scores = np.zeros(len(test))
        np.maximum.at(scores, owner, model.predict_proba(x_test)[:, 1])
        usable = np.isin(shown, ("", kind))
        out[f"{kind} AUC"] = float(roc_auc_score(np.array(shown)[usable] == kind, scores[usable]))
    return out


def _face_kind(record: Record) -> str:
    return next((part for part in record["fake_cls"].split("&") if part.startswith("face_")), "")


def _face_statistics(
    corpus: Path, records: list[Record], statistics: Callable[[np.ndarray, list[int]], list[float]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the statistics of every face, what was done to it ("" for nothing), and the number of its record."""
    rows, kinds, owners = [], [], []
    for i, record in enumerate(records):
        with Image.open(corpus / record["image"]) as image:
            rgb = np.asarray(image.convert("RGB"), np.float32)
        for box in record["mtcnn_boxes"]:
            rows.append(statistics(rgb, box))
            kinds.append(_face_kind(record) if box == record["fake_image_box"] else "")
            owners.append(i)
    return np.array(rows), np.array(kinds), np.array(owners)


def score_model(corpus: Path, test: list[Record], model: str) -> dict[str, float]:
    """Return the AUC of a model for each type, against pairs of which that half, face or text, is authentic."""
    predictor = Predictor.from_folder(model, batch_size=64)
    findings = predictor.predict([Pair(corpus / record["image"], record["text"]) for record in test])
    out = {"fake": float(roc_auc_score(labels(test, "fake"), [one.score for one in findings]))}
    for kind in ("face_swap", "face_attribute", "text_swap", "text_attribute"):
        fake = labels(test, kind) == 1
        usable = fake | (labels(test, kind.partition("_")[0]) == 0)
        scores = np.array([(one.types or {})[kind] for one in findings], float)
        out[f"{kind} AUC"] = float(roc_auc_score(fake[usable], scores[usable]))
    return out


def bars(results: dict[str, dict[str, float]]) -> dict[str, bool]:
    """Return which bars of a newsroom corpus hold: what a page of code finds lies far below what a model finds."""
    model, files = results["the model"], results["file statistics"]
    held = {"file statistics at most 0.60": max(files.values()) <= 0.60}
    for name, kinds in (
        ("residual statistics of the faces", ("face_swap", "face_attribute")),
        ("text rule", ("text_swap", "text_attribute")),
    ):
        for kind in kinds:
            below = model[f"{kind} AUC"] - results[name][f"{kind} AUC"]
            held[f"{name}, {kind}: {below:.3f} below the model, at least 0.15"] = below >= 0.15
    return held


def _words_and_pairs(text: str) -> list[str]:
    """Return the distinct words of a text, and every two of them."""
    words = sorted({word.strip(".,").lower() for word in text.split()})
    return words + [f"{a}+{b}" for i, a in enumerate(words) for b in words[i + 1 :]]


def score_text(train: list[Record], test: list[Record], pairs: bool) -> dict[str, float]:
    """Return the AUC of logistic regression over words and bigrams, or (`pairs`) over every two words of the text."""
    if pairs:
        counts = CountVectorizer(analyzer=_words_and_pairs, min_df=4, binary=True)
    else:
        counts = CountVectorizer(ngram_range=(1, 2), min_df=3, binary=True)
    x_train = counts.fit_transform([r["text"] for r in train])
    x_test = counts.transform([r["text"] for r in test])
    out = {}
    for part in ("fake", "text"):
        model = LogisticRegression(C=0.1, solver="liblinear").fit(x_train, labels(train, part))
        out[part] = float(roc_auc_score(labels(test, part), model.predict_proba(x_test)[:, 1]))
    return out


def contradicts_itself(text: str) -> bool:
    """Return True if a text has phrases of two scenes or words of two moods: the rule of the lexicon."""
    plain = f" {text.lower().replace(',', ' ').replace('.', ' ')} ".replace("  ", " ")
    scenes = set(range(len(SCENES)))
    for number, scene in enumerate(SCENES):
        if any(f" {phrase} " in plain for phrase in (*scene.places, *scene.roles, *scene.acts, *scene.events)):
            scenes &= {number}
    for prop, words in PROPS.items():
        if f" {words} " in plain:
            scenes &= {number for number, scene in enumerate(SCENES) if prop in scene.props}
    # A writer uses one pair of words for the mood; the verbs of mood go with all pairs.
    known = set(plain.split())
    sides = {side for pair in TONES + MOOD_VERBS for side, word in enumerate(pair) if word in known}
    tones = {pair for pair in TONES if known & set(pair)}
    return not scenes or len(sides) > 1 or len(tones) > 1


def score_text_rule(test: list[Record]) -> dict[str, float]:
    """Return the AUC of the lexicon's rule for each type of text, and how many it finds; nothing is learned."""
    found = np.array([contradicts_itself(record["text"]) for record in test])
    true = labels(test, "text") == 0
    out = {"false alarms": float(found[true].mean())}
    for kind in ("text_swap", "text_attribute"):
        fake = labels(test, kind) == 1
        either = true | fake
        out |= {
            f"{kind} AUC": float(roc_auc_score(fake[either], found[either])),
            f"{kind} found": float(found[fake].mean()),
        }
    return out


class _Reader(nn.Module):
    """A small transformer over words: (B, W) ids (0 is padding) -> (B, 2) logits, text swap and text attribute."""

    def __init__(self, words: int, width: int = 96) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.positions = nn.Parameter(torch.randn(WORDS + 1, width) * 0.02)
        self.summary = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.types = nn.Linear(width, 2)
        self.fake_word = nn.Linear(width, 1)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.cat([self.summary.expand(len(ids), -1, -1), self.words(ids)], 1) + self.positions
        absent = F.pad(ids == 0, (1, 0), value=False)
        x = self.layers(x, src_key_padding_mask=absent)
        return self.types(x[:, 0]), self.fake_word(x[:, 1:])[..., 0]


def _word_ids(records: list[Record], known: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (N, WORDS) ids (1 is an unknown word), and 1 for each manipulated word."""
    ids, fake = np.zeros((len(records), WORDS), np.int64), np.zeros((len(records), WORDS), np.float32)
    for i, record in enumerate(records):
        words = [word.strip(".,").lower() for word in record["text"].split()][:WORDS]
        ids[i, : len(words)] = [known.get(word, 1) for word in words]
        fake[i, [k for k in record["fake_text_pos"] if k < WORDS]] = 1
    return torch.from_numpy(ids), torch.from_numpy(fake)


def score_text_transformer(train: list[Record], test: list[Record], budget: int) -> dict[str, float]:
    """Return the AUC of a small transformer on the text alone, trained on types and words with `budget` samples."""
    torch.manual_seed(0)
    counts = Counter(word.strip(".,").lower() for record in train for word in record["text"].split())
    known = {word: i for i, word in enumerate((w for w, n in sorted(counts.items()) if n >= 10), 2)}
    (ids, fake), (test_ids, test_fake) = _word_ids(train, known), _word_ids(test, known)
    kinds = ("text_swap", "text_attribute")
    types = torch.tensor(np.stack([labels(train, kind) for kind in kinds], 1), dtype=torch.float32)
    net = _Reader(len(known) + 2)

    def step(picks: torch.Tensor, flip: bool) -> torch.Tensor:
        type_logits, word_logits = net(ids[picks])
        here = ids[picks] > 0
        return F.binary_cross_entropy_with_logits(type_logits, types[picks]) + F.binary_cross_entropy_with_logits(
            word_logits[here], fake[picks][here]
        )

    _fit(net, step, len(train), 1e-3, budget)
    with torch.no_grad():
        type_logits, word_logits = net(test_ids)
    probs = type_logits.sigmoid().numpy()
    either = 1 - (1 - probs).prod(1)
    here = test_ids > 0
    out = {part: float(roc_auc_score(labels(test, part), either)) for part in ("fake", "text")}
    out |= {f"{k} AP": float(average_precision_score(labels(test, k), probs[:, i])) for i, k in enumerate(kinds)}
    return out | {"word F1": float(f1_score(test_fake[here], word_logits[here] > 0))}


def _fit(net: nn.Module, step: Callable[[torch.Tensor, bool], torch.Tensor], count: int, rate: float,
         budget: int) -> None:  # fmt: skip
    """Train on batches of 32 until `budget` samples were seen, with a warmup and a linear decay."""
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.02)
    order = np.random.default_rng(0)
    for seen in range(0, budget, 32):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (seen + 32) / 6400) * (1 - seen / budget) + 1e-5
        loss = step(torch.from_numpy(order.integers(0, count, 32)), bool(order.random() < 0.5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()


def _pixels(corpus: Path, records: list[Record]) -> torch.Tensor:
    """Return the pictures, (N, 3, SIDE, SIDE) uint8."""
    out = np.empty((len(records), SIDE, SIDE, 3), np.uint8)
    for i, record in enumerate(records):
        with Image.open(corpus / record["image"]) as image:
            out[i] = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


class _Net(nn.Module):
    """A small convolutional net: (B, 3, 128, 128) uint8 -> (B, 2) logits, face swap and face attribute."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=1 if i else 2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.head = nn.Conv2d(widths[-1], 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float() / 128 - 1
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i:
                x = F.max_pool2d(x, 2)
        # The strongest location decides, since only one of several faces is manipulated.
        return self.head(x).flatten(2).amax(2)


def score_image(corpus: Path, train: list[Record], test: list[Record], budget: int) -> dict[str, float]:
    """Return the AUC of a small convolutional net on the picture alone, trained on `budget` samples."""
    torch.manual_seed(0)
    x_train, x_test = _pixels(corpus, train), _pixels(corpus, test)
    kinds = ("face_swap", "face_attribute")
    y_train = torch.tensor(np.stack([labels(train, kind) for kind in kinds], 1), dtype=torch.float32)
    net = _Net()

    def step(picks: torch.Tensor, flip: bool) -> torch.Tensor:
        images = x_train[picks].flip(3) if flip else x_train[picks]
        return F.binary_cross_entropy_with_logits(net(images), y_train[picks])

    _fit(net, step, len(train), 2e-3, budget)
    with torch.no_grad():
        probs = torch.cat([net(batch).sigmoid() for batch in x_test.split(64)]).numpy()
    either = 1 - (1 - probs).prod(1)
    out = {part: float(roc_auc_score(labels(test, part), either)) for part in ("fake", "face")}
    out |= {f"{k} AP": float(average_precision_score(labels(test, k), probs[:, i])) for i, k in enumerate(kinds)}
    return out


def main() -> None:
    """Run the baselines, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--texts", type=int, default=64_000, help="Texts that the transformer is trained on; 0 leaves it out."
    )
    parser.add_argument(
        "--pictures", type=int, default=16_000, help="Pictures that the net is trained on; 0 leaves it out."
    )
    parser.add_argument("--model", help="A model folder, or demo, to compare with. Default: none.")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, test = load(args.corpus, "train"), load(args.corpus, "test")
    corpus = json.loads((args.corpus / "newsroom.json").read_text("utf-8"))
    results = {
        "file statistics": score_file_statistics(args.corpus, train, test),
        "text: words and neighbours": score_text(train, test, pairs=False),
        "text: every two words": score_text(train, test, pairs=True),
        "text rule": score_text_rule(test),
        "residual statistics of the faces": score_faces(args.corpus, train, test, residual_statistics),
        "tones of the faces": score_faces(args.corpus, train, test, tone_statistics),
    }
    if args.texts > 0:
        results["text: small transformer"] = score_text_transformer(train, test, args.texts)
    if args.pictures > 0:
        results["picture: small conv net"] = score_image(args.corpus, train, test, args.pictures)
    if args.model:
        results["the model"] = score_model(args.corpus, test, args.model)
    print(f"{corpus['corpus_version']}, seed {corpus['seed']}: {len(train)} pairs to fit, {len(test)} to score")
    print("| from | AUC real/fake | AUC face | AUC text | more |\n|---|---|---|---|---|")
    for name, values in results.items():
        cells = [f"{values[part]:.3f}" if part in values else "" for part in ("fake", "face", "text")]
        more = ", ".join(f"{k} {v:.3g}" for k, v in values.items() if k not in ("fake", "face", "text"))
        print(f"| {name} | {' | '.join(cells)} | {more} |")
    held = bars(results) if args.model else {}
    for bar, holds in held.items():
        print(f"{'holds' if holds else 'fails'}: {bar}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"corpus": corpus, "fitted_on": len(train), "scored_on": len(test), "results": results, "bars": held}
        args.json.write_text(json.dumps(record, indent=1), "utf-8")


if __name__ == "__main__":
    main()
