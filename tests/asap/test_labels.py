"""The label sets and their classes."""

import pytest

from asap.errors import AnnotationError, ConfigError
from asap.labels import DGM4, LABEL_SETS, SAMM, TYPES, label_set
from asap.model.config import ModelConfig


def test_every_label_set_name_has_a_label_set_that_a_model_config_accepts() -> None:
    assert [label_set(name).name for name in LABEL_SETS] == list(LABEL_SETS)
    assert all(ModelConfig.tiny(label_set=name).label_set == name for name in LABEL_SETS)


def test_the_types_of_a_class_are_known_types_in_their_order() -> None:
    for name in LABEL_SETS:
        for types in label_set(name).classes.values():
            assert list(types) == [name for name in TYPES if name in types]


def test_dgm4_has_nine_classes_and_all_types() -> None:
    assert len(DGM4.classes) == 9
    assert DGM4.types == TYPES
    assert DGM4.types_of("face_attribute&text_swap") == ("face_attribute", "text_swap")


def test_samm_manipulates_image_and_text_together_and_swaps_no_text() -> None:
    assert SAMM.types_of("orig") == ()
    assert SAMM.types_of("swap_manipulation") == ("face_swap", "text_attribute")
    assert SAMM.types_of("attribute_manipulation") == ("face_attribute", "text_attribute")
    assert SAMM.types == ("face_swap", "face_attribute", "text_attribute")


def test_dgm4_plus_has_the_classes_of_dgm4_and_origin() -> None:
    both = label_set("dgm4+")
    assert both.types_of("origin") == both.types_of("orig") == ()
    assert both.types_of("text_swap") == ("text_swap",)
    assert both.types == TYPES


@pytest.mark.parametrize("fake_cls", ["deepfake", "", None, ["orig"], 7])
def test_an_unknown_class_is_reported_with_the_known_classes(fake_cls: str) -> None:
    with pytest.raises(AnnotationError, match=r"is unknown; SAMM has orig, swap_manipulation, attribute_man") as caught:
        SAMM.types_of(fake_cls)
    assert f"fake_cls {fake_cls!r} " in str(caught.value)
    assert "label set" not in str(caught.value)


def test_a_class_of_another_label_set_is_reported_with_that_label_set() -> None:
    with pytest.raises(
        AnnotationError, match=r"'swap_manipulation' is unknown; DGM4 has .*it is a class of label set 'samm'"
    ):
        DGM4.types_of("swap_manipulation")


def test_an_unknown_label_set_is_reported_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"label set 'coco' is unknown; dgm4, samm, dgm4\+ are known"):
        label_set("coco")
