"""What every raw data set is turned into: records with a lazy image, texts and an id.

Image callables are small frozen dataclasses, not lambdas: writing processes receive them pickled.
"""

import errno
import hashlib
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.faults import ContentFault
from pipeline.data.files import LASTING, Patience
from pipeline.data.images import image_extension

LONGEST_KEY = 90  # bytes; a tar header has room for 100, extension included
_SHOWN = 60  # letters of a key with a hash that come from the name

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
            ContentFault: its name can be no file's, or it is no regular file, or in none of the
                formats that `images.py` decodes.
        """
        data = Patience()(self.path, self._read, lasting=LASTING)
        extension = image_extension(data)
        if extension is None:
            raise ContentFault("not an image", detail=f"{self.path.name} starts {data[:8]!r}")
        return data, extension

    def _read(self) -> bytes:
        try:
            mode = self.path.stat().st_mode
        except ValueError as error:  # a NUL, or half a surrogate pair
            raise self._nameless(str(error)) from error
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise self._nameless(f"{len(str(self.path))} letters") from error
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading a pipe would never end
            raise ContentFault("not an image", detail=f"{self.path.name} is no regular file")
        return self.path.read_bytes()

    def _nameless(self, why: str) -> ContentFault:
        return ContentFault("not a file's name", detail=f"{self.path.name[:40]!a}: {why}")


def make_key(text: str) -> str:
    """Return `text` with all that a WebDataset key may not hold replaced by underscores."""
    return re.sub(r"[^0-9A-Za-z_\-]", "_", text)


def hashed_key(name: str, text: str | None = None) -> str:
    """Return a key for `name` alone, where `make_key` makes one too long or the same of two names.

    It begins with the beginning of `text`, or of the name.
    """
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    return f"{make_key(name if text is None else text)[:_SHOWN]}-{digest[:8]}"
