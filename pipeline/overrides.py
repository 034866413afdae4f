"""The command line's `key=value` arguments, and paths as their writers meant them.

A value is YAML, but a text is a text: `name=007` is no number, and `#` opens no comment in a path.
Knows the shape of a recipe's dataclasses, none of their meanings.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import ConfigError


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`key=value` arguments as a dictionary, in their order. Raises ConfigError for other forms."""
    overrides: dict[str, str] = {}
    for argument in arguments:
        if re.fullmatch(r"--local[_-]rank(=\d+)?", argument):
            continue
        key, equals, value = ("plan=true" if argument == "--plan" else argument).partition("=")
        if not equals or not key or key.startswith("-"):
            raise ConfigError(f"argument '{argument}' is not of the form key=value; see README.md")
        overrides[key] = value
    return overrides


def without_plan(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether a plan is asked for (`--plan`, `plan=true`), and the other arguments.

    Raises ConfigError for another value: what was meant to be a plan must not do the work.
    """
    plan = parse_overrides(arguments).get("plan", "false").lower()
    if plan not in ("true", "false"):
        raise ConfigError(f"plan={plan}: is neither true nor false; write --plan for a plan")
    rest = [each for each in arguments if each != "--plan" and not each.startswith("plan=")]
    return plan == "true", rest


def expand(key: str, value: str) -> str:
    """A path with `~` and variables of the environment replaced; ConfigError for an unset one."""
    scheme, _, path = value.rpartition("local-dir:")
    expanded = os.path.expandvars(os.path.expanduser(path))
    unset = re.search(r"\$(\w+)", expanded)
    if unset:
        raise ConfigError(
            f"{key}={value}: the environment has no variable {unset[1]}; set it, or write the path"
        )
    return f"{scheme}local-dir:{expanded}" if len(path) < len(value) else expanded


def dotlist_of(overrides: Mapping[str, str], schema: type[Any]) -> DictConfig:
    """Overrides as a tree: texts as they stand, everything else in YAML's notation."""
    made = OmegaConf.create({})
    for key, value in overrides.items():
        try:
            if _is_text(schema, key):
                OmegaConf.update(made, key, _text(value, _type_of(schema, key)), force_add=True)
            else:
                made.merge_with_dotlist([f"{key}={value}"])
        except (yaml.YAMLError, ValueError, OmegaConfBaseException) as error:
            raise ConfigError(
                f"{key}={value}: not a value in YAML's notation ({one_line(error)}); put a space "
                "after each ':' and quote the argument"
            ) from error
    return made


def _type_of(schema: Any, key: str) -> Any:
    """The declared type of a dotted key; None where there is no such key."""
    kind = schema
    for name in key.split("."):
        if dataclasses.is_dataclass(kind):
            kind = {each.name: each.type for each in dataclasses.fields(kind)}.get(name)
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            return None
    return kind


def _is_text(schema: Any, key: str) -> bool:
    return _type_of(schema, key) in (str, str | None)


def _text(value: str, kind: Any) -> str | None:
    """A text override: `007` and `a #b` are what they look like, quotes around it are YAML's."""
    if kind is not str and value in ("null", "~", ""):
        return None
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return str(yaml.safe_load(value))
    return value


def expand_paths(section: Any, prefix: str) -> None:
    """Expands every field that is marked as a path, at any depth, in place."""
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), f"{prefix}{field.name}"
        for name, entry in entries(value):
            expand_paths(entry, prefix=f"{key}{name}.")
        if field.metadata.get("path"):
            if isinstance(value, str):
                setattr(section, field.name, expand(key, value))
            elif isinstance(value, list):
                texts = [expand(key, each) if isinstance(each, str) else each for each in value]
                setattr(section, field.name, texts)


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """The dataclasses in a field's value, with what their keys add to its name."""
    if dataclasses.is_dataclass(value):
        yield "", value
    elif isinstance(value, Mapping):
        yield from ((f".{k}", each) for k, each in value.items() if dataclasses.is_dataclass(each))
    elif isinstance(value, list):
        found = (each for each in value if dataclasses.is_dataclass(each))
        yield from ((f"[{i}]", each) for i, each in enumerate(found))


def one_line(error: Exception) -> str:
    """The first line of a library's message, so that ours stays one line."""
    return " ".join(str(error).split("\n")[0].split()) or type(error).__name__
