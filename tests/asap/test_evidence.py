import numpy as np
import pytest
import torch

from asap.evidence import PassEvidence, box_px, highest_types, read_output, score_words
from asap.model.asap import AsapOutput
from asap.policy import Policy, apply_policy, flagged_words


def evidence(*, score: float = 0.5, types: tuple[float, ...] = (0, 0, 0, 0), box: tuple[float, ...] = (0, 0, 1, 1),
             tokens: tuple[float, ...] = ()) -> PassEvidence:  # fmt: skip
    return PassEvidence(score, *(np.array(values, np.float32) for values in (types, box, tokens)))


def output(**changes: torch.Tensor) -> AsapOutput:
    zeros = AsapOutput(torch.zeros(2, 2), torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 3, 2))
    return zeros._replace(**changes)


def test_logits_become_probabilities_of_manipulated() -> None:
    first, second = read_output(
        output(
            logits_real_fake=torch.tensor([[0.0, 2.0], [2.0, 0.0]]),
            logits_multilabel=torch.tensor([[3.0, 0, 0, -3.0], [0, 0, 0, 0]]),
        ),
        [3, 3],
    )
    assert first.score == pytest.approx(0.8808, abs=1e-4)
    assert second.score == pytest.approx(0.1192, abs=1e-4)
    assert first.types.tolist() == pytest.approx([0.9526, 0.5, 0.5, 0.0474], abs=1e-4)


def test_padding_is_left_out_of_the_tokens() -> None:
    logits = torch.zeros(2, 3, 2)
    logits[0, 1, 1] = 4
    first, second = read_output(output(logits_token=logits), [2, 3])
    assert first.tokens.tolist() == pytest.approx([0.5, 0.982], abs=1e-3)
    assert len(second.tokens) == 3


def test_a_box_is_clipped_to_the_picture() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.9, 0.6, 0.6]])
    first, second = read_output(output(box_cxcywh=boxes), [0, 0])
    assert first.box_xyxy.tolist() == pytest.approx([0.4, 0.3, 0.6, 0.7])
    assert second.box_xyxy.tolist() == pytest.approx([0, 0.6, 0.4, 1])


@pytest.mark.parametrize("broken", ["logits_real_fake", "logits_multilabel", "box_cxcywh", "logits_token"])
def test_nan_is_noticed_in_every_output(broken: str) -> None:
    values = getattr(output(), broken).clone()
    values[1] = torch.nan
    first, second = read_output(output(**{broken: values}), [3, 3])
    assert first.is_finite
    assert not second.is_finite


def test_each_type_has_the_highest_probability_of_any_pass() -> None:
    passes = [evidence(types=(0.1, 0.9, 0.2, 0.3)), evidence(types=(0.4, 0.5, 0.6, 0.1))]
    assert highest_types(passes) == pytest.approx(
        {"face_swap": 0.4, "face_attribute": 0.9, "text_swap": 0.6, "text_attribute": 0.3}
    )


def test_the_box_is_in_pixels_and_from_the_pass_with_the_highest_image_type() -> None:
    passes = [
        evidence(types=(0.6, 0.1, 0.99, 0.1), box=(0, 0, 1, 1)),
        evidence(types=(0.1, 0.7, 0.1, 0.1), box=(0.25, 0.5, 0.75, 1)),
    ]
    assert box_px(passes, width=200, height=40) == (50, 20, 150, 40)


def test_a_word_scores_as_its_highest_token_and_a_word_without_tokens_scores_0() -> None:
    passes = [evidence(tokens=(0.2, 0.7, 0.4)), evidence(tokens=(0.9,))]
    assert score_words(passes, [[0, 0, 2], [3]], words=5) == pytest.approx([0.7, 0, 0.4, 0.9, 0])


def test_flagged_words_have_their_offsets_in_the_original_text() -> None:
    text = "  Señor 👩‍👧 smiles,\n twice "
    words = flagged_words(text, [0.1, 0.5, 0.49, 0.8], threshold=0.5)
    assert [(word.index, word.word, word.score) for word in words] == [(1, "👩‍👧", 0.5), (3, "twice", 0.8)]
    assert [text[word.start : word.end] for word in words] == ["👩‍👧", "twice"]


BOX = (1.0, 2.0, 3.0, 4.0)
TYPES = {"face_swap": 0.6, "face_attribute": 0.1, "text_swap": 0.2, "text_attribute": 0.7}


def test_a_policy_turns_raw_scores_into_verdict_types_box_and_words() -> None:
    applied = apply_policy(
        Policy(manipulated=0.9, review=0.4),
        score=0.5,
        types=TYPES,
        raw_box=BOX,
        text="two words",
        word_scores=[0.1, 0.8],
    )
    assert (applied["verdict"], applied["flagged_types"], applied["box_px"]) == (
        "review",
        ["face_swap", "text_attribute"],
        BOX,
    )
    assert [(word.word, word.start, word.score) for word in applied["words"]] == [("words", 4, 0.8)]


def test_there_is_no_box_without_a_flagged_face_and_no_words_without_word_scores() -> None:
    types = TYPES | {"face_swap": 0.4, "text_swap": None, "text_attribute": None}
    applied = apply_policy(Policy(), score=0.5, types=types, raw_box=BOX, text="", word_scores=None)
    assert applied == {"verdict": "manipulated", "flagged_types": [], "box_px": None, "words": None}
