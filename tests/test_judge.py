import dataclasses

import numpy as np
import pytest
import torch
from tiny import tiny_model

from asap.dataset import PictureCache, Record, TrainingSet
from asap.text import TextCodec, train_tokenizer
from jobs.fit import Split
from jobs.judge import judge

TEXTS = ("the angry man waits", "a calm woman", "people dance in the rain")
CLASSES = ("orig", "face_swap", "text_swap", "face_attribute&text_swap", "orig", "text_attribute", "face_swap")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("pictures")
    tokenizer = train_tokenizer(TEXTS, 100)
    model = tiny_model(vocab_size=len(tokenizer))
    records = [
        Record(
            id=str(number), image=folder / f"{number}.png", text=(text := TEXTS[number % 3]), fake_cls=name,
            fake_image_box=(4, 4, 30, 30) if "face" in name else (), fake_text_pos=(0,) if "text" in name else (),
            caption=text, explanation=text,
        )
        for number, name in enumerate(CLASSES)
    ]  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 255, (len(records), 48, 48, 3), dtype=np.uint8)
    sizes = np.full((len(records), 2), 48, np.int32)
    pictures = PictureCache(noise, sizes, {record.image: row for row, record in enumerate(records)})
    return Split(TrainingSet(records, pictures, TextCodec(tokenizer)), model.config)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_figures_do_not_depend_on_the_batches(split: Split, batch_size: int) -> None:
    model = tiny_model(vocab_size=split.config.vocab_size)
    whole = judge(model, split)
    assert whole["pairs"] == len(CLASSES)
    assert {
        name: judge(model, split, batch_size)[name] for name in ("AUC", "mAP", "token_F1", "IoU_mean")
    } == pytest.approx({name: whole[name] for name in ("AUC", "mAP", "token_F1", "IoU_mean")}, abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_judged_in_eval_mode_and_left_in_its_own(split: Split, training: bool) -> None:
    model = tiny_model(vocab_size=split.config.vocab_size)
    calm = judge(model, split)
    dropping = tiny_model(vocab_size=split.config.vocab_size, dropout=0.5).train(training)
    before = {name: value.clone() for name, value in dropping.state_dict().items()}

    assert judge(dropping, split) == calm

    assert dropping.training is training
    torch.testing.assert_close(dropping.state_dict(), before, rtol=0, atol=0)


def test_a_split_without_boxes_is_judged_by_what_it_has(split: Split) -> None:
    records = [record for record in split.pairs.records if "face" not in record.fake_cls]
    tokenizer = train_tokenizer(TEXTS, 100)
    boxless = dataclasses.replace(split, pairs=TrainingSet(records, split.pairs.pictures, TextCodec(tokenizer)))
    report = judge(tiny_model(vocab_size=split.config.vocab_size), boxless)
    assert report["IoU_mean_boxed"] is None
    assert report["AUC"] is not None
