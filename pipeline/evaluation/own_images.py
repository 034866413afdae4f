"""Captions one's own images with an export: all ranks share the files, rank 0 writes.

Needs no shards and no DeepSpeed; the prompt, the transform and the generation are those of the
evaluation. Leaves `captions.jsonl` (one line a file: its caption, or why it has none) and
`captions.html` to look at.
"""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.assemble import CaptionModel, build_caption_model, check_adapters, check_stop
from pipeline.captioning import caption_batches
from pipeline.config import Config
from pipeline.data.collate import Batch
from pipeline.data.files import atomic_file, make_folder
from pipeline.data.image_files import FileBatch, FileDataset, Found, find_images
from pipeline.data.loader import DecodedImages
from pipeline.data.workers import LoadedAhead
from pipeline.dist import World, gather_json, on_main
from pipeline.engine import dtype_of, resolve_precision
from pipeline.errors import ConfigError, DataError
from pipeline.export_files import ExportTensors, check_has_st
from pipeline.exports import find_export
from pipeline.models.placement import Placement
from pipeline.pages.cards import Card
from pipeline.pages.gallery import by_reason, page
from pipeline.pages.thumbnails import thumbnail
from pipeline.presence import Presence
from pipeline.splits import language_collator
from pipeline.stopping import stop_if_asked
from pipeline.tasks import caption_prompt

log = logging.getLogger("pipeline")


def caption_images(config: Config, world: World) -> str:
    """Captions the images of the recipe's `caption` section; every rank calls it.

    Returns a line that says what was written.

    Raises:
        ConfigError: checkpoint or images is missing, or names nothing.
        CheckpointError: the export cannot caption, or does not fit the recipe.
        DataError: not one of the files could be captioned; they are listed all the same.
    """
    export = Path(on_main(lambda: _export(config), world))
    found = Found(**on_main(lambda: find_images(config.caption.images)._asdict(), world))
    log.info("caption       %d files of %s with %s", len(found.names), found.root, export)
    dtype = dtype_of(resolve_precision(config.precision, world.device))
    built = build_caption_model(
        replace(config, data=replace(config.data, cache_features=False)),
        ExportTensors(export),
        {},
        dtype=dtype,
        placement=Placement(),
        world=world,
    )
    built.model.to(world.device).eval()
    seen = FileBatch()
    captions = caption_batches(
        built.model,
        _batches(config, _dataset(config, built, found, world), seen, world.presence),
        built.tokenizer,
        config.evaluate,
        device=world.device,
        dtype=dtype,
    )
    stop_if_asked(world)
    local = [captions, seen.faults, seen.pictures]
    parts: tuple[dict[str, str], dict[str, str], dict[str, str]] = ({}, dict(found.faults), {})
    for gathered in gather_json(local, world):
        for whole, part in zip(parts, gathered, strict=True):
            whole.update(part)
    return on_main(lambda: _write(config, export, found, *parts), world)


def _export(config: Config) -> str:
    for key in ("checkpoint", "images"):
        if not getattr(config.caption, key):
            raise ConfigError(
                f"caption: {key}= is missing; give checkpoint=FOLDER (an export, a phase or a run) "
                "and images=FOLDER"
            )
    export = find_export(Path(config.caption.checkpoint), "checkpoint")
    check_has_st(export)
    check_adapters(config, export)
    check_stop(config, export)
    return str(export)


def _dataset(config: Config, built: CaptionModel, found: Found, world: World) -> FileDataset:
    """This rank's files."""
    source = built.decoded.source
    assert isinstance(source, DecodedImages)
    return FileDataset(
        root=found.root,
        names=found.names[world.rank :: world.size],
        size=config.evaluate.batch,
        row=caption_prompt(config, built.tokenizer),
        collate=language_collator(config, built.decoded, built.tokenizer, prompts=True),
        transform=source.transform,
        image_size=source.image_size,
        max_pixels=config.data.max_pixels,
        max_image_bytes=config.data.max_image_bytes,
        shown=frozenset(found.names[: config.caption.shown]),
        picture=thumbnail,
    )


def _batches(
    config: Config, dataset: FileDataset, seen: FileBatch, presence: Presence
) -> Iterator[Batch]:
    """The prompts, loaded ahead; faults and pictures gather in `seen`. Ends where a stop is asked
    for."""
    loader = LoadedAhead(dataset, range(len(dataset)), workers=config.data.workers)
    began = time.perf_counter()
    for done, loaded in enumerate(loader, start=1):
        if presence.stop_asked() is not None:
            return
        presence.beat()
        seen.faults |= loaded.faults
        seen.pictures |= loaded.pictures
        if loaded.batch is not None:
            yield loaded.batch
        left = (time.perf_counter() - began) / done * (len(dataset) - done)
        log.info("caption       batch %d/%d  eta %.0f s", done, len(dataset), left)


def _write(
    config: Config,
    export: Path,
    found: Found,
    captions: dict[str, str],
    faults: dict[str, str],
    pictures: dict[str, str],
) -> str:
    place = Path(found.root).resolve().name or "images"
    out = Path(config.caption.out or Path(config.runs, config.name, "captions", place))
    make_folder(out)
    with atomic_file(out / "captions.jsonl") as file:
        for name in sorted(captions.keys() | faults.keys()):
            said = {"caption": captions[name]} if name in captions else {"reason": faults[name]}
            line = json.dumps({"file": readable(name), **said}, ensure_ascii=False)
            file.write(f"{line}\n".encode())
    cards = [
        Card(readable(name), pictures[name], captions[name])
        for name in found.names
        if name in pictures and name in captions
    ]
    html = page(
        cards,
        model=str(export),
        captioned=len(captions),
        skipped={readable(name): reason for name, reason in sorted(faults.items())},
        ignored=found.ignored,
    )
    with atomic_file(out / "captions.html") as file:
        file.write(html.encode())
    skipped = by_reason(faults) or "none"
    if not captions:
        raise DataError(
            f"none of the {len(faults)} files of {found.root} could be captioned ({skipped}); "
            f"{out / 'captions.jsonl'} says why for each"
        )
    images = "1 image" if len(captions) == 1 else f"{len(captions)} images"
    return f"{out}: {images} captioned, {len(cards)} on the sheet; skipped: {skipped}"


def readable(name: str) -> str:
    """A file's name as text; bytes that are no UTF-8 become replacement characters."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
