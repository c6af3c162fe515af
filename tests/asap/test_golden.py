"""Agreement with the published ASAP and HAMMER to 1e-4: outputs at both sizes, losses, queues after an update."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from asap.labels import IMAGE_TYPES, is_manipulated
from asap.model.asap import Asap
from asap.training.batch import Batch, Tokens
from asap.training.losses import IGNORED_TOKEN
from asap.training.momentum import MODALITIES
from asap.training.objective import LossWeights, PublishedDefects
from asap.training.step import TrainingStep
from asap.training.targets import multi_hot
from asap.weights.published import import_published, published_twins
from tests.golden.weights import golden_state_dict

GOLDEN = Path(__file__).parents[1] / "golden"
TWIN_OR_QUEUE = re.compile(r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\.|.*_queue$|queue_ptr$")
OFFICIAL = {"bbox_l1": "bbox_l1", "giou": "giou", "mpp": "patch_official", "mgca": "mgca"}
CORRECTED = {
    "bbox_l1": "bbox_l1_boxed",
    "giou": "giou_boxed",
    "mpp": "patch_masked_mean",
    "mgca": "mgca_without_padding",
}
TERMS = [
    field.name for field in dataclasses.fields(LossWeights) if field.default
]  # terms with a weight in the published recipe

State = dict[str, Tensor]


def spec_of(name: str) -> dict[str, Any]:
    return dict(json.loads((GOLDEN / f"{name}.json").read_text()))


def arrays_of(name: str) -> State:
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}


def state_of(spec: dict[str, Any]) -> State:
    return {key: torch.from_numpy(np.asarray(value)) for key, value in golden_state_dict(spec).items()}


def check_outputs(model: Asap, images: Tensor, golden: State) -> None:
    with torch.inference_mode():
        output = model(images, golden["input_ids"], golden["attention_mask"])
    for name, value in output._asdict().items():
        torch.testing.assert_close(value, golden[f"out_{name}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["asap_small_0", "hammer_small_0"])
def test_a_small_model_predicts_what_the_published_one_does(name: str) -> None:
    golden = arrays_of(name)
    check_outputs(import_published(state_of(spec_of(name))), golden["image"], golden)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["asap_full_0", "hammer_full_0"])
def test_the_published_size_predicts_what_the_published_model_does(name: str) -> None:
    spec = spec_of(name)
    # Half of a published checkpoint is momentum twins and queues. Inference does not read them, so none are drawn.
    spec["state_dict"] = {key: shape for key, shape in spec["state_dict"].items() if not TWIN_OR_QUEUE.match(key)}
    images = np.random.RandomState(1000 + spec["seed"]).standard_normal((4, 3, 256, 256)).astype("float32")
    check_outputs(import_published(state_of(spec)), torch.from_numpy(images), arrays_of(name))


@dataclasses.dataclass(frozen=True)
class Small:
    """The golden case asap_small_0: weights under published names, the batch, and the published results."""

    state: State
    arrays: State
    losses: dict[str, dict[str, float]]
    batch: Batch

    def step(self, defects: PublishedDefects, *, token_momentum: bool = False) -> TrainingStep:
        """Build a training step with the golden student, twin and queues, without dropout."""
        imported = import_published(self.state)
        student = Asap(dataclasses.replace(imported.config, dropout=0.0))
        student.load_state_dict(imported.state_dict())
        step = TrainingStep(student, defects=defects, queue_size=64, token_momentum=token_momentum)
        twins = published_twins(self.state)
        assert step.twin.model.load_state_dict(twins.weights, strict=False).unexpected_keys == []
        step.queues.load_state_dict(twins.queues)
        return step.train()

    def terms(self, defects: PublishedDefects, alpha: float, *, token_momentum: bool = False) -> dict[str, float]:
        terms = self.step(defects, token_momentum=token_momentum)(self.batch, alpha)
        return {name: term.item() for name, term in terms.items()}


def read_small() -> Small:
    spec, arrays = spec_of("asap_small_0"), arrays_of("asap_small_0")
    return Small(state_of(spec), arrays, spec["losses"], golden_batch(spec, arrays))


@pytest.fixture(scope="module")
def small() -> Iterator[Small]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a model this small only waits for its threads
    yield read_small()
    torch.set_num_threads(threads)


def golden_batch(spec: dict[str, Any], arrays: State) -> Batch:
    types = torch.stack([multi_hot(name) for name in spec["labels"]])
    labels = torch.zeros_like(arrays["input_ids"][:, 1:])
    for row, positions in enumerate(spec["fake_token_positions"]):
        labels[row, positions] = 1
    return Batch(
        images=arrays["image"],
        text=Tokens(arrays["input_ids"], arrays["attention_mask"]),
        caption=Tokens(arrays["caption_ids"], arrays["caption_mask"]),
        explanation=Tokens(arrays["explanation_ids"], arrays["explanation_mask"]),
        manipulated=torch.tensor([is_manipulated(name) for name in spec["labels"]]),
        types=types,
        box_cxcywh=arrays["boxes"],
        has_box=types[:, : len(IMAGE_TYPES)].any(dim=1),
        token_labels=labels.masked_fill(arrays["attention_mask"][:, 1:] == 0, IGNORED_TOKEN),
        patch_mask=arrays["patch_mask"],
        patch_labels=arrays["patch_labels"],
    )


@pytest.mark.parametrize("token_momentum", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("variant", ["official", "corrected"])
def test_every_loss_is_the_published_one(small: Small, variant: str, alpha: float, token_momentum: bool) -> None:
    golden = small.losses[f"{variant}/alpha={alpha}/token_momentum={token_momentum}"]
    names, defects = (OFFICIAL, PublishedDefects.all()) if variant == "official" else (CORRECTED, PublishedDefects())

    terms = small.terms(defects, alpha, token_momentum=token_momentum)

    wanted = {term: golden[names.get(term, term)] for term in TERMS}
    assert {term: terms[term] for term in TERMS} == pytest.approx(wanted, abs=1e-4, rel=0)
    weights = dataclasses.asdict(LossWeights())
    assert terms["total"] == pytest.approx(sum(weights[term] * wanted[term] for term in TERMS), abs=1e-4, rel=0)


OFFICIAL_KEY, CORRECTED_KEY = (f"{variant}/alpha=0.4/token_momentum=False" for variant in ("official", "corrected"))


@pytest.mark.parametrize(
    ("switch", "changed"),
    [
        ("mgca_words_of_the_batch", {"mgca": (OFFICIAL_KEY, "mgca_without_padding")}),
        ("mgca_padding", {"mgca": (CORRECTED_KEY, "mgca")}),
        ("mpp_ignored_patches", {"mpp": (CORRECTED_KEY, "patch_official")}),
        ("explanation_targets", {"vlc": (OFFICIAL_KEY, "vlc")}),
        ("boxless_pairs", {"bbox_l1": (CORRECTED_KEY, "bbox_l1"), "giou": (CORRECTED_KEY, "giou")}),
    ],
)
def test_a_published_defect_changes_its_own_term_alone(
    small: Small, switch: str, changed: dict[str, tuple[str, str]]
) -> None:
    corrected = small.losses[CORRECTED_KEY]
    wanted = {term: corrected[CORRECTED.get(term, term)] for term in TERMS}

    terms = small.terms(PublishedDefects(**{switch: True}), alpha=0.4)

    assert terms != pytest.approx(small.terms(PublishedDefects(), alpha=0.4), abs=1e-3, rel=0)
    wanted |= {term: small.losses[variant][name] for term, (variant, name) in changed.items()}
    assert {term: terms[term] for term in TERMS} == pytest.approx(wanted, abs=1e-4, rel=0)


def test_the_queues_receive_the_features_of_this_step(small: Small) -> None:
    step = small.step(PublishedDefects())

    step(small.batch, 0.4)

    assert step.queues.pointer == len(small.batch.images)
    for modality in MODALITIES:
        queue = getattr(step.queues, modality)
        torch.testing.assert_close(queue, small.arrays[f"queue_after_{modality}"], atol=1e-5, rtol=0)


ALPHAS = (0.0, 0.4)


def run_worker(rank: int, folder: Path) -> None:
    """Run one of two workers, each with half of the batch. Save its terms by alpha, and its queues."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    small, terms = read_small(), {}
    for alpha in ALPHAS:
        step = small.step(PublishedDefects(), token_momentum=True)
        found = step(small.batch.parts(2)[rank], alpha)
        terms[alpha] = {name: term.item() for name, term in found.items()}
    torch.save({"terms": terms, "queues": step.queues.state_dict()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("workers")
    multiprocessing.spawn(run_worker, args=(folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]  # noqa: TID251  # written by this test


@pytest.mark.parametrize("alpha", ALPHAS)
def test_two_workers_with_half_of_the_batch_each_have_the_corrected_losses(
    small: Small, workers: list[dict[str, Any]], alpha: float
) -> None:
    golden = small.losses[f"corrected/alpha={alpha}/token_momentum=True"]
    first, second = (worker["terms"][alpha] for worker in workers)
    assert first != pytest.approx(second, abs=1e-3, rel=0)
    means = {term: (first[term] + second[term]) / 2 for term in TERMS}
    assert means == pytest.approx({term: golden[CORRECTED.get(term, term)] for term in TERMS}, abs=1e-4, rel=0)


def test_the_queues_of_two_workers_receive_the_features_of_both_in_order(
    small: Small, workers: list[dict[str, Any]]
) -> None:
    for worker in workers:
        assert worker["queues"]["pointer"] == len(small.batch.images)
        for modality in MODALITIES:
            expected = small.arrays[f"queue_after_{modality}"]
            torch.testing.assert_close(worker["queues"][modality], expected, atol=1e-5, rtol=0)
