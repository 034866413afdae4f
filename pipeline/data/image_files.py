"""One's own image files as data: found in a folder, decoded in batches, each with what is wrong.

Nothing is assumed about the files: every one becomes a tensor or a reason why not, and none stops
the others. The guards are those of `images.py`. What a prompt is and what becomes of the tensors is
decided outside.
"""

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.data.collate import Batch, Sample
from pipeline.data.faults import ContentFault
from pipeline.data.images import check_bytes, decode_image
from pipeline.data.prompts import Row
from pipeline.errors import ConfigError

# In a folder, files with other endings are no images; a file that is named itself may have any.
ENDINGS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_FOR_PEOPLE = 360  # pixels of the short side, at least, that `picture` gets of a larger image


class Found(NamedTuple):
    """The files of a folder, a pattern or a name."""

    root: str
    names: list[str]  # below `root`, sorted
    faults: dict[str, str]  # name -> why it cannot even be listed or opened as a file
    ignored: int  # files of a folder that do not end like an image


def find_images(where: str) -> Found:
    """Lists image files.

    Args:
        where: a folder, which is searched with all folders below it (links to folders are not
            followed); a file; or a pattern with *, ** and ?.

    Raises:
        ConfigError: there is no such file or folder, or no image in it.
    """
    folder = Path(where)
    if folder.is_dir():
        found = _walk(folder)
    elif folder.exists():
        found = Found(str(folder.parent), [folder.name], {}, 0)
    else:
        names = sorted(each for each in glob.glob(where, recursive=True) if not os.path.isdir(each))
        found = Found(".", names, {}, 0)
    if not found.names and not found.faults:
        others = f" ({found.ignored} files end otherwise)" if found.ignored else ""
        raise ConfigError(
            f"images={where}: no image was found there{others}; name a folder with "
            f"{', '.join(ENDINGS)}, a file, or a pattern in quotes"
        )
    return found


def _walk(folder: Path) -> Found:
    names, faults, ignored = [], {}, 0

    def unreadable(error: OSError) -> None:
        name = os.path.relpath(error.filename, folder)
        faults[name] = f"unreadable folder ({error.strerror})"

    for place, folders, files in os.walk(folder, onerror=unreadable):
        folders.sort()
        for file in files:
            if file.lower().endswith(ENDINGS):
                names.append(os.path.relpath(os.path.join(place, file), folder))
            else:
                ignored += 1
    return Found(str(folder), sorted(names), faults, ignored)


@dataclass
class FileBatch:
    """Some files of one rank: what of them can be used, and what cannot."""

    batch: Batch | None = None  # None where no file is usable
    faults: dict[str, str] = field(default_factory=dict)  # name -> reason
    pictures: dict[str, str] = field(default_factory=dict)  # name -> what `picture` made


@dataclass(frozen=True)
class FileDataset(Dataset[FileBatch]):
    """The batches of one rank as a map-style dataset; records' keys are the files' names."""

    root: str
    names: Sequence[str]
    size: int  # files of a batch
    row: Row  # that the generation of each caption starts from
    collate: Callable[[list[Sample]], Batch]
    transform: Callable[[Image.Image], Tensor]
    image_size: int  # pixels that the transform needs of the short side
    max_pixels: int
    max_image_bytes: int
    shown: frozenset[str]  # of these, a picture for people is made too
    picture: Callable[[Image.Image], str]

    def __len__(self) -> int:
        return -(-len(self.names) // self.size)

    def __getitem__(self, number: int) -> FileBatch:
        """Batch `number`; never raises for a fault of a file."""
        loaded, samples = FileBatch(), []
        first = number * self.size
        for place, name in enumerate(self.names[first : first + self.size], start=first):
            try:
                data = self._read(name)
                image = self.transform(self._decode(data, self.image_size))
                samples.append(Sample(name, place, (), image, (self.row,)))
                if name in self.shown:
                    loaded.pictures[name] = self.picture(self._decode(data, _FOR_PEOPLE))
            except ContentFault as fault:
                loaded.faults[name] = str(fault)
        if samples:
            loaded.batch = self.collate(samples)
        return loaded

    def _decode(self, data: bytes, short_side: int) -> Image.Image:
        return decode_image(data, max_pixels=self.max_pixels, draft_size=short_side)

    def _read(self, name: str) -> bytes:
        path = Path(self.root, name)
        try:
            if not path.is_file():  # a pipe would never end
                raise ContentFault("no regular file")
            check_bytes(path.stat().st_size, self.max_image_bytes)
            return path.read_bytes()
        except OSError as error:
            raise ContentFault("unreadable file", detail=error.strerror or "") from error
