"""The names that `import asap` offers."""

import subprocess
import sys

import pytest

import asap


def loaded_after(code: str) -> set[str]:
    """Run the code in a new process, and return which heavy packages it imported."""
    code = f"import sys\n{code}\nprint(*({{'torch', 'transformers', 'timm', 'ray'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("code", ["import asap", "from asap import Pair, Finding, Policy", "import asap; dir(asap)"])
def test_plain_data_is_imported_without_torch(code: str) -> None:
    assert loaded_after(code) == set()


def test_the_predictor_is_imported_with_torch_and_without_ray() -> None:
    loaded = loaded_after("from asap import Predictor")
    assert "torch" in loaded
    assert "ray" not in loaded


@pytest.mark.parametrize("name", asap.__all__)
def test_every_public_name_resolves_and_is_listed(name: str) -> None:
    assert callable(getattr(asap, name))
    assert name in dir(asap)


def test_public_names_are_the_objects_of_their_modules() -> None:
    from asap.finding import Finding, Pair
    from asap.policy import Policy
    from asap.predictor import Predictor
    from asap.weights.model_folder import load_folder, save
    from asap.weights.published import import_published

    assert (asap.Pair, asap.Finding, asap.Policy, asap.Predictor) == (Pair, Finding, Policy, Predictor)
    assert (asap.load_model, asap.save_model, asap.import_published) == (load_folder, save, import_published)
    assert set(asap.__all__) == {
        "Pair", "Finding", "Policy", "Predictor", "load_model", "save_model", "import_published",
    }  # fmt: skip


def test_submodules_keep_their_names_beside_the_public_names() -> None:
    import asap.model
    import asap.policy

    assert asap.model.__name__ == "asap.model"
    assert asap.policy.Policy is asap.Policy


@pytest.mark.parametrize("name", ["Predicter", "load"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'asap' has no attribute '{name}'"):
        getattr(asap, name)


def test_a_loaded_model_makes_a_predictor() -> None:
    loaded = asap.load_model("demo")
    predictor = asap.Predictor(loaded, device="cpu")
    assert predictor.model_id == loaded.model_id
