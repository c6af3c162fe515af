"""The engine of transformers with tiny models of each kind, as transformers saves them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from asap.errors import ConfigError
from jobs.descriptions.engine import Failure, Outcome, Reply, Request
from jobs.descriptions.loading import load_engine
from jobs.descriptions.prompts import TASK_WORDS
from jobs.descriptions.settings import DescriptionSettings
from jobs.descriptions.transformers_engine import TransformersEngine
from tests.support import tiny_captioners
from tests.support.tiny_captioners import WORDS


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    folders: dict[tuple[str, str], str] = {}

    def save(name: str, **changes: Any) -> str:
        key = name, str(changes)
        if key not in folders:
            folders[key] = getattr(tiny_captioners, f"save_{name}")(tmp_path_factory.mktemp(name), **changes)
        return folders[key]

    return save


def _request(seed: int = 0, text: str | None = None) -> Request:
    noise = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    return Request(str(seed), f"{seed}.jpg", Image.fromarray(noise), text)


def _settings(source: str, **changes: Any) -> DescriptionSettings:
    return DescriptionSettings(**({"engine": "transformers", "source": source, "max_new_tokens": 5} | changes))


def _prompts(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Record the prompts that reach the model, with their special tokens."""
    prompts: list[list[str]] = []
    generate = engine._model.generate

    def keep(**inputs: Any) -> Any:
        # The model may write into its inputs.
        prompts.append([" ".join(engine._tokenizer.convert_ids_to_tokens(ids)) for ids in inputs["input_ids"]])
        return generate(**inputs)

    monkeypatch.setattr(engine._model, "generate", keep)
    return prompts


@pytest.mark.parametrize("model", ["blip", "llava", "encoder_decoder"])
def test_a_model_captions_each_picture_with_new_words_only(model: str, saved: Callable[..., str]) -> None:
    engine = load_engine(_settings(saved(model), batch_size=2))
    outcomes = engine.describe([_request(seed) for seed in range(3)])
    assert len(outcomes) == 3
    for outcome in outcomes:
        assert isinstance(outcome, Reply)
        assert set(outcome.text.split()) <= set(WORDS)
        assert 1 <= len(outcome.text.split()) <= 5, "the prompt is not part of a caption"
        assert 1 <= outcome.usage.output_tokens <= 5
        assert outcome.is_cut is (outcome.usage.output_tokens == 5)
    (alone,) = engine.describe([_request(0)])
    assert alone == outcomes[0], "a picture's caption does not depend on the batch"


_PLAIN = [
    ("blip", "blip", {}),
    ("blip-2", "blip2", {}),
    ("blip-2", "blip2", {"text_model": "t5"}),
    ("instructblip", "instructblip", {}),
    ("instructblip", "instructblip", {"text_model": "t5"}),
    ("kosmos-2", "kosmos2", {}),
    ("git", "git", {}),
    ("paligemma", "paligemma", {}),
    ("florence2", "florence2", {}),
    ("vision-encoder-decoder", "encoder_decoder", {}),
]
"""The models that caption without a chat template: type, form, and changes of the form."""


def test_each_type_with_task_words_has_a_model_here() -> None:
    assert {model_type for model_type, _, _ in _PLAIN} == set(TASK_WORDS)


@pytest.mark.parametrize(("model_type", "form", "changes"), _PLAIN)
def test_a_caption_is_what_transformers_writes_behind_the_task_words(
    saved: Callable[..., str], model_type: str, form: str, changes: dict[str, Any]
) -> None:
    source = saved(form, **changes)
    engine = TransformersEngine(_settings(source), "cpu")
    request = _request()
    (outcome,) = engine.describe([request])
    assert isinstance(outcome, Reply)
    assert engine.record()["model_type"] == model_type
    # The same by the classes of transformers, whose text holds the prompt.
    words = {} if TASK_WORDS[model_type] is None else {"text": [TASK_WORDS[model_type]]}
    inputs = engine._processor(images=[request.image], return_tensors="pt", **words)
    model = AutoModelForImageTextToText.from_pretrained(source).eval()
    written = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    whole = engine._tokenizer.decode(written[0], skip_special_tokens=True).split()
    caption = outcome.text.split()
    assert whole[len(whole) - len(caption) :] == caption
    assert set(caption) <= {*WORDS, "what", "does", "image", "describe"}
    assert 1 <= outcome.usage.output_tokens <= 5
    if not words:
        assert whole == caption


