"""What a job script asks before it starts: are the shards good. Loads no model."""

from pathlib import Path

from pipeline.config import Config
from pipeline.data.manifest import check_file
from pipeline.prerequisites import shards_missing
from pipeline.splits import open_split, open_training


def shards_line(config: Config) -> str:
    """That all shards of the recipe are there, by size; DataError for the first that is not.

    `stages/prepare.py check` reads them, which takes as long as reading takes.
    """
    if config.make_missing and shards_missing(config):
        return "shards        are not there; the first phase makes them (make_missing=true)"
    splits = [open_training(config)]
    splits += [open_split(config, each) for each in (config.data.val_split, config.data.test_split)]
    checked = 0
    for manifest in (each for split in splits for each in split.manifests):
        for number, entry in enumerate(manifest.shards):
            if Path(manifest.where(number)).is_absolute():
                check_file(manifest.path(number), entry)
                checked += 1
    return f"shards        {checked} of {sum(each.shards for each in splits)} are here, and whole"
