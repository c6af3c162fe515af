"""Two real workers over gloo with half of a batch each, compared with one worker with the whole batch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from asap.training.distributed import average_running_statistics, gather, mean_over_workers, rank, world_size
from asap.training.step import TrainingStep
from tests.support.tiny import draw_batch, tiny_model

PAIRS = 8
STEPS = 2
# The first half has no box and the second no manipulated word; the means must still be those of the whole batch.
CLASSES = ("orig", "text_swap", "orig", "text_attribute", "face_swap", "orig", "face_attribute", "face_swap")


@dataclass
class Trained:
    """The state of a worker after its steps."""

    terms: list[dict[str, float]]
    gradients: dict[str, Tensor]
    student: dict[str, Tensor]
    twin: dict[str, Tensor]
    queues: dict[str, Tensor]
    mean_of_ones: float


def norms_of(number: int) -> nn.ModuleDict:
    """Return batch normalization in training and in eval mode, after batches that differ by worker."""
    norms = nn.ModuleDict({"trained": nn.BatchNorm2d(2), "frozen": nn.BatchNorm2d(3)})
    for norm in norms.values():
        for spread in (1.0, 2.0):
            norm(
                number
                + spread * torch.randn(4, norm.num_features, 3, 3, generator=torch.Generator().manual_seed(number))
            )
    norms["frozen"].eval()
    return norms


def train(part: slice, wrap: type[DistributedDataParallel] | None = None) -> Trained:
    # The linear patch embedding is used: the convolutional one normalizes over the pairs of each worker.
    step = TrainingStep(tiny_model(patch_embedding="linear"), queue_size=12, momentum=0.9)
    module: nn.Module = step if wrap is None else wrap(step, broadcast_buffers=False)
    optimizer = torch.optim.SGD(step.student.parameters(), lr=0.05)
    step.train()
    logged = []
    for number in range(STEPS):
        terms = module(draw_batch(CLASSES, seed=number).rows(part), 0.4)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
        logged.append({name: term.item() for name, term in terms.items()})
    return Trained(
        logged,
        {name: p.grad.clone() for name, p in step.student.named_parameters() if p.grad is not None},
        step.student.state_dict(),
        step.twin.model.state_dict(),
        step.queues.state_dict(),
        mean_over_workers(torch.ones(3).sum(), torch.tensor(3)).item(),
    )


def work(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    half = PAIRS // 2
    trained = train(slice(number * half, (number + 1) * half), DistributedDataParallel)
    norms = norms_of(number)
    average_running_statistics(norms)
    own = {"rank": rank(), "world": world_size(), "gathered": gather(torch.full((2, 1), float(number)))}
    torch.save({**own, "norms": norms.state_dict(), **vars(trained)}, f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def one() -> Trained:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trained = train(slice(PAIRS))
    torch.set_num_threads(threads)
    return trained


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("workers")
    multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{number}.pt", weights_only=True) for number in range(2)]  # noqa: TID251


def alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_mean_loss_of_two_workers_equals_that_of_the_whole_batch(one: Trained, two: list[dict[str, Any]]) -> None:
    for number, whole in enumerate(one.terms):
        halves = [worker["terms"][number] for worker in two]
        assert halves[0] != pytest.approx(halves[1], abs=1e-2)
        assert {name: (halves[0][name] + halves[1][name]) / 2 for name in whole} == pytest.approx(whole, abs=1e-4)


def test_averaged_gradients_equal_those_of_the_whole_batch(one: Trained, two: list[dict[str, Any]]) -> None:
    for worker in two:
        alike(worker["gradients"], one.gradients)
        alike(worker["student"], one.student)


def test_twin_and_queues_are_the_same_on_all_workers(one: Trained, two: list[dict[str, Any]]) -> None:
    for worker in two:
        alike(worker["twin"], one.twin)
        alike(worker["queues"], one.queues)
        assert worker["queues"]["pointer"] == STEPS * PAIRS % 12
    torch.testing.assert_close(two[0]["queues"], two[1]["queues"], rtol=0, atol=0)


def test_workers_know_their_rank_and_gather_in_rank_order(two: list[dict[str, Any]]) -> None:
    assert [(worker["rank"], worker["world"]) for worker in two] == [(0, 2), (1, 2)]
    for worker in two:
        assert worker["gathered"].flatten().tolist() == [0, 0, 1, 1]
        assert worker["mean_of_ones"] == 1


def test_running_statistics_in_training_mode_become_the_mean_over_workers(two: list[dict[str, Any]]) -> None:
    before = [norms_of(number).state_dict() for number in range(2)]
    for number, worker in enumerate(two):
        for name, values in worker["norms"].items():
            averaged = name in ("trained.running_mean", "trained.running_var")
            expected = (before[0][name] + before[1][name]) / 2 if averaged else before[number][name]
            torch.testing.assert_close(values, expected, rtol=0, atol=1e-6 if averaged else 0)
    assert not torch.equal(before[0]["trained.running_var"], before[1]["trained.running_var"])
    for name in ("trained.running_mean", "trained.running_var"):
        assert torch.equal(two[0]["norms"][name], two[1]["norms"][name])


def test_a_single_process_is_a_world_of_one_worker(one: Trained) -> None:
    assert (world_size(), rank()) == (1, 0)
    features = torch.ones(2, 3, requires_grad=True)
    assert torch.equal(gather(features), features)
    assert not gather(features).requires_grad
    assert one.mean_of_ones == 1
    norms = norms_of(0)
    average_running_statistics(norms)
    torch.testing.assert_close(norms.state_dict(), norms_of(0).state_dict(), rtol=0, atol=0)


def test_a_mean_of_nothing_is_0_and_keeps_its_graph() -> None:
    nothing = torch.zeros(2, requires_grad=True)
    mean = mean_over_workers(nothing.sum(), torch.tensor(0))
    mean.backward()
    assert mean.item() == 0
    assert nothing.grad is not None