@pytest.mark.parametrize(("form", "changes"), [(form, changes) for _, form, changes in _PLAIN[1:7]])
def test_words_of_the_settings_may_differ_in_length_within_a_batch(
    saved: Callable[..., str], form: str, changes: dict[str, Any]
) -> None:
    engine = TransformersEngine(_settings(saved(form, **changes), prompt="the {text}"), "cpu")
    requests = [_request(0, "man in the street"), _request(1, "crowd")]
    outcomes = engine.describe(requests)
    assert all(isinstance(outcome, Reply) and outcome.usage.output_tokens == 5 for outcome in outcomes), outcomes
    assert [engine.describe([request])[0] for request in requests] == outcomes


def test_a_model_that_goes_on_with_its_words_gets_no_end_behind_them(
    saved: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(_settings(saved("git"), prompt="the man"), "cpu")
    prompts = _prompts(engine, monkeypatch)
    engine.describe([_request()])
    assert prompts == [["[CLS] the man"]]


@pytest.mark.parametrize(("kind", "text"), [("caption", None), ("explanation", "crowd")])
@pytest.mark.parametrize("writes_first", [True, False])
def test_a_prompt_has_one_first_token_whoever_writes_it(
    saved: Callable[..., str], monkeypatch: pytest.MonkeyPatch, writes_first: bool, kind: str, text: str | None
) -> None:
    settings = _settings(saved("llava", writes_first=writes_first), kind=kind, prompt="the man {text}")
    engine = TransformersEngine(settings, "cpu")
    prompts = _prompts(engine, monkeypatch)
    assert isinstance(engine.describe([_request(text=text)])[0], Reply)
    assert prompts[0][0].startswith("[CLS]")
    assert prompts[0][0].count("[CLS]") == 1


def test_a_chat_model_gets_the_published_prompt(saved: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(_settings(saved("llava")))
    seen: list[Any] = []
    template = engine._processor.apply_chat_template
    monkeypatch.setattr(
        engine._processor, "apply_chat_template", lambda chat, **options: seen.append(chat) or template(chat, **options)
    )
    engine.describe([_request()])
    assert seen[0][0]["content"][1] == {"type": "text", "text": "Give the caption of this picture"}


def test_a_prompt_reaches_a_model_without_a_chat_template_and_is_no_part_of_the_caption(
    saved: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(_settings(saved("blip"), prompt="the man in the"))
    prompts = _prompts(engine, monkeypatch)
    outcomes = engine.describe([_request(0), _request(1)])
    assert prompts == [["[CLS] the man in the [SEP]"] * 2], "BLIP replaces the first token and drops the last"
    assert all(isinstance(outcome, Reply) and outcome.usage.output_tokens <= 5 for outcome in outcomes)


def test_a_model_with_task_words_is_asked_by_them(saved: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(_settings(saved("paligemma")))
    seen: list[Any] = []
    monkeypatch.setattr(engine, "_processor", _Recorder(engine._processor, seen))
    outcomes = engine.describe([_request()])
    assert seen == [["caption en"]]
    assert engine.record()["prompt"] == "caption en"
    assert isinstance(outcomes[0], Reply)
    assert len(outcomes[0].text.split()) <= 5


def test_the_task_words_of_florence_become_its_question_and_a_forced_end_is_a_cut(
    saved: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(_settings(saved("florence2")))
    prompts = _prompts(engine, monkeypatch)
    (outcome,) = engine.describe([_request()])
    assert "what does the image describe" in prompts[0][0]
    assert isinstance(outcome, Reply)
    assert outcome.usage.output_tokens <= 5
    assert outcome.is_cut is (outcome.usage.output_tokens == 4)


class _Recorder:
    def __init__(self, processor: Any, seen: list[Any]) -> None:
        self._processor, self._seen = processor, seen

    def __call__(self, **inputs: Any) -> Any:
        self._seen.append(inputs["text"])
        return self._processor(**inputs)


def test_a_model_that_nobody_knows_how_to_ask_is_refused_unless_the_settings_say(saved: Callable[..., str]) -> None:
    source = saved("llava", with_template=False)
    with pytest.raises(ConfigError, match=r"type llava\) has no chat template, and how it is asked for a caption"):
        TransformersEngine(_settings(source))
    (outcome,) = TransformersEngine(_settings(source, prompt="<image> the man")).describe([_request()])
    assert isinstance(outcome, Reply)
    explains = saved("language_model", with_template=False)
    with pytest.raises(ConfigError, match="asked for an explanation is unknown"):
        TransformersEngine(_settings(explains, kind="explanation"))
    engine = TransformersEngine(_settings(explains, kind="explanation", prompt="the {text} in"))
    assert isinstance(engine.describe([_request(text="crowd")])[0], Reply)


def test_a_language_model_explains_texts_of_any_length(
    saved: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(_settings(saved("language_model"), kind="explanation", prompt="in {text}"))
    prompts = _prompts(engine, monkeypatch)
    outcomes = engine.describe([_request(text="man"), _request(text=" "), _request(text="a woman smiles {text}")])
    assert prompts[0][0] == "[PAD] " * 5 + "in man the", "the template of the model adds its words"
    assert isinstance(outcomes[0], Reply)
    assert isinstance(outcomes[1], Failure)
    assert (outcomes[1].kind, outcomes[0].usage.input_tokens) == ("no_input", 3)
    assert engine.describe([_request(text="man")])[0] == outcomes[0], "the padding of a batch changes nothing"


def test_a_model_that_sees_explains_texts_too(saved: Callable[..., str]) -> None:
    engine = TransformersEngine(_settings(saved("llava"), kind="explanation", prompt="in {text}"))
    assert isinstance(engine.describe([_request(text="man")])[0], Reply)


def test_a_model_that_writes_only_special_tokens_fails_with_that_kind(saved: Callable[..., str]) -> None:
    engine = TransformersEngine(_settings(saved("encoder_decoder", words_only=False)))
    (outcome,) = engine.describe([_request()])
    assert isinstance(outcome, Failure)
    assert outcome.kind == "special_tokens"


def test_a_request_without_a_picture_fails_alone(saved: Callable[..., str]) -> None:
    engine = TransformersEngine(_settings(saved("blip")))
    outcomes = engine.describe([_request(), Request("x", "x.jpg", None), _request(1)])
    assert [type(outcome) for outcome in outcomes] == [Reply, Failure, Reply]
    assert engine.describe([]) == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("no such size"), "model_error"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (MemoryError("no memory"), "out_of_memory"),
    ],
)
def test_a_picture_that_breaks_the_model_fails_alone(
    saved: Callable[..., str], monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    engine = TransformersEngine(_settings(saved("blip")))
    whole = engine._generate

    def breaking(requests: Sequence[Request]) -> list[Outcome]:
        if any(request.image and request.image.width == 1 for request in requests):
            raise error
        return whole(requests)

    monkeypatch.setattr(engine, "_generate", breaking)
    bad = Request("bad", "/bad.jpg", Image.new("RGB", (1, 1)))
    outcomes = engine.describe([_request(), bad, _request(1)])
    assert [type(outcome) for outcome in outcomes] == [Reply, Failure, Reply]
    assert isinstance(outcomes[1], Failure)
    assert outcomes[1].kind == kind
    assert str(error) in outcomes[1].detail


def test_a_cpu_without_memory_is_out_of_memory(saved: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(_settings(saved("blip")))
    monkeypatch.setattr(engine, "_generate", lambda requests: torch.empty(2**50, dtype=torch.uint8))
    (outcome,) = engine.describe([_request()])
    assert isinstance(outcome, Failure)
    assert outcome.kind == "out_of_memory"


def test_a_broken_device_ends_the_process_so_that_another_process_retries(
    saved: Callable[..., str], monkeypatch: pytest.MonkeyPatch, process_end: type[BaseException]
) -> None:
    engine = TransformersEngine(_settings(saved("blip")))

    def breaking(requests: Sequence[Request]) -> list[Outcome]:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine, "_generate", breaking)
    with pytest.raises(process_end):
        engine.describe([_request()])


def test_pictures_are_shrunk_before_they_enter_the_model(
    saved: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(_settings(saved("blip"), max_side=32))
    large = Request("1", "1.jpg", Image.new("L", (400, 200)))
    assert engine._shrunk(large.image).size == (32, 16)
    assert engine._shrunk(large.image).mode == "RGB"
    assert large.image is not None
    assert large.image.size == (400, 200), "the caller's picture stays as it is"


def test_a_processor_of_a_fixed_size_keeps_it(saved: Callable[..., str]) -> None:
    engine = TransformersEngine(_settings(saved("blip"), max_side=32))
    assert dict(engine._processor.image_processor.size) == {"height": 32, "width": 32}


def test_a_closed_engine_has_given_its_model_back(saved: Callable[..., str]) -> None:
    engine = TransformersEngine(_settings(saved("blip")))
    engine.close()
    with pytest.raises(AttributeError):
        engine.record()


def test_the_record_says_what_decides_the_captions(saved: Callable[..., str]) -> None:
    record = TransformersEngine(_settings(saved("encoder_decoder"), dtype="bfloat16", attention="eager")).record()
    assert (record["model_type"], record["prompt"]) == ("vision-encoder-decoder", None)
    assert (record["dtype"], record["max_new_tokens"], record["do_sample"]) == ("bfloat16", 5, False)
    assert record["batch_size"] == 16
    json.dumps(record)


def test_the_record_has_the_generation_settings_of_the_folder_that_act(
    saved: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(saved("git"), tmp_path / "model")
    acts = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "length_penalty": 0.8, "min_length": 3}
    sampled = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20}
    path = folder / "generation_config.json"
    others = {"num_beams": 2, "num_return_sequences": 2, "return_dict_in_generate": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | acts | sampled | others))
    engine = TransformersEngine(_settings(str(folder)), "cpu")
    record = engine.record()
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "suppress_tokens": [0, 1, 2, 3, 4]}
    assert record["generation"] == acts | ends
    assert (record["do_sample"], record["num_beams"]) == (False, 2)
    (outcome,) = engine.describe([_request()])
    assert isinstance(outcome, Reply)
    assert len(set(outcome.text.split())) > 1
    assert capfd.readouterr().err == "", "settings that do not act are not warned of"


@pytest.mark.parametrize("form", ["blip", "blip2", "instructblip", "kosmos2"])
def test_a_model_that_has_its_language_model_write_records_the_settings_of_that(
    saved: Callable[..., str], tmp_path: Path, form: str
) -> None:
    folder = shutil.copytree(saved(form), tmp_path / "model")
    (before,) = TransformersEngine(_settings(str(folder)), "cpu").describe([_request()])
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1}))
    engine = TransformersEngine(_settings(str(folder)), "cpu")
    assert {"bos_token_id", "eos_token_id", "pad_token_id"} == set(engine.record()["generation"])
    assert engine.describe([_request()]) == [before], "transformers does not read the file for such a model"


