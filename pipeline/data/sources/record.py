"""What every raw data set is turned into: records with a lazy image, texts and an id.

Image callables are small frozen dataclasses, not lambdas: writing processes receive them pickled.
"""

import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.faults import ContentFault
from pipeline.data.files import LASTING, Patience
from pipeline.data.images import image_extension

ImageBytes = tuple[bytes, str]
"""The bytes of an image file, and the extension that fits them."""


@dataclass(frozen=True)
class SourceRecord:
    """One image with its captions, or texts alone.

    Attributes: key: unique in its split, no dots or slashes; image: reads or draws the image when
    called, None where the data set has none for this record; captions: raw texts, possibly none;
    image_id: the data set's own; extra: more fields of the record's JSON; fault: what the source
    itself found wrong, so that the record is skipped.
    """

    key: str
    image: Callable[[], ImageBytes] | None
    captions: tuple[str, ...]
    image_id: int | str
    extra: dict[str, Any] = field(default_factory=dict)
    fault: ContentFault | None = None


@dataclass(frozen=True)
class FileImage:
    """An image file as it is on disk."""

    path: Path

    def __call__(self) -> ImageBytes:
        """Return the file's bytes.

        Raises:
            FileNotFoundError, PermissionError and the like: it cannot be read, now or later.
            DataError: the file system failed several times.
            ContentFault: it is no regular file, or in none of the formats that `images.py` decodes.
        """
        data = Patience()(self.path, self._read, lasting=LASTING)
        extension = image_extension(data)
        if extension is None:
            raise ContentFault("not an image", detail=f"{self.path.name} starts {data[:8]!r}")
        return data, extension

    def _read(self) -> bytes:
        mode = self.path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading a pipe would never end
            raise ContentFault("not an image", detail=f"{self.path.name} is no regular file")
        return self.path.read_bytes()


def make_key(text: str) -> str:
    """Return `text` with all that a WebDataset key may not hold replaced by underscores."""
    return re.sub(r"[^0-9A-Za-z_\-]", "_", text)
