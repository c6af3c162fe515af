import json
import shutil
import tempfile
from pathlib import Path

import boto3
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from asap.errors import CheckpointError, ConfigError
from asap.familiarity import Familiarity, PairFeatures
from asap.limits import Limits
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.policy import Policy
from asap.preprocessing.text import train_tokenizer
from asap.weights.model_folder import (
    check_folder,
    folder_version,
    load,
    load_folder,
    model_config,
    model_id,
    read_familiarity,
    read_limits,
    replace_familiarity,
    resolve_folder,
    save,
    weights_sha256,
)
from tests.support.uploads import upload_folder


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["a man smiles at the crowd", "the minister leaves"], 100)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> Asap:
    torch.manual_seed(0)
    return Asap(
        ModelConfig.tiny(
            image_size=32, width=48, heads=4, image_layers=1, image_mlp_width=48, text_layers=1, fusion_layers=1,
            text_mlp_width=48, vocab_size=len(tokenizer), embed_dim=8,
        )
    )  # fmt: skip


@pytest.fixture
def folder(model: Asap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    return save(model, tmp_path / "small", tokenizer=tokenizer, policy=Policy(manipulated=0.9), card="# A card\n")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_whoever_may_read_the_folder_may_read_its_weights(folder: Path) -> None:
    modes = {file.name: file.stat().st_mode for file in folder.iterdir() if file.is_file()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_a_saved_model_is_loaded_unchanged(folder: Path, model: Asap, tokenizer: PreTrainedTokenizerFast) -> None:
    loaded = load_folder(folder)

    assert loaded.config == model.config
    assert not loaded.model.training
    torch.testing.assert_close(loaded.model.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(load(folder).state_dict(), model.state_dict(), rtol=0, atol=0)
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert loaded.policy == Policy(manipulated=0.9)
    assert (folder / "README.md").read_text() == "# A card\n"


def test_a_folder_has_a_default_policy_and_card(
    model: Asap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = save(model, tmp_path / "deep" / "plain", tokenizer=tokenizer)
    assert load_folder(folder).policy == Policy()
    assert "plain" in (folder / "README.md").read_text()


def test_half_precision_halves_the_file_and_loads_as_float32(
    folder: Path, model: Asap, tokenizer: PreTrainedTokenizerFast
) -> None:
    half = save(model, folder.with_name("half"), tokenizer=tokenizer, dtype=torch.float16)

    sizes = [(path / "model.safetensors").stat().st_size for path in (folder, half)]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = load(half).state_dict()
    assert {parameter.dtype for parameter in load(half).parameters()} == {torch.float32}
    torch.testing.assert_close(loaded, model.state_dict(), atol=1e-3, rtol=1e-3)


def test_weights_that_half_precision_cannot_hold_are_not_saved(
    model: Asap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    large = Asap(model.config)
    large.temperature.data.fill_(1e6)
    with pytest.raises(CheckpointError, match=r"1 weights are not finite as torch\.float16, first temperature"):
        save(large, tmp_path / "large", tokenizer=tokenizer, dtype=torch.float16)
    assert not any(tmp_path.iterdir())


def test_the_id_names_the_model_and_its_content(folder: Path) -> None:
    name, _, digest = model_id(folder).partition("@")
    assert name == "small"
    assert len(digest) == 12
    copy = Path(shutil.copytree(folder, folder.with_name("elsewhere")))
    assert model_id(copy) == model_id(folder) == load_folder(copy).model_id


def test_the_id_does_not_change_with_policy_and_card(folder: Path) -> None:
    before = model_id(folder)
    Policy(manipulated=0.7).save(folder / "policy.json")
    (folder / "README.md").write_text("# Another card")
    assert model_id(folder) == before


def test_the_id_does_not_change_when_a_loaded_model_is_saved_again(folder: Path) -> None:
    loaded = load_folder(folder)
    again = save(loaded.model, folder.with_name("again"), tokenizer=loaded.tokenizer, name="small")
    assert model_id(again) == loaded.model_id


@pytest.mark.parametrize("changed", ["config.json", "model.safetensors", "tokenizer/tokenizer.json"])
def test_the_id_changes_with_configuration_weights_and_tokenizer(folder: Path, changed: str) -> None:
    before = model_id(folder)
    path = folder / changed
    path.write_bytes(path.read_bytes() + b" ")
    assert model_id(folder) != before


def test_the_configuration_is_read_without_the_weights(folder: Path, model: Asap) -> None:
    (folder / "model.safetensors").unlink()
    assert model_config(folder) == model.config


def test_a_folder_names_its_label_set_and_an_older_folder_means_dgm4s(
    folder: Path, model: Asap, tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = json.loads((folder / "config.json").read_text())["model"]
    assert settings.pop("label_set") == "dgm4"
    edit_config(folder, model=settings)
    assert load(folder).config.label_set == "dgm4"
    edit_config(folder, model=settings | {"label_set": "samm"})
    samm = save(load(folder), folder.with_name("samm"), tokenizer=tokenizer)
    assert model_config(samm).label_set == "samm"
    assert model_config("demo").label_set == "dgm4"


@pytest.mark.parametrize("piece", ["config.json", "model.safetensors", "tokenizer", "policy.json"])
def test_a_missing_piece_is_named_with_its_folder(folder: Path, piece: str) -> None:
    path = folder / piece
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match=f"small has no {piece}"):
        load_folder(folder)


def test_weights_that_do_not_fit_are_listed(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["box_head.0.bias"] = torch.zeros(5)
    weights["surprise"] = weights.pop("temperature")
    save_file(weights, folder / "model.safetensors")

    with pytest.raises(CheckpointError) as caught:
        load(folder)

    assert "1 missing: temperature" in str(caught.value)
    assert "1 unexpected: surprise" in str(caught.value)
    assert "1 wrongly shaped: box_head.0.bias is (5,), not (96,)" in str(caught.value)


def test_a_damaged_weights_file_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read as safetensors"):
        load(folder)


def test_a_configuration_of_a_newer_schema_is_refused(folder: Path) -> None:
    edit_config(folder, schema_version=2)
    with pytest.raises(CheckpointError, match=r"schema_version 2; this library reads 1"):
        load(folder)


def test_a_configuration_with_an_unknown_setting_is_refused(folder: Path) -> None:
    edit_config(folder, model={"widht": 48})
    with pytest.raises(
        CheckpointError, match=r"config\.json does not describe a model: unknown model settings \['widht'\]"
    ):
        load(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": 1}', '"text"'])
def test_a_configuration_of_another_form_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json is not a model configuration"):
        load(folder)


def test_a_tokenizer_of_another_vocabulary_is_refused_on_saving_and_on_loading(
    folder: Path, model: Asap, tokenizer: PreTrainedTokenizerFast
) -> None:
    other = train_tokenizer(["quite another text"], 50)
    with pytest.raises(CheckpointError, match=f"{len(other)} pieces and the word embedding {len(tokenizer)} rows"):
        save(model, folder.with_name("other"), tokenizer=other)
    assert not folder.with_name("other").exists()
    other.save_pretrained(folder / "tokenizer")
    with pytest.raises(CheckpointError, match=f"{len(other)} pieces"):
        load_folder(folder)


def test_saving_replaces_a_model(folder: Path, model: Asap, tokenizer: PreTrainedTokenizerFast) -> None:
    (folder / "stray.txt").write_text("from the former model")
    save(model, folder, tokenizer=tokenizer, name="renamed")
    assert model_id(folder).startswith("renamed@")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["small"]
    assert not (folder / "stray.txt").exists()


def test_saving_does_not_replace_a_folder_without_a_model(
    model: Asap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"is not a model folder\. Choose another path; nothing was saved"):
        save(model, tmp_path, tokenizer=tokenizer, name="x")
    assert (tmp_path / "thesis.txt").exists()


def test_a_save_that_fails_leaves_the_former_model_and_no_other_folder(
    folder: Path, model: Asap, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    before = model_id(folder)
    monkeypatch.setattr(tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save(model, folder, tokenizer=tokenizer)
    assert model_id(folder) == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["small"]


def test_the_former_model_is_restored_if_the_new_one_cannot_be_renamed(
    folder: Path, model: Asap, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = model_id(folder), Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".new-" in self.name:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"):
        save(model, folder, tokenizer=tokenizer, name="other")
    assert model_id(folder) == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["small"]


@pytest.mark.parametrize("name", ["", "a model", "news/room", "v1@2", ".hidden"])
def test_a_name_that_would_not_fit_an_id_is_refused(
    model: Asap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match="is not made of letters"):
        save(model, tmp_path / "x", tokenizer=tokenizer, name=name)


def test_demo_is_the_folder_in_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asap.weights.model_folder._DEMO", folder)
    assert resolve_folder("demo") == folder
    assert load("demo").config == model_config(folder)


def test_the_name_of_a_hub_is_not_taken_for_a_folder() -> None:
    with pytest.raises(CheckpointError, match=r"'org/model' does not exist\. .* names of a hub are not downloaded"):
        resolve_folder("org/model")


def test_a_checkpoint_file_is_not_taken_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.pth").touch()
    with pytest.raises(CheckpointError, match="is a file and not a model folder"):
        load(tmp_path / "model.pth")


def features_of(seed: int) -> PairFeatures:
    generator = torch.Generator().manual_seed(seed)
    return PairFeatures(*(torch.randn(1000, size, generator=generator) for size in (4, 5, 3)))


def fitted_to(folder: Path) -> Familiarity:
    return Familiarity.fit(features_of(1), features_of(2), {"weights_sha256": weights_sha256(folder), "corpus": "c"})


def test_limits_and_familiarity_are_saved_and_loaded_and_do_not_change_the_id(folder: Path) -> None:
    loaded = load_folder(folder)
    assert (loaded.limits, loaded.familiarity) == (None, None)
    limits = Limits(made_from="drawn pictures", languages=("English",), prevalence=0.5)

    again = save(
        loaded.model, folder.with_name("again"), tokenizer=loaded.tokenizer, name="small", limits=limits,
        familiarity=fitted_to(folder),
    )  # fmt: skip

    found = load_folder(again)
    assert found.limits == read_limits(again) == limits
    assert found.familiarity is not None
    assert found.familiarity.familiarity_id == fitted_to(folder).familiarity_id
    assert found.model_id == loaded.model_id


def test_familiarity_of_other_weights_is_neither_saved_nor_loaded(folder: Path) -> None:
    loaded, familiarity = load_folder(folder), fitted_to(folder)
    other = folder.with_name("other")
    with pytest.raises(CheckpointError, match="fitted to other weights"):
        save(
            loaded.model, other, tokenizer=loaded.tokenizer, dtype=torch.float16, familiarity=familiarity
        )  # rounded weights are other weights
    assert not other.exists()
    replace_familiarity(folder, familiarity)
    half = save(loaded.model, other, tokenizer=loaded.tokenizer, dtype=torch.float16)
    with pytest.raises(CheckpointError, match="the familiarity was fitted to other weights"):
        replace_familiarity(half, familiarity)
    assert read_familiarity(half) is None
    shutil.copy(folder / "familiarity.safetensors", half)
    with pytest.raises(CheckpointError, match=r"other/familiarity\.safetensors was fitted to other weights .*asap fam"):
        load_folder(half)


def test_replacing_the_familiarity_leaves_no_other_file(folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    replace_familiarity(folder, fitted_to(folder))
    replace_familiarity(folder, fitted_to(folder))
    assert {path.name for path in folder.iterdir()} == before | {"familiarity.safetensors"}
    assert load_folder(folder).familiarity is not None


def test_broken_limits_are_refused_by_name(folder: Path) -> None:
    (folder / "limits.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"small/limits\.json cannot be used"):
        load_folder(folder)


@pytest.mark.usefixtures("scratch")
def test_a_folder_in_a_bucket_is_loaded_from_a_copy_without_other_files(folder: Path, bucket: str) -> None:
    (folder / "training.pt").write_bytes(b"pickled")
    address = upload_folder(folder, bucket, "models/a")
    there, here = load_folder(address), load_folder(folder)
    assert (there.model_id, there.policy, there.limits) == (here.model_id, here.policy, here.limits)
    for key, tensor in here.model.state_dict().items():
        assert torch.equal(there.model.state_dict()[key], tensor)
    assert not [*Path(tempfile.gettempdir()).rglob("training.pt")]
    assert check_folder(address) == resolve_folder(address)


@pytest.mark.usefixtures("scratch")
def test_an_address_without_a_model_folder_is_refused(bucket: str) -> None:
    address = f"s3://{bucket}/models/none"
    with pytest.raises(CheckpointError, match=rf"model folder {address} does not exist, or is none: .*config\.json"):
        load_folder(address)
    with pytest.raises(CheckpointError, match=r"model folder s3://no-such-bucket-for-me/a cannot be read: "):
        load_folder("s3://no-such-bucket-for-me/a")
    with pytest.raises(CheckpointError, match=r"model folder s3://no-such-bucket-for-me/a cannot be read: "):
        folder_version("s3://no-such-bucket-for-me/a")


@pytest.mark.parametrize("key", ["../../escaped", "a/../../../escaped", "/absolute", "a//b", "a/\0"])
def test_a_folder_with_a_key_that_leaves_it_is_not_copied_at_all(key: str, bucket: str, scratch: Path) -> None:
    for name in ("!first", key):
        boto3.client("s3").put_object(Bucket=bucket, Key=f"models/small/{name}", Body=b"x")
    with pytest.raises(CheckpointError, match="no path below") as caught:
        resolve_folder(f"s3://{bucket}/models/small")
    assert repr(key)[1:-1] in str(caught.value)
    assert list(scratch.rglob("*")) == []
