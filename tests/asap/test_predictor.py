import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asap.errors import CheckpointError, ConfigError, DecodeFailed, InputError, TextMissing, TextUnreadable
from asap.familiarity import Familiarity, PairFeatures
from asap.finding import Finding, Pair
from asap.labels import TYPES
from asap.limits import NO_FAMILIARITY
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.policy import Policy
from asap.predictor import Predictor, _length_buckets
from asap.preprocessing.images import ImageLimits, PreparedImage, normalize, prepare_image
from asap.preprocessing.text import pad_batch, train_tokenizer
from asap.weights.model_folder import ModelFolder, load_folder, save, weights_sha256

SENTENCE = "the minister smiles at a crowd of happy people near old bridge in july while rain falls"
WORDS = SENTENCE.split()
TEXTS = [" ".join((WORDS * 3)[start : start + length]) for start, length in enumerate([3, 20, 7, 1, 12, 5, 16, 9])]
LONG = " ".join((WORDS * 10)[:44])
NEVER = Policy(manipulated=1.0, review=1.0, types=dict.fromkeys(TYPES, 1.0), word=1.0)
ALWAYS = Policy(manipulated=0.0, review=0.0, types=dict.fromkeys(TYPES, 0.0), word=0.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: a model this small only waits for its threads, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS * 3, 200)
    model = Asap(
        ModelConfig.tiny(
            image_size=32, width=48, heads=4, image_layers=2, image_mlp_width=48, text_layers=1, fusion_layers=1,
            text_mlp_width=48, vocab_size=len(tokenizer), embed_dim=8, max_words=20,
        )
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # with the initial weights for training, all pairs get nearly the same output
            torch.nn.init.normal_(parameter, std=0.5 if "embed" in name else 1.5 * parameter[0].numel() ** -0.5)
    return save(model, tmp_path_factory.mktemp("models") / "small", tokenizer=tokenizer)


@pytest.fixture
def loaded(folder: Path) -> ModelFolder:
    return load_folder(folder)


@pytest.fixture
def predictor(loaded: ModelFolder) -> Predictor:
    return Predictor(loaded, device="cpu", batch_size=4)


def picture(seed: int = 0, width: int = 80, height: int = 60) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 10, width // 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def pairs() -> list[Pair]:
    return [Pair(picture(seed), text) for seed, text in enumerate(TEXTS)]


def values_of(finding: Finding) -> list[float]:
    assert finding.error is None
    assert finding.types is not None
    return [finding.score, *finding.types.values(), *finding.raw_box_px, *finding.word_scores]  # type: ignore


def before(model: Asap, name: str, act: Callable[..., None]) -> None:
    """Call `act` with the arguments of a method of the model before each call of that method."""
    method = getattr(model, name)

    def wrapped(*args: object, **kwargs: object) -> object:
        act(*args)
        return method(*args, **kwargs)

    setattr(model, name, wrapped)


def test_a_finding_holds_the_models_output_in_pixels_and_words(loaded: ModelFolder, predictor: Predictor) -> None:
    text = "  The Minister smiles, -- at a\tcrowd"
    image = prepare_image(picture(), 32)
    with torch.inference_mode():
        ids = [[2, *loaded.tokenizer("the minister smiles at a crowd", add_special_tokens=False)["input_ids"]]]
        output = loaded.model(normalize(image.pixels[None]), *pad_batch(ids, 0))
    cx, cy, w, h = output.box_cxcywh[0].tolist()
    tokens = output.logits_token[0].softmax(-1)[:, 1].tolist()

    finding = predictor.predict([Pair(picture(), text)])[0]

    assert finding.score == pytest.approx(output.logits_real_fake[0].softmax(-1)[1].item(), abs=1e-5)
    assert finding.types == pytest.approx(
        dict(zip(TYPES, output.logits_multilabel[0].sigmoid().tolist(), strict=True)), abs=1e-5
    )
    box = np.clip([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 0, 1) * [80, 60, 80, 60]
    assert finding.raw_box_px == pytest.approx(box.tolist(), abs=1e-3)
    assert ids[0][0] == loaded.tokenizer.cls_token_id
    assert len(tokens) == 6, "each word of this text is one piece"
    assert finding.word_scores == pytest.approx([*tokens[:3], 0, *tokens[3:]], abs=1e-5)
    assert (finding.width, finding.height, finding.model_id) == (80, 60, loaded.model_id)
    assert finding.policy_id == loaded.policy.policy_id
    assert finding.warnings == []
    flagged = [index for index, score in enumerate(finding.word_scores or []) if score >= 0.5]
    assert [(word.index, text[word.start : word.end]) for word in finding.words or []] == [
        (index, text.split()[index]) for index in flagged
    ]


def test_findings_come_in_the_order_of_the_pairs_at_any_batch_size(predictor: Predictor) -> None:
    alone = [predictor.predict([pair])[0] for pair in pairs()]
    for size in (1, 3, 8):
        for one, together in zip(alone, predictor.predict(pairs(), batch_size=size), strict=True):
            assert values_of(together) == pytest.approx(values_of(one), abs=1e-5 * 80)
            assert together.score == pytest.approx(one.score, abs=1e-5)
            assert together.word_scores == pytest.approx(one.word_scores, abs=1e-5)
    assert len({round(finding.score or 0, 4) for finding in alone}) == len(alone), "the test would not notice a mix-up"


def test_more_pairs_than_a_chunk_holds_keep_their_order(predictor: Predictor) -> None:
    many = [pairs()[index % 8] for index in range(20)]
    scores = [finding.score for finding in predictor.predict(many, batch_size=1)]
    assert scores == pytest.approx([scores[index % 8] for index in range(20)], abs=1e-5)


def test_no_pairs_give_no_findings(predictor: Predictor) -> None:
    assert predictor.predict([]) == []


def test_bytes_paths_and_pil_images_give_the_same_finding(predictor: Predictor, tmp_path: Path) -> None:
    data = encoded(picture())
    (tmp_path / "a.png").write_bytes(data)
    sources = [data, tmp_path / "a.png", str(tmp_path / "a.png"), picture()]
    findings = predictor.predict([Pair(source, TEXTS[1]) for source in sources])
    for finding in findings:
        assert values_of(finding) == pytest.approx(values_of(findings[0]), abs=1e-4)
    assert findings[0].image_sha256 == findings[1].image_sha256
    assert findings[3].image_sha256 is None


def test_a_box_is_in_pixels_after_exif_rotation(predictor: Predictor) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    upright = picture().transpose(Image.Transpose.ROTATE_270)
    turned, plain = predictor.predict(
        [Pair(encoded(picture(), exif=exif.tobytes()), TEXTS[0]), Pair(encoded(upright), TEXTS[0])]
    )
    assert (turned.width, turned.height) == (60, 80)
    assert turned.raw_box_px == pytest.approx(plain.raw_box_px, abs=1e-4)


def test_a_box_is_reported_only_if_an_image_type_is_flagged(loaded: ModelFolder) -> None:
    text_only = Policy(types={"face_swap": 1.0, "face_attribute": 1.0, "text_swap": 0.0, "text_attribute": 0.0})
    findings = {
        name: Predictor(loaded, device="cpu", policy=policy).predict(pairs()[:1])[0]
        for name, policy in {"never": NEVER, "always": ALWAYS, "text": text_only}.items()
    }
    assert findings["never"].box_px is findings["text"].box_px is None
    assert findings["never"].raw_box_px == findings["always"].raw_box_px == findings["always"].box_px
    assert findings["text"].flagged_types == ["text_swap", "text_attribute"]
    assert findings["never"].words == []
    assert len(findings["always"].words or []) == len(TEXTS[0].split())
    assert [findings[name].verdict for name in ("never", "always")] == ["authentic", "manipulated"]


def test_an_error_in_one_pair_does_not_affect_the_others(predictor: Predictor) -> None:
    good, data = pairs(), encoded(picture(), "JPEG")
    bad = [Pair(None, "text"), Pair(b"", "text"), Pair(b"GIF89a", "x"), Pair(data[: len(data) // 2], "x"),
           Pair(picture(), None), Pair(picture(), " "), Pair(picture(), "--")]  # fmt: skip
    mixed = [pair for couple in zip(good, bad, strict=False) for pair in couple]

    findings = predictor.predict(mixed)

    codes = [finding.error.code if finding.error else None for finding in findings]
    assert codes[1::2] == ["image_missing", "empty_file", "decode_failed", "decode_failed", "text_missing",
                           "text_missing", "text_invalid"]  # fmt: skip
    expected = predictor.predict(good[:7])
    for finding, alone in zip(findings[::2], expected, strict=True):
        assert values_of(finding) == pytest.approx(values_of(alone), abs=1e-3)
    failed = findings[9]
    assert (failed.verdict, failed.score, failed.types, failed.raw_box_px) == (None, None, None, None)
    assert (failed.width, failed.height) == (80, 60), "what is known about the image stays"
    assert failed.model_id == predictor.model_id


def test_errors_may_be_passed_instead_of_prepared_images_and_texts(predictor: Predictor) -> None:
    image = prepare_image(picture(), 32)
    broken, missing = DecodeFailed("truncated"), TextMissing("none")
    findings = predictor.predict_prepared([image, broken, image, broken], ["a crowd", "a crowd", missing, missing])
    assert [finding.error for finding in findings] == [None, broken, missing, broken]


def test_the_predictors_limits_apply_to_its_images(loaded: ModelFolder) -> None:
    small = Predictor(loaded, device="cpu", limits=ImageLimits(max_pixels=100))
    error = small.predict(pairs()[:1])[0].error
    assert error is not None
    assert error.code == "too_large"


def test_a_long_text_is_analyzed_in_passes_and_its_image_is_encoded_once(
    loaded: ModelFolder, predictor: Predictor
) -> None:
    encoded_images: list[int] = []
    before(loaded.model, "encode_image", lambda images: encoded_images.append(len(images)))

    long, short = predictor.predict([Pair(picture(), LONG), Pair(picture(1), TEXTS[0])])

    assert encoded_images == [2]
    assert long.warnings == [
        "the text is longer than one pass holds (20 words, 64 tokens); it was analyzed in 3 passes"
    ]
    assert short.warnings == []
    words = LONG.split()
    parts = [" ".join(words[start : start + 15]) for start in (0, 15, 30)]
    alone = predictor.predict([Pair(picture(), part) for part in parts])
    assert long.score == pytest.approx(max(finding.score or 0 for finding in alone), abs=1e-5)
    for name in TYPES:
        assert (long.types or {})[name] == pytest.approx(max((one.types or {})[name] or 0 for one in alone), abs=1e-5)
    surest = max(alone, key=lambda one: max((one.types or {})[name] or 0 for name in TYPES[:2]))
    assert long.raw_box_px == pytest.approx(surest.raw_box_px, abs=1e-3)
    assert long.word_scores == pytest.approx([score for one in alone for score in one.word_scores or []], abs=1e-5)


def test_prediction_pauses_between_passes_and_a_caller_that_stops_runs_no_more(
    loaded: ModelFolder, predictor: Predictor
) -> None:
    images, texts = [prepare_image(picture(seed), 32) for seed in range(3)], [LONG, TEXTS[0], LONG]
    expected = predictor.predict_prepared(images, texts, batch_size=2)
    seen: list[int] = []
    before(loaded.model, "encode_text", lambda input_ids, mask: seen.append(len(input_ids)))

    *pauses, findings = predictor.predict_in_steps(images, texts, batch_size=2)

    assert seen == [2, 2, 2, 1], "seven passes over three pairs, two of them at once"
    assert pauses == [None] * 3
    assert findings == expected
    seen.clear()
    steps = predictor.predict_in_steps(images, texts, batch_size=2)
    assert [next(steps), next(steps)] == [None, None]
    del steps
    assert seen == [2, 2]


def test_many_passes_over_few_pairs_work_with_any_batch_size(predictor: Predictor) -> None:
    many = [Pair(picture(seed), text) for seed, text in enumerate([LONG, TEXTS[2], LONG + " " + LONG])]
    expected = predictor.predict(many, batch_size=8)
    for size in (1, 2, 3):
        for one, other in zip(expected, predictor.predict(many, batch_size=size), strict=True):
            assert values_of(one) == pytest.approx(values_of(other), abs=1e-3)


def test_a_caption_instead_of_a_text_gives_no_word_scores(loaded: ModelFolder) -> None:
    predictor = Predictor(loaded, device="cpu", policy=ALWAYS)
    image = prepare_image(picture(), 32)
    plain, captioned = predictor.predict_prepared([image, image], ["a crowd"] * 2, captioned=[False, True])

    assert captioned.score == pytest.approx(plain.score)
    assert (captioned.words, captioned.word_scores) == (None, None)
    assert captioned.types == (plain.types or {}) | {"text_swap": None, "text_attribute": None}
    assert captioned.flagged_types == ["face_swap", "face_attribute"]
    assert captioned.box_px == plain.box_px
    assert "caption" in captioned.warnings[0]
    assert plain.warnings == []


def agreement_of(finding: Finding) -> tuple[float | None, float | None, float | None]:
    return finding.agreement_image_text, finding.agreement_image_caption, finding.agreement_text_caption


def test_agreement_is_the_cosine_of_the_contrastive_features(loaded: ModelFolder, predictor: Predictor) -> None:
    image = prepare_image(picture(), 32)
    text, caption = "the minister smiles", "a crowd near old bridge"
    (finding,) = predictor.predict_prepared([image], [text], captions=[caption])

    def projected(words: str) -> torch.Tensor:
        ids = [2, *loaded.tokenizer(words, add_special_tokens=False)["input_ids"]]
        return loaded.model.text_projection(loaded.model.encode_text(*pad_batch([ids], 0))[:, 0])

    with torch.inference_mode():
        pixels = normalize(torch.from_numpy(image.pixels[None]))
        sides = [loaded.model.image_projection(loaded.model.encode_image(pixels)[:, 0])]
        sides += [projected(text), projected(caption)]
        expected = [torch.cosine_similarity(sides[one], sides[two]).item() for one, two in ((0, 1), (0, 2), (1, 2))]
    assert agreement_of(finding) == pytest.approx(tuple(expected), abs=1e-5)
    assert len(set(expected)) == 3


def test_the_agreement_with_a_caption_costs_one_pass_of_the_text_encoder_and_changes_nothing_else(
    loaded: ModelFolder, predictor: Predictor
) -> None:
    images = [prepare_image(picture(seed), 32) for seed in range(3)]
    plain = predictor.predict_prepared(images, TEXTS[:3])
    calls: list[tuple[str, int]] = []
    for name in ("encode_image", "encode_text", "fuse"):
        before(loaded.model, name, lambda first, *_, name=name: calls.append((name, len(first))))
    described = predictor.predict_prepared(images, TEXTS[:3], captions=[None, "a crowd", "happy people"])
    assert calls == [("encode_image", 3), ("encode_text", 3), ("fuse", 3), ("encode_text", 2)]
    for one, other in zip(plain, described, strict=True):
        nulls = {"agreement_image_caption": None, "agreement_text_caption": None}
        assert replace(other, **nulls) == one  # type: ignore[arg-type]
    assert [agreement_of(finding)[1] is None for finding in described] == [True, False, False]


def test_the_pass_of_a_long_text_that_agrees_most_counts(predictor: Predictor) -> None:
    image = prepare_image(picture(), 32)
    words = LONG.split()
    texts = [LONG, *(" ".join(words[start : start + 15]) for start in (0, 15, 30))]
    long, *parts = map(agreement_of, predictor.predict_prepared([image] * 4, texts, captions=["a crowd"] * 4))
    for side in (0, 2):
        assert long[side] == pytest.approx(max(part[side] or -1 for part in parts), abs=1e-5)


def test_agreement_is_missing_where_a_side_is_missing_or_cannot_be_read(predictor: Predictor) -> None:
    image = prepare_image(picture(), 32)
    captions = ["a crowd", "... !!", HEADLINE, None]
    findings = predictor.predict_prepared(
        [image] * 4, ["happy people"] * 4, captions=captions, captioned=[False, False, False, True]
    )
    (text, _, _), *others = map(agreement_of, findings)
    assert others == [(text, None, None), (text, None, None), (None, text, None)]


def raise_for(culprit: int) -> Callable[..., None]:
    def act(input_ids: torch.Tensor, mask: torch.Tensor) -> None:
        if (input_ids == culprit).any():
            raise RuntimeError("a kernel that cannot do this")

    return act


def test_only_the_pair_that_the_model_fails_on_gets_a_model_error(loaded: ModelFolder, predictor: Predictor) -> None:
    expected = predictor.predict(pairs())
    culprit = loaded.tokenizer("bridge", add_special_tokens=False)["input_ids"][0]
    before(loaded.model, "encode_text", raise_for(culprit))

    findings = predictor.predict(pairs())

    hit = ["bridge" in text for text in TEXTS]
    assert any(hit)
    assert not all(hit)
    for finding, alone, failed in zip(findings, expected, hit, strict=True):
        if failed:
            assert finding.error is not None
            assert finding.error.code == "model_error"
            assert "RuntimeError: a kernel that cannot do this" in str(finding.error)
            assert (finding.width, finding.score) == (80, None)
        else:
            assert values_of(finding) == pytest.approx(values_of(alone), abs=1e-3)


@pytest.mark.parametrize("text", [TEXTS[2], LONG])
def test_a_batch_that_does_not_fit_in_memory_is_made_smaller(
    loaded: ModelFolder, predictor: Predictor, text: str
) -> None:
    many = [*pairs(), Pair(picture(), text)]
    expected = predictor.predict(many)

    def limited(input_ids: torch.Tensor, mask: torch.Tensor) -> None:
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("out of memory")

    before(loaded.model, "encode_text", limited)
    for finding, alone in zip(predictor.predict(many), expected, strict=True):
        assert values_of(finding) == pytest.approx(values_of(alone), abs=1e-3)


def test_a_batch_that_does_not_fit_while_it_is_staged_is_made_smaller(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, copy = predictor.predict(pairs()), predictor._to_device

    def limited(pixels: Any, rows: Any) -> torch.Tensor:
        if len(rows) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return copy(pixels, rows)

    monkeypatch.setattr(predictor, "_to_device", limited)
    for finding, alone in zip(predictor.predict(pairs()), expected, strict=True):
        assert values_of(finding) == pytest.approx(values_of(alone), abs=1e-3)


def test_the_error_of_a_broken_device_is_raised_and_blames_no_pair(loaded: ModelFolder, predictor: Predictor) -> None:
    def broken(*_: torch.Tensor) -> None:
        raise torch.AcceleratorError("device-side assert", 710)

    before(loaded.model, "encode_image", broken)
    with pytest.raises(torch.AcceleratorError):
        predictor.predict(pairs())


def test_a_nan_score_is_an_error_and_not_authentic(loaded: ModelFolder, predictor: Predictor) -> None:
    with torch.no_grad():
        culprit = loaded.tokenizer("july", add_special_tokens=False)["input_ids"][0]
        loaded.model.text_encoder.embeddings.word_embeddings.weight[culprit] = torch.nan
    codes = [finding.error.code if finding.error else None for finding in predictor.predict(pairs())]
    assert codes == ["model_error" if "july" in text else None for text in TEXTS]
    assert None in codes


def test_an_image_prepared_for_another_model_raises_a_config_error(predictor: Predictor) -> None:
    wrong = PreparedImage(pixels=np.zeros((64, 64, 3), np.uint8), width=64, height=64, sha256=None)
    with pytest.raises(
        ConfigError, match=r"shape \(64, 64, 3\) was prepared for another model than small@.*image_size 32"
    ):
        predictor.predict_prepared([wrong], ["a crowd"])


def test_different_numbers_of_images_and_texts_are_refused(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="shorter"):
        predictor.predict_prepared([prepare_image(picture(), 32)], [])


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_1_is_refused(loaded: ModelFolder, predictor: Predictor, size: int) -> None:
    with pytest.raises(ConfigError, match=f"batch_size {size} is not at least 1"):
        predictor.predict(pairs(), batch_size=size)
    with pytest.raises(ConfigError, match=f"batch_size {size} is not at least 1"):
        Predictor(loaded, batch_size=size)


def test_a_predictor_is_built_from_a_folder(folder: Path, loaded: ModelFolder) -> None:
    predictor = Predictor.from_folder(folder, device="cpu", policy=NEVER, batch_size=2)
    assert predictor.config == loaded.config
    assert predictor.image_size == 32
    assert predictor.model_id == loaded.model_id
    assert predictor.policy == NEVER
    assert predictor.dtype == torch.float32
    assert values_of(predictor.predict(pairs())[3])


def test_a_missing_folder_is_reported_by_name() -> None:
    with pytest.raises(CheckpointError, match="'nowhere' does not exist"):
        Predictor.from_folder("nowhere")


def test_auto_without_cuda_is_float32_on_the_cpu(loaded: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    predictor = Predictor(loaded)
    assert (predictor.device.type, predictor.dtype) == ("cpu", torch.float32)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_missing_device_is_refused(loaded: ModelFolder, device: str) -> None:
    with pytest.raises(
        ConfigError, match=f"device '{device}' cannot be used: .*Use 'auto' for CUDA if available, else the CPU"
    ):
        Predictor(loaded, device=device)


def test_an_unknown_precision_is_refused(loaded: ModelFolder) -> None:
    with pytest.raises(ConfigError, match="precision 'float8' is unknown; 'auto', 'float32', 'bfloat16' are known"):
        Predictor(loaded, device="cpu", precision="float8")  # type: ignore[arg-type]


def test_bfloat16_gives_nearly_the_same_results(folder: Path, predictor: Predictor) -> None:
    half = Predictor.from_folder(folder, device="cpu", precision="bfloat16")
    assert half.dtype == torch.bfloat16
    for one, other in zip(predictor.predict(pairs()), half.predict(pairs()), strict=True):
        assert one.score != other.score
        assert one.score == pytest.approx(other.score, abs=0.05)
        assert one.raw_box_px == pytest.approx(other.raw_box_px, abs=0.05 * 80)
        assert one.word_scores == pytest.approx(other.word_scores, abs=0.05)


def test_threads_may_share_a_predictor(predictor: Predictor) -> None:
    expected = [finding.score for finding in predictor.predict(pairs())]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: [finding.score for finding in predictor.predict(pairs())], range(8)))
    for scores in results:
        assert scores == pytest.approx(expected, abs=1e-5)


def test_every_input_error_has_its_own_code() -> None:
    classes = InputError.__subclasses__()
    assert len({error.code for error in classes}) == len(classes)


HEADLINE = "الرئيس يفتتح الجسر الجديد في العاصمة"


def test_a_text_that_the_vocabulary_cannot_read_gets_no_verdict(folder: Path, jpeg: Callable[..., bytes]) -> None:
    predictor = Predictor.from_folder(folder, "cpu")
    read, unread = predictor.predict([Pair(jpeg(0), SENTENCE), Pair(jpeg(0), HEADLINE)])
    assert (read.text_read, read.error) == (1.0, None)
    assert isinstance(unread.error, TextUnreadable)
    assert str(unread.error).endswith(
        "reads 0 % of the text; it needs 50 %. Use a model that was made for this language."
    )
    assert (unread.verdict, unread.score) == (None, None)
    assert not predictor.reads(HEADLINE)
    assert predictor.reads(SENTENCE)
    assert predictor.reads("")  # a missing text has an error of its own


def test_the_share_that_must_be_readable_can_be_set(folder: Path, jpeg: Callable[..., bytes]) -> None:
    tolerant, strict = (Predictor.from_folder(folder, "cpu", min_text_read=share) for share in (0, 0.9))
    half = f"{SENTENCE} {HEADLINE}"
    assert tolerant.predict([Pair(jpeg(0), HEADLINE)])[0].text_read == 0
    assert isinstance(strict.predict([Pair(jpeg(0), half)])[0].error, TextUnreadable)


def test_a_caption_says_nothing_about_the_text(folder: Path, jpeg: Callable[..., bytes]) -> None:
    predictor = Predictor.from_folder(folder, "cpu")
    image = prepare_image(jpeg(0), predictor.image_size)
    (finding,) = predictor.predict_prepared([image], [SENTENCE], captioned=[True])
    assert finding.text_read is None


@pytest.mark.parametrize("share", [-0.1, 50, float("nan")])
def test_a_share_that_is_none_is_refused(folder: Path, share: float) -> None:
    with pytest.raises(ConfigError, match=r"min_text_read .* is not between 0 and 1"):
        Predictor.from_folder(folder, "cpu", min_text_read=share)


@pytest.fixture(scope="module")
def familiar(folder: Path) -> ModelFolder:
    """Return the model with the statistics of `pairs()`, jittered."""
    loaded = load_folder(folder)
    features = Predictor(loaded, device="cpu").features(pairs())
    generator = torch.Generator().manual_seed(0)

    def jittered() -> PairFeatures:
        rows = torch.arange(1200) % len(pairs())
        return PairFeatures(
            *(
                part[rows] + 0.05 * part.std(0) * torch.randn(1200, part.shape[1], generator=generator)
                for part in features
            )
        )

    about = {"weights_sha256": weights_sha256(folder), "corpus": "eight pairs"}
    return replace(loaded, familiarity=Familiarity.fit(jittered(), jittered(), about))


def test_a_model_without_statistics_judges_every_pair_and_says_that_nothing_is_recorded(predictor: Predictor) -> None:
    for finding in predictor.predict(pairs()):
        assert (finding.familiarity, finding.familiarity_image, finding.familiarity_text) == (None, None, None)
        assert finding.familiarity_id is None
        assert finding.verdict != "unfamiliar"
        assert finding.limits == predictor.limits
        assert finding.limits.startswith("Nobody has recorded what small was made from.")
        assert finding.limits.endswith(NO_FAMILIARITY)


def test_strange_pictures_and_texts_are_unfamiliar_and_keep_their_scores(familiar: ModelFolder) -> None:
    predictor = Predictor(familiar, device="cpu", policy=ALWAYS)
    without = Predictor(replace(familiar, familiarity=None), device="cpu", policy=ALWAYS)
    noise = Image.effect_noise((80, 60), 100).convert("RGB")
    strange = [Pair(noise, TEXTS[1]), Pair(picture(1), "near near near near"), Pair(noise, "near near near near")]

    findings = predictor.predict([*pairs(), *strange])

    assert {finding.verdict for finding in findings[:8]} == {"manipulated"}
    assert [(one.familiarity_image < 0.005, one.familiarity_text < 0.005) for one in findings[8:]] == [  # type: ignore
        (True, False), (False, True), (True, True),
    ]  # fmt: skip
    for finding, plain in zip(findings[8:], without.predict(strange), strict=True):
        assert finding.verdict == "unfamiliar"
        assert (finding.flagged_types, finding.words, finding.box_px) == ([], [], None)
        assert values_of(finding) == pytest.approx(values_of(plain), abs=1e-3)
        assert finding.familiarity_id == predictor.familiarity.familiarity_id  # type: ignore[union-attr]


def test_a_captioned_pair_is_as_familiar_as_its_picture(familiar: ModelFolder) -> None:
    predictor = Predictor(familiar, device="cpu")
    image = prepare_image(picture(1), 32)
    finding = predictor.predict_prepared([image], ["near near near near"], captioned=[True])[0]
    assert finding.familiarity_text is None
    assert finding.familiarity == finding.familiarity_image
    assert finding.verdict != "unfamiliar"


def test_the_familiarity_of_a_pair_does_not_depend_on_its_batch_or_its_passes(familiar: ModelFolder) -> None:
    predictor = Predictor(familiar, device="cpu")
    several = [*pairs(), Pair(picture(3), LONG)]
    together = predictor.predict(several)
    assert len(predictor._codec.encode(LONG)) == 3
    for batch_size in (1, 2):
        for one, alone in zip(together, predictor.predict(several, batch_size=batch_size), strict=True):
            assert alone.familiarity == pytest.approx(one.familiarity, rel=0.02)
            assert alone.familiarity_text == pytest.approx(one.familiarity_text, rel=0.02)


def test_features_leave_out_pairs_that_cannot_be_read(predictor: Predictor) -> None:
    features = predictor.features([*pairs()[:2], Pair(b"", "text"), Pair(picture(), None), *pairs()[2:]])
    expected = predictor.features(pairs())
    for part, other in zip(features, expected, strict=True):
        torch.testing.assert_close(part, other, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="none of the pairs can be read"):
        predictor.features([Pair(b"", "text")])


@pytest.mark.parametrize(
    ("lengths", "at_once", "sizes"),
    [
        ([5] * 100, 256, [100]),
        ([5] * 40 + [9] * 60, 256, [40, 60]),
        ([5] * 20 + [9] * 80, 256, [100]),
        ([5] * 80 + [9] * 20, 256, [100]),
        ([5] * 20 + [6] * 20 + [9] * 60, 256, [40, 60]),
        ([5] * 100, 48, [48, 48, 4]),
        ([7], 1, [1]),
    ],
)
def test_passes_of_one_length_are_together_if_they_are_many(lengths: list[int], at_once: int, sizes: list[int]) -> None:
    shuffled = np.random.default_rng(0).permutation(lengths)
    buckets = _length_buckets(shuffled, at_once)
    assert [len(bucket) for bucket in buckets] == sizes
    assert sorted(np.concatenate(buckets).tolist()) == list(range(len(lengths)))
    assert shuffled[np.concatenate(buckets)].tolist() == sorted(lengths)
