"""Models in and out: from the reference's checkpoints, to what transformers and open_clip load.

Trains nothing, and needs no data and no DeepSpeed. One process does all of it.
"""

from dataclasses import replace
from pathlib import Path

from pipeline.config import Config, ExportConfig
from pipeline.conversion import convert
from pipeline.data.files import sha256_of
from pipeline.errors import ConfigError
from pipeline.export_files import IMPORTED, save_export
from pipeline.exports import find_export
from pipeline.hashes import fingerprint_of
from pipeline.models.families import added_by, is_added
from pipeline.models.imports import read_reference
from pipeline.progress import Progress


def export(config: Config) -> str:
    """Does what the recipe's `export` section says; returns a line that says what was written.

    Raises:
        ConfigError: neither or both of official and checkpoint, no out, or one that is in use; the
            checkpoint and the recipe do not fit.
        CheckpointError: the checkpoint cannot be used.
    """
    asked = config.export
    if bool(asked.official) == bool(asked.checkpoint):
        raise ConfigError(
            "export: give either official=FILE (a checkpoint of the reference) or "
            "checkpoint=FOLDER (an export, a phase or a run of this project)"
        )
    if not asked.out:
        raise ConfigError("export: out= is missing; name a folder to be written")
    out = Path(asked.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={out} exists and is not an empty folder; name another")
    if asked.official:
        return import_official(config, Path(asked.official), out)
    return convert(config, find_export(Path(asked.checkpoint), "checkpoint"), out)


def import_official(config: Config, file: Path, out: Path) -> str:
    """A checkpoint of the reference as an export, to be scored or tuned under this recipe."""
    found = read_reference(file, config)
    source = {"file": file.name, "sha256": sha256_of(file)}
    details = {
        "fingerprint": fingerprint_of(IMPORTED, source["sha256"]),
        "phase": IMPORTED,
        "family": added_by(config) if any(map(is_added, found.tensors)) else None,
        "source": source,
    }
    used = replace(found.config, export=ExportConfig())
    save_export(out, found.tensors, Progress(), details, used)
    return f"{out}: {found.remark}"
