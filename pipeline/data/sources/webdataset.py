"""Which tars `source=webdataset` means: a folder with its sub-folders, or a pattern.

Looks at names only; `foreign.py` opens the tars.
"""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from braceexpand import braceexpand

from pipeline.errors import ConfigError

_MAGIC = re.compile(r"[*?\[{]")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def find_shards(shards: str) -> tuple[Path, list[Path]]:
    """Find the tars that a folder or a pattern names.

    Args:
        shards: a folder (with its sub-folders), or a pattern with *, ?, [..], {a,b} or {000..123}.

    Returns:
        The folder that all lie in, absolute, and the paths of the tars in order of their names.

    Raises:
        ConfigError: it is not set or a URL, names nothing, or names compressed tars.
    """
    if not shards or "://" in shards or shards.startswith("pipe:"):
        reason = "not a local path" if shards else "is not set"
        raise ConfigError(
            f"shards={shards!r}: {reason}; set shards to a folder of tars or a pattern such as "
            "/data/cc3m/{00000..00331}.tar"
        )
    path = Path(os.path.abspath(Path(shards).expanduser()))
    if path.is_dir():
        base, found = path, list(_files(shards, path))
    else:
        base, found = _matching(shards, path)
    compressed = [each for each in found if each.name.endswith(_COMPRESSED)]
    if compressed:
        raise ConfigError(
            f"shards={shards!r}: {compressed[0]} is compressed, so records cannot be read by their "
            "place; unpack it to a plain .tar"
        )
    tars = sorted(each for each in found if each.suffix == ".tar" and not _hidden(each, base))
    if not tars:
        raise ConfigError(f"shards={shards!r}: names no *.tar; set shards to what holds them")
    return base, tars


def _files(shards: str, folder: Path) -> Iterator[Path]:
    """All files in a folder, through links too; a sub-folder that cannot be read is an error."""

    def refuse(error: OSError) -> None:
        raise ConfigError(
            f"shards={shards!r}: {error.filename} cannot be read ({error.strerror}); mend its "
            "rights, or name another folder"
        ) from error

    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in seen:  # links that lead round in a circle
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place) / name for name in files)


def _matching(shards: str, path: Path) -> tuple[Path, list[Path]]:
    """The folder above the first wildcard, and the files that a pattern names."""
    parts = path.parts
    plain = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), len(parts) - 1)
    try:
        patterns = list(braceexpand(str(path)))
    except ValueError as error:
        raise ConfigError(f"shards={shards!r}: {error}; write braces as {{000..123}}") from error
    found: dict[Path, None] = {}
    for pattern in patterns:
        names = glob.glob(pattern, recursive=True)
        if not names:
            raise ConfigError(f"shards={shards!r}: {pattern} is not there; name what is there")
        found.update((Path(name), None) for name in names)
    return Path(*parts[:plain]), [each for each in found if each.is_file()]


def _hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(base).parts)
