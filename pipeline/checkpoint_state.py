"""A checkpoint's state.json: what it depends on, how far it is, and what could go on from it.

Everything in a checkpoint that is not a tensor of DeepSpeed's or a random state.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.checkpoint_files import STATE
from pipeline.engine import Engine
from pipeline.errors import CheckpointError
from pipeline.identity import Identity
from pipeline.progress import Progress


def state_of(engine: Engine, progress: Progress, identity: Identity) -> dict[str, Any]:
    """What the file holds of a run that is written now."""
    return {
        "progress": asdict(progress),
        "identity": identity.as_json(),
        "ranks": engine.world.size,
        "layout": engine.layout,
        "trains": engine.trains,
    }


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `state_of` gave; CheckpointError for a damaged file."""
    try:
        loaded: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint} is damaged ({error}); delete that folder, the same command "
            "goes on from the one before"
        ) from error
    return loaded


def identity_in(written: Mapping[str, Any]) -> Identity:
    """The identity that a state.json or an export's JSON tells; else its bare fingerprint."""
    return Identity.of_json(written.get("identity") or {"fingerprint": written["fingerprint"]})
