"""What every raw data set is turned into: records with a lazy image, texts and an id.

Image callables are small frozen dataclasses, not lambdas: writing processes receive them pickled.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.images import ContentFault

ImageBytes = tuple[bytes, str]
"""The bytes of an image file, and its extension ("jpg" or "png")."""


@dataclass(frozen=True)
class SourceRecord:
    """One image with its captions.

    Attributes: key: unique in its split, no dots or slashes; image: reads or draws the image when
    called; captions: raw texts, possibly none; image_id: the data set's own; extra: more fields of
    the record's JSON.
    """

    key: str
    image: Callable[[], ImageBytes]
    captions: tuple[str, ...]
    image_id: int | str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileImage:
    """An image file as it is on disk."""

    path: Path

    def __call__(self) -> ImageBytes:
        """Return the file's bytes; raises OSError, or ContentFault for other formats."""
        data = self.path.read_bytes()
        if data.startswith(b"\xff\xd8\xff"):
            return data, "jpg"
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return data, "png"
        raise ContentFault("neither JPEG nor PNG", key=self.path.name)


def make_key(text: str) -> str:
    """Return `text` with all that a WebDataset key may not hold replaced by underscores."""
    return re.sub(r"[^0-9A-Za-z_\-]", "_", text)
