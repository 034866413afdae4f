"""The entries of a JSON file: a list's, or its lines; one that is broken is a fault of its own."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.faults import ContentFault
from pipeline.errors import DataError


def lines_of(file: Path) -> Iterator[bytes]:
    """The lines of a file that are not blank; raises OSError."""
    with file.open("rb") as read:
        yield from filter(bytes.strip, read)


def json_content(key: str, file: Path) -> Any:
    """What a whole file holds as one JSON value; None where it is none (it may hold lines).

    Raises:
        DataError: it begins as a list, which it does not go on as: cut off, as a rule. Taken for
            lines, some of it would pass. `key` is where the file was named.
        OSError: it cannot be read.
    """
    content = file.read_bytes()
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if not content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            return None
        cause = " ".join(str(error).split())
        raise DataError(f"{key}={file}: not readable as JSON ({cause}); get it again") from error


def json_object(entry: Any) -> dict[str, Any]:
    """The object of a line (bytes), or of a list's entry; a ContentFault where there is none."""
    try:
        content = json.loads(entry.decode("utf-8-sig")) if isinstance(entry, bytes) else entry
    except UnicodeDecodeError as error:
        raise ContentFault("invalid UTF-8", detail=str(error)) from error
    except (ValueError, RecursionError) as error:
        raise ContentFault("bad JSON", detail=" ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise ContentFault("bad JSON", detail="not an object")
    return content


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can spell and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
