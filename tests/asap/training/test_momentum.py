import pytest
import torch

from asap.errors import ConfigError
from asap.training.momentum import MODALITIES, FeatureQueues, MomentumTwin
from tests.support.tiny import tiny_config, tiny_model


def test_the_twin_starts_as_a_copy_without_gradients() -> None:
    student = tiny_model()
    twin = MomentumTwin(student, 0.9)

    torch.testing.assert_close(twin.model.state_dict(), student.state_dict(), rtol=0, atol=0)
    assert twin.model.temperature.data_ptr() != student.temperature.data_ptr()
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_the_first_update_averages_and_does_not_copy() -> None:
    student = tiny_model()
    twin = MomentumTwin(student, 0.9)
    before = {name: value.clone() for name, value in twin.model.named_parameters()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)

    twin.update_parameters(student)
    after_one = {name: value.clone() for name, value in twin.model.named_parameters()}
    twin.update_parameters(student)

    for name, value in before.items():
        torch.testing.assert_close(after_one[name], value + 0.1, atol=1e-5, rtol=0)
        torch.testing.assert_close(twin.model.state_dict()[name], value + 0.19, atol=1e-5, rtol=0)


def test_a_loaded_twin_goes_on_averaging() -> None:
    student, other = tiny_model(), tiny_model(seed=1)
    saved = MomentumTwin(other, 0.9).state_dict()
    twin = MomentumTwin(student, 0.9)
    twin.load_state_dict(saved)

    twin.update_parameters(student)

    expected = 0.9 * other.patch_head.weight + 0.1 * student.patch_head.weight
    torch.testing.assert_close(twin.model.patch_head.weight, expected.detach())


def test_the_twin_stays_in_eval_mode() -> None:
    twin = MomentumTwin(tiny_model(dropout=0.5).train(), 0.9)
    assert not twin.model.training
    holder = torch.nn.ModuleList([twin])
    holder.train()
    assert not any(module.training for module in twin.modules())


def test_a_twin_with_dropout_has_the_mode_of_the_step() -> None:
    student = tiny_model(dropout=0.5)
    holder = torch.nn.ModuleList([MomentumTwin(student, 0.9, has_dropout=True)])
    holder.train()
    assert all(module.training for module in holder.modules())
    holder.eval()
    assert not any(module.training for module in holder.modules())


def features(first: int, count: int) -> dict[str, torch.Tensor]:
    """Return rows that hold their own numbers."""
    return {name: torch.arange(first, first + count).float()[:, None].expand(-1, 8) for name in MODALITIES}


def columns(queues: FeatureQueues) -> list[int]:
    return [int(value) for value in queues.text[0]]


def test_queues_start_as_noise_of_unit_length() -> None:
    torch.manual_seed(0)
    queues = FeatureQueues(tiny_config(), 5)
    for name in MODALITIES:
        torch.testing.assert_close(getattr(queues, name).norm(dim=0), torch.ones(5))
    assert queues.pointer == 0


def test_queues_of_captions_and_explanations_may_start_as_copies_of_the_texts() -> None:
    torch.manual_seed(0)
    queues = FeatureQueues(tiny_config(), 5, copies_text=True)
    for name in ("caption", "explanation"):
        copied = getattr(queues, name)
        torch.testing.assert_close(copied, queues.text, rtol=0, atol=0)
        assert copied.data_ptr() != queues.text.data_ptr()
    assert not torch.equal(queues.image, queues.text)


def test_the_newest_features_replace_the_oldest_and_wrap() -> None:
    queues = FeatureQueues(tiny_config(), 5)
    queues.enqueue(features(1, 3))
    queues.enqueue(features(4, 3))
    assert columns(queues) == [6, 2, 3, 4, 5]
    assert queues.pointer == 1
    queues.enqueue(features(7, 4))
    assert columns(queues) == [6, 7, 8, 9, 10]
    assert queues.pointer == 0


@pytest.mark.parametrize(("before", "count"), [(0, 5), (0, 7), (3, 7), (2, 13)])
def test_the_queue_keeps_the_last_features_of_a_larger_batch(before: int, count: int) -> None:
    queues = FeatureQueues(tiny_config(), 5)
    if before:
        queues.enqueue(features(1, before))
    queues.enqueue(features(before + 1, count))
    total = before + count
    assert sorted(columns(queues)) == list(range(total - 4, total + 1))
    assert queues.pointer == total % 5
    queues.enqueue(features(99, 1))  # over the oldest
    assert total - 4 not in columns(queues)


def test_keys_are_this_steps_features_and_then_the_queue() -> None:
    queues = FeatureQueues(tiny_config(), 5)
    keys = queues.keys("caption", features(1, 2)["caption"])
    assert keys.shape == (8, 7)
    assert keys[0, :2].tolist() == [1, 2]
    torch.testing.assert_close(keys[:, 2:], queues.caption)


def test_queues_are_part_of_the_state_and_get_no_gradient() -> None:
    queues, others = (FeatureQueues(tiny_config(), 5) for _ in range(2))
    queues.enqueue(features(1, 3))
    others.load_state_dict(queues.state_dict())
    assert columns(others) == columns(queues)
    assert others.pointer == 3
    assert list(queues.parameters()) == []


def test_an_empty_queue_is_refused() -> None:
    with pytest.raises(ConfigError, match="queue size 0 is not at least 1"):
        FeatureQueues(tiny_config(), 0)
