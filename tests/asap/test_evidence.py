import numpy as np
import pytest
import torch

from asap.evidence import PassEvidence, highest, probabilities, score_words, surest_boxes
from asap.model.asap import AsapOutput
from asap.policy import Policy, apply_policy, flagged_words


def evidence(types: list[list[float]], boxes: list[list[float]]) -> PassEvidence:
    count = len(types)
    zeros = np.zeros(count, np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    return PassEvidence(zeros[0], np.array(types, np.float32), np.array(boxes, np.float32), *zeros[1:])


def read(output: AsapOutput, lengths: list[int]) -> PassEvidence:
    return PassEvidence.read([probabilities(output).numpy()], np.arange(len(lengths)), np.array(lengths))


def output(**changes: torch.Tensor) -> AsapOutput:
    zeros = AsapOutput(torch.zeros(2, 2), torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 3, 2))
    return zeros._replace(**changes)


def test_logits_become_probabilities_of_manipulated() -> None:
    found = read(
        output(
            logits_real_fake=torch.tensor([[0.0, 2.0], [2.0, 0.0]]),
            logits_multilabel=torch.tensor([[3.0, 0, 0, -3.0], [0, 0, 0, 0]]),
        ),
        [3, 3],
    )
    assert found.score_P.tolist() == pytest.approx([0.8808, 0.1192], abs=1e-4)
    assert found.types_P4[0].tolist() == pytest.approx([0.9526, 0.5, 0.5, 0.0474], abs=1e-4)


def test_padding_is_left_out_of_the_tokens() -> None:
    logits = torch.zeros(2, 3, 2)
    logits[0, 1, 1] = 4
    found = read(output(logits_token=logits), [2, 3])
    assert found.tokens_T.tolist() == pytest.approx([0.5, 0.982, 0.5, 0.5, 0.5], abs=1e-3)
    assert found.pass_of_T.tolist() == [0, 0, 1, 1, 1]


def test_passes_keep_their_order_whatever_batches_they_were_in() -> None:
    logits = [torch.arange(12.0).reshape(2, 3, 2) ** 2 * scale for scale in (0.01, 0.02)]
    outputs = [output(logits_token=each[:, :length]) for each, length in zip(logits, (1, 3), strict=True)]
    values = [probabilities(each).numpy() for each in outputs]
    values[0][:, 0], values[1][:, 0] = [0.1, 0.2], [0.3, 0.4]
    order, lengths = np.array([3, 1, 0, 2]), np.array([2, 1, 3, 1])
    found = PassEvidence.read(values, order, lengths)
    assert found.score_P.tolist() == pytest.approx([0.3, 0.2, 0.4, 0.1])
    tokens = [logits[1][0, :2], logits[0][1, :1], logits[1][1], logits[0][0, :1]]
    assert found.tokens_T.tolist() == pytest.approx(torch.cat(tokens).softmax(-1)[:, 1].tolist())


def test_a_box_is_clipped_to_the_picture() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.9, 0.6, 0.6]])
    found = read(output(box_cxcywh=boxes), [0, 0])
    assert found.box_P4[0].tolist() == pytest.approx([0.4, 0.3, 0.6, 0.7])
    assert found.box_P4[1].tolist() == pytest.approx([0, 0.6, 0.4, 1])


@pytest.mark.parametrize("broken", ["logits_real_fake", "logits_multilabel", "box_cxcywh", "logits_token"])
def test_nan_is_noticed_in_every_output(broken: str) -> None:
    values = getattr(output(), broken).clone()
    values[1] = torch.nan
    assert read(output(**{broken: values}), [3, 3]).is_finite().tolist() == [True, False]


def test_each_type_has_the_highest_probability_of_any_pass() -> None:
    passes = np.array([[0.1, 0.9, 0.2, 0.3], [0.4, 0.5, 0.6, 0.1], [0.2, 0.2, 0.2, 0.2]])
    assert highest(passes, np.array([0, 2])).tolist() == [[0.4, 0.9, 0.6, 0.3], [0.2, 0.2, 0.2, 0.2]]


def test_the_box_is_in_pixels_and_from_the_first_pass_with_the_highest_image_type() -> None:
    passes = evidence(
        [[0.6, 0.1, 0.99, 0.1], [0.1, 0.7, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]],
        [[0, 0, 1, 1], [0.25, 0.5, 0.75, 1], [0, 0, 0, 0], [0.5, 0.5, 1, 1]],
    )
    found = surest_boxes(passes, np.array([0, 3]), np.array([[200, 40], [10, 20]]))
    assert found.tolist() == [[50, 20, 150, 40], [5, 10, 10, 20]]


def test_a_word_scores_as_its_highest_token_and_a_word_without_tokens_scores_0() -> None:
    tokens, words = np.array([0.2, 0.7, 0.4, 0.9], np.float32), np.array([0, 0, 2, 3])
    assert score_words(tokens, words, 5).tolist() == pytest.approx([0.7, 0, 0.4, 0.9, 0])


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