def _add_code(folder: Path, names: Sequence[str]) -> Path:
    """Put code beside a model that its files name. Return the file that the code would write."""
    mark = folder.parent / "ran"
    code = f"open({str(mark)!r}, 'w').close()\nclass Own: pass\ndef generate(**options): pass\n"
    (folder / "own.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").write_text(code)
    owner = {"config.json": ("AutoConfig", "AutoModelForImageTextToText"), "processor_config.json": ("AutoProcessor",)}
    for name in names:
        content = json.loads((folder / name).read_text())
        classes: Any = dict.fromkeys(owner.get(name, ()), "own.Own") or {"AutoTokenizer": ["own.Own", "own.Own"]}
        (folder / name).write_text(json.dumps(content | {"auto_map": classes}))
    return mark


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("llava", ["config.json", "processor_config.json"]),
        ("encoder_decoder", ["config.json", "tokenizer_config.json"]),
    ],
)
def test_code_beside_a_model_of_a_known_type_is_not_run(
    saved: Callable[..., str], tmp_path: Path, form: str, names: list[str]
) -> None:
    folder = Path(shutil.copytree(saved(form), tmp_path / "model"))
    mark = _add_code(folder, names)
    (outcome,) = TransformersEngine(_settings(str(folder)), "cpu").describe([_request()])
    assert isinstance(outcome, Reply)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("config.json", "model_type", "own"), ("tokenizer_config.json", "tokenizer_class", "OwnTokenizer")],
)
def test_a_model_that_needs_code_of_its_own_is_refused_and_the_code_not_run(
    saved: Callable[..., str], tmp_path: Path, name: str, key: str, value: str
) -> None:
    folder = Path(shutil.copytree(saved("encoder_decoder"), tmp_path / "model"))
    mark = _add_code(folder, [name])
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | {key: value}))
    with pytest.raises(ConfigError, match=r"needs code that lies beside it, and such code is not run\. Give a model"):
        TransformersEngine(_settings(str(folder)), "cpu")
    assert not mark.exists()


