"""The resolved recipe as a user wants to read it: what is not as it always is."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import yaml

from pipeline.config import Config


def resolved_recipe(config: Config) -> str:
    """The recipe's values that are not the defaults, as YAML."""
    chosen = _differences(replace(config, plan=False, plan_ranks=None))
    text = yaml.safe_dump(chosen, sort_keys=False, default_flow_style=None, width=90).rstrip()
    title = "The recipe, as resolved: what differs from the defaults in pipeline/config/"
    return "\n".join([title, *(f"  {line}" for line in text.splitlines())])


def _differences(section: Any, usual: Any = None) -> dict[str, Any]:
    """A dataclass as a dictionary of what is not as in `usual` (None: its own defaults)."""
    usual = type(section)() if usual is None else usual
    found: dict[str, Any] = {}
    for each in fields(section):
        value, default = getattr(section, each.name), getattr(usual, each.name)
        if value == default:
            continue
        if is_dataclass(value):
            found[each.name] = _differences(value, default)
        elif isinstance(value, dict):
            found[each.name] = {key: _plain(below) for key, below in value.items()}
        elif isinstance(value, list):
            found[each.name] = [_plain(below) for below in value]
        else:
            found[each.name] = value
    return found


def _plain(value: Any) -> Any:
    return _differences(value) if is_dataclass(value) else value
