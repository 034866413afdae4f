"""Places of shards that are no paths: which addresses are allowed, and how a server is asked.

The asking is fsspec's, one try a call: patience and a memory are the matter of `cache.py`. Whatever
goes wrong is an OSError, and no message repeats what an address may hide.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import fsspec

from pipeline.errors import ConfigError

SCHEMES = ("file", "http", "https", "s3")
# aiohttp would end any transfer after five minutes, however well it runs.
_HTTP_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
# Asking again gives the same answer.
_FORBIDDEN, _ABSENT = (401, 403), (404, 410)
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


def download(url: str, path: Path) -> None:
    """Write a remote file to `path`.

    Raises:
        ConfigError: there is no package for the scheme.
        FileNotFoundError, PermissionError: the server's last word.
        OSError: any other fault, worth another try.
    """
    with _faults_in_one_form():
        _filesystem(url).get_file(url, str(path))


def read(url: str) -> bytes:
    """The content of a remote file; raises as `download`."""
    with _faults_in_one_form():
        return bytes(_filesystem(url).cat_file(url))


def size(url: str) -> int | None:
    """The bytes of a remote file, None where the server does not say; raises as `download`."""
    with _faults_in_one_form():
        found = _filesystem(url).size(url)
    return None if found is None else int(found)


def _filesystem(url: str) -> Any:
    """A client of its own for one call: nothing is shared with threads or forked processes."""
    scheme = url.partition(":")[0].lower()
    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        # trust_env: proxies from the environment, passwords from ~/.netrc
        options["client_kwargs"] = {"timeout": _HTTP_TIMEOUT, "trust_env": True}
    try:
        return fsspec.filesystem(
            scheme, skip_instance_cache=True, use_listings_cache=False, **options
        )
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{scheme}://: this machine cannot read it ({error}); "
            "for s3 run: pip install 'eim-pipeline[s3]'"
        ) from error


@contextmanager
def _faults_in_one_form() -> Iterator[None]:
    """Turns what the clients raise into OSErrors, without the addresses that some repeat."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # every protocol has classes of its own
        raise _in_one_form(error) from error


def _in_one_form(error: BaseException) -> OSError:
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, (aiohttp.ClientError, OSError)):
        # fsspec's HTTP calls a file not found whatever went wrong when it asked for its size.
        return _in_one_form(cause)
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in _ABSENT:
        return FileNotFoundError("not found")
    text = f"HTTP {status} {getattr(error, 'message', '')}" if status else str(error)
    text = re.sub(r"//[^/@\s]*@", "//", re.sub(r"\?\S*", "", " ".join(text.split())))
    final = isinstance(error, PermissionError) or status in _FORBIDDEN
    return (PermissionError if final else OSError)(text or type(error).__name__)