def test_a_folder_that_is_no_captioner_is_refused_in_a_sentence(saved: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"for captions cannot be loaded: .*model_type"):
        TransformersEngine(_settings(str(tmp_path)))
    with pytest.raises(ConfigError, match=r"type llama\) cannot write captions\. Give an image-text-to-text model"):
        TransformersEngine(_settings(saved("language_model")))
    (tmp_path / "config.json").write_text('{"model_type": "pi0"}')  # it sees and reads, and moves a robot
    with pytest.raises(ConfigError, match=r"type pi0\) cannot write captions\. Give an image-text-to-text model"):
        TransformersEngine(_settings(str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ConfigError, match=r"type vit\) cannot write explanations\. Give a language model"):
        TransformersEngine(_settings(str(tmp_path), kind="explanation"))


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_a_folder_with_a_part_missing_is_refused_in_a_sentence(
    saved: Callable[..., str], tmp_path: Path, missing: str
) -> None:
    folder = shutil.copytree(saved("encoder_decoder"), tmp_path / "model")
    for file in folder.glob("tokenizer*" if "tokenizer" in missing else missing):
        file.unlink()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        TransformersEngine(_settings(str(folder)))


def test_damaged_weights_are_refused_in_a_sentence(saved: Callable[..., str], tmp_path: Path) -> None:
    folder = shutil.copytree(saved("encoder_decoder"), tmp_path / "model")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:200])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        TransformersEngine(_settings(str(folder)))


def test_a_folder_with_a_limit_of_its_own_gives_neither_a_warning_nor_a_bar(
    saved: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(saved("encoder_decoder"), tmp_path / "model")
    path = tmp_path / "model/generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": 3}))
    (outcome,) = TransformersEngine(_settings(str(tmp_path / "model")), "cpu").describe([_request()])
    assert outcome.usage.output_tokens == 5
    assert capfd.readouterr().err == ""
