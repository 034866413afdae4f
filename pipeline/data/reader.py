"""Any record of a split, by its number: what it says and its image, with every fault named.

Indexes are read when they are needed and a bounded number of them kept; those of a remote split are
fetched before (`cache.py`), several at a time. A reader may be pickled or inherited by a forked
process (`pread` shares no file position), but one reader must not be used by two threads at once.
Nothing is ever unpickled from a shard.
"""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.faults import ContentFault
from pipeline.data.files import Patience
from pipeline.data.images import check_bytes, decode_image
from pipeline.data.index import MOST_TEXT, ShardIndex, captions_of, load_index
from pipeline.data.joined import Shards
from pipeline.data.lru import LRU
from pipeline.data.shard_files import ShardFiles
from pipeline.errors import DataError

# A step touches every lane's shard, and two where a lane passes into the next one; the default of
# 64 lanes fits twice.
_OPEN_SHARDS = 128
_FETCHES = 8  # at a time: one connection seldom fills the line


@dataclass(frozen=True)
class RawRecord:
    """One record as stored: the image file's bytes, and the JSON member with its "captions".

    A text member becomes data["captions"] where the JSON has none, or there is no JSON.
    """

    key: str
    image: bytes | None  # None: the record is text alone
    data: dict[str, Any]
    shard: str


class ShardReader:
    """Reads records of a split by (shard number, record in shard)."""

    def __init__(
        self,
        manifest: Shards,
        *,
        max_pixels: int,
        max_image_bytes: int | None = None,
        retry_wait: float = 0.5,
        open_shards: int = _OPEN_SHARDS,
    ) -> None:
        """Open nothing yet.

        Args:
            manifest: of the split, or several joined.
            max_pixels: larger images are a `ContentFault` when decoded.
            max_image_bytes: larger image files are a `ContentFault`, unread; None for no limit.
            retry_wait: seconds before the second try of a failed read, doubled for each after it.
            open_shards: most files, and most indexes, kept open at a time.
        """
        self.manifest = manifest
        self.max_pixels = max_pixels
        self.max_image_bytes = max_image_bytes
        self.patience = Patience(retry_wait)
        self._files = ShardFiles(manifest, open_shards=open_shards, patience=self.patience)
        self._open_indexes = open_shards
        self._firsts = np.cumsum([0, *manifest.sizes])
        self._make_cache()

    def _make_cache(self) -> None:
        self._indexes: LRU[int, ShardIndex] = LRU(self._open_indexes)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the indexes behind: another process reads its own."""
        state = self.__dict__.copy()
        del state["_indexes"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_cache()

    @property
    def retried(self) -> int:
        """How often this process had to ask a disk or a server again."""
        return self.patience.retried + self.manifest.retried

    @property
    def unstaged(self) -> int:
        """How many shards this process reads where they lie, although there is a stage."""
        return self.manifest.unstaged

    def close(self) -> None:
        """Close all files; the reader can still be used, and opens them again."""
        self._files.close()
        self._indexes.clear()

    def read(self, shard: int, record: int) -> RawRecord:
        """Read one record.

        Args:
            shard: number of the shard in the manifest.
            record: number of the record in the shard.

        Returns:
            The record; its data["captions"] is a non-empty list of texts.

        Raises:
            ContentFault: "bad JSON", "invalid UTF-8", "no captions", "text too large" or "too many
                bytes"; the reader can go on with another record.
            DataError: the shard or its index cannot be read.
        """
        index = self._index(shard)
        name, key = self.manifest.shards[shard].name, index.key(record)
        try:
            check_bytes(int(index.image_size[record]), self.max_image_bytes)
            _check_text(max(int(index.json_size[record]), int(index.txt_size[record])))
            data = _data(
                self._member(shard, key, index.json_offset[record], index.json_size[record]),
                self._member(shard, key, index.txt_offset[record], index.txt_size[record]),
            )
        except ContentFault as fault:
            raise ContentFault(fault.reason, name, key, fault.detail) from fault
        image = self._member(shard, key, index.image_offset[record], index.image_size[record])
        return RawRecord(key=key, image=image, data=data, shard=name)

    def image(self, raw: RawRecord, *, draft_size: int | None = None) -> Image.Image:
        """Decode a record's image to RGB (see `decode_image`), naming the record in a fault.

        Raises:
            ContentFault: too many pixels, too thin, truncated or undecodable, or there is none.
        """
        if raw.image is None:
            raise ContentFault("no image", raw.shard, raw.key)
        try:
            return decode_image(raw.image, max_pixels=self.max_pixels, draft_size=draft_size)
        except ContentFault as fault:
            raise ContentFault(fault.reason, raw.shard, raw.key, fault.detail) from fault

    def position(self, shard: int, record: int) -> int:
        """Return the number of a record in the whole split, in the order of the shards."""
        return int(self._firsts[shard]) + record

    def text_bytes(self, items: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the bytes of all captions of each record, (n,), for items (n, 2) of a plan."""
        shards = map(int, np.unique(items[:, 0]))
        _together(self.manifest.index_path, [s for s in shards if s not in self._indexes])
        result = np.zeros(len(items), dtype=np.int64)
        for shard in np.unique(items[:, 0]):
            here = items[:, 0] == shard
            result[here] = self._index(int(shard)).text_bytes[items[here, 1]]
        return result

    def fetch(self, shards: Iterable[int]) -> None:
        """Bring remote shards here that are not open yet; they are fetched when read otherwise.

        Raises:
            DataError: one cannot be fetched.
        """
        _together(self.manifest.path, [shard for shard in shards if shard not in self._files])

    def keys(self, items: NDArray[np.integer]) -> list[str]:
        """Return the key of each record, for items (n, 2) of a plan."""
        return [self._index(int(shard)).key(int(record)) for shard, record in items]

    def _index(self, shard: int) -> ShardIndex:
        def load() -> ShardIndex:
            try:
                return load_index(self.manifest, shard)
            except DataError as error:
                if isinstance(error.__cause__, OSError):  # worth another try
                    raise error.__cause__ from None
                raise

        where = self.manifest.index_where(shard)
        return self._indexes.get(shard, lambda: self.patience(where, load))

    def _member(self, shard: int, key: str, offset: np.int64, size: np.int64) -> bytes | None:
        """Read a member that a record may lack."""
        return None if offset < 0 else self._files.member(shard, key, int(offset), int(size))


