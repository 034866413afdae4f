"""Finds the shards that a user names: a folder of tars, or a pattern, here or on a server."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from braceexpand import braceexpand

from pipeline.data.remote import SCHEMES, checked_place, is_remote
from pipeline.errors import ConfigError

_MAGIC = re.compile(r"[*?\[{]")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def find_shards(shards: str, schemes: tuple[str, ...] = SCHEMES) -> tuple[str, list[str]]:
    """Find the tars that a folder or a pattern names.

    Args:
        shards: a folder (with its sub-folders), or a pattern with *, ?, [..], {a,b} or {000..123};
            or a URL, with braces alone.
        schemes: that a URL may have.

    Returns:
        The absolute folder or the URL that all lie below, and the names of the tars there, in
        order.

    Raises:
        ConfigError: it is not set, names nothing, names compressed tars, or is a URL that is not
            allowed.
    """
    if not shards:
        raise ConfigError(
            "shards='': is not set; set shards to a folder of tars or a pattern such as "
            "/data/cc3m/{00000..00331}.tar"
        )
    if is_remote(shards):
        return _listed(checked_place(shards, schemes))
    base, tars = _found(checked_place(shards, schemes))
    return str(base), [tar.relative_to(base).as_posix() for tar in tars]


def _listed(url: str) -> tuple[str, list[str]]:
    """The URL above the first brace, and the names that a pattern lists below it."""
    base = url.partition("{")[0].rpartition("/")[0]
    names = [each.removeprefix(f"{base}/") for each in _expanded(url)]
    wrong = next((name for name in names if not name.endswith(".tar") or set("*[]") & {*name}), "")
    if wrong:
        raise ConfigError(
            f"shards={url!r}: {wrong!r} is not the name of a .tar; a server is not searched, so "
            "list its shards in braces, such as s3://bucket/cc3m/{00000..00331}.tar"
        )
    return base, sorted(names)


def _expanded(pattern: str) -> list[str]:
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(f"shards={pattern!r}: {error}; write braces as {{000..123}}") from error


def _found(shards: str) -> tuple[Path, list[Path]]:
    """The folder that all local tars lie in, absolute, and the tars in order of their names."""
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
    found: dict[Path, None] = {}
    for pattern in _expanded(str(path)):
        names = glob.glob(pattern, recursive=True)
        if not names:
            raise ConfigError(f"shards={shards!r}: {pattern} is not there; name what is there")
        found.update((Path(name), None) for name in names)
    return Path(*parts[:plain]), [each for each in found if each.is_file()]


def _hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(base).parts)
