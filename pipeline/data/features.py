"""Outputs of a frozen encoder, computed once for each image and kept on disk.

One float32 file a shard, in record order; a row of NaN stands for an image that could not be used
and is counted as a content fault when it is read. A cache lies in a folder named by what it depends
on (encoder weights, transform, shards), so one made by other weights is never found.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.data.faults import ContentFault
from pipeline.data.loader import DecodedImages
from pipeline.data.lru import LRU
from pipeline.data.reader import RawRecord, ShardReader
from pipeline.errors import DataError
from pipeline.presence import Presence
from pipeline.watch.signals import leave_signals_to_the_parent

Encode = Callable[[Tensor], Tensor]  # (B, 3, H, W) -> (B, C) or (B, k, C)


class CachedFeatures:
    """An image source (see `loader.ImageSource`) that reads features instead of decoding."""

    def __init__(self, files: Sequence[Path]) -> None:
        """files: of each shard, by number (see `feature_files`)."""
        self._files = files
        self._open: LRU[int, npt.NDArray[np.float32]] = LRU(256)

    def __call__(self, reader: ShardReader, raw: RawRecord, shard: int, record: int) -> Tensor:
        """(C,) or (k, C) of one record; raises ContentFault where the image could not be used."""
        rows = self._open.get(shard, lambda: _load(self._files[shard]))
        row = np.array(rows[record])
        if np.isnan(row.flat[0]):
            raise ContentFault(
                "image not usable", raw.shard, raw.key, "the encoder could not see it"
            )
        return torch.from_numpy(row)


def feature_files(folder: Path, shards: int) -> list[Path]:
    """Where `encode_shards` keeps the features of each of `shards` shards."""
    return [folder / f"shard-{number:06d}.npy" for number in range(shards)]


@dataclass(frozen=True)
class _ShardImages(Dataset[Any]):
    """All images of one shard; None where an image cannot be used."""

    reader: ShardReader
    images: DecodedImages
    shard: int
    records: int

    def __len__(self) -> int:
        return self.records

    def __getitem__(self, record: int) -> tuple[int, Tensor | None]:
        try:
            raw = self.reader.read(self.shard, record)
            return record, self.images(self.reader, raw, self.shard, record)
        except ContentFault:
            return record, None


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
        writing = folder / f".{target.name}.{os.getpid()}"
        with writing.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        writing.replace(target)
    return encoded


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
    dataset = _ShardImages(reader, images, shard, count)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=batch,
        num_workers=workers,
        collate_fn=_as_is,
        generator=torch.Generator(),  # leaves torch's global one alone
        worker_init_fn=leave_signals_to_the_parent,
    )
    rows = np.full((count, *shape), np.nan, dtype=np.float32)
    for loaded in loader:
        if presence.stop_asked() is not None:
            return None
        presence.beat()
        usable = [(record, image) for record, image in loaded if image is not None]
        if usable:
            features = encode(torch.stack([image for _, image in usable])).float().cpu()
            rows[[record for record, _ in usable]] = features.numpy()
    return rows


def _as_is(items: list[tuple[int, Tensor | None]]) -> list[tuple[int, Tensor | None]]:
    return items


def _load(path: Path) -> npt.NDArray[np.float32]:
    try:
        loaded: npt.NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cached features {path} cannot be read ({error}); delete the file, it is made again"
        ) from error
    return loaded
