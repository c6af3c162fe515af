from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asap.model.asap import Asap
from asap.model.execution import can_compile, checkpoint_activations, compile_encoders, has_bfloat16
from asap.training.objective import LossWeights
from asap.training.step import TrainingStep
from tests.support.tiny import draw_batch, tiny_model

Gradients = dict[str, torch.Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


def train_once(
    change: Callable[[Asap], None] = lambda model: None, *, weights: LossWeights | None = None, dropout: float = 0.0
) -> tuple[dict[str, float], Gradients, int]:
    """Return the loss terms, the gradients, and the bytes that autograd kept for the backward pass."""
    layers = {"image_layers": 3, "text_layers": 3, "fusion_layers": 3}
    step = TrainingStep(tiny_model(dropout=dropout, **layers), queue_size=12, weights=weights).train()
    change(step.student)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        terms = step(draw_batch(["face_swap", "orig", "text_swap", "face_attribute"] * 2), 0.4)
    terms["total"].backward()
    gradients = {name: p.grad for name, p in step.student.named_parameters() if p.grad is not None}
    return {name: term.item() for name, term in terms.items()}, gradients, sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_activations_change_only_the_memory(dropout: float) -> None:
    terms, gradients, kept = train_once(dropout=dropout)
    again, same, fewer = train_once(checkpoint_activations, dropout=dropout)
    assert again == pytest.approx(terms, abs=1e-6)
    torch.testing.assert_close(same, gradients, atol=1e-6, rtol=1e-5)
    assert fewer < 0.8 * kept


def test_training_on_words_alone_can_be_checkpointed_too() -> None:
    words = LossWeights(**{name: 1.0 if name == "tmg" else 0.0 for name in vars(LossWeights())})
    terms, gradients, _ = train_once(weights=words)
    again, same, _ = train_once(checkpoint_activations, weights=words)
    assert again == pytest.approx(terms)
    torch.testing.assert_close(same, gradients)


@pytest.mark.slow
def test_compiled_encoders_give_the_same_losses_and_keep_the_names_of_weights() -> None:
    terms, gradients, _ = train_once()
    compiled, same, _ = train_once(compile_encoders)
    assert compiled == pytest.approx(terms, abs=1e-4)
    torch.testing.assert_close(same, gradients, atol=1e-4, rtol=1e-3)
    model = tiny_model()
    names = list(model.state_dict())
    compile_encoders(model)
    assert list(model.state_dict()) == names


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="there is no C compiler")
def test_texts_in_buckets_are_compiled_once_for_all_lengths() -> None:
    model = tiny_model(max_tokens=64, max_positions=64)
    compile_encoders(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    counts = []
    for length in (16, 32, 48, 64):
        ids = torch.ones(2, length, dtype=torch.long)
        with torch.no_grad():
            model.encode_text(ids, ids)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] >= 1
    assert counts[1:] == [counts[0]] * 3


def test_a_gpu_that_only_emulates_bfloat16_does_not_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_bfloat16(torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    assert has_bfloat16(torch.device("cuda"))
    assert not has_bfloat16(torch.device("cpu"))


def test_compiling_for_a_gpu_needs_a_compiler_and_pythons_headers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/clang" if name == "clang" else None)
    assert not can_compile()
    (tmp_path / "Python.h").touch()
    assert can_compile()
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not can_compile()
    monkeypatch.setenv("CC", "gcc-13")
    assert can_compile()
