"""Pictures are found by the names in the metadata."""

from pathlib import Path

import pytest

from asap.corpus.folder import LocalFolder
from asap.corpus.picture_index import PictureIndex, canonical, index_pictures
from asap.errors import CorpusError

NAME = "DGM4/origin/guardian/0001/7.jpg"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def index(*files: str, folder: str = "/data/DGM4") -> PictureIndex:
    return PictureIndex(LocalFolder(Path(folder)), files)


@pytest.mark.parametrize(
    "file",
    [
        "DGM4/origin/guardian/0001/7.jpg",
        "origin/guardian/0001/7.jpg",
        "origin/gardian/0001/7.jpg",
        "DGM4/origin/gardian/0001/7.jpg",
        "DGM4/DGM4/origin/guardian/0001/7.jpg",
        "origin/DGM4/origin/guardian/0001/7.jpg",
        "origin/origin/gardian/0001/7.jpg",
        "origin/guardian/guardian/0001/7.jpg",
    ],
)
@pytest.mark.parametrize("folder", ["/data/DGM4", "/data/renamed"])
def test_a_picture_is_found_wherever_the_archives_were_unpacked(file: str, folder: str) -> None:
    assert index(file, "origin/bbc/0001/7.jpg", folder=folder).find(NAME) == file


def test_either_spelling_finds_the_other() -> None:
    assert index("origin/guardian/1.jpg").find("origin/gardian/1.jpg") == "origin/guardian/1.jpg"
    assert index("origin/gardian/1.jpg").find("origin/guardian/1.jpg") == "origin/gardian/1.jpg"


def test_a_picture_is_found_in_an_archive_unpacked_into_a_folder_of_its_own_name() -> None:
    file = "infoswap/DGM4/manipulation/infoswap/1.jpg"
    assert index(file, folder="/data").find("DGM4/manipulation/infoswap/1.jpg") == file


def test_a_file_of_exactly_the_name_is_preferred() -> None:
    files = ("DGM4/origin/bbc/1.jpg", "origin/bbc/1.jpg")
    assert index(*files).find("origin/bbc/1.jpg") == "origin/bbc/1.jpg"
    assert index(*files).find("DGM4/origin/bbc/1.jpg") == "DGM4/origin/bbc/1.jpg"


def test_an_address_within_the_folder_is_a_name() -> None:
    assert index("images/1.jpg", folder="/data/mine").find("/data/mine/images/1.jpg") == "images/1.jpg"


@pytest.mark.parametrize(
    "file",
    ["thumbnails/origin/guardian/0001/7.jpg", "origin/bbc/0001/7.jpg", "0001/7.jpg", "7.jpg",
     "origin/guardian/0001/7.png"],
)  # fmt: skip
def test_another_picture_does_not_stand_in_for_a_missing_one(file: str) -> None:
    assert index(file).find(NAME) is None


@pytest.mark.parametrize("name", ["", "/", "../secret.jpg", "/etc/passwd"])
def test_a_text_that_is_no_name_finds_nothing(name: str) -> None:
    assert index("origin/1.jpg", "secret.jpg", folder="/data/x").find(name) is None


def test_a_canonical_path_has_one_spelling_and_no_repeated_parts() -> None:
    assert canonical("./a//gardian/guardian/b/b/c.jpg") == ("a", "guardian", "b", "c.jpg")


def test_pictures_beside_the_corpus_are_found_if_it_holds_none(tmp_path: Path) -> None:
    touch(tmp_path, "notes/metadata/train.json", "DGM4/origin/1.jpg", "other/2.jpg")
    notes = LocalFolder(tmp_path / "notes")
    found = index_pictures(notes, notes.names(), ["DGM4/origin/0.jpg", "DGM4/origin/1.jpg"])
    assert found.folder.address(found.find("DGM4/origin/1.jpg") or "") == tmp_path / "DGM4/origin/1.jpg"
    assert found.find("other/2.jpg") is None
    assert index_pictures(notes, notes.names(), ["nowhere/1.jpg"]).folder is notes
    assert index_pictures(notes, notes.names(), ["1.jpg"]).folder is notes


def test_a_local_folder_lists_what_is_below_it_through_links_and_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "corpus/b.jpg", "corpus/a/2.jpg", "corpus/a/1.jpg", "far/away/3.jpg")
    (tmp_path / "corpus/link").symlink_to(tmp_path / "far")
    (tmp_path / "corpus/link/round").symlink_to(tmp_path / "corpus")
    folder = LocalFolder(tmp_path / "corpus")
    assert list(folder.names()) == ["b.jpg", "a/1.jpg", "a/2.jpg", "link/away/3.jpg"]
    assert list(folder.names("a")) == ["a/1.jpg", "a/2.jpg"]
    assert list(folder.names("nothing")) == []
    assert (folder.name, folder.parent.path) == ("corpus", tmp_path)


def test_a_local_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.json")
    assert LocalFolder(tmp_path).read("a.json") == b""
    with pytest.raises(CorpusError, match=r"b\.json does not exist"):
        LocalFolder(tmp_path).read("b.json")
    with pytest.raises(CorpusError, match=f"{tmp_path} cannot be read"):
        LocalFolder(tmp_path).read(".")
