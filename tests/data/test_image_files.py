"""One's own image files: every kind of folder, and files that are not what they seem."""

import os
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor, zeros

from pipeline.data.collate import LanguageCollator
from pipeline.data.image_files import FileDataset, find_images
from pipeline.data.prompts import row_of
from pipeline.errors import ConfigError
from tests.data.samples import encode, jpeg


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two usable images and what else lies around."""
    made = tmp_path / "my photos"
    (made / "deep" / "er").mkdir(parents=True)
    (made / "b.JPG").write_bytes(jpeg())
    (made / "deep" / "er" / "ä ö.png").write_bytes(encode(Image.new("P", (9, 9)), "PNG"))
    (made / "deep" / "notes.txt").write_text("text")
    (made / ".DS_Store").write_bytes(b"\0")
    return made


def test_a_folder_is_searched_to_its_ground(folder: Path) -> None:
    found = find_images(str(folder))
    assert (found.root, found.names) == (str(folder), ["b.JPG", "deep/er/ä ö.png"])
    assert (found.faults, found.ignored) == ({}, 2)


def test_a_file_and_a_pattern_are_taken_as_they_are_named(folder: Path) -> None:
    assert find_images(str(folder / "deep" / "notes.txt")).names == ["notes.txt"]
    names = find_images(f"{folder}/**/*.png").names
    assert names == [str(folder / "deep" / "er" / "ä ö.png")]


def test_a_place_without_images_says_what_it_holds_instead(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigError, match=r"no image was found there \(1 files end otherwise\)"):
        find_images(str(tmp_path))
    with pytest.raises(ConfigError, match=r"images=.*gone: no image was found there"):
        find_images(str(tmp_path / "gone"))


def read(
    folder: Path, size: int = 2, shown: int = 99
) -> tuple[list[str], dict[str, str], set[str]]:
    """(keys in order, faults, names with a picture) of all batches."""
    found = find_images(str(folder))
    dataset = FileDataset(
        root=found.root,
        names=found.names,
        size=size,
        row=row_of([0], []),
        collate=LanguageCollator((3, 2, 2), 0, row_of([0], [])),
        transform=blank,
        image_size=2,
        max_pixels=100_000,
        max_image_bytes=10**6,
        shown=frozenset(found.names[:shown]),
        picture=lambda image: "x" * min(image.size),
    )
    loaded = [dataset[number] for number in range(len(dataset))]
    keys = [key for each in loaded if each.batch for key in each.batch.keys]
    faults = {name: reason for each in loaded for name, reason in each.faults.items()}
    return keys, faults, {name for each in loaded for name in each.pictures}


def blank(image: Image.Image) -> Tensor:
    assert image.mode == "RGB"
    return zeros(3, 2, 2)


def test_every_unusable_file_has_a_reason_and_the_others_go_on(folder: Path) -> None:
    whole = jpeg(size=(300, 300))
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>")
    (folder / "large.png").write_bytes(encode(Image.new("1", (1000, 1000)), "PNG"))
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "cmyk.jpg").write_bytes(jpeg((1, 2, 3, 4), mode="CMYK"))
    (folder / os.fsdecode(b"z\xff.jpg")).write_bytes(jpeg())
    keys, faults, shown = read(folder)
    assert keys == ["b.JPG", "cmyk.jpg", "deep/er/ä ö.png", os.fsdecode(b"z\xff.jpg")]
    assert shown == set(keys)
    reasons = {name: reason.partition(" (")[0] for name, reason in faults.items()}
    assert reasons == {
        "cut.jpg": "truncated image",
        "empty.jpg": "undecodable image",
        "page.jpg": "undecodable image",
        "large.png": "too many pixels",
        "gone.jpg": "no regular file",
        "pipe.jpg": "no regular file",
    }
    assert "0x" not in faults["page.jpg"]  # the same line every time


def test_batches_hold_each_file_once_and_only_the_first_are_shown(folder: Path) -> None:
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(jpeg())
    for size in (1, 3, 100):
        keys, faults, shown = read(folder, size=size, shown=2)
        assert keys == find_images(str(folder)).names and not faults
        assert shown == {"0.jpg", "1.jpg"}
