"""What a recipe's splits hold, or will hold once they are prepared; what preparing would do.

Reads manifests, one index and, for splits that are still to be made, the raw data set's own lists.
Opens no image and writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import Config, PrepareConfig
from pipeline.data.check import REPORT_NAME, find_splits
from pipeline.data.index import load_index
from pipeline.data.manifest import MANIFEST_NAME, Manifest, load_manifest, read_manifest
from pipeline.data.remote import is_remote
from pipeline.data.sources import WEBDATASET, SourceRecord, load_source
from pipeline.data.sources.record import FileImage
from pipeline.errors import DataError, UserError
from pipeline.explain.text import UNKNOWN, count, plural, section, size
from pipeline.splits import Split, open_split, open_training

_SAMPLED = 200  # image files whose size stands for all
_DRAWN = 20  # images drawn for the same purpose
_ASSUMED_CAPTIONS = 5.0  # of a record, as in COCO and Flickr8k


@dataclass(frozen=True)
class Outlook:
    """One split: what is known of it before anything is made."""

    records: int | None
    shards: int | None
    captions: float | None  # of a record, on average
    detail: str  # one line
    there: bool

    @property
    def captions_or_assumed(self) -> float:
        """The captions of a record where they are known, else what is usual."""
        return self.captions if self.captions is not None else _ASSUMED_CAPTIONS


def training_outlook(config: Config) -> Outlook:
    """What the phases train on, or will; never raises for what is missing."""
    if not config.data.mix:
        return outlook(config, config.data.train_split)
    try:
        return _seen(open_training(config))
    except UserError as error:
        planned = _planned_mix(config) if config.make_missing else None
        return planned or Outlook(None, None, None, str(error), False)


def _planned_mix(config: Config) -> Outlook | None:
    """The mixture of sets that are there or would be prepared; None where one is neither."""
    records = shards = 0
    captions = 0.0
    for each in config.data.mix:
        alone = replace(config, data=replace(config.data, shards=each.shards, mix=[]))
        found = outlook(alone, each.split or config.data.train_split)
        if found.records is None or found.shards is None:
            return None
        counted = round(each.weight * found.records)
        records, shards = records + counted, shards + found.shards
        captions += counted * found.captions_or_assumed
    names = ", ".join(each.label for each in config.data.mix)
    line = f"{plural(records, 'record')}, mixed of {names}; what is missing is prepared first"
    return Outlook(records, shards, captions / max(records, 1), line, False)


def outlook(config: Config, name: str) -> Outlook:
    """What split `name` of `data.shards` holds or will hold; never raises for what is missing."""
    try:
        return _seen(open_split(config, name))
    except UserError as error:
        planned = _planned(config, name)
        if planned is not None and config.make_missing:
            return planned
        folder = Path(config.data.shards) / name
        missing = config.data.shards and not (folder / MANIFEST_NAME).is_file()
        missing = missing and not is_remote(config.data.shards)
        detail = f"not there: {folder}" if missing else str(error)
        if planned is not None and planned.records:
            return replace(planned, detail=f"{detail} ({plural(planned.records, 'record')})")
        return Outlook(None, None, None, detail, False)


def _seen(split: Split) -> Outlook:
    total = size(sum(each.bytes for each in split.manifests))
    text = f"{plural(split.records, 'record')} in {plural(split.shards, 'shard')}, {total}"
    if split.names:
        text += f", mixed of {', '.join(split.names)}"
    return Outlook(split.records, split.shards, _mean_captions(split.manifests[0]), text, True)


def describe_preparation(entries: Sequence[PrepareConfig]) -> str:
    """What `stages/prepare.py` would do with each of `entries`."""
    if not entries:
        return "This recipe prepares nothing: its data.shards are expected to be there."
    title = "Plan of stages/prepare.py. Nothing is written."
    return "\n\n".join([title, *(_describe(entry) for entry in entries)])


def describe_check(folder: Path) -> str:
    """What `stages/prepare.py check` would read; raises DataError where there are no shards."""
    rows = []
    for split in find_splits(folder):
        try:
            found = read_manifest(split)
            held = f"{plural(found.records, 'record')} in {plural(len(found.shards), 'shard')}"
            line = f"reads {held}, {size(found.bytes)}; writes {REPORT_NAME}"
        except DataError as error:
            line = f"not possible: {error}"
        rows.append((split.name, line))
    return section(f"Plan of stages/prepare.py check, of {folder}. Nothing is read.", rows)


def _describe(entry: PrepareConfig) -> str:
    rows = [
        ("writes to", entry.out or f"{UNKNOWN} (set out to a folder)"),
        ("processes", str(entry.workers) if entry.workers else "none beside this one"),
        ("records a shard", count(entry.records_per_shard)),
    ]
    if entry.source == WEBDATASET:
        line = f"indexes the shards of {entry.shards or UNKNOWN}, which stay where they are"
        return section(f"Data set '{entry.source}'", [*rows[:2], (entry.split, line)])
    try:
        splits = load_source(entry)
    except UserError as error:
        return section(f"Data set '{entry.source}'", [*rows, ("not possible", str(error))])
    for split, records in splits.items():
        folder = Path(entry.out).expanduser() / split
        usable = _usable(records)
        line = _split(entry, folder, usable)
        refused = len(records) - len(usable)
        rows.append((split, f"{line}; {count(refused)} more are skipped" if refused else line))
    return section(f"Data set '{entry.source}'", rows)


def _split(entry: PrepareConfig, folder: Path, records: Sequence[SourceRecord]) -> str:
    done = _finished(folder)
    if done is not None:
        return (
            f"finished: {plural(done.records, 'record')} in {plural(len(done.shards), 'shard')}, "
            f"{size(done.bytes)}; left alone"
        )
    shards = -(-len(records) // entry.records_per_shard)
    begun = sum(1 for _ in folder.glob("shard-*.tar"))
    texts = sum(len(each.captions) for each in _sample(records)) / max(len(_sample(records)), 1)
    line = (
        f"{plural(len(records), 'record')} ({texts:.1f} captions each) into "
        f"{plural(shards, 'shard')}, about {size(_expected_bytes(records))}"
    )
    return f"{line}; {begun} written before, kept where they are whole" if begun else line


def _usable(records: Sequence[SourceRecord]) -> Sequence[SourceRecord]:
    """Without those that the source itself found of no use."""
    return [record for record in records if record.fault is None]


def _finished(folder: Path) -> Manifest | None:
    if not (folder / MANIFEST_NAME).is_file():
        return None
    try:
        return load_manifest(folder)
    except DataError:
        return None  # to be written again


def _sample(records: Sequence[SourceRecord]) -> Sequence[SourceRecord]:
    """Records spread over all of them."""
    return [records[i] for i in range(0, len(records), max(len(records) // _SAMPLED, 1))]


def _expected_bytes(records: Sequence[SourceRecord]) -> float | None:
    """Of a split's tars, from the sizes of some of its images; None where they are not there."""
    sizes = []
    for record in _sample(records):
        try:
            if record.image is None:
                sizes.append(0)
            elif isinstance(record.image, FileImage):
                sizes.append(record.image.path.stat().st_size)
            elif len(sizes) < _DRAWN:
                sizes.append(len(record.image()[0]))
        except OSError:
            continue  # of a real copy some images are often missing
    if not sizes:
        return None
    # A member's header is 512 bytes, its content padded to as many; the JSON takes two blocks.
    return len(records) * (sum(sizes) / len(sizes) + 256 + 3 * 512 + 512)


def _planned(config: Config, name: str) -> Outlook | None:
    """The split as the recipe's `prepare` section would write it; None where it does not."""
    for entry in config.prepare.values():
        elsewhere = not config.data.shards or Path(entry.out) != Path(config.data.shards)
        if elsewhere or entry.source == WEBDATASET:
            continue
        try:
            found = load_source(entry).get(name)
        except UserError as error:
            return Outlook(None, None, None, f"not there, and cannot be prepared: {error}", False)
        if found is not None:
            records = _usable(found)
            texts = [len(each.captions) for each in _sample(records)]
            mean = sum(texts) / len(texts) if texts else None
            line = f"{plural(len(records), 'record')}, would be prepared first from {entry.source}"
            shards = -(-len(records) // entry.records_per_shard)
            return Outlook(len(records), shards, mean, line, False)
    return None


def _mean_captions(manifest: Manifest) -> float | None:
    """Of the first shard that has records, as its index counts them."""
    number = next((i for i, shard in enumerate(manifest.shards) if shard.records), None)
    if number is None:
        return None
    try:
        return float(load_index(manifest, number).captions.mean())
    except DataError:
        return None
