"""A captions file as rows: CSV, TSV, JSON lines or a JSON list, whatever its columns are called.

Text must be UTF-8, with or without a byte order mark. A broken row is returned with its fault; only
a file that cannot be understood as a whole is an error.
"""

import contextlib
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import PrepareConfig
from pipeline.data.faults import ContentFault
from pipeline.data.sources.entries import is_unicode, json_content, json_object, lines_of
from pipeline.errors import ConfigError, DataError

# In order of preference; case and surrounding space do not matter.
_IMAGE = (
    *("file_name", "filename", "image", "image_path", "path", "filepath", "file", "img"),
    *("image_name", "image_file", "image_id", "id", "key"),
)
_CAPTION = ("captions", "caption", "text", "texts", "sentences", "sentence", "description")
_SPLIT = ("split",)


@dataclass(frozen=True)
class Row:
    """What one row says: an image's name, its captions, its split; or what is wrong with it."""

    number: int  # of the CSV line (its header is 1), JSON line that is not blank, or list entry
    image: str = ""
    captions: tuple[str, ...] = ()
    split: str = ""
    fault: str = ""
    detail: str = ""


@dataclass(frozen=True)
class _Columns:
    image: str
    caption: str
    split: str | None


def read_rows(file: Path, cfg: PrepareConfig) -> Iterator[Row]:
    """Yield the rows of a captions file.

    Args:
        file: .jsonl or .ndjson, .json (a list, or lines), .tsv, else CSV, with semicolons where its
            first line has these and no comma; a .txt file is TSV when its first line has a tab.
            TSV has no quoting: a quotation mark is one.
        cfg: `image_column`, `caption_column` and `split_column`, where not "".

    Raises:
        ConfigError: there is no such column, or none of the usual names.
        DataError: the file is not in its format.
    """
    try:
        with file.open("rb") as lines:
            first = lines.readline()
        if first.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"captions={file}: is UTF-16; save it as UTF-8")
        kind = file.suffix.lower()
        if kind in (".jsonl", ".ndjson", ".json"):
            yield from _json_rows(file, cfg)
        else:
            tabs = kind == ".tsv" or (kind == ".txt" and b"\t" in first)
            semicolons = b";" in first and b"," not in first  # a spreadsheet's CSV in Europe
            delimiter = "\t" if tabs else ";" if semicolons else ","
            yield from _csv_rows(file, cfg, delimiter)
    except OSError as error:
        raise DataError(f"captions={file}: not readable ({error.strerror}); mend it") from error


def _csv_rows(file: Path, cfg: PrepareConfig, delimiter: str) -> Iterator[Row]:
    # Bytes that are no UTF-8 become surrogates here, and a fault of their row in _row.
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        if delimiter == "\t":
            reader = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        else:
            # Strict: a quotation mark that is never closed would swallow the rest of the file.
            reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            yield from _checked_rows(file, reader, cfg)
        except csv.Error as error:
            raise DataError(
                f"captions={file}: line {reader.line_num}: {error}; mend the quotation marks there"
            ) from error


def _checked_rows(file: Path, reader: Any, cfg: PrepareConfig) -> Iterator[Row]:
    """The rows of a csv.reader (which has no type of its own)."""
    header: list[str] = next(reader, [])
    columns = _columns(file, header, cfg)
    for cells in reader:
        if len(cells) > len(header):
            detail = f"{len(cells)} columns, the header has {len(header)}: quotes missing?"
            yield Row(reader.line_num, fault="too many columns", detail=detail)
        elif cells:
            yield _row(reader.line_num, dict(zip(header, cells, strict=False)), columns)


def _json_rows(file: Path, cfg: PrepareConfig) -> Iterator[Row]:
    columns: _Columns | None = None
    listing = _json_list(file) if file.suffix.lower() == ".json" else None
    header: dict[str, None] = {}  # of all objects: the first may lack what others have
    for entry in lines_of(file) if listing is None else listing:
        with contextlib.suppress(ContentFault):
            header.update(dict.fromkeys(json_object(entry)))
    for number, entry in enumerate(lines_of(file) if listing is None else listing, start=1):
        try:
            content = json_object(entry)
        except ContentFault as fault:
            yield Row(number, fault=fault.reason, detail=fault.detail)
            continue
        columns = columns or _columns(file, list(header), cfg)
        yield _row(number, content, columns)


def _json_list(file: Path) -> list[Any] | None:
    """The list that a .json file holds; None where it holds lines instead."""
    content = json_content("captions", file)
    if isinstance(content, dict) and "annotations" in content:
        raise DataError(f"captions={file}: is a COCO file; use source=coco annotations=[{file}]")
    return content if isinstance(content, list) else None


def _columns(file: Path, header: Sequence[str], cfg: PrepareConfig) -> _Columns:
    image = _column(file, header, "image_column", cfg.image_column, _IMAGE)
    caption = _column(file, header, "caption_column", cfg.caption_column, _CAPTION)
    there = cfg.split_column or any(name.strip().lower() in _SPLIT for name in header)
    split = _column(file, header, "split_column", cfg.split_column, _SPLIT) if there else None
    return _Columns(image, caption, split)


def _column(file: Path, header: Sequence[str], key: str, given: str, usual: Sequence[str]) -> str:
    """The name of a column as the header spells it."""
    names = {name.strip().lower(): name for name in reversed(header)}
    for wanted in [given.strip().lower()] if given else usual:
        if wanted in names:
            return names[wanted]
    looked_for = repr(given) if given else f"any of {', '.join(usual)}"
    raise ConfigError(
        f"{key}={given!r}: {file} has no column {looked_for}, but {', '.join(header) or 'none'}; "
        f"set {key} to the right one"
    )


def _row(number: int, cells: Mapping[str, Any], columns: _Columns) -> Row:
    """A row from its cells, checked."""
    image, captions = cells.get(columns.image), cells.get(columns.caption)
    name = str(image).strip() if isinstance(image, str | int) else ""
    listed = captions if isinstance(captions, list) else [captions]
    texts = tuple(text.strip() for text in listed if isinstance(text, str) and text.strip())
    split = str(cells.get(columns.split) or "").strip() if columns.split else ""
    fault = ""
    if not all(map(is_unicode, (name, split, *texts))):
        return Row(number, fault="invalid UTF-8", detail=ascii(name))
    if not name:
        fault = "no image name"
    elif not texts:
        fault = "no caption"
    elif split != Path(split).name or split == "..":
        fault = "bad split name"
    return Row(number, name, texts, split, fault, detail=name if fault else "")
