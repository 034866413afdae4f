"""Tiny image files, tars and records that the tests of the data side share."""

import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.data.prompts import IGNORE, Row
from pipeline.data.reader import RawRecord
from pipeline.data.sources.record import ImageBytes, SourceRecord

DUMMY = Row([0, 0], [IGNORE, 0])


def jpeg(colour=(200, 30, 30), size=(24, 16), mode="RGB", **options) -> bytes:
    """Return the bytes of a plain JPEG."""
    return encode(Image.new(mode, size, colour), "JPEG", **options)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_tar(path: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    """Write a tar of (name, or a whole header) and content, as other tools do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@dataclass(frozen=True)
class EachCaption:
    """Rows by a function of the caption alone."""

    layout: Callable[[str], Row]

    def __call__(self, raw: RawRecord, captions: Sequence[str]) -> tuple[Row, ...]:
        return tuple(map(self.layout, captions))


@dataclass(frozen=True)
class PlainImage:
    """A picklable image callable; `missing` is a file that is not there."""

    number: int
    missing: bool = False

    def __call__(self) -> ImageBytes:
        if self.missing:
            raise FileNotFoundError(self.number)
        return jpeg((self.number % 256, 90, 160)), "jpg"


def records(count: int, *, missing=(), silent=()) -> list[SourceRecord]:
    """Return records, some with a missing image, some without captions."""
    return [
        SourceRecord(
            key=f"rec{i:04d}",
            image=PlainImage(i, missing=i in missing),
            captions=() if i in silent else (f"number {i}", "grün"),
            image_id=i,
        )
        for i in range(count)
    ]
