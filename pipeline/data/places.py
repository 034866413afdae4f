"""Where shards may lie: paths, and addresses of a few schemes; everything else is refused."""

import re

from pipeline.errors import ConfigError

SCHEMES = ("file", "http", "https", "s3")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


def is_remote(place: str) -> bool:
    """True for an address of any scheme but file:, False for a path."""
    found = _SCHEME.match(place)
    return found is not None and found[1].lower() != "file"


def checked_place(place: str, schemes: tuple[str, ...] = SCHEMES) -> str:
    """A folder's path or URL as the rest of the code takes it: no file:// before, no slash behind.

    Raises:
        ConfigError: its scheme is not one of `schemes`, or it holds credentials, a query or a
            chain of addresses.
    """
    found = _SCHEME.match(place)
    if found is None:
        return place
    scheme, rest = found[1].lower(), place[found.end() :]
    if scheme not in schemes or not rest.startswith("//") or "::" in rest:
        raise ConfigError(
            f"{scheme}: shards are read from paths and from {', '.join(schemes)}:// addresses "
            "only; name one of these, or allow another of fsspec's with the key schemes"
        )
    if scheme == "file":
        return rest.removeprefix("//localhost").removeprefix("//") or "/"
    host, _, path = rest.removeprefix("//").partition("/")
    if "@" in host or re.search(r"[?#]", rest):
        # Not even the message may show it, and a recipe is copied into run folders and TensorBoard.
        raise ConfigError(
            f"{scheme}://{host.rpartition('@')[2].partition('?')[0]}/...: an address must not hold "
            "credentials or a query; use ~/.netrc, AWS_* variables or a profile instead"
        )
    return f"{scheme}://{host}/{path}".rstrip("/")
