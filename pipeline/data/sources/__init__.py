"""Raw data sets as records, one module each; chosen by `prepare.*.source`.

A source reads what the data set's own files say and checks the paths it is given. It opens no
image: that happens when the shards are written.
"""

import difflib
from collections.abc import Callable, Sequence

from pipeline.config import PrepareConfig
from pipeline.data.sources.coco import load_coco
from pipeline.data.sources.flickr8k import load_flickr8k
from pipeline.data.sources.folder import load_folder
from pipeline.data.sources.instruct import load_instruct
from pipeline.data.sources.mme import load_mme
from pipeline.data.sources.record import SourceRecord
from pipeline.data.sources.scenes import load_scenes
from pipeline.data.sources.scienceqa import load_scienceqa
from pipeline.errors import ConfigError

__all__ = ["WEBDATASET", "SourceRecord", "load_source", "source_names"]

WEBDATASET = "webdataset"
"""The source without raw data: its shards are there already, `foreign.py` indexes them."""

Loader = Callable[[PrepareConfig], dict[str, Sequence[SourceRecord]]]


def _loaders() -> dict[str, Loader]:
    return {
        "coco": load_coco,
        "flickr8k": load_flickr8k,
        "folder": load_folder,
        "instruct": load_instruct,
        "mme": load_mme,
        "scenes": load_scenes,
        "scienceqa": load_scienceqa,
    }


def source_names() -> list[str]:
    """Return the names that `source` may have."""
    return sorted([*_loaders(), WEBDATASET])


def load_source(cfg: PrepareConfig) -> dict[str, Sequence[SourceRecord]]:
    """Load the records of every split of a raw data set.

    Args:
        cfg: which data set, and where its files are.

    Returns:
        Split name -> records. Images are not opened, some may be missing.

    Raises:
        ConfigError: the source is unknown, or a path is missing.
        DataError: a file is not what it should be.
    """
    loader = _loaders().get(cfg.source)
    if loader is None:
        near = difflib.get_close_matches(cfg.source, source_names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of these"
        raise ConfigError(
            f"source={cfg.source!r}: no such data set, "
            f"there are {', '.join(source_names())}; {hint}"
        )
    return loader(cfg)