def _together(fetch: Callable[[int], Path], shards: list[int]) -> None:
    """Call `fetch`, which waits for the network, for all shards; local paths cost next to nothing.

    An error of one call is raised when all have ended.
    """
    if len(shards) > 1:
        with ThreadPoolExecutor(_FETCHES) as pool:
            list(pool.map(fetch, shards))


def _check_text(size: int) -> None:
    if not 0 <= size <= MOST_TEXT:
        raise ContentFault("text too large", detail=f"{size} bytes")


def _data(json_member: bytes | None, text_member: bytes | None) -> dict[str, Any]:
    """What a record says besides its image, its captions in one form."""
    data: Any = {}
    try:
        if json_member is not None:
            data = json.loads(json_member)
        text = "" if text_member is None else text_member.decode()
    except UnicodeDecodeError as error:
        raise ContentFault("invalid UTF-8", detail=str(error)) from error
    except (ValueError, RecursionError) as error:
        raise ContentFault("bad JSON", detail=" ".join(str(error).split())) from error
    if not isinstance(data, dict):
        raise ContentFault("bad JSON", detail="not an object")
    captions = captions_of(data) or captions_of({"caption": text})
    if not captions:
        raise ContentFault("no captions")
    try:
        "".join(captions).encode()
    except UnicodeEncodeError as error:  # JSON can spell it, no tokenizer takes it
        raise ContentFault("invalid UTF-8", detail="half a surrogate pair") from error
    return {**data, "captions": captions}
