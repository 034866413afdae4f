"""Outputs of a frozen encoder, computed once for each image and kept on disk.

One float32 file a shard, in record order; a row of NaN stands for an image that could not be used
and is counted as a content fault when it is read. A cache lies in a folder named by what it depends
on (encoder weights, transform, shards), so one made by other weights is never found. Rows are read
by offset and not mapped into memory: a mapped file that fails kills its process without a word.
"""

import contextlib
import io
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.data import disk
from pipeline.data.faults import ContentFault
from pipeline.data.loader import DecodedImages
from pipeline.data.lru import LRU
from pipeline.data.reader import RawRecord, ShardReader
from pipeline.data.workers import LoadedAhead
from pipeline.presence import Presence

Encode = Callable[[Tensor], Tensor]  # (B, 3, H, W) -> (B, C) or (B, k, C)

_HEADER_BYTES = 4096  # more than a header of ours takes
_FLOAT32 = np.dtype("<f4")
_ABANDONED_SECONDS = 3600.0


class CachedFeatures:
    """An image source (see `loader.ImageSource`) that reads features instead of decoding."""

    def __init__(self, files: Sequence[Path]) -> None:
        """files: of each shard, by number (see `feature_files`)."""
        self._files = files
        self._make_cache()

    def _make_cache(self) -> None:
        self._open: LRU[int, _FeatureFile] = LRU(256, on_drop=_FeatureFile.close)

    def __getstate__(self) -> dict[str, object]:
        """Leave the open files behind: another process opens its own."""
        return {"_files": self._files}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._make_cache()

    def __call__(self, reader: ShardReader, raw: RawRecord, shard: int, record: int) -> Tensor:
        """(C,) or (k, C) of one record.

        Raises:
            ContentFault: the image could not be used.
            DataError: the file cannot be read, or is not one of ours.
        """
        path, records = self._files[shard], reader.manifest.shards[shard].records

        def read() -> npt.NDArray[np.float32]:
            try:
                file = self._open.get(shard, lambda: _FeatureFile(path, records))
                return file.row(record)
            except OSError:
                self._open.discard(shard)
                raise

        row = reader.patience(f"cached features {path} (a damaged file may be deleted)", read)
        if np.isnan(row.flat[0]):
            raise ContentFault(
                "image not usable", raw.shard, raw.key, "the encoder could not see it"
            )
        return torch.from_numpy(row)


class _FeatureFile:
    """An open .npy file of float32 rows; raises OSError for whatever is wrong with it."""

    def __init__(self, path: Path, records: int) -> None:
        self._descriptor = disk.open_file(path)
        try:
            self._read_header(records)
        except (OSError, ValueError, EOFError) as error:
            self.close()
            raise OSError(str(error)) from error

    def _read_header(self, records: int) -> None:
        size = os.fstat(self._descriptor).st_size
        start = io.BytesIO(disk.read_at(self._descriptor, 0, min(size, _HEADER_BYTES)))
        np.lib.format.read_magic(start)
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(start)
        self._shape, self._first = shape[1:], start.tell()
        self._bytes = _FLOAT32.itemsize * math.prod(self._shape)
        ours = dtype == _FLOAT32 and not by_column and shape[:1] == (records,) and self._shape
        if not ours or size != self._first + records * self._bytes:
            raise OSError(f"{size} bytes of {dtype}, {shape}, not {records} rows of float32")

    def row(self, record: int) -> npt.NDArray[np.float32]:
        """One record's features."""
        content = disk.read_at(self._descriptor, self._first + record * self._bytes, self._bytes)
        return np.frombuffer(bytearray(content), dtype=_FLOAT32).reshape(self._shape)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)


def feature_files(folder: Path, shards: int) -> list[Path]:
    """Where `encode_shards` keeps the features of each of `shards` shards."""
    return [folder / f"shard-{number:06d}.npy" for number in range(shards)]


@dataclass(frozen=True)
class _ShardImages(Dataset[list[tuple[int, Tensor]]]):
    """The usable images of one shard with their records' numbers, in batches."""

    reader: ShardReader
    images: DecodedImages
    shard: int
    batch: int

    def __getitem__(self, number: int) -> list[tuple[int, Tensor]]:
        """Batch `number`; raises DataError where the shard cannot be read."""
        first, last = number * self.batch, (number + 1) * self.batch
        records = range(min(last, self.reader.manifest.shards[self.shard].records))[first:]
        found = ((record, self._image(record)) for record in records)
        return [(record, image) for record, image in found if image is not None]

    def _image(self, record: int) -> Tensor | None:
        try:
            raw = self.reader.read(self.shard, record)
            return self.images(self.reader, raw, self.shard, record)
        except ContentFault:
            return None


def encode_shards(
    reader: ShardReader,
    images: DecodedImages,
    encode: Encode,
    folder: Path,
    *,
    shape: tuple[int, ...],
    rank: int,
    ranks: int,
    workers: int,
    presence: Presence | None = None,
    batch: int = 64,
) -> int:
    """Writes the features of this rank's shards (every `ranks`-th) that are not there yet.

    shape: of one image's features, (C,) or (k, C). presence: hears of each batch; where a stop is
    asked for, the shard at hand is given up. Returns the number of images encoded; each is encoded
    once, however many captions it has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        _clear_abandoned(folder)
    encoded = 0
    targets = feature_files(folder, len(reader.manifest.shards))
    for shard in range(rank, len(targets), ranks):
        target = targets[shard]
        if target.is_file():
            continue
        rows = _encode_shard(
            reader,
            images,
            encode,
            shard,
            shape=shape,
            workers=workers,
            presence=presence or Presence(),
            batch=batch,
        )
        if rows is None:
            break
        first = rows.reshape(len(rows), -1)[:, 0]
        encoded += int((~np.isnan(first)).sum())
        # Other jobs may encode the same shard now, in containers with the same process ids.
        writing = folder / f".{target.name}.{uuid4().hex}"
        with writing.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        writing.replace(target)
    return encoded


def _clear_abandoned(folder: Path) -> None:
    """Removes what killed processes were writing; what others write now changes all the time."""
    for each in folder.glob(".shard-*.npy.*"):
        with contextlib.suppress(OSError):
            if time.time() - each.stat().st_mtime > _ABANDONED_SECONDS:
                each.unlink()


def _encode_shard(
    reader: ShardReader,
    images: DecodedImages,
    encode: Encode,
    shard: int,
    *,
    shape: tuple[int, ...],
    workers: int,
    presence: Presence,
    batch: int,
) -> npt.NDArray[np.float32] | None:
    """(N, *shape) of a shard's N records; None where a stop is asked for."""
    count = reader.manifest.shards[shard].records
    dataset = _ShardImages(reader, images, shard, batch)
    rows = np.full((count, *shape), np.nan, dtype=_FLOAT32)
    for usable in LoadedAhead(dataset, range(math.ceil(count / batch)), workers=workers):
        if presence.stop_asked() is not None:
            return None
        presence.beat()
        if usable:
            features = encode(torch.stack([image for _, image in usable])).float().cpu()
            rows[[record for record, _ in usable]] = features.numpy()
    return rows
