"""Instruction sets: conversations in JSON files, with or without an image, in the usual forms.

`dialogue.py` reads one entry. A whole conversation is one record (LaVIN makes one of each turn of
LLaVA's, without what was said before). A broken entry becomes a record with a fault, so that it is
counted and listed when the shards are written. Images are named by entries, not opened.
"""

import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import PrepareConfig
from pipeline.data.conversations import MESSAGES
from pipeline.data.faults import ContentFault
from pipeline.data.sources.dialogue import Dialogue, read_dialogue
from pipeline.data.sources.entries import json_content, json_object, lines_of
from pipeline.data.sources.paths import need_file, need_folder, need_some
from pipeline.data.sources.record import FileImage, SourceRecord, make_key
from pipeline.errors import ConfigError, DataError

VALIDATION = "val"

_FILE = "a .json or .jsonl file of conversations (Alpaca's, LLaVA's or ShareGPT's form)"
_IMAGES = "the folder that the entries' image names start from"
_LONGEST = 60  # letters of a key that come from the file's name


def load_instruct(cfg: PrepareConfig) -> dict[str, Sequence[SourceRecord]]:
    """Load instruction sets.

    Args:
        cfg: `annotations`, the files; `images`, their folder, where entries name some; `split`, and
            `held_out`, the share of the conversations that goes to `val` instead. Those about one
            image are held out together.

    Returns:
        Split -> records, in the order of the files; broken entries stand in `split`. The JSON of a
        record holds its `messages`; its captions, for an image tower, are the answers.

    Raises:
        ConfigError: a path is missing, two files have one name, entries name images and no folder
            is given, or it holds none of them.
        DataError: a file cannot be read, or holds no usable entry.
    """
    if cfg.held_out >= 1:
        raise ConfigError(f"held_out={cfg.held_out}: is a share; give less than 1, or 0 for none")
    folder = need_folder("images", cfg.images, _IMAGES) if cfg.images else None
    found = [each for stem, file in _files(cfg).items() for each in _records(file, stem, folder)]
    usable = [record for record, _ in found if record.fault is None]
    if not usable:
        cause = str(found[0][0].fault) if found else "no entries"
        raise DataError(f"annotations={cfg.annotations}: no usable entry ({cause}); mend them")
    files = (each.image.path for each in usable if isinstance(each.image, FileImage))
    need_some("images", cfg.images, files)
    kept = [record for record, about in found if not _is_held_out(about, cfg.held_out)]
    held = [record for record, about in found if _is_held_out(about, cfg.held_out)]
    return {cfg.split: kept, VALIDATION: held} if held else {cfg.split: kept}


def _files(cfg: PrepareConfig) -> dict[str, Path]:
    """The files by the names that their records' keys begin with."""
    found: dict[str, Path] = {}
    for name in cfg.annotations or [""]:
        file = need_file("annotations", name, _FILE)
        stem = make_key(file.stem)[:_LONGEST]
        if stem in found:
            raise ConfigError(
                f"annotations={name!r}: records are called after their file, and {found[stem]} is "
                "called alike; rename one, or prepare them apart"
            )
        found[stem] = file
    return found


def _records(file: Path, stem: str, folder: Path | None) -> Iterator[tuple[SourceRecord, str]]:
    """The records of a file, each with what it is about; "" for a broken one."""
    for number, entry in enumerate(_entries(file), start=1):
        key = f"{stem}-{number}"
        try:
            dialogue = read_dialogue(json_object(entry))
            image = _image(file, dialogue.image, folder)
        except ContentFault as fault:
            fault = ContentFault(fault.reason, key=key, detail=fault.detail)
            yield SourceRecord(key, None, (), key, fault=fault), ""
            continue
        about = dialogue.image or dialogue.conversation.exchanges[0].question
        yield _record(key, dialogue, image), about


def _entries(file: Path) -> Sequence[Any]:
    """A list's entries, or lines."""
    try:
        lines = file.suffix.lower() in (".jsonl", ".ndjson")
        content = None if lines else json_content("annotations", file)
        if content is None:
            return list(lines_of(file))
    except OSError as error:
        raise DataError(f"annotations={file}: not readable ({error.strerror})") from error
    if not isinstance(content, list):
        raise DataError(f"annotations={file}: holds no list of conversations; name {_FILE}")
    return content


def _image(file: Path, name: str, folder: Path | None) -> FileImage | None:
    if not name:
        return None
    if folder is None:
        raise ConfigError(
            f"images='': is not set, but {file} names the image {name!r}; set images to {_IMAGES}"
        )
    inside = posixpath.normpath(name)
    if os.path.isabs(inside) or inside.startswith("../") or inside in (".", ".."):
        raise ContentFault("path outside the image folder", detail=name)
    return FileImage(folder / inside)


def _record(key: str, dialogue: Dialogue, image: FileImage | None) -> SourceRecord:
    messages = dialogue.conversation.messages()
    return SourceRecord(
        key=key,
        image=image,
        captions=tuple(m["content"] for m in messages if m["role"] == "assistant"),
        image_id=dialogue.image or key,
        extra={
            MESSAGES: messages,
            "text_bytes": sum(len(m["content"].encode()) for m in messages),
        },
    )


def _is_held_out(about: str, share: float) -> bool:
    """Drawn by a hash of the image's name or, without one, of the first question."""
    digest = hashlib.sha256(about.encode()).digest()
    return bool(about) and int.from_bytes(digest[:8], "big") < share * 2**64
